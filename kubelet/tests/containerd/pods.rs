//! What a pod gets from a real runtime: restarts that are counted, limits of its disk, its security settings, its claims.

use serde_json::{Value, json};

use crate::container;
use crate::kubelet::{Kubelet, is_ready};
use crate::node::{IMAGE, Node};

const SLEEP: &str = "trap 'exit 0' TERM; while true; do /bin/busybox sleep 0.1; done";

fn ended(status: &Value) -> bool {
    matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// What the pod's container left as its termination message.
fn message(status: &Value) -> String {
    let state = &status["containerStatuses"][0]["state"]["terminated"];
    state["message"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_node_that_forgot_its_pods_runs_them_again_and_counts_it() {
    let mut node = Node::start().await;
    node.create("p", &json!({"containers": [container(SLEEP)]}));
    node.until_ready("p").await;
    node.kill().await;
    node.forget_pods().await;
    node.start_kubelet();
    let again = |status: &Value| is_ready(status) && status["containerStatuses"][0]["restartCount"] == 1;
    let status = node.until_status("p", "restart", again).await;
    let last = &status["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(last["reason"], "ContainerStatusUnknown", "{status:#}");
    let logs = node.path_of("logs/ns_p_uid-p/c");
    assert!(logs.join("0.log").exists() && logs.join("1.log").exists());
    node.until_event("SandboxChanged: Pod sandbox changed, it will be killed and re-created.")
        .await;
    node.delete("p", 1);
    node.until_gone("p").await;
    assert_eq!(ends_of(&node).await, "hook\nmain\nside\n");
    assert_eq!(node.leftovers().await, Vec::<String>::new());
}

/// In which order a pod with a sidecar ends: the main container's hook waits for the sidecar's, which runs beside it.
async fn ends_of(node: &Node) -> String {
    let dir = node.path_of("ends");
    std::fs::create_dir(&dir).expect("a directory");
    let with = |name: &str, hook: &str| {
        let script =
            format!("trap 'echo {name} >> /e/order; exit 0' TERM; while true; do /bin/busybox sleep 0.1; done");
        let mut c = container(&script);
        c["name"] = name.into();
        c["volumeMounts"] = json!([{"name": "e", "mountPath": "/e"}]);
        c["lifecycle"] = json!({"preStop": {"exec": {"command": ["/bin/busybox", "sh", "-c", hook]}}});
        c
    };
    let mut side = with("side", ": > /e/told");
    side["restartPolicy"] = "Always".into();
    let main = with(
        "main",
        "until [ -e /e/told ]; do /bin/busybox sleep 0.1; done; echo hook >> /e/order",
    );
    let volumes = json!([{"name": "e", "hostPath": {"path": dir}}]);
    node.create(
        "ends",
        &json!({"initContainers": [side], "containers": [main], "volumes": volumes}),
    );
    node.until_ready("ends").await;
    node.delete("ends", 20);
    node.until_gone("ends").await;
    std::fs::read_to_string(dir.join("order")).expect("the order of ends")
}

#[tokio::test]
async fn who_writes_more_than_its_limit_is_evicted() {
    let node = Node::start().await;
    let mut writer = container("/bin/busybox dd if=/dev/zero of=/v/f bs=1M count=3; /bin/busybox sleep 1000");
    writer["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    let volumes = json!([{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]);
    node.create("volume", &json!({"containers": [writer], "volumes": volumes}));
    let mut layer = container("/bin/busybox dd if=/dev/zero of=/tmp/f bs=1M count=3; /bin/busybox sleep 1000");
    layer["resources"] = json!({"limits": {"ephemeral-storage": "1Mi"}});
    node.create("layer", &json!({"containers": [layer]}));
    let volume = node.until_status("volume", "eviction", ended).await;
    assert_eq!(volume["reason"], "Evicted");
    assert_eq!(
        volume["message"],
        "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". "
    );
    let conditions = volume["conditions"].as_array().expect("conditions");
    let target = conditions
        .iter()
        .find(|condition| condition["type"] == "DisruptionTarget");
    assert!(
        target.is_some_and(|target| target["reason"] == "TerminationByKubelet"),
        "{volume:#}"
    );
    let layer = node.until_status("layer", "eviction", ended).await;
    let text = "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. ";
    assert_eq!((&layer["reason"], &layer["message"]), (&json!("Evicted"), &json!(text)));
    let dir = node.path_of("kubelet/pods/uid-volume/volumes");
    let released = |_: &crate::api::Api| (!dir.exists()).then_some(());
    node.api.until("the volume's end", released).await;
}

#[tokio::test]
async fn a_container_has_the_rights_that_it_was_given() {
    let node = Node::start().await;
    let script = "exec > /dev/termination-log; /bin/busybox id -u; /bin/busybox id -g; /bin/busybox id -G; \
                  /bin/busybox grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; \
                  /bin/busybox touch /x 2>/dev/null || echo read-only; /bin/busybox stat -c %g /v";
    let mut c = container(script);
    c["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    c["securityContext"] = json!({
        "runAsUser": 1000, "runAsGroup": 2000, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}, "seccompProfile": {"type": "RuntimeDefault"},
    });
    let context = json!({"fsGroup": 3000, "supplementalGroups": [4000], "runAsNonRoot": true});
    let volumes = json!([{"name": "v", "emptyDir": {}}]);
    node.create(
        "p",
        &json!({"restartPolicy": "Never", "containers": [c], "securityContext": context, "volumes": volumes}),
    );
    let text = message(&node.until_status("p", "end", ended).await);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let expected = [
        "1000",
        "2000",
        "2000 3000 4000",
        "CapBnd:\t0000000000000400",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "read-only",
        "3000",
    ];
    assert_eq!(lines, expected);
}

/// What the kernel holds a pod to: processes, a profile of the node's own, paths that are hidden unless somebody asks for them.
#[tokio::test]
async fn what_binds_a_pod_is_in_the_kernel() {
    let mut node = Node::without_kubelet().await;
    node.config.kubelet.pod_pids_limit = 20;
    node.config.kubelet.allowed_unsafe_sysctls = vec!["kernel.msg*".into()];
    let profiles = node.path_of("kubelet/seccomp");
    std::fs::create_dir_all(&profiles).expect("a directory");
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}],
    });
    std::fs::write(profiles.join("no-mkdir.json"), profile.to_string()).expect("a profile");
    node.start_kubelet();
    let run = |name: &str, script: &str, context: Value| {
        let mut c = container(&format!("exec > /dev/termination-log 2>&1; {script}"));
        c["securityContext"] = context;
        node.create(name, &json!({"restartPolicy": "Never", "containers": [c]}));
    };
    // A shell that cannot fork gives up; the one around it needs no further process.
    let forks = "(for i in $(/bin/busybox seq 40); do /bin/busybox sleep 20 & done) || :";
    run("forks", forks, json!({}));
    run("score", "/bin/busybox cat /proc/self/oom_score_adj", json!({}));
    let denied = "/bin/busybox mkdir /tmp/x || echo refused";
    let own = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "no-mkdir.json"}});
    run("denied", denied, own);
    run("allowed", &format!("{denied}; echo made"), json!({}));
    let hidden = "/bin/busybox test -c /proc/keys && echo hidden || echo shown; \
                  /bin/busybox grep -c ' /proc/sys proc ro' /proc/mounts";
    run("masked", hidden, json!({}));
    run("unmasked", hidden, json!({"procMount": "Unmasked"}));
    let mut c = container("exec > /dev/termination-log; /bin/busybox cat /proc/sys/kernel/msgmax");
    c["name"] = "c".into();
    let sysctls = json!({"sysctls": [{"name": "kernel.msgmax", "value": "12345"}]});
    let spec = json!({"restartPolicy": "Never", "containers": [c], "securityContext": sysctls});
    node.create("sysctl", &spec);
    let said = async |name: &str| message(&node.until_status(name, "end", ended).await);
    assert!(said("forks").await.contains("can't fork"), "{}", said("forks").await);
    assert_eq!(said("score").await, "1000\n");
    assert_eq!(said("sysctl").await, "12345\n");
    assert!(said("denied").await.ends_with("refused\n"));
    assert_eq!(said("allowed").await, "made\n");
    assert_eq!(said("masked").await, "hidden\n1\n");
    assert_eq!(said("unmasked").await, "shown\n0\n");
}

