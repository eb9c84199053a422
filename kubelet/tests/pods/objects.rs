//! Volumes that are made from API objects: what of a change reaches a running pod, and what does not.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::scene::Scene;

fn put(scene: &Scene, plural: &str, name: &str, value: &str, immutable: bool) {
    // `1` and `2` as a secret has them.
    let encoded = if value == "1" { "MQ==" } else { "Mg==" };
    let data = if plural == "secrets" { encoded } else { value };
    let object = json!({"metadata": {"name": name, "namespace": "ns"}, "data": {"a": data}, "immutable": immutable});
    scene.api.put(&format!("/api/v1/namespaces/ns/{plural}/{name}"), object);
}

fn volume(scene: &Scene, kind: &str, name: &str) -> PathBuf {
    scene.pod_dir("p").join(format!("volumes/kubernetes.io~{kind}/{name}"))
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

async fn until(scene: &Scene, path: &Path, value: &str) {
    let holds = |_: &crate::api::Api| read(path).filter(|found| found == value);
    scene.api.until(&format!("{value} in {}", path.display()), holds).await;
}

fn of_map(name: &str) -> Value {
    json!({"name": name, "configMap": {"name": name}})
}

fn of_secret(name: &str) -> Value {
    json!({"name": name, "secret": {"secretName": name}})
}

#[tokio::test]
async fn what_is_immutable_is_neither_followed_nor_missed() {
    let scene = Scene::new();
    put(&scene, "configmaps", "fixed", "1", true);
    put(&scene, "secrets", "sealed", "1", true);
    put(&scene, "configmaps", "free", "1", false);
    let volumes = json!([of_map("fixed"), of_secret("sealed"), of_map("free")]);
    scene.create("p", &json!({"volumes": volumes}));
    scene.until_ready("p").await;
    let fixed = volume(&scene, "configmap", "fixed").join("a");
    let sealed = volume(&scene, "secret", "sealed").join("a");
    let free = volume(&scene, "configmap", "free").join("a");
    let now = || (read(&fixed), read(&sealed));
    let as_it_was = (Some("1".to_owned()), Some("1".to_owned()));
    assert_eq!(now(), as_it_was);
    put(&scene, "configmaps", "fixed", "2", true);
    put(&scene, "secrets", "sealed", "2", true);
    // By then the others would have been seen, too.
    put(&scene, "configmaps", "free", "2", false);
    until(&scene, &free, "2").await;
    assert_eq!(now(), as_it_was);
    scene.api.remove("/api/v1/namespaces/ns/configmaps/fixed");
    scene.api.remove("/api/v1/namespaces/ns/secrets/sealed");
    put(&scene, "configmaps", "free", "1", false);
    until(&scene, &free, "1").await;
    assert_eq!(now(), as_it_was);
    // Its next container finds them still.
    scene.runtime.exit_container(&scene.running("c").await[0], 1);
    let again =
        |status: &Value| status["containerStatuses"][0]["restartCount"] == 1 && crate::kubelet::is_ready(status);
    scene.until_status("p", "restart", again).await;
    assert_eq!(now(), as_it_was);
}

#[tokio::test]
async fn secrets_are_followed() {
    let scene = Scene::new();
    put(&scene, "secrets", "s", "1", false);
    let projected = json!({"name": "both", "projected": {"sources": [{"secret": {"name": "s"}}]}});
    scene.create("p", &json!({"volumes": [of_secret("s"), projected]}));
    scene.until_ready("p").await;
    let files = [
        volume(&scene, "secret", "s").join("a"),
        volume(&scene, "projected", "both").join("a"),
    ];
    for value in ["1", "2", "1"] {
        put(&scene, "secrets", "s", value, false);
        for file in &files {
            until(&scene, file, value).await;
        }
    }
}

#[tokio::test]
async fn what_is_optional_may_come_and_go() {
    let scene = Scene::new();
    let projected = json!({"name": "both", "projected": {"sources": [
        {"configMap": {"name": "m", "optional": true, "items": [{"key": "a", "path": "from-map"}]}},
        {"secret": {"name": "s", "optional": true, "items": [{"key": "a", "path": "from-secret"}]}},
    ]}});
    let volumes = json!([
        {"name": "m", "configMap": {"name": "m", "optional": true}},
        {"name": "s", "secret": {"secretName": "s", "optional": true}}, projected]);
    scene.create("p", &json!({"volumes": volumes}));
    scene.until_ready("p").await;
    let both = volume(&scene, "projected", "both");
    let (map, secret) = (
        volume(&scene, "configmap", "m").join("a"),
        volume(&scene, "secret", "s").join("a"),
    );
    let files = [&map, &secret, &both.join("from-map"), &both.join("from-secret")];
    assert!(files.iter().all(|file| !file.exists()));
    put(&scene, "configmaps", "m", "1", false);
    put(&scene, "secrets", "s", "1", false);
    for file in files {
        until(&scene, file, "1").await;
    }
    scene.api.remove("/api/v1/namespaces/ns/configmaps/m");
    let gone = |_: &crate::api::Api| (!map.exists() && !both.join("from-map").exists()).then_some(());
    scene.api.until("end of the files", gone).await;
    assert_eq!(read(&both.join("from-secret")).as_deref(), Some("1"));
}

#[tokio::test]
async fn a_token_is_renewed_also_while_its_pod_ends() {
    let scene = Scene::new();
    // Four fifths of it are 1.6 s.
    scene.api.set_token_life(2);
    let source = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 600}});
    let begun = Instant::now();
    scene.create(
        "p",
        &json!({"volumes": [{"name": "t", "projected": {"sources": [source]}}]}),
    );
    scene.until_ready("p").await;
    let token = volume(&scene, "projected", "t").join("token");
    assert_eq!(read(&token).as_deref(), Some("token-1"));
    until(&scene, &token, "token-2").await;
    assert!(begun.elapsed() >= Duration::from_millis(1600), "{:?}", begun.elapsed());
    let id = told_to_end(&scene, "p").await;
    let known = read(&token);
    let renewed = |_: &crate::api::Api| read(&token).filter(|now| known.as_ref() != Some(now));
    scene.api.until("another token", renewed).await;
    scene.runtime.exit_container(&id, 0);
    scene.until_gone("p").await;
}

