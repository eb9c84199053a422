//! Claims and volumes: how they come together, what keeps them, what becomes of them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{Cluster, eventually, holds_for, text};

const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const VOLUMES: &str = "/api/v1/persistentvolumes";
const PODS: &str = "/api/v1/namespaces/default/pods";
const CLASSES: &str = "/apis/storage.k8s.io/v1/storageclasses";
const PROVISIONING: &str = "ExternalProvisioning: Waiting for a volume to be created either by the external provisioner 'example.com/p' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.";

fn claim(name: &str, spec: Value) -> Value {
    let mut all = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    crate::cluster::merge(&mut all, spec);
    json!({"metadata": {"name": name}, "spec": all})
}

fn volume(name: &str, spec: Value) -> Value {
    let mut all = json!({
        "accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": "1Gi"},
        "hostPath": {"path": "/data"},
        "persistentVolumeReclaimPolicy": "Retain",
    });
    crate::cluster::merge(&mut all, spec);
    json!({"metadata": {"name": name}, "spec": all})
}

/// A pod that uses the claim, on a node or on none.
fn user(name: &str, claim: &str, node: Option<&str>) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "nodeName": node,
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}],
    }})
}

impl Cluster {
    async fn claim_phase(&self, name: &str) -> String {
        text(&self.get(&format!("{CLAIMS}/{name}")).await["status"]["phase"]).to_owned()
    }

    async fn volume_phase(&self, name: &str) -> String {
        text(&self.get(&format!("{VOLUMES}/{name}")).await["status"]["phase"]).to_owned()
    }

    async fn wait_bound(&self, claim: &str) {
        eventually(&format!("{claim} is bound"), async || {
            self.claim_phase(claim).await == "Bound"
        })
        .await;
    }

