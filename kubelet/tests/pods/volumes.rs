//! Volumes whose content lies elsewhere: claims, and volumes that will not unmount.

use std::path::Path;

use serde_json::{Value, json};

use crate::kubelet::Kubelet;
use crate::scene::Scene;
use crate::server::ask;

fn mounted(scene: &Scene) -> Value {
    let path = scene.dir.path().join("data");
    std::fs::create_dir_all(&path).expect("a directory");
    json!({
        "claimRef": {"uid": "claim-uid"}, "local": {"path": path},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-1"]}]}]}},
    })
}

fn pod() -> Value {
    json!({
        "securityContext": {"fsGroup": 4321},
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}],
        "containers": [{"name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent",
                        "volumeMounts": [{"name": "v", "mountPath": "/data"}]}],
    })
}

fn claim(scene: &Scene, phase: &str) {
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data", "namespace": "ns", "uid": "claim-uid"},
        "spec": {"volumeName": if phase == "Bound" { "pv" } else { "" }}, "status": {"phase": phase},
    });
    scene
        .api
        .put("/api/v1/namespaces/ns/persistentvolumeclaims/data", claim);
}

fn volume(scene: &Scene, spec: &Value) {
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv"}, "spec": spec});
    scene.api.put("/api/v1/persistentvolumes/pv", volume);
}

const FAILED: &str = "FailedMount: Unable to attach or mount volumes: unmounted volumes=[v], unattached volumes=[], failed to \
                      process volumes=[v]: error processing PVC ns/data: ";

#[tokio::test]
async fn a_claim_is_waited_for_mounted_and_its_data_survives_the_pod() {
    let mut scene = Scene::new();
    scene.create("p", &pod());
    scene
        .api
        .until("word that there is no claim", |api| {
            let begins = format!("{FAILED}failed to fetch PVC from API server: ");
            api.events()
                .iter()
                .any(|event| event.starts_with(&begins))
                .then_some(())
        })
        .await;
    claim(&scene, "Pending");
    scene.until_event(&format!("{FAILED}PVC is not bound")).await;
    volume(&scene, &mounted(&scene));
    claim(&scene, "Bound");
    scene.until_ready("p").await;
    let config = scene
        .runtime
        .container_config(&scene.running("c").await[0])
        .expect("a container");
    let mount = config
        .mounts
        .iter()
        .find(|mount| mount.container_path == "/data")
        .expect("a mount");
    assert!(
        mount.host_path.ends_with("volumes/kubernetes.io~local-volume/pv"),
        "{mount:?}"
    );
    std::fs::write(Path::new(&mount.host_path).join("file"), "kept").expect("a file");
    let data = scene.dir.path().join("data");
    let group = |path: &Path| std::os::unix::fs::MetadataExt::gid(&std::fs::metadata(path).expect("a file"));
    assert_eq!(group(&data), 4321);

    // A new kubelet finds the mount on the disk: the API server's word is not needed again.
    scene.kill().await;
    scene.api.remove("/api/v1/persistentvolumes/pv");
    scene.start();
    scene.runtime.exit_container(&scene.running("c").await[0], 1);
    let again = |status: &Value| status["containerStatuses"][0]["restartCount"] == 1;
    scene.until_status("p", "restart", again).await;

    scene.delete("p", 1);
    scene.until_gone("p").await;
    assert!(!scene.pod_dir("p").exists());
    assert_eq!(std::fs::read_to_string(data.join("file")).expect("the data"), "kept");
}

#[tokio::test]
async fn volumes_of_others_and_of_other_nodes_are_not_mounted() {
    let scene = Scene::new();
    claim(&scene, "Bound");
    let mut spec = mounted(&scene);
    spec["claimRef"]["uid"] = "other".into();
    volume(&scene, &spec);
    scene.create("p", &pod());
    let others =
        "found PV object \"pv\" but its pv.Spec.ClaimRef.UID (\"other\") does not point to claim.UID (\"claim-uid\")";
    scene.until_event(&format!("{FAILED}{others}")).await;
    spec["claimRef"]["uid"] = "claim-uid".into();
    spec["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"] = json!(["node-2"]);
    volume(&scene, &spec);
    let elsewhere =
        "FailedMount: MountVolume.NodeAffinity check failed for volume \"pv\" : no matching NodeSelectorTerms";
    scene.until_event(elsewhere).await;
    volume(&scene, &mounted(&scene));
    scene.until_ready("p").await;
}

fn gid(path: &Path) -> u32 {
    std::os::unix::fs::MetadataExt::gid(&std::fs::metadata(path).expect("a file"))
}

