//! Small tables of packet rules, written to the kernel's `nf_tables` directly: one netlink transaction, all or nothing.
//!
//! This is not another `iptables`: it has the few kinds of rules that address translation for IPv4 is made of. `nft list
//! ruleset` shows them in words. The numbers are those of the kernel's `linux/netfilter/nf_tables.h`.

use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST};

use crate::netlink::{Error, Transport, what};
use crate::netns::Namespace;

const NETLINK_NETFILTER: isize = 12;
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const APPEND: u16 = 0x800;
const AF_INET: u8 = 2;
const NESTED: u16 = 0x8000;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;

const REGISTER: u32 = 1;
const OTHER_REGISTER: u32 = 2;
const VERDICT_REGISTER: u32 = 0;
const META_MARK: u32 = 3;
const META_INPUT_NAME: u32 = 6;
const META_PROTOCOL: u32 = 16;
const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
const DESTINATION_PORT: u32 = 2;
const RANDOM: u32 = 1;
const TRANSLATE_DESTINATION: u32 = 1;
const JUMP: u32 = 0u32.wrapping_sub(3);
/// The longest name of an interface, and the end of it.
const INTERFACE: usize = 16;
/// The longest comment, with its end.
const COMMENT: usize = 128;

/// Where a chain for address translation is called from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that come in.
    Prerouting,
    /// Packets of this node's own programs.
    Output,
}

/// Changes that take effect together, in the order given.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Batch {
    messages: Vec<Vec<u8>>,
}

/// One rule in the making: its matches, then what it does.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Rule {
    expressions: Vec<u8>,
    comment: String,
}

/// A client of `nf_tables` of one network namespace.
#[derive(Debug)]
pub struct Nftables {
    transport: Transport,
}

// === impl Nftables ===

impl Nftables {
    /// A client of the calling thread's network namespace.
    ///
    /// # Errors
    /// When no socket can be opened.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            transport: Transport::open(NETLINK_NETFILTER)?,
        })
    }

    /// A client of another network namespace.
    ///
    /// # Errors
    /// When it cannot be entered, or no socket can be opened.
    pub fn open_in(namespace: &Namespace) -> Result<Self, Error> {
        namespace.run(Self::open)?
    }

    /// Applies a batch: all of it, or nothing and an error.
    ///
    /// # Errors
    /// When the kernel refuses one of the changes.
    pub fn apply(&mut self, batch: &Batch) -> Result<(), Error> {
        let Some((last, others)) = batch.messages.split_last() else {
            return Ok(());
        };
        let what = what("write", "packet rules");
        let mut messages = vec![edge(BATCH_BEGIN)];
        messages.extend(others.iter().cloned());
        // One answer is enough: a refusal of any is told by itself.
        let mut last = last.clone();
        let flags = u16::from_ne_bytes([last[6], last[7]]) | NLM_F_ACK;
        last[6..8].copy_from_slice(&flags.to_ne_bytes());
        messages.push(last);
        messages.push(edge(BATCH_END));
        self.transport.send_all(what, messages)?;
        self.transport.acknowledged(what)
    }
}

