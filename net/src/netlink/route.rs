//! Routes of the main table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::attribute::{attributes, ip, u32_at};
use super::{Answer, Error, Mode, Netlink, what};

const RTM_NEWROUTE: u16 = 24;
/// `struct rtmsg`.
const HEADER: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
const MAIN_TABLE: u32 = 254;
const UNICAST: u8 = 1;
const CLONED: u32 = 0x200;

/// Who put a route there: a number that its owner picks, so that it finds its own again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    /// By the kernel, with an address.
    pub const KERNEL: Self = Self(2);
    /// By a setup tool without a number of its own.
    pub const BOOT: Self = Self(3);
    /// By an administrator.
    pub const STATIC: Self = Self(4);
}

/// How far away a route's destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Behind a gateway.
    Universe,
    /// On the link.
    Link,
    /// This machine.
    Host,
    /// Another number.
    Other(u8),
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// The interface; the kernel finds it by the gateway when absent.
    pub link: Option<u32>,
    /// The sender's address for packets of this machine.
    pub source: Option<IpAddr>,
    /// Lower wins; 0 is the kernel's default.
    pub priority: u32,
    /// The largest packet on this way; 0 is the link's.
    pub mtu: u32,
    /// The largest segment that TCP tells its peers; 0 follows from the largest packet.
    pub advmss: u32,
    /// The table that it is in.
    pub table: u32,
    /// How far the destination is.
    pub scope: Scope,
    /// Whose route it is.
    pub protocol: Protocol,
    /// The gateway is on the link although no address of ours says so.
    pub on_link: bool,
}

impl Route {
    /// A route through a gateway.
    pub fn through(destination: IpNet, gateway: IpAddr) -> Self {
        Self {
            gateway: Some(gateway),
            scope: Scope::Universe,
            ..Self::direct(destination, 0)
        }
    }

    /// A route to what is on a link.
    pub fn direct(destination: IpNet, link: u32) -> Self {
        Self {
            destination: destination.trunc(),
            gateway: None,
            link: Some(link).filter(|link| *link != 0),
            source: None,
            priority: 0,
            mtu: 0,
            advmss: 0,
            table: MAIN_TABLE,
            scope: Scope::Link,
            protocol: Protocol::BOOT,
            on_link: false,
        }
    }
}

impl Netlink {
    /// The unicast routes of the main table, both families.
    pub fn routes(&mut self) -> Result<Vec<Route>, Error> {
        self.routes_in(MAIN_TABLE)
    }

    /// The unicast routes of a table, both families.
    pub fn routes_in(&mut self, table: u32) -> Result<Vec<Route>, Error> {
        let message = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        self.dump(what("list", "routes"), &message, |answer| read(answer, table))
    }

