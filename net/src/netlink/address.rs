//! Addresses of interfaces.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::attribute::{attributes, ip, u32_at};
use super::{Answer, Error, Mode, Netlink, what};

pub(super) const RTM_NEWADDR: u16 = 20;
/// `struct ifaddrmsg`.
const HEADER: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
/// IPv6 without duplicate address detection: an address that the IPAM gave is unique, and waiting costs a second.
const NODAD: u32 = 0x02;

/// One address of one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub index: u32,
    /// The address with its prefix length.
    pub net: IpNet,
    /// Added as a further address of a subnet that the interface already had.
    pub secondary: bool,
}

impl Netlink {
    /// The addresses of one interface, or of all.
    pub fn addresses(&mut self, index: Option<u32>) -> Result<Vec<Address>, Error> {
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let mut found = self.dump(what("list", "addresses"), &message, read)?;
        found.retain(|address| index.is_none_or(|index| index == address.index));
        Ok(found)
    }

    /// Gives an interface an address.
    pub fn add_address(&mut self, index: u32, net: IpNet) -> Result<(), Error> {
        let words = format!("{net} to link number {index}");
        let message = RouteNetlinkMessage::NewAddress(build(index, net));
        self.change(what("add address", &words), message, Mode::Create)
    }

    /// Takes an address from an interface. Returns whether it was there.
    pub fn delete_address(&mut self, index: u32, net: IpNet) -> Result<bool, Error> {
        let words = format!("{net} of link number {index}");
        let message = RouteNetlinkMessage::DelAddress(build(index, net));
        match self.change(what("delete address", &words), message, Mode::Plain) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.errno(), Some(Errno::EADDRNOTAVAIL | Errno::ENODEV)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn build(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = net.prefix_len();
    message.header.scope = if net.addr().is_loopback() {
        AddressScope::Host
    } else {
        AddressScope::Universe
    };
    message.attributes.push(AddressAttribute::Address(net.addr()));
    match net {
        IpNet::V4(net) => {
            message.header.family = AddressFamily::Inet;
            message.attributes.push(AddressAttribute::Local(IpAddr::V4(net.addr())));
            if net.prefix_len() < 31 && !net.addr().is_loopback() {
                message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
            }
        }
        IpNet::V6(net) => {
            message.header.family = AddressFamily::Inet6;
            message.attributes.push(AddressAttribute::Local(IpAddr::V6(net.addr())));
            let flags = netlink_packet_route::address::AddressFlags::from_bits_retain(NODAD);
            message.attributes.push(AddressAttribute::Flags(flags));
        }
    }
    message
}

pub(super) fn read(answer: &Answer<'_>) -> Option<Address> {
    const SECONDARY: u32 = 0x01;
    if answer.kind != RTM_NEWADDR || answer.payload.len() < HEADER {
        return None;
    }
    let prefix = *answer.payload.get(1)?;
    let mut flags = u32::from(*answer.payload.get(2)?);
    let (mut near, mut far) = (None, None);
    for (kind, value) in attributes(&answer.payload[HEADER..]) {
        match kind {
            IFA_LOCAL => near = ip(value),
            IFA_ADDRESS => far = ip(value),
            IFA_FLAGS => flags = u32_at(value, 0),
            _ => {}
        }
    }
    // On a point-to-point link the "address" is the other end's, and ours is the "local" one.
    let net = IpNet::new(near.or(far)?, prefix).ok()?;
    Some(Address {
        index: u32_at(answer.payload, 4),
        net,
        secondary: net.addr().is_ipv4() && flags & SECONDARY != 0,
    })
}
