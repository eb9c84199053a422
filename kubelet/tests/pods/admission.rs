//! Pods that were bound to the node and that it cannot take.

use serde_json::{Value, json};

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
