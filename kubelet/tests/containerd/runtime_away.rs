//! A container runtime that is stopped, started again, or slow to answer: pods go on, and the node says so in time.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::kubelet::Kubelet;
use crate::node::Node;
use crate::{container, is_ready};

fn ready_condition(node: &Node) -> Value {
    let object = node.api.get("/api/v1/nodes/node-1").unwrap_or_default();
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.into_iter().find(|condition| condition["type"] == "Ready");
    ready.unwrap_or_default()
}

async fn until_node(node: &Node, what: &str, limit: Duration, holds: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + limit;
    loop {
        let condition = ready_condition(node);
        if holds(&condition) {
            return condition;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}: {condition}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn started(node: &Node, name: &str) -> (Value, Value) {
    let status = node.api.get(&Kubelet::path(name)).expect("the pod")["status"].clone();
    assert!(is_ready(&status), "{status}");
    let container = &status["containerStatuses"][0];
    (container["containerID"].clone(), container["restartCount"].clone())
}

#[tokio::test]
async fn pods_outlive_a_runtime_that_is_away_and_the_node_bears_it_for_a_while() {
    let mut node = Node::start().await;
    node.config.kubelet.node_status_update_frequency = skiff_kubelet::config::GoDuration::seconds(1);
    node.kill().await;
    node.start_kubelet();
    node.create("p", &json!({"containers": [container("/bin/busybox sleep 1000")]}));
    node.until_status("p", "ready pod", is_ready).await;
    let ready = |condition: &Value| condition["status"] == "True";
    until_node(&node, "a ready node", Duration::from_secs(30), ready).await;
    let before = started(&node, "p");

    // A short absence is not told to anybody.
    node.stop_containerd();
    let away = Instant::now();
    while away.elapsed() < Duration::from_secs(5) {
        assert!(ready(&ready_condition(&node)), "after {:?}", away.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    node.start_containerd();
    node.create("q", &json!({"containers": [container("/bin/busybox sleep 1000")]}));
    node.until_status("q", "a pod on the runtime that is back", is_ready)
        .await;
    assert_eq!(started(&node, "p"), before);

    // A long one is.
    node.stop_containerd();
    let away = Instant::now();
    let condition = until_node(&node, "an unready node", Duration::from_secs(60), |condition| {
        condition["status"] == "False"
    })
    .await;
    assert!(
        away.elapsed() > Duration::from_secs(25),
        "told after {:?} already",
        away.elapsed()
    );
    let message = condition["message"].as_str().unwrap_or_default();
    assert!(message.contains("container runtime is down"), "{condition}");
    assert_eq!(started(&node, "p"), before, "the pod is not the runtime");
    node.start_containerd();
    until_node(&node, "a node that is ready again", Duration::from_secs(30), ready).await;
    assert_eq!(started(&node, "p"), before);
    for name in ["p", "q"] {
        node.delete(name, 1);
        node.until_gone(name).await;
    }
    assert_eq!(node.leftovers().await, Vec::<String>::new());
}

/// When the node's lease was last renewed.
fn renewal(node: &Node) -> Value {
    let lease = node
        .api
        .get("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-1");
    lease.unwrap_or_default()["spec"]["renewTime"].clone()
}

#[tokio::test]
async fn a_runtime_that_stalls_delays_but_breaks_nothing() {
    let mut node = Node::without_kubelet().await;
    // Renewed every second: what the test counts by.
    node.config.kubelet.node_lease_duration_seconds = 4;
    node.start_kubelet();
    node.create("p", &json!({"containers": [container("/bin/busybox sleep 1000")]}));
    node.until_status("p", "ready pod", is_ready).await;
    let before = started(&node, "p");
    node.signal_containerd(Signal::SIGSTOP);
    node.create("q", &json!({"containers": [container("/bin/busybox sleep 1000")]}));
    for _ in 0..3 {
        let last = renewal(&node);
        let renewed = |api: &crate::api::Api| {
            let lease = api.get("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-1");
            (lease.unwrap_or_default()["spec"]["renewTime"] != last).then_some(())
        };
        node.api.until("a renewal of the lease", renewed).await;
        assert_eq!(ready_condition(&node)["status"], "True");
        assert_eq!(started(&node, "p"), before);
        let waiting = node.api.get(&Kubelet::path("q")).expect("the pod")["status"].clone();
        assert!(!is_ready(&waiting), "{waiting}");
    }
    node.signal_containerd(Signal::SIGCONT);
    node.until_status("q", "a pod on the runtime that goes on", is_ready)
        .await;
    assert_eq!(started(&node, "p"), before);
}
