//! VXLAN links: an Ethernet segment of their own, carried in UDP between machines.
//!
//! Where a frame goes is said by the link's forwarding entries alone ([`super::Forwarding`]): no group, no learning.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};

use super::attribute::{attributes, find, ip, text, u32_at};
use super::link::{HEADER, IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINKINFO, RTM_NEWLINK};
use super::{Answer, Error, Mac, Mode, Netlink, check_name, what};

const IFLA_INFO_DATA: u16 = 2;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const KIND: &[u8] = b"vxlan\0";

/// What makes a VXLAN link the one that it is; none of it can be changed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vxlan {
    /// The network's number (VNI), 24 bits.
    pub id: u32,
    /// The UDP port, here and at the other machines.
    pub port: u16,
    /// The address of this machine that packets are sent from.
    pub local: Option<IpAddr>,
    /// Whether entries are learned from packets.
    pub learning: bool,
}

impl Netlink {
    /// Makes a VXLAN link, down. It stands on no other link, so that none takes it along when it goes.
    pub fn add_vxlan(&mut self, name: &str, vxlan: &Vxlan, mac: Mac, mtu: Option<u32>) -> Result<(), Error> {
        check_name(name)?;
        let mut data = vec![
            InfoVxlan::Id(vxlan.id),
            InfoVxlan::Port(vxlan.port),
            InfoVxlan::Learning(vxlan.learning),
        ];
        data.extend(vxlan.local.map(|address| match address {
            IpAddr::V4(address) => InfoVxlan::Local(address),
            IpAddr::V6(address) => InfoVxlan::Local6(address),
        }));
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(data)),
            ]),
        ];
        message.attributes.extend(mtu.map(LinkAttribute::Mtu));
        self.change(
            what("add vxlan", name),
            RouteNetlinkMessage::NewLink(message),
            Mode::Create,
        )
    }

    /// What the VXLAN link of a name is made of; `None` when there is none, or it is of another kind.
    pub fn vxlan(&mut self, name: &str) -> Result<Option<Vxlan>, Error> {
        check_name(name)?;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let message = RouteNetlinkMessage::GetLink(message);
        self.get(what("look up vxlan", name), message, |answer| {
            read(answer).filter(|(found, _)| found == name).map(|(_, vxlan)| vxlan)
        })
    }
}

fn read(answer: &Answer<'_>) -> Option<(String, Vxlan)> {
    if answer.kind != RTM_NEWLINK || answer.payload.len() < HEADER {
        return None;
    }
    let body = &answer.payload[HEADER..];
    let info = find(body, IFLA_LINKINFO)?;
    find(info, IFLA_INFO_KIND).filter(|kind| *kind == KIND)?;
    let mut vxlan = Vxlan {
        id: 0,
        port: 0,
        local: None,
        learning: false,
    };
    for (kind, value) in attributes(find(info, IFLA_INFO_DATA)?) {
        match kind {
            IFLA_VXLAN_ID => vxlan.id = u32_at(value, 0),
            IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => vxlan.local = ip(value),
            IFLA_VXLAN_LEARNING => vxlan.learning = value.first().is_some_and(|on| *on != 0),
            IFLA_VXLAN_PORT => vxlan.port = value.try_into().map_or(0, u16::from_be_bytes),
            _ => {}
        }
    }
    Some((find(body, IFLA_IFNAME).map(text).unwrap_or_default(), vxlan))
}
