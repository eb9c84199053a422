//! Builders of pods and nodes for tests: JSON in, the parsed model out.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Node, Pod};

/// A pod `default/<name>` with this spec; its UID is its name.
pub(crate) fn pod(name: &str, spec: Value) -> Pod {
    labelled(name, json!({}), spec)
}

/// The same with labels.
pub(crate) fn labelled(name: &str, labels: Value, mut spec: Value) -> Pod {
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c"}]);
    }
    if spec.get("schedulerName").is_none() {
        spec["schedulerName"] = json!("default-scheduler");
    }
    let object = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": labels},
        "spec": spec,
    });
    Pod::new(serde_json::from_value(object).unwrap()).unwrap()
}

/// A pod on a node.
pub(crate) fn running(name: &str, node: &str, labels: Value, mut spec: Value) -> Arc<Pod> {
    spec["nodeName"] = json!(node);
    Arc::new(labelled(name, labels, spec))
}

/// A spec with one container that asks for these.
pub(crate) fn asking(cpu: &str, memory: &str) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]})
}

/// A node of 4 CPUs, 8 GiB and 110 pods, labelled with its name and `labels`.
pub(crate) fn node(name: &str, mut labels: Value) -> Node {
    labels["kubernetes.io/hostname"] = json!(name);
    node_from(json!({"metadata": {"name": name, "labels": labels}}))
}

/// A node with taints.
pub(crate) fn tainted(name: &str, taints: Value) -> Node {
    node_from(json!({"metadata": {"name": name}, "spec": {"taints": taints}}))
}

fn node_from(mut object: Value) -> Node {
    object["status"] =
        json!({"allocatable": {"cpu": "4", "memory": "8Gi", "ephemeral-storage": "10Gi", "pods": "110"}});
    Node::new(serde_json::from_value(object).unwrap()).unwrap()
}

/// With these pods on it.
pub(crate) fn with_pods(mut node: Node, pods: &[Arc<Pod>]) -> Node {
    for pod in pods {
        node.add_pod(Arc::clone(pod));
    }
    node
}
