//! Ten minutes without the API server, of a time that passes as fast as the kubelet has nothing to do.

use std::time::Duration;

use serde_json::{Value, json};
use skiff_cri::Runtime as _;
use tokio::time::{Instant, sleep};

use crate::kubelet::is_ready;
use crate::scene::Scene;

const OUTAGE: Duration = Duration::from_secs(600);

fn with(name: &str, more: &Value) -> Value {
    let mut spec = json!({"containers": [{"name": name, "image": "busybox:1", "imagePullPolicy": "IfNotPresent"}]});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec["containers"][0][key] = value.clone();
    }
    spec
}

#[tokio::test(start_paused = true)]
async fn ten_minutes_without_the_api_server() {
    let scene = Scene::new();
    let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
    let probes = json!({"livenessProbe": probe, "readinessProbe": probe});
    let mut spec = with("steady", &probes);
    // To be renewed after 480 s, when nobody can.
    let token = json!({"path": "token", "expirationSeconds": 600});
    spec["volumes"] = json!([{"name": "t", "projected": {"sources": [{"serviceAccountToken": token}]}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "t", "mountPath": "/t"}]);
    scene.create("steady", &spec);
    scene.create("crashing", &with("crashing", &json!({})));
    let mut once = with("once", &json!({}));
    once["restartPolicy"] = "Never".into();
    scene.create("once", &once);
    for name in ["steady", "crashing", "once"] {
        scene.until_ready(name).await;
    }
    let steady = scene.running("steady").await;

    scene.api.set_away(true);
    let begin = Instant::now();
    scene.runtime.exit_container(&scene.running("once").await[0], 0);
    let mut starts = Vec::new();
    while begin.elapsed() < OUTAGE {
        if let Some(id) = scene.running("crashing").await.first() {
            starts.push(begin.elapsed().as_secs());
            scene.runtime.exit_container(id, 1);
        }
        sleep(Duration::from_millis(100)).await;
    }
    // At once, then after 10 s, twice that, and so on.
    let wanted = [0, 0, 10, 30, 70, 150, 310];
    let near = |(start, wanted): (&u64, &u64)| start.abs_diff(*wanted) <= 6;
    assert!(
        starts.len() == wanted.len() && starts.iter().zip(&wanted).all(near),
        "{starts:?}"
    );

    scene.api.set_away(false);
    let back = Instant::now();
    let restarts = starts.len() - 1;
    let told = |status: &Value| status["containerStatuses"][0]["restartCount"] == restarts;
    scene
        .until_status("crashing", "restarts that were not told", told)
        .await;
    scene
        .until_status("once", "success", |status| status["phase"] == "Succeeded")
        .await;
    let took = back.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    let status = scene.until_status("steady", "Ready pod", is_ready).await;
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(scene.running("steady").await, steady, "the same container");
    assert_eq!(scene.running("once").await, Vec::<String>::new(), "it is not run twice");
    let sandboxes = scene.runtime.list_sandboxes(&Default::default()).await.unwrap();
    assert_eq!(sandboxes.len(), 3, "one each");
}