// === impl Batch ===

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Makes a table, unless it is there.
    pub fn table(&mut self, name: &str) {
        self.add(NEW_TABLE, NLM_F_CREATE, &[text(1, name)]);
    }

    /// Removes a table with all that is in it. Its absence fails the batch.
    pub fn delete_table(&mut self, name: &str) {
        self.add(DELETE_TABLE, 0, &[text(1, name)]);
    }

    /// Makes a chain, unless it is there.
    pub fn chain(&mut self, table: &str, name: &str) {
        self.add(NEW_CHAIN, NLM_F_CREATE, &[text(1, table), text(3, name)]);
    }

    /// Makes a chain for address translation that the kernel calls, before those of a higher priority.
    pub fn translation_chain(&mut self, table: &str, name: &str, hook: Hook, priority: i32) {
        let number = match hook {
            Hook::Prerouting => 0,
            Hook::Output => 3,
        };
        let place = [
            attribute(1, &u32::to_be_bytes(number)),
            attribute(2, &priority.to_be_bytes()),
        ];
        let place = attribute(4 | NESTED, &place.concat());
        self.add(
            NEW_CHAIN,
            NLM_F_CREATE,
            &[text(1, table), text(3, name), place, text(7, "nat")],
        );
    }

    /// Takes all rules out of a chain.
    pub fn flush(&mut self, table: &str, chain: &str) {
        self.add(DELETE_RULE, 0, &[text(1, table), text(2, chain)]);
    }

    /// Removes a chain that is empty and that no rule leads to.
    pub fn delete_chain(&mut self, table: &str, name: &str) {
        self.add(DELETE_CHAIN, 0, &[text(1, table), text(3, name)]);
    }

    /// Adds a rule at the end of a chain.
    pub fn rule(&mut self, table: &str, chain: &str, rule: &Rule) {
        let mut attributes = vec![text(1, table), text(2, chain), attribute(4 | NESTED, &rule.expressions)];
        if !rule.comment.is_empty() {
            let mut words: Vec<u8> = rule.comment.bytes().take(COMMENT - 1).collect();
            words.push(0);
            // Type 0 is a comment; a byte tells its length.
            let head = [0, u8::try_from(words.len()).unwrap_or(u8::MAX)];
            attributes.push(attribute(7, &[&head[..], &words].concat()));
        }
        self.add(NEW_RULE, NLM_F_CREATE | APPEND, &attributes);
    }

    fn add(&mut self, kind: u16, flags: u16, attributes: &[Vec<u8>]) {
        self.messages.push(message(
            SUBSYSTEM << 8 | kind,
            NLM_F_REQUEST | flags,
            AF_INET,
            0,
            &attributes.concat(),
        ));
    }
}

// === impl Rule ===

impl Rule {
    /// A rule for all packets, with words for people.
    pub fn new(comment: &str) -> Self {
        Self {
            expressions: Vec::new(),
            comment: comment.to_owned(),
        }
    }

    /// … of a transport protocol, by its number in the IP header.
    #[must_use]
    pub fn protocol(self, number: u8) -> Self {
        self.meta(META_PROTOCOL).compare(EQUAL, &[number])
    }

    /// … to an address.
    #[must_use]
    pub fn to(self, ip: Ipv4Addr) -> Self {
        self.payload(NETWORK_HEADER, DESTINATION, 4)
            .compare(EQUAL, &ip.octets())
    }

    /// … to a port.
    #[must_use]
    pub fn to_port(self, port: u16) -> Self {
        self.payload(TRANSPORT_HEADER, DESTINATION_PORT, 2)
            .compare(EQUAL, &port.to_be_bytes())
    }

    /// … from an address.
    #[must_use]
    pub fn from(self, ip: Ipv4Addr) -> Self {
        self.payload(NETWORK_HEADER, SOURCE, 4).compare(EQUAL, &ip.octets())
    }

    /// … from outside of a range.
    #[must_use]
    pub fn not_from(self, range: Ipv4Net) -> Self {
        let masked = self
            .payload(NETWORK_HEADER, SOURCE, 4)
            .bitwise(range.netmask().octets(), [0; 4]);
        masked.compare(UNEQUAL, &range.network().octets())
    }

    /// … that came in by another interface than one of a name, or of names that start so.
    #[must_use]
    pub fn not_by_interface(self, name: &str, is_prefix: bool) -> Self {
        let mut bytes = name.as_bytes().to_vec();
        if !is_prefix {
            bytes.resize(INTERFACE, 0);
        }
        self.meta(META_INPUT_NAME).compare(UNEQUAL, &bytes)
    }

    /// … one in so many of them, at random.
    #[must_use]
    pub fn one_in(self, count: u32) -> Self {
        let random = [number(1, REGISTER), number(2, count), number(3, RANDOM), number(4, 0)];
        self.expression("numgen", &random).compare(EQUAL, &0_u32.to_ne_bytes())
    }

