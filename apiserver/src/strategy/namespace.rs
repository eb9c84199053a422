//! Namespaces: deletion waits for `spec.finalizers`, which only the `finalize` subresource may change.

use serde_json::{Value, json};
use skiff_api::field;

use super::generic::{self, Status, keep, keep_all_but_status};
use super::{Context, Strategy};

const FINALIZER: &str = "kubernetes";

/// See the module.
#[derive(Debug)]
pub(super) struct Namespace;

impl Strategy for Namespace {
    fn prepare_create(&self, object: &mut Value, _context: &Context<'_>) {
        generic::reset_status(object, Some("Active"));
        let finalizers = object
            .pointer("/spec/finalizers")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            let mut finalizers = finalizers;
            finalizers.push(FINALIZER.into());
            object["spec"] = json!({"finalizers": finalizers});
        }
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, subresource: Option<&str>) {
        match subresource {
            Some("status") => keep_all_but_status(new, old, Status::Plain),
            Some("finalize") => keep(new, old, "status"),
            _ => {
                keep(new, old, "spec");
                keep(new, old, "status");
            }
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<field::Error> {
        generic::validate_create(object)
    }

    fn validate_update(&self, new: &Value, old: &Value, subresource: Option<&str>) -> Vec<field::Error> {
        generic::validate_update(new, old, subresource)
    }

    fn fields(&self) -> &'static [&'static str] {
        &["name", "status.phase"]
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        let path = if path == "name" { "metadata.name" } else { path };
        generic::field(&["status.phase"], object, path)
    }

    fn has_own_finalizers(&self, object: &Value) -> bool {
        object
            .pointer("/spec/finalizers")
            .and_then(Value::as_array)
            .is_some_and(|finalizers| !finalizers.is_empty())
    }

    fn begin_deletion(&self, object: &mut Value) {
        if !object["status"].is_object() {
            object["status"] = json!({});
        }
        object["status"]["phase"] = "Terminating".into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_namespaces_are_active_and_guarded() {
        let mut object = json!({"metadata": {"name": "a"}});
        Namespace.prepare_create(&mut object, &Context::default());
        assert_eq!(object["status"], json!({"phase": "Active"}));
        assert_eq!(object["spec"], json!({"finalizers": ["kubernetes"]}));
        assert!(Namespace.has_own_finalizers(&object));
    }

    #[test]
    fn only_finalize_takes_finalizers_away() {
        let old = json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Terminating"}});
        let without = json!({"metadata": {"name": "a"}, "spec": {}, "status": {"phase": "Active"}});
        for (subresource, guarded, phase) in [
            (None, true, "Terminating"),
            (Some("status"), true, "Active"),
            (Some("finalize"), false, "Terminating"),
        ] {
            let mut new = without.clone();
            Namespace.prepare_update(&mut new, &old, subresource);
            assert_eq!(Namespace.has_own_finalizers(&new), guarded, "{subresource:?}");
            assert_eq!(new["status"]["phase"], phase, "{subresource:?}");
        }
    }
}
