//! Links: veth pairs, bridges, and what every interface has.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::str::FromStr;

use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkHeader, LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::attribute::{attributes, find, text, u32_at};
use super::{Answer, Error, Mode, Netlink, What, what};
use crate::netns::Namespace;

pub(super) const RTM_NEWLINK: u16 = 16;
/// `struct ifinfomsg`.
pub(super) const HEADER: usize = 16;
const IFLA_ADDRESS: u16 = 1;
pub(super) const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
pub(super) const IFLA_LINKINFO: u16 = 18;
const IFLA_PROMISCUITY: u16 = 30;
pub(super) const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const NAME_MAX: usize = 15;

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// One network interface, as far as it is of use here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its kind (`veth`, `bridge`); empty for hardware and loopback.
    pub kind: String,
    /// Its hardware address, where it has one of six bytes.
    pub mac: Option<Mac>,
    /// Its largest packet.
    pub mtu: u32,
    /// The bridge that it is a port of.
    pub master: Option<u32>,
    /// The number of the other end of a veth, in the namespace of that end.
    pub peer: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// How many users want every packet (promiscuous mode), the `promisc` flag included.
    pub promiscuity: u32,
    /// As a bridge port: sends packets back out of the port that they came from.
    pub hairpin: bool,
}

/// What a new veth pair looks like.
#[derive(Debug, Default)]
pub struct VethOptions<'a> {
    /// The largest packet, for both ends; the kernel's default when absent.
    pub mtu: Option<u32>,
    /// Where the second end is made; the client's own namespace when absent.
    pub peer_namespace: Option<&'a Namespace>,
    /// The hardware address of the first end.
    pub mac: Option<Mac>,
    /// The hardware address of the second end.
    pub peer_mac: Option<Mac>,
    /// The bridge that the first end becomes a port of.
    pub master: Option<u32>,
    /// Whether the first end is set up at once.
    pub up: bool,
}

/// What a new bridge looks like.
#[derive(Debug, Default)]
pub struct BridgeOptions {
    /// The largest packet.
    pub mtu: Option<u32>,
    /// A hardware address; with one, the bridge keeps it when ports come and go.
    pub mac: Option<Mac>,
    /// Whether ports are told apart by VLAN.
    pub vlan_filtering: bool,
}

/// A change to a link. What is absent stays.
#[derive(Debug, Default)]
pub struct LinkChange<'a> {
    /// Set up or down.
    pub up: Option<bool>,
    /// A new name; the link must be down for it on older kernels.
    pub name: Option<&'a str>,
    /// A new bridge; `Some(0)` takes the link out of its bridge.
    pub master: Option<u32>,
    /// A new hardware address.
    pub mac: Option<Mac>,
    /// A new largest packet.
    pub mtu: Option<u32>,
    /// Promiscuous mode.
    pub promiscuous: Option<bool>,
    /// Moves the link into a namespace.
    pub namespace: Option<&'a Namespace>,
}

