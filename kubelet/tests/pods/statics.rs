//! Static pods: manifests of a directory, shown in the API by mirrors.

use std::path::PathBuf;

use serde_json::{Value, json};
use skiff_cri::Runtime as _;

use crate::kubelet::{Kubelet, is_ready};
use crate::scene::Scene;

const NAME: &str = "web-node-1";

fn manifest(image: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "ns", "labels": {"app": "web"}},
        "spec": {"terminationGracePeriodSeconds": 1,
                 "containers": [{"name": "c", "image": image, "imagePullPolicy": "IfNotPresent"}]},
    })
    .to_string()
}

fn scene() -> (Scene, PathBuf) {
    let mut scene = Scene::idle();
    let manifests = scene.dir.path().join("manifests");
    std::fs::create_dir(&manifests).expect("a directory");
    scene.config.kubelet.static_pod_path = Some(manifests.clone());
    scene.runtime.add_image("busybox:2");
    (scene, manifests.join("web.yaml"))
}

async fn sandboxes(scene: &Scene) -> usize {
    scene
        .runtime
        .list_sandboxes(&Default::default())
        .await
        .expect("a list")
        .len()
}

#[tokio::test]
async fn a_manifest_runs_shows_and_goes() {
    let (mut scene, file) = scene();
    std::fs::write(&file, manifest("busybox:1")).unwrap();
    scene.start();
    let status = scene.until_ready(NAME).await;
    assert_eq!(status["phase"], "Running");
    let mirror = scene.api.get(&Kubelet::path(NAME)).unwrap();
    let annotations = &mirror["metadata"]["annotations"];
    assert_eq!(annotations["kubernetes.io/config.source"], "file");
    assert_eq!(
        annotations["kubernetes.io/config.mirror"],
        annotations["kubernetes.io/config.hash"]
    );
    assert_eq!(mirror["metadata"]["ownerReferences"][0]["kind"], "Node");

    // A changed manifest is another pod; the old one ends first.
    std::fs::write(&file, manifest("busybox:2")).unwrap();
    let changed = |api: &crate::api::Api| {
        let pod = api.get(&Kubelet::path(NAME))?;
        (pod["spec"]["containers"][0]["image"] == "busybox:2" && is_ready(&pod["status"])).then_some(())
    };
    scene.api.until("changed pod", changed).await;
    assert_eq!(sandboxes(&scene).await, 1);

    std::fs::remove_file(&file).unwrap();
    scene.until_gone(NAME).await;
    assert_eq!(sandboxes(&scene).await, 0);

    // The very same manifest may come back.
    std::fs::write(&file, manifest("busybox:2")).unwrap();
    scene.until_ready(NAME).await;
}

#[tokio::test]
async fn a_static_pod_needs_no_api_server_and_survives_its_kubelet() {
    let (mut scene, file) = scene();
    std::fs::write(&file, manifest("busybox:1")).unwrap();
    scene.api.set_away(true);
    scene.start();
    let runtime = scene.runtime.clone();
    let started = |_: &crate::api::Api| {
        runtime
            .calls()
            .iter()
            .any(|c| c.starts_with("StartContainer"))
            .then_some(())
    };
    scene.api.until("start without an API server", started).await;
    scene.api.set_away(false);
    scene.until_ready(NAME).await;
    let before = scene.running("c").await;
    scene.kill().await;
    scene.start();
    scene.create("other", &json!({}));
    scene.until_ready("other").await;
    assert!(
        scene.running("c").await.contains(&before[0]),
        "the same container runs on"
    );
    assert_eq!(sandboxes(&scene).await, 2);
}

#[tokio::test]
async fn a_mirror_is_made_anew_and_none_is_left_over() {
    let (mut scene, file) = scene();
    std::fs::write(&file, manifest("busybox:1")).unwrap();
    scene.start();
    scene.until_ready(NAME).await;
    let uid = |scene: &Scene| {
        scene
            .api
            .get(&Kubelet::path(NAME))
            .map(|pod| pod["metadata"]["uid"].clone())
    };
    let first = uid(&scene).unwrap();
    let again = |first: Value| {
        move |api: &crate::api::Api| {
            let pod = api.get(&Kubelet::path(NAME))?;
            (pod["metadata"]["uid"] != first && is_ready(&pod["status"])).then_some(())
        }
    };
    // What `kubectl delete` does, graceful and forced.
    scene.delete(NAME, 30);
    scene.api.until("another mirror", again(first)).await;
    let second = uid(&scene).unwrap();
    scene.api.remove(&Kubelet::path(NAME));
    scene.api.until("a third mirror", again(second)).await;
    assert_eq!(scene.running("c").await.len(), 1);
    assert_eq!(sandboxes(&scene).await, 1, "the pod itself is untouched");

    scene.kill().await;
    std::fs::remove_file(&file).unwrap();
    scene.start();
    scene.until_gone(NAME).await;
    let runtime = scene.runtime.clone();
    let ended = |_: &crate::api::Api| {
        runtime
            .calls()
            .iter()
            .any(|c| c.starts_with("RemovePodSandbox"))
            .then_some(())
    };
    scene.api.until("end of the pod", ended).await;
}
