//! What is mounted into real containers, and that nothing of it stays.

use std::fs;
use std::path::Path;

use nix::mount::MsFlags;
use serde_json::{Value, json};
use skiff_cri::Runtime as _;
use skiff_cri::containerd::mounts_below;

use crate::container;
use crate::kubelet::{Kubelet, is_ready};
use crate::node::Node;

const SLEEP: &str = "trap 'exit 0' TERM; while true; do /bin/busybox sleep 0.1; done";

fn ended(status: &Value) -> bool {
    matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// What the pod's container left as its termination message.
fn message(status: &Value) -> String {
    let state = &status["containerStatuses"][0]["state"]["terminated"];
    state["message"].as_str().unwrap_or_default().to_owned()
}

fn waiting(status: &Value) -> &Value {
    &status["containerStatuses"][0]["state"]["waiting"]
}

fn mounting(script: &str, mounts: &Value) -> Value {
    let mut c = container(script);
    c["volumeMounts"] = mounts.clone();
    c
}

/// Makes `path` a mount of its own, which hears of mounts below it.
fn share(path: &Path) {
    let none = None::<&str>;
    nix::mount::mount(Some(path), path, none, MsFlags::MS_BIND, none).expect("a bind mount");
    nix::mount::mount(none, path, none, MsFlags::MS_SHARED, none).expect("a shared mount");
}

#[tokio::test]
async fn a_finished_pod_keeps_no_mount() {
    let node = Node::start().await;
    let secret = json!({"metadata": {"name": "s", "namespace": "ns"}, "data": {"key": "MQ=="}});
    node.api.put("/api/v1/namespaces/ns/secrets/s", secret);
    let mounts = json!([
        {"name": "memory", "mountPath": "/memory", "subPath": "deep/er"},
        {"name": "secret", "mountPath": "/key", "subPath": "key"},
    ]);
    let script = "echo x > /memory/file; /bin/busybox cat /key > /dev/termination-log";
    let volumes = json!([
        {"name": "memory", "emptyDir": {"medium": "Memory"}}, {"name": "secret", "secret": {"secretName": "s"}}]);
    let spec = json!({"restartPolicy": "Never", "containers": [mounting(script, &mounts)], "volumes": volumes});
    node.create("p", &spec);
    let status = node.until_status("p", "end", ended).await;
    assert_eq!(message(&status), "1", "{status:#}");
    let dir = node.path_of("kubelet/pods/uid-p");
    let released = |_: &crate::api::Api| mounts_below(&dir).ok().filter(Vec::is_empty);
    node.api.until("end of the pod's mounts", released).await;
    assert!(!dir.join("volume-subpaths").exists());
    assert!(node.api.get(&Kubelet::path("p")).is_some(), "the object stays");
}

/// The mounts below a read-only mount are writable, unless the runtime can do better and is asked to.
#[tokio::test]
async fn mounts_are_read_only_all_the_way_down_where_the_runtime_can() {
    let node = Node::start().await;
    let outer = node.path_of("outer");
    fs::create_dir_all(outer.join("inner")).expect("a directory");
    let none = None::<&str>;
    nix::mount::mount(
        Some("tmpfs"),
        &outer.join("inner"),
        Some("tmpfs"),
        MsFlags::empty(),
        none,
    )
    .expect("a tmpfs");
    let spec = |mode: &str| {
        let script = "echo x > /v/file || echo outer; echo x > /v/inner/file || echo inner";
        let script = format!("exec > /dev/termination-log 2>/dev/null; {script}");
        let mounts = json!([{"name": "v", "mountPath": "/v", "readOnly": true, "recursiveReadOnly": mode}]);
        let volumes = json!([{"name": "v", "hostPath": {"path": outer}}]);
        json!({"restartPolicy": "Never", "containers": [mounting(&script, &mounts)], "volumes": volumes})
    };
    let handlers = node.runtime().status().await.expect("a status").handlers;
    let can = handlers
        .iter()
        .any(|handler| handler.name.is_empty() && handler.recursive_read_only_mounts);
    println!("read-only all the way down: {can}");
    for mode in ["Disabled", "IfPossible"] {
        let name = mode.to_lowercase();
        node.create(&name, &spec(mode));
        let status = node.until_status(&name, "end", ended).await;
        let deep = can && mode == "IfPossible";
        assert_eq!(message(&status), if deep { "outer\ninner\n" } else { "outer\n" });
        let shown = &status["containerStatuses"][0]["volumeMounts"][0]["recursiveReadOnly"];
        assert_eq!(shown, if deep { "Enabled" } else { "Disabled" });
    }
    node.create("enabled", &spec("Enabled"));
    if can {
        let status = node.until_status("enabled", "end", ended).await;
        assert_eq!(message(&status), "outer\ninner\n");
    } else {
        let refused = |status: &Value| waiting(status)["reason"] == "CreateContainerConfigError";
        node.until_status("enabled", "refusal", refused).await;
    }
}

#[tokio::test]
async fn images_are_volumes_where_the_runtime_can() {
    let node = Node::start().await;
    node.add_image("localhost/test/data:1", "of an image", true).await;
    let with = |reference: &str| {
        let script =
            "exec > /dev/termination-log 2>&1; /bin/busybox cat /image/content; echo > /image/x || echo read-only";
        let mounts = json!([{"name": "i", "mountPath": "/image"}]);
        let volumes = json!([{"name": "i", "image": {"reference": reference, "pullPolicy": "Never"}}]);
        json!({"restartPolicy": "Never", "containers": [mounting(script, &mounts)], "volumes": volumes})
    };
    let version = node.runtime().version().await.expect("a version").version;
    let can = version.trim_start_matches('v').starts_with("2.") && !version.contains("2.0.");
    println!("image volumes on containerd {version}: {can}");
    node.create("p", &with("localhost/test/data:1"));
    if can {
        let status = node.until_status("p", "end", ended).await;
        let text = message(&status);
        assert!(
            text.starts_with("of an image") && text.ends_with("read-only\n"),
            "{status:#}"
        );
        node.create("absent", &with("localhost/test/absent:1"));
        let refused = |status: &Value| waiting(status)["reason"] == "ErrImageNeverPull";
        node.until_status("absent", "refusal", refused).await;
        for name in ["p", "absent"] {
            node.delete(name, 1);
            node.until_gone(name).await;
        }
        assert_eq!(node.leftovers().await, Vec::<String>::new());
    } else {
        let refused = |status: &Value| waiting(status)["reason"] == "CreateContainerConfigError";
        let status = node.until_status("p", "refusal", refused).await;
        let text = waiting(&status)["message"].as_str().unwrap_or_default();
        assert!(
            text.contains("an image is mounted by containerd 2.1 and later"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_volume_that_is_mounted_read_only_is_so_in_its_containers() {
    let node = Node::start().await;
    let data = node.path_of("data");
    fs::create_dir(&data).expect("a directory");
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data", "namespace": "ns", "uid": "claim"},
        "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"},
    });
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv"},
        "spec": {"claimRef": {"uid": "claim"}, "local": {"path": data}, "mountOptions": ["ro"]},
    });
    node.api.put("/api/v1/namespaces/ns/persistentvolumeclaims/data", claim);
    node.api.put("/api/v1/persistentvolumes/pv", volume);
    let script =
        "exec > /dev/termination-log 2>/dev/null; echo > /data/file || echo whole; echo > /sub/file || echo path";
    let mounts = json!([{"name": "v", "mountPath": "/data"}, {"name": "v", "mountPath": "/sub", "subPath": "."}]);
    let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    let spec = json!({"restartPolicy": "Never", "containers": [mounting(script, &mounts)], "volumes": volumes});
    node.create("p", &spec);
    let status = node.until_status("p", "end", ended).await;
    assert_eq!(message(&status), "whole\npath\n", "{status:#}");
    assert!(!data.join("file").exists());
}