impl Netlink {
    /// All links of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.dump(what("list", "network interfaces"), &message, read)
    }

    /// The link of a name.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        check_name(name)?;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.get(what("look up link", name), RouteNetlinkMessage::GetLink(message), read)
    }

    /// The link of a number.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, Error> {
        let message = RouteNetlinkMessage::GetLink(with_index(index));
        self.get(what("look up link", &format!("number {index}")), message, read)
    }

    /// The link of a name, which must be there.
    pub fn need_link(&mut self, name: &str) -> Result<Link, Error> {
        self.link(name)?.ok_or_else(|| Error::NoLink { name: name.to_owned() })
    }

    /// Makes a bridge, down and without ports. Read it back with [`Self::need_link`].
    pub fn add_bridge(&mut self, name: &str, options: &BridgeOptions) -> Result<(), Error> {
        check_name(name)?;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.extend(options.mtu.map(LinkAttribute::Mtu));
        message
            .attributes
            .extend(options.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        let mut info = vec![LinkInfo::Kind(InfoKind::Bridge)];
        if options.vlan_filtering {
            info.push(LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)])));
        }
        message.attributes.push(LinkAttribute::LinkInfo(info));
        self.change(
            what("add bridge", name),
            RouteNetlinkMessage::NewLink(message),
            Mode::Create,
        )
    }

    /// Makes a veth pair; the second end can be in another namespace from the start.
    pub fn add_veth(&mut self, name: &str, peer: &str, options: &VethOptions<'_>) -> Result<(), Error> {
        check_name(name)?;
        check_name(peer)?;
        let mut other = LinkMessage::default();
        other.attributes.push(LinkAttribute::IfName(peer.to_owned()));
        other.attributes.extend(options.mtu.map(LinkAttribute::Mtu));
        other
            .attributes
            .extend(options.peer_mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        other
            .attributes
            .extend(options.peer_namespace.map(|to| LinkAttribute::NetNsFd(to.as_raw_fd())));

        let mut message = LinkMessage::default();
        if options.up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.extend(options.mtu.map(LinkAttribute::Mtu));
        message
            .attributes
            .extend(options.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        message.attributes.extend(options.master.map(LinkAttribute::Controller));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]));
        let words = format!("{name} with peer {peer}");
        self.change(
            what("add veth", &words),
            RouteNetlinkMessage::NewLink(message),
            Mode::Create,
        )
    }

    /// Changes a link.
    pub fn set_link(&mut self, index: u32, change: &LinkChange<'_>) -> Result<(), Error> {
        let mut message = with_index(index);
        let mut flag = |flag: LinkFlags, wanted: Option<bool>| {
            if let Some(on) = wanted {
                message.header.change_mask |= flag;
                message.header.flags.set(flag, on);
            }
        };
        flag(LinkFlags::Up, change.up);
        flag(LinkFlags::Promisc, change.promiscuous);
        if let Some(name) = change.name {
            check_name(name)?;
            message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        }
        message.attributes.extend(change.master.map(LinkAttribute::Controller));
        message
            .attributes
            .extend(change.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        message.attributes.extend(change.mtu.map(LinkAttribute::Mtu));
        message
            .attributes
            .extend(change.namespace.map(|to| LinkAttribute::NetNsFd(to.as_raw_fd())));
        let words = format!("number {index}");
        self.change(
            what("change link", &words),
            RouteNetlinkMessage::SetLink(message),
            Mode::Plain,
        )
    }

    /// Sets a link up.
    pub fn set_up(&mut self, index: u32) -> Result<(), Error> {
        self.set_link(
            index,
            &LinkChange {
                up: Some(true),
                ..LinkChange::default()
            },
        )
    }

    /// Makes a bridge port send packets back to where they came from, so that a pod reaches itself through a Service.
    pub fn set_hairpin(&mut self, index: u32, on: bool) -> Result<(), Error> {
        self.hairpin(with_index(index), &format!("of bridge port number {index}"), on)
    }

    /// The same for a port whose number is not known: a question less.
    pub fn set_hairpin_of(&mut self, name: &str, on: bool) -> Result<(), Error> {
        check_name(name)?;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.hairpin(message, &format!("of bridge port {name}"), on)
    }

    fn hairpin(&mut self, mut message: LinkMessage, words: &str, on: bool) -> Result<(), Error> {
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(on)])),
        ]));
        self.change(
            what("set hairpin mode", words),
            RouteNetlinkMessage::NewLink(message),
            Mode::Plain,
        )
    }

    /// Makes a bridge tell its ports apart by VLAN. The kernel may lack that: "operation not supported".
    pub fn set_vlan_filtering(&mut self, index: u32) -> Result<(), Error> {
        self.change(
            what("filter VLANs on bridge", &format!("number {index}")),
            RouteNetlinkMessage::NewLink(vlan_filtering(index)),
            Mode::Plain,
        )
    }

    /// Makes a bridge port a member of a VLAN, to which untagged packets from it belong and whose packets it gets untagged.
    pub fn add_port_vlan(&mut self, index: u32, vlan: u16) -> Result<(), Error> {
        let flags = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
        let words = format!("{vlan} to bridge port number {index}");
        let message = port_vlan(index, BridgeVlanInfo { flags, vid: vlan });
        self.change(
            what("add VLAN", &words),
            RouteNetlinkMessage::SetLink(message),
            Mode::Plain,
        )
    }

    /// Takes a bridge port out of a VLAN.
    pub fn delete_port_vlan(&mut self, index: u32, vlan: u16) -> Result<(), Error> {
        let flags = BridgeVlanInfoFlags::empty();
        let words = format!("{vlan} of bridge port number {index}");
        let message = port_vlan(index, BridgeVlanInfo { flags, vid: vlan });
        self.change(
            what("delete VLAN", &words),
            RouteNetlinkMessage::DelLink(message),
            Mode::Plain,
        )
    }

    /// Removes a link (with a veth, its peer too). Returns whether it was there.
    pub fn delete_link(&mut self, name: &str) -> Result<bool, Error> {
        check_name(name)?;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.delete(what("delete link", name), message)
    }

    /// Removes a link by its number. Returns whether it was there.
    pub fn delete_link_by_index(&mut self, index: u32) -> Result<bool, Error> {
        self.delete(what("delete link", &format!("number {index}")), with_index(index))
    }

    fn delete(&mut self, what: What<'_>, message: LinkMessage) -> Result<bool, Error> {
        match self.change(what, RouteNetlinkMessage::DelLink(message), Mode::Plain) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Whether the kernel would take the name for an interface.
pub fn check_name(name: &str) -> Result<(), Error> {
    let bad = name.is_empty()
        || name.len() > NAME_MAX
        || matches!(name, "." | "..")
        || name.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace());
    if bad {
        Err(Error::Name { name: name.to_owned() })
    } else {
        Ok(())
    }
}

fn vlan_filtering(index: u32) -> LinkMessage {
    let mut message = with_index(index);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)])),
    ]));
    message
}

fn port_vlan(index: u32, vlan: BridgeVlanInfo) -> LinkMessage {
    let mut message = with_index(index);
    message.header.interface_family = AddressFamily::Bridge;
    message
        .attributes
        .push(LinkAttribute::AfSpecBridge(vec![AfSpecBridge::VlanInfo(vlan)]));
    message
}

