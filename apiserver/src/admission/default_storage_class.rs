//! A claim that says nothing of a class gets the default one, if there is one.

use std::sync::Arc;

use serde_json::Value;
use skiff_api::k8s_openapi::api::storage::v1::StorageClass;
use skiff_api::{meta, volumes};

use super::{Operation, Plugin, Review};
use crate::cache::Cache;
use crate::errors::Result;

/// See the module.
#[derive(Debug)]
pub(super) struct DefaultStorageClass {
    pub(super) classes: Arc<Cache>,
}

impl Plugin for DefaultStorageClass {
    fn mutate(&self, review: &Review<'_>, claim: &mut Value) -> Result<()> {
        let created = review.operation == Operation::Create && review.is_about("", "persistentvolumeclaims");
        // The empty name is a choice: no class at all.
        let chosen = !claim["spec"]["storageClassName"].is_null()
            || meta::annotation(claim, volumes::BETA_STORAGE_CLASS).is_some();
        if !created || chosen || !claim["spec"].is_object() {
            return Ok(());
        }
        let classes: Vec<StorageClass> = (self.classes.all("").iter())
            .filter_map(|class| serde_json::from_value(class.value()).ok())
            .collect();
        if let Some(class) = volumes::default_class(&classes) {
            claim["spec"]["storageClassName"] = class.metadata.name.clone().into();
        }
        Ok(())
    }
}
