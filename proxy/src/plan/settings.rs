//! How this node treats Services, whatever they are.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::Node;

/// How this node treats Services, whatever they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How traffic of this node's pods is known.
    pub local: LocalTraffic,
    /// Every packet to a Service leaves with the node's address.
    pub masquerade_all: bool,
    /// The bit of the packet mark that means "masquerade".
    pub masquerade_bit: u8,
    /// Node ports answer at 127.0.0.1 too.
    pub localhost_node_ports: bool,
    /// Addresses of this node at which node ports answer.
    pub node_ports: NodePorts,
    /// This node's first address, once it is known.
    pub node_address: Option<IpAddr>,
    /// Where Services get their addresses from: an address in it that no Service has is refused at once.
    pub service_ranges: Vec<IpNet>,
    /// The zone that this node is in, for endpoints that are meant for some zones.
    pub zone: Option<Box<str>>,
    /// Packets that connection tracking takes for invalid pass (`conntrack.tcpBeLiberal`).
    pub pass_invalid: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            local: LocalTraffic::Unknown,
            masquerade_all: false,
            masquerade_bit: 14,
            localhost_node_ports: true,
            node_ports: NodePorts::Any,
            node_address: None,
            service_ranges: Vec::new(),
            zone: None,
            pass_invalid: false,
        }
    }
}

impl Settings {
    /// The settings on a node, and in a cluster with these ranges of Services.
    pub fn on(&self, node: &Node, service_ranges: &[IpNet]) -> Self {
        let local = match &self.local {
            LocalTraffic::NodeRange => node.pod_range.map_or(LocalTraffic::NodeRange, LocalTraffic::Range),
            other => other.clone(),
        };
        let node_ports = match &self.node_ports {
            NodePorts::At { ranges, primary: true } => NodePorts::At {
                ranges: ranges.iter().copied().chain(node.address.map(IpNet::from)).collect(),
                primary: false,
            },
            other => other.clone(),
        };
        Self {
            local,
            node_ports,
            node_address: node.address,
            service_ranges: service_ranges.to_vec(),
            zone: node.zone.clone(),
            ..self.clone()
        }
    }
}

/// At which addresses of this node node ports answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePorts {
    /// All.
    Any,
    /// Some.
    At {
        /// Those in these ranges.
        ranges: Vec<IpNet>,
        /// The node's first one, once it is known.
        primary: bool,
    },
}

impl NodePorts {
    /// Whether 127.0.0.1 is among them.
    pub(crate) fn have_loopback(&self) -> bool {
        match self {
            Self::Any => true,
            Self::At { ranges, .. } => ranges.iter().any(|range| range.contains(&IpAddr::from([127, 0, 0, 1]))),
        }
    }

    /// Whether an address is among them.
    pub(crate) fn contain(&self, ip: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::At { ranges, .. } => ranges.iter().any(|range| range.contains(&ip)),
        }
    }
}

/// How packets of pods are told from those of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalTraffic {
    /// They are not.
    Unknown,
    /// By their source.
    Range(IpNet),
    /// By their source, in the range of this node's pods: not, until that is known.
    NodeRange,
    /// By the bridge that they come from.
    Bridge(String),
    /// By the start of the name of the interface that they come from.
    InterfacePrefix(String),
}

impl LocalTraffic {
    pub(super) fn pods_match(&self) -> Option<String> {
        match self {
            Self::Unknown | Self::NodeRange => None,
            Self::Range(range) => Some(format!("-s {range} ")),
            Self::Bridge(name) => Some(format!("-i {name} ")),
            Self::InterfacePrefix(prefix) => Some(format!("-i {prefix}+ ")),
        }
    }

    pub(super) fn others_match(&self) -> Option<String> {
        self.pods_match().map(|rule| format!("! {rule}"))
    }
}
