//! Which addresses a Service of type LoadBalancer gets; decided from Services, Nodes and EndpointSlices.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use skiff_api::k8s_openapi::api::discovery::v1::EndpointSlice;
use skiff_api::k8s_openapi::api::networking::v1::IngressClass;

use crate::view::{Key, Node, Service, View};

const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// A node that an autoscaler is about to remove.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// Where nodes listen for each other's pods: taking it would cut them off.
const VXLAN: u16 = 8472;

/// Annotations of an IngressClass in which ingress controllers tell where they listen: addresses with ports.
const LISTENS: &str = "listens.ingress.skiff/";

/// A protocol and a number.
pub(super) type Port = (String, u16);

/// The ports that Services were given last, by their uids; none at all for one that was refused.
pub(super) type Given = HashMap<String, BTreeSet<Port>>;

/// What a Service's claim to its ports rests on, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Title {
    /// It has them.
    Has,
    /// It has others, or not all of them.
    HasOthers,
    Waits,
}

/// Why a Service gets no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// The nodes need the port.
    #[error("port {number}/{protocol} of the nodes is the cluster's own; choose another port")]
    Reserved { protocol: String, number: u16 },
    /// It may become the node port of any Service.
    #[error(
        "port {number}/{protocol} lies in the range of node ports, {}-{}, which Services share; choose another port",
        range.start(), range.end()
    )]
    NodePort {
        protocol: String,
        number: u16,
        range: RangeInclusive<u16>,
    },
    /// Ingress controllers listen there.
    #[error(
        "port {}/TCP of {} belongs to the ingress controller of IngressClass {class}; choose another port, or give the controller others",
        at.port(), at.ip()
    )]
    Ingress { at: SocketAddr, class: String },
    /// Another Service has the port.
    #[error(
        "port {number}/{protocol} of the nodes is taken by Service {by}; choose another port, or give one of them a loadBalancerClass"
    )]
    Taken { protocol: String, number: u16, by: Key },
}

/// Whether a Service asks this controller for addresses.
pub(super) fn is_ours(service: &Service) -> bool {
    service.spec.type_.as_deref() == Some("LoadBalancer")
        && service.spec.load_balancer_class.is_none()
        && !service.is_being_deleted()
}

/// Whether only nodes with an endpoint of its own answer for it.
pub(super) fn is_local(service: &Service) -> bool {
    service.spec.external_traffic_policy.as_deref() == Some("Local")
}

/// The ports that it wants on the nodes.
pub(super) fn ports(service: &Service) -> BTreeSet<Port> {
    let ports = service.spec.ports.iter().filter_map(|port| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        Some((protocol, u16::try_from(port.port).ok()?))
    });
    ports.collect()
}

/// The addresses that it has.
pub(super) fn published(service: &Service) -> Vec<IpAddr> {
    let ingress = &service.status.load_balancer.ingress;
    let addresses = ingress.iter().filter_map(|ingress| ingress.ip.as_ref()?.parse().ok());
    addresses.collect()
}

/// Ports that no Service gets.
#[derive(Debug)]
pub(super) struct Reserved {
    own: BTreeSet<Port>,
    node_ports: RangeInclusive<u16>,
}

/// Ports on which the nodes themselves answer: a Service on one of them would take the cluster's own packets away.
pub(super) fn reserved(
    nodes: &[Arc<Node>],
    api_server: &[Arc<EndpointSlice>],
    node_ports: &RangeInclusive<u16>,
) -> Reserved {
    let kubelets = nodes.iter().filter_map(|node| kubelet_port(node));
    let numbers = kubelets.chain(api_server.iter().flat_map(|slice| numbers(slice)));
    let own = numbers
        .filter_map(|number| u16::try_from(number).ok())
        .map(|number| ("TCP".to_owned(), number))
        .chain([("UDP".to_owned(), VXLAN)]);
    Reserved {
        own: own.collect(),
        node_ports: node_ports.clone(),
    }
}

