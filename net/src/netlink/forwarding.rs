//! Forwarding entries of VXLAN links: which machine a hardware address is reached at.

use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::attribute::{attributes, ip, u32_at};
use super::neighbour::{HEADER, NDA_DST, NDA_LLADDR, RTM_NEWNEIGH};
use super::{Answer, Error, Mac, Mode, Netlink, what};

/// One forwarding entry of a VXLAN link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forwarding {
    /// The VXLAN link.
    pub index: u32,
    /// Frames to this address …
    pub mac: Mac,
    /// … are sent to this machine.
    pub remote: IpAddr,
}

impl Netlink {
    /// The forwarding entries of a VXLAN link.
    pub fn forwarding(&mut self, index: u32) -> Result<Vec<Forwarding>, Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        let message = RouteNetlinkMessage::GetNeighbour(message);
        let mut found = self.dump(what("list", "forwarding entries"), &message, read)?;
        found.retain(|entry| entry.index == index);
        Ok(found)
    }

    /// Adds a permanent entry, or replaces that of the same hardware address.
    pub fn replace_forwarding(&mut self, entry: &Forwarding) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewNeighbour(build(entry));
        self.change(what("add forwarding entry", &words(entry)), message, Mode::Replace)
    }

    /// Removes an entry. Returns whether it was there.
    pub fn delete_forwarding(&mut self, entry: &Forwarding) -> Result<bool, Error> {
        let message = RouteNetlinkMessage::DelNeighbour(build(entry));
        match self.change(what("delete forwarding entry", &words(entry)), message, Mode::Plain) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::ENODEV)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn words(entry: &Forwarding) -> String {
    format!("{} to {} on link number {}", entry.mac, entry.remote, entry.index)
}

fn build(entry: &Forwarding) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = entry.index;
    message.header.state = NeighbourState::Permanent;
    // The link's own table, not that of a bridge that it may be a port of.
    message.header.flags = NeighbourFlags::Own;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()));
    message
        .attributes
        .push(NeighbourAttribute::Destination(match entry.remote {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        }));
    message
}

fn read(answer: &Answer<'_>) -> Option<Forwarding> {
    if answer.kind != RTM_NEWNEIGH || answer.payload.len() < HEADER {
        return None;
    }
    let (mut mac, mut remote) = (None, None);
    for (kind, value) in attributes(&answer.payload[HEADER..]) {
        match kind {
            NDA_LLADDR => mac = value.try_into().ok().map(Mac),
            NDA_DST => remote = ip(value),
            _ => {}
        }
    }
    Some(Forwarding {
        index: u32_at(answer.payload, 4),
        mac: mac?,
        remote: remote?,
    })
}
