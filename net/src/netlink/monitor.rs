//! What the kernel tells about changes of links, addresses and routes, as it happens.

use std::os::unix::net::UnixDatagram;

use ipnet::IpNet;
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};

use super::attribute::{u16_at, u32_at};
use super::{Answer, Error, Protocol, address, link};

/// `RTMGRP_LINK`, and addresses and routes of both families.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
const RTM_DELLINK: u16 = 17;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const MESSAGE_HEADER: usize = 16;
/// Where `struct rtmsg` has the protocol.
const ROUTE_PROTOCOL: usize = 5;

/// One change. It says where to look; what is so now is read anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link came, went or changed.
    Link {
        /// Its number.
        index: u32,
        /// Its name.
        name: String,
    },
    /// A link got or lost an address.
    Address {
        /// The link.
        index: u32,
        /// The address.
        net: IpNet,
    },
    /// A route came or went.
    Route {
        /// Whose route.
        protocol: Protocol,
        /// Whether it went.
        gone: bool,
    },
}

/// A socket that hears of changes in the calling thread's network namespace from now on. It does not block.
///
/// Each datagram is read by [`events`]; one that is larger than the reader's buffer is cut, which costs events. An error
/// that is an [`overrun`] passes. The type is that of any socket of datagrams: an event loop can wait for it.
///
/// # Errors
/// When the kernel refuses the socket.
pub fn monitor() -> Result<UnixDatagram, Error> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let protocol = SockProtocol::NetlinkRoute;
    let refused = |errno: nix::Error| Error::Open(errno.into());
    let made = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol).map_err(refused)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&made), &NetlinkAddr::new(0, GROUPS)).map_err(refused)?;
    Ok(UnixDatagram::from(made))
}

/// Whether a failure to read from [`monitor`]'s socket says that there was more than it holds: anything may have changed.
pub fn overrun(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::ENOBUFS)
}

/// The changes that a datagram of [`monitor`] tells of.
pub fn events(mut rest: &[u8]) -> Vec<Event> {
    let mut found = Vec::new();
    while rest.len() >= MESSAGE_HEADER {
        let size = u32_at(rest, 0) as usize;
        let Some(payload) = rest.get(MESSAGE_HEADER..size) else {
            break;
        };
        found.extend(event(u16_at(rest, 4), payload));
        rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// An end is told in the form of a beginning: the readers of lists read it too.
fn event(kind: u16, payload: &[u8]) -> Option<Event> {
    let as_listed = |kind| Answer { kind, payload };
    match kind {
        link::RTM_NEWLINK | RTM_DELLINK => {
            let link = link::read(&as_listed(link::RTM_NEWLINK))?;
            Some(Event::Link {
                index: link.index,
                name: link.name,
            })
        }
        address::RTM_NEWADDR | RTM_DELADDR => {
            let address = address::read(&as_listed(address::RTM_NEWADDR))?;
            Some(Event::Address {
                index: address.index,
                net: address.net,
            })
        }
        RTM_NEWROUTE | RTM_DELROUTE => Some(Event::Route {
            protocol: Protocol(*payload.get(ROUTE_PROTOCOL)?),
            gone: kind == RTM_DELROUTE,
        }),
        _ => None,
    }
}
