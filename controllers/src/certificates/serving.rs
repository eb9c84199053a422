//! Which serving certificates kubelets get without a person: those whose names and addresses are the node's own.
//!
//! Upstream leaves this to people (decision "kubelets' serving certificates").

use std::net::IpAddr;

use ipnet::IpNet;
use skiff_pki::{Names, SigningRequest as Parsed};

use super::recognize::{kubelet_serving, node_name};
use crate::view::{Node, SigningRequest, View};

pub(super) const MESSAGE: &str =
    "Auto approving kubelet serving certificate: its names and addresses are those of the node.";

/// Set on nodes by people and by `skiff init`; nodes cannot set it themselves.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// Names that lead to Services and to the machine itself: never a node's, and neither are those below the cluster's domain.
const RESERVED: &[&str] = &["kubernetes", "localhost"];
const RESERVED_ENDS: &[&str] = &[".svc", ".localhost", ".default"];

/// What else there is in the cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct World<'a> {
    pub(super) nodes: &'a [std::sync::Arc<Node>],
    /// What the API servers are reached by.
    pub(super) api_server: &'a Names,
    /// Addresses of Services and of pods.
    pub(super) ranges: &'a [IpNet],
    /// Below which domain the names of Services and pods are.
    pub(super) cluster_domain: &'a str,
}

/// Why a request is left to a person for now; it is looked at again when its node changes.
pub(super) fn judge(request: &SigningRequest, parsed: &Parsed, world: World<'_>) -> Result<(), String> {
    kubelet_serving(parsed, &request.spec.usages)?;
    let name = node_name(request).ok_or("the requester is not a node")?;
    if parsed.common_name != request.spec.username {
        return Err("the subject's common name is not the requester".to_owned());
    }
    if !parsed.other_subject.is_empty() {
        return Err("the subject says more than a common name and an organization".to_owned());
    }
    let node = world.nodes.iter().find(|node| node.name() == name);
    let node = node.ok_or("the node is not registered yet")?;
    parsed
        .dns_names
        .iter()
        .try_for_each(|dns| judge_name(dns, node, world))?;
    parsed
        .ip_addresses
        .iter()
        .try_for_each(|ip| judge_address(*ip, node, world))
}

fn judge_name(dns: &str, node: &Node, world: World<'_>) -> Result<(), String> {
    let name = comparable(dns);
    if let Ok(ip) = name.parse() {
        return judge_address(ip, node, world);
    }
    let below = |domain: &str| name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    let reserved = RESERVED.contains(&name.as_str())
        || RESERVED_ENDS.iter().any(|end| name.ends_with(end))
        || below(&comparable(world.cluster_domain));
    if reserved || name.contains('*') {
        return Err(format!("{dns} is not a name of a node"));
    }
    if name != node.name() && !has_registered(node, &name) {
        return Err(format!("the node has not registered the name {dns}"));
    }
    // Its own name, too: a machine that joins chooses it.
    let of_api_server = world.api_server.dns_names.iter().any(|own| comparable(own) == name);
    refuse_api_servers(of_api_server, dns, node)?;
    let other = others(node, world).find(|other| other.name() == name || has_registered(other, &name));
    match other.filter(|_| name != node.name()) {
        Some(other) => Err(format!("{dns} is a name of node {} too", other.name())),
        None => Ok(()),
    }
}

/// A name as names are compared: in small letters, without the dot of the root.
fn comparable(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn has_registered(node: &Node, name: &str) -> bool {
    let mut addresses = node.status.addresses.iter();
    addresses.any(|address| comparable(&address.address) == name)
}

fn others<'a>(node: &Node, world: World<'a>) -> impl Iterator<Item = &'a Node> {
    let nodes = world.nodes.iter().map(|other| &**other);
    nodes.filter(move |other| other.name() != node.name())
}

/// A certificate for what clients call the API server by, in a worker's hands, would be the cluster.
fn refuse_api_servers(is_api_servers: bool, what: &str, node: &Node) -> Result<(), String> {
    if is_api_servers && node.label(CONTROL_PLANE).is_none() {
        return Err(format!(
            "{what} is the API server's, and the node is not labelled {CONTROL_PLANE}"
        ));
    }
    Ok(())
}

fn judge_address(ip: IpAddr, node: &Node, world: World<'_>) -> Result<(), String> {
    if !addresses(node).any(|own| own == ip) {
        return Err(format!("the node has not registered the address {ip}"));
    }
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        return Err(format!("{ip} is not an address of one node"));
    }
    if world.ranges.iter().any(|range| range.contains(&ip)) {
        return Err(format!("{ip} is of the range of Services or pods"));
    }
    if let Some(other) = others(node, world).find(|other| addresses(other).any(|own| own == ip)) {
        return Err(format!("{ip} is an address of node {} too", other.name()));
    }
    let of_api_server = world.api_server.ip_addresses.contains(&ip);
    refuse_api_servers(of_api_server, &ip.to_string(), node)
}

