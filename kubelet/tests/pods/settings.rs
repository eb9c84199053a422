//! What a pod asks for and only the runtime can give: it must reach the runtime as it was asked for.

use serde_json::json;
use skiff_cri::{NamespaceMode, SecurityProfile, SelinuxOptions};

use crate::scene::Scene;

#[tokio::test]
async fn settings_reach_the_runtime() {
    let scene = Scene::new();
    let label = |level: &str| json!({"user": "u", "role": "r", "type": "t", "level": level});
    let spec = json!({
        "hostIPC": true, "shareProcessNamespace": true,
        "securityContext": {
            "seLinuxOptions": label("s0:c1"), "runAsUser": 1000, "runAsGroup": 2000, "fsGroup": 3000, "supplementalGroups": [4000],
            "sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "0"}],
            "seccompProfile": {"type": "Localhost", "localhostProfile": "tight.json"},
        },
        "containers": [
            {"name": "own", "image": "busybox:1", "imagePullPolicy": "IfNotPresent", "stdin": true, "tty": true,
             "ports": [{"containerPort": 80, "hostPort": 8080, "hostIP": "127.0.0.1", "protocol": "UDP"}],
             "securityContext": {"seLinuxOptions": label("s0:c2"), "procMount": "Unmasked", "runAsUser": 1001,
                                 "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}}},
            {"name": "pods", "image": "busybox:1", "imagePullPolicy": "IfNotPresent", "securityContext": {"privileged": true}},
        ],
    });
    scene.create("p", &spec);
    scene.until_ready("p").await;
    let of = async |name: &str| {
        let id = scene.running(name).await.remove(0);
        scene.runtime.container_config(&id).expect("a container")
    };
    let selinux = |level: &str| {
        let (user, role, kind, level) = ("u".into(), "r".into(), "t".into(), level.into());
        Some(SelinuxOptions {
            user,
            role,
            kind,
            level,
        })
    };
    let (own, pods) = (of("own").await, of("pods").await);
    assert_eq!(own.security.selinux, selinux("s0:c2"), "the container's wins");
    assert_eq!(pods.security.selinux, selinux("s0:c1"));
    assert_eq!(
        (own.security.run_as_user, pods.security.run_as_user),
        (Some(1001), Some(1000))
    );
    assert_eq!(own.security.run_as_group, Some(2000));
    assert_eq!(own.security.supplemental_groups, [3000, 4000]);
    assert_eq!(own.security.add_capabilities, ["NET_ADMIN"]);
    assert_eq!(own.security.drop_capabilities, ["ALL"]);
    assert!(own.stdin && own.tty && own.security.masked_paths.is_empty(), "unmasked");
    assert!(pods.security.privileged && !own.security.privileged);
    assert!(!own.security.strict_groups);
    let sandbox = skiff_cri::Runtime::list_sandboxes(&scene.runtime, &Default::default())
        .await
        .expect("a list");
    let config = scene.runtime.sandbox_config(&sandbox[0].id).expect("a sandbox");
    assert_eq!(config.security.selinux, selinux("s0:c1"));
    let seccomp = (&config.security.seccomp, &own.security.seccomp);
    assert!(
        matches!(
            seccomp,
            (
                Some(SecurityProfile::RuntimeDefault),
                Some(SecurityProfile::Localhost(_))
            )
        ),
        "the pod's profile is its containers': {seccomp:?}"
    );
    let namespaces = config.security.namespaces;
    assert_eq!(
        (namespaces.ipc, namespaces.pid),
        (NamespaceMode::Node, NamespaceMode::Pod)
    );
    assert_eq!(config.sysctls["net.ipv4.tcp_syncookies"], "0");
    let port = &config.port_mappings[0];
    assert_eq!(
        (port.container_port, port.host_port, port.host_ip.as_str()),
        (80, 8080, "127.0.0.1")
    );
}
