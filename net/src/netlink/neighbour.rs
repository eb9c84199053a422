//! Neighbour entries (ARP, NDP, bridge forwarding).

use std::net::IpAddr;

use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::attribute::{attributes, ip, u16_at, u32_at};
use super::{Answer, Error, Mac, Mode, Netlink, what};

pub(super) const RTM_NEWNEIGH: u16 = 28;
/// `struct ndmsg`.
pub(super) const HEADER: usize = 12;
pub(super) const NDA_DST: u16 = 1;
pub(super) const NDA_LLADDR: u16 = 2;
const PERMANENT: u16 = 0x80;

/// An address on a link, and the hardware address that it is reached at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The interface.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// Its hardware address, once known.
    pub mac: Option<Mac>,
    /// Put there by hand, never asked for again.
    pub permanent: bool,
}

impl Netlink {
    /// The neighbour entries of IP addresses.
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>, Error> {
        let message = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        self.dump(what("list", "neighbours"), &message, read)
    }

    /// Adds a permanent entry, or replaces the one of the same address.
    pub fn replace_neighbour(&mut self, index: u32, address: IpAddr, mac: Mac) -> Result<(), Error> {
        let mut message = build(index, address);
        message.header.state = NeighbourState::Permanent;
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        let words = format!("{address} at {mac} on link number {index}");
        self.change(
            what("add neighbour", &words),
            RouteNetlinkMessage::NewNeighbour(message),
            Mode::Replace,
        )
    }

    /// Removes an entry. Returns whether it was there.
    pub fn delete_neighbour(&mut self, index: u32, address: IpAddr) -> Result<bool, Error> {
        let words = format!("{address} on link number {index}");
        let message = RouteNetlinkMessage::DelNeighbour(build(index, address));
        match self.change(what("delete neighbour", &words), message, Mode::Plain) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::ENODEV)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn build(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(NeighbourAttribute::Destination(match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }));
    message.header.family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    message
}

fn read(answer: &Answer<'_>) -> Option<Neighbour> {
    if answer.kind != RTM_NEWNEIGH || answer.payload.len() < HEADER {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for (kind, value) in attributes(&answer.payload[HEADER..]) {
        match kind {
            NDA_DST => address = ip(value),
            NDA_LLADDR => mac = value.try_into().ok().map(Mac),
            _ => {}
        }
    }
    Some(Neighbour {
        index: u32_at(answer.payload, 4),
        ip: address?,
        mac,
        permanent: u16_at(answer.payload, 8) & PERMANENT != 0,
    })
}
