//! Makes the machine match a plan. Each part is looked at first, and only differences are written.
//!
//! A part that fails keeps none of the others back: a node that cannot be reached must not cut the rest off.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use skiff_net::iptables;
use skiff_net::netlink::{self, Netlink, Protocol};
use skiff_net::sysctl;
use tracing::warn;

use crate::node::NodeNetwork;
use crate::plan::{Interface, Plan, plan};
use crate::{Config, TUNNEL_LINK, conflist};

mod routes;
mod rules;
mod tunnel;

/// The number by which our routes are found again; no other program's in iproute2's list.
pub(crate) const PROTOCOL: Protocol = Protocol(75);

/// Why the machine does not match the plan.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not forward.
    #[error("cannot let the kernel forward packets of pods")]
    Forwarding(#[source] sysctl::Error),
    /// Links and addresses cannot be read.
    #[error("cannot read the interfaces of this node")]
    ReadInterfaces(#[source] netlink::Error),
    /// Routes cannot be read.
    #[error("cannot read the routes of this node")]
    ReadRoutes(#[source] netlink::Error),
    /// A route cannot be changed.
    #[error("cannot route the pods of another node: is it on a segment of this node, and the link to it up?")]
    Route(#[source] netlink::Error),
    /// The tunnel or one of its entries cannot be changed.
    #[error(
        "cannot set up the tunnel {TUNNEL_LINK} to nodes of other segments: has the kernel VXLAN, and is its port free?"
    )]
    Tunnel(#[source] netlink::Error),
    /// The packet rules cannot be set or removed.
    #[error("cannot set the packet rules of pods (masquerade, forwarding)")]
    Rules(#[source] iptables::Error),
    /// The CNI configuration cannot be written or removed.
    #[error("cannot write the CNI configuration into {folder}")]
    Conflist {
        /// Its folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The application was cut off.
    #[error("the application of the plan died")]
    Died(#[source] tokio::task::JoinError),
}

/// How much of the machine is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Links and routes: what a change in the kernel can have touched.
    Links,
    /// Rules, settings and the CNI configuration too.
    Everything,
}

/// What was to be, and whether it came to be: `Ok(true)` when something had to be changed for it.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) plan: Plan,
    pub(crate) result: Result<bool, Error>,
}

/// Plans by what the machine has, and applies the plan.
pub(crate) async fn apply(config: &Config, nodes: BTreeMap<String, NodeNetwork>, extent: Extent) -> Applied {
    let config = config.clone();
    let work = move || match interfaces(&config) {
        Ok(interfaces) => {
            let plan = plan(&config, &nodes, &interfaces);
            let result = apply_now(&config, &plan, extent);
            Applied { plan, result }
        }
        Err(error) => Applied {
            plan: Plan::default(),
            result: Err(Error::ReadInterfaces(error)),
        },
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Applied {
        plan: Plan::default(),
        result: Err(Error::Died(error)),
    })
}

/// Removes all that was ever made. Returns whether there was something.
///
/// Pods keep their links and addresses: those are the CNI plugins'.
///
/// # Errors
/// When a part could not be removed; the others are all the same.
pub async fn clean(config: &Config) -> Result<bool, Error> {
    let config = config.clone();
    let work = move || {
        let nothing = Plan::default();
        merge([
            // First: no pod is to be started with what goes.
            conflist::remove(&config).map_err(|source| conflist_error(&config, source)),
            network(&nothing),
            rules::remove().map_err(Error::Rules),
        ])
    };
    tokio::task::spawn_blocking(work).await.map_err(Error::Died)?
}

/// Addresses that other nodes can be reached from: not those of loopback, of pods, or of the tunnel.
fn interfaces(config: &Config) -> Result<Vec<Interface>, netlink::Error> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let addresses = netlink.addresses(None)?;
    let usable = addresses.iter().filter(|address| !address.net.addr().is_loopback());
    Ok(usable
        .filter_map(|address| {
            let link = links.iter().find(|link| link.index == address.index)?;
            let ours = [config.bridge.as_str(), TUNNEL_LINK].contains(&link.name.as_str());
            (!ours).then_some(Interface {
                index: link.index,
                mtu: link.mtu,
                net: address.net,
            })
        })
        .collect())
}

fn apply_now(config: &Config, plan: &Plan, extent: Extent) -> Result<bool, Error> {
    if extent == Extent::Links {
        return network(plan);
    }
    let mut parts = vec![forwarding(), network(plan)];
    if !plan.own.is_empty() {
        let rules = rules::ensure(plan).map_err(Error::Rules);
        let ready = rules.is_ok();
        parts.push(rules);
        // Last: it tells the runtime that pods may start.
        if let Some(mtu) = plan.mtu.filter(|_| ready) {
            let written = conflist::write(config, &plan.own, mtu, plan.route_mtu);
            parts.push(written.map_err(|source| conflist_error(config, source)));
        }
    }
    merge(parts)
}

/// The tunnel before the routes that go through it; stale entries after the routes that went through them.
fn network(plan: &Plan) -> Result<bool, Error> {
    let mut netlink = Netlink::open().map_err(Error::ReadRoutes)?;
    let tunnel = tunnel::ensure(&mut netlink, plan.tunnel.as_ref()).map_err(Error::Tunnel);
    let link = tunnel.as_ref().ok().and_then(|(link, _)| *link);
    let routes = routes::ensure(&mut netlink, plan, link);
    let pruned = tunnel::prune(&mut netlink, plan.tunnel.as_ref()).map_err(Error::Tunnel);
    merge([tunnel.map(|(_, changed)| changed), routes, pruned])
}

fn forwarding() -> Result<bool, Error> {
    let changed = sysctl::set("net.ipv4.ip_forward", "1").map_err(Error::Forwarding)?;
    // Without it, what goes from pod to pod over the bridge would get past the rules of Services.
    match sysctl::set("net.bridge.bridge-nf-call-iptables", "1") {
        Ok(also) => Ok(changed | also),
        Err(sysctl::Error::Absent { name }) => {
            warn!(
                "the kernel has no {name}: load br_netfilter, or pods of one node cannot reach each other by Services"
            );
            Ok(changed)
        }
        Err(error) => Err(Error::Forwarding(error)),
    }
}

fn conflist_error(config: &Config, source: io::Error) -> Error {
    let folder = config.cni_config_dir.clone();
    Error::Conflist { folder, source }
}

/// Whether one of the parts changed something; the first error, when there is one.
fn merge<E>(parts: impl IntoIterator<Item = Result<bool, E>>) -> Result<bool, E> {
    let mut changed = Ok(false);
    for part in parts {
        changed = match (changed, part) {
            (Ok(before), Ok(now)) => Ok(before | now),
            (Err(first), _) | (Ok(_), Err(first)) => Err(first),
        };
    }
    changed
}
