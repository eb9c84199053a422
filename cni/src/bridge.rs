//! The `bridge` plugin: a veth pair between the container and a bridge of this machine.
//!
//! ADD takes the address first: the container's hardware address then follows from it, and the pair is made in one
//! request with everything that it needs. Each step that succeeded is undone, last first, when a later one fails.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;

use ipnet::IpNet;
use skiff_net::netlink::{BridgeOptions, Link, LinkChange, Mac, Netlink, Protocol, Route, Scope, VethOptions};
use skiff_net::netns::Namespace;
use skiff_net::sysctl;

use crate::config::Dns;
use crate::error::{Code, Error};
use crate::outcome::{self, Interface, Network, Reply};
use crate::request::{Request, Verb};
use crate::{delegate, masquerade};

mod check;
mod config;
mod vlan;

use config::Config;

/// The kernel's number of "on the link".
const LINK_SCOPE: u8 = 253;
/// A random name that is taken already is chosen anew this many times.
const NAME_TRIES: usize = 10;

pub(crate) fn run(request: &Request) -> Result<Reply, Error> {
    match request.verb {
        Verb::Add => add(request),
        Verb::Del => del(request),
        Verb::Check => check::run(request),
        Verb::Status => status(request),
        Verb::Gc => gc(request),
        Verb::Version => Ok(Reply::Silent),
    }
}

/// Both sides of an attachment: this machine's namespace and the container's.
struct Sides {
    outer: Netlink,
    inner: Netlink,
    container: Namespace,
}

/// What has been done so far, in order; [`Undo::drop`] takes it back unless committed.
struct Undo<'a> {
    steps: Vec<Box<dyn FnOnce() + 'a>>,
}

impl<'a> Undo<'a> {
    fn then(&mut self, step: impl FnOnce() + 'a) {
        self.steps.push(Box::new(step));
    }

    fn commit(mut self) {
        self.steps.clear();
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        while let Some(step) = self.steps.pop() {
            step();
        }
    }
}

fn add(request: &Request) -> Result<Reply, Error> {
    let config = Config::read(request)?;
    let mut sides = open(&request.namespace)?;
    let name = &request.interface;
    let existing = sides
        .inner
        .link(name)
        .map_err(|source| Error::internal("failed to look into the netns", &source))?;
    if existing.is_some() {
        return Err(Error::new(
            Code::Internal,
            format!("container veth name provided ({name}) already exists"),
        ));
    }

    let mut undo = Undo { steps: Vec::new() };
    let mut network = Network::default();
    if config.layer3 {
        network = delegate::ipam(request)?;
        // Its own error would hide the one that led here.
        undo.then(|| drop(delegate::ipam(&request.with_verb(Verb::Del))));
        if network.ips.is_empty() {
            return Err(Error::new(Code::Internal, "IPAM plugin returned missing IP config"));
        }
    }
    complete(&config, &mut network)?;
    if request.network.dns != Dns::default() {
        network.dns = request.network.dns.clone();
    }

    let bridge = ensure_bridge(&mut sides.outer, &config, &network)?;
    let (port, mac) = connect(&mut sides, request, &config, &bridge, &network)?;
    let namespace = &request.namespace;
    undo.then(move || {
        if let Ok(mut netlink) = Namespace::open(namespace)
            .map_err(drop)
            .and_then(|n| Netlink::open_visiting(&n).map_err(drop))
        {
            netlink.delete_link(name).ok();
        }
    });
    let inside = configure_container(&mut sides.inner, name, &network)
        .map_err(|source| Error::internal("failed to configure the container's interface", &source))?;
    configure_gateway(&mut sides.outer, &config, &bridge, &network)?;
    if config.masquerade && config.layer3 {
        undo.then(|| drop(masquerade::remove(&request.network.name, &request.container)));
        let addresses: Vec<IpNet> = network.ips.iter().map(|ip| ip.address).collect();
        masquerade::set_up(request, &addresses)?;
    }

    let sandbox = namespace.display().to_string();
    network.interfaces = vec![
        describe(&sides.outer.need_link(&bridge.name).unwrap_or(bridge), ""),
        port,
        Interface {
            mac: mac.or(inside.mac).map(|mac| mac.to_string()).unwrap_or_default(),
            ..describe(&inside, &sandbox)
        },
    ];
    for ip in &mut network.ips {
        ip.interface = Some(2);
    }
    undo.commit();
    Ok(Reply::Network(network))
}

