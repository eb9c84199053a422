//! Nothing new in a namespace that is absent or ending; some namespaces never end.

use std::sync::Arc;

use serde_json::Value;
use skiff_api::meta;
use skiff_api::status::{Cause, Qualified, Status};

use super::{Operation, Plugin, Review};
use crate::cache::Cache;
use crate::errors::Result;

/// Namespaces that must not be deleted.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// See the module.
#[derive(Debug)]
pub(super) struct NamespaceLifecycle {
    pub(super) namespaces: Arc<Cache>,
}

impl Plugin for NamespaceLifecycle {
    fn mutate(&self, review: &Review<'_>, object: &mut Value) -> Result<()> {
        let namespace = review.scope.namespace;
        if review.operation != Operation::Create || namespace.is_empty() {
            return Ok(());
        }
        let Some(found) = self.namespaces.get("", namespace) else {
            return Err(Status::not_found(Qualified::new("", "namespaces"), namespace));
        };
        if meta::deletion_timestamp(&found.value()).is_none() {
            return Ok(());
        }
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut status = Status::forbidden(review.scope.served.resource.qualified(), meta::name(object), &why);
        if let Some(details) = &mut status.details {
            details.causes.push(Cause {
                reason: "NamespaceTerminating".to_owned(),
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".to_owned(),
            });
        }
        Err(status)
    }

    fn validate(&self, review: &Review<'_>, object: &Value) -> Result<()> {
        let name = meta::name(object);
        if review.operation == Operation::Delete && review.is_about("", "namespaces") && IMMORTAL.contains(&name) {
            return Err(Status::forbidden(
                Qualified::new("", "namespaces"),
                name,
                "this namespace may not be deleted",
            ));
        }
        Ok(())
    }
}
