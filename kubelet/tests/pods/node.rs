//! The node in the API.

use std::time::Duration;

use serde_json::{Value, json};
use skiff_kubelet::{Config, KubeletConfiguration};

use crate::kubelet::is_ready;
use crate::scene::Scene;

const NODE: &str = "/api/v1/nodes/node-1";

#[tokio::test]
async fn the_node_registers_and_follows_its_network() {
    let scene = Scene::new();
    let ready = |api: &crate::api::Api| api.get(NODE).filter(|node| is_ready(&node["status"]));
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

#[tokio::test]
async fn what_a_node_is_registered_with_is_the_administrators_afterwards() {
    let mut scene = Scene::idle();
    let taint = skiff_kubelet::config::Taint {
        key: "example.com/new".into(),
        value: String::new(),
        effect: "NoSchedule".into(),
    };
    scene.config.kubelet.register_with_taints = vec![taint];
    scene.config.kubelet.provider_id = "test://1".into();
    scene.config.flags.node_labels = [("example.com/role".into(), "a".into())].into();
    scene.start();
    let node = |api: &crate::api::Api| api.get(NODE).filter(|node| is_ready(&node["status"]));
    let found = scene.api.until("ready node", node).await;
    assert_eq!(
        found["spec"],
        json!({"providerID": "test://1", "taints": [{"key": "example.com/new", "effect": "NoSchedule"}]})
    );
    assert_eq!(found["metadata"]["labels"]["example.com/role"], "a");
    scene.kill().await;
    scene.api.edit(NODE, |node| {
        node["spec"]["taints"] = json!([]);
        node["metadata"]["labels"]["example.com/role"] = "b".into();
        node["metadata"]["labels"]["kubernetes.io/os"] = "plan9".into();
        node["status"]["nodeInfo"]["bootID"] = "another".into();
    });
    scene.start();
    let right = |api: &crate::api::Api| {
        api.get(NODE).filter(|node| {
            node["metadata"]["labels"]["kubernetes.io/os"] == "linux"
                && node["status"]["nodeInfo"]["bootID"] != "another"
        })
    };
    let found = scene.api.until("the node's facts", right).await;
    assert_eq!(found["metadata"]["labels"]["example.com/role"], "b");
    assert_eq!(found["spec"]["taints"], json!([]));
    let boot_id = found["status"]["nodeInfo"]["bootID"].as_str().unwrap_or_default();
    let event = format!("Rebooted: Node node-1 has been rebooted, boot id: {boot_id}");
    scene.until_event(&event).await;
}

#[tokio::test]
async fn pods_run_by_what_kubeadm_writes() {
    let mut scene = Scene::idle();
    let file = scene.dir.path().join("config.yaml");
    std::fs::write(&file, include_str!("../../src/config/kubeadm.yaml")).expect("a file");
    let loaded = Config::load(Some(&file), scene.config.flags.clone()).expect("a configuration");
    // Where the test is and what it spares the machine stays its own.
    let own = scene.config.kubelet.clone();
    scene.config.kubelet = KubeletConfiguration {
        pod_logs_dir: own.pod_logs_dir,
        cgroup_root: own.cgroup_root,
        cgroup_driver: own.cgroup_driver,
        enable_server: false,
        healthz_port: 0,
        eviction_hard: own.eviction_hard,
        image_gc_high_threshold_percent: own.image_gc_high_threshold_percent,
        static_pod_path: Some(scene.dir.path().join("manifests")),
        ..loaded.kubelet
    };
    scene.start();
    scene.create("p", &json!({}));
    scene.until_ready("p").await;
    let node = scene.api.get(NODE).expect("the node");
    assert_eq!(node["status"]["capacity"]["pods"], "110");
}

#[tokio::test]
async fn an_image_that_was_unused_for_long_goes() {
    let mut scene = Scene::idle();
    scene.config.kubelet.image_maximum_gc_age.0 = Duration::from_secs(60);
    scene.runtime.add_image("unused:1");
    scene.start();
    scene.create("p", &json!({}));
    scene.until_ready("p").await;
    let removed = |calls: Vec<String>| {
        calls
            .into_iter()
            .filter(|call| call.starts_with("RemoveImage"))
            .collect::<Vec<_>>()
    };
    assert_eq!(removed(scene.runtime.calls()), [""; 0]);
    // Until the next look, and past the age.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(301)).await;
    tokio::time::resume();
    let runtime = scene.runtime.clone();
    let gone = |_: &crate::api::Api| (removed(runtime.calls()).len() == 1).then_some(());
    scene.api.until("the unused image's end", gone).await;
    let used = skiff_cri::Runtime::image_status(&scene.runtime, "busybox:1")
        .await
        .expect("an answer");
    assert!(used.is_some(), "what runs keeps its image");
}

/// The node controller says that it heard nothing; what it said stays until the kubelet says otherwise.
#[tokio::test]
async fn what_others_made_of_the_status_is_put_right() {
    let mut scene = Scene::idle();
    let tick = &mut scene.config.kubelet.node_status_update_frequency;
    tick.0 = Duration::from_millis(50);
    scene.start();
    let ready = |api: &crate::api::Api| api.get(NODE).filter(|node| is_ready(&node["status"]));
    scene.api.until("ready node", ready).await;
    let foreign = json!({"type": "KernelDeadlock", "status": "False"});
    scene.api.edit(NODE, |node| {
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
    let message = |node: &Value| {
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions
            .iter()
            .find(|c| c["type"] == "Ready")
            .and_then(|c| c["message"].as_str().map(str::to_owned))
    };
    let unready = |api: &crate::api::Api| api.get(NODE).as_ref().and_then(message);
    let text = scene.api.until("unready node", unready).await;
    assert!(
        text.starts_with("container runtime network not ready: NetworkReady=false"),
        "{text}"
    );
    scene.runtime.set_network_ready(true);
    scene
        .api
        .until("ready node", |api| {
            api.get(NODE).filter(|node| is_ready(&node["status"]))
        })
        .await;
}

/// It is work for the runtime, which is done before a pod is evicted, and not while there is none to evict.
#[tokio::test]
async fn the_runtime_is_told_to_free_only_when_that_may_help() {
    let mut scene = Scene::new();
    scene.create("p", &json!({"terminationGracePeriodSeconds": 1}));
    scene.until_ready("p").await;
    scene.kill().await;
    let hard = &mut scene.config.kubelet.eviction_hard;
    hard.insert("imagefs.available".into(), "1000Pi".into());
    let before = scene.runtime.calls().len();
    scene.start();
    let evicted = |api: &crate::api::Api| {
        let pods = api.list("pods");
        let gone = pods.iter().all(|pod| pod["status"]["reason"] == "Evicted");
        gone.then_some(())
    };
    scene.api.until("the eviction", evicted).await;
    let calls = scene.runtime.calls();
    let at = |call: &str| calls[before..].iter().position(|found| found.starts_with(call));
    assert!(
        at("FreeRemoved").is_some() && at("FreeRemoved") < at("StopContainer"),
        "{calls:?}"
    );
    let count = |runtime: &skiff_cri::fake::FakeRuntime, call: &str| {
        let calls = runtime.calls();
        calls.iter().filter(|found| found.starts_with(call)).count()
    };
    let runtime = scene.runtime.clone();
    let cleared = |_: &crate::api::Api| (count(&runtime, "RemoveContainer") > 0).then_some(());
    scene.api.until("the dead container's end", cleared).await;
    // Another kubelet finds nothing to remove.
    scene.kill().await;
    let freed = count(&runtime, "FreeRemoved");
    let rounds = |api: &crate::api::Api| {
        let events = api.list("events");
        let met = events.iter().filter(|event| event["reason"] == "EvictionThresholdMet");
        met.map(|event| event["count"].as_u64().unwrap_or(1)).sum::<u64>()
    };
    let first = rounds(&scene.api);
    scene.start();
    let more = |api: &crate::api::Api| (rounds(api) > first + 2).then_some(());
    scene.api.until("three rounds", more).await;
    assert_eq!(count(&runtime, "FreeRemoved"), freed);
}

/// What an evicted pod had on the disk may be all that was missing: it is waited for before the next pod is chosen.
#[tokio::test]
async fn the_next_pod_is_evicted_when_the_one_before_is_gone() {
    let mut scene = Scene::new();
    for name in ["a", "b"] {
        scene.create(name, &json!({"terminationGracePeriodSeconds": 1}));
        scene.until_ready(name).await;
    }
    scene.kill().await;
    let hard = &mut scene.config.kubelet.eviction_hard;
    hard.insert("nodefs.available".into(), "1000Pi".into());
    scene.runtime.break_down("StopPodSandbox", "busy");
    let before = scene.runtime.calls().len();
    scene.start();
    let evicted = |api: &crate::api::Api| {
        let pods = api.list("pods");
        pods.iter().filter(|pod| pod["status"]["reason"] == "Evicted").count()
    };
    let tries = |calls: &[String]| calls.iter().filter(|call| call.starts_with("StopPodSandbox")).count();
    let runtime = scene.runtime.clone();
    let tried = |_: &crate::api::Api| (tries(&runtime.calls()[before..]) > 3).then_some(());
    scene.api.until("tries to stop the sandbox", tried).await;
    assert_eq!(evicted(&scene.api), 1);
    scene.runtime.mend("StopPodSandbox");
    let both = |api: &crate::api::Api| (evicted(api) == 2).then_some(());
    scene.api.until("the other pod's eviction", both).await;
}