fn del(request: &Request) -> Result<Reply, Error> {
    let config = Config::read(request)?;
    // Every part is tried, whatever became of the others; the first error is told.
    let mut results = Vec::new();
    if config.layer3 {
        results.push(delegate::ipam(request).map(drop));
    }
    if !request.namespace.as_os_str().is_empty() {
        results.push(disconnect(&request.namespace, &request.interface));
    }
    if config.masquerade && config.layer3 {
        results.push(masquerade::remove(&request.network.name, &request.container));
    }
    results.into_iter().collect::<Result<(), Error>>()?;
    Ok(Reply::Silent)
}

fn status(request: &Request) -> Result<Reply, Error> {
    let unavailable = |error: Error| Error {
        code: Code::NotAvailable,
        ..error
    };
    let config = Config::read(request).map_err(unavailable)?;
    if config.layer3 {
        delegate::ipam(request).map_err(unavailable)?;
    }
    Ok(Reply::Silent)
}

fn gc(request: &Request) -> Result<Reply, Error> {
    let config = Config::read(request)?;
    let leases = if config.layer3 {
        delegate::ipam(request).map(drop)
    } else {
        Ok(())
    };
    let rules = if config.masquerade && config.layer3 {
        masquerade::collect(request)
    } else {
        Ok(())
    };
    leases.and(rules).map(|()| Reply::Silent)
}

fn open(path: &Path) -> Result<Sides, Error> {
    let failed = |source: &dyn std::error::Error| {
        Error::internal(format_args!("failed to open netns \"{}\"", path.display()), source)
    };
    let container = Namespace::open(path).map_err(|source| failed(&source))?;
    let here = Namespace::current().map_err(|source| failed(&source))?;
    if matches!((container.id(), here.id()), (Ok(there), Ok(here)) if there == here) {
        let message = "plugin's netns and netns from CNI_NETNS should not be the same";
        return Err(Error::new(Code::InvalidNamespace, message).details(path.display().to_string()));
    }
    let outer = Netlink::open().map_err(|source| failed(&source))?;
    let inner = Netlink::open_visiting(&container).map_err(|source| failed(&source))?;
    Ok(Sides {
        outer,
        inner,
        container,
    })
}

/// Fills in the gateways that the address plugin left out, and the default route that the configuration wants.
fn complete(config: &Config, network: &mut Network) -> Result<(), Error> {
    for ip in &mut network.ips {
        if ip.gateway.is_none() && config.gateway {
            // The subnet's first address, as upstream takes it.
            ip.gateway = ip.address.hosts().next();
        }
        let Some(gateway) = ip.gateway.filter(|_| config.default_gateway) else {
            continue;
        };
        let any = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        let dst: IpNet = any
            .parse()
            .map_err(|source| Error::internal("impossible default route", &source))?;
        // A default route of the address plugin's stays the only one. (Upstream adds a second to one without a gateway,
        // and then fails on it.)
        if !network.routes.iter().any(|route| route.dst == dst) {
            network.routes.push(outcome::Route::new(dst, Some(gateway)));
        }
    }
    Ok(())
}

/// The bridge, up. Several calls may make it at once.
fn ensure_bridge(outer: &mut Netlink, config: &Config, network: &Network) -> Result<Link, Error> {
    let name = &config.bridge;
    let failed =
        |source: &dyn std::error::Error| Error::internal(format_args!("failed to create bridge {name:?}"), source);
    let found = outer.link(name).map_err(|source| failed(&source))?;
    let bridge = match found {
        Some(bridge) => bridge,
        None => {
            // An address of its own: without, the kernel changes the bridge's with its ports, and containers would
            // send to a neighbour that is no more.
            let gateway = network.ips.first().and_then(|ip| ip.gateway).and_then(Mac::for_ip);
            let options = BridgeOptions {
                mtu: config.mtu,
                mac: Some(gateway.unwrap_or_else(random_mac)),
                vlan_filtering: config.vlan.is_some(),
            };
            match outer.add_bridge(name, &options) {
                Err(error) if !error.already_exists() => return Err(failed(&error)),
                _ => {}
            }
            // Only a host listens to router advertisements; one from a container could take over its traffic.
            sysctl::set(&format!("net/ipv6/conf/{name}/accept_ra"), "0").ok();
            outer.need_link(name).map_err(|source| failed(&source))?
        }
    };
    if bridge.kind != "bridge" {
        let message = format!("failed to create bridge {name:?}: {name:?} already exists but is not a bridge");
        return Err(Error::new(Code::Internal, message));
    }
    if config.vlan.is_some() {
        // A bridge of others' making: without, the container would be in everybody's segment.
        outer
            .set_vlan_filtering(bridge.index)
            .map_err(|source| failed(&source))?;
    }
    if !bridge.up || (config.promiscuous && bridge.promiscuity == 0) {
        let promiscuous = config.promiscuous.then_some(true);
        let change = LinkChange {
            up: Some(true),
            promiscuous,
            ..LinkChange::default()
        };
        outer
            .set_link(bridge.index, &change)
            .map_err(|source| failed(&source))?;
    }
    Ok(bridge)
}

