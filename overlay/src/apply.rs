//! Makes the machine match a plan. Each part is looked at first, and only differences are written.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use ipnet::IpNet;
use skiff_net::iptables::{self, Family, Iptables, Restore};
use skiff_net::netlink::{self, Netlink, Protocol, Route};
use skiff_net::sysctl;
use tracing::warn;

use crate::{Config, Plan, conflist};

/// The number by which our routes are found again; no other program's in iproute2's list.
const PROTOCOL: Protocol = Protocol(75);
const CHAIN: &str = "SKIFF-POSTROUTING";
const JUMP: &str = "-m comment --comment \"skiff: pods to the outside\" -j SKIFF-POSTROUTING";

/// Why the machine does not match the plan.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not forward.
    #[error("cannot let the kernel forward packets of pods")]
    Forwarding(#[source] sysctl::Error),
    /// Routes cannot be read.
    #[error("cannot read the routes of this node")]
    ReadRoutes(#[source] netlink::Error),
    /// A route cannot be changed.
    #[error("cannot route the pods of another node: is it on a segment of this node?")]
    Route(#[source] netlink::Error),
    /// The masquerade cannot be set up.
    #[error("cannot set up the masquerade of pods")]
    Masquerade(#[source] iptables::Error),
    /// The CNI configuration cannot be written.
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

/// Applies a plan. Returns whether something had to be changed.
pub(crate) async fn apply(config: &Config, plan: Plan) -> Result<bool, Error> {
    let config = config.clone();
    tokio::task::spawn_blocking(move || apply_now(&config, &plan))
        .await
        .map_err(Error::Died)?
}

fn apply_now(config: &Config, plan: &Plan) -> Result<bool, Error> {
    let mut changed = forwarding()?;
    // The routes that can be set are, whatever becomes of the others: a node off the segment must not cut the rest off.
    let routes = routes(plan);
    if !plan.own.is_empty() {
        changed |= masquerade(plan)?;
        // Last: it tells the runtime that pods may start.
        let folder = || config.cni_config_dir.clone();
        changed |= conflist::write(config, &plan.own).map_err(|source| Error::Conflist {
            folder: folder(),
            source,
        })?;
    }
    Ok(changed | routes?)
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

fn routes(plan: &Plan) -> Result<bool, Error> {
    let mut netlink = Netlink::open().map_err(Error::ReadRoutes)?;
    let found = netlink.routes().map_err(Error::ReadRoutes)?;
    let mut present: BTreeMap<IpNet, Route> = found
        .into_iter()
        .filter(|route| route.protocol == PROTOCOL)
        .map(|route| (route.destination, route))
        .collect();
    let mut changed = false;
    let mut failure = None;
    for (range, gateway) in &plan.routes {
        match present.remove(range) {
            Some(route) if route.gateway == Some(*gateway) => continue,
            _ => {}
        }
        let mut route = Route::through(*range, *gateway);
        route.protocol = PROTOCOL;
        match netlink.replace_route(&route) {
            Ok(()) => changed = true,
            Err(error) => failure = Some(error),
        }
    }
    for stale in present.values() {
        match netlink.delete_route(stale) {
            Ok(gone) => changed |= gone,
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(changed), |error| Err(Error::Route(error)))
}

/// One chain of our own: what stays in the cluster keeps its address, the rest leaves with this node's.
fn masquerade(plan: &Plan) -> Result<bool, Error> {
    let mut changed = false;
    for (family, multicast) in [(Family::V4, "224.0.0.0/4"), (Family::V6, "ff00::/8")] {
        let ours = |net: &&IpNet| net.addr().is_ipv4() == (family == Family::V4);
        let own: Vec<_> = plan.own.iter().filter(ours).collect();
        if own.is_empty() {
            continue;
        }
        let mut rules: Vec<String> = plan
            .unmasked
            .iter()
            .filter(ours)
            .map(|range| format!("-d {range} -j RETURN"))
            .collect();
        rules.push(format!("-d {multicast} -j RETURN"));
        rules.extend(
            own.iter()
                .map(|range| format!("-s {} -j MASQUERADE --random-fully", range.trunc())),
        );
        changed |= ensure(family, &rules).map_err(Error::Masquerade)?;
    }
    Ok(changed)
}

fn ensure(family: Family, rules: &[String]) -> Result<bool, iptables::Error> {
    let programs = Iptables::detect(family)?;
    let present = programs.rules("nat", CHAIN)?;
    let jumps = programs.rules("nat", "POSTROUTING")?.unwrap_or_default();
    let jumped = jumps.iter().any(|rule| rule.ends_with(&format!("-j {CHAIN}")));
    let mut changes = Restore::new();
    let nat = changes.table("nat");
    if present.as_deref() != Some(rules) {
        nat.chain(CHAIN);
        rules.iter().for_each(|rule| nat.append(CHAIN, rule));
    }
    if !jumped {
        nat.append("POSTROUTING", JUMP);
    }
    programs.apply(&changes)?;
    Ok(!changes.is_empty())
}
