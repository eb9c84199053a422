//! What is to be changed of an object for it to be as its manifest says: a three-way merge, as `kubectl apply` keeps it.

use serde_json::{Map, Value};
use skiff_api::{meta, patch};

/// kubectl's: what the manifest said last.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Adds a label.
pub(super) fn label(object: &mut Value, key: &str, value: &str) {
    entry(object, "labels", key, value);
}

/// Adds an annotation.
pub(super) fn annotate(object: &mut Value, key: &str, value: &str) {
    entry(object, "annotations", key, value);
}

fn entry(object: &mut Value, field: &str, key: &str, value: &str) {
    let metadata = meta::metadata_mut(object);
    let map = metadata.entry(field).or_insert_with(|| Value::Object(Map::new()));
    if !map.is_object() {
        *map = Value::Object(Map::new());
    }
    map[key] = value.into();
}

/// The object with what it says noted on it, as it is created.
pub(super) fn noted(wanted: &Value) -> Value {
    let mut object = wanted.clone();
    annotate(&mut object, LAST_APPLIED, &wanted.to_string());
    object
}

/// Whether a manifest that said just this was applied last.
pub(super) fn is_noted(live: &Value, wanted: &Value) -> bool {
    meta::annotation(live, LAST_APPLIED) == Some(wanted.to_string().as_str())
}

/// What its manifest said last; nothing where it came from no manifest. Controllers that copy labels and annotations leave this out.
pub(super) fn said(live: &Value) -> Option<Value> {
    serde_json::from_str(meta::annotation(live, LAST_APPLIED)?).ok()
}

/// The JSON merge patch (RFC 7396) that makes `live` what is wanted; `None` when it is.
///
/// What the manifest said last and no longer says goes; what others added stays. Lists are the manifest's.
pub(super) fn patch(live: &Value, wanted: &Value) -> Option<Value> {
    let patch = difference(said(live).as_ref(), &noted(wanted));
    let mut merged = live.clone();
    patch::json_merge(&mut merged, &patch);
    (merged != *live).then_some(patch)
}

fn difference(last: Option<&Value>, wanted: &Value) -> Value {
    let Value::Object(wanted) = wanted else {
        return wanted.clone();
    };
    let mut patch = Map::new();
    if let Some(Value::Object(last)) = last {
        let gone = last.keys().filter(|key| !wanted.contains_key(*key));
        patch.extend(gone.map(|key| (key.clone(), Value::Null)));
    }
    for (key, value) in wanted {
        let last = last.and_then(|last| last.get(key));
        patch.insert(key.clone(), difference(last, value));
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn others_fields_stay_and_ours_go_when_they_are_no_longer_said() {
        let first = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"ours": "1", "old": "1"}},
            "data": {"a": "1", "b": "2"},
        });
        let mut live = noted(&first);
        assert_eq!(patch(&live, &first), None);
        live["data"]["theirs"] = "3".into();
        live["metadata"]["uid"] = "u".into();
        assert_eq!(patch(&live, &first), None);
        let second = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"ours": "1"}},
            "data": {"a": "2"},
        });
        let change = patch(&live, &second).unwrap();
        assert_eq!(change["data"], json!({"a": "2", "b": null}));
        assert_eq!(change["metadata"]["labels"], json!({"ours": "1", "old": null}));
        patch::json_merge(&mut live, &change);
        assert_eq!(live["data"], json!({"a": "2", "theirs": "3"}));
        assert_eq!(patch(&live, &second), None);
        // By hand.
        live["data"]["a"] = "9".into();
        assert_eq!(patch(&live, &second).unwrap()["data"]["a"], "2");
    }

    #[test]
    fn what_was_there_before_is_taken_over() {
        let live = json!({"kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": "1"}});
        let wanted = json!({"kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"b": "2"}});
        let change = patch(&live, &wanted).unwrap();
        assert_eq!(change["data"], json!({"b": "2"}), "nobody said that a goes");
    }
}