/// The veth pair: the outer end a port of the bridge and up, the inner end in the container's namespace. Returns the
/// outer end's description and what the inner end's hardware address was chosen to be.
fn connect(
    sides: &mut Sides,
    request: &Request,
    config: &Config,
    bridge: &Link,
    network: &Network,
) -> Result<(Interface, Option<Mac>), Error> {
    let failed = |source: &dyn std::error::Error| Error::internal("failed to make the veth pair", source);
    let mac = config
        .mac
        .or_else(|| network.ips.first().and_then(|ip| Mac::for_ip(ip.address.addr())));
    // Chosen here, so that nothing of the outer end must be asked for.
    let outer_mac = random_mac();
    let options = VethOptions {
        mtu: config.mtu,
        peer_namespace: Some(&sides.container),
        mac: Some(outer_mac),
        peer_mac: mac,
        master: Some(bridge.index),
        up: true,
    };
    let outer = &mut sides.outer;
    let name = add_pair(outer, &request.interface, &options).map_err(|source| failed(&source))?;
    match settle(outer, &name, config) {
        Ok(mtu) => Ok((
            Interface {
                name,
                mac: outer_mac.to_string(),
                mtu: Some(mtu),
                ..Interface::default()
            },
            mac,
        )),
        Err(error) => {
            sides.outer.delete_link(&name).ok();
            Err(failed(&error))
        }
    }
}

/// What a new port needs beyond its making; returns its largest packet.
fn settle(outer: &mut Netlink, name: &str, config: &Config) -> Result<u32, skiff_net::netlink::Error> {
    if config.hairpin {
        outer.set_hairpin_of(name, true)?;
    }
    if let (None, Some(mtu)) = (config.vlan, config.mtu) {
        return Ok(mtu);
    }
    let port = outer.need_link(name)?;
    if let Some(vlan) = config.vlan {
        vlan::join(outer, port.index, vlan)?;
    }
    Ok(port.mtu)
}

