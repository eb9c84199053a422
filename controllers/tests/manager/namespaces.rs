//! What a namespace gets, and how it goes.

use serde_json::json;

use crate::cluster::{Cluster, eventually, template, text};

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_gets_its_account_and_authority() {
    let cluster = Cluster::start().await;
    cluster
        .post("/api/v1/namespaces", json!({"metadata": {"name": "team"}}))
        .await;
    eventually("the default account is there", async || {
        !cluster
            .get("/api/v1/namespaces/team/serviceaccounts/default")
            .await
            .is_null()
    })
    .await;
    let map = "/api/v1/namespaces/team/configmaps/kube-root-ca.crt";
    eventually("the authority is there", async || {
        text(&cluster.get(map).await["data"]["ca.crt"]).contains("BEGIN CERTIFICATE")
    })
    .await;
    cluster
        .patch(map, json!({"data": {"ca.crt": "forged", "more": "x"}}))
        .await;
    eventually("a forgery is corrected", async || {
        let data = cluster.get(map).await["data"].clone();
        text(&data["ca.crt"]).contains("BEGIN CERTIFICATE") && data["more"].is_null()
    })
    .await;
    cluster
        .delete("/api/v1/namespaces/team/serviceaccounts/default", "Background")
        .await;
    eventually("a deleted account comes back", async || {
        !cluster
            .get("/api/v1/namespaces/team/serviceaccounts/default")
            .await
            .is_null()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_namespace_takes_its_content_along() {
    let cluster = Cluster::start().await;
    cluster.play_nodes(1).await;
    cluster
        .post("/api/v1/namespaces", json!({"metadata": {"name": "team"}}))
        .await;
    eventually("pods can be made", async || {
        !cluster
            .get("/api/v1/namespaces/team/serviceaccounts/default")
            .await
            .is_null()
    })
    .await;
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template("web", "one")},
    });
    cluster
        .post("/apis/apps/v1/namespaces/team/deployments", deployment)
        .await;
    cluster
        .post("/api/v1/namespaces/team/secrets", json!({"metadata": {"name": "s"}}))
        .await;
    eventually("pods run", async || {
        cluster.list("/api/v1/namespaces/team/pods").await.len() == 3
    })
    .await;
    cluster.delete("/api/v1/namespaces/team", "Background").await;
    eventually("the namespace is gone", async || {
        cluster.get("/api/v1/namespaces/team").await.is_null()
    })
    .await;
    for path in [
        "/api/v1/namespaces/team/pods",
        "/api/v1/namespaces/team/secrets",
        "/apis/apps/v1/namespaces/team/replicasets",
    ] {
        assert!(cluster.list(path).await.is_empty(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finalizer_keeps_a_namespace_and_is_named() {
    let cluster = Cluster::start().await;
    cluster
        .post("/api/v1/namespaces", json!({"metadata": {"name": "team"}}))
        .await;
    let map = json!({"metadata": {"name": "kept", "finalizers": ["example.com/hold"]}});
    cluster.post("/api/v1/namespaces/team/configmaps", map).await;
    cluster.delete("/api/v1/namespaces/team", "Background").await;
    eventually("the conditions say what remains", async || {
        let namespace = cluster.get("/api/v1/namespaces/team").await;
        let conditions = namespace["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        conditions.iter().any(|condition| {
            condition["type"] == "NamespaceFinalizersRemaining"
                && condition["status"] == "True"
                && text(&condition["message"]).ends_with("example.com/hold in 1 resource instances")
        })
    })
    .await;
    cluster
        .patch(
            "/api/v1/namespaces/team/configmaps/kept",
            json!({"metadata": {"finalizers": null}}),
        )
        .await;
    eventually("the namespace is gone", async || {
        cluster.get("/api/v1/namespaces/team").await.is_null()
    })
    .await;
}
