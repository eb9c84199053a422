//! What a node refuses, though a pod was bound to it: pure functions. A refused pod fails with upstream's reason; its
//! controller makes another. Pods that this node took before are never asked again: what runs keeps running.

mod affinity;
mod os;
pub(crate) mod preemption;
mod security;
mod taints;

use std::collections::BTreeMap;

use skiff_api::k8s_openapi::api::core::v1::{Node, Pod};
use skiff_api::pods::{self, Resources};
use skiff_api::quantity::Quantity;

use crate::memory::Finish;
use crate::pod;

pub(crate) use affinity::any_term;
pub(crate) use security::{Host, is_namespaced, strict_groups};

/// Why a pod may not run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// `OutOfcpu`, `NodeAffinity` ...
    pub(crate) reason: String,
    /// What was asked for and what there is.
    pub(crate) message: String,
}

impl Refusal {
    fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            message: message.into(),
        }
    }

    /// What a plugin of the scheduler would have refused too.
    fn predicate(name: &str, why: &str) -> Self {
        Self::new(name, format!("Predicate {name} failed: {why}"))
    }

    /// The end of the refused pod.
    pub(crate) fn finish(&self) -> Finish {
        Finish::failed(&self.reason, &format!("Pod was rejected: {}", self.message))
    }
}

/// Whether this node has taken the pod before: the kubelet's first report sets the start time.
pub(crate) fn is_known(pod: &Pod) -> bool {
    pod::status(pod).start_time.is_some()
}

/// Whether what the API has of the node decides about the pod.
pub(crate) fn needs_node(pod: &Pod) -> bool {
    affinity::needs_labels(pod) || !pod::is_static(pod)
}

/// Checks what the API has of the node: its labels and taints.
pub(crate) fn check_node(pod: &Pod, name: &str, node: &Node) -> Result<(), Refusal> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    affinity::check(pod, name, node.metadata.labels.as_ref().unwrap_or(&NONE))?;
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
    taints::check(pod, taints.unwrap_or_default())
}

/// Checks all that follows from the pod, the node's size and the pods that are here.
pub(crate) fn check<'a>(
    pod: &Pod,
    others: impl Iterator<Item = &'a Pod> + Clone,
    allocatable: &BTreeMap<String, Quantity>,
    host: &Host,
) -> Result<(), Refusal> {
    os::check(pod)?;
    security::check(pod, host)?;
    if let Some(short) = shortages(pod, others.clone(), allocatable).first() {
        return Err(short.refusal());
    }
    let taken = |port: &HostPort| {
        others
            .clone()
            .any(|other| host_ports(other).any(|used| used.conflicts(port)))
    };
    if host_ports(pod).any(|port| taken(&port)) {
        return Err(Refusal::predicate(
            "NodePorts",
            "node(s) didn't have free ports for the requested pod ports",
        ));
    }
    Ok(())
}

/// Something that a pod requests and that is not free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shortage {
    pub(crate) resource: String,
    requested: i128,
    used: i128,
    capacity: i128,
}

/// What the pod requests and is not free.
pub(crate) fn shortages<'a>(
    pod: &Pod,
    others: impl Iterator<Item = &'a Pod>,
    allocatable: &BTreeMap<String, Quantity>,
) -> Vec<Shortage> {
    let mut found = Vec::new();
    let mut used = Resources::new();
    let mut count = 0;
    for other in others {
        count += 1;
        for (name, quantity) in pods::requests(pod::spec(other)) {
            let sum = used.entry(name).or_insert(Quantity::ZERO);
            *sum = sum.checked_add(quantity).unwrap_or(*sum);
        }
    }
    let most = allocatable.get("pods").map_or(i128::MAX, Quantity::value);
    if count + 1 > most {
        found.push(Shortage {
            resource: "pods".into(),
            requested: 1,
            used: count,
            capacity: most,
        });
    }
    for (name, wanted) in pods::requests(pod::spec(pod)) {
        // An extended resource that the node has not heard of is the scheduler's business.
        let Some(capacity) = allocatable.get(&name).filter(|_| !wanted.is_zero()) else {
            continue;
        };
        let in_use = used.get(&name).copied().unwrap_or(Quantity::ZERO);
        let sum = in_use.checked_add(wanted).unwrap_or(wanted);
        if sum > *capacity {
            found.push(Shortage {
                requested: amount(&name, wanted),
                used: amount(&name, in_use),
                capacity: amount(&name, *capacity),
                resource: name,
            });
        }
    }
    found
}

/// CPU counts in thousandths.
fn amount(resource: &str, quantity: Quantity) -> i128 {
    if resource == "cpu" {
        quantity.as_milli()
    } else {
        quantity.value()
    }
}

