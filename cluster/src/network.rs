//! The cluster's network: a namespace with a bridge a segment (the LAN), and one namespace a node, each with a veth into
//! the bridge of its segment.
//!
//! Everything is made only where it is missing, so that a half-built network is completed by the next `up`.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use skiff_net::netlink::{BridgeOptions, Mac, Netlink, Route, VethOptions};
use skiff_net::netns::Namespace;
use skiff_net::sysctl;

use crate::layout::{self, Layout, NAMESPACES, NodeLayout};
use crate::{Error, Result};

const NODE_LINK: &str = "eth0";

/// Makes what is missing of the network.
pub(crate) fn build(layout: &Layout, nodes: &[NodeLayout]) -> Result<()> {
    let lan = ensure_namespace("the LAN", &layout.lan_namespace())?;
    // It forwards between segments alone, but with forwarding on it answers "unreachable" instead of staying silent.
    set_sysctls("the LAN", &lan, &[("net.ipv4.ip_forward", "1")])?;
    let bridges = (0..layout.segments()).map(|segment| build_segment(&lan, segment));
    let bridges = bridges.collect::<Result<Vec<_>, _>>().map_err(network("the LAN"))?;
    for node in nodes {
        let namespace = ensure_namespace(&node.name, node.namespace())?;
        build_node(&lan, bridges[node.segment], &namespace, node).map_err(network(&node.name))?;
    }
    Ok(())
}

/// Opens a node's namespace.
pub(crate) fn open(node: &NodeLayout) -> Result<Namespace> {
    Namespace::open_named(Path::new(NAMESPACES), node.namespace()).map_err(namespace(&node.name))
}

/// Opens the namespace that joins the nodes.
pub(crate) fn open_lan(layout: &Layout) -> Result<Namespace> {
    Namespace::open_named(Path::new(NAMESPACES), &layout.lan_namespace()).map_err(namespace("the LAN"))
}

/// Takes the names of all namespaces away; with their last process they are gone, and their links with them.
pub(crate) fn remove(layout: &Layout, nodes: &[NodeLayout]) -> Vec<Error> {
    let names = nodes
        .iter()
        .map(|node| (node.name.as_str(), node.namespace().to_owned()));
    names
        .chain([("the LAN", layout.lan_namespace())])
        .filter_map(|(node, name)| {
            Namespace::delete(Path::new(NAMESPACES), &name)
                .map_err(namespace(node))
                .err()
        })
        .collect()
}

fn ensure_namespace(node: &str, name: &str) -> Result<Namespace> {
    let directory = Path::new(NAMESPACES);
    if Namespace::exists(directory, name) {
        return Namespace::open_named(directory, name).map_err(namespace(node));
    }
    // What an interrupted run may have left: a file that is no namespace.
    Namespace::delete(directory, name).map_err(namespace(node))?;
    Namespace::create(directory, name).map_err(namespace(node))
}

fn build_segment(lan: &Namespace, segment: usize) -> Result<u32, skiff_net::netlink::Error> {
    let mut links = Netlink::open_in(lan)?;
    let name = match segment {
        0 => "lan".to_owned(),
        further => format!("lan{further}"),
    };
    if links.link(&name)?.is_none() {
        links.add_bridge(&name, &BridgeOptions::default())?;
    }
    let bridge = links.need_link(&name)?.index;
    ensure_address(&mut links, bridge, segment, layout::gateway(segment))?;
    links.set_up(bridge)?;
    Ok(bridge)
}

