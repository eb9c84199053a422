//! Nodes: a kubelet registers its node with its status in one request, so a create keeps the status.

use serde_json::Value;
use skiff_api::field;

use super::generic::{self, Status, keep, keep_all_but_status};
use super::{Context, Strategy};

/// See the module.
#[derive(Debug)]
pub(super) struct Node;

impl Strategy for Node {
    fn prepare_create(&self, _object: &mut Value, _context: &Context<'_>) {}

    fn prepare_update(&self, new: &mut Value, old: &Value, subresource: Option<&str>) {
        match subresource {
            Some("status") => keep_all_but_status(new, old, Status::Plain),
            _ => keep(new, old, "status"),
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<field::Error> {
        generic::validate_create(object)
    }

    fn validate_update(&self, new: &Value, old: &Value, subresource: Option<&str>) -> Vec<field::Error> {
        generic::validate_update(new, old, subresource)
    }

    fn fields(&self) -> &'static [&'static str] {
        &["spec.unschedulable"]
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        // An unset flag is false, not empty.
        match path {
            "spec.unschedulable" => Some(
                object
                    .pointer("/spec/unschedulable")
                    .and_then(Value::as_bool)
                    .unwrap_or(false)
                    .to_string(),
            ),
            _ => generic::field(&[], object, path),
        }
    }
}