#[tokio::test]
async fn a_volume_belongs_to_the_group_of_its_first_pod() {
    let scene = Scene::new();
    claim(&scene, "Bound");
    volume(&scene, &mounted(&scene));
    let file = scene.dir.path().join("data/file");
    std::fs::write(&file, "").expect("a file");
    let with = |group: u32, read_only: bool| {
        let mut pod = pod();
        pod["securityContext"] = json!({"fsGroup": group});
        pod["volumes"][0]["persistentVolumeClaim"]["readOnly"] = read_only.into();
        pod
    };
    scene.create("reader", &with(3, true));
    scene.until_ready("reader").await;
    assert_eq!(gid(&file), 0, "who only reads changes nothing");
    scene.delete("reader", 1);
    scene.until_gone("reader").await;
    scene.create("a", &with(1, false));
    scene.until_ready("a").await;
    assert_eq!(gid(&file), 1);
    scene.create("b", &with(2, false));
    scene.until_ready("b").await;
    scene
        .until_event("AlreadyMountedVolume: The requested fsGroup is 2, but the volume pv has GID 1. The volume may not be shareable.")
        .await;
    assert_eq!(gid(&file), 1);
}

/// The later of two that come together sees the earlier one.
#[tokio::test]
async fn of_pods_that_come_at_once_one_gives_the_volume_its_group() {
    let scene = Scene::new();
    claim(&scene, "Bound");
    volume(&scene, &mounted(&scene));
    for group in 1..=4 {
        let mut pod = pod();
        pod["securityContext"] = json!({"fsGroup": group});
        scene.create(&format!("p{group}"), &pod);
    }
    for group in 1..=4 {
        scene.until_ready(&format!("p{group}")).await;
    }
    let group = gid(&scene.dir.path().join("data"));
    let told = |api: &crate::api::Api| {
        let events = api.events().into_iter();
        let told: Vec<String> = events
            .filter(|event| event.starts_with("AlreadyMountedVolume"))
            .collect();
        (told.len() == 3).then_some(told)
    };
    let told = scene.api.until("word to the three others", told).await;
    let has = format!("has GID {group}.");
    assert!(
        (1..=4).contains(&group) && told.iter().all(|event| event.contains(&has)),
        "{told:?}"
    );
}

#[tokio::test]
async fn what_the_root_shows_may_be_believed() {
    let scene = Scene::new();
    claim(&scene, "Bound");
    volume(&scene, &mounted(&scene));
    let data = scene.dir.path().join("data");
    let file = data.join("file");
    std::fs::write(&file, "").expect("a file");
    std::os::unix::fs::chown(&data, None, Some(4321)).expect("root");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o2770);
    std::fs::set_permissions(&data, mode).expect("a directory of ours");
    for (name, policy, group) in [("a", "OnRootMismatch", 0), ("b", "Always", 4321)] {
        let mut pod = pod();
        pod["securityContext"]["fsGroupChangePolicy"] = policy.into();
        scene.create(name, &pod);
        scene.until_ready(name).await;
        assert_eq!(gid(&file), group, "{policy}");
        scene.delete(name, 1);
        scene.until_gone(name).await;
    }
}

#[tokio::test]
async fn mount_options_are_kept_or_refused() {
    let scene = Scene::new();
    claim(&scene, "Bound");
    let mut spec = mounted(&scene);
    spec["mountOptions"] = json!(["ro", "uid=5"]);
    volume(&scene, &spec);
    scene.create("p", &pod());
    let begins =
        "FailedMount: MountVolume.SetUp failed for volume \"v\" : the PersistentVolume's mount option \"uid=5\" ";
    let told = |api: &crate::api::Api| {
        let events = api.events();
        events.iter().any(|event| event.starts_with(begins)).then_some(())
    };
    scene.api.until("word of the option", told).await;
    let host = json!({"claimRef": {"uid": "claim-uid"}, "hostPath": {"path": "/"}, "mountOptions": ["ro"]});
    volume(&scene, &host);
    scene
        .until_event(
            "UnsupportedMountOption: MountVolume.MountOptionSupport check failed for volume \"pv\" : mount options are not \
             supported for this volume type",
        )
        .await;
    spec["mountOptions"] = json!(["ro", "noexec"]);
    volume(&scene, &spec);
    scene.until_ready("p").await;
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("a table");
    let target = scene.pod_dir("p").join("volumes/kubernetes.io~local-volume/pv");
    let own = |line: &&str| line.split(' ').nth(1) == target.to_str();
    let line = mounts.lines().find(own).expect("a mount");
    let options: Vec<&str> = line.split(' ').nth(3).unwrap_or_default().split(',').collect();
    assert!(options.contains(&"ro") && options.contains(&"noexec"), "{line}");
}

