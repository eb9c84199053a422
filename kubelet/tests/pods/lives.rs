//! Lives of pods.

use std::time::Duration;

use serde_json::{Value, json};
use skiff_cri::Runtime as _;

use crate::kubelet::{Kubelet, is_ready};
use crate::scene::Scene;

#[tokio::test]
async fn a_pod_runs_and_goes() {
    let scene = Scene::new();
    scene.create("p", &json!({}));
    let status = scene.until_ready("p").await;
    assert_eq!(status["phase"], "Running");
    assert!(status["podIP"].as_str().unwrap().starts_with("10.244.0."));
    assert_eq!(status["hostIP"], "127.0.0.1");
    let c = &status["containerStatuses"][0];
    assert!(c["containerID"].as_str().unwrap().starts_with("fake://container-"));
    for text in ["Created: Container created", "Started: Container started"] {
        scene.until_event(text).await;
    }
    assert!(scene.pod_dir("p").join("etc-hosts").exists());
    assert!(scene.cgroup("memory").join("kubepods/besteffort/poduid-p").exists());
    scene.delete("p", 5);
    scene.until_gone("p").await;
    scene.until_event("Killing: Stopping container c").await;
    assert!(!scene.pod_dir("p").exists());
    assert!(!scene.cgroup("memory").join("kubepods/besteffort/poduid-p").exists());
    assert!(
        scene
            .runtime
            .list_sandboxes(&Default::default())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn a_crash_restarts_at_once_and_then_backs_off() {
    let scene = Scene::new();
    scene.create("p", &json!({}));
    scene.until_ready("p").await;
    let first = scene.running("c").await;
    scene.runtime.exit_container(&first[0], 3);
    let restarted = |status: &Value| is_ready(status) && status["containerStatuses"][0]["restartCount"] == 1;
    let status = scene.until_status("p", "restart", restarted).await;
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 3);
    let second = scene.running("c").await;
    scene.runtime.exit_container(&second[0], 4);
    let waits = |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    let status = scene.until_status("p", "back-off", waits).await;
    assert_eq!(
        status["containerStatuses"][0]["state"]["waiting"]["message"],
        "back-off 10s restarting failed container=c pod=p_ns(uid-p)"
    );
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 4);
    scene
        .until_event("BackOff: Back-off restarting failed container c in pod p_ns(uid-p)")
        .await;
}

#[tokio::test]
async fn a_memory_kill_is_told_apart() {
    let scene = Scene::new();
    scene.create("p", &json!({"restartPolicy": "Never"}));
    scene.until_ready("p").await;
    scene.runtime.oom_kill(&scene.running("c").await[0]);
    let status = scene
        .until_status("p", "failed pod", |status| status["phase"] == "Failed")
        .await;
    let ended = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&ended["reason"], &ended["exitCode"]),
        (&json!("OOMKilled"), &json!(137))
    );
}

/// containerd tells of an end long before its records show it: what starts anew does not wait, what ends for good does.
#[tokio::test]
async fn an_end_is_acted_on_when_it_is_told() {
    let scene = Scene::new();
    scene.create("p", &json!({}));
    scene.until_ready("p").await;
    let first = scene.running("c").await.remove(0);
    scene.runtime.tell_exit(&first, 3);
    let restarted = |status: &Value| is_ready(status) && status["containerStatuses"][0]["restartCount"] == 1;
    let status = scene.until_status("p", "restart", restarted).await;
    let last = |status: &Value| status["containerStatuses"][0]["lastState"]["terminated"].clone();
    let (code, reason) = (last(&status)["exitCode"].clone(), last(&status)["reason"].clone());
    assert_eq!((code, reason), (json!(3), json!("Error")), "{status:#}");
    scene.runtime.exit_container(&first, 3);

    scene.create("once", &json!({"restartPolicy": "Never"}));
    scene.until_ready("once").await;
    let running = scene.running("c").await;
    let status = scene.api.get(&Kubelet::path("once")).expect("the pod")["status"].clone();
    let id = status["containerStatuses"][0]["containerID"]
        .as_str()
        .unwrap_or_default();
    let once = running
        .iter()
        .find(|running| id.ends_with(running.as_str()))
        .expect("its container");
    scene.runtime.tell_exit(once, 0);
    // Another pod comes and is ready meanwhile.
    scene.create("other", &json!({}));
    scene.until_ready("other").await;
    let status = |name: &str| scene.api.get(&Kubelet::path(name)).expect("the pod")["status"].clone();
    assert_eq!(
        status("once")["phase"],
        "Running",
        "its last lines may not be in its log yet"
    );
    scene.runtime.exit_container(once, 0);
    scene
        .until_status("once", "success", |status| status["phase"] == "Succeeded")
        .await;
    assert_eq!(
        status("p")["containerStatuses"][0]["restartCount"],
        1,
        "one end, one restart"
    );
}

