//! What a node's network should be, decided from the Nodes and from this machine's interfaces.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use skiff_net::netlink::Mac;

use crate::node::NodeNetwork;
use crate::{Config, Mode, same_family};

/// What VXLAN puts around a packet: Ethernet, IPv4, UDP and its own header.
const OVERHEAD: u32 = 50;

/// An address of this machine, as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface {
    /// The link's number.
    pub index: u32,
    /// The largest packet of the link.
    pub mtu: u32,
    /// The address, with the segment that it is on.
    pub net: IpNet,
}

/// The wanted state of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The ranges of this node's own pods; none until the cluster has given it some.
    pub own: Vec<IpNet>,
    /// The link that other nodes reach this one by; none when its address is on no interface.
    pub underlay: Option<u32>,
    /// The largest packet of pods' links.
    pub mtu: Option<u32>,
    /// The largest packet of theirs that leaves the node, where that is less: there is a tunnel.
    pub route_mtu: Option<u32>,
    /// The other nodes' pod ranges, and where they are reached.
    pub routes: BTreeMap<IpNet, Via>,
    /// The VXLAN link, where some node is behind it.
    pub tunnel: Option<Tunnel>,
    /// Where pods' packets go with their own address: pods and nodes.
    pub unmasked: Vec<IpNet>,
}

/// How a pod range is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// Its node is on a segment of this one.
    Node(IpAddr),
    /// Its node is behind the tunnel, under this address there.
    Tunnel(Ipv4Addr),
}

/// The VXLAN link of a node. All of it follows from the Nodes, so that no node has to publish anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// Which address of this node carries the packets.
    pub local: Ipv4Addr,
    /// The link's hardware address.
    pub mac: Mac,
    /// The link's address: packets of the node itself have it as their sender.
    pub address: Ipv4Net,
    /// The largest packet inside; while it is unknown the link keeps the one that it has.
    pub mtu: Option<u32>,
    /// The nodes behind it, by their address in there.
    pub peers: BTreeMap<Ipv4Addr, Peer>,
}

/// A node behind the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The hardware address of its VXLAN link.
    pub mac: Mac,
    /// The node's address outside.
    pub node: Ipv4Addr,
}

/// Decides the network of this node.
pub fn plan(config: &Config, nodes: &BTreeMap<String, NodeNetwork>, interfaces: &[Interface]) -> Plan {
    if config.mode == Mode::None {
        return Plan::default();
    }
    let this = nodes.get(&config.node_name).cloned().unwrap_or_default();
    let underlay = this
        .addresses
        .iter()
        .find_map(|address| interfaces.iter().find(|interface| interface.net.addr() == *address));
    let inner = underlay.map(|link| link.mtu.saturating_sub(OVERHEAD));
    let mut plan = Plan {
        mtu: config.mtu.or(match config.mode {
            Mode::Vxlan => inner,
            // All ports of a bridge are alike, whenever they were made; what a tunnel takes is the routes' affair.
            _ => underlay.map(|link| link.mtu),
        }),
        underlay: underlay.map(|link| link.index),
        tunnel: tunnel(&this, inner),
        unmasked: config.cluster_cidr.clone(),
        own: this.pod_ranges,
        ..Plan::default()
    };
    for (name, node) in nodes {
        plan.unmasked.extend(node.addresses.iter().copied().map(IpNet::from));
        plan.unmasked.extend(&node.pod_ranges);
        if *name != config.node_name {
            reach(&mut plan, config.mode, node, interfaces);
        }
    }
    plan.tunnel = plan.tunnel.filter(|tunnel| !tunnel.peers.is_empty());
    plan.route_mtu = inner.filter(|inner| plan.tunnel.is_some() && plan.mtu.is_some_and(|mtu| mtu > *inner));
    plan.unmasked = without_covered(plan.unmasked);
    plan
}

/// This node's end of the tunnel, with nobody behind it yet; none until it has a range to be named after.
fn tunnel(this: &NodeNetwork, inner: Option<u32>) -> Option<Tunnel> {
    let range = first_v4(&this.pod_ranges)?;
    Some(Tunnel {
        local: this.addresses.iter().find_map(as_v4)?,
        mac: mac(range),
        address: range.network().into(),
        mtu: inner,
        peers: BTreeMap::new(),
    })
}

/// Adds the way to one other node's pods.
fn reach(plan: &mut Plan, mode: Mode, node: &NodeNetwork, interfaces: &[Interface]) {
    for range in node.pod_ranges.iter().map(IpNet::trunc) {
        // A range that overlaps ours would take our own pods' packets away.
        let clashes = plan.own.iter().any(|own| own.contains(&range) || range.contains(own));
        let Some(address) = node.addresses.iter().find(|address| same_family(range, **address)) else {
            continue;
        };
        if clashes {
            continue;
        }
        let neighbour = || {
            interfaces
                .iter()
                .any(|interface| interface.net.contains(address) && !is_host(interface.net))
        };
        match (range, address) {
            // IPv6 goes directly; a tunnel for it comes with dual stack.
            (IpNet::V4(range), IpAddr::V4(address)) if mode == Mode::Vxlan || (mode == Mode::Auto && !neighbour()) => {
                // Without an end of its own the node has no pods yet that would miss the way.
                if let Some(tunnel) = &mut plan.tunnel {
                    let inside = range.network();
                    let mac = mac(range);
                    tunnel.peers.insert(inside, Peer { mac, node: *address });
                    plan.routes.insert(range.into(), Via::Tunnel(inside));
                }
            }
            _ => {
                plan.routes.insert(range, Via::Node(*address));
            }
        }
    }
}

