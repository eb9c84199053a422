//! What goes and what stays when an owner is deleted.

use serde_json::json;

use crate::cluster::{Cluster, eventually, holds_for};

const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/default/deployments/web";

async fn cluster_with_deployment() -> Cluster {
    let cluster = Cluster::start().await;
    cluster.play_nodes(2).await;
    cluster.create_deployment("web", 3, json!({})).await;
    cluster.wait_deployed("web", 3).await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_background_dependents_follow_their_owner() {
    let cluster = cluster_with_deployment().await;
    cluster.delete(DEPLOYMENT, "Background").await;
    assert!(cluster.get(DEPLOYMENT).await.is_null(), "the owner goes at once");
    eventually("sets and pods are gone", async || {
        cluster.replica_sets("web").await.is_empty() && cluster.pods("web").await.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_foreground_the_owner_goes_last() {
    let cluster = cluster_with_deployment().await;
    cluster.delete(DEPLOYMENT, "Foreground").await;
    eventually("all are gone, the owner last", async || {
        let owner = cluster.get(DEPLOYMENT).await;
        let (sets, pods) = (cluster.replica_sets("web").await.len(), cluster.pods("web").await.len());
        assert!(
            !owner.is_null() || (sets == 0 && pods == 0),
            "the owner went before {sets} sets and {pods} pods"
        );
        owner.is_null()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_stay_and_can_be_adopted_again() {
    let cluster = cluster_with_deployment().await;
    cluster.delete(DEPLOYMENT, "Orphan").await;
    eventually("the owner is gone", async || cluster.get(DEPLOYMENT).await.is_null()).await;
    let sets = cluster.replica_sets("web").await;
    assert_eq!(sets.len(), 1);
    assert!(sets[0]["metadata"]["ownerReferences"].is_null(), "set free");
    holds_for(std::time::Duration::from_millis(300), "three pods", async || {
        cluster.pods("web").await.len() == 3
    })
    .await;
    let again = cluster.create_deployment("web", 3, json!({})).await;
    eventually("the new deployment takes the set", async || {
        cluster.replica_sets("web").await[0]["metadata"]["ownerReferences"][0]["uid"] == again["metadata"]["uid"]
    })
    .await;
    assert_eq!(cluster.replica_sets("web").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_kind_may_own_any_other() {
    let cluster = Cluster::start().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let owner = cluster.post(maps, json!({"metadata": {"name": "owner"}})).await;
    let second = cluster.post(maps, json!({"metadata": {"name": "second"}})).await;
    let reference = |owner: &serde_json::Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]});
    let secrets = "/api/v1/namespaces/default/secrets";
    cluster
        .post(
            secrets,
            json!({"metadata": {"name": "one", "ownerReferences": [reference(&owner)]}}),
        )
        .await;
    cluster
        .post(
            secrets,
            json!({"metadata": {"name": "two", "ownerReferences": [reference(&owner), reference(&second)]}}),
        )
        .await;
    let ghost = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "ghost", "uid": "00000000-0000-0000-0000-000000000000"});
    cluster
        .post(
            secrets,
            json!({"metadata": {"name": "ghostly", "ownerReferences": [ghost]}}),
        )
        .await;
    eventually("what a ghost owns is collected", async || {
        cluster.get(&format!("{secrets}/ghostly")).await.is_null()
    })
    .await;
    cluster.delete(&format!("{maps}/owner"), "Background").await;
    eventually("the dependent follows", async || {
        cluster.get(&format!("{secrets}/one")).await.is_null()
    })
    .await;
    eventually("that of two owners keeps the living one", async || {
        cluster.get(&format!("{secrets}/two")).await["metadata"]["ownerReferences"]
            .as_array()
            .is_some_and(|owners| owners.len() == 1)
    })
    .await;
    cluster.delete(&format!("{maps}/second"), "Background").await;
    eventually("until that goes too", async || {
        cluster.get(&format!("{secrets}/two")).await.is_null()
    })
    .await;
}