fn with_index(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header = LinkHeader {
        interface_family: AddressFamily::Unspec,
        index,
        ..LinkHeader::default()
    };
    message
}

pub(super) fn read(answer: &Answer<'_>) -> Option<Link> {
    if answer.kind != RTM_NEWLINK || answer.payload.len() < HEADER {
        return None;
    }
    let mut link = Link {
        index: u32_at(answer.payload, 4),
        name: String::new(),
        kind: String::new(),
        mac: None,
        mtu: 0,
        master: None,
        peer: None,
        up: LinkFlags::from_bits_retain(u32_at(answer.payload, 8)).contains(LinkFlags::Up),
        promiscuity: 0,
        hairpin: false,
    };
    for (kind, value) in attributes(&answer.payload[HEADER..]) {
        match kind {
            IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
            IFLA_IFNAME => link.name = text(value),
            IFLA_MTU => link.mtu = u32_at(value, 0),
            IFLA_LINK => link.peer = Some(u32_at(value, 0)),
            IFLA_MASTER => link.master = Some(u32_at(value, 0)),
            IFLA_PROMISCUITY => link.promiscuity = u32_at(value, 0),
            IFLA_LINKINFO => {
                link.kind = find(value, IFLA_INFO_KIND).map(text).unwrap_or_default();
                link.hairpin = find(value, IFLA_INFO_SLAVE_DATA)
                    .and_then(|port| find(port, IFLA_BRPORT_MODE))
                    .is_some_and(|mode| mode.first().is_some_and(|on| *on != 0));
            }
            _ => {}
        }
    }
    Some(link)
}

// === impl Mac ===

impl Mac {
    /// The address that the bridge plugin gives a port for an IPv4 address: `0a:58:` and the four bytes of it, so that
    /// an address that comes back does so with the same hardware address, and no neighbour's cache is stale.
    pub fn for_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(ip) => {
                let [a, b, c, d] = ip.octets();
                Some(Self([0x0a, 0x58, a, b, c, d]))
            }
            IpAddr::V6(_) => None,
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// A text that is no hardware address.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no hardware address: six bytes in hexadecimal with colons are wanted, like 0a:58:0a:f4:00:02")]
pub struct MacError(String);

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let bad = || MacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            Err(bad())
        } else {
            Ok(Self(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable as _;

    use super::*;

    #[test]
    fn hardware_addresses_are_read_and_written() {
        let mac: Mac = "0a:58:0a:F4:00:02".parse().unwrap();
        assert_eq!(mac, Mac([0x0a, 0x58, 0x0a, 0xf4, 0, 2]));
        assert_eq!(mac.to_string(), "0a:58:0a:f4:00:02");
        assert_eq!(Mac::for_ip("10.244.0.2".parse().unwrap()), Some(mac));
        for bad in [
            "",
            "0a:58:0a:f4:00",
            "0a:58:0a:f4:00:02:03",
            "a:58:0a:f4:00:02",
            "0g:58:0a:f4:00:02",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    /// Not every kernel filters VLANs: what it is told is compared with linux/if_bridge.h and linux/if_link.h instead.
    #[test]
    fn the_kernel_is_told_of_vlans_in_its_own_form() {
        const IFLA_AF_SPEC: u16 = 26;
        const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
        const IFLA_INFO_DATA: u16 = 2;
        const IFLA_BR_VLAN_FILTERING: u16 = 7;
        const AF_BRIDGE: u8 = 7;
        // BRIDGE_VLAN_INFO_PVID and BRIDGE_VLAN_INFO_UNTAGGED.
        const UNTAGGED: u16 = 2 | 4;
        let emit = |message: &LinkMessage| {
            let mut bytes = vec![0; message.buffer_len()];
            message.emit(&mut bytes);
            bytes
        };
        for (flags, words) in [
            (BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged, UNTAGGED),
            (BridgeVlanInfoFlags::empty(), 0),
        ] {
            let bytes = emit(&port_vlan(7, BridgeVlanInfo { flags, vid: 100 }));
            assert_eq!((bytes[0], u32_at(&bytes, 4)), (AF_BRIDGE, 7));
            let spec = find(&bytes[HEADER..], IFLA_AF_SPEC).unwrap();
            let vlan = find(spec, IFLA_BRIDGE_VLAN_INFO).unwrap();
            assert_eq!(vlan, [words.to_ne_bytes(), 100_u16.to_ne_bytes()].concat());
        }
        let bytes = emit(&vlan_filtering(9));
        assert_eq!((bytes[0], u32_at(&bytes, 4)), (0, 9));
        let info = find(&bytes[HEADER..], IFLA_LINKINFO).unwrap();
        assert_eq!(find(info, IFLA_INFO_KIND).map(text).as_deref(), Some("bridge"));
        let data = find(info, IFLA_INFO_DATA).unwrap();
        assert_eq!(find(data, IFLA_BR_VLAN_FILTERING), Some(&[1][..]));
    }

    #[test]
    fn interface_names_are_checked_before_the_kernel_sees_them() {
        for good in ["a", "eth0", "veth0123456789a", "eth0.7"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a:1", "sixteen-letters0", "tab\t"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
