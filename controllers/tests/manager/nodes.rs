//! Node ranges, silence and eviction.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{Cluster, eventually, holds_for, text};

/// A manager that loses patience fast.
async fn impatient() -> Cluster {
    Cluster::with(|config| {
        config.node_monitor_period = Duration::from_millis(50);
        config.node_monitor_grace_period = Duration::from_millis(800);
        config.node_eviction_rate = 10.0;
    })
    .await
}

fn taints(node: &Value) -> Vec<String> {
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    taints
        .iter()
        .map(|taint| format!("{}:{}", text(&taint["key"]), text(&taint["effect"])))
        .collect()
}

/// Renews the leases of some nodes until the returned guard is dropped.
fn keep_alive(cluster: &Cluster, nodes: &'static [&'static str]) -> tokio::task::JoinHandle<()> {
    let client = cluster.client.clone();
    tokio::spawn(async move {
        for round in 0_u64.. {
            for node in nodes {
                let time = jiff::Timestamp::from_second(1_800_000_000).unwrap() + Duration::from_millis(round);
                let renewed = time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
                let body = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": node}, "spec": {"renewTime": renewed}});
                let base = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
                let (method, path) = if round == 0 {
                    ("POST", base.to_owned())
                } else {
                    ("PATCH", format!("{base}/{node}"))
                };
                let content_type = if round == 0 {
                    "application/json"
                } else {
                    "application/merge-patch+json"
                };
                let request = http::Request::builder()
                    .method(method)
                    .uri(path)
                    .header("content-type", content_type);
                client
                    .request::<Value>(request.body(body.to_string().into_bytes()).unwrap())
                    .await
                    .ok();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_gets_a_range_of_its_own() {
    let cluster = Cluster::start().await;
    let taken =
        json!({"metadata": {"name": "old"}, "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]}});
    cluster.post("/api/v1/nodes", taken).await;
    cluster.play_nodes(5).await;
    eventually("all six have different ranges", async || {
        let nodes = cluster.list("/api/v1/nodes").await;
        let ranges: BTreeSet<_> = nodes
            .iter()
            .map(|node| text(&node["spec"]["podCIDR"]).to_owned())
            .filter(|range| !range.is_empty())
            .collect();
        ranges.len() == 6
    })
    .await;
    let node = cluster.get("/api/v1/nodes/node-0").await;
    assert_eq!(node["spec"]["podCIDRs"], json!([node["spec"]["podCIDR"]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_loses_its_pods_and_gets_new_ones_when_it_speaks() {
    let cluster = impatient().await;
    cluster.play_nodes(3).await;
    let alive = keep_alive(&cluster, &["node-1", "node-2"]);
    let tolerations = json!([
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2},
    ]);
    let mut pod = crate::cluster::template("solo", "one");
    pod["metadata"]["name"] = json!("solo");
    pod["spec"]["nodeName"] = json!("node-0");
    pod["spec"]["tolerations"] = tolerations;
    cluster.post("/api/v1/namespaces/default/pods", pod).await;
    let path = "/api/v1/namespaces/default/pods/solo";

    eventually("the silent node is unknown and tainted", async || {
        let node = cluster.get("/api/v1/nodes/node-0").await;
        let found = taints(&node);
        let wanted = [
            "node.kubernetes.io/unreachable:NoSchedule",
            "node.kubernetes.io/unreachable:NoExecute",
        ];
        wanted.iter().all(|taint| found.iter().any(|found| found == taint))
    })
    .await;
    let since = tokio::time::Instant::now();
    let node = cluster.get("/api/v1/nodes/node-0").await;
    assert_eq!(node["status"]["conditions"][0]["reason"], "NodeStatusUnknown");
    assert_eq!(
        node["status"]["conditions"][0]["message"],
        "Kubelet stopped posting node status."
    );
    for other in ["node-1", "node-2"] {
        assert!(
            taints(&cluster.get(&format!("/api/v1/nodes/{other}")).await).is_empty(),
            "{other} speaks"
        );
    }
    eventually("its pod is not ready", async || {
        let pod = cluster.get(path).await;
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        pod.is_null()
            || conditions
                .iter()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "False")
    })
    .await;
    eventually("its pod is deleted", async || cluster.get(path).await.is_null()).await;
    assert!(
        since.elapsed() > Duration::from_millis(1500),
        "not before its toleration ended: {:?}",
        since.elapsed()
    );
    let events = cluster.events("Pod", "solo").await;
    assert!(
        events.contains(&"TaintManagerEviction: Marking for deletion Pod default/solo".to_owned()),
        "{events:?}"
    );

    let back = keep_alive(&cluster, &["node-0"]);
    cluster.set_node_ready(0, "True").await;
    eventually("a node that speaks again has no taints", async || {
        taints(&cluster.get("/api/v1/nodes/node-0").await).is_empty()
    })
    .await;
    alive.abort();
    back.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taint_that_does_not_say_its_time_is_tolerated_for_as_long_as_a_pod_says() {
    let cluster = Cluster::start().await;
    cluster.play_nodes(2).await;
    for (name, seconds) in [("brief", 1), ("patient", 3600)] {
        let mut pod = crate::cluster::template(name, "one");
        pod["metadata"]["name"] = json!(name);
        pod["spec"]["nodeName"] = json!("node-0");
        pod["spec"]["tolerations"] =
            json!([{"key": "mine", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]);
        cluster.post("/api/v1/namespaces/default/pods", pod).await;
    }
    let since = tokio::time::Instant::now();
    cluster
        .kubectl(&["taint", "node", "node-0", "mine=now:NoExecute"])
        .await;
    let node = cluster.get("/api/v1/nodes/node-0").await;
    assert!(node["spec"]["taints"][0]["timeAdded"].is_null(), "{node}");
    eventually("the pod that tolerates it for a second is deleted", async || {
        cluster.get("/api/v1/namespaces/default/pods/brief").await.is_null()
    })
    .await;
    assert!(
        since.elapsed() >= Duration::from_secs(1),
        "not before its toleration ended"
    );
    let patient = cluster.get("/api/v1/namespaces/default/pods/patient").await;
    assert!(patient["metadata"]["deletionTimestamp"].is_null(), "{patient}");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_nodes_are_silent_nobody_is_evicted() {
    let cluster = impatient().await;
    cluster.play_nodes(2).await;
    eventually("both are unknown", async || {
        let nodes = cluster.list("/api/v1/nodes").await;
        nodes
            .iter()
            .all(|node| taints(node).contains(&"node.kubernetes.io/unreachable:NoSchedule".to_owned()))
    })
    .await;
    holds_for(Duration::from_millis(500), "no node is being emptied", async || {
        let nodes = cluster.list("/api/v1/nodes").await;
        nodes
            .iter()
            .all(|node| !taints(node).iter().any(|taint| taint.ends_with("NoExecute")))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cordoned_node_is_tainted() {
    let cluster = Cluster::start().await;
    cluster.play_nodes(1).await;
    cluster.kubectl(&["cordon", "node-0"]).await;
    eventually("the taint is there", async || {
        taints(&cluster.get("/api/v1/nodes/node-0").await) == ["node.kubernetes.io/unschedulable:NoSchedule"]
    })
    .await;
    cluster.kubectl(&["uncordon", "node-0"]).await;
    eventually("and gone", async || {
        taints(&cluster.get("/api/v1/nodes/node-0").await).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pods_of_a_deleted_node_are_removed_and_replaced() {
    let cluster = Cluster::with(|config| config.node_quarantine = Duration::from_millis(500)).await;
    cluster.play_nodes(2).await;
    cluster.create_deployment("web", 4, json!({})).await;
    cluster.wait_deployed("web", 4).await;
    cluster.delete("/api/v1/nodes/node-1", "Background").await;
    let since = tokio::time::Instant::now();
    eventually("no pod is on the node that is gone", async || {
        let pods = cluster.pods("web").await;
        pods.len() >= 4
            && pods
                .iter()
                .all(|pod| pod["spec"]["nodeName"] != "node-1" || !pod["metadata"]["deletionTimestamp"].is_null())
    })
    .await;
    assert!(
        since.elapsed() >= Duration::from_millis(450),
        "not before the quarantine ended"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_that_meets_a_conflict_is_tried_again() {
    let mut cluster = Cluster::start().await;
    cluster.play_nodes(1).await;
    cluster.create_deployment("web", 1, json!({})).await;
    cluster.wait_deployed("web", 1).await;
    let pod = cluster.pods("web").await.remove(0);
    let path = format!("/api/v1/namespaces/default/pods/{}", text(&pod["metadata"]["name"]));
    let (status, once) = (format!("{path}/status"), Arc::new(AtomicBool::new(false)));
    let conflict = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 409,
        "reason": "Conflict", "message": "the object has been modified too often"});
    cluster.restart_manager_behind(move |method, at| {
        let first = method == "PATCH" && at == status && !once.swap(true, Ordering::SeqCst);
        std::future::ready(first.then(|| conflict.clone()))
    });
    let taint = json!({"key": "example.com/away", "effect": "NoExecute"});
    cluster
        .patch("/api/v1/nodes/node-0", json!({"spec": {"taints": [taint]}}))
        .await;
    eventually("the pod is evicted", async || {
        let now = cluster.get(&path).await;
        now["metadata"]["uid"] != pod["metadata"]["uid"] || !now["metadata"]["deletionTimestamp"].is_null()
    })
    .await;
}
