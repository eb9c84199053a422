//! Certificate signing requests: who asks is what the server saw, not what the object says.

use serde_json::{Value, json};
use skiff_api::{field, meta};

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
        match context.extra {
            Some(extra) if !extra.is_empty() => spec["extra"] = json!(extra),
            _ => drop(spec.as_object_mut().and_then(|spec| spec.remove("extra"))),
        }
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
                date_conditions(new, old);
            }
            Some("approval") => {
                let wanted = conditions(new);
                keep(new, old, "spec");
                keep(new, old, "status");
                set_conditions(new, wanted);
                date_conditions(new, old);
            }
            _ => {
                keep(new, old, "spec");
                keep(new, old, "status");
            }
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<field::Error> {
        let mut faults = generic::validate_create(object);
        let request = object["spec"]["request"].as_str().unwrap_or_default();
        let pem = skiff_api::defaults::from_base64(request).unwrap_or_default();
        // Whoever asks has the key: who is not sure of that must not approve.
        if faults.is_empty()
            && let Err(error) = skiff_pki::SigningRequest::parse(&pem)
        {
            let path = field::Path::root("spec.request");
            faults.push(field::Error::invalid(&path, request, error.to_string()));
        }
        faults
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

/// Gives each condition the times that it lacks: of its last update now, of its last transition that of the same condition before.
fn date_conditions(new: &mut Value, old: &Value) {
    let now = meta::now();
    let before = conditions(old);
    let lacks = |condition: &Value, key: &str| condition.get(key).is_none_or(Value::is_null);
    let list = new.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in list.into_iter().flatten() {
        if lacks(condition, "lastUpdateTime") {
            condition["lastUpdateTime"] = now.as_str().into();
        }
        if lacks(condition, "lastTransitionTime") {
            let same = |other: &&Value| other["type"] == condition["type"] && other["status"] == condition["status"];
            let known = before
                .iter()
                .find(same)
                .map(|known| known["lastTransitionTime"].clone());
            condition["lastTransitionTime"] = known
                .filter(|time| !time.is_null())
                .unwrap_or_else(|| now.as_str().into());
        }
    }
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
                extra: None,
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
        let kinds = |object: &Value| -> Vec<String> {
            let kinds = conditions(object);
            kinds
                .iter()
                .map(|condition| condition["type"].as_str().unwrap().to_owned())
                .collect()
        };
        let mut new = json!({"spec": {}, "status": {"certificate": "x", "conditions": [{"type": "Approved"}, {"type": "Failed"}]}});
        SigningRequest.prepare_update(&mut new, &old, Some("status"));
        assert_eq!(
            (kinds(&new), &new["status"]["certificate"]),
            (vec!["Failed".to_owned()], &json!("x"))
        );

        let mut approved = json!({"spec": {"x": 1}, "status": {"conditions": [{"type": "Approved"}]}});
        SigningRequest.prepare_update(&mut approved, &old, Some("approval"));
        assert_eq!(
            (kinds(&approved), &approved["spec"]),
            (vec!["Approved".to_owned()], &json!({}))
        );
        assert!(approved["status"]["conditions"][0]["lastUpdateTime"].is_string());
    }

    #[test]
    fn conditions_keep_the_time_of_their_transition() {
        let then = "2026-01-01T00:00:00Z";
        let old = json!({"spec": {}, "status": {"conditions": [{"type": "Approved", "status": "True", "lastTransitionTime": then}]}});
        let mut new = json!({"spec": {}, "status": {"conditions": [{"type": "Approved", "status": "True"}]}});
        SigningRequest.prepare_update(&mut new, &old, Some("approval"));
        assert_eq!(new["status"]["conditions"][0]["lastTransitionTime"], then);
        assert_ne!(new["status"]["conditions"][0]["lastUpdateTime"], then);
    }
}