/// busybox's image names no user: that is root, also with a group of the pod's.
#[tokio::test]
async fn a_group_needs_no_user() {
    let node = Node::start().await;
    let c = container("exec > /dev/termination-log; /bin/busybox id -u; /bin/busybox id -g");
    node.create(
        "p",
        &json!({"restartPolicy": "Never", "containers": [c], "securityContext": {"runAsGroup": 3000}}),
    );
    assert_eq!(message(&node.until_status("p", "end", ended).await), "0\n3000\n");
}

/// A profile that is not there must not mean that there is none.
#[tokio::test]
async fn a_missing_seccomp_profile_starts_nothing() {
    let node = Node::start().await;
    let with = |profile: Value| {
        let mut c = container(SLEEP);
        c["securityContext"] = json!({"seccompProfile": profile});
        json!({"containers": [c]})
    };
    node.create(
        "absent",
        &with(json!({"type": "Localhost", "localhostProfile": "absent.json"})),
    );
    node.create(
        "outside",
        &with(json!({"type": "Localhost", "localhostProfile": "../../etc/passwd"})),
    );
    let reason = |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    let refused = |status: &Value| reason(status) == "CreateContainerError";
    node.until_status("absent", "refusal", refused).await;
    let refused = |status: &Value| reason(status) == "CreateContainerConfigError";
    let status = node.until_status("outside", "refusal", refused).await;
    assert_eq!(status["phase"], "Pending");
    let profiles = node.path_of("kubelet/seccomp");
    std::fs::create_dir_all(&profiles).expect("a directory");
    std::fs::write(profiles.join("absent.json"), r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).expect("a profile");
    node.until_ready("absent").await;
}

