//! Which rules a Service needs: pure functions from what is wanted to chains.
//!
//! Chain names and rules are upstream's. A packet to a Service meets, in the nat table, `KUBE-SERVICES` (a rule for
//! each address and port; node ports by `KUBE-NODEPORTS` at its end), then `KUBE-SVC-…` (picks an endpoint at random),
//! then `KUBE-SEP-…` (rewrites the destination). What came from outside passes `KUBE-EXT-…` first. Where no endpoint
//! is, a rule in the filter table refuses.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::model::{Port, Service, Slice, backends};

mod base;
mod express;
mod port;
mod settings;

pub use base::{Base, Jump, base};
pub(crate) use base::{CANARY, CANARY_TABLES, NEVER_EMPTY, by_chain};
pub use express::{Way, express};
use port::PortPlan;
pub use settings::{LocalTraffic, NodePorts, Settings};
/// A chain that every Service has rules in. Rewriting it costs its size, so single rules come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hub {
    /// nat: addresses of Services.
    Services,
    /// nat: node ports.
    NodePorts,
    /// filter: addresses inside that nobody answers at.
    Refused,
    /// filter: addresses outside that nobody answers at.
    ExternalRefused,
    /// filter: health checks of load balancers.
    HealthChecks,
    /// filter: sources that a load balancer's address is closed to.
    Firewall,
}

impl Hub {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Services,
        Self::NodePorts,
        Self::Refused,
        Self::ExternalRefused,
        Self::HealthChecks,
        Self::Firewall,
    ];

    /// Its table.
    pub fn table(self) -> &'static str {
        match self {
            Self::Services | Self::NodePorts => "nat",
            Self::Refused | Self::ExternalRefused | Self::HealthChecks | Self::Firewall => "filter",
        }
    }

    /// Its name in that table.
    pub fn chain(self) -> &'static str {
        match self {
            Self::Services | Self::Refused => "KUBE-SERVICES",
            Self::NodePorts | Self::HealthChecks => "KUBE-NODEPORTS",
            Self::ExternalRefused => "KUBE-EXTERNAL-SERVICES",
            Self::Firewall => "KUBE-PROXY-FIREWALL",
        }
    }
}

/// A chain of the nat table with its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Its rules, in order.
    pub rules: Vec<String>,
}

/// Everything that one Service needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Chains of its own, in the nat table.
    pub chains: Vec<Chain>,
    /// Rules among those of others.
    pub hubs: Vec<(Hub, String)>,
    /// Flows that have no end of their own, for the removal of stale ones.
    pub udp: Vec<UdpPort>,
    /// What a load balancer is told of this node.
    pub health_check: Option<HealthCheck>,
    /// Ports without an endpoint here that a Local policy allows.
    pub stranded: Stranded,
}

/// Where a load balancer asks for a Service's endpoints on this node, and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port of this node.
    pub port: u16,
    /// Ready endpoints here.
    pub endpoints: usize,
}

/// Ports whose traffic finds no endpoint on this node, though there are some elsewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stranded {
    /// By the internal traffic policy.
    pub internal: u16,
    /// By the external traffic policy.
    pub external: u16,
}

/// A UDP port of a Service: where clients send to, and who may answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UdpPort {
    /// Addresses that clients send to.
    pub fronts: Vec<SocketAddr>,
    /// The number at any address of this node; 0 for none.
    pub node_port: u16,
    /// Endpoints that answer, though new clients may be sent to others.
    pub backends: Vec<SocketAddr>,
}

/// Decides the rules of the Service `namespace/name`.
pub fn plan<'a>(
    settings: &Settings,
    name: &str,
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
) -> Rules {
    let mut rules = Rules::default();
    for port in &service.ports {
        let id = port_id(name, port);
        let backends = backends(port, slices.clone(), settings.zone.as_deref());
        PortPlan {
            settings,
            service,
            port,
            id,
            backends: &backends,
        }
        .write(&mut rules);
    }
    let outside = service.outside.as_deref();
    let port = outside.map_or(0, |outside| outside.health_check_node_port);
    rules.health_check = (port != 0).then(|| HealthCheck {
        port,
        endpoints: ready_here(slices),
    });
    rules
}

/// `namespace/name:port`; without the port where that has no name.
fn port_id(name: &str, port: &Port) -> String {
    match &*port.name {
        "" => name.to_owned(),
        port => format!("{name}:{port}"),
    }
}

/// How many endpoints on this node are ready.
fn ready_here<'a>(slices: impl Iterator<Item = &'a Slice>) -> usize {
    let endpoints = slices.flat_map(|slice| &slice.endpoints);
    let here = endpoints.filter(|endpoint| endpoint.ready && endpoint.local);
    here.map(|endpoint| endpoint.ip).collect::<BTreeSet<_>>().len()
}

#[cfg(test)]
mod tests;