    /// Sets bits of the packet's mark.
    #[must_use]
    pub fn mark(self, bits: u32) -> Self {
        let set = [number(2, META_MARK), number(3, REGISTER)];
        let marked = self.meta(META_MARK).bitwise((!bits).to_ne_bytes(), bits.to_ne_bytes());
        marked.expression("meta", &set)
    }

    /// Sends the packet through a chain.
    #[must_use]
    pub fn jump(self, chain: &str) -> Self {
        let verdict = [number(1, JUMP), text(2, chain)];
        let verdict = attribute(2 | NESTED, &attribute(2 | NESTED, &verdict.concat()));
        self.expression("immediate", &[number(1, VERDICT_REGISTER), verdict])
    }

    /// Gives the packet, and those after it, another destination.
    #[must_use]
    pub fn translate_to(self, address: SocketAddrV4) -> Self {
        let ip = [number(1, REGISTER), value(2, &address.ip().octets())];
        let port = [number(1, OTHER_REGISTER), value(2, &address.port().to_be_bytes())];
        let nat = [
            number(1, TRANSLATE_DESTINATION),
            number(2, u32::from(AF_INET)),
            number(3, REGISTER),
            number(5, OTHER_REGISTER),
        ];
        self.expression("immediate", &ip)
            .expression("immediate", &port)
            .expression("nat", &nat)
    }

    fn meta(self, key: u32) -> Self {
        self.expression("meta", &[number(1, REGISTER), number(2, key)])
    }

    fn payload(self, header: u32, offset: u32, length: u32) -> Self {
        let place = [
            number(1, REGISTER),
            number(2, header),
            number(3, offset),
            number(4, length),
        ];
        self.expression("payload", &place)
    }

    fn compare(self, how: u32, wanted: &[u8]) -> Self {
        self.expression("cmp", &[number(1, REGISTER), number(2, how), value(3, wanted)])
    }

    fn bitwise(self, mask: [u8; 4], flip: [u8; 4]) -> Self {
        let registers = [number(1, REGISTER), number(2, REGISTER), number(3, 4)].concat();
        self.expression("bitwise", &[registers, value(4, &mask), value(5, &flip)])
    }

    fn expression(mut self, name: &str, attributes: &[Vec<u8>]) -> Self {
        let inner = [text(1, name), attribute(2 | NESTED, &attributes.concat())];
        self.expressions.extend(attribute(1 | NESTED, &inner.concat()));
        self
    }
}

/// The first or the last message of a batch.
fn edge(kind: u16) -> Vec<u8> {
    message(kind, NLM_F_REQUEST, 0, SUBSYSTEM, &[])
}

fn message(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(20 + attributes.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // The sequence number, filled in when it is sent, and the port of the kernel.
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + content.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn text(kind: u16, words: &str) -> Vec<u8> {
    attribute(kind, &[words.as_bytes(), &[0]].concat())
}

fn number(kind: u16, number: u32) -> Vec<u8> {
    attribute(kind, &number.to_be_bytes())
}

fn value(kind: u16, bytes: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, &attribute(1, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attributes;

    #[test]
    fn a_rule_is_a_list_of_named_expressions() {
        let rule = Rule::new("x").protocol(6).to([10, 96, 0, 1].into()).jump("C");
        let names: Vec<_> = attributes(&rule.expressions)
            .map(|(kind, element)| {
                assert_eq!(kind, 1);
                let (kind, name) = attributes(element).next().unwrap();
                assert_eq!(kind, 1);
                String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()
            })
            .collect();
        assert_eq!(names, ["meta", "cmp", "payload", "cmp", "immediate"]);
    }

    #[test]
    fn messages_say_their_length_and_long_comments_are_cut() {
        let mut batch = Batch::new();
        batch.table("t");
        batch.rule("t", "c", &Rule::new(&"x".repeat(500)));
        for message in &batch.messages {
            let length = u32::from_ne_bytes(message[..4].try_into().unwrap());
            assert_eq!(length as usize, message.len());
            assert_eq!(message.len() % 4, 0);
        }
        assert!(batch.messages[1].len() < 220);
    }
}