/// Makes a pair whose first end has a name that nobody has yet; returns that.
fn add_pair(outer: &mut Netlink, peer: &str, options: &VethOptions<'_>) -> Result<String, skiff_net::netlink::Error> {
    let mut tries = 0;
    loop {
        let name = format!("veth{:08x}", random() & 0xffff_ffff);
        match outer.add_veth(&name, peer, options) {
            Ok(()) => return Ok(name),
            Err(error) if error.already_exists() && tries < NAME_TRIES => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Addresses and routes inside; returns the interface as it is then.
fn configure_container(inner: &mut Netlink, name: &str, network: &Network) -> Result<Link, skiff_net::netlink::Error> {
    let link = inner.need_link(name)?;
    // Addresses first: with the link up, IPv6 would start duplicate detection before it is told not to.
    for ip in &network.ips {
        inner.add_address(link.index, ip.address)?;
    }
    inner.set_up(link.index)?;
    for route in &network.routes {
        match inner.add_route_beside(&wanted(network, route, link.index)) {
            Err(error) if !error.already_exists() => return Err(error),
            _ => {}
        }
    }
    Ok(link)
}

/// A route of the result as the kernel takes it.
fn wanted(network: &Network, route: &outcome::Route, link: u32) -> Route {
    let direct = Route::direct(route.dst, link);
    // Without a gateway of its own, a route to what is on the link does not want the network's.
    let gateway = route.gw.or_else(|| match route.scope {
        Some(LINK_SCOPE) => None,
        _ => network.gateway_for(route),
    });
    let made = gateway.map_or_else(|| direct.clone(), |gateway| Route::through(route.dst, gateway));
    Route {
        link: Some(link),
        protocol: Protocol::BOOT,
        priority: route.priority.unwrap_or_default(),
        mtu: route.mtu.unwrap_or_default(),
        advmss: route.advmss.unwrap_or_default(),
        table: route.table.unwrap_or(direct.table),
        scope: route.scope.map_or(made.scope, Scope::Other),
        ..made
    }
}

/// The gateway's addresses on the bridge, or on its interface into the VLAN; and forwarding.
fn configure_gateway(outer: &mut Netlink, config: &Config, bridge: &Link, network: &Network) -> Result<(), Error> {
    if !config.gateway {
        return Ok(());
    }
    let interface = match config.vlan {
        Some(vlan) => &vlan::ensure_gateway(outer, bridge, vlan)?,
        None => bridge,
    };
    let gateways = network
        .ips
        .iter()
        .filter_map(|ip| IpNet::new(ip.gateway?, ip.address.prefix_len()).ok());
    for gateway in gateways {
        ensure_address(outer, config, interface, gateway)?;
        let forwarding = if gateway.addr().is_ipv4() {
            "net.ipv4.ip_forward"
        } else {
            "net.ipv6.conf.all.forwarding"
        };
        sysctl::set(forwarding, "1").map_err(|source| Error::internal("failed to enable forwarding", &source))?;
    }
    Ok(())
}

fn ensure_address(outer: &mut Netlink, config: &Config, bridge: &Link, gateway: IpNet) -> Result<(), Error> {
    let failed = |source: &dyn std::error::Error| {
        Error::internal(
            format_args!("failed to set bridge addr {gateway} on {:?}", bridge.name),
            source,
        )
    };
    match outer.add_address(bridge.index, gateway) {
        Ok(()) => {}
        Err(error) if error.already_exists() => return Ok(()),
        Err(error) => return Err(failed(&error)),
    }
    // It was not there, so others may be that stand in its way. (Found after the fact: the common case asks nothing.)
    let addresses = outer.addresses(Some(bridge.index)).map_err(|source| failed(&source))?;
    // As upstream has it: one IPv4 address for a bridge, IPv6 ones as long as their subnets differ.
    let conflicts = |other: IpNet| match (other, gateway) {
        (IpNet::V4(_), IpNet::V4(_)) => other != gateway,
        _ => other != gateway && (other.contains(&gateway) || gateway.contains(&other)),
    };
    for other in addresses
        .iter()
        .map(|address| address.net)
        .filter(|other| conflicts(*other))
    {
        if config.force_address {
            outer
                .delete_address(bridge.index, other)
                .map_err(|source| failed(&source))?;
        } else {
            outer.delete_address(bridge.index, gateway).ok();
            let message = format!(
                "failed to set bridge addr: {:?} already has an IP address different from {gateway}",
                bridge.name
            );
            return Err(Error::new(Code::Internal, message).details(format!("it has {other}; see forceAddress")));
        }
    }
    Ok(())
}

/// Removes the container's interface, and with it the other end. What is gone already is no error.
fn disconnect(namespace: &Path, interface: &str) -> Result<(), Error> {
    let Ok(opened) = Namespace::open(namespace) else {
        return Ok(());
    };
    let here = Namespace::current().and_then(|here| {
        here.id().map_err(|source| skiff_net::netns::Error::Open {
            path: namespace.to_owned(),
            source,
        })
    });
    // A path that is no namespace, or our own: there is nothing of the container's in it.
    if matches!((opened.id(), here), (Ok(there), Ok(here)) if there == here) {
        return Ok(());
    }
    let mut inner = match Netlink::open_visiting(&opened) {
        Ok(inner) => inner,
        Err(skiff_net::netlink::Error::Namespace(_)) => return Ok(()),
        Err(source) => return Err(Error::internal("failed to open the netns", &source)),
    };
    inner
        .delete_link(interface)
        .map(drop)
        .map_err(|source| Error::internal("failed to remove the interface", &source))
}

fn describe(link: &Link, sandbox: &str) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: Some(link.mtu),
        sandbox: sandbox.to_owned(),
        ..Interface::default()
    }
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A locally administered unicast address.
fn random_mac() -> Mac {
    let [a, b, c, d, e, ..] = random().to_ne_bytes();
    Mac([0x0a, a, b, c, d, e])
}
