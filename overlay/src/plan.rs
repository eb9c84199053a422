//! What a node's network should be, decided from the Nodes alone.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::node::NodeNetwork;
use crate::{Config, same_family};

/// The wanted state of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The ranges of this node's own pods; none until the cluster has given it some.
    pub own: Vec<IpNet>,
    /// The other nodes' pod ranges, and where they are reached.
    pub routes: BTreeMap<IpNet, IpAddr>,
    /// Where pods' packets go with their own address: pods and nodes.
    pub unmasked: Vec<IpNet>,
}

/// Decides the network of this node.
pub fn plan(config: &Config, nodes: &BTreeMap<String, NodeNetwork>) -> Plan {
    let own = nodes
        .get(&config.node_name)
        .map(|node| node.pod_ranges.clone())
        .unwrap_or_default();
    let mut routes = BTreeMap::new();
    let mut unmasked = config.cluster_cidr.clone();
    for (name, node) in nodes {
        unmasked.extend(node.addresses.iter().copied().map(IpNet::from));
        unmasked.extend(&node.pod_ranges);
        if *name == config.node_name {
            continue;
        }
        for range in node.pod_ranges.iter().map(IpNet::trunc) {
            let address = node.addresses.iter().find(|address| same_family(range, **address));
            // A range that overlaps ours would take our own pods' packets away.
            let clashes = own.iter().any(|own| own.contains(&range) || range.contains(own));
            if let (Some(address), false) = (address, clashes) {
                routes.insert(range, *address);
            }
        }
    }
    Plan {
        own,
        routes,
        unmasked: without_covered(unmasked),
    }
}

/// Sorted, without ranges that lie in others.
fn without_covered(mut ranges: Vec<IpNet>) -> Vec<IpNet> {
    ranges.sort_by_key(|range| (range.prefix_len(), *range));
    let mut kept: Vec<IpNet> = Vec::new();
    for range in ranges {
        if !kept.iter().any(|wider| wider.contains(&range)) {
            kept.push(range);
        }
    }
    kept.sort();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(range: &str, address: &str) -> NodeNetwork {
        NodeNetwork {
            pod_ranges: range.parse().into_iter().collect(),
            addresses: address.parse().into_iter().collect(),
        }
    }

    fn nodes(list: &[(&str, &str, &str)]) -> BTreeMap<String, NodeNetwork> {
        list.iter()
            .map(|(name, range, address)| ((*name).to_owned(), node(range, address)))
            .collect()
    }

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn every_other_node_is_routed_to() {
        let mut config = Config::new("a");
        config.cluster_cidr = nets(&["10.244.0.0/16"]);
        let known = nodes(&[
            ("a", "10.244.0.0/24", "172.30.0.1"),
            ("b", "10.244.1.0/24", "172.30.0.2"),
            ("no address", "10.244.2.0/24", ""),
            ("no range", "", "172.30.0.4"),
            ("clash", "10.244.0.0/24", "172.30.0.5"),
        ]);
        let plan = plan(&config, &known);
        assert_eq!(plan.own, nets(&["10.244.0.0/24"]));
        assert_eq!(
            plan.routes,
            BTreeMap::from([("10.244.1.0/24".parse().unwrap(), "172.30.0.2".parse().unwrap())])
        );
        let wanted = [
            "10.244.0.0/16",
            "172.30.0.1/32",
            "172.30.0.2/32",
            "172.30.0.4/32",
            "172.30.0.5/32",
        ];
        assert_eq!(plan.unmasked, nets(&wanted));
    }

    #[test]
    fn a_node_without_a_range_routes_already() {
        let plan = plan(
            &Config::new("a"),
            &nodes(&[("a", "", "172.30.0.1"), ("b", "10.244.1.0/24", "172.30.0.2")]),
        );
        assert!(plan.own.is_empty());
        assert_eq!(plan.routes.len(), 1);
    }

    #[test]
    fn an_unknown_cluster_is_an_empty_plan() {
        assert_eq!(super::plan(&Config::new("a"), &BTreeMap::new()), Plan::default());
    }
}
