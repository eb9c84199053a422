//! Services and endpoints as rules are made of them: small, since every node holds those of the whole cluster.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// The protocol's name in rules.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// Reads the name in API objects.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "TCP" | "" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

/// A Service that has an address of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The address inside of the cluster.
    pub cluster_ip: IpAddr,
    /// Its ports.
    pub ports: Box<[Port]>,
    /// Seconds that a client stays with its endpoint, where it does.
    pub affinity: Option<u32>,
    /// Outside traffic goes to endpoints of the node that it came to.
    pub external_local: bool,
    /// Inside traffic goes to endpoints of the node that it came from.
    pub internal_local: bool,
    /// The rarer parts.
    pub outside: Option<Box<Outside>>,
}

/// The ways into a Service from outside, but node ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outside {
    /// Addresses that an administrator routes to the nodes.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of a load balancer that passes packets on as they are.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Who may send to the load balancer's addresses; anybody when empty.
    pub source_ranges: Vec<IpNet>,
    /// Where the load balancer asks whether this node has endpoints; 0 for nowhere.
    pub health_check_node_port: u16,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name; empty where it is the only one.
    pub name: Box<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The number at the cluster's address.
    pub port: u16,
    /// The number at every node's addresses; 0 for none.
    pub node_port: u16,
}

/// An EndpointSlice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slice {
    /// The ports, by the names of the Service's.
    pub ports: Box<[SlicePort]>,
    /// The endpoints.
    pub endpoints: Box<[Endpoint]>,
}

/// Where the endpoints of a slice answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// The Service's name for the port.
    pub name: Box<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The number at the endpoint.
    pub port: u16,
}

/// One address behind a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub ip: IpAddr,
    /// New connections are welcome.
    pub ready: bool,
    /// It answers, ready or on its way out.
    pub serving: bool,
    /// It is on its way out.
    pub terminating: bool,
    /// It is on this node.
    pub local: bool,
    /// Whether it is meant for this node (`hints.forNodes`).
    pub for_node: Hint,
    /// The zones that it is meant for (`hints.forZones`); absent where it has no such hint.
    pub for_zones: Option<Box<[Box<str>]>>,
}

/// Whom an endpoint is meant for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hint {
    /// It does not say.
    #[default]
    Absent,
    /// For clients here.
    Here,
    /// For clients elsewhere.
    Elsewhere,
}

/// What is known of this node from its Node object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its zone (`topology.kubernetes.io/zone`).
    pub zone: Option<Box<str>>,
    /// The addresses of its pods (`spec.podCIDRs`).
    pub pod_range: Option<IpNet>,
    /// Its first address: of the kind `InternalIP`, or else `ExternalIP`.
    pub address: Option<IpAddr>,
    /// Whether load balancers may send to it: not while it is on its way out.
    pub eligible: bool,
}

impl Default for Node {
    /// A node that nothing is known of. It is taken to stay.
    fn default() -> Self {
        Self {
            zone: None,
            pod_range: None,
            address: None,
            eligible: true,
        }
    }
}

/// An endpoint of one port of a Service, with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    pub(crate) ready: bool,
    /// It answers, ready or not.
    pub(crate) serving: bool,
    pub(crate) draining: bool,
    pub(crate) local: bool,
    pub(crate) for_node: Hint,
    pub(crate) for_zone: Hint,
}

impl Endpoint {
    fn for_zone(&self, zone: Option<&str>) -> Hint {
        match &self.for_zones {
            None => Hint::Absent,
            Some(zones) if zone.is_some_and(|zone| zones.iter().any(|meant| **meant == *zone)) => Hint::Here,
            Some(_) => Hint::Elsewhere,
        }
    }
}

/// The endpoints of one port of a Service out of all its slices, in a fixed order, each once, for a node in a zone.
pub(crate) fn backends<'a>(port: &Port, slices: impl Iterator<Item = &'a Slice>, zone: Option<&str>) -> Vec<Backend> {
    let mut found: Vec<Backend> = Vec::new();
    for slice in slices {
        let matching = |candidate: &&SlicePort| candidate.name == port.name && candidate.protocol == port.protocol;
        for target in slice.ports.iter().filter(matching) {
            found.extend(slice.endpoints.iter().map(|endpoint| Backend {
                address: SocketAddr::new(endpoint.ip, target.port),
                ready: endpoint.ready,
                serving: endpoint.ready || endpoint.serving,
                draining: endpoint.serving && endpoint.terminating,
                local: endpoint.local,
                for_node: endpoint.for_node,
                for_zone: endpoint.for_zone(zone),
            }));
        }
    }
    found.sort();
    // While an endpoint moves from one slice to another it is in both: the one that is ready counts.
    found.dedup_by(|next, kept| {
        let same = next.address == kept.address;
        if same {
            kept.ready |= next.ready;
            kept.serving |= next.serving;
            kept.draining |= next.draining;
            kept.local |= next.local;
            kept.for_node = kept.for_node.max(next.for_node);
            kept.for_zone = kept.for_zone.max(next.for_zone);
        }
        same
    });
    found
}
