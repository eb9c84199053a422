//! Pods that were bound to the node and that it cannot take.

use serde_json::{Value, json};
use skiff_cri::Runtime as _;

use crate::scene::Scene;

async fn refused(scene: &Scene, name: &str) -> (String, String) {
    let status = scene
        .until_status(name, "refused pod", |status| status["phase"] == "Failed")
        .await;
    let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
    (text("reason"), text("message"))
}

#[tokio::test]
async fn a_node_refuses_what_it_cannot_hold() {
    let scene = Scene::new();
    let request = |request: Value| {
        json!({"containers": [{"name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent",
                               "resources": {"requests": request}}]})
    };
    scene.create("cpu", &request(json!({"cpu": "100000"})));
    let (reason, message) = refused(&scene, "cpu").await;
    assert_eq!(reason, "OutOfcpu");
    let begin = "Pod was rejected: Node didn't have enough resource: cpu, requested: 100000000, used: 0, capacity: ";
    assert!(message.starts_with(begin), "{message}");
    scene
        .until_event(&format!("OutOfcpu: {}", &message["Pod was rejected: ".len()..]))
        .await;

    scene.create("labels", &json!({"nodeSelector": {"zone": "nowhere"}}));
    let (reason, message) = refused(&scene, "labels").await;
    assert_eq!(reason, "NodeAffinity");
    assert_eq!(
        message,
        "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
    );
    scene.create("fine", &json!({"nodeSelector": {"kubernetes.io/hostname": "node-1"}}));
    scene.until_ready("fine").await;

    let port = json!({"containers": [{"name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent",
                                      "ports": [{"containerPort": 80, "hostPort": 8080}]}]});
    scene.create("first", &port);
    scene.until_ready("first").await;
    scene.create("second", &port);
    assert_eq!(refused(&scene, "second").await.0, "NodePorts");
    scene.delete("first", 1);
    scene.until_gone("first").await;
    scene.create("third", &port);
    scene.until_ready("third").await;

    scene.create(
        "sysctl",
        &json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
    );
    assert_eq!(refused(&scene, "sysctl").await.0, "SysctlForbidden");

    // A refused pod goes like any other.
    scene.delete("cpu", 1);
    scene.until_gone("cpu").await;
    let sandboxes = scene
        .runtime
        .calls()
        .iter()
        .filter(|c| c.starts_with("RunPodSandbox"))
        .count();
    assert_eq!(sandboxes, 3, "nothing of a refused pod was made");
}

/// A pod of the system that does not fit makes another one end, and begins when it has.
#[tokio::test]
async fn a_critical_pod_makes_room_for_itself() {
    let mut scene = Scene::idle();
    scene.config.kubelet.max_pods = 1;
    scene.start();
    scene.create("ordinary", &json!({"terminationGracePeriodSeconds": 1}));
    scene.until_ready("ordinary").await;
    scene.create("late", &json!({}));
    assert_eq!(refused(&scene, "late").await.0, "OutOfpods");
    scene.create("critical", &json!({"priority": 2_000_000_000}));
    let (reason, message) = refused(&scene, "ordinary").await;
    assert_eq!(
        (reason.as_str(), message.as_str()),
        ("Preempting", "Preempted in order to admit critical pod")
    );
    let target = |status: &Value| {
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        conditions
            .into_iter()
            .find(|condition| condition["type"] == "DisruptionTarget")
    };
    let status = scene
        .until_status("ordinary", "condition", |status| target(status).is_some())
        .await;
    let target = target(&status).unwrap_or_default();
    assert_eq!(target["reason"], "TerminationByKubelet");
    assert_eq!(
        target["message"],
        "Pod was preempted by Kubelet to accommodate a critical pod."
    );
    scene
        .until_event("Preempting: Preempted in order to admit critical pod")
        .await;
    scene.until_ready("critical").await;
    let calls = scene.runtime.calls();
    let last = |call: &str| calls.iter().rposition(|found| found.starts_with(call)).expect("a call");
    assert!(
        last("StopContainer") < last("RunPodSandbox"),
        "the one ended before the other began: {calls:?}"
    );
}

/// What no room would help is found out before another pod ends for it.
#[tokio::test]
async fn nobody_makes_room_for_a_pod_that_is_not_taken() {
    let mut scene = Scene::idle();
    scene.config.kubelet.max_pods = 1;
    scene.start();
    scene.create("ordinary", &json!({"terminationGracePeriodSeconds": 1}));
    scene.until_ready("ordinary").await;
    let critical = |mut spec: Value| {
        spec["priority"] = 2_000_000_000.into();
        spec
    };
    scene.create("elsewhere", &critical(json!({"nodeSelector": {"zone": "nowhere"}})));
    assert_eq!(refused(&scene, "elsewhere").await.0, "NodeAffinity");
    scene.create("windows", &critical(json!({"os": {"name": "windows"}})));
    assert_eq!(refused(&scene, "windows").await.0, "PodOSNotSupported");
    assert!(
        !scene
            .runtime
            .calls()
            .iter()
            .any(|call| call.starts_with("StopContainer"))
    );
    scene.create("critical", &critical(json!({})));
    assert_eq!(refused(&scene, "ordinary").await.0, "Preempting");
    scene.until_ready("critical").await;
}

#[tokio::test]
async fn a_taint_that_ends_pods_keeps_them_out() {
    let mut scene = Scene::idle();
    let taints = json!([{"key": "broken", "effect": "NoExecute"}, {"key": "full", "effect": "NoSchedule"}]);
    scene.taint(&taints);
    scene.start();
    scene.create("refused", &json!({}));
    let (reason, message) = refused(&scene, "refused").await;
    assert_eq!(reason, "TaintToleration");
    assert_eq!(
        message,
        "Pod was rejected: Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate"
    );
    scene.create(
        "tolerant",
        &json!({"tolerations": [{"key": "broken", "operator": "Exists"}]}),
    );
    scene.until_ready("tolerant").await;
    scene.taint(&json!([]));
    scene.create("late", &json!({}));
    scene.until_ready("late").await;
}

/// A RuntimeClass names the runtime's handler; its overhead is the pod's, not the containers'.
#[tokio::test]
async fn a_runtime_class_gives_handler_and_overhead() {
    let scene = Scene::new();
    let spec = json!({"runtimeClassName": "sandboxed", "overhead": {"memory": "16Mi", "cpu": "100m"},
        "containers": [{"name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent",
                        "resources": {"limits": {"memory": "32Mi", "cpu": "200m"}}}]});
    scene.create("p", &spec);
    let text = "FailedCreatePodSandBox: Failed to create pod sandbox: failed to get RuntimeClass \"sandboxed\"";
    let told = |api: &crate::api::Api| api.events().iter().any(|event| event.starts_with(text)).then_some(());
    scene.api.until("an event about the missing class", told).await;
    scene.api.put(
        "/apis/node.k8s.io/v1/runtimeclasses/sandboxed",
        json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "sandboxed"}, "handler": "kata"}),
    );
    scene.until_ready("p").await;
    let sandboxes = scene.runtime.list_sandboxes(&Default::default()).await.expect("a list");
    assert_eq!(sandboxes[0].runtime_handler, "kata");
    let pod = scene.cgroup("memory").join("kubepods/poduid-p/memory.limit_in_bytes");
    let limit = std::fs::read_to_string(&pod).unwrap_or_default();
    assert_eq!(limit.trim(), (48 << 20).to_string(), "{}", pod.display());
    let id = &scene.running("c").await[0];
    let config = scene.runtime.container_config(id).expect("the container");
    assert_eq!(config.resources.memory_limit, 32 << 20);
}
