//! The part of a Node object that routes are made of. The rest is not even decoded.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;
use kube::Resource;
use kube::core::{ClusterResourceScope, ObjectMeta};
use serde::Deserialize;

/// A Node as this component reads it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    metadata: ObjectMeta,
    spec: Spec,
    status: Status,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: String,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Status {
    addresses: Vec<Address>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Address {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

/// Where a node's pods are, and how the node is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeNetwork {
    /// The ranges of its pods.
    pub pod_ranges: Vec<IpNet>,
    /// Its internal addresses.
    pub addresses: Vec<IpAddr>,
}

impl Node {
    /// The node's name and network. What is no address or range is left out: it cannot be routed to.
    pub fn network(&self) -> (String, NodeNetwork) {
        let mut texts = self.spec.pod_cidrs.clone();
        if texts.is_empty() {
            texts.push(self.spec.pod_cidr.clone());
        }
        let internal = self
            .status
            .addresses
            .iter()
            .filter(|address| address.kind == "InternalIP");
        let network = NodeNetwork {
            pod_ranges: texts.iter().filter_map(|text| text.parse().ok()).collect(),
            addresses: internal.filter_map(|address| address.address.parse().ok()).collect(),
        };
        (self.metadata.name.clone().unwrap_or_default(), network)
    }
}

impl Resource for Node {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Node".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "nodes".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_reduced_to_its_network() {
        let node: Node = serde_json::from_str(
            r#"{"metadata":{"name":"node-1"},"spec":{"podCIDR":"10.244.0.0/24","podCIDRs":["10.244.0.0/24","junk"]},
                "status":{"addresses":[{"type":"Hostname","address":"node-1"},{"type":"InternalIP","address":"172.30.0.11"}]}}"#,
        )
        .unwrap();
        let (name, network) = node.network();
        assert_eq!(name, "node-1");
        assert_eq!(network.pod_ranges, ["10.244.0.0/24".parse().unwrap()]);
        assert_eq!(network.addresses, ["172.30.0.11".parse::<IpAddr>().unwrap()]);
        let bare: Node = serde_json::from_str(r#"{"metadata":{"name":"node-2"}}"#).unwrap();
        assert_eq!(bare.network().1, NodeNetwork::default());
    }
}
