//! Routes to the other nodes' pods.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use skiff_net::netlink::{Netlink, Route};

use super::{Error, PROTOCOL, merge};
use crate::plan::{Plan, Via, difference};

/// Where a route leads, as far as it is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hop {
    gateway: Option<IpAddr>,
    through_tunnel: bool,
}

/// Makes the routes match the plan; those through the tunnel wait until it has a link.
pub(super) fn ensure(netlink: &mut Netlink, plan: &Plan, tunnel: Option<u32>) -> Result<bool, Error> {
    let found = netlink.routes().map_err(Error::ReadRoutes)?;
    let present: BTreeMap<IpNet, Route> = found
        .into_iter()
        .filter(|route| route.protocol == PROTOCOL)
        .map(|route| (route.destination, route))
        .collect();
    let hops = present.iter().map(|(range, route)| {
        let hop = Hop {
            gateway: route.gateway,
            through_tunnel: tunnel.is_some() && route.link == tunnel,
        };
        (*range, hop)
    });
    let difference = difference(&wanted(plan), &hops.collect());
    let written = difference.write.into_iter().filter_map(|(range, hop)| {
        let mut route = Route::through(range, hop.gateway?);
        route.protocol = PROTOCOL;
        if hop.through_tunnel {
            route.link = Some(tunnel?);
            route.on_link = true;
        }
        Some(netlink.replace_route(&route).map(|()| true).map_err(Error::Route))
    });
    let written = merge(written);
    let stale = difference.remove.iter().filter_map(|(range, _)| present.get(range));
    let removed = merge(stale.map(|route| netlink.delete_route(route).map_err(Error::Route)));
    merge([written, removed])
}

fn wanted(plan: &Plan) -> BTreeMap<IpNet, Hop> {
    let hop = |via: &Via| match via {
        Via::Node(address) => Hop {
            gateway: Some(*address),
            through_tunnel: false,
        },
        Via::Tunnel(inside) => Hop {
            gateway: Some((*inside).into()),
            through_tunnel: true,
        },
    };
    plan.routes.iter().map(|(range, via)| (*range, hop(via))).collect()
}
