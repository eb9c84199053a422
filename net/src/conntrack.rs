//! Connection tracking: the entries of a protocol, and their removal.
//!
//! UDP has no end of a connection: an entry made while a Service had other endpoints (or none) keeps sending a client's
//! packets to the old place for as long as the client speaks. Whoever changes UDP rules removes such entries.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use nix::errno::Errno;

use crate::netlink::{Answer, DUMP_TRIES, Error, Transport, attributes, find, ip, what};
use crate::netns::Namespace;

const NETLINK_NETFILTER: isize = 12;
/// The subsystem of connection tracking, in the high byte of a message's type.
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
/// `struct nfgenmsg`.
const HEADER: usize = 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const NESTED: u16 = 0x8000;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// The number of UDP in an IP header.
pub const UDP: u8 = 17;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    /// Who sends.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// From which port; 0 where the protocol has none.
    pub source_port: u16,
    /// To which port; 0 where the protocol has none.
    pub destination_port: u16,
}

/// One connection as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The protocol's number in the IP header.
    pub protocol: u8,
    /// As the client sent it.
    pub original: Tuple,
    /// As answers come back: its source is where the packets really go.
    pub reply: Tuple,
    /// What names the entry to the kernel.
    key: Vec<(u16, Vec<u8>)>,
}

/// A client of the kernel's connection table of one namespace.
#[derive(Debug)]
pub struct Conntrack {
    transport: Transport,
}

impl Conntrack {
    /// A client of the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            transport: Transport::open(NETLINK_NETFILTER)?,
        })
    }

    /// A client of another network namespace.
    pub fn open_in(namespace: &Namespace) -> Result<Self, Error> {
        namespace.run(Self::open)?
    }

    /// The entries that are wanted. Only these are kept in memory: the table may hold hundreds of thousands.
    pub fn list(&mut self, mut wanted: impl FnMut(&Entry) -> bool) -> Result<Vec<Entry>, Error> {
        let what = what("list", "tracked connections");
        for _ in 0..DUMP_TRIES {
            self.transport.send(
                what,
                message(GET, NLM_F_REQUEST | NLM_F_DUMP, nix::libc::AF_UNSPEC, &[]),
            )?;
            let mut found = Vec::new();
            let steady = self
                .transport
                .answers(what, |answer| found.extend(read(answer).filter(&mut wanted)))?;
            if steady {
                return Ok(found);
            }
        }
        Err(what.unsteady())
    }

    /// Removes one entry. Returns whether it was still there.
    pub fn delete(&mut self, entry: &Entry) -> Result<bool, Error> {
        let words = format!("{} -> {}", entry.original.source, entry.original.destination);
        let what = what("delete tracked connection", &words);
        let family = if entry.original.source.is_ipv4() {
            nix::libc::AF_INET
        } else {
            nix::libc::AF_INET6
        };
        self.transport
            .send(what, message(DELETE, NLM_F_REQUEST | NLM_F_ACK, family, &entry.key))?;
        match self.transport.acknowledged(what) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes all entries that are wanted away. Returns how many there were.
    pub fn delete_matching(&mut self, wanted: impl FnMut(&Entry) -> bool) -> Result<usize, Error> {
        let mut removed = 0;
        for entry in self.list(wanted)? {
            removed += usize::from(self.delete(&entry)?);
        }
        Ok(removed)
    }
}

fn message(kind: u16, flags: u16, family: i32, attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    // nfgenmsg: family, version 0, resource 0.
    bytes.extend([u8::try_from(family).unwrap_or_default(), 0, 0, 0]);
    for (kind, value) in attributes {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes[0..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

fn read(answer: &Answer<'_>) -> Option<Entry> {
    let body = answer.payload.get(HEADER..)?;
    let (mut original, mut reply, mut key) = (None, None, Vec::new());
    for (kind, value) in attributes(body) {
        match kind {
            CTA_TUPLE_ORIG => {
                original = tuple(value);
                key.push((CTA_TUPLE_ORIG | NESTED, value.to_vec()));
            }
            CTA_TUPLE_REPLY => reply = tuple(value),
            CTA_ID | CTA_ZONE => key.push((kind, value.to_vec())),
            _ => {}
        }
    }
    let (protocol, original) = original?;
    Some(Entry {
        protocol,
        original,
        reply: reply?.1,
        key,
    })
}

fn tuple(value: &[u8]) -> Option<(u8, Tuple)> {
    let addresses = find(value, CTA_TUPLE_IP)?;
    let protocol = find(value, CTA_TUPLE_PROTO)?;
    let port = |kind| {
        let bytes = find(protocol, kind)?;
        Some(u16::from_be_bytes(bytes.try_into().ok()?))
    };
    // Types 1 and 2 are IPv4's source and destination, 3 and 4 IPv6's.
    let address = |four, six| find(addresses, four).or_else(|| find(addresses, six)).and_then(ip);
    let tuple = Tuple {
        source: address(1, 3)?,
        destination: address(2, 4)?,
        source_port: port(CTA_PROTO_SRC_PORT).unwrap_or_default(),
        destination_port: port(CTA_PROTO_DST_PORT).unwrap_or_default(),
    };
    Some((*find(protocol, CTA_PROTO_NUM)?.first()?, tuple))
}
