//! EndpointSlices and Endpoints.

use serde_json::{Value, json};

use crate::cluster::{Cluster, NEVER_READY, eventually, template, text};

const SLICES: &str =
    "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dweb";

async fn create_service(cluster: &Cluster, spec: Value) {
    let body = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "labels": {"team": "a"}}, "spec": spec});
    cluster.post("/api/v1/namespaces/default/services", body).await;
}

/// Addresses of all slices, by whether they are ready.
async fn addresses(cluster: &Cluster, ready: bool) -> Vec<String> {
    let slices = cluster.list(SLICES).await;
    let endpoints = slices
        .iter()
        .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
    let mut found: Vec<_> = endpoints
        .filter(|endpoint| endpoint["conditions"]["ready"] == ready)
        .map(|endpoint| text(&endpoint["addresses"][0]).to_owned())
        .collect();
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_follow_the_pods() {
    let cluster = Cluster::start().await;
    cluster.play_nodes(2).await;
    create_service(
        &cluster,
        json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}),
    )
    .await;
    eventually("an empty slice stands", async || cluster.list(SLICES).await.len() == 1).await;
    cluster.create_deployment("web", 3, json!({})).await;
    eventually("three addresses are ready", async || {
        addresses(&cluster, true).await.len() == 3
    })
    .await;

    let slices = cluster.list(SLICES).await;
    assert_eq!(slices.len(), 1, "the placeholder was filled");
    let slice = &slices[0];
    assert_eq!(
        slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"],
        "endpointslice-controller.k8s.io"
    );
    assert_eq!(slice["metadata"]["labels"]["team"], "a");
    assert_eq!(slice["metadata"]["ownerReferences"][0]["name"], "web");
    assert_eq!(slice["ports"], json!([{"name": "", "port": 8080, "protocol": "TCP"}]));
    let endpoint = &slice["endpoints"][0];
    assert!(text(&endpoint["nodeName"]).starts_with("node-"));
    assert_eq!(endpoint["targetRef"]["kind"], "Pod");

    eventually("the Endpoints object has them too", async || {
        let endpoints = cluster.get("/api/v1/namespaces/default/endpoints/web").await;
        endpoints["subsets"][0]["addresses"]
            .as_array()
            .is_some_and(|addresses| addresses.len() == 3)
    })
    .await;

    let pod = text(&cluster.pods("web").await[0]["metadata"]["name"]).to_owned();
    let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    cluster
        .patch(&format!("/api/v1/namespaces/default/pods/{pod}/status"), unready)
        .await;
    eventually("an unready pod is taken out", async || {
        addresses(&cluster, true).await.len() == 2 && addresses(&cluster, false).await.len() == 1
    })
    .await;

    cluster
        .delete("/api/v1/namespaces/default/services/web", "Background")
        .await;
    eventually("slices and Endpoints go with the Service", async || {
        cluster.list(SLICES).await.is_empty() && cluster.get("/api/v1/namespaces/default/endpoints/web").await.is_null()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_endpoints_are_cut_into_slices() {
    let cluster = Cluster::start().await;
    cluster.play_nodes(2).await;
    create_service(&cluster, json!({"selector": {"app": "web"}, "ports": [{"port": 80}]})).await;
    cluster.create_deployment("web", 130, json!({})).await;
    eventually("all addresses are ready", async || {
        addresses(&cluster, true).await.len() == 130
    })
    .await;
    let all = addresses(&cluster, true).await;
    let mut unique = all.clone();
    unique.dedup();
    assert_eq!(unique.len(), 130, "none is listed twice");
    let sizes: Vec<_> = cluster
        .list(SLICES)
        .await
        .iter()
        .map(|slice| slice["endpoints"].as_array().unwrap().len())
        .collect();
    assert!(sizes.iter().all(|size| *size <= 100), "{sizes:?}");
    assert!(sizes.len() <= 3, "{sizes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_headless_service_may_publish_pods_that_are_not_ready() {
    let cluster = Cluster::start().await;
    cluster.play_nodes(1).await;
    create_service(
        &cluster,
        json!({"clusterIP": "None", "selector": {"app": "web"}, "publishNotReadyAddresses": true}),
    )
    .await;
    let mut pods = template("web", "one");
    pods["metadata"]["labels"][NEVER_READY] = json!("");
    cluster
        .create_deployment("web", 2, json!({"spec": {"template": pods}}))
        .await;
    eventually("both are published", async || {
        addresses(&cluster, true).await.len() == 2
    })
    .await;
    let slice = cluster.list(SLICES).await.remove(0);
    assert_eq!(slice["metadata"]["labels"]["service.kubernetes.io/headless"], "");
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_kept_by_hand_show_in_slices() {
    const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints";
    let cluster = Cluster::start().await;
    create_service(&cluster, json!({"ports": [{"port": 80}]})).await;
    let subsets = |ip: &str| json!([{"addresses": [{"ip": ip}], "ports": [{"port": 8080}]}]);
    let body =
        json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "web"}, "subsets": subsets("192.0.2.1")});
    cluster.post(ENDPOINTS, body).await;
    let has = |ip: &'static str| {
        let cluster = &cluster;
        async move { addresses(cluster, true).await == [ip] }
    };
    eventually("the address shows", async || has("192.0.2.1").await).await;
    let slice = cluster.list(SLICES).await.remove(0);
    let metadata = &slice["metadata"];
    assert_eq!(
        metadata["labels"]["endpointslice.kubernetes.io/managed-by"],
        "endpointslicemirroring-controller.k8s.io"
    );
    assert_eq!(metadata["ownerReferences"][0]["kind"], "Endpoints");
    assert_eq!(slice["ports"], json!([{"name": "", "port": 8080, "protocol": "TCP"}]));

    cluster
        .patch(&format!("{ENDPOINTS}/web"), json!({"subsets": subsets("192.0.2.2")}))
        .await;
    eventually("it is followed", async || has("192.0.2.2").await).await;
    assert_eq!(
        cluster.list(SLICES).await.len(),
        1,
        "the slice was changed, not replaced"
    );

    // With a selector only pods count.
    let selector = json!({"spec": {"selector": {"app": "web"}}});
    cluster.patch("/api/v1/namespaces/default/services/web", selector).await;
    eventually("only the placeholder for pods is left", async || {
        let slices = cluster.list(SLICES).await;
        slices.len() == 1
            && slices[0]["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"]
                == "endpointslice-controller.k8s.io"
    })
    .await;
}