/// On cgroup v2, word of a kill for memory may come after the container's end.
#[tokio::test]
async fn a_memory_kill_that_is_told_late_is_told_on() {
    let scene = Scene::new();
    scene.create("p", &json!({"restartPolicy": "Never"}));
    scene.until_ready("p").await;
    let id = scene.running("c").await.remove(0);
    scene.runtime.exit_container(&id, 137);
    let reason = |status: &Value| status["containerStatuses"][0]["state"]["terminated"]["reason"].clone();
    let status = scene
        .until_status("p", "failed pod", |status| status["phase"] == "Failed")
        .await;
    assert_eq!(reason(&status), "Error");
    scene.runtime.tell_out_of_memory(&id);
    scene
        .until_status("p", "the reason", |status| reason(status) == "OOMKilled")
        .await;
}

#[tokio::test]
async fn init_containers_first_then_success() {
    let scene = Scene::new();
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "i", "image": "busybox:1", "imagePullPolicy": "Never"}],
    });
    scene.create("p", &spec);
    let begun = |status: &Value| !status["initContainerStatuses"][0]["state"]["running"].is_null();
    let status = scene.until_status("p", "init container", begun).await;
    assert_eq!(status["phase"], "Pending");
    assert!(scene.running("c").await.is_empty());
    scene.runtime.exit_container(&scene.running("i").await[0], 0);
    scene.until_ready("p").await;
    scene.runtime.exit_container(&scene.running("c").await[0], 0);
    scene
        .until_status("p", "success", |status| status["phase"] == "Succeeded")
        .await;
    // What it held is given back, its container stays for its log.
    let sandbox = "kubepods/besteffort/poduid-p";
    scene
        .api
        .until("release", |_| {
            (!scene.cgroup("memory").join(sandbox).exists()).then_some(())
        })
        .await;
    assert_eq!(
        scene.runtime.list_containers(&Default::default()).await.unwrap().len(),
        2
    );
}

#[tokio::test]
async fn images_that_are_not_there() {
    let scene = Scene::new();
    let with =
        |policy: &str, image: &str| json!({"containers": [{"name": "c", "image": image, "imagePullPolicy": policy}]});
    scene.create("never", &with("Never", "absent:1"));
    scene.create("pull", &with("IfNotPresent", "absent:2"));
    scene.create("invalid", &with("IfNotPresent", "Not Valid"));
    let reason = |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    for (name, expected) in [
        ("never", "ErrImageNeverPull"),
        ("pull", "ErrImagePull"),
        ("invalid", "InvalidImageName"),
    ] {
        scene
            .until_status(name, expected, |status| reason(status) == expected)
            .await;
    }
    let status = scene
        .until_status("pull", "ImagePullBackOff", |status| {
            reason(status) == "ImagePullBackOff"
        })
        .await;
    let message = status["containerStatuses"][0]["state"]["waiting"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        message.starts_with("Back-off pulling image \"absent:2\": ErrImagePull: rpc error: code = "),
        "{message}"
    );
    scene.until_event("Failed: Error: ErrImagePull").await;
    scene.until_event("BackOff: Back-off pulling image \"absent:2\"").await;
}

