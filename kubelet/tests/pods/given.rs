//! What containers are given beside their image: environment, names, a place for their last words.

use serde_json::{Value, json};
use skiff_cri::Runtime as _;

use crate::scene::Scene;

/// Binary data is for volumes; upstream's environments do not have it.
#[tokio::test]
async fn binary_data_is_no_part_of_the_environment() {
    let scene = Scene::new();
    let map = json!({"metadata": {"name": "cm", "namespace": "ns"}, "data": {"a": "1"}, "binaryData": {"b": "AAE="}});
    scene.api.put("/api/v1/namespaces/ns/configmaps/cm", map);
    let container = |more: Value| {
        let mut container = json!({"name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent",
                                   "envFrom": [{"configMapRef": {"name": "cm"}}]});
        container["env"] = more;
        json!({"containers": [container], "volumes": [{"name": "v", "configMap": {"name": "cm"}}]})
    };
    scene.create("p", &container(json!([])));
    scene.until_ready("p").await;
    let config = scene.runtime.container_config(&scene.running("c").await[0]);
    let envs = config.expect("a container").envs;
    let value = |name: &str| {
        envs.iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    };
    assert_eq!((value("a"), value("b")), (Some("1"), None));
    let file = scene.pod_dir("p").join("volumes/kubernetes.io~configmap/v/b");
    assert_eq!(std::fs::read(file).expect("a file"), [0, 1]);
    let key = json!({"configMapKeyRef": {"name": "cm", "key": "b"}});
    scene.create("q", &container(json!([{"name": "B", "valueFrom": key}])));
    let waiting = |status: &Value| status["containerStatuses"][0]["state"]["waiting"].clone();
    let refused = |status: &Value| waiting(status)["reason"] == "CreateContainerConfigError";
    let status = scene.until_status("q", "config error", refused).await;
    assert_eq!(waiting(&status)["message"], "couldn't find key b in ConfigMap ns/cm");
}

/// A path of the container's own for its last words.
#[tokio::test]
async fn a_container_says_why_it_ended_where_it_wants_to() {
    let scene = Scene::new();
    let container = json!({"name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/tmp/last"});
    scene.create("p", &json!({"restartPolicy": "Never", "containers": [container]}));
    scene.until_ready("p").await;
    let id = scene.running("c").await.remove(0);
    let mounts = scene.runtime.container_config(&id).expect("a container").mounts;
    let place = mounts
        .iter()
        .find(|mount| mount.container_path == "/tmp/last")
        .expect("a mount");
    std::fs::write(&place.host_path, "farewell").expect("a file");
    scene.runtime.exit_container(&id, 3);
    let failed = |status: &Value| status["phase"] == "Failed";
    let status = scene.until_status("p", "failed pod", failed).await;
    assert_eq!(
        status["containerStatuses"][0]["state"]["terminated"]["message"],
        "farewell"
    );
}

/// With `dnsPolicy: Default`, names are resolved as the node resolves them.
#[tokio::test]
async fn the_nodes_resolver_may_be_asked_for() {
    let mut scene = Scene::idle();
    let file = scene.dir.path().join("resolv.conf");
    std::fs::write(&file, "nameserver 192.0.2.1\nsearch corp.test\noptions rotate\n").expect("a file");
    scene.config.kubelet.resolv_conf = Some(file);
    scene.config.kubelet.cluster_dns = vec!["10.96.0.10".into()];
    scene.start();
    let cases = [
        ("Default", "192.0.2.1", vec!["corp.test"]),
        (
            "ClusterFirst",
            "10.96.0.10",
            vec![
                "ns.svc.cluster.local",
                "svc.cluster.local",
                "cluster.local",
                "corp.test",
            ],
        ),
    ];
    for (policy, server, searches) in cases {
        scene.create(policy, &json!({"dnsPolicy": policy}));
        scene.until_ready(policy).await;
        let sandboxes = scene.runtime.list_sandboxes(&Default::default()).await.expect("a list");
        let dns = scene
            .runtime
            .sandbox_config(&sandboxes[0].id)
            .and_then(|config| config.dns)
            .expect("settings");
        assert_eq!(
            (dns.servers, dns.searches),
            (
                vec![server.to_owned()],
                searches.iter().map(ToString::to_string).collect()
            )
        );
        scene.delete(policy, 1);
        scene.until_gone(policy).await;
    }
    let events = scene.api.events();
    assert!(
        !events.iter().any(|event| event.starts_with("MissingClusterDNS")),
        "{events:?}"
    );
}

/// The runtime is not even asked.
#[tokio::test]
async fn a_host_name_that_is_too_long_makes_no_sandbox() {
    let scene = Scene::new();
    let name = "h".repeat(50);
    scene.create(
        "p",
        &json!({"hostname": name, "subdomain": "s", "setHostnameAsFQDN": true}),
    );
    let text = format!(
        "FailedCreatePodSandBox: Failed to create pod sandbox: failed to construct FQDN from pod hostname and cluster domain, FQDN \
         {name}.s.ns.svc.cluster.local is too long (64 characters is the max, 73 characters requested)"
    );
    scene.until_event(&text).await;
    let calls = scene.runtime.calls();
    assert!(!calls.iter().any(|call| call.starts_with("RunPodSandbox")), "{calls:?}");
    scene.delete("p", 1);
    scene.until_gone("p").await;
}
