//! The node in the API.

use serde_json::{Value, json};

use crate::kubelet::is_ready;
use crate::scene::Scene;

#[tokio::test]
async fn the_node_registers_and_follows_its_network() {
    let scene = Scene::new();
    let node = "/api/v1/nodes/node-1";
    let ready = |api: &crate::api::Api| api.get(node).filter(|node| is_ready(&node["status"]));
    let found = scene.api.until("ready node", ready).await;
    assert_eq!(found["metadata"]["labels"]["kubernetes.io/hostname"], "node-1");
    assert_eq!(
        found["status"]["addresses"],
        json!([{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": "node-1"}])
    );
    assert_eq!(found["status"]["nodeInfo"]["containerRuntimeVersion"], "fake://1.0.0");
    assert_eq!(found["status"]["images"].as_array().map(Vec::len), Some(1));
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-1";
    let renewed = |api: &crate::api::Api| api.get(lease);
    let lease = scene.api.until("lease", renewed).await;
    assert_eq!(
        (&lease["spec"]["holderIdentity"], &lease["spec"]["leaseDurationSeconds"]),
        (&json!("node-1"), &json!(40))
    );
    scene.until_event("Starting: Starting kubelet.").await;
    scene
        .until_event("NodeReady: Node node-1 status is now: NodeReady")
        .await;
}

/// The node controller says that it heard nothing; what it said stays until the kubelet says otherwise.
#[tokio::test]
async fn what_others_made_of_the_status_is_put_right() {
    let mut scene = Scene::idle();
    let tick = &mut scene.config.kubelet.node_status_update_frequency;
    tick.0 = std::time::Duration::from_millis(50);
    scene.start();
    let node = "/api/v1/nodes/node-1";
    let ready = |api: &crate::api::Api| api.get(node).filter(|node| is_ready(&node["status"]));
    scene.api.until("ready node", ready).await;
    let foreign = json!({"type": "KernelDeadlock", "status": "False"});
    scene.api.edit(node, |node| {
        let conditions = node["status"]["conditions"].as_array_mut().expect("conditions");
        for condition in conditions.iter_mut() {
            condition["status"] = "Unknown".into();
            condition["reason"] = "NodeStatusUnknown".into();
            condition["lastTransitionTime"] = "2020-01-01T00:00:00Z".into();
        }
        conditions.push(foreign.clone());
    });
    let found = scene.api.until("ready node again", ready).await;
    let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions
        .iter()
        .find(|condition| condition["type"] == "Ready")
        .expect("a condition");
    assert_eq!(ready["reason"], "KubeletReady");
    assert_ne!(ready["lastTransitionTime"], "2020-01-01T00:00:00Z");
    assert!(conditions.contains(&foreign), "what others say beside it stays");
}

#[tokio::test]
async fn a_node_waits_for_its_network() {
    let mut scene = Scene::new();
    scene.kill().await;
    scene.api.remove("/api/v1/nodes/node-1");
    scene.runtime.set_network_ready(false);
    scene.start();
    let node = "/api/v1/nodes/node-1";
    let message = |node: &Value| {
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions
            .iter()
            .find(|c| c["type"] == "Ready")
            .and_then(|c| c["message"].as_str().map(str::to_owned))
    };
    let unready = |api: &crate::api::Api| api.get(node).as_ref().and_then(message);
    let text = scene.api.until("unready node", unready).await;
    assert!(
        text.starts_with("container runtime network not ready: NetworkReady=false"),
        "{text}"
    );
    scene.runtime.set_network_ready(true);
    scene
        .api
        .until("ready node", |api| {
            api.get(node).filter(|node| is_ready(&node["status"]))
        })
        .await;
}