/// `kubectl set image` acts at once: the back-off was the other image's.
#[tokio::test(start_paused = true)]
async fn a_corrected_image_does_not_wait() {
    let scene = Scene::new();
    scene.create(
        "pull",
        &json!({"containers": [{"name": "p", "image": "absent:1", "imagePullPolicy": "IfNotPresent"}]}),
    );
    scene.create("crash", &json!({}));
    scene.until_ready("crash").await;
    scene.runtime.add_image("other:1");
    scene.runtime.exit_container(&scene.running("c").await[0], 1);
    let restarted = |status: &Value| is_ready(status) && status["containerStatuses"][0]["restartCount"] == 1;
    scene.until_status("crash", "restart", restarted).await;
    scene.runtime.exit_container(&scene.running("c").await[0], 1);
    for (name, reason) in [("pull", "ImagePullBackOff"), ("crash", "CrashLoopBackOff")] {
        let waits = |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"] == reason;
        scene.until_status(name, reason, waits).await;
        scene.api.edit(&Kubelet::path(name), |pod| {
            pod["spec"]["containers"][0]["image"] = "other:1".into();
        });
        let begin = tokio::time::Instant::now();
        scene.until_ready(name).await;
        assert!(begin.elapsed().as_secs() < 4, "{name}: {:?}", begin.elapsed());
    }
}

#[tokio::test]
async fn what_is_missing_stops_a_pod_until_it_comes() {
    let scene = Scene::new();
    let spec = json!({
        "containers": [{
            "name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent",
            "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "a"}}},
                    {"name": "B", "value": "$(A)/$(IP)"},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        }],
    });
    scene.create("p", &spec);
    let reason = |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    let status = scene
        .until_status("p", "config error", |status| {
            reason(status) == "CreateContainerConfigError"
        })
        .await;
    assert_eq!(
        status["containerStatuses"][0]["state"]["waiting"]["message"],
        "configmap \"cm\" not found"
    );
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm", "namespace": "ns"}, "data": {"a": "1"}});
    scene.api.put("/api/v1/namespaces/ns/configmaps/cm", map);
    let status = scene.until_ready("p").await;
    let config = scene.runtime.container_config(&scene.running("c").await[0]).unwrap();
    let env = |name: &str| {
        config
            .envs
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.clone())
    };
    assert_eq!(env("A").as_deref(), Some("1"));
    assert_eq!(env("B").as_deref(), Some("1/$(IP)"), "only what stands before");
    assert_eq!(env("IP").as_deref(), status["podIP"].as_str());
}

#[tokio::test]
async fn volumes_are_there_and_follow_their_objects() {
    let scene = Scene::new();
    let map = |value: &str| json!({"metadata": {"name": "cm", "namespace": "ns"}, "data": {"a": value}});
    scene.api.put("/api/v1/namespaces/ns/configmaps/cm", map("1"));
    let spec = json!({
        "volumes": [
            {"name": "config", "configMap": {"name": "cm"}},
            {"name": "scratch", "emptyDir": {}},
            {"name": "token", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
                {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            ]}},
        ],
        "containers": [{
            "name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent",
            "volumeMounts": [{"name": "config", "mountPath": "/config", "readOnly": true},
                             {"name": "scratch", "mountPath": "/scratch", "subPath": "deep/er"}],
        }],
    });
    scene.create("p", &spec);
    scene.until_ready("p").await;
    let volumes = scene.pod_dir("p").join("volumes");
    let read = |path: &str| std::fs::read_to_string(volumes.join(path)).ok();
    assert_eq!(read("kubernetes.io~configmap/config/a").as_deref(), Some("1"));
    assert_eq!(read("kubernetes.io~projected/token/token").as_deref(), Some("token-1"));
    assert_eq!(
        read("kubernetes.io~projected/token/labels").as_deref(),
        Some("app=\"p\"")
    );
    let config = scene.runtime.container_config(&scene.running("c").await[0]).unwrap();
    let mount = config
        .mounts
        .iter()
        .find(|mount| mount.container_path == "/scratch")
        .unwrap();
    assert!(mount.host_path.ends_with("volume-subpaths/scratch/c/1"), "{mount:?}");
    // The mount holds what the path meant when the container was made.
    std::fs::write(volumes.join("kubernetes.io~empty-dir/scratch/deep/er/x"), "y").unwrap();
    let through_mount = std::path::Path::new(&mount.host_path).join("x");
    assert_eq!(std::fs::read_to_string(through_mount).unwrap(), "y");
    let config = config.mounts.iter().find(|mount| mount.container_path == "/config");
    assert!(config.is_some_and(|mount| mount.readonly));
    scene.api.put("/api/v1/namespaces/ns/configmaps/cm", map("2"));
    scene
        .api
        .until("new content", |_| {
            (read("kubernetes.io~configmap/config/a").as_deref() == Some("2")).then_some(())
        })
        .await;
    scene.api.edit(&Kubelet::path("p"), |pod| {
        pod["metadata"]["labels"] = json!({"app": "q"})
    });
    let labels = || read("kubernetes.io~projected/token/labels");
    scene
        .api
        .until("new labels", |_| {
            (labels().as_deref() == Some("app=\"q\"")).then_some(())
        })
        .await;
    scene.delete("p", 1);
    scene.until_gone("p").await;
    assert!(!volumes.exists());
}