fn addresses(node: &Node) -> impl Iterator<Item = IpAddr> {
    node.status
        .addresses
        .iter()
        .filter_map(|address| address.address.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;
    use skiff_pki::Request;

    use super::super::KUBELET_SERVING;
    use super::super::recognize::tests::request;
    use super::*;

    const USAGES: &[&str] = &["digital signature", "server auth"];

    fn node(name: &str, labels: &[&str], addresses: &[(&str, &str)]) -> Arc<Node> {
        let labels: serde_json::Map<_, _> = labels.iter().map(|label| ((*label).to_owned(), "".into())).collect();
        let addresses: Vec<_> = addresses
            .iter()
            .map(|(kind, address)| json!({"type": kind, "address": address}))
            .collect();
        let node = json!({"metadata": {"name": name, "labels": labels}, "status": {"addresses": addresses}});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    #[test]
    fn a_kubelet_serves_under_its_nodes_own_names_and_addresses_only() {
        let nodes = [
            node(
                "n1",
                &[],
                &[
                    ("InternalIP", "192.0.2.1"),
                    ("Hostname", "n1"),
                    ("InternalDNS", "n1.example.com"),
                    ("InternalDNS", "kubernetes.default.svc"),
                    ("InternalDNS", "*.example.com"),
                    ("InternalDNS", "api.example.com"),
                    ("InternalDNS", "API.example.com."),
                    ("InternalDNS", "web.shop.svc.k.local"),
                    ("Hostname", "n2"),
                    ("InternalDNS", "n2.example.com"),
                    ("ExternalDNS", "master"),
                    ("Hostname", "192.0.2.102"),
                    ("InternalIP", "192.0.2.2"),
                    ("InternalIP", "192.0.2.100"),
                    ("InternalIP", "10.96.0.1"),
                    ("InternalIP", "127.0.0.1"),
                ],
            ),
            node(
                "n2",
                &[],
                &[
                    ("InternalIP", "192.0.2.2"),
                    ("InternalDNS", "N2.example.com"),
                    ("Hostname", "n1"),
                ],
            ),
            node(
                "master",
                &[CONTROL_PLANE],
                &[("InternalIP", "192.0.2.101"), ("Hostname", "master")],
            ),
            // Who joins chooses its name.
            node("vip.example.com", &[], &[]),
        ];
        let world = World {
            nodes: &nodes,
            api_server: &Names {
                dns_names: ["master", "api.example.com", "VIP.example.com"]
                    .map(str::to_owned)
                    .to_vec(),
                ip_addresses: ["192.0.2.100", "192.0.2.101", "192.0.2.102"]
                    .map(|ip| ip.parse().unwrap())
                    .to_vec(),
            },
            ranges: &["10.96.0.0/12".parse().unwrap()],
            cluster_domain: "k.local",
        };
        let ask = |node: &str, names: &[&str], addresses: &[&str]| {
            let user = format!("system:node:{node}");
            let addresses: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
            let mut wanted = Request::server(&user, names, &addresses);
            wanted.organizations = vec!["system:nodes".to_owned()];
            let request = request(KUBELET_SERVING, (&user, &["system:nodes"]), USAGES, &wanted);
            judge(&request, &super::super::parse(&request).unwrap(), world)
        };
        assert_eq!(ask("n1", &["n1", "n1.example.com"], &["192.0.2.1"]), Ok(()));
        // Another node may say that it is called so; it is n1's own name all the same.
        assert_eq!(ask("n1", &["n1"], &[]), Ok(()));
        assert_eq!(ask("n1", &["N1.Example.com"], &[]), Ok(()));
        assert_eq!(ask("master", &["master"], &["192.0.2.101"]), Ok(()));
        for (node, names, addresses, why) in [
            ("n1", &[][..], &[][..], "DNS or IP subjectAltName is required"),
            ("n1", &["n3"], &[], "has not registered the name n3"),
            ("n1", &["n2"], &[], "n2 is a name of node n2 too"),
            ("n1", &["n2.example.com"], &[], "is a name of node n2 too"),
            ("n1", &["master"], &[], "master is the API server's"),
            ("n1", &["api.example.com"], &[], "is the API server's"),
            ("n1", &["Api.Example.com"], &[], "is the API server's"),
            ("n1", &["192.0.2.102"], &[], "is the API server's"),
            ("vip.example.com", &["vip.example.com"], &[], "is the API server's"),
            ("n1", &["web.shop.svc.k.local"], &[], "is not a name of a node"),
            ("n1", &["kubernetes.default.svc"], &[], "is not a name of a node"),
            ("n1", &["*.example.com"], &[], "is not a name of a node"),
            ("n1", &[], &["192.0.2.9"], "has not registered the address 192.0.2.9"),
            ("n1", &[], &["192.0.2.2"], "is an address of node n2 too"),
            ("n1", &[], &["192.0.2.100"], "is the API server's"),
            ("n1", &[], &["10.96.0.1"], "is of the range of Services or pods"),
            ("n1", &[], &["127.0.0.1"], "is not an address of one node"),
            ("n3", &["n3"], &[], "is not registered yet"),
        ] {
            let refused = ask(node, names, addresses).unwrap_err();
            assert!(refused.contains(why), "{node} {names:?} {addresses:?}: {refused}");
        }
    }

    #[test]
    fn nobody_asks_for_another() {
        let nodes = [node("n1", &[], &[("InternalIP", "192.0.2.1")])];
        let world = World {
            nodes: &nodes,
            api_server: &Names::default(),
            ranges: &[],
            cluster_domain: "k.local",
        };
        let mut wanted = Request::server("system:node:n1", &["n1"], &[]);
        wanted.organizations = vec!["system:nodes".to_owned()];
        for (user, groups) in [
            ("system:node:n2", &["system:nodes"][..]),
            ("system:node:n1", &["system:bootstrappers"]),
            ("joe", &["system:nodes"]),
        ] {
            let request = request(KUBELET_SERVING, (user, groups), USAGES, &wanted);
            assert!(
                judge(&request, &super::super::parse(&request).unwrap(), world).is_err(),
                "{user}"
            );
        }
    }
}
