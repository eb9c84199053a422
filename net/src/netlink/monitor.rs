//! What the kernel tells about changes of links, addresses and routes, as it happens.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

use super::attribute::{u16_at, u32_at};
use super::{Answer, Error, Protocol, address, link};

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const RTM_DELLINK: u16 = 17;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const BUFFER: usize = 64 * 1024;
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
    /// There were more changes than the socket could hold: anything may have changed.
    Lost,
}

/// A socket that hears of changes in one namespace; readable when there are some.
pub struct Monitor {
    socket: Socket,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Monitor").finish_non_exhaustive()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Monitor {
    /// Hears of the calling thread's network namespace from now on.
    pub fn open() -> Result<Self, Error> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(Error::Open)?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(Error::Open)?;
        for group in [
            RTNLGRP_LINK,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV6_ROUTE,
        ] {
            socket.add_membership(group).map_err(Error::Open)?;
        }
        socket.set_non_blocking(true).map_err(Error::Open)?;
        Ok(Self {
            socket,
            buffer: vec![0; BUFFER],
        })
    }

    /// The changes of one datagram.
    ///
    /// # Errors
    /// `WouldBlock` when there is none at the moment.
    pub fn read(&mut self) -> io::Result<Vec<Event>> {
        match self.socket.recv(&mut &mut self.buffer[..], 0) {
            Ok(length) => Ok(events(self.buffer.get(..length).unwrap_or_default())),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(vec![Event::Lost]),
            Err(error) => Err(error),
        }
    }
}

fn events(mut rest: &[u8]) -> Vec<Event> {
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
