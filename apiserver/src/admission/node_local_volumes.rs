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
    pub(super) nodes: Arc<Cache>,
}

impl NodeLocalVolumes {
    /// Why the volume is not one of the node's own.
    fn check_own(&self, node: &str, volume: &Value) -> std::result::Result<(), &'static str> {
        let object = self.nodes.get("", node).map(|node| node.value());
        let hostname = object
            .as_ref()
            .and_then(|node| meta::label(node, HOSTNAME))
            .unwrap_or(node);
        let affinity = json!({"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [hostname]}]},
        ]}});
        match () {
            () if meta::annotation(volume, volumes::PROVISIONED_BY) != Some(volumes::LOCAL_PATH) => {
                Err("a node can only have to do with volumes that it provisioned")
            }
            () if !volume["spec"]["local"].is_object() => Err("a node can only provision local volumes"),
            () if volume["spec"]["nodeAffinity"] != affinity => Err("a node can only provision volumes on itself"),
            () => Ok(()),
        }
    }

    /// Why the volume's claim is none of the node's business.
    fn check_claim(&self, node: &str, volume: &Value) -> std::result::Result<(), &'static str> {
        let reference = &volume["spec"]["claimRef"];
        let text = |key: &str| reference[key].as_str().unwrap_or_default();
        let claim = self
            .claims
            .get(text("namespace"), text("name"))
            .map(|claim| claim.value());
        let sent = claim.is_some_and(|claim| {
            meta::uid(&claim) == text("uid")
                && meta::annotation(&claim, volumes::SELECTED_NODE) == Some(node)
                && meta::annotation(&claim, volumes::STORAGE_PROVISIONER) == Some(volumes::LOCAL_PATH)
        });
        if sent {
            Ok(())
        } else {
            Err("a node can only provision volumes for claims that wait for it")
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

impl NodeLocalVolumes {
    fn check(&self, review: &Review<'_>, node: &str, volume: &Value) -> std::result::Result<(), &'static str> {
        match (review.operation, review.old) {
            (Operation::Create, _) => self
                .check_own(node, volume)
                .and_then(|()| self.check_claim(node, volume)),
            (Operation::Update, Some(old)) if old["spec"] != volume["spec"] => {
                Err("a node can only change what holds a volume back from deletion")
            }
            (_, old) => self.check_own(node, old.unwrap_or(volume)),
        }
    }
}