#[tokio::test]
async fn mounts_are_read_only_all_the_way_down_where_the_runtime_can() {
    let scene = Scene::new();
    let with = |mode: &str| {
        let mount = json!({"name": "v", "mountPath": "/v", "readOnly": true, "recursiveReadOnly": mode});
        json!({
            "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{"name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent", "volumeMounts": [mount]}],
        })
    };
    let shown = |status: &Value| status["containerStatuses"][0]["volumeMounts"][0]["recursiveReadOnly"].clone();
    let handler = |can| skiff_cri::RuntimeHandler {
        recursive_read_only_mounts: can,
        ..Default::default()
    };
    for can in [false, true] {
        scene.runtime.set_handlers(vec![handler(can)]);
        let name = format!("possible-{can}");
        scene.create(&name, &with("IfPossible"));
        let status = scene.until_ready(&name).await;
        assert_eq!(shown(&status), if can { "Enabled" } else { "Disabled" });
        if !can {
            scene.create("enabled", &with("Enabled"));
            let why = |status: &Value| status["containerStatuses"][0]["state"]["waiting"].clone();
            let refused = |status: &Value| why(status)["reason"] == "CreateContainerConfigError";
            let status = scene.until_status("enabled", "refusal", refused).await;
            let text = "volume \"v\" requested recursive read-only mode, but it is not supported by the runtime";
            assert_eq!(why(&status)["message"], text);
        }
    }
    scene.create("again", &with("Enabled"));
    assert_eq!(shown(&scene.until_ready("again").await), "Enabled");
}

#[tokio::test]
async fn a_claims_volume_is_measured_by_its_file_system() {
    let scene = Scene::with_server();
    claim(&scene, "Bound");
    volume(&scene, &mounted(&scene));
    scene.create("p", &pod());
    scene.until_ready("p").await;
    let get = async |path: &str| ask(&scene, Some("admin"), "", path).await.1;
    let summary: Value = serde_json::from_str(get("/stats/summary").await.trim()).expect("JSON");
    let told = &summary["pods"][0]["volume"][0];
    assert_eq!(
        (&told["name"], &told["pvcRef"]),
        (&json!("v"), &json!({"name": "data", "namespace": "ns"}))
    );
    assert!(told["capacityBytes"].as_u64() >= told["usedBytes"].as_u64(), "{told}");
    let metrics = get("/metrics").await;
    for figure in [
        "capacity_bytes",
        "available_bytes",
        "used_bytes",
        "inodes",
        "inodes_free",
        "inodes_used",
    ] {
        let line = format!("kubelet_volume_stats_{figure}{{namespace=\"ns\",persistentvolumeclaim=\"data\"}} ");
        assert_eq!(metrics.matches(&line).count(), 1, "{line} in {metrics}");
    }
}

/// A token that is not renewed would end with the object that is missing beside it.
#[tokio::test]
async fn a_volume_that_cannot_be_made_or_refreshed_holds_up_no_other() {
    let scene = Scene::new();
    let put = |name: &str, value: &str| {
        let map = json!({"metadata": {"name": name, "namespace": "ns"}, "data": {"a": value}});
        scene.api.put(&format!("/api/v1/namespaces/ns/configmaps/{name}"), map);
    };
    let volume = |name: &str| json!({"name": name, "configMap": {"name": name}});
    let path = |name: &str| {
        scene
            .pod_dir("p")
            .join(format!("volumes/kubernetes.io~configmap/{name}/a"))
    };
    let until = async |name: &str, value: &str| {
        let holds = || std::fs::read_to_string(path(name)).ok().filter(|found| found == value);
        scene.api.until(&format!("{name} = {value}"), |_| holds()).await
    };
    let missing = |name: &str| {
        format!("FailedMount: MountVolume.SetUp failed for volume {name:?} : configmap {name:?} not found")
    };
    put("kept", "1");
    scene.create(
        "p",
        &json!({"volumes": [volume("first"), volume("kept"), volume("last")]}),
    );
    scene.until_event(&missing("first")).await;
    scene.until_event(&missing("last")).await;
    until("kept", "1").await;
    put("first", "1");
    put("last", "1");
    scene.until_ready("p").await;

    scene.api.remove("/api/v1/namespaces/ns/configmaps/first");
    put("kept", "2");
    until("kept", "2").await;
    put("last", "2");
    until("last", "2").await;
    put("first", "2");
    until("first", "2").await;
}

/// Nothing of a volume that is still mounted is deleted, and the rest goes once it can be unmounted.
#[tokio::test]
async fn a_volume_that_will_not_unmount_is_tried_again() {
    let scene = Scene::new();
    let spec = json!({"volumes": [{"name": "m", "emptyDir": {"medium": "Memory"}}]});
    scene.create("p", &spec);
    scene.until_ready("p").await;
    let mount = scene.pod_dir("p").join("volumes/kubernetes.io~empty-dir/m");
    let held = std::fs::File::create(mount.join("open")).expect("a file");
    scene.delete("p", 1);
    scene
        .api
        .until("end of the sandbox", |_| {
            scene
                .runtime
                .calls()
                .iter()
                .any(|c| c.starts_with("RemovePodSandbox"))
                .then_some(())
        })
        .await;
    let told = |api: &crate::api::Api| {
        let events = api.events();
        let begins = "FailedUnMount: cannot unmount ";
        events.iter().any(|event| event.starts_with(begins)).then_some(())
    };
    scene
        .api
        .until("an event that says why the pod is still there", told)
        .await;
    assert!(mount.join("open").exists());
    drop(held);
    scene.until_gone("p").await;
    assert!(!scene.pod_dir("p").exists());
    assert!(scene.api.get(&Kubelet::path("p")).is_none());
}