#[tokio::test]
async fn a_new_kubelet_takes_over_what_runs() {
    let mut scene = Scene::new();
    let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
    let containers =
        json!([{"name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent", "readinessProbe": probe}]);
    scene.create("p", &json!({"containers": containers}));
    scene.create("q", &json!({}));
    scene.until_ready("p").await;
    scene.until_ready("q").await;
    let before = scene.running("c").await;
    scene.kill().await;
    scene.delete("q", 1);
    scene.runtime.add_image("other:1");
    scene.start();
    scene.until_gone("q").await;
    scene.create("r", &json!({}));
    scene.until_ready("r").await;
    let after = scene.running("c").await;
    assert!(before.iter().any(|id| after.contains(id)), "{before:?} {after:?}");
    let status = scene.api.get(&Kubelet::path("p")).unwrap()["status"].clone();
    assert!(
        is_ready(&status) && status["containerStatuses"][0]["restartCount"] == 0,
        "{status:#}"
    );
    let sandboxes = scene
        .runtime
        .calls()
        .iter()
        .filter(|call| call.starts_with("RunPodSandbox"))
        .count();
    assert_eq!(sandboxes, 3);
}

#[tokio::test]
async fn pods_that_the_api_forgot_are_ended() {
    let mut scene = Scene::new();
    scene.create("p", &json!({}));
    scene.until_ready("p").await;
    scene.kill().await;
    scene.api.remove(&Kubelet::path("p"));
    // What is only to end is asked for nothing.
    scene.taint(&json!([{"key": "broken", "effect": "NoExecute"}]));
    scene.start();
    let (dir, runtime) = (scene.pod_dir("p"), scene.runtime.clone());
    let gone = |_: &crate::api::Api| {
        (!dir.exists() && runtime.calls().iter().any(|c| c.starts_with("RemovePodSandbox"))).then_some(())
    };
    scene.api.until("end of the orphan", gone).await;
    let events = scene.api.events();
    assert!(
        !events.iter().any(|event| event.starts_with("TaintToleration")),
        "{events:?}"
    );
}

#[tokio::test]
async fn a_dead_sandbox_is_made_anew() {
    let scene = Scene::new();
    scene.create("p", &json!({}));
    let first = scene.until_ready("p").await["podIP"].clone();
    let sandbox = scene.runtime.list_sandboxes(&Default::default()).await.unwrap()[0]
        .id
        .clone();
    scene.runtime.kill_sandbox(&sandbox);
    let renewed = |status: &Value| is_ready(status) && status["podIP"] != first;
    let status = scene.until_status("p", "new sandbox", renewed).await;
    assert_eq!(
        status["podIPs"].as_array().unwrap().len(),
        1,
        "the old address is replaced"
    );
    assert_eq!(status["containerStatuses"][0]["restartCount"], 1);
    scene
        .until_event("SandboxChanged: Pod sandbox changed, it will be killed and re-created.")
        .await;
}