/// Tells a pod to go whose container takes no notice of it, and waits until that was told; the container's id.
async fn told_to_end(scene: &Scene, name: &str) -> String {
    scene.runtime.set_ignores_term(true);
    let id = scene.running("c").await.remove(0);
    scene.delete(name, 20);
    let told = format!("StopContainer {id}");
    let stopping = |_: &crate::api::Api| scene.runtime.calls().contains(&told).then_some(());
    scene.api.until("word that the pod is to end", stopping).await;
    id
}

#[tokio::test]
async fn a_token_that_nobody_grants_does_not_hold_up_the_end() {
    let scene = Scene::new();
    scene.api.set_token_life(2);
    let source = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 600}});
    let volumes = json!([{"name": "t", "projected": {"sources": [source]}}]);
    scene.create("p", &json!({"volumes": volumes}));
    scene.until_ready("p").await;
    let id = told_to_end(&scene, "p").await;
    scene.api.hold_tokens();
    let asked = |api: &crate::api::Api| (api.held_tokens() > 0).then_some(());
    scene.api.until("a request for a token", asked).await;
    scene.runtime.exit_container(&id, 0);
    scene.until_gone("p").await;
}

/// As in a namespace that is deleted: the objects go before the pods.
#[tokio::test]
async fn what_a_pod_that_ends_was_made_from_is_not_missed() {
    let scene = Scene::new();
    put(&scene, "configmaps", "m", "1", false);
    let volumes = json!([{"name": "m", "configMap": {"name": "m"}}]);
    scene.create("p", &json!({"volumes": volumes}));
    scene.until_ready("p").await;
    let id = told_to_end(&scene, "p").await;
    scene.create("lives", &json!({"volumes": volumes}));
    scene.until_ready("lives").await;
    scene.api.remove("/api/v1/namespaces/ns/configmaps/m");
    let failed = |name: &str| {
        let events = scene.api.list("events");
        let mut failed = events.iter().filter(|event| event["reason"] == "FailedMount");
        failed.any(|event| event["regarding"]["name"] == name || event["involvedObject"]["name"] == name)
    };
    let told = |_: &crate::api::Api| failed("lives").then_some(());
    scene
        .api
        .until("word that a volume cannot be kept up to date", told)
        .await;
    scene.runtime.exit_container(&id, 0);
    scene.until_gone("p").await;
    assert!(!failed("p"), "{:#?}", scene.api.events());
}

#[tokio::test]
async fn the_pods_group_reads_what_is_made_from_objects() {
    let scene = Scene::new();
    put(&scene, "configmaps", "m", "1", false);
    put(&scene, "secrets", "s", "1", false);
    let token = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}});
    let volumes = json!([
        {"name": "m", "configMap": {"name": "m", "defaultMode": 0o400}}, of_secret("s"),
        {"name": "both", "projected": {"defaultMode": 0o600, "sources": [{"configMap": {"name": "m"}}, token]}},
        {"name": "d", "downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}]);
    scene.create("p", &json!({"securityContext": {"fsGroup": 4321}, "volumes": volumes}));
    scene.until_ready("p").await;
    let cases = [
        ("configmap/m/a", 0o440),
        ("secret/s/a", 0o644),
        ("projected/both/a", 0o640),
        ("projected/both/token", 0o640),
        ("downward-api/d/name", 0o644),
    ];
    for (path, mode) in cases {
        let found = scene.pod_dir("p").join("volumes").join(format!("kubernetes.io~{path}"));
        let found = std::fs::metadata(found).expect("a file");
        assert_eq!((found.gid(), found.mode() & 0o777), (4321, mode), "{path}");
    }
}