/// Where the kubelet of a node listens.
pub(super) fn kubelet_port(node: &Node) -> Option<i32> {
    let endpoints = node.status.daemon_endpoints.as_ref()?;
    Some(endpoints.kubelet_endpoint.as_ref()?.port)
}

/// The ports of a slice's endpoints.
pub(super) fn numbers(slice: &EndpointSlice) -> BTreeSet<i32> {
    let ports = slice.ports.iter().flatten();
    ports.filter_map(|port| port.port).collect()
}

/// Where ingress controllers of a class listen, and the class's name.
pub(super) fn claims(class: &IngressClass) -> BTreeMap<SocketAddr, String> {
    let annotations = class.metadata.annotations.iter().flatten();
    let told = annotations.filter(|(name, _)| name.starts_with(LISTENS));
    let places = told
        .flat_map(|(_, places)| places.split(','))
        .filter_map(|at| at.parse().ok());
    places.map(|at| (at, class.name().to_owned())).collect()
}

/// The addresses whose ports an ingress controller has not, and why others are left out.
pub(super) fn without_claimed(
    service: &Service,
    addresses: &[IpAddr],
    claims: &BTreeMap<SocketAddr, String>,
) -> (Vec<IpAddr>, Option<Refusal>) {
    let ports = ports(service);
    let tcp = || ports.iter().filter(|(protocol, _)| protocol == "TCP");
    let claim = |ip: &IpAddr| {
        let mut places = tcp().map(|(_, number)| SocketAddr::new(*ip, *number));
        places.find_map(|at| claims.get(&at).map(|class| (at, class.clone())))
    };
    let (free, claimed): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|ip| claim(ip).is_none());
    let lost = claimed.first().and_then(claim);
    (free, lost.map(|(at, class)| Refusal::Ingress { at, class }))
}

fn title(service: &Service, given: &Given) -> Title {
    match given.get(service.uid()) {
        Some(had) if had.is_empty() => Title::Waits,
        Some(had) if ports(service).is_subset(had) => Title::Has,
        Some(_) => Title::HasOthers,
        // Not looked at since this process began: what it was given before is what it asks for.
        None if published(service).is_empty() => Title::Waits,
        None => Title::Has,
    }
}

/// Whether the Service may have its ports. Nodes have each port once: who has it keeps it, then the older one gets it.
pub(super) fn admit(
    service: &Service,
    all: &[Arc<Service>],
    given: &Given,
    reserved: &Reserved,
) -> Result<(), Refusal> {
    let rank = |service: &Service| {
        let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (title(service, given), created, service.key())
    };
    let mut order: Vec<&Arc<Service>> = all.iter().collect();
    order.sort_by_key(|service| rank(service));
    let mut taken: BTreeMap<Port, Key> = BTreeMap::new();
    let this = service.key();
    for other in order {
        let wanted = ports(other);
        let outcome = may_have(&wanted, reserved, &taken);
        if other.key() == this {
            return outcome;
        }
        if outcome.is_ok() {
            taken.extend(wanted.into_iter().map(|port| (port, other.key())));
        }
    }
    may_have(&ports(service), reserved, &taken)
}

fn may_have(wanted: &BTreeSet<Port>, reserved: &Reserved, taken: &BTreeMap<Port, Key>) -> Result<(), Refusal> {
    for (protocol, number) in wanted {
        let (protocol, number) = (protocol.clone(), *number);
        let port = (protocol.clone(), number);
        if reserved.own.contains(&port) {
            return Err(Refusal::Reserved { protocol, number });
        }
        if reserved.node_ports.contains(&number) {
            let range = reserved.node_ports.clone();
            return Err(Refusal::NodePort {
                protocol,
                number,
                range,
            });
        }
        if let Some(by) = taken.get(&port) {
            let by = by.clone();
            return Err(Refusal::Taken { protocol, number, by });
        }
    }
    Ok(())
}