#[tokio::test]
async fn failing_probes() {
    let scene = Scene::new();
    let fail = skiff_cri::ExecOutput {
        exit_code: 1,
        stderr: b"no\n".to_vec(),
        ..Default::default()
    };
    let probe = json!({"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1});
    let containers =
        json!([{"name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent", "livenessProbe": probe}]);
    scene.create("p", &json!({"containers": containers}));
    scene.until_ready("p").await;
    scene.runtime.push_exec(fail);
    let restarted = |status: &Value| status["containerStatuses"][0]["restartCount"] == 1 && is_ready(status);
    scene.until_status("p", "restart", restarted).await;
    scene.until_event("Unhealthy: Liveness probe failed: no\n").await;
    scene
        .until_event("Killing: Container c failed liveness probe, will be restarted")
        .await;
}

#[tokio::test]
async fn an_api_server_that_is_away_hears_of_it_later() {
    let scene = Scene::new();
    scene.create("p", &json!({}));
    scene.until_ready("p").await;
    scene.api.set_away(true);
    scene.runtime.exit_container(&scene.running("c").await[0], 7);
    scene
        .api
        .until("restart without the API", |_| {
            (scene
                .runtime
                .calls()
                .iter()
                .filter(|call| call.starts_with("StartContainer"))
                .count()
                == 2)
                .then_some(())
        })
        .await;
    scene.api.set_away(false);
    let told = |status: &Value| status["containerStatuses"][0]["restartCount"] == 1 && is_ready(status);
    scene.until_status("p", "late status", told).await;
    scene.delete("p", 1);
    scene.until_gone("p").await;
}

/// One slow list holds up no other pod, and what follows from it is done when it comes.
#[tokio::test(start_paused = true)]
async fn a_runtime_that_is_slow_to_list_holds_up_no_pod() {
    let scene = Scene::new();
    scene.create("before", &json!({}));
    scene.until_ready("before").await;
    scene.runtime.stall_lists(true);
    // Longer than between two lists.
    tokio::time::sleep(Duration::from_secs(61)).await;
    let stalled = || (scene.runtime.stalled_lists() > 0).then_some(());
    scene.api.until("a list that waits", |_| stalled()).await;
    scene.create("p", &json!({}));
    scene.until_ready("p").await;
    scene.delete("p", 1);
    scene.until_gone("p").await;
    scene.runtime.stall_lists(false);
    scene
        .api
        .until("the end of the list", |_| stalled().is_none().then_some(()))
        .await;
    scene.create("after", &json!({}));
    scene.until_ready("after").await;
    assert_eq!(scene.running("c").await.len(), 2);
}

/// A runtime that makes a container and does not start it is not asked without a pause.
#[tokio::test(start_paused = true)]
async fn a_start_in_vain_is_tried_seldom() {
    let scene = Scene::new();
    scene.runtime.break_down("StartContainer", "no shim");
    scene.create("p", &json!({}));
    let waits = |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"] == "RunContainerError";
    scene.until_status("p", "RunContainerError", waits).await;
    tokio::time::sleep(Duration::from_secs(25)).await;
    let calls = scene.runtime.calls();
    let tries = calls.iter().filter(|call| call.starts_with("StartContainer")).count();
    assert!((2..=3).contains(&tries), "{calls:#?}");
    scene.runtime.mend("StartContainer");
    scene.until_ready("p").await;
}

/// What one container writes is another's environment; until it has written, the other waits and says for what.
#[tokio::test(start_paused = true)]
async fn a_file_is_part_of_the_environment() {
    let scene = Scene::new();
    let source = json!({"fileKeyRef": {"volumeName": "v", "path": "env", "key": "A"}});
    let container = json!({"name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent",
                           "env": [{"name": "X", "valueFrom": source}, {"name": "Y", "value": "$(X)!"}]});
    scene.create(
        "p",
        &json!({"containers": [container], "volumes": [{"name": "v", "emptyDir": {}}]}),
    );
    let reason = |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    let refused = |status: &Value| reason(status) == "CreateContainerConfigError";
    scene.until_status("p", "config error", refused).await;
    let volume = scene.pod_dir("p").join("volumes/kubernetes.io~empty-dir/v");
    std::fs::write(volume.join("env"), "A='1 2'\n").expect("a file");
    scene.until_ready("p").await;
    let config = scene.runtime.container_config(&scene.running("c").await[0]);
    let envs = config.expect("a container").envs;
    for (name, value) in [("X", "1 2"), ("Y", "1 2!")] {
        assert!(envs.contains(&(name.into(), value.into())), "{envs:?}");
    }
}

/// Rules of the container, whatever the pod's policy says.
#[tokio::test]
async fn exit_codes_decide_by_the_containers_rules() {
    let scene = Scene::new();
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let container = json!({"name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent",
                           "restartPolicy": "Never", "restartPolicyRules": rules});
    scene.create("p", &json!({"restartPolicy": "Never", "containers": [container]}));
    scene.until_ready("p").await;
    scene.runtime.exit_container(&scene.running("c").await[0], 42);
    let restarted = |status: &Value| is_ready(status) && status["containerStatuses"][0]["restartCount"] == 1;
    scene.until_status("p", "restart", restarted).await;
    scene.runtime.exit_container(&scene.running("c").await[0], 1);
    scene
        .until_status("p", "failed pod", |status| status["phase"] == "Failed")
        .await;
}

#[tokio::test]
async fn a_failed_sandbox_is_tried_again() {
    let scene = Scene::new();
    scene.runtime.fail_next("RunPodSandbox", "no network yet");
    scene.create("p", &json!({}));
    scene
        .until_event(
            "FailedCreatePodSandBox: Failed to create pod sandbox: rpc error: code = Unknown desc = no network yet",
        )
        .await;
    scene.until_ready("p").await;
}

/// Each try costs the runtime a list, a call and the API an event: they come at a growing pace.
#[tokio::test]
async fn an_end_that_fails_for_ever_is_tried_seldom() {
    let scene = Scene::new();
    scene.create("told", &json!({}));
    scene.until_ready("told").await;
    scene.create("once", &json!({"restartPolicy": "Never", "containers": [{"name": "o", "image": "busybox:1", "imagePullPolicy": "Never"}]}));
    scene.until_ready("once").await;
    let broken = ["StopContainer", "StopPodSandbox"];
    for call in broken {
        scene.runtime.break_down(call, "no answer from the shim");
    }
    let begin = tokio::time::Instant::now();
    scene.delete("told", 1);
    scene.runtime.exit_container(&scene.running("o").await[0], 0);
    let tries = |call: &str| {
        let calls = scene.runtime.calls();
        calls.iter().filter(|made| made.split(' ').next() == Some(call)).count()
    };
    for call in broken {
        scene.api.until("third try", |_| (tries(call) >= 3).then_some(())).await;
    }
    // After half a second and twice that.
    assert!(begin.elapsed().as_millis() >= 1400, "{:?}", begin.elapsed());
    assert!(
        broken.iter().all(|call| tries(call) <= 4),
        "{:?}",
        scene.runtime.calls()
    );
    for call in broken {
        scene.runtime.mend(call);
    }
    scene.until_gone("told").await;
    let dir = scene.pod_dir("once").join("volumes");
    scene.api.until("release", |_| (!dir.exists()).then_some(())).await;
}

#[tokio::test]
async fn forty_pods_at_once() {
    let scene = Scene::new();
    for index in 0..40 {
        scene.create(&format!("p{index}"), &json!({}));
    }
    for index in 0..40 {
        scene.until_ready(&format!("p{index}")).await;
    }
    for index in 0..40 {
        scene.delete(&format!("p{index}"), 1);
    }
    for index in 0..40 {
        scene.until_gone(&format!("p{index}")).await;
    }
    assert!(
        scene
            .runtime
            .list_sandboxes(&Default::default())
            .await
            .unwrap()
            .is_empty()
    );
}

/// A reboot, or a runtime whose records were lost: the API and the log files still tell what ran.
#[tokio::test]
async fn a_runtime_that_forgot_everything_counts_as_a_restart() {
    let mut scene = Scene::new();
    scene.create("p", &json!({}));
    scene.until_ready("p").await;
    scene.kill().await;
    scene.runtime.forget_pods();
    scene.start();
    let again = |status: &Value| is_ready(status) && status["containerStatuses"][0]["restartCount"] == 1;
    let status = scene.until_status("p", "restart", again).await;
    let last = &status["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(
        (&last["reason"], &last["exitCode"]),
        (&json!("ContainerStatusUnknown"), &json!(137)),
        "{status:#}"
    );
    let changed = "SandboxChanged: Pod sandbox changed, it will be killed and re-created.";
    scene.until_event(changed).await;
    let config = scene.runtime.container_config(&scene.running("c").await[0]).unwrap();
    assert_eq!(config.log_path, "c/1.log", "the log of the lost run is kept");
}

#[tokio::test]
async fn an_api_server_that_drops_new_fields_is_told_once() {
    let scene = Scene::new();
    scene.api.set_old();
    scene.create("p", &json!({}));
    scene.until_ready("p").await;
    scene.delete("p", 1);
    scene.until_gone("p").await;
    // Some statuses and the deletion: no endless repetition.
    assert!(scene.api.steps() < 30, "{} steps", scene.api.steps());
}
