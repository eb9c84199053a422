//! A volume stays while it is bound, a claim while a pod uses it: both begin with a finalizer that says so.

use serde_json::{Value, json};
use skiff_api::{meta, volumes};

use super::{Operation, Plugin, Review};
use crate::errors::Result;

/// See the module.
#[derive(Debug)]
pub(super) struct StorageObjectInUseProtection;

impl Plugin for StorageObjectInUseProtection {
    fn mutate(&self, review: &Review<'_>, object: &mut Value) -> Result<()> {
        let finalizer = match () {
            () if review.operation != Operation::Create => return Ok(()),
            () if review.is_about("", "persistentvolumes") => volumes::VOLUME_PROTECTION,
            () if review.is_about("", "persistentvolumeclaims") => volumes::CLAIM_PROTECTION,
            () => return Ok(()),
        };
        if meta::finalizers(object).any(|there| there == finalizer) {
            return Ok(());
        }
        let mut finalizers: Vec<&str> = meta::finalizers(object).collect();
        finalizers.push(finalizer);
        let finalizers = json!(finalizers);
        meta::set(object, "finalizers", finalizers);
        Ok(())
    }
}
