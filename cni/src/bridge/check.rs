//! CHECK: everything that ADD made is still there.

use skiff_net::netlink::{Error as NetlinkError, Link, Netlink};

use super::config::Config;
use super::{Sides, open};
use crate::delegate;
use crate::error::{Code, Error};
use crate::outcome::{Interface, Network, Reply};
use crate::request::Request;

pub(super) fn run(request: &Request) -> Result<Reply, Error> {
    let config = Config::read(request)?;
    if config.layer3 {
        delegate::ipam(request)?;
    }
    let Some(previous) = &request.network.prev_result else {
        return Err(failed("Required prevResult missing"));
    };
    let mut sides = open(&request.namespace)?;
    let sandbox = request.namespace.display().to_string();
    let inside = find(previous, |interface| {
        interface.sandbox == sandbox && interface.name == request.interface
    })?;
    let outside = find(previous, |interface| {
        interface.sandbox.is_empty() && interface.name == config.bridge
    })?;

    let bridge = present(&mut sides.outer, outside, "bridge")?;
    let container = present(&mut sides.inner, inside, "veth")?;
    check_port(&mut sides, &config, &bridge, &container)?;
    check_addresses(&mut sides.inner, previous, &container)?;
    check_routes(&mut sides.inner, previous, container.index)?;
    Ok(Reply::Silent)
}

fn failed(message: impl Into<String>) -> Error {
    Error::new(Code::Internal, message)
}

fn broken(source: &NetlinkError) -> Error {
    Error::internal("failed to look at the network", source)
}

fn find(previous: &Network, wanted: impl Fn(&Interface) -> bool) -> Result<&Interface, Error> {
    previous
        .interfaces
        .iter()
        .find(|interface| wanted(interface))
        .ok_or_else(|| failed("prevResult does not have the interfaces that ADD made"))
}

fn present(netlink: &mut Netlink, wanted: &Interface, kind: &str) -> Result<Link, Error> {
    let name = &wanted.name;
    let link = netlink.link(name).map_err(|source| broken(&source))?;
    let link = link.ok_or_else(|| failed(format!("interface {name} is missing")))?;
    if link.kind != kind {
        return Err(failed(format!("interface {name} is no {kind} but {:?}", link.kind)));
    }
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if !wanted.mac.is_empty() && !wanted.mac.eq_ignore_ascii_case(&mac) {
        return Err(failed(format!(
            "interface {name} has the hardware address {mac} instead of {}",
            wanted.mac
        )));
    }
    if link.up {
        Ok(link)
    } else {
        Err(failed(format!("interface {name} is down")))
    }
}

fn check_port(sides: &mut Sides, config: &Config, bridge: &Link, container: &Link) -> Result<(), Error> {
    let number = container
        .peer
        .ok_or_else(|| failed("the container's interface has no other end"))?;
    let port = sides.outer.link_by_index(number).map_err(|source| broken(&source))?;
    let port = port.ok_or_else(|| failed("the other end of the container's interface is missing"))?;
    if port.master != Some(bridge.index) {
        return Err(failed(format!(
            "interface {} is no port of bridge {}",
            port.name, bridge.name
        )));
    }
    if port.hairpin != config.hairpin {
        return Err(failed(format!(
            "hairpin mode of {} is {} instead of {}",
            port.name, port.hairpin, config.hairpin
        )));
    }
    Ok(())
}

fn check_addresses(inner: &mut Netlink, previous: &Network, link: &Link) -> Result<(), Error> {
    let found = inner.addresses(Some(link.index)).map_err(|source| broken(&source))?;
    match previous
        .ips
        .iter()
        .find(|ip| !found.iter().any(|address| address.net == ip.address))
    {
        Some(ip) => Err(failed(format!(
            "interface {} does not have the address {}",
            link.name, ip.address
        ))),
        None => Ok(()),
    }
}

fn check_routes(inner: &mut Netlink, previous: &Network, link: u32) -> Result<(), Error> {
    for route in &previous.routes {
        let wanted = super::wanted(previous, route, link);
        let found = inner.routes_in(wanted.table).map_err(|source| broken(&source))?;
        let there = found.iter().any(|found| {
            found.destination == wanted.destination && (wanted.gateway.is_none() || found.gateway == wanted.gateway)
        });
        if !there {
            return Err(failed(format!("the route to {} is missing", route.dst)));
        }
    }
    Ok(())
}