    async fn wait_event(&self, claim: &str, wanted: &str) {
        eventually(wanted, async || {
            let events = self.events("PersistentVolumeClaim", claim).await;
            events.iter().any(|event| event == wanted)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_made_by_hand_is_bound_and_kept() {
    let cluster = Cluster::start().await;
    cluster
        .post(CLAIMS, claim("data", json!({"storageClassName": ""})))
        .await;
    cluster
        .wait_event(
            "data",
            "FailedBinding: no persistent volumes available for this claim and no storage class is set",
        )
        .await;
    assert_eq!(cluster.claim_phase("data").await, "Pending");
    cluster
        .post(VOLUMES, volume("large", json!({"capacity": {"storage": "9Gi"}})))
        .await;
    cluster.wait_bound("data").await;
    let bound = cluster.get(&format!("{CLAIMS}/data")).await;
    assert_eq!(bound["spec"]["volumeName"], "large");
    assert_eq!(bound["status"]["capacity"], json!({"storage": "9Gi"}));
    let annotations = &bound["metadata"]["annotations"];
    assert_eq!(annotations["pv.kubernetes.io/bind-completed"], "yes");
    assert_eq!(annotations["pv.kubernetes.io/bound-by-controller"], "yes");
    assert_eq!(bound["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    let volume = cluster.get(&format!("{VOLUMES}/large")).await;
    assert_eq!(volume["spec"]["claimRef"]["uid"], bound["metadata"]["uid"]);
    assert_eq!(volume["metadata"]["finalizers"], json!(["kubernetes.io/pv-protection"]));

    // Deleted while bound, it stays; with its claim gone and nobody to bind it, it goes.
    cluster.delete(&format!("{VOLUMES}/large"), "Background").await;
    holds_for(Duration::from_millis(200), "the bound volume stays", async || {
        cluster.volume_phase("large").await == "Bound"
    })
    .await;
    cluster.delete(&format!("{CLAIMS}/data"), "Background").await;
    eventually("both are gone", async || {
        cluster.get(&format!("{CLAIMS}/data")).await.is_null()
            && cluster.get(&format!("{VOLUMES}/large")).await.is_null()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_volume_is_retained_or_failed() {
    let cluster = Cluster::start().await;
    for (name, policy) in [("keep", "Retain"), ("drop", "Delete")] {
        let wanted = json!({"storageClassName": "", "volumeName": name});
        cluster
            .post(VOLUMES, volume(name, json!({"persistentVolumeReclaimPolicy": policy})))
            .await;
        cluster.post(CLAIMS, claim(name, wanted)).await;
        cluster.wait_bound(name).await;
        cluster.delete(&format!("{CLAIMS}/{name}"), "Background").await;
    }
    eventually(
        "the one is released, of the other nobody knows how to delete it",
        async || cluster.volume_phase("keep").await == "Released" && cluster.volume_phase("drop").await == "Failed",
    )
    .await;
    let failed = cluster.get(&format!("{VOLUMES}/drop")).await;
    assert!(text(&failed["status"]["message"]).contains("no deletable volume plugin matched"));
    // The claim of the same name that comes next is another one.
    cluster
        .post(
            CLAIMS,
            claim("keep", json!({"storageClassName": "", "volumeName": "keep"})),
        )
        .await;
    cluster
        .wait_event(
            "keep",
            "FailedBinding: volume \"keep\" already bound to a different claim.",
        )
        .await;
    // Until a person hands the volume to it.
    cluster
        .patch(&format!("{VOLUMES}/keep"), json!({"spec": {"claimRef": {"uid": null}}}))
        .await;
    cluster.wait_bound("keep").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_the_default_class_waits_for_its_pod_and_its_node() {
    let mut cluster = Cluster::start().await;
    cluster.post("/api/v1/nodes", json!({"metadata": {"name": "n1"}})).await;
    cluster.post(CLAIMS, claim("data", json!({}))).await;
    let path = format!("{CLAIMS}/data");
    assert_eq!(cluster.get(&path).await["spec"]["storageClassName"], "local-path");
    let first = "WaitForFirstConsumer: waiting for first consumer to be created before binding";
    cluster.wait_event("data", first).await;
    cluster.post(PODS, user("web", "data", None)).await;
    cluster
        .wait_event("data", "WaitForPodScheduled: waiting for pod web to be scheduled")
        .await;

    // Sent to a node that is no more, it is called back.
    let selected = |node: &str| json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": node}}});
    cluster.patch(&path, selected("n0")).await;
    cluster
        .wait_event(
            "data",
            "ProvisioningFailed: failed to get target node: node \"n0\" not found",
        )
        .await;
    eventually("nothing is selected", async || {
        cluster.get(&path).await["metadata"]["annotations"]["volume.kubernetes.io/selected-node"].is_null()
    })
    .await;

    cluster.patch(&path, selected("n1")).await;
    eventually("the provisioner is asked", async || {
        let annotations = cluster.get(&path).await["metadata"]["annotations"].clone();
        annotations["volume.kubernetes.io/storage-provisioner"] == "skiff/local-path"
    })
    .await;
    cluster.restart_manager();
    let uid = cluster.get(&path).await["metadata"]["uid"].clone();
    let mut provisioned = volume(
        "pvc-1",
        json!({
            "storageClassName": "local-path",
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "default", "name": "data", "uid": uid},
            "persistentVolumeReclaimPolicy": "Delete",
        }),
    );
    provisioned["metadata"]["annotations"] = json!({"pv.kubernetes.io/provisioned-by": "skiff/local-path"});
    cluster.post(VOLUMES, provisioned).await;
    cluster.wait_bound("data").await;
    cluster.delete(&path, "Background").await;
    eventually("the volume waits for its provisioner", async || {
        cluster.volume_phase("pvc-1").await == "Released"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_in_use_stays() {
    let cluster = Cluster::start().await;
    cluster.post(VOLUMES, volume("v", json!({}))).await;
    cluster
        .post(CLAIMS, claim("data", json!({"storageClassName": ""})))
        .await;
    cluster.wait_bound("data").await;
    cluster.post("/api/v1/nodes", json!({"metadata": {"name": "n1"}})).await;
    cluster.post(PODS, user("web", "data", Some("n1"))).await;
    cluster.delete(&format!("{CLAIMS}/data"), "Background").await;
    let path = format!("{CLAIMS}/data");
    holds_for(Duration::from_millis(200), "the claim stays", async || {
        !cluster.get(&path).await["metadata"]["deletionTimestamp"].is_null()
    })
    .await;
    let at_once = json!({"gracePeriodSeconds": 0});
    cluster
        .send("DELETE", &format!("{PODS}/web"), "application/json", at_once)
        .await
        .unwrap();
    eventually("the claim goes", async || cluster.get(&path).await.is_null()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_class_that_comes_later_and_a_volume_that_goes() {
    let cluster = Cluster::start().await;
    cluster.delete(&format!("{CLASSES}/local-path"), "Background").await;
    // The controller sees classes in their order: who knows this one knows that the default one has gone.
    let other = json!({"metadata": {"name": "other"}, "provisioner": "example.com/p"});
    cluster.post(CLASSES, other).await;
    cluster
        .post(CLAIMS, claim("first", json!({"storageClassName": "other"})))
        .await;
    cluster.wait_event("first", PROVISIONING).await;
    let created = cluster.post(CLAIMS, claim("data", json!({}))).await;
    assert!(created["spec"]["storageClassName"].is_null());
    let class = json!({
        "metadata": {"name": "late", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "example.com/p",
    });
    cluster.post(CLASSES, class).await;
    eventually("it gets the class", async || {
        cluster.get(&format!("{CLAIMS}/data")).await["spec"]["storageClassName"] == "late"
    })
    .await;
    cluster.wait_event("data", PROVISIONING).await;
    cluster
        .post(VOLUMES, volume("v", json!({"storageClassName": "late"})))
        .await;
    cluster.wait_bound("data").await;
    let nothing = json!({"metadata": {"finalizers": null}});
    cluster.delete(&format!("{VOLUMES}/v"), "Background").await;
    cluster.patch(&format!("{VOLUMES}/v"), nothing).await;
    cluster
        .wait_event(
            "data",
            "ClaimLost: Bound claim has lost its PersistentVolume. Data on the volume is lost!",
        )
        .await;
    assert_eq!(cluster.claim_phase("data").await, "Lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_volume_has_a_claim_of_its_own() {
    let cluster = Cluster::start().await;
    let template = json!({"metadata": {"labels": {"of": "scratch"}}, "spec": claim("", json!({}))["spec"]});
    let pod = json!({"metadata": {"name": "web"}, "spec": {
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}}],
    }});
    let uid = cluster.post(PODS, pod).await["metadata"]["uid"].clone();
    let path = format!("{CLAIMS}/web-scratch");
    eventually("the claim is there", async || !cluster.get(&path).await.is_null()).await;
    let made = cluster.get(&path).await;
    assert_eq!(made["metadata"]["labels"], json!({"of": "scratch"}));
    assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], uid);
    cluster.delete(&format!("{PODS}/web"), "Background").await;
    eventually("the claim goes with the pod", async || {
        cluster.get(&path).await.is_null()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_stood_in_the_place_of_an_ephemeral_volumes_is_replaced_when_it_goes() {
    let cluster = Cluster::start().await;
    cluster.post(CLAIMS, claim("web-scratch", json!({}))).await;
    let pod = json!({"metadata": {"name": "web"}, "spec": {
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": claim("", json!({}))["spec"]}}}],
    }});
    let uid = cluster.post(PODS, pod).await["metadata"]["uid"].clone();
    eventually("the pod is told", async || {
        let events = cluster.events("Pod", "web").await;
        events
            .iter()
            .any(|event| event.starts_with("FailedBinding: ") && event.contains("pod is not owner"))
    })
    .await;
    let path = format!("{CLAIMS}/web-scratch");
    cluster.delete(&path, "Background").await;
    eventually("the claim is the pod's", async || {
        cluster.get(&path).await["metadata"]["ownerReferences"][0]["uid"] == uid
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_gets_the_volume_that_it_names_when_that_comes() {
    let cluster = Cluster::start().await;
    let named = claim("c", json!({"storageClassName": "", "volumeName": "v"}));
    cluster.post(CLAIMS, named).await;
    eventually("it waits", async || cluster.claim_phase("c").await == "Pending").await;
    cluster.post(VOLUMES, volume("v", json!({}))).await;
    cluster.wait_bound("c").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_whose_claim_takes_another_is_free_again() {
    let cluster = Cluster::start().await;
    let claim = cluster.post(CLAIMS, claim("c", json!({"storageClassName": ""}))).await;
    let reference = json!({"namespace": "default", "name": "c", "uid": claim["metadata"]["uid"]});
    let block = volume("block", json!({"claimRef": reference, "volumeMode": "Block"}));
    cluster.post(VOLUMES, block).await;
    cluster.wait_event("c", "VolumeMismatch: Cannot bind PersistentVolume \"block\" to requested PersistentVolumeClaim due to incompatible volumeMode.").await;
    cluster.post(VOLUMES, volume("files", json!({}))).await;
    cluster.wait_bound("c").await;
    eventually("the other one is free", async || {
        cluster.volume_phase("block").await == "Available"
    })
    .await;
    let block = cluster.get(&format!("{VOLUMES}/block")).await;
    assert_eq!(block["spec"]["claimRef"]["uid"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_claims_never_share_a_volume() {
    let cluster = Cluster::start().await;
    for number in 0..20 {
        cluster
            .post(CLAIMS, claim(&format!("c{number}"), json!({"storageClassName": ""})))
            .await;
    }
    let made = (0..20).map(|number| cluster.post(VOLUMES, volume(&format!("v{number}"), json!({}))));
    for made in made.collect::<Vec<_>>() {
        made.await;
    }
    eventually("all are bound", async || {
        let claims = cluster.list(CLAIMS).await;
        claims.iter().all(|claim| claim["status"]["phase"] == "Bound")
    })
    .await;
    let claims = cluster.list(CLAIMS).await;
    let volumes: std::collections::BTreeSet<&str> =
        claims.iter().map(|claim| text(&claim["spec"]["volumeName"])).collect();
    assert_eq!(volumes.len(), 20);
    for volume in cluster.list(VOLUMES).await {
        let owner = claims
            .iter()
            .find(|claim| claim["spec"]["volumeName"] == volume["metadata"]["name"]);
        assert_eq!(volume["spec"]["claimRef"]["uid"], owner.unwrap()["metadata"]["uid"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_found_another_claim_is_not_released() {
    let mut cluster = Cluster::start().await;
    let named = |name: &str| claim(name, json!({"storageClassName": "", "volumeName": "v"}));
    cluster.post(VOLUMES, volume("v", json!({}))).await;
    cluster.post(CLAIMS, named("first")).await;
    cluster.wait_bound("first").await;
    let mut tap = cluster.restart_manager_tapped("persistent-volume-binder", |to| {
        to == format!("GET {CLAIMS}/first") || to == format!("PATCH {VOLUMES}/v/status")
    });
    cluster.delete(&format!("{CLAIMS}/first"), "Background").await;
    let gone = tap.next().await;
    assert_eq!((gone.to.split(' ').next(), gone.status), (Some("GET"), 404));

    // While the controller still waits for this answer, a person frees the volume, and it finds another claim.
    cluster
        .patch(&format!("{VOLUMES}/v"), json!({"spec": {"claimRef": null}}))
        .await;
    cluster.post(CLAIMS, named("second")).await;
    cluster.wait_bound("second").await;
    drop(gone);
    let released = tap.next().await;
    assert_eq!(released.status, 409, "{}", released.to);
    assert_eq!(cluster.volume_phase("v").await, "Bound");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_was_sent_to_another_node_is_not_called_back() {
    let mut cluster = Cluster::start().await;
    cluster.post("/api/v1/nodes", json!({"metadata": {"name": "n1"}})).await;
    let mut tap = cluster.restart_manager_tapped("persistent-volume-binder", |to| {
        to == "GET /api/v1/nodes/n0" || to == format!("PATCH {CLAIMS}/data")
    });
    let annotation = "volume.kubernetes.io/selected-node";
    let sent = |node: &str| json!({"metadata": {"annotations": {annotation: node}}});
    let mut data = claim("data", json!({"storageClassName": "local-path"}));
    crate::cluster::merge(&mut data, sent("n0"));
    cluster.post(CLAIMS, data).await;
    let absent = tap.next().await;
    assert_eq!((absent.to.split(' ').next(), absent.status), (Some("GET"), 404));
    cluster.patch(&format!("{CLAIMS}/data"), sent("n1")).await;
    drop(absent);
    let recalled = tap.next().await;
    assert_eq!(recalled.status, 409, "{}", recalled.to);
    let claim = cluster.get(&format!("{CLAIMS}/data")).await;
    assert_eq!(claim["metadata"]["annotations"][annotation], "n1");
}
