//! The kubelet killed at every step of a pod's start and of its stop: before and after each call to the runtime, and each
//! write to the API.

use serde_json::{Value, json};
use skiff_cri::{Runtime as _, SandboxState};

use crate::kubelet::{Kubelet, is_ready};
use crate::scene::Scene;

/// A pod with all that is set up and taken away: an init container, a sidecar, volumes, a preStop hook.
fn spec() -> Value {
    let image = json!({"image": "busybox:1", "imagePullPolicy": "IfNotPresent"});
    let with = |name: &str, more: Value| {
        let mut container = image.clone();
        container["name"] = name.into();
        for (key, value) in more.as_object().into_iter().flatten() {
            container[key] = value.clone();
        }
        container
    };
    let hook = json!({"lifecycle": {"preStop": {"exec": {"command": ["true"]}}},
                      "volumeMounts": [{"name": "memory", "mountPath": "/m", "subPath": "a"}]});
    json!({
        "volumes": [{"name": "memory", "emptyDir": {"medium": "Memory"}}, {"name": "config", "configMap": {"name": "cm"}}],
        "initContainers": [with("side", json!({"restartPolicy": "Always"}))],
        "containers": [with("c", hook)],
    })
}

fn config_map(scene: &Scene) {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm", "namespace": "ns"}, "data": {"a": "1"}});
    scene.api.put("/api/v1/namespaces/ns/configmaps/cm", map);
}

/// What must not be there once the pod is gone.
async fn assert_clean(scene: &Scene, when: &str) {
    let sandboxes = scene.runtime.list_sandboxes(&Default::default()).await.expect("a list");
    assert!(sandboxes.is_empty(), "{when}: {sandboxes:?}");
    assert!(!scene.pod_dir("p").exists(), "{when}: the pod's directory is left");
    assert!(
        !scene.cgroup("memory").join("kubepods/besteffort/poduid-p").exists(),
        "{when}: the pod's cgroup is left"
    );
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("a file");
    let own = scene.pod_dir("p").to_string_lossy().into_owned();
    assert!(!mounts.contains(&own), "{when}: a mount is left");
}

async fn assert_one_of_each(scene: &Scene, when: &str) {
    for name in ["side", "c"] {
        assert_eq!(scene.running(name).await.len(), 1, "{when}: {name}");
    }
    let sandboxes = scene.runtime.list_sandboxes(&Default::default()).await.expect("a list");
    let ready = sandboxes.iter().filter(|sandbox| sandbox.state == SandboxState::Ready);
    assert_eq!(ready.count(), 1, "{when}");
}

/// Where the kubelet hangs, so that it can be killed there.
#[derive(Clone, Copy, Debug)]
enum Where {
    Runtime,
    Api,
}

fn freeze(scene: &Scene, place: Where, steps: Option<usize>) {
    match place {
        Where::Runtime => scene.runtime.freeze_after(steps),
        Where::Api => scene.api.freeze_after(steps),
    }
}

fn is_frozen(scene: &Scene, place: Where) -> bool {
    match place {
        Where::Runtime => scene.runtime.is_frozen(),
        Where::Api => scene.api.is_frozen(),
    }
}

/// Waits until the kubelet hangs, or until it has come through.
async fn frozen_or(scene: &Scene, place: Where, through: impl Fn(Option<Value>) -> bool) -> bool {
    let wait = |api: &crate::api::Api| {
        if is_frozen(scene, place) {
            return Some(true);
        }
        through(api.get(&Kubelet::path("p"))).then_some(false)
    };
    scene.api.until("a hang or an end", wait).await
}

async fn start_walk(place: Where) -> usize {
    for step in 0.. {
        let when = format!("killed at step {step} of the start ({place:?})");
        let mut scene = Scene::idle();
        config_map(&scene);
        freeze(&scene, place, Some(step));
        scene.start();
        scene.create("p", &spec());
        let ready = |pod: Option<Value>| pod.is_some_and(|pod| is_ready(&pod["status"]));
        let frozen = frozen_or(&scene, place, ready).await;
        scene.kill().await;
        freeze(&scene, place, None);
        scene.start();
        scene.until_ready("p").await;
        assert_one_of_each(&scene, &when).await;
        scene.delete("p", 1);
        scene.until_gone("p").await;
        scene.kill().await;
        assert_clean(&scene, &when).await;
        if !frozen {
            return step;
        }
    }
    0
}

async fn stop_walk(place: Where) -> usize {
    for step in 0.. {
        let when = format!("killed at step {step} of the stop ({place:?})");
        let mut scene = Scene::new();
        config_map(&scene);
        scene.create("p", &spec());
        scene.until_ready("p").await;
        freeze(&scene, place, Some(step));
        scene.delete("p", 1);
        let frozen = frozen_or(&scene, place, |pod| pod.is_none()).await;
        scene.kill().await;
        freeze(&scene, place, None);
        let hooks = |scene: &Scene| {
            scene
                .runtime
                .calls()
                .iter()
                .filter(|call| call.starts_with("ExecSync"))
                .count()
        };
        scene.start();
        scene.until_gone("p").await;
        scene.kill().await;
        assert_clean(&scene, &when).await;
        assert!(
            (1..=2).contains(&hooks(&scene)),
            "{when}: the preStop hook ran {} times",
            hooks(&scene)
        );
        if !frozen {
            return step;
        }
    }
    0
}

#[tokio::test]
async fn at_every_call_to_the_runtime() {
    let (starts, stops) = (start_walk(Where::Runtime).await, stop_walk(Where::Runtime).await);
    // A sandbox and two containers take five calls, to end them four; each is two steps.
    assert!(starts >= 10 && stops >= 8, "{starts} {stops}");
}

#[tokio::test]
async fn at_every_write_to_the_api() {
    let (starts, stops) = (start_walk(Where::Api).await, stop_walk(Where::Api).await);
    assert!(starts >= 2 && stops >= 4, "{starts} {stops}");
}
