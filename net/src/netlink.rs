//! A synchronous rtnetlink client: links, addresses, routes, neighbours.
//!
//! Requests are built with netlink-packet-route. Answers are read by the few attributes that are needed here, not by a
//! full decode: a newer kernel may add to them what the crate does not know, and that must not fail a pod's start.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use crate::netns;

mod address;
mod attribute;
mod forwarding;
mod link;
mod monitor;
mod neighbour;
mod route;
mod transport;
mod vxlan;

pub use address::Address;
pub(crate) use attribute::{attributes, find, ip};
pub use forwarding::Forwarding;
pub use link::{BridgeOptions, Link, LinkChange, Mac, MacError, VethOptions, check_name};
pub use monitor::{Event, events, monitor, overrun};
pub use neighbour::Neighbour;
pub use route::{Protocol, Route, Scope};
pub(crate) use transport::{Answer, Transport};
pub use vxlan::Vxlan;

/// Dumps that the kernel calls inconsistent are taken again this many times.
pub(crate) const DUMP_TRIES: usize = 16;

/// A netlink request that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused the request.
    #[error("cannot {action} {object}{}", detail(*errno, hint))]
    Refused {
        /// What was asked, as a verb and its kind: `add veth`.
        action: &'static str,
        /// The object of it.
        object: String,
        /// The kernel's own explanation, where it sent one.
        hint: Option<String>,
        /// The error number.
        #[source]
        errno: Errno,
    },
    /// The socket failed.
    #[error("cannot {action} {object}: the netlink socket failed")]
    Socket {
        /// What was asked.
        action: &'static str,
        /// The object of it.
        object: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The answer made no sense.
    #[error("cannot {action} {object}: the kernel's answer is not understood ({reason})")]
    Answer {
        /// What was asked.
        action: &'static str,
        /// The object of it.
        object: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A list changed each time that it was read.
    #[error("cannot {action} {object}: the list changed while it was read, {DUMP_TRIES} times in a row")]
    Unsteady {
        /// What was asked.
        action: &'static str,
        /// The object of it.
        object: String,
    },
    /// There is no such link.
    #[error("there is no network interface {name}")]
    NoLink {
        /// Its name.
        name: String,
    },
    /// An interface name that the kernel would not take.
    #[error("{name:?} is no valid interface name: 1 to 15 characters, no '/', no white space, not '.' or '..'")]
    Name {
        /// The name.
        name: String,
    },
    /// The namespace could not be entered to open a socket in it.
    #[error("cannot open a netlink socket in the namespace")]
    Namespace(#[from] netns::Error),
    /// A socket could not be opened.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
}

impl Error {
    /// The kernel's error number, where it refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether the object exists already.
    pub fn already_exists(&self) -> bool {
        self.errno() == Some(Errno::EEXIST)
    }

    /// Whether the object, or what it stands on, is not there.
    pub fn not_found(&self) -> bool {
        matches!(self, Self::NoLink { .. })
            || matches!(
                self.errno(),
                Some(Errno::ENODEV | Errno::ENOENT | Errno::ESRCH | Errno::EADDRNOTAVAIL | Errno::ENXIO)
            )
    }
}

fn detail(errno: Errno, hint: &Option<String>) -> String {
    match (hint, errno) {
        (Some(hint), _) => format!(": {hint}"),
        (None, Errno::EPERM) => ": CAP_NET_ADMIN is needed (run as root)".to_owned(),
        (None, _) => String::new(),
    }
}

/// A request's words for its error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct What<'a> {
    action: &'static str,
    object: &'a str,
}

impl What<'_> {
    fn socket(self, source: io::Error) -> Error {
        Error::Socket {
            action: self.action,
            object: self.object.to_owned(),
            source,
        }
    }

    pub(crate) fn unsteady(self) -> Error {
        Error::Unsteady {
            action: self.action,
            object: self.object.to_owned(),
        }
    }

    fn answer(self, reason: &'static str) -> Error {
        Error::Answer {
            action: self.action,
            object: self.object.to_owned(),
            reason,
        }
    }

    fn refused(self, errno: Errno, hint: Option<String>) -> Error {
        Error::Refused {
            action: self.action,
            object: self.object.to_owned(),
            hint,
            errno,
        }
    }
}

pub(crate) fn what<'a>(action: &'static str, object: &'a str) -> What<'a> {
    What { action, object }
}

/// How a request treats an object that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Change what exists, or take it away.
    Plain,
    /// Make it; an existing one is an error.
    Create,
    /// Make it, whatever is there of its like.
    Beside,
    /// Make it, or replace what exists.
    Replace,
}

impl Mode {
    fn flags(self) -> u16 {
        match self {
            Self::Plain => 0,
            Self::Create => NLM_F_CREATE | NLM_F_EXCL,
            Self::Beside => NLM_F_CREATE,
            Self::Replace => NLM_F_CREATE | NLM_F_REPLACE,
        }
    }
}

/// A client with one socket. It belongs to the namespace in which it was opened, from whichever thread it is used.
#[derive(Debug)]
pub struct Netlink {
    transport: Transport,
}

impl Netlink {
    /// A client of the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            transport: Transport::open(NETLINK_ROUTE)?,
        })
    }

    /// A client of another network namespace.
    pub fn open_in(namespace: &netns::Namespace) -> Result<Self, Error> {
        namespace.run(Self::open)?
    }

    /// The same without a thread, for programs that have only one: see [`netns::Namespace::visit`].
    pub fn open_visiting(namespace: &netns::Namespace) -> Result<Self, Error> {
        namespace.visit(Self::open)?
    }

    /// Sends a request that is answered by an acknowledgement only.
    fn change(&mut self, what: What<'_>, message: RouteNetlinkMessage, mode: Mode) -> Result<(), Error> {
        self.send(what, message, NLM_F_REQUEST | NLM_F_ACK | mode.flags())?;
        self.transport.acknowledged(what)
    }

    /// Asks for one object; `None` when the kernel does not have it.
    fn get<T>(
        &mut self,
        what: What<'_>,
        message: RouteNetlinkMessage,
        mut read: impl FnMut(&Answer<'_>) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        self.send(what, message, NLM_F_REQUEST | NLM_F_ACK)?;
        let mut found = None;
        match self
            .transport
            .answers(what, |answer| found = read(answer).or(found.take()))
        {
            Err(error) if error.not_found() => Ok(None),
            Err(error) => Err(error),
            Ok(_) => Ok(found),
        }
    }

    /// Asks for all objects of a kind, again when the kernel says that they changed meanwhile.
    fn dump<T>(
        &mut self,
        what: What<'_>,
        message: &RouteNetlinkMessage,
        mut read: impl FnMut(&Answer<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMP_TRIES {
            self.send(what, message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            let mut found = Vec::new();
            if self.transport.answers(what, |answer| found.extend(read(answer)))? {
                return Ok(found);
            }
        }
        Err(what.unsteady())
    }

    fn send(&mut self, what: What<'_>, message: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.transport.send(what, bytes)
    }
}
