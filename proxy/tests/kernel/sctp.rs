//! SCTP through a Service. Not every kernel that tracks and translates it has sockets for it, so the packets are written here.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use serde_json::json;
use skiff_net::netns::Namespace;
use socket2::{Domain, Protocol, Socket, Type};

use crate::api::{service, slice};
use crate::world::{NODE, World, until};

/// The protocol's number in IP headers.
const SCTP: i32 = 132;
/// Types of chunks (RFC 9260 section 3.2).
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// Both sides' tag: it says which association a packet belongs to.
const TAG: u32 = 7;

/// CRC32c, lowest byte first (RFC 9260 appendix A).
fn checksum(bytes: &[u8]) -> [u8; 4] {
    let bit = |sum: u32| (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 };
    let byte = |sum: u32, byte: &u8| (0..8).fold(sum ^ u32::from(*byte), |sum, _| bit(sum));
    (!bytes.iter().fold(u32::MAX, byte)).to_le_bytes()
}

/// A packet with one chunk that begins an association, or accepts it.
fn packet(from: u16, to: u16, tag: u32, chunk: u8) -> Vec<u8> {
    let mut bytes = [&from.to_be_bytes()[..], &to.to_be_bytes(), &tag.to_be_bytes(), &[0; 4]].concat();
    bytes.extend([chunk, 0, 0, 20]);
    // The own tag, the window, streams out and in, the first number.
    bytes.extend(TAG.to_be_bytes());
    bytes.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let sum = checksum(&bytes);
    bytes[8..12].copy_from_slice(&sum);
    bytes
}

fn socket(namespace: &Namespace) -> Socket {
    let open = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(SCTP)));
    let socket = namespace.run(open).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket
}

fn send(socket: &Socket, to: SocketAddrV4, packet: &[u8]) {
    // The port is in the packet.
    socket.send_to(packet, &SocketAddrV4::new(*to.ip(), 0).into()).unwrap();
}

/// The next packet with such a chunk: from where, and to which port.
fn hear(mut socket: &Socket, chunk: u8) -> Option<(SocketAddrV4, u16)> {
    let mut buffer = [0; 256];
    loop {
        let length = socket.read(&mut buffer).ok()?;
        let packet = &buffer[..length];
        let (ip, rest) = packet.split_at(usize::from(packet[0] & 0x0f) * 4);
        let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
        if rest[12] == chunk {
            assert_eq!(checksum(&[&rest[..8], &[0; 4], &rest[12..]].concat()), rest[8..12]);
            let from = Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]);
            return Some((SocketAddrV4::new(from, port(0)), port(2)));
        }
    }
}

#[test]
fn an_association_begins_through_a_service_and_is_answered_by_it() {
    let world = World::new();
    let (client, pod) = (world.pod("c", "10.244.0.9"), world.pod("a", "10.244.0.2"));
    let ports = json!({"type": "NodePort", "ports": [{"port": 9, "protocol": "SCTP", "nodePort": 30009}]});
    world.api.put("services", service("signals", "10.96.0.10", ports));
    world
        .api
        .put("endpointslices", slice("signals", "SCTP", &["10.244.0.2"]));
    let server = socket(&pod);
    let _proxy = world.start("metricsBindAddress: \":0\"\n");
    for (from, to, seen_as) in [
        (&client, "10.96.0.10:9".to_owned(), "10.244.0.9"),
        (&world.outside, format!("{NODE}:30009"), "10.244.0.1"),
    ] {
        let (asker, to) = (socket(from), to.parse::<SocketAddrV4>().unwrap());
        let mut port = 5000;
        let (source, reached) = until("the packet arrives", || {
            // Another port each time: the kernel remembers the way of those that came before the rules.
            port += 1;
            send(&asker, to, &packet(port, to.port(), 0, INIT));
            hear(&server, INIT)
        });
        assert_eq!((source.ip().to_string().as_str(), reached), (seen_as, 8080));
        send(&server, source, &packet(8080, source.port(), TAG, INIT_ACK));
        assert_eq!(hear(&asker, INIT_ACK), Some((to, port)), "the answer of {to}");
    }
}
