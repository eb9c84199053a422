//! A node makes and removes local volumes on itself, for claims that the scheduler sent to it, and no others: one node that
//! fell into wrong hands cannot reach the data of the rest.

use std::sync::Arc;

use serde_json::{Value, json};
use skiff_api::status::Status;
use skiff_api::{meta, volumes};

use super::{Operation, Plugin, Review};
use crate::authorization::{NODES, node_name};
use crate::cache::Cache;
use crate::errors::Result;

const HOSTNAME: &str = "kubernetes.io/hostname";

/// See the module.
#[derive(Debug)]
pub(super) struct NodeLocalVolumes {
    pub(super) claims: Arc<Cache>,
}

type Checked = std::result::Result<(), &'static str>;

/// Why the volume is not one of the node's own. A node may change its own labels: its name alone says which one it is.
fn check_own(node: &str, volume: &Value) -> Checked {
    let affinity = json!({"required": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [node]}]},
    ]}});
    match () {
        () if meta::annotation(volume, volumes::PROVISIONED_BY) != Some(volumes::LOCAL_PATH) => {
            Err("a node can only have to do with volumes that it provisioned")
        }
        () if !volume["spec"]["local"].is_object() => Err("a node can only have to do with local volumes"),
        () if volume["spec"]["nodeAffinity"] != affinity => Err("a node can only have to do with volumes on itself"),
        () => Ok(()),
    }
}

fn is_sent_to(claim: &Value, node: &str) -> bool {
    meta::annotation(claim, volumes::SELECTED_NODE) == Some(node)
        && meta::annotation(claim, volumes::STORAGE_PROVISIONER) == Some(volumes::LOCAL_PATH)
}

impl NodeLocalVolumes {
    /// The claim that the volume is for; `None` when it is gone.
    fn claim(&self, volume: &Value) -> Option<Value> {
        let reference = &volume["spec"]["claimRef"];
        let text = |key: &str| reference[key].as_str().unwrap_or_default();
        let claim = self.claims.get(text("namespace"), text("name"))?.value();
        (meta::uid(&claim) == text("uid")).then_some(claim)
    }

    fn check(&self, review: &Review<'_>, node: &str, volume: &Value) -> Checked {
        match (review.operation, review.old) {
            (Operation::Create, _) => {
                check_own(node, volume)?;
                match self.claim(volume) {
                    Some(claim) if is_sent_to(&claim, node) => Ok(()),
                    _ => Err("a node can only provision volumes for claims that wait for it"),
                }
            }
            (Operation::Update, Some(old)) if old["spec"] != volume["spec"] => {
                Err("a node can only change what holds a volume back from deletion")
            }
            (_, old) => {
                let volume = old.unwrap_or(volume);
                check_own(node, volume)?;
                match self.claim(volume) {
                    Some(claim) if !is_sent_to(&claim, node) => {
                        Err("a node can only have to do with volumes of claims that were sent to it")
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

impl Plugin for NodeLocalVolumes {
    fn validate(&self, review: &Review<'_>, volume: &Value) -> Result<()> {
        let user = review.scope.user;
        if !review.is_about("", "persistentvolumes") || !user.is_in(NODES) {
            return Ok(());
        }
        let checked = match node_name(user) {
            Some(node) => self.check(review, node, volume),
            None => Err("a node is named system:node:NAME"),
        };
        let resource = review.scope.served.resource;
        checked.map_err(|why| Status::forbidden(resource.qualified(), meta::name(volume), why))
    }
}
