//! Questions read off the wire, answers written to it. What cannot be answered is refused here, with the code that says why.

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::serialize::binary::{BinEncodable as _, BinEncoder};

use crate::answer::Answer;

mod quick;

/// Longer questions are nobody's: a name has at most 255 bytes.
pub(crate) const MAX_QUESTION: usize = 4096;
/// The largest datagram that no link cuts into fragments (DNS flag day 2020).
pub(crate) const MAX_DATAGRAM: u16 = 1232;
const MIN_DATAGRAM: u16 = 512;
const HEADER: usize = 12;
/// An OPT record without options.
const OPT: u16 = 11;

/// How a question came.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// A question that can be answered.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) id: u16,
    pub(crate) query: Query,
    pub(crate) recursion_desired: bool,
    pub(crate) checking_disabled: bool,
    pub(crate) edns: Option<ClientEdns>,
    pub(crate) transport: Transport,
}

/// What the client says of itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ClientEdns {
    pub(crate) payload: u16,
    pub(crate) dnssec_ok: bool,
}

/// What became of a packet.
#[derive(Debug)]
pub(crate) enum Read {
    /// No question at all: an answer to it could go round in circles.
    Nothing,
    /// A question that is refused as it stands.
    Refused(ResponseCode, Vec<u8>),
    /// A question.
    Request(Request),
}

/// Reads a packet.
pub(crate) fn read(packet: &[u8], transport: Transport) -> Read {
    let Some(header) = packet.first_chunk::<HEADER>() else {
        return Read::Nothing;
    };
    if header[2] & 0x80 != 0 {
        return Read::Nothing;
    }
    let refuse = |code| Read::Refused(code, bare(header, code));
    if header[2] & 0x78 != 0 {
        return refuse(ResponseCode::NotImp);
    }
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    // What no question has a use for is not even decoded. (An IXFR carries a record as authority.)
    if count(4) != 1 || count(6) > 0 || count(8) > 1 || count(10) > 2 {
        return refuse(ResponseCode::FormErr);
    }
    let Ok(mut message) = Message::from_vec(packet) else {
        return refuse(ResponseCode::FormErr);
    };
    let Some(query) = message.queries.pop() else {
        return refuse(ResponseCode::FormErr);
    };
    let edns = message.edns.as_ref();
    let request = Request {
        id: message.metadata.id,
        query,
        recursion_desired: message.metadata.recursion_desired,
        checking_disabled: message.metadata.checking_disabled,
        edns: edns.map(|edns| ClientEdns {
            payload: edns.max_payload(),
            dnssec_ok: edns.flags().dnssec_ok,
        }),
        transport,
    };
    if edns.is_some_and(|edns| edns.version() > 0) {
        let code = ResponseCode::BADVERS;
        return Read::Refused(
            code,
            request.write(
                Answer {
                    code,
                    ..Answer::default()
                },
                false,
            ),
        );
    }
    Read::Request(request)
}

/// An answer that is a header alone: what came after it in the question may be anything.
fn bare(header: &[u8; HEADER], code: ResponseCode) -> Vec<u8> {
    let mut answer = vec![0; HEADER];
    answer[..2].copy_from_slice(&header[..2]);
    answer[2] = 0x80 | header[2] & 0x79;
    answer[3] = code.low();
    answer
}

// === impl Request ===

impl Request {
    /// The largest answer that the client takes.
    pub(crate) fn limit(&self) -> u16 {
        match (self.transport, self.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => MIN_DATAGRAM,
            (Transport::Udp, Some(edns)) => edns.payload.clamp(MIN_DATAGRAM, MAX_DATAGRAM),
        }
    }

    /// More records than this fit into no answer: the smallest has a pointer for its name, and four bytes of data.
    pub(crate) fn room(&self) -> usize {
        usize::from(self.limit()) / 16
    }

    /// Writes the answer. What does not fit is left out: first what is merely useful, then, marked as truncated, the rest.
    pub(crate) fn write(&self, answer: Answer, authoritative: bool) -> Vec<u8> {
        let code = answer.code;
        let limit = self.limit() - if self.edns.is_some() { OPT } else { 0 };
        let mut bytes = match quick::write(self, &answer, authoritative, limit.into()) {
            Some(bytes) => bytes,
            None => self.write_any(answer, authoritative, limit),
        };
        if let Some(edns) = self.edns {
            append_opt(&mut bytes, code, edns.dnssec_ok);
        }
        bytes
    }

    /// Writes an answer of whatever kind and length.
    fn write_any(&self, answer: Answer, authoritative: bool, limit: u16) -> Vec<u8> {
        let mut message = Message::response(self.id, OpCode::Query);
        message.metadata.message_type = MessageType::Response;
        message.metadata.authoritative = authoritative;
        message.metadata.truncation = answer.cut;
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.response_code = answer.code;
        message.queries.push(self.query.clone());
        message.answers = answer.answers;
        message.authorities = answer.authorities;
        message.additionals = answer.additionals;
        let mut written = encode(&message, limit);
        if !answer.cut && written.as_ref().is_none_or(|bytes| is_truncated(bytes)) && !message.additionals.is_empty() {
            message.additionals.clear();
            written = encode(&message, limit);
        }
        written.unwrap_or_else(|| {
            let [high, low] = self.id.to_be_bytes();
            let asked = [high, low, u8::from(self.recursion_desired), 0, 0, 0, 0, 0, 0, 0, 0, 0];
            bare(&asked, ResponseCode::ServFail)
        })
    }
}

/// Encodes what fits, with the truncation bit when that is not all.
pub(crate) fn encode(message: &Message, limit: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    message.emit(&mut encoder).ok()?;
    // What was begun and found no room is still in the buffer.
    encoder.trim();
    Some(bytes)
}

fn is_truncated(bytes: &[u8]) -> bool {
    bytes.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// The OPT record comes last, and never falls victim to the limit.
fn append_opt(bytes: &mut Vec<u8>, code: ResponseCode, dnssec_ok: bool) {
    let [high, low] = MAX_DATAGRAM.to_be_bytes();
    let flags = if dnssec_ok { 0x80 } else { 0 };
    bytes.extend([0, 0, 41, high, low, code.high(), 0, flags, 0, 0, 0]);
    if let Some(count) = bytes.get_mut(10..12) {
        let additionals = u16::from_be_bytes([count[0], count[1]]) + 1;
        count.copy_from_slice(&additionals.to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