/// Where a node is reached from outside; `None` when it is not to take part.
pub(super) fn addresses(node: &Node) -> Option<BTreeSet<IpAddr>> {
    let ready = node.condition("Ready").is_some_and(|ready| ready.status == "True");
    let leaving = node.spec.taints.iter().any(|taint| taint.key == TO_BE_DELETED);
    if !ready || leaving || node.is_being_deleted() || node.label(EXCLUDE).is_some() {
        return None;
    }
    let of = |kind: &str| -> BTreeSet<IpAddr> {
        let addresses = node.status.addresses.iter().filter(|address| address.type_ == kind);
        addresses.filter_map(|address| address.address.parse().ok()).collect()
    };
    let external = of("ExternalIP");
    Some(if external.is_empty() {
        of("InternalIP")
    } else {
        external
    })
}

/// The addresses that a Service is to have, in order.
pub(super) fn ingress(service: &Service, nodes: &[Arc<Node>], with_endpoint: &BTreeSet<String>) -> Vec<IpAddr> {
    let families = &service.spec.ip_families;
    let of_its_family = |ip: &IpAddr| {
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        families.is_empty() || families.iter().any(|wanted| wanted == family)
    };
    let chosen = nodes
        .iter()
        .filter(|node| !is_local(service) || with_endpoint.contains(node.name()));
    let found: BTreeSet<IpAddr> = chosen.filter_map(|node| addresses(node)).flatten().collect();
    found.into_iter().filter(of_its_family).collect()
}

