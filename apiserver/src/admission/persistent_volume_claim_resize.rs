//! A claim grows only where its class says that its volumes can.

use std::cmp::Ordering;
use std::sync::Arc;

use serde_json::Value;
use skiff_api::meta;
use skiff_api::quantity::Quantity;
use skiff_api::status::Status;

use super::{Operation, Plugin, Review};
use crate::cache::Cache;
use crate::errors::Result;

/// See the module.
#[derive(Debug)]
pub(super) struct PersistentVolumeClaimResize {
    pub(super) classes: Arc<Cache>,
}

fn requested(claim: &Value) -> Option<Quantity> {
    let size = claim.pointer("/spec/resources/requests/storage")?;
    size.as_str()?.parse().ok()
}

impl Plugin for PersistentVolumeClaimResize {
    fn validate(&self, review: &Review<'_>, claim: &Value) -> Result<()> {
        let Some(old) = review.old.filter(|_| review.operation == Operation::Update) else {
            return Ok(());
        };
        if !review.is_about("", "persistentvolumeclaims") {
            return Ok(());
        }
        let grows = requested(claim).zip(requested(old)).map(|(new, old)| new.cmp(&old));
        if grows != Some(Ordering::Greater) {
            return Ok(());
        }
        let refuse = |why: &str| {
            Err(Status::forbidden(
                review.scope.served.resource.qualified(),
                meta::name(claim),
                why,
            ))
        };
        if old["status"]["phase"] != "Bound" {
            return refuse("Only bound persistent volume claims can be expanded");
        }
        let class = old["spec"]["storageClassName"].as_str().unwrap_or_default();
        let class = self.classes.get("", class).map(|class| class.value());
        if class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
            return Ok(());
        }
        refuse(
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
        )
    }
}
