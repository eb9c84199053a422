//! Writes what was decided about a pod's volumes, and waits until the binder has done the rest.

use std::time::Duration;

use futures::future::try_join_all;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde_json::json;
use skiff_api::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod as ApiPod};
use skiff_api::volumes::{self, BOUND_BY_CONTROLLER, SELECTED_NODE};

use super::Decision;
use crate::VolumesError as Error;
use crate::cache::Key;
use crate::model::Pod;
use crate::request::patch;

/// `bindTimeoutSeconds`.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Makes the decision come true.
pub(super) async fn carry_out(client: &Client, pod: &Pod, decision: &Decision) -> Result<(), Error> {
    for (volume, claim, key) in &decision.bind {
        refer(client, volume, claim, key).await?;
    }
    for (claim, key) in &decision.provision {
        send(client, claim, key, decision).await?;
    }
    let provisioned = decision.provision.iter().map(|(_, key)| key);
    let claims = decision.bind.iter().map(|(.., key)| key).chain(provisioned);
    let waits: Vec<_> = claims.map(|claim| bound(client, claim, decision)).collect();
    if waits.is_empty() {
        return Ok(());
    }
    tokio::select! {
        bound = try_join_all(waits) => bound.map(drop),
        gone = pod_gone(client, pod) => gone,
    }
}

/// Makes a volume name the claim, unless it has changed since: then it may have become another's. By the claim's UID the
/// binder knows when to take that back.
async fn refer(
    client: &Client,
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
    (namespace, name): &Key,
) -> Result<(), Error> {
    if volumes::claim_ref(volume).is_some() {
        // A person chose it; the binder completes the rest.
        return Ok(());
    }
    let own = volume.metadata.name.as_deref().unwrap_or_default();
    let body = json!({
        "metadata": {
            "resourceVersion": volume.metadata.resource_version,
            "annotations": {BOUND_BY_CONTROLLER: "yes"},
        },
        "spec": {"claimRef": {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "namespace": &**namespace,
            "name": &**name,
            "uid": claim.metadata.uid,
        }},
    });
    let written = patch(client, &format!("/api/v1/persistentvolumes/{own}"), &body).await;
    written.map_err(|source| Error::Write {
        what: format!("PersistentVolume {own}"),
        source,
    })
}

/// Tells the claim's provisioner where the volume is to be, unless the claim has changed since that was decided: then it may
/// have been sent elsewhere.
async fn send(client: &Client, claim: &PersistentVolumeClaim, key: &Key, decision: &Decision) -> Result<(), Error> {
    let (namespace, name) = key;
    let body = json!({"metadata": {
        "resourceVersion": claim.metadata.resource_version,
        "annotations": {SELECTED_NODE: decision.node},
    }});
    let path = format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}");
    match patch(client, &path, &body).await {
        Err(kube::Error::Api(status)) if status.code == 409 => was_sent(client, key, decision).await,
        written => written.map_err(|source| Error::Write {
            what: format!("PersistentVolumeClaim {namespace}/{name}"),
            source,
        }),
    }
}

/// Whether another has sent the claim to the same node, for another pod that uses it: else the pod's other claims must not go there.
async fn was_sent(client: &Client, (namespace, name): &Key, decision: &Decision) -> Result<(), Error> {
    let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), namespace);
    let claim = claims.get(name).await.map_err(|source| Error::Watch {
        what: format!("PersistentVolumeClaim {namespace}/{name}"),
        source: Box::new(source),
    })?;
    if volumes::is_fully_bound(&claim) {
        return check_place(client, &claim, decision).await;
    }
    match volumes::claim_annotation(&claim, SELECTED_NODE) {
        Some(node) if *node == *decision.node => Ok(()),
        _ => Err(Error::Reset(name.to_string())),
    }
}

/// Waits until the claim is bound to a volume that is on the chosen node.
async fn bound(client: &Client, (namespace, name): &Key, decision: &Decision) -> Result<(), Error> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let key = (namespace, name);
    let mut sent = decision.provision.iter();
    let provisioned = sent.any(|(_, (namespace, name))| (namespace, name) == key);
    let recalled = |claim: &PersistentVolumeClaim| {
        provisioned && volumes::claim_annotation(claim, SELECTED_NODE).is_none_or(|node| *node != *decision.node)
    };
    let settled = |claim: Option<&PersistentVolumeClaim>| {
        claim.is_none_or(|claim| volumes::is_fully_bound(claim) || recalled(claim))
    };
    let what = || format!("PersistentVolumeClaim {namespace}/{name}");
    let waited = tokio::time::timeout(TIMEOUT, await_condition(claims, name, settled)).await;
    let claim = waited
        .map_err(|_| Error::Timeout(name.to_string()))?
        .map_err(|source| Error::Watch {
            what: what(),
            source: Box::new(source),
        })?
        .ok_or_else(|| Error::Gone(name.to_string()))?;
    if !volumes::is_fully_bound(&claim) {
        return Err(Error::Reset(name.to_string()));
    }
    check_place(client, &claim, decision).await
}

/// The binder may have found another volume than the one that was meant.
async fn check_place(client: &Client, claim: &PersistentVolumeClaim, decision: &Decision) -> Result<(), Error> {
    let name = volumes::claimed_volume(claim);
    let volume = Api::<PersistentVolume>::all(client.clone()).get(name).await;
    let volume = volume.map_err(|source| Error::Watch {
        what: format!("PersistentVolume {name}"),
        source: Box::new(source),
    })?;
    if volumes::allows_node(&volume, &decision.labels) {
        return Ok(());
    }
    Err(Error::Elsewhere {
        volume: name.to_owned(),
        node: decision.node.to_string(),
    })
}

/// Ends when the pod is gone: nobody needs its volumes bound any more.
async fn pod_gone(client: &Client, pod: &Pod) -> Result<(), Error> {
    let pods: Api<ApiPod> = Api::namespaced(client.clone(), &pod.namespace);
    let gone = |found: Option<&ApiPod>| {
        found.is_none_or(|found| {
            found.metadata.uid.as_deref() != Some(&*pod.uid) || found.metadata.deletion_timestamp.is_some()
        })
    };
    let waited = await_condition(pods, &pod.name, gone).await;
    waited.map_err(|source| Error::Watch {
        what: format!("Pod {}", pod.full_name()),
        source: Box::new(source),
    })?;
    Err(Error::PodGone)
}