#[tokio::test]
async fn a_static_pod_ends_with_its_manifest_even_unseen() {
    let mut node = Node::start().await;
    node.kill().await;
    let manifests = node.path_of("manifests");
    std::fs::create_dir(&manifests).expect("a directory");
    node.config.kubelet.static_pod_path = Some(manifests.clone());
    let mut c = container(SLEEP);
    c["image"] = IMAGE.into();
    let manifest = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "ns"},
        "spec": {"hostNetwork": true, "terminationGracePeriodSeconds": 1, "containers": [c]},
    });
    let file = manifests.join("web.json");
    std::fs::write(&file, manifest.to_string()).expect("a manifest");
    node.start_kubelet();
    node.until_ready("web-node-1").await;
    node.kill().await;
    node.start_kubelet();
    std::fs::remove_file(&file).expect("a removal");
    node.until_gone("web-node-1").await;
    assert_eq!(node.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_claims_data_outlives_the_pod() {
    let node = Node::start().await;
    let data = node.path_of("data");
    std::fs::create_dir(&data).expect("a directory");
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data", "namespace": "ns", "uid": "claim"},
        "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"},
    });
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv"},
        "spec": {"claimRef": {"uid": "claim"}, "local": {"path": data}},
    });
    node.api.put("/api/v1/namespaces/ns/persistentvolumeclaims/data", claim);
    node.api.put("/api/v1/persistentvolumes/pv", volume);
    let pod = |script: &str, read_only: bool| {
        let mut c = container(script);
        c["volumeMounts"] = json!([{"name": "v", "mountPath": "/data"}]);
        let source = json!({"claimName": "data", "readOnly": read_only});
        json!({"restartPolicy": "Never", "containers": [c], "volumes": [{"name": "v", "persistentVolumeClaim": source}]})
    };
    node.create("writer", &pod("echo kept > /data/file", false));
    let status = node.until_status("writer", "end", ended).await;
    assert_eq!(status["phase"], "Succeeded", "{status:#}");
    node.delete("writer", 1);
    node.until_gone("writer").await;
    let script = "/bin/busybox cat /data/file > /dev/termination-log; echo x > /data/file2 || exit 3";
    node.create("reader", &pod(script, true));
    let status = node.until_status("reader", "end", ended).await;
    assert_eq!(message(&status), "kept\n");
    assert_eq!(
        status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3,
        "read-only"
    );
    node.delete("reader", 1);
    node.until_gone("reader").await;
    assert_eq!(node.leftovers().await, Vec::<String>::new());
    assert_eq!(std::fs::read_to_string(data.join("file")).expect("the data"), "kept\n");
    assert!(node.api.get(&Kubelet::path("reader")).is_none());
}