/// The hardware address of the end of the tunnel that has this range: no two nodes have one range, so none is given
/// twice. `0e` says that it is made up, and differs from what the bridge plugin makes up.
fn mac(range: Ipv4Net) -> Mac {
    let [a, b, c, d] = range.network().octets();
    Mac([0x0e, 0x73, a, b, c, d])
}

fn first_v4(ranges: &[IpNet]) -> Option<Ipv4Net> {
    ranges.iter().find_map(|range| match range {
        IpNet::V4(range) => Some(*range),
        IpNet::V6(_) => None,
    })
}

fn as_v4(address: &IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    }
}

/// An address with no segment around it.
fn is_host(net: IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
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

/// What makes one table into another.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Difference<K, V> {
    /// Entries that are missing or other than wanted.
    pub(crate) write: Vec<(K, V)>,
    /// Entries that nobody wants.
    pub(crate) remove: Vec<(K, V)>,
}

/// Compares what is wanted with what was found, entry by entry.
pub(crate) fn difference<K: Ord + Clone, V: PartialEq + Clone>(
    wanted: &BTreeMap<K, V>,
    found: &BTreeMap<K, V>,
) -> Difference<K, V> {
    let pair = |(key, value): (&K, &V)| (key.clone(), value.clone());
    Difference {
        write: wanted
            .iter()
            .filter(|(key, value)| found.get(key) != Some(value))
            .map(pair)
            .collect(),
        remove: found
            .iter()
            .filter(|(key, _)| !wanted.contains_key(key))
            .map(pair)
            .collect(),
    }
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

    fn lan(net: &str, mtu: u32) -> [Interface; 1] {
        [Interface {
            index: 7,
            mtu,
            net: net.parse().unwrap(),
        }]
    }

    fn config(mode: Mode) -> Config {
        Config {
            mode,
            ..Config::new("a")
        }
    }

    /// The routes in short: `range address` directly, `range vxlan` through the tunnel.
    fn routes(plan: &Plan) -> Vec<String> {
        let short = |(range, via): (&IpNet, &Via)| match via {
            Via::Node(address) => format!("{range} {address}"),
            Via::Tunnel(_) => format!("{range} vxlan"),
        };
        plan.routes.iter().map(short).collect()
    }

    #[test]
    fn every_other_node_is_routed_to() {
        let mut config = config(Mode::Auto);
        config.cluster_cidr = nets(&["10.244.0.0/16"]);
        let known = nodes(&[
            ("a", "10.244.0.0/24", "172.30.0.1"),
            ("b", "10.244.1.0/24", "172.30.0.2"),
            ("no address", "10.244.2.0/24", ""),
            ("no range", "", "172.30.0.4"),
            ("clash", "10.244.0.0/24", "172.30.0.5"),
        ]);
        let plan = plan(&config, &known, &lan("172.30.0.1/24", 1500));
        assert_eq!(plan.own, nets(&["10.244.0.0/24"]));
        assert_eq!(plan.underlay, Some(7));
        assert_eq!(routes(&plan), ["10.244.1.0/24 172.30.0.2"]);
        assert_eq!(plan.tunnel, None);
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
    fn the_mode_and_the_segment_say_which_way() {
        type Case<'a> = (Mode, &'a str, [&'a str; 2], [Option<u32>; 2]);
        let cases: [Case<'_>; 6] = [
            (
                Mode::Auto,
                "172.30.0.1/24",
                ["10.244.1.0/24 172.30.0.2", "10.244.2.0/24 vxlan"],
                [Some(1500), Some(1450)],
            ),
            (
                Mode::Auto,
                "172.30.0.1/16",
                ["10.244.1.0/24 172.30.0.2", "10.244.2.0/24 172.30.1.3"],
                [Some(1500), None],
            ),
            // An address without a segment, as some clouds give.
            (
                Mode::Auto,
                "172.30.0.1/32",
                ["10.244.1.0/24 vxlan", "10.244.2.0/24 vxlan"],
                [Some(1500), Some(1450)],
            ),
            (
                Mode::Vxlan,
                "172.30.0.1/24",
                ["10.244.1.0/24 vxlan", "10.244.2.0/24 vxlan"],
                [Some(1450), None],
            ),
            (
                Mode::Direct,
                "172.30.0.1/24",
                ["10.244.1.0/24 172.30.0.2", "10.244.2.0/24 172.30.1.3"],
                [Some(1500), None],
            ),
            // The node's address is on no interface: directly or not at all, and pods must wait.
            (
                Mode::Direct,
                "192.0.2.1/24",
                ["10.244.1.0/24 172.30.0.2", "10.244.2.0/24 172.30.1.3"],
                [None, None],
            ),
        ];
        let known = nodes(&[
            ("a", "10.244.0.0/24", "172.30.0.1"),
            ("b", "10.244.1.0/24", "172.30.0.2"),
            ("c", "10.244.2.0/24", "172.30.1.3"),
        ]);
        for (mode, address, wanted, sizes) in cases {
            let plan = plan(&config(mode), &known, &lan(address, 1500));
            assert_eq!(routes(&plan), wanted, "{mode:?} {address}");
            assert_eq!([plan.mtu, plan.route_mtu], sizes, "{mode:?} {address}");
            let tunnelled = wanted.iter().any(|route| route.ends_with("vxlan"));
            assert_eq!(plan.tunnel.is_some(), tunnelled, "{mode:?} {address}");
        }
        let nothing = plan(&config(Mode::None), &known, &lan("172.30.0.1/24", 1500));
        assert_eq!(nothing, Plan::default());

        // The node lost its address: what is there stays, so that nothing of pods leaves by another way.
        let lost = plan(&config(Mode::Vxlan), &known, &[]);
        assert_eq!((lost.mtu, lost.underlay), (None, None));
        assert_eq!(
            lost.tunnel.map(|tunnel| (tunnel.mtu, tunnel.peers.len())),
            Some((None, 2))
        );
    }

    #[test]
    fn a_tunnel_has_an_entry_for_each_node_behind_it() {
        let known = nodes(&[
            ("a", "10.244.0.0/24", "172.30.0.1"),
            ("b", "10.244.1.0/24", "172.30.0.2"),
            ("c", "10.244.2.0/24", "172.30.1.3"),
            ("d", "10.244.3.0/24", "172.30.2.4"),
        ]);
        let plan = plan(&config(Mode::Auto), &known, &lan("172.30.0.1/24", 9000));
        let peer = |mac: &str, node: &str| Peer {
            mac: mac.parse().unwrap(),
            node: node.parse().unwrap(),
        };
        let wanted = Tunnel {
            local: "172.30.0.1".parse().unwrap(),
            mac: "0e:73:0a:f4:00:00".parse().unwrap(),
            address: "10.244.0.0/32".parse().unwrap(),
            mtu: Some(8950),
            peers: BTreeMap::from([
                ("10.244.2.0".parse().unwrap(), peer("0e:73:0a:f4:02:00", "172.30.1.3")),
                ("10.244.3.0".parse().unwrap(), peer("0e:73:0a:f4:03:00", "172.30.2.4")),
            ]),
        };
        assert_eq!(plan.tunnel, Some(wanted));
    }

    #[test]
    fn a_configured_mtu_wins() {
        let mut config = config(Mode::Auto);
        config.mtu = Some(1300);
        let known = nodes(&[("a", "10.244.0.0/24", "172.30.0.1")]);
        assert_eq!(plan(&config, &known, &lan("172.30.0.1/24", 1500)).mtu, Some(1300));
    }

    #[test]
    fn a_node_without_a_range_routes_already() {
        let known = nodes(&[
            ("a", "", "172.30.0.1"),
            ("b", "10.244.1.0/24", "172.30.0.2"),
            ("c", "10.244.2.0/24", "172.30.1.3"),
        ]);
        let plan = plan(&config(Mode::Auto), &known, &lan("172.30.0.1/24", 1500));
        assert!(plan.own.is_empty());
        // The tunnel's end is named after the range that the node does not have yet.
        assert_eq!(routes(&plan), ["10.244.1.0/24 172.30.0.2"]);
    }

    #[test]
    fn an_unknown_cluster_is_an_empty_plan() {
        assert_eq!(plan(&config(Mode::Auto), &BTreeMap::new(), &[]), Plan::default());
    }

    #[test]
    fn only_differences_are_written() {
        let table = |text: &str| -> BTreeMap<String, String> {
            let entries = text.split_whitespace().filter_map(|entry| entry.split_once('='));
            entries.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
        };
        let cases = [
            ("", "", "", ""),
            ("a=1 b=2", "a=1 b=2", "", ""),
            ("a=1 b=2", "a=1", "b=2", ""),
            ("a=1", "a=9", "a=1", ""),
            ("a=1", "a=1 b=2", "", "b=2"),
            ("a=1 c=3", "a=2 b=2", "a=1 c=3", "b=2"),
        ];
        for (wanted, found, write, remove) in cases {
            let difference = difference(&table(wanted), &table(found));
            let pairs = |text| table(text).into_iter().collect::<Vec<_>>();
            assert_eq!(difference.write, pairs(write), "{wanted} / {found}");
            assert_eq!(difference.remove, pairs(remove), "{wanted} / {found}");
        }
    }
}
