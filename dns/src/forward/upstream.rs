//! One server that others' names are asked of: an exchange over UDP, over TCP where the answer is cut, and whether it is alive.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::cache::Key;
use crate::message::MAX_DATAGRAM;

/// Upstream's: so many failures in a row, and a server counts as dead.
const MAX_FAILURES: u32 = 2;

/// Why a server gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{what} {address}")]
    Io {
        what: &'static str,
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("no answer from {0} in time")]
    Silent(SocketAddr),
    #[error("the answer of {0} is no DNS message")]
    Malformed(SocketAddr),
}

/// A server, and what is known of its health.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    failures: AtomicU32,
    /// Questions sent there come back here.
    looped: AtomicBool,
    /// Somebody is finding out when it lives again.
    pub(crate) probed: AtomicBool,
}

/// An answer, and how many bytes it took.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) message: Message,
    pub(crate) size: usize,
}

// === impl Upstream ===

impl Upstream {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            failures: AtomicU32::new(0),
            looped: AtomicBool::new(false),
            probed: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.failures.load(Ordering::Relaxed) < MAX_FAILURES
    }

    pub(crate) fn succeeded(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// Counts a failure. True when the server counts as dead with it.
    pub(crate) fn failed(&self) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_FAILURES
    }

    pub(crate) fn is_looped(&self) -> bool {
        self.looped.load(Ordering::Relaxed)
    }

    pub(crate) fn set_looped(&self, looped: bool) {
        self.looped.store(looped, Ordering::Relaxed);
    }

    /// Asks, over TCP too when the answer is cut, within `limit` altogether.
    pub(crate) async fn ask(&self, key: &Key, limit: Duration) -> Result<Response, Error> {
        let exchange = async {
            let mut response = self.ask_by_udp(key, true).await?;
            // Servers from before EDNS refuse what they do not know (RFC 6891, 6.2.2).
            if response.message.edns.is_none() && is_ignorant(response.message.metadata.response_code) {
                response = self.ask_by_udp(key, false).await?;
            }
            if response.message.metadata.truncation {
                response = self.ask_by_tcp(key).await?;
            }
            Ok(response)
        };
        timeout(limit, exchange)
            .await
            .unwrap_or(Err(Error::Silent(self.address)))
    }

    /// Whether it answers at all.
    pub(crate) async fn lives(&self, limit: Duration) -> bool {
        let key = Key {
            name: Name::root(),
            kind: RecordType::NS,
            dnssec_ok: false,
            checking_disabled: false,
        };
        matches!(timeout(limit, self.ask_by_udp(&key, false)).await, Ok(Ok(_)))
    }

    async fn ask_by_udp(&self, key: &Key, edns: bool) -> Result<Response, Error> {
        // A socket of its own: its random port is what an outsider would have to guess, besides the id.
        let any: SocketAddr = if self.address.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let socket = UdpSocket::bind(any).await.map_err(self.io("open a socket to ask"))?;
        socket.connect(self.address).await.map_err(self.io("ask"))?;
        let (id, question) = question(key, edns).ok_or(Error::Malformed(self.address))?;
        socket.send(&question).await.map_err(self.io("ask"))?;
        let mut buffer = vec![0; 4096];
        loop {
            let size = socket.recv(&mut buffer).await.map_err(self.io("get an answer from"))?;
            // What answers something else is not worth giving up for: it may be somebody's guess.
            match Message::from_vec(&buffer[..size]) {
                Ok(message) if answers(&message, id, key) => return Ok(Response { message, size }),
                _ => {}
            }
        }
    }

    async fn ask_by_tcp(&self, key: &Key) -> Result<Response, Error> {
        let io = || self.io("ask over TCP");
        let mut stream = TcpStream::connect(self.address).await.map_err(io())?;
        let (id, question) = question(key, true).ok_or(Error::Malformed(self.address))?;
        let length = u16::try_from(question.len()).map_err(|_| Error::Malformed(self.address))?;
        let framed = [&length.to_be_bytes(), question.as_slice()].concat();
        stream.write_all(&framed).await.map_err(io())?;
        let size = stream.read_u16().await.map_err(io())?;
        let mut buffer = vec![0; size.into()];
        stream.read_exact(&mut buffer).await.map_err(io())?;
        match Message::from_vec(&buffer) {
            Ok(message) if answers(&message, id, key) => Ok(Response {
                message,
                size: size.into(),
            }),
            _ => Err(Error::Malformed(self.address)),
        }
    }

    fn io(&self, what: &'static str) -> impl FnOnce(std::io::Error) -> Error + use<> {
        let address = self.address;
        move |source| Error::Io { what, address, source }
    }
}

fn is_ignorant(code: ResponseCode) -> bool {
    matches!(code, ResponseCode::FormErr | ResponseCode::NotImp)
}

/// The question on the wire, under a random id.
fn question(key: &Key, edns: bool) -> Option<(u16, Vec<u8>)> {
    let id = rand::random();
    let mut message = Message::new(id, hickory_proto::op::MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = key.checking_disabled;
    message.queries.push(Query::query(key.name.clone(), key.kind));
    if edns {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_DATAGRAM).set_dnssec_ok(key.dnssec_ok);
        message.edns = Some(edns);
    }
    Some((id, message.to_vec().ok()?))
}

fn answers(message: &Message, id: u16, key: &Key) -> bool {
    let metadata = &message.metadata;
    let asked = match message.queries.as_slice() {
        [query] => query.name() == &key.name && query.query_type() == key.kind,
        // Some refuse with a header alone.
        [] => metadata.response_code != ResponseCode::NoError,
        _ => false,
    };
    metadata.id == id && metadata.message_type == hickory_proto::op::MessageType::Response && asked
}
