//! Wakes the overlay when the kernel changed something that it set or stands on.
//!
//! Pods come and go with links of their own: those wake nobody.

use std::io;

use skiff_net::netlink::{self, Event};
use tokio::net::UnixDatagram;

use crate::TUNNEL_LINK;
use crate::apply::PROTOCOL;

/// The kernel's datagrams are no larger.
const BUFFER: usize = 32 * 1024;

/// A kernel that cannot be listened to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket cannot be made.
    #[error("cannot listen to changes of links")]
    Open(#[from] netlink::Error),
    /// The socket cannot be waited for.
    #[error("cannot wait for changes of links")]
    Wait(#[source] io::Error),
}

/// Hears of changes in the network namespace that it was made in.
#[derive(Debug)]
pub(crate) struct Watch {
    socket: UnixDatagram,
    buffer: Vec<u8>,
}

impl Watch {
    pub(crate) fn open() -> Result<Self, Error> {
        Ok(Self {
            socket: UnixDatagram::from_std(netlink::monitor()?).map_err(Error::Wait)?,
            buffer: vec![0; BUFFER],
        })
    }

    /// Returns when something changed that matters: on the link that other nodes are reached by, at the tunnel, with
    /// an address of this machine, or because one of our routes went.
    pub(crate) async fn changed(&mut self, underlay: Option<u32>) -> Result<(), Error> {
        loop {
            let length = match self.socket.recv(&mut self.buffer).await {
                Ok(length) => length,
                Err(error) if netlink::overrun(&error) => return Ok(()),
                Err(error) => return Err(Error::Wait(error)),
            };
            let events = netlink::events(self.buffer.get(..length).unwrap_or_default());
            if events.iter().any(|event| matters(event, underlay)) {
                return Ok(());
            }
        }
    }
}

fn matters(event: &Event, underlay: Option<u32>) -> bool {
    match event {
        Event::Link { index, name } => Some(*index) == underlay || name == TUNNEL_LINK,
        // Every new link gets a link-local IPv6 address.
        Event::Address { net, .. } => !matches!(net.addr(), std::net::IpAddr::V6(ip) if ip.is_unicast_link_local()),
        Event::Route { protocol, gone } => *gone && *protocol == PROTOCOL,
    }
}

#[cfg(test)]
mod tests {
    use skiff_net::netlink::Protocol;

    use super::*;

    #[test]
    fn only_changes_of_what_the_overlay_stands_on_matter() {
        let link = |index, name: &str| Event::Link {
            index,
            name: name.to_owned(),
        };
        let address = |net: &str| Event::Address {
            index: 9,
            net: net.parse().unwrap(),
        };
        let route = |protocol, gone| Event::Route { protocol, gone };
        let cases = [
            (link(2, "eth0"), true),
            (link(9, "veth12345678"), false),
            (link(9, TUNNEL_LINK), true),
            (address("192.0.2.1/24"), true),
            (address("2001:db8::1/64"), true),
            (address("fe80::1/64"), false),
            (route(PROTOCOL, true), true),
            (route(PROTOCOL, false), false),
            (route(Protocol::KERNEL, true), false),
        ];
        for (event, wanted) in cases {
            assert_eq!(matters(&event, Some(2)), wanted, "{event:?}");
        }
    }
}
