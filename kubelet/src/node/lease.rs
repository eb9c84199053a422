//! The node's lease: four renewals within its life, as upstream.

use std::time::Duration;

use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use skiff_api::k8s_openapi::api::coordination::v1::Lease;
use skiff_api::k8s_openapi::api::core::v1::Node;
use skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use skiff_api::k8s_openapi::jiff::Timestamp;
use skiff_daemon::error_chain;

use super::NodeTask;
use crate::events::is_not_found;

const NAMESPACE: &str = "kube-node-lease";
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(7);

/// Renews the lease for ever.
pub(super) async fn keep(node: &NodeTask) {
    let seconds = u64::try_from(node.config.kubelet.node_lease_duration_seconds)
        .unwrap_or(40)
        .max(4);
    let mut delay = FIRST_RETRY;
    loop {
        let pause = match node.in_time(renew(node)).await {
            Ok(()) => {
                delay = FIRST_RETRY;
                Duration::from_secs(seconds) / 4
            }
            Err(error) => {
                tracing::warn!(
                    error = error_chain(&error),
                    "cannot renew this node's lease; it is tried again"
                );
                delay = (delay * 2).min(LAST_RETRY);
                delay
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn renew(node: &NodeTask) -> kube::Result<()> {
    let api: Api<Lease> = Api::namespaced(node.client.clone(), NAMESPACE);
    let now = MicroTime(Timestamp::now());
    let spec = json!({
        "holderIdentity": node.name,
        "leaseDurationSeconds": node.config.kubelet.node_lease_duration_seconds,
        "renewTime": now,
    });
    let patch = Patch::Merge(json!({"spec": spec}));
    match api.patch(&node.name, &PatchParams::default(), &patch).await {
        Err(error) if is_not_found(&error) => {}
        answer => return answer.map(drop),
    }
    let nodes: Api<Node> = Api::all(node.client.clone());
    let owner = nodes
        .get_metadata_opt(&node.name)
        .await?
        .and_then(|node| node.metadata.uid);
    let owners: Vec<_> = owner
        .map(|uid| json!({"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": uid}))
        .into_iter()
        .collect();
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": node.name, "namespace": NAMESPACE, "ownerReferences": owners},
        "spec": spec,
    });
    let lease: Lease = serde_json::from_value(lease).map_err(kube::Error::SerdeError)?;
    api.create(&PostParams::default(), &lease).await.map(drop)
}