#[tokio::test]
async fn a_privileged_container_mounts_for_the_node_and_another_sees_it() {
    let node = Node::start().await;
    let dir = node.path_of("shared");
    fs::create_dir_all(dir.join("inner")).expect("a directory");
    share(&dir);
    let volumes = json!([{"name": "v", "hostPath": {"path": dir}}]);
    let with = |script: &str, propagation: &str| {
        let mounts = json!([{"name": "v", "mountPath": "/v", "mountPropagation": propagation}]);
        json!({"containers": [mounting(script, &mounts)], "volumes": volumes})
    };
    let reading = format!("until [ -e /v/inner/file ]; do /bin/busybox sleep 0.1; done; : > /tmp/seen; {SLEEP}");
    for (name, propagation) in [("sees", "HostToContainer"), ("alone", "None")] {
        let mut reader = with(&reading, propagation);
        reader["containers"][0]["readinessProbe"] =
            json!({"exec": {"command": ["/bin/busybox", "test", "-e", "/tmp/seen"]}, "periodSeconds": 1});
        node.create(name, &reader);
        let runs = |status: &Value| status["containerStatuses"][0]["state"]["running"].is_object();
        node.until_status(name, "running container", runs).await;
    }
    let mut writer = with(
        &format!("/bin/busybox mount -t tmpfs tmpfs /v/inner && : > /v/inner/file; {SLEEP}"),
        "Bidirectional",
    );
    writer["containers"][0]["securityContext"] = json!({"privileged": true});
    node.create("mounts", &writer);
    node.until_ready("sees").await;
    assert!(dir.join("inner/file").exists(), "the node sees it");
    let alone = node.api.get(&Kubelet::path("alone")).expect("the pod")["status"].clone();
    assert!(!is_ready(&alone), "{alone:#}");
    for name in ["sees", "alone", "mounts"] {
        node.delete(name, 1);
        node.until_gone(name).await;
    }
    assert_eq!(node.leftovers().await, Vec::<String>::new());
}

/// Nothing of a volume that is busy is deleted; it is said why the pod stays, and it goes once that ends.
#[tokio::test]
async fn a_busy_volume_keeps_its_pod() {
    let node = Node::start().await;
    let c = mounting(SLEEP, &json!([{"name": "m", "mountPath": "/m", "subPath": "in"}]));
    let volumes = json!([{"name": "m", "emptyDir": {"medium": "Memory"}}]);
    node.create("p", &json!({"containers": [c], "volumes": volumes}));
    node.until_ready("p").await;
    let volume = node.path_of("kubelet/pods/uid-p/volumes/kubernetes.io~empty-dir/m");
    let held = fs::File::create(volume.join("in/open")).expect("a file");
    node.delete("p", 1);
    let told = |api: &crate::api::Api| {
        let events = api.events();
        let begins = "FailedUnMount: cannot unmount ";
        events.into_iter().find(|event| event.starts_with(begins))
    };
    let event = node.api.until("word of the busy volume", told).await;
    assert!(
        event.contains("kubernetes.io~empty-dir/m") && event.contains("busy"),
        "{event}"
    );
    assert!(volume.join("in/open").exists() && node.api.get(&Kubelet::path("p")).is_some());
    drop(held);
    node.until_gone("p").await;
    assert_eq!(node.leftovers().await, Vec::<String>::new());
}