impl Shortage {
    fn refusal(&self) -> Refusal {
        let Self {
            resource,
            requested,
            used,
            capacity,
        } = self;
        Refusal::new(
            format!("OutOf{resource}"),
            format!(
                "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
            ),
        )
    }
}

/// A port of the node that a pod takes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostPort {
    port: i32,
    protocol: String,
    ip: String,
}

impl HostPort {
    fn conflicts(&self, other: &Self) -> bool {
        let everywhere = |ip: &str| ip.is_empty() || ip == "0.0.0.0";
        let same_ip = self.ip == other.ip || everywhere(&self.ip) || everywhere(&other.ip);
        self.port == other.port && self.protocol == other.protocol && same_ip
    }
}

fn host_ports(pod: &Pod) -> impl Iterator<Item = HostPort> {
    let sidecars = pod::init_containers(pod).iter().filter(|spec| pod::is_sidecar(spec));
    let containers = pod::main_containers(pod).iter().chain(sidecars);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports.filter_map(|port| {
        Some(HostPort {
            port: port.host_port.filter(|port| *port > 0)?,
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            ip: port.host_ip.clone().unwrap_or_default(),
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::tests::pod;

    fn sized(request: Value) -> Pod {
        pod(&json!({"containers": [{"name": "c", "resources": {"requests": request}}]}))
    }

    fn with_port(port: Value) -> Pod {
        pod(&json!({"containers": [{"name": "c", "ports": [port]}]}))
    }

    #[test]
    fn what_does_not_fit_is_refused_with_upstreams_words() {
        let size = |text: &str| text.parse::<Quantity>().unwrap();
        let allocatable = BTreeMap::from([
            ("cpu".to_owned(), size("2")),
            ("memory".to_owned(), size("1Gi")),
            ("pods".to_owned(), size("2")),
            ("example.com/gpu".to_owned(), size("1")),
        ]);
        let one = sized(json!({"cpu": "1500m", "memory": "512Mi"}));
        let cases = [
            (json!({"cpu": "500m"}), 1, None),
            (json!({"memory": "512Mi", "absent.example.com/x": "5"}), 1, None),
            (
                json!({"cpu": "501m"}),
                1,
                Some((
                    "OutOfcpu",
                    "Node didn't have enough resource: cpu, requested: 501, used: 1500, capacity: 2000",
                )),
            ),
            (
                json!({"memory": "1Gi"}),
                1,
                Some((
                    "OutOfmemory",
                    "Node didn't have enough resource: memory, requested: 1073741824, used: 536870912, capacity: 1073741824",
                )),
            ),
            (
                json!({"example.com/gpu": "2"}),
                0,
                Some((
                    "OutOfexample.com/gpu",
                    "Node didn't have enough resource: example.com/gpu, requested: 2, used: 0, capacity: 1",
                )),
            ),
            (
                json!({}),
                2,
                Some((
                    "OutOfpods",
                    "Node didn't have enough resource: pods, requested: 1, used: 2, capacity: 2",
                )),
            ),
        ];
        for (request, others, refusal) in cases {
            let others = std::iter::repeat_n(&one, others);
            let found = check(&sized(request.clone()), others, &allocatable, &Host::default());
            let expected = refusal.map_or(Ok(()), |(reason, message)| Err(Refusal::new(reason, message)));
            assert_eq!(found, expected, "{request}");
        }
    }

    #[test]
    fn a_port_of_the_node_is_given_once() {
        let taken = with_port(json!({"containerPort": 80, "hostPort": 8080, "hostIP": "10.0.0.1"}));
        let cases = [
            (json!({"containerPort": 80, "hostPort": 8080}), false),
            (
                json!({"containerPort": 80, "hostPort": 8080, "hostIP": "0.0.0.0"}),
                false,
            ),
            (
                json!({"containerPort": 80, "hostPort": 8080, "hostIP": "10.0.0.2"}),
                true,
            ),
            (json!({"containerPort": 80, "hostPort": 8080, "protocol": "UDP"}), true),
            (json!({"containerPort": 8080}), true),
        ];
        for (port, fine) in cases {
            let others = std::iter::once(&taken);
            let found = check(&with_port(port.clone()), others, &BTreeMap::new(), &Host::default());
            assert_eq!(found.is_ok(), fine, "{port} {found:?}");
        }
    }

    #[test]
    fn the_status_of_a_refused_pod() {
        let finish = Refusal::predicate("NodePorts", "why").finish();
        assert_eq!(finish.reason.as_deref(), Some("NodePorts"));
        assert_eq!(
            finish.message.as_deref(),
            Some("Pod was rejected: Predicate NodePorts failed: why")
        );
    }
}
