//! Answers of the kinds that a cluster's names have, written straight into their packet.
//!
//! hickory-proto can write every answer. It keeps each ending of each name for that, to look for it later, which is much of
//! what an answer costs. Here a name is looked for whole, and its ending where it usually is: in the question, and in the
//! name before. What is of another kind, or too long, is left to hickory-proto.

use hickory_proto::rr::{Name, RData, Record};

use super::{HEADER, Request};
use crate::answer::Answer;

/// Room that most answers need.
const USUAL: usize = 512;
/// The first bits of a pointer to a name, or to an ending of it, that stands earlier in the packet.
const POINTER: u16 = 0xc000;
/// Pointers lead no further than this.
const REACH: usize = 0x3fff;

/// A packet in the making.
struct Packet<'a> {
    bytes: Vec<u8>,
    /// Names that can be pointed to; the first is the question's.
    names: Vec<Written<'a>>,
}

/// A name in the packet.
struct Written<'a> {
    name: &'a Name,
    at: usize,
    /// How many of its labels stand there; a pointer takes the place of the others.
    labels: usize,
}

/// Writes an answer; nothing when that is not possible here.
pub(super) fn write(request: &Request, answer: &Answer, authoritative: bool, limit: usize) -> Option<Vec<u8>> {
    let mut packet = Packet {
        bytes: Vec::with_capacity(USUAL),
        names: Vec::with_capacity(8),
    };
    let sections = [&answer.answers, &answer.authorities, &answer.additionals];
    packet.number(request.id);
    packet.bytes.extend([
        0x80 | u8::from(authoritative) << 2 | u8::from(answer.cut) << 1 | u8::from(request.recursion_desired),
        0x80 | u8::from(request.checking_disabled) << 4 | answer.code.low(),
        0,
        1,
    ]);
    for section in sections {
        packet.number(u16::try_from(section.len()).ok()?);
    }
    debug_assert_eq!(packet.bytes.len(), HEADER);
    packet.name(request.query.name())?;
    packet.number(request.query.query_type().into());
    packet.number(request.query.query_class().into());
    for record in sections.into_iter().flatten() {
        packet.record(record)?;
        if packet.bytes.len() > limit {
            return None;
        }
    }
    (packet.bytes.len() <= limit).then_some(packet.bytes)
}

impl<'a> Packet<'a> {
    fn number(&mut self, number: u16) {
        self.bytes.extend(number.to_be_bytes());
    }

    fn record(&mut self, record: &'a Record) -> Option<()> {
        self.name(&record.name)?;
        self.number(record.record_type().into());
        self.number(record.dns_class.into());
        self.bytes.extend(record.ttl.to_be_bytes());
        let length_at = self.bytes.len();
        self.number(0);
        match &record.data {
            RData::A(ip) => self.bytes.extend(ip.octets()),
            RData::AAAA(ip) => self.bytes.extend(ip.octets()),
            RData::CNAME(name) => self.name(&name.0)?,
            RData::PTR(name) => self.name(&name.0)?,
            RData::NS(name) => self.name(&name.0)?,
            RData::SRV(srv) => {
                for number in [srv.priority, srv.weight, srv.port] {
                    self.number(number);
                }
                // RFC 2782 forbids to point elsewhere.
                self.spell(&srv.target, None)?;
            }
            RData::SOA(soa) => {
                self.name(&soa.mname)?;
                self.name(&soa.rname)?;
                self.bytes.extend(soa.serial.to_be_bytes());
                for seconds in [soa.refresh, soa.retry, soa.expire] {
                    self.bytes.extend(seconds.to_be_bytes());
                }
                self.bytes.extend(soa.minimum.to_be_bytes());
            }
            _ => return None,
        }
        let length = u16::try_from(self.bytes.len() - length_at - 2).ok()?;
        let place = self.bytes.get_mut(length_at..length_at + 2)?;
        place.copy_from_slice(&length.to_be_bytes());
        Some(())
    }

    /// Writes a name, as far as it does not stand in the packet yet.
    fn name(&mut self, name: &'a Name) -> Option<()> {
        let whole = self.names.iter().find(|written| written.name.iter().eq(name.iter()));
        let ending = whole.map(|written| (name.iter().len(), written.at)).or_else(|| {
            let likely = self.names.first().into_iter().chain(self.names.last());
            likely.filter_map(|written| written.ending(name)).max()
        });
        self.spell(name, ending)
    }

    /// Writes a name whose last labels, so many of them, stand somewhere already.
    fn spell(&mut self, name: &'a Name, ending: Option<(usize, usize)>) -> Option<()> {
        let at = self.bytes.len();
        let labels = name.iter().len() - ending.map_or(0, |(labels, _)| labels);
        for label in name.iter().take(labels) {
            self.bytes.push(u8::try_from(label.len()).ok()?);
            self.bytes.extend(label);
        }
        match ending {
            Some((_, at)) => self.number(POINTER | u16::try_from(at).ok()?),
            None => self.bytes.push(0),
        }
        if labels > 0 && at <= REACH {
            self.names.push(Written { name, at, labels });
        }
        Some(())
    }
}

impl Written<'_> {
    /// How many of the last labels of another name stand here, and where.
    fn ending(&self, name: &Name) -> Option<(usize, usize)> {
        let pairs = self.name.iter().rev().zip(name.iter().rev());
        let shared = pairs.take_while(|(one, other)| one == other).count();
        let before = self.name.iter().len() - shared;
        let at = self.at
            + self
                .name
                .iter()
                .take(before)
                .map(|label| label.len() + 1)
                .sum::<usize>();
        (shared > 0 && before < self.labels && at <= REACH).then_some((shared, at))
    }
}
