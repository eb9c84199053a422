//! Which serving certificates kubelets get without a person: those whose names and addresses are the node's own.
//!
//! Upstream leaves this to people (decision "kubelets' serving certificates").

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
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

/// A node that has been silent for so long holds its addresses no more: pods leave it by then, and one that only starts again is back.
const GIVEN_UP: SignedDuration = SignedDuration::from_mins(5);

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
    pub(super) now: Timestamp,
}

/// Why a request is left to a person for now; it is looked at again when a node changes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) why: String,
    /// What time alone will change.
    pub(super) again: Option<SignedDuration>,
}

impl<T: Into<String>> From<T> for Refusal {
    fn from(why: T) -> Self {
        Self {
            why: why.into(),
            again: None,
        }
    }
}

/// Whether a request may be approved without a person.
pub(super) fn judge(request: &SigningRequest, parsed: &Parsed, world: World<'_>) -> Result<(), Refusal> {
    kubelet_serving(parsed, &request.spec.usages)?;
    let name = node_name(request).ok_or("the requester is not a node")?;
    if parsed.common_name != request.spec.username {
        return Err("the subject's common name is not the requester".into());
    }
    if !parsed.other_subject.is_empty() {
        return Err("the subject says more than a common name and an organization".into());
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

fn judge_name(dns: &str, node: &Node, world: World<'_>) -> Result<(), Refusal> {
    let name = comparable(dns);
    if let Ok(ip) = name.parse() {
        return judge_address(ip, node, world);
    }
    let below = |domain: &str| name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    let reserved = RESERVED.contains(&name.as_str())
        || RESERVED_ENDS.iter().any(|end| name.ends_with(end))
        || below(&comparable(world.cluster_domain));
    if reserved || name.contains('*') {
        return Err(format!("{dns} is not a name of a node").into());
    }
    if name != node.name() && !has_registered(node, &name) {
        return Err(format!("the node has not registered the name {dns}").into());
    }
    // Its own name, too: a machine that joins chooses it.
    let of_api_server = world.api_server.dns_names.iter().any(|own| comparable(own) == name);
    refuse_api_servers(of_api_server, dns, node)?;
    let other = others(node, world).find(|other| other.name() == name || has_registered(other, &name));
    match other.filter(|_| name != node.name()) {
        Some(other) => Err(format!("{dns} is a name of node {} too", other.name()).into()),
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
fn refuse_api_servers(is_api_servers: bool, what: &str, node: &Node) -> Result<(), Refusal> {
    if is_api_servers && !is_control_plane(node) {
        let why = format!("{what} is the API server's, and the node is not labelled {CONTROL_PLANE}");
        return Err(why.into());
    }
    Ok(())
}

fn is_control_plane(node: &Node) -> bool {
    node.label(CONTROL_PLANE).is_some()
}

fn judge_address(ip: IpAddr, node: &Node, world: World<'_>) -> Result<(), Refusal> {
    if !addresses(node).any(|own| own == ip) {
        return Err(format!("the node has not registered the address {ip}").into());
    }
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        return Err(format!("{ip} is not an address of one node").into());
    }
    if world.ranges.iter().any(|range| range.contains(&ip)) {
        return Err(format!("{ip} is of the range of Services or pods").into());
    }
    let of_api_server = world.api_server.ip_addresses.contains(&ip);
    refuse_api_servers(of_api_server, &ip.to_string(), node)?;
    let mut holders = others(node, world).filter(|other| addresses(other).any(|own| own == ip));
    holders.try_for_each(|other| {
        // What once was an API server's is in kubeconfigs: no worker's, however long that server is gone.
        let held = if is_control_plane(other) && !is_control_plane(node) {
            Held::Forever
        } else {
            holds_addresses(other, world.now)
        };
        let why = format!("{ip} is an address of node {} too", other.name());
        match held {
            Held::NoMore => Ok(()),
            Held::Forever => Err(why.into()),
            Held::For(time) => Err(Refusal { why, again: Some(time) }),
        }
    })
}

/// Whether a node stands in the way of others that register its addresses.
#[derive(Debug, PartialEq, Eq)]
enum Held {
    NoMore,
    For(SignedDuration),
    Forever,
}

/// The node controller says `Unknown` of a node whose kubelet is silent, and when that began.
fn holds_addresses(node: &Node, now: Timestamp) -> Held {
    let ready = node.condition("Ready").filter(|ready| ready.status == "Unknown");
    let Some(since) = ready.and_then(|ready| ready.last_transition_time.as_ref()) else {
        return Held::Forever;
    };
    let left = GIVEN_UP - now.duration_since(since.0);
    if left.is_positive() {
        Held::For(left)
    } else {
        Held::NoMore
    }
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
            now: Timestamp::now(),
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
            let refused = ask(node, names, addresses).unwrap_err().why;
            assert!(refused.contains(why), "{node} {names:?} {addresses:?}: {refused}");
        }
    }

    /// The same node, as the node controller or its kubelet last said that it is.
    fn that_is(node: &Node, status: &str, since: &str) -> Arc<Node> {
        let mut node = Node::clone(node);
        let ready = json!({"type": "Ready", "status": status, "lastTransitionTime": since});
        node.status.conditions.push(serde_json::from_value(ready).unwrap());
        Arc::new(node)
    }

    #[test]
    fn a_node_that_is_gone_leaves_its_address_to_the_next() {
        let address = [("InternalIP", "192.0.2.1")];
        let worker = |name: &str| node(name, &[], &address);
        let control_plane = |name: &str| node(name, &[CONTROL_PLANE], &address);
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let (long_ago, just_now) = ("2026-01-01T00:55:00Z", "2026-01-01T00:59:00Z");
        let refused = |other: &str, again| {
            let why = format!("192.0.2.1 is an address of node {other} too");
            Err(Refusal { why, again })
        };
        let api_servers = "192.0.2.1 is the API server's, and the node is not labelled";
        let gone = that_is(&worker("gone"), "Unknown", long_ago);
        let cases = [
            (worker("n"), vec![], vec![gone.clone()], Ok(())),
            // It may be starting again.
            (
                worker("n"),
                vec![],
                vec![that_is(&worker("silent"), "Unknown", just_now)],
                refused("silent", Some(SignedDuration::from_mins(4))),
            ),
            (
                worker("n"),
                vec![],
                vec![gone.clone(), that_is(&worker("well"), "True", long_ago)],
                refused("well", None),
            ),
            // Its kubelet speaks, if only of its troubles.
            (
                worker("n"),
                vec![],
                vec![that_is(&worker("ill"), "False", long_ago)],
                refused("ill", None),
            ),
            (worker("n"), vec![], vec![worker("new")], refused("new", None)),
            (
                worker("n"),
                vec![],
                vec![that_is(&control_plane("master"), "Unknown", long_ago)],
                refused("master", None),
            ),
            (
                control_plane("n"),
                vec![],
                vec![that_is(&control_plane("master"), "Unknown", long_ago)],
                Ok(()),
            ),
            (
                worker("n"),
                vec!["192.0.2.1".parse().unwrap()],
                vec![gone],
                Err(format!("{api_servers} {CONTROL_PLANE}").into()),
            ),
        ];
        for (number, (own, ip_addresses, mut nodes, wanted)) in cases.into_iter().enumerate() {
            nodes.push(Arc::clone(&own));
            let api_server = Names {
                dns_names: Vec::new(),
                ip_addresses,
            };
            let world = World {
                nodes: &nodes,
                api_server: &api_server,
                ranges: &[],
                cluster_domain: "k.local",
                now,
            };
            let judged = judge_address("192.0.2.1".parse().unwrap(), &own, world);
            assert_eq!(judged, wanted, "case {number}");
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
            now: Timestamp::now(),
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
