//! Deployments and ReplicaSets.

use std::time::Duration;

use kube::core::ApiResource;
use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::core::v1::Pod;

use crate::cluster::{Cluster, NEVER_READY, additions, eventually, holds_for, template, text};

const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/default/deployments/web";

fn condition<'a>(object: &'a Value, type_: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions
        .and_then(|conditions| conditions.iter().find(|condition| condition["type"] == type_))
        .unwrap_or(&Value::Null)
}

fn image(image: &str) -> Value {
    json!({"spec": {"template": template("web", image)}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_runs_updates_and_rolls_back() {
    let cluster = Cluster::start().await;
    cluster.play_nodes(3).await;
    cluster.create_deployment("web", 3, json!({})).await;
    cluster.wait_deployed("web", 3).await;
    let first = cluster.replica_sets("web").await.remove(0);
    let hash = text(&first["metadata"]["labels"]["pod-template-hash"]).to_owned();
    assert_eq!(first["metadata"]["name"], format!("web-{hash}"));
    assert!(
        cluster
            .pods("web")
            .await
            .iter()
            .all(|pod| pod["metadata"]["labels"]["pod-template-hash"] == hash.as_str())
    );
    assert_eq!(
        cluster.kubectl(&["rollout", "status", "deployment/web"]).await,
        "deployment \"web\" successfully rolled out\n"
    );

    cluster.kubectl(&["scale", "deployment/web", "--replicas=5"]).await;
    cluster.wait_deployed("web", 5).await;

    cluster.patch(DEPLOYMENT, image("two")).await;
    cluster.wait_deployed("web", 5).await;
    cluster.kubectl(&["rollout", "status", "deployment/web"]).await;
    let images: Vec<_> = cluster
        .pods("web")
        .await
        .iter()
        .map(|pod| pod["spec"]["containers"][0]["image"].clone())
        .collect();
    assert_eq!(images, vec![json!("two"); 5]);
    let history = cluster.kubectl(&["rollout", "history", "deployment/web"]).await;
    assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");

    cluster.kubectl(&["rollout", "undo", "deployment/web"]).await;
    eventually("the first replica set is the newest again", async || {
        cluster.get(DEPLOYMENT).await["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "3"
    })
    .await;
    cluster.wait_deployed("web", 5).await;
    let sets = cluster.replica_sets("web").await;
    assert_eq!(sets.len(), 2, "the old set was taken again, none was made");
    let again = sets
        .iter()
        .find(|set| set["metadata"]["uid"] == first["metadata"]["uid"])
        .unwrap();
    assert_eq!(again["spec"]["replicas"], 5);
    assert_eq!(
        again["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"],
        "1"
    );

    let deployment = cluster.get(DEPLOYMENT).await;
    assert_eq!(
        condition(&deployment, "Progressing")["reason"],
        "NewReplicaSetAvailable"
    );
    assert_eq!(
        condition(&deployment, "Available")["reason"],
        "MinimumReplicasAvailable"
    );
    let events = cluster.events("Deployment", "web").await;
    let expected = [
        format!("ScalingReplicaSet: Scaled up replica set web-{hash} from 0 to 3"),
        format!("ScalingReplicaSet: Scaled up replica set web-{hash} from 3 to 5"),
    ];
    for event in expected {
        assert!(events.contains(&event), "{event} not in {events:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_update_keeps_its_bounds() {
    let cluster = Cluster::start().await;
    cluster.play_nodes(2).await;
    let strategy =
        json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}}});
    cluster.create_deployment("web", 4, strategy).await;
    cluster.wait_deployed("web", 4).await;
    cluster.patch(DEPLOYMENT, image("two")).await;
    let bounds = async || {
        let pods = cluster.pods("web").await;
        let alive: Vec<_> = pods
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .collect();
        let ready = alive
            .iter()
            .filter(|pod| condition(pod, "Ready")["status"] == "True")
            .count();
        (ready >= 4 && alive.len() <= 5, cluster.get(DEPLOYMENT).await)
    };
    eventually("the update is over", async || {
        let (within, deployment) = bounds().await;
        assert!(
            within,
            "fewer than 4 ready or more than 5 pods in the middle of the update"
        );
        deployment["status"]["updatedReplicas"] == 4 && deployment["status"]["replicas"] == 4
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_version_gets_stuck_and_says_so() {
    let cluster = Cluster::start().await;
    cluster.play_nodes(2).await;
    cluster
        .create_deployment(
            "web",
            4,
            json!({"spec": {"progressDeadlineSeconds": 1, "minReadySeconds": 0}}),
        )
        .await;
    cluster.wait_deployed("web", 4).await;
    let mut bad = template("web", "bad");
    bad["metadata"]["labels"][NEVER_READY] = json!("");
    cluster.patch(DEPLOYMENT, json!({"spec": {"template": bad}})).await;
    eventually("the deadline is exceeded", async || {
        condition(&cluster.get(DEPLOYMENT).await, "Progressing")["reason"] == "ProgressDeadlineExceeded"
    })
    .await;
    let deployment = cluster.get(DEPLOYMENT).await;
    assert_eq!(condition(&deployment, "Available")["status"], "True");
    assert_eq!(
        deployment["status"]["availableReplicas"], 3,
        "one may be unavailable, no more"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_deployment_scales_but_does_not_roll() {
    let cluster = Cluster::start().await;
    cluster.play_nodes(1).await;
    cluster.create_deployment("web", 2, json!({})).await;
    cluster.wait_deployed("web", 2).await;
    cluster.kubectl(&["rollout", "pause", "deployment/web"]).await;
    cluster.patch(DEPLOYMENT, image("two")).await;
    cluster.patch(DEPLOYMENT, json!({"spec": {"replicas": 3}})).await;
    eventually("three of the old version run", async || {
        cluster.pods("web").await.len() == 3
    })
    .await;
    eventually("it says that it is paused", async || {
        condition(&cluster.get(DEPLOYMENT).await, "Progressing")["reason"] == "DeploymentPaused"
    })
    .await;
    assert_eq!(cluster.replica_sets("web").await.len(), 1);
    cluster.kubectl(&["rollout", "resume", "deployment/web"]).await;
    cluster.wait_deployed("web", 3).await;
    assert_eq!(cluster.replica_sets("web").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn recreate_never_mixes_versions() {
    let cluster = Cluster::start().await;
    cluster.play_nodes(1).await;
    cluster
        .create_deployment("web", 3, json!({"spec": {"strategy": {"type": "Recreate"}}}))
        .await;
    cluster.wait_deployed("web", 3).await;
    cluster.patch(DEPLOYMENT, image("two")).await;
    eventually("the update is over", async || {
        let images: Vec<_> = cluster
            .pods("web")
            .await
            .iter()
            .map(|pod| pod["spec"]["containers"][0]["image"].clone())
            .collect();
        assert!(images.windows(2).all(|pair| pair[0] == pair[1]), "two versions at once");
        images == vec![json!("two"); 3]
    })
    .await;
    cluster.wait_deployed("web", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_replica_sets_beyond_the_limit_are_removed() {
    let cluster = Cluster::start().await;
    cluster.play_nodes(1).await;
    cluster
        .create_deployment("web", 1, json!({"spec": {"revisionHistoryLimit": 1}}))
        .await;
    for version in ["one", "two", "three", "four"] {
        cluster.patch(DEPLOYMENT, image(version)).await;
        cluster.wait_deployed("web", 1).await;
    }
    eventually("one old set is left", async || {
        cluster.replica_sets("web").await.len() == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_set_never_makes_a_pod_too_many() {
    let cluster = Cluster::start().await;
    cluster.play_nodes(3).await;
    let added = additions(&cluster, &ApiResource::erase::<Pod>(&())).await;
    cluster.create_deployment("web", 60, json!({})).await;
    cluster.wait_deployed("web", 60).await;
    cluster.patch(DEPLOYMENT, json!({"spec": {"replicas": 10}})).await;
    cluster.wait_deployed("web", 10).await;
    cluster.patch(DEPLOYMENT, json!({"spec": {"replicas": 30}})).await;
    cluster.wait_deployed("web", 30).await;
    holds_for(Duration::from_millis(300), "30 pods", async || {
        cluster.pods("web").await.len() == 30
    })
    .await;
    assert_eq!(added.await.len(), 80, "60, and 20 after the scaling down to 10");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_adopted_and_released_by_their_labels() {
    let cluster = Cluster::start().await;
    cluster.play_nodes(1).await;
    let mut orphan = template("solo", "one");
    orphan["metadata"]["name"] = json!("orphan");
    cluster.post("/api/v1/namespaces/default/pods", orphan).await;
    let set = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "solo"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "solo"}}, "template": template("solo", "one")},
    });
    let set = cluster.post("/apis/apps/v1/namespaces/default/replicasets", set).await;
    let path = "/api/v1/namespaces/default/pods/orphan";
    eventually("the orphan is adopted", async || {
        cluster.get(path).await["metadata"]["ownerReferences"][0]["uid"] == set["metadata"]["uid"]
    })
    .await;
    eventually("one more was made", async || cluster.pods("solo").await.len() == 2).await;
    cluster
        .patch(path, json!({"metadata": {"labels": {"app": "free"}}}))
        .await;
    eventually("the relabelled pod is released", async || {
        cluster.get(path).await["metadata"]["ownerReferences"].is_null()
    })
    .await;
    eventually("and replaced", async || cluster.pods("solo").await.len() == 2).await;
    eventually("the status is right", async || {
        cluster.get("/apis/apps/v1/namespaces/default/replicasets/solo").await["status"]["availableReplicas"] == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relabelled_replica_set_goes_from_one_deployment_to_another() {
    let cluster = Cluster::start().await;
    cluster.play_nodes(1).await;
    for name in ["web", "other"] {
        cluster.create_deployment(name, 1, json!({})).await;
        cluster.wait_deployed(name, 1).await;
    }
    let other = cluster.get("/apis/apps/v1/namespaces/default/deployments/other").await;
    let set = cluster.replica_sets("web").await.remove(0);
    let path = format!(
        "/apis/apps/v1/namespaces/default/replicasets/{}",
        text(&set["metadata"]["name"])
    );
    cluster
        .patch(&path, json!({"metadata": {"labels": {"app": "other"}}}))
        .await;
    eventually("the other adopts it", async || {
        cluster.get(&path).await["metadata"]["ownerReferences"][0]["uid"] == other["metadata"]["uid"]
    })
    .await;
    cluster.wait_deployed("web", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_manager_goes_on_where_the_last_one_stopped() {
    let mut cluster = Cluster::start().await;
    cluster.play_nodes(2).await;
    let added = additions(&cluster, &ApiResource::erase::<Pod>(&())).await;
    cluster.create_deployment("web", 40, json!({})).await;
    for wanted in [5, 15, 25] {
        eventually("some pods exist", async || cluster.pods("web").await.len() >= wanted).await;
        cluster.restart_manager();
    }
    cluster.wait_deployed("web", 40).await;
    cluster.patch(DEPLOYMENT, image("two")).await;
    eventually("the update has begun", async || {
        cluster.replica_sets("web").await.len() == 2
    })
    .await;
    cluster.restart_manager();
    cluster.wait_deployed("web", 40).await;
    let pods = added.await;
    // A manager that is stopped between asking and hearing may leave a surplus, which the next one removes.
    assert!(pods.len() <= 80 + 16, "{} pods made where 80 were needed", pods.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_set_that_cannot_make_pods_says_why() {
    let cluster = Cluster::start().await;
    cluster.play_nodes(1).await;
    let mut pods = template("web", "one");
    pods["spec"]["serviceAccountName"] = json!("nobody");
    cluster
        .create_deployment("web", 2, json!({"spec": {"template": pods}}))
        .await;
    eventually("the failure is a condition of the Deployment", async || {
        condition(&cluster.get(DEPLOYMENT).await, "ReplicaFailure")["reason"] == "FailedCreate"
    })
    .await;
    let message = condition(&cluster.get(DEPLOYMENT).await, "ReplicaFailure")["message"].clone();
    assert!(text(&message).contains("\"nobody\" not found"), "{message}");
    let set = cluster.replica_sets("web").await.remove(0);
    eventually("and an event", async || {
        let events = cluster.events("ReplicaSet", text(&set["metadata"]["name"])).await;
        events
            .iter()
            .any(|event| event.starts_with("FailedCreate: Error creating: "))
    })
    .await;
    cluster
        .post(
            "/api/v1/namespaces/default/serviceaccounts",
            json!({"metadata": {"name": "nobody"}}),
        )
        .await;
    cluster.wait_deployed("web", 2).await;
    assert!(condition(&cluster.get(DEPLOYMENT).await, "ReplicaFailure").is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_works_over_https_as_well() {
    let mut cluster = Cluster::start().await;
    cluster.play_nodes(2).await;
    let remote = cluster.remote_client().await;
    cluster.restart_manager_with(remote);
    cluster.create_deployment("web", 3, json!({})).await;
    cluster.wait_deployed("web", 3).await;
    cluster.patch(DEPLOYMENT, image("two")).await;
    cluster.wait_deployed("web", 3).await;
    cluster.delete(DEPLOYMENT, "Background").await;
    eventually("all pods are gone", async || cluster.pods("web").await.is_empty()).await;
}
