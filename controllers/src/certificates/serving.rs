//! Which serving certificates kubelets get without a person: those whose names and addresses are the node's own.
//!
//! Upstream leaves this to people (decision "kubelets' serving certificates").

use std::net::IpAddr;

use ipnet::IpNet;
use skiff_pki::SigningRequest as Parsed;

use super::recognize::{kubelet_serving, node_name};
use crate::view::{Node, SigningRequest, View};

pub(super) const MESSAGE: &str =
    "Auto approving kubelet serving certificate: its names and addresses are those of the node.";

/// Set on nodes by people and by `skiff init`; nodes cannot set it themselves.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// Names that lead to Services and to the machine itself: never a node's.
const RESERVED: &[&str] = &["kubernetes", "localhost"];
const RESERVED_ENDS: &[&str] = &[".svc", ".cluster.local", ".localhost", ".default"];

/// What else there is in the cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct World<'a> {
    pub(super) nodes: &'a [std::sync::Arc<Node>],
    /// Where the API server is reached.
    pub(super) api_servers: &'a [IpAddr],
    /// Addresses of Services and of pods.
    pub(super) ranges: &'a [IpNet],
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
    parsed.dns_names.iter().try_for_each(|dns| judge_name(dns, node))?;
    parsed
        .ip_addresses
        .iter()
        .try_for_each(|ip| judge_address(*ip, node, world))
}

fn judge_name(dns: &str, node: &Node) -> Result<(), String> {
    let lower = dns.to_ascii_lowercase();
    let reserved = RESERVED.contains(&lower.as_str()) || RESERVED_ENDS.iter().any(|end| lower.ends_with(end));
    if reserved || lower.contains('*') {
        return Err(format!("{dns} is not a name of a node"));
    }
    let mut registered = node
        .status
        .addresses
        .iter()
        .filter(|address| address.type_ != "InternalIP" && address.type_ != "ExternalIP");
    if lower == node.name() || registered.any(|address| address.address == dns) {
        return Ok(());
    }
    Err(format!("the node has not registered the name {dns}"))
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
    let other = world
        .nodes
        .iter()
        .find(|other| other.name() != node.name() && addresses(other).any(|own| own == ip));
    if let Some(other) = other {
        return Err(format!("{ip} is an address of node {} too", other.name()));
    }
    if world.api_servers.contains(&ip) && node.label(CONTROL_PLANE).is_none() {
        return Err(format!(
            "{ip} is the API server's, and the node is not labelled {CONTROL_PLANE}"
        ));
    }
    Ok(())
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
                    ("InternalIP", "192.0.2.2"),
                    ("InternalIP", "192.0.2.100"),
                    ("InternalIP", "10.96.0.1"),
                    ("InternalIP", "127.0.0.1"),
                ],
            ),
            node("n2", &[], &[("InternalIP", "192.0.2.2")]),
            node("master", &[CONTROL_PLANE], &[("InternalIP", "192.0.2.101")]),
        ];
        let world = World {
            nodes: &nodes,
            api_servers: &["192.0.2.100".parse().unwrap(), "192.0.2.101".parse().unwrap()],
            ranges: &["10.96.0.0/12".parse().unwrap()],
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
        assert_eq!(ask("n1", &["n1"], &[]), Ok(()));
        assert_eq!(ask("master", &["master"], &["192.0.2.101"]), Ok(()));
        for (node, names, addresses, why) in [
            ("n1", &[][..], &[][..], "DNS or IP subjectAltName is required"),
            ("n1", &["n2"], &[], "has not registered the name n2"),
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
            api_servers: &[],
            ranges: &[],
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
