//! Certificate signing requests: who asks is what the server saw, not what the object says.

use serde_json::{Value, json};
use skiff_api::field;

use super::generic::{self, Status, keep, keep_all_but_status};
use super::{Context, Strategy};

/// See the module.
#[derive(Debug)]
pub(super) struct SigningRequest;

impl Strategy for SigningRequest {
    fn prepare_create(&self, object: &mut Value, context: &Context<'_>) {
        generic::reset_status(object, None);
        if !object["spec"].is_object() {
            object["spec"] = json!({});
        }
        let spec = &mut object["spec"];
        for (key, value) in [("username", context.user), ("uid", context.uid)] {
            match value {
                "" => {
                    spec.as_object_mut().and_then(|spec| spec.remove(key));
                }
                value => spec[key] = value.into(),
            }
        }
        spec["groups"] = context.groups.iter().map(String::as_str).collect::<Vec<_>>().into();
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, subresource: Option<&str>) {
        match subresource {
            Some("status") => {
                keep_all_but_status(new, old, Status::Plain);
                // Approval is another right: conditions that `approval` owns stay as they are.
                let (old_ones, new_ones) = (conditions(old), conditions(new));
                let approval: Vec<Value> = old_ones.into_iter().filter(is_approval).collect();
                let others = new_ones.into_iter().filter(|condition| !is_approval(condition));
                let merged: Vec<Value> = approval.into_iter().chain(others).collect();
                set_conditions(new, merged);
            }
            Some("approval") => {
                let wanted = conditions(new);
                keep(new, old, "spec");
                keep(new, old, "status");
                set_conditions(new, wanted);
            }
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
        &["spec.signerName"]
    }
}

fn is_approval(condition: &Value) -> bool {
    matches!(
        condition.get("type").and_then(Value::as_str),
        Some("Approved" | "Denied")
    )
}

fn conditions(object: &Value) -> Vec<Value> {
    object
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default()
}

fn set_conditions(object: &mut Value, conditions: Vec<Value>) {
    if conditions.is_empty() {
        if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
            status.remove("conditions");
        }
        return;
    }
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    object["status"]["conditions"] = conditions.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_names_the_requester() {
        let mut object =
            json!({"metadata": {"name": "c"}, "spec": {"username": "root", "uid": "0", "signerName": "a/b"}});
        let groups = ["system:authenticated".to_owned()];
        SigningRequest.prepare_create(
            &mut object,
            &Context {
                user: "jane",
                uid: "",
                groups: &groups,
            },
        );
        assert_eq!(
            object["spec"],
            json!({"username": "jane", "signerName": "a/b", "groups": ["system:authenticated"]})
        );
    }

    #[test]
    fn status_cannot_approve() {
        let old = json!({"spec": {}, "status": {}});
        let mut new = json!({"spec": {}, "status": {"certificate": "x", "conditions": [{"type": "Approved"}, {"type": "Failed"}]}});
        SigningRequest.prepare_update(&mut new, &old, Some("status"));
        assert_eq!(
            new["status"],
            json!({"certificate": "x", "conditions": [{"type": "Failed"}]})
        );

        let mut approved =
            json!({"spec": {"x": 1}, "status": {"certificate": "y", "conditions": [{"type": "Approved"}]}});
        SigningRequest.prepare_update(&mut approved, &old, Some("approval"));
        assert_eq!(
            approved,
            json!({"spec": {}, "status": {"conditions": [{"type": "Approved"}]}})
        );
    }
}
