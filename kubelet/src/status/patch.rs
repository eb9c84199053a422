//! From two statuses to the smallest patch: only what changed is sent, and nothing of what others own.

use serde_json::{Map, Value, json};
use skiff_api::k8s_openapi::api::core::v1::PodStatus;

/// Fields that the kubelet owns; others' (`nominatedNodeName`, `resize` ...) are left alone.
const OWNED: &[&str] = &[
    "conditions",
    "containerStatuses",
    "ephemeralContainerStatuses",
    "hostIP",
    "hostIPs",
    "initContainerStatuses",
    "message",
    "observedGeneration",
    "phase",
    "podIP",
    "podIPs",
    "qosClass",
    "reason",
    "startTime",
];

/// Lists that a strategic merge would merge by key: an address that is gone must be replaced, not kept.
const REPLACED: &[&str] = &["podIPs", "hostIPs"];

/// A status as JSON, without what is empty.
pub(crate) fn json(status: &PodStatus) -> Value {
    serde_json::to_value(status).unwrap_or_default()
}

/// The strategic merge patch that turns the API's `current` status into `wanted`; `None` when they agree.
pub(crate) fn diff(uid: &str, current: &Value, wanted: &Value) -> Option<Value> {
    let mut changes = Map::new();
    for field in OWNED {
        let (old, new) = (&current[field], &wanted[field]);
        match *field {
            "conditions" => {
                let changed = changed_conditions(old, new);
                if !changed.is_empty() {
                    changes.insert("conditions".into(), changed.into());
                }
            }
            _ if old == new => {}
            _ if REPLACED.contains(field) && old.is_array() && new.is_array() => {
                let mut list = vec![json!({"$patch": "replace"})];
                list.extend(new.as_array().into_iter().flatten().cloned());
                changes.insert((*field).into(), list.into());
            }
            _ => {
                changes.insert((*field).into(), new.clone());
            }
        }
    }
    (!changes.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": changes}))
}

/// The conditions of `new` that differ in `old`; a reason or message that is gone is sent as null, to be removed.
fn changed_conditions(old: &Value, new: &Value) -> Vec<Value> {
    let find = |kind: &Value| {
        old.as_array()
            .into_iter()
            .flatten()
            .find(|condition| condition["type"] == *kind)
    };
    let mut changed = Vec::new();
    for condition in new.as_array().into_iter().flatten() {
        let Some(known) = find(&condition["type"]) else {
            changed.push(condition.clone());
            continue;
        };
        let fields = [
            "status",
            "reason",
            "message",
            "lastTransitionTime",
            "observedGeneration",
        ];
        if fields.iter().all(|field| known[field] == condition[field]) {
            continue;
        }
        let mut condition = condition.clone();
        for field in ["reason", "message"] {
            if condition[field].is_null() && !known[field].is_null() {
                condition[field] = Value::Null;
            }
        }
        changed.push(condition);
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_sent() {
        let old = json!({
            "phase": "Pending", "podIPs": [{"ip": "10.0.0.1"}], "reason": "x", "nominatedNodeName": "n",
            "conditions": [
                {"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "m"},
                {"type": "PodScheduled", "status": "True"},
                {"type": "example.com/gate", "status": "True"},
            ],
        });
        let new = json!({
            "phase": "Running", "podIPs": [{"ip": "10.0.0.2"}],
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
        });
        assert_eq!(
            diff("u", &old, &new),
            Some(json!({
                "metadata": {"uid": "u"},
                "status": {
                    "conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null}],
                    "phase": "Running",
                    "podIPs": [{"$patch": "replace"}, {"ip": "10.0.0.2"}],
                    "reason": null,
                },
            }))
        );
        assert_eq!(diff("u", &new, &new), None);
    }
}
