//! Events that tell what a pod may lack, once.

use serde_json::{Value, json};

use crate::scene::Scene;

fn counts(scene: &Scene, reason: &str) -> Vec<(String, i64)> {
    let told = |event: &Value| {
        let message = event["message"].as_str().unwrap_or_default().to_owned();
        (event["reason"] == reason).then(|| (message, event["count"].as_i64().unwrap_or_default()))
    };
    scene.api.list("events").iter().filter_map(told).collect()
}

#[tokio::test]
async fn what_a_pod_lacks_is_told_once() {
    let scene = Scene::new();
    scene.runtime.allow_pull("pulled:1");
    let secret = json!({"metadata": {"name": "there", "namespace": "ns"}, "data": {}});
    scene.api.put("/api/v1/namespaces/ns/secrets/there", secret);
    let spec = json!({
        "dnsConfig": {"nameservers": ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]},
        "dnsPolicy": "None",
        "imagePullSecrets": [{"name": "absent"}, {"name": "there"}, {"name": "lost"}, {}],
        "containers": [{"name": "c", "image": "pulled:1", "imagePullPolicy": "Always"}],
    });
    scene.create("p", &spec);
    scene.until_ready("p").await;
    scene.runtime.exit_container(&scene.running("c").await[0], 1);
    let again = |status: &Value| {
        let container = &status["containerStatuses"][0];
        container["restartCount"] == 1 && !container["state"]["running"].is_null()
    };
    scene.until_status("p", "restart", again).await;
    // Events are written one after the other: when this one is there, all before it are.
    let started = |_: &_| (counts(&scene, "Started").iter().map(|(_, count)| count).sum::<i64>() == 2).then_some(());
    scene.api.until("second start", started).await;
    let missing =
        "Unable to retrieve some image pull secrets (absent, lost); attempting to pull the image may not succeed.";
    assert_eq!(
        counts(&scene, "FailedToRetrieveImagePullSecret"),
        [(missing.to_owned(), 1)]
    );
    let omitted = "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: 192.0.2.1 \
                   192.0.2.2 192.0.2.3";
    assert_eq!(counts(&scene, "DNSConfigForming"), [(omitted.to_owned(), 1)]);
}

/// Where names of the cluster cannot be resolved, the pod says why.
#[tokio::test]
async fn a_missing_cluster_dns_is_told() {
    let scene = Scene::new();
    scene.create("p", &json!({}));
    let missing = "kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy.";
    scene
        .until_event(&format!("MissingClusterDNS: pod: \"p_ns(uid-p)\". {missing}"))
        .await;
    scene.until_event(&format!("MissingClusterDNS: {missing}")).await;
}