    /// The way that this machine would send a packet to an address; `None` when there is none.
    pub fn route_to(&mut self, address: IpAddr) -> Result<Option<Route>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = match address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        message.header.destination_prefix_length = IpNet::from(address).prefix_len();
        message
            .attributes
            .push(RouteAttribute::Destination(RouteAddress::from(address)));
        let found = self.get(
            what("look up the route to", &address.to_string()),
            RouteNetlinkMessage::GetRoute(message),
            read_any,
        );
        match found {
            Err(error) if error.errno() == Some(Errno::ENETUNREACH) => Ok(None),
            found => found,
        }
    }

    /// Adds a route; one to the same destination with the same priority is an error.
    pub fn add_route(&mut self, route: &Route) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewRoute(build(route));
        self.change(what("add route", &words(route)), message, Mode::Create)
    }

    /// Adds a route, before others to the same destination; only the very same one is an error.
    pub fn add_route_beside(&mut self, route: &Route) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewRoute(build(route));
        self.change(what("add route", &words(route)), message, Mode::Beside)
    }

    /// Adds a route, or replaces the one to the same destination with the same priority.
    pub fn replace_route(&mut self, route: &Route) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewRoute(build(route));
        self.change(what("replace route", &words(route)), message, Mode::Replace)
    }

    /// Removes a route. Returns whether it was there.
    pub fn delete_route(&mut self, route: &Route) -> Result<bool, Error> {
        let message = RouteNetlinkMessage::DelRoute(build(route));
        match self.change(what("delete route", &words(route)), message, Mode::Plain) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.errno(), Some(Errno::ESRCH | Errno::ENODEV)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn words(route: &Route) -> String {
    match (route.gateway, route.link) {
        (Some(gateway), _) => format!("{} via {gateway}", route.destination),
        (None, Some(link)) => format!("{} on link number {link}", route.destination),
        (None, None) => route.destination.to_string(),
    }
}

fn build(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: match route.destination {
            IpNet::V4(_) => AddressFamily::Inet,
            IpNet::V6(_) => AddressFamily::Inet6,
        },
        destination_prefix_length: route.destination.prefix_len(),
        // A number that does not fit stands in an attribute.
        table: u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
        protocol: RouteProtocol::from(route.protocol.0),
        scope: match route.scope {
            Scope::Universe => RouteScope::Universe,
            Scope::Link => RouteScope::Link,
            Scope::Host => RouteScope::Host,
            Scope::Other(number) => RouteScope::Other(number),
        },
        kind: RouteType::Unicast,
        flags: if route.on_link {
            RouteFlags::Onlink
        } else {
            RouteFlags::empty()
        },
        ..RouteHeader::default()
    };
    let attributes = &mut message.attributes;
    if route.destination.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(RouteAddress::from(
            route.destination.trunc().addr(),
        )));
    }
    attributes.extend(route.gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
    attributes.extend(route.link.map(RouteAttribute::Oif));
    attributes.extend(route.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    attributes.extend(
        Some(route.priority)
            .filter(|number| *number != 0)
            .map(RouteAttribute::Priority),
    );
    if u8::try_from(route.table).is_err() {
        attributes.push(RouteAttribute::Table(route.table));
    }
    let metrics = [
        (route.mtu, RouteMetric::Mtu as fn(u32) -> _),
        (route.advmss, RouteMetric::Advmss),
    ];
    let metrics: Vec<RouteMetric> = metrics
        .into_iter()
        .filter(|(number, _)| *number != 0)
        .map(|(number, metric)| metric(number))
        .collect();
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

/// A route of a table that somebody put there.
fn read(answer: &Answer<'_>, table: u32) -> Option<Route> {
    let header = answer.payload.get(..HEADER)?;
    let own = header[7] == UNICAST && u32_at(header, 8) & CLONED == 0;
    read_any(answer).filter(|route| own && route.table == table)
}

fn read_any(answer: &Answer<'_>) -> Option<Route> {
    let payload = answer.payload;
    if answer.kind != RTM_NEWROUTE || payload.len() < HEADER {
        return None;
    }
    let flags = u32_at(payload, 8);
    let any = match i32::from(payload[0]) {
        nix::libc::AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        nix::libc::AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut destination = any;
    let mut route = Route::direct(IpNet::from(any), 0);
    route.table = u32::from(payload[4]);
    for (kind, value) in attributes(&payload[HEADER..]) {
        match kind {
            RTA_DST => destination = ip(value)?,
            RTA_OIF => route.link = Some(u32_at(value, 0)),
            RTA_GATEWAY => route.gateway = ip(value),
            RTA_PREFSRC => route.source = ip(value),
            RTA_TABLE => route.table = u32_at(value, 0),
            RTA_PRIORITY => route.priority = u32_at(value, 0),
            RTA_METRICS => {
                let metric = |kind| super::attribute::find(value, kind).map_or(0, |number| u32_at(number, 0));
                (route.mtu, route.advmss) = (metric(RTAX_MTU), metric(RTAX_ADVMSS));
            }
            _ => {}
        }
    }
    route.destination = IpNet::new(destination, payload[1]).ok()?;
    route.protocol = Protocol(payload[5]);
    route.scope = match payload[6] {
        0 => Scope::Universe,
        253 => Scope::Link,
        254 => Scope::Host,
        other => Scope::Other(other),
    };
    route.on_link = flags & RouteFlags::Onlink.bits() != 0;
    Some(route)
}