fn build_node(
    lan: &Namespace,
    bridge: u32,
    namespace: &Namespace,
    node: &NodeLayout,
) -> Result<(), skiff_net::netlink::Error> {
    let mut inside = Netlink::open_in(namespace)?;
    if inside.link(NODE_LINK)?.is_none() {
        let options = VethOptions {
            peer_namespace: Some(namespace),
            // A link that is made again has the same address, so that nobody sends to the former one.
            peer_mac: Mac::for_ip(node.address),
            master: Some(bridge),
            up: true,
            ..VethOptions::default()
        };
        Netlink::open_in(lan)?.add_veth(&node.name, NODE_LINK, &options)?;
    }
    let loopback = inside.need_link("lo")?.index;
    inside.set_up(loopback)?;
    let link = inside.need_link(NODE_LINK)?.index;
    ensure_address(&mut inside, link, node.segment, node.address)?;
    inside.set_up(link)?;
    // Packets to Service addresses need a route before they are rewritten; the gateway behind it leads nowhere.
    let everywhere = IpNet::new_assert(IpAddr::from([0, 0, 0, 0]), 0);
    inside.replace_route(&Route::through(everywhere, layout::gateway(node.segment)))
}

/// The link has this IPv4 address and no other: a node that was moved has left its former one.
fn ensure_address(
    links: &mut Netlink,
    link: u32,
    segment: usize,
    address: IpAddr,
) -> Result<(), skiff_net::netlink::Error> {
    let wanted = IpNet::new_assert(address, layout::segment(segment).prefix_len());
    let found = links.addresses(Some(link))?;
    for other in found
        .iter()
        .filter(|found| found.net != wanted && found.net.addr().is_ipv4())
    {
        links.delete_address(link, other.net)?;
    }
    if !found.iter().any(|found| found.net == wanted) {
        links.add_address(link, wanted)?;
    }
    Ok(())
}

/// Gives a node a further address of its segment, or takes it away again.
pub(crate) fn share_address(node: &NodeLayout, address: IpAddr, here: bool) -> Result<()> {
    let net = IpNet::new_assert(address, layout::segment(node.segment).prefix_len());
    let namespace = open(node)?;
    let mut inside = Netlink::open_in(&namespace).map_err(network(&node.name))?;
    let link = inside.need_link(NODE_LINK).map_err(network(&node.name))?.index;
    let changed = if here {
        inside.add_address(link, net)
    } else {
        inside.delete_address(link, net).map(drop)
    };
    changed.map_err(network(&node.name))
}

fn set_sysctls(node: &str, in_namespace: &Namespace, settings: &[(&str, &str)]) -> Result<()> {
    in_namespace
        .run(|| {
            settings
                .iter()
                .try_for_each(|(name, value)| sysctl::set(name, value).map(|_| ()))
        })
        .map_err(namespace(node))?
        .map_err(|source| Error::Sysctl {
            node: node.to_owned(),
            source,
        })
}

fn namespace(node: &str) -> impl FnOnce(skiff_net::netns::Error) -> Error {
    let node = node.to_owned();
    move |source| Error::Namespace { node, source }
}

fn network(node: &str) -> impl FnOnce(skiff_net::netlink::Error) -> Error {
    let node = node.to_owned();
    move |source| Error::Network { node, source }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::*;

    /// Removes the network however the test ends.
    struct Network(Layout);

    impl Network {
        fn nodes(&self) -> [NodeLayout; 2] {
            [self.0.node(0), self.0.node(1)]
        }
    }

    impl Drop for Network {
        fn drop(&mut self) {
            assert!(remove(&self.0, &self.nodes()).is_empty());
        }
    }

    #[test]
    fn nodes_reach_each_other_and_a_damaged_network_is_repaired() {
        let name = format!("n{}", std::process::id());
        let network = Network(Layout::new(Path::new("/nonexistent"), &name).unwrap());
        let [first, second] = network.nodes();
        build(&network.0, &network.nodes()).unwrap();
        build(&network.0, &network.nodes()).unwrap();

        let outside = SocketAddr::new(second.address, 8080);
        let connect = || open(&first).unwrap().run(|| TcpStream::connect(outside)).unwrap();
        let listen = || open(&second).unwrap().run(|| TcpListener::bind(outside)).unwrap();
        let listener = listen().unwrap();
        connect().unwrap();
        drop(listener);

        Netlink::open_in(&open(&second).unwrap())
            .unwrap()
            .delete_link(NODE_LINK)
            .unwrap();
        assert!(listen().is_err());
        build(&network.0, &network.nodes()).unwrap();
        let _listener = listen().unwrap();
        connect().unwrap();
    }
}