/// The nodes that have a ready endpoint.
pub(super) fn endpoint_nodes(slices: &[Arc<EndpointSlice>]) -> BTreeSet<String> {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints.filter(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        // What says nothing is ready.
        conditions.and_then(|conditions| conditions.ready) != Some(false)
    });
    ready.filter_map(|endpoint| endpoint.node_name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(name: &str, port: u16, extra: Value) -> Arc<Service> {
        let mut object = json!({
            "metadata": {"namespace": "ns", "name": name, "creationTimestamp": "2026-01-02T00:00:00Z"},
            "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4"], "ports": [{"port": port}]},
        });
        for (part, fields) in extra.as_object().unwrap() {
            for (field, value) in fields.as_object().unwrap() {
                object[part][field] = value.clone();
            }
        }
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn node(name: &str, extra: Value) -> Arc<Node> {
        let mut object = json!({
            "metadata": {"name": name},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": format!("10.0.0.{}", name.len())}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            },
        });
        for (part, fields) in extra.as_object().unwrap() {
            for (field, value) in fields.as_object().unwrap() {
                object[part][field] = value.clone();
            }
        }
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn slice(ports: &[u16], endpoints: &[(&str, Option<bool>)]) -> Arc<EndpointSlice> {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(node, ready)| json!({"addresses": ["10.1.1.1"], "nodeName": node, "conditions": {"ready": ready}}))
            .collect();
        let ports: Vec<_> = ports.iter().map(|port| json!({"port": port})).collect();
        let object = json!({"metadata": {}, "addressType": "IPv4", "ports": ports, "endpoints": endpoints});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn only_what_asks_and_names_no_class_is_ours() {
        let cases = [
            (json!({}), true),
            (json!({"spec": {"type": "NodePort"}}), false),
            (json!({"spec": {"loadBalancerClass": "example.com/other"}}), false),
            (
                json!({"metadata": {"deletionTimestamp": "2026-01-02T00:00:00Z"}}),
                false,
            ),
        ];
        for (extra, ours) in cases {
            assert_eq!(is_ours(&service("web", 80, extra.clone())), ours, "{extra}");
        }
    }

    #[test]
    fn nodes_that_can_take_part_give_their_addresses() {
        let external =
            json!([{"type": "InternalIP", "address": "10.0.0.9"}, {"type": "ExternalIP", "address": "192.0.2.1"}]);
        let both =
            json!([{"type": "InternalIP", "address": "10.0.0.9"}, {"type": "InternalIP", "address": "2001:db8::9"}]);
        let not_ready = json!([{"type": "Ready", "status": "Unknown"}]);
        let cases: [(Value, &[&str]); 7] = [
            (json!({}), &["10.0.0.1"]),
            (json!({"status": {"addresses": external}}), &["192.0.2.1"]),
            (json!({"status": {"addresses": both}}), &["10.0.0.9"]),
            (json!({"status": {"conditions": not_ready}}), &[]),
            (json!({"metadata": {"labels": {EXCLUDE: ""}}}), &[]),
            (
                json!({"spec": {"taints": [{"key": TO_BE_DELETED, "effect": "NoSchedule"}]}}),
                &[],
            ),
            // A node that takes no new pods goes on forwarding.
            (json!({"spec": {"unschedulable": true}}), &["10.0.0.1"]),
        ];
        for (extra, wanted) in cases {
            let found = ingress(
                &service("web", 80, json!({})),
                &[node("a", extra.clone())],
                &BTreeSet::new(),
            );
            let found: Vec<_> = found.iter().map(IpAddr::to_string).collect();
            assert_eq!(found, wanted, "{extra}");
        }
    }

    #[test]
    fn with_the_local_policy_only_nodes_with_a_ready_endpoint_answer() {
        let nodes = [node("a", json!({})), node("bb", json!({})), node("ccc", json!({}))];
        let slices = [
            slice(&[80], &[("a", Some(true)), ("bb", Some(false))]),
            slice(&[80], &[("ccc", None)]),
        ];
        let local = service("web", 80, json!({"spec": {"externalTrafficPolicy": "Local"}}));
        let found = ingress(&local, &nodes, &endpoint_nodes(&slices));
        let found: Vec<_> = found.iter().map(IpAddr::to_string).collect();
        assert_eq!(found, ["10.0.0.1", "10.0.0.3"]);
    }

    #[test]
    fn a_port_is_given_once_and_none_of_the_clusters_own() {
        let reserved = reserved(&[node("a", json!({}))], &[slice(&[6443], &[])], &(30_000..=32_767));
        let has = json!({"status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}]}}});
        let older = json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}});
        let taken = |by: &str| {
            let (protocol, number) = ("TCP".to_owned(), 80);
            Err(Refusal::Taken {
                protocol,
                number,
                by: Key::new("ns", by),
            })
        };
        let own = |number| {
            let protocol = "TCP".to_owned();
            Err(Refusal::Reserved { protocol, number })
        };
        let cases = [
            (vec![service("this", 80, json!({}))], Ok(())),
            (
                vec![service("this", 80, json!({})), service("other", 81, json!({}))],
                Ok(()),
            ),
            (
                vec![service("this", 80, json!({})), service("other", 80, older.clone())],
                taken("other"),
            ),
            (
                vec![service("this", 80, older), service("other", 80, json!({}))],
                Ok(()),
            ),
            (
                vec![service("this", 80, has.clone()), service("a", 80, json!({}))],
                Ok(()),
            ),
            // Of the same age: by name.
            (
                vec![service("this", 80, json!({})), service("a", 80, json!({}))],
                taken("a"),
            ),
            (
                vec![service("this", 80, json!({})), service("z", 80, json!({}))],
                Ok(()),
            ),
            (vec![service("this", 80, json!({})), service("z", 80, has)], taken("z")),
            (vec![service("this", 6443, json!({}))], own(6443)),
            (vec![service("this", 10250, json!({}))], own(10250)),
            (vec![service("this", 29_999, json!({}))], Ok(())),
            (
                vec![service("this", 32_767, json!({}))],
                Err(Refusal::NodePort {
                    protocol: "TCP".to_owned(),
                    number: 32_767,
                    range: 30_000..=32_767,
                }),
            ),
        ];
        for (number, (all, wanted)) in cases.into_iter().enumerate() {
            assert_eq!(admit(&all[0], &all, &Given::new(), &reserved), wanted, "case {number}");
        }
        // One that was refused holds nothing.
        let two_ports = json!([{"port": 80}, {"port": 6443}]);
        let refused = service("a", 80, json!({"spec": {"ports": two_ports}}));
        let this = service("this", 80, json!({}));
        assert_eq!(
            admit(&this, &[refused, Arc::clone(&this)], &Given::new(), &reserved),
            Ok(())
        );
        let tunnel = json!({"spec": {"ports": [{"port": 8472, "protocol": "UDP"}]}});
        assert!(admit(&service("udp", 1, tunnel), &[], &Given::new(), &reserved).is_err());
    }

    #[test]
    fn who_was_given_a_port_keeps_it() {
        let reserved = reserved(&[], &[], &(30_000..=32_767));
        let named = |name: &str, ports: &[u16]| {
            let ports: Vec<_> = ports.iter().map(|port| json!({"port": port})).collect();
            let has = json!({"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}]}});
            service(
                name,
                0,
                json!({"metadata": {"uid": name}, "spec": {"ports": ports}, "status": has}),
            )
        };
        // Both show addresses, and a is the first by name: what a and b ask for, what each was given, who may have it.
        type Case<'a> = (&'a [u16], &'a [u16], Option<&'a [u16]>, Option<&'a [u16]>, (bool, bool));
        let cases: [Case<'_>; 8] = [
            (&[80], &[81], Some(&[80]), Some(&[81]), (true, true)),
            (&[80, 81], &[81], Some(&[80]), Some(&[81]), (false, true)),
            (&[81], &[81], Some(&[80]), Some(&[81]), (false, true)),
            (&[80], &[81], Some(&[80, 81]), Some(&[]), (true, true)),
            // What it has shown until now counts for nothing once it was refused.
            (&[80, 81], &[81], Some(&[]), Some(&[81]), (false, true)),
            // Whoever has some port goes before one that has none.
            (&[80], &[80, 81], Some(&[]), Some(&[81]), (false, true)),
            (&[80, 82], &[81, 82], Some(&[80]), Some(&[81]), (true, false)),
            // After a start nothing else is known than what both show.
            (&[80, 81], &[81], None, None, (true, false)),
        ];
        for (number, (a, b, a_had, b_had, wanted)) in cases.into_iter().enumerate() {
            let all = [named("a", a), named("b", b)];
            let port = |number: &u16| ("TCP".to_owned(), *number);
            let had = [("a", a_had), ("b", b_had)].into_iter();
            let given = had.filter_map(|(name, had)| Some((name.to_owned(), had?.iter().map(port).collect())));
            let given = given.collect();
            let may = |service| admit(service, &all, &given, &reserved).is_ok();
            assert_eq!((may(&all[0]), may(&all[1])), wanted, "case {number}");
        }
    }

    #[test]
    fn the_places_of_ingress_controllers_are_left_to_them() {
        let class = json!({"metadata": {"name": "skiff", "annotations": {
            "listens.ingress.skiff/10.0.0.1": "10.0.0.1:80,10.0.0.1:443,junk",
            "listens.ingress.skiff/fd00--1": "[fd00::1]:80",
            "ingressclass.kubernetes.io/is-default-class": "10.0.0.2:80"}}});
        let claims = claims(&serde_json::from_value(class).unwrap());
        assert_eq!(claims.len(), 3);
        let all: Vec<IpAddr> = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap()).into();
        let udp = json!({"spec": {"ports": [{"port": 443, "protocol": "UDP"}]}});
        for (service, left, lost) in [
            (service("web", 80, json!({})), &all[1..], Some("10.0.0.1:80")),
            (service("tls", 443, json!({})), &all[1..], Some("10.0.0.1:443")),
            (service("web", 8080, json!({})), &all[..], None),
            (service("quic", 1, udp), &all[..], None),
        ] {
            let (found, refusal) = without_claimed(&service, &all, &claims);
            let lost = lost.map(|at| Refusal::Ingress {
                at: at.parse().unwrap(),
                class: "skiff".to_owned(),
            });
            assert_eq!((&found[..], refusal), (left, lost), "{}", service.name());
        }
    }
}
