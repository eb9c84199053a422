use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema::schema;

fn merge(kind: &str, current: &Value, patch: &Value) -> Result<Value, String> {
    let (group, kind) = kind.split_once('/').unwrap_or(("", kind));
    strategic_merge(schema().kind(group, "v1", kind).unwrap(), current, patch).map_err(|e| e.to_string())
}

fn spec(kind: &str, current: Value, patch: Value) -> Result<Value, String> {
    merge(kind, &json!({"spec": current}), &json!({"spec": patch})).map(|v| v["spec"].clone())
}

#[test]
fn lists_merge_by_key() {
    let current = json!({"containers": [{"name": "a", "image": "1", "ports": [{"containerPort": 80, "name": "x"}]}, {"name": "b", "image": "1"}]});
    let patch = json!({"containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "3", "stdin": null}]});
    assert_eq!(
        spec("Pod", current.clone(), patch).unwrap(),
        json!({"containers": [
            {"name": "a", "image": "1", "ports": [{"containerPort": 80, "name": "x"}]},
            {"name": "b", "image": "2"}, {"name": "c", "image": "3"},
        ]})
    );
    let ports =
        json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": 1}, {"containerPort": 81}]}]});
    assert_eq!(
        spec("Pod", current, ports).unwrap()["containers"][0]["ports"],
        json!([{"containerPort": 80, "name": "x", "hostPort": 1}, {"containerPort": 81}])
    );
}

#[test]
fn atomic_lists_and_maps() {
    let current = json!({"containers": [{"name": "a", "command": ["x", "y"]}], "nodeSelector": {"a": "1", "b": "2"}});
    let patch = json!({"containers": [{"name": "a", "command": ["z"]}], "nodeSelector": {"a": null, "c": "3"}});
    assert_eq!(
        spec("Pod", current, patch).unwrap(),
        json!({"containers": [{"name": "a", "command": ["z"]}], "nodeSelector": {"b": "2", "c": "3"}})
    );
}

#[test]
fn directives() {
    let current = json!({"containers": [{"name": "a"}, {"name": "b"}], "nodeSelector": {"a": "1"}});
    let cases = [
        (
            json!({"containers": [{"name": "a", "$patch": "delete"}]}),
            json!({"containers": [{"name": "b"}], "nodeSelector": {"a": "1"}}),
        ),
        (
            json!({"containers": [{"$patch": "replace"}, {"name": "z"}]}),
            json!({"containers": [{"name": "z"}], "nodeSelector": {"a": "1"}}),
        ),
        (
            json!({"nodeSelector": {"$patch": "replace", "b": "2"}}),
            json!({"containers": [{"name": "a"}, {"name": "b"}], "nodeSelector": {"b": "2"}}),
        ),
        (
            json!({"nodeSelector": {"$patch": "delete"}}),
            json!({"containers": [{"name": "a"}, {"name": "b"}], "nodeSelector": {}}),
        ),
        (
            json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}, {"name": "c"}], "containers": [{"name": "c"}]}),
            json!({"containers": [{"name": "b"}, {"name": "a"}, {"name": "c"}], "nodeSelector": {"a": "1"}}),
        ),
        (
            json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
            json!({"containers": [{"name": "b"}, {"name": "a"}], "nodeSelector": {"a": "1"}}),
        ),
        (
            json!({"$retainKeys": ["containers"]}),
            json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        ),
        (json!({"$patch": "replace", "hostname": "h"}), json!({"hostname": "h"})),
    ];
    for (patch, wanted) in cases {
        assert_eq!(spec("Pod", current.clone(), patch.clone()).unwrap(), wanted, "{patch}");
    }
}

#[test]
fn sets_of_scalars() {
    let current = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
    let cases = [
        (json!({"finalizers": ["d", "b"]}), json!(["d", "a", "b", "c"])),
        (
            json!({"$deleteFromPrimitiveList/finalizers": ["b", "x"]}),
            json!(["a", "c"]),
        ),
        (
            json!({"$deleteFromPrimitiveList/finalizers": ["a"], "$setElementOrder/finalizers": ["c", "b", "d"], "finalizers": ["d"]}),
            json!(["c", "b", "d"]),
        ),
    ];
    for (patch, wanted) in cases {
        let merged = merge("Pod", &current, &json!({"metadata": patch})).unwrap();
        assert_eq!(merged["metadata"]["finalizers"], wanted, "{patch}");
    }
}

#[test]
fn retain_keys_of_a_union() {
    let current = json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}});
    let patch = json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}});
    assert_eq!(
        spec("apps/Deployment", current, patch).unwrap(),
        json!({"strategy": {"type": "Recreate"}})
    );
    let volumes = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
    let patch = json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]});
    assert_eq!(
        spec("Pod", volumes, patch).unwrap(),
        json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]})
    );
}

#[test]
fn conditions_merge_by_type() {
    let current = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "x"}, {"type": "Other", "status": "True"}]}});
    let patch = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": null}]}});
    assert_eq!(
        merge("Pod", &current, &patch).unwrap()["status"]["conditions"],
        json!([{"type": "Ready", "status": "True"}, {"type": "Other", "status": "True"}])
    );
}

#[test]
fn refused() {
    let current = json!({"containers": [{"name": "a"}]});
    let cases = [
        (
            json!({"containers": [{"image": "x"}]}),
            r#"map: {"image":"x"} does not contain declared merge key: name"#,
        ),
        (
            json!({"containers": [{"name": "a", "$patch": "merge"}]}),
            "merging lists cannot yet be specified in the patch",
        ),
        (json!({"containers": ["a"]}), "list element types are not identical"),
        (json!({"$patch": "nope"}), "unknown patch type: nope in map: {}"),
        (json!({"$retainKeys": 1}), "invalid patch format of retainKeys"),
        (
            json!({"$retainKeys": [], "hostname": "x"}),
            "invalid patch format of retainKeys",
        ),
        (
            json!({"$setElementOrder/containers": 1}),
            "invalid patch format of setElementOrder list",
        ),
        (
            json!({"$deleteFromPrimitiveList": []}),
            "invalid patch format of primitive list",
        ),
    ];
    for (patch, text) in cases {
        assert_eq!(
            spec("Pod", current.clone(), patch.clone()).unwrap_err(),
            text,
            "{patch}"
        );
    }
    let order = json!({"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "b"}]});
    assert!(
        spec("Pod", current, order)
            .unwrap_err()
            .starts_with("The order in patch list:\n")
    );
    assert_eq!(
        merge("Pod", &json!({}), &json!([])).unwrap_err(),
        "invalid JSON document"
    );
}

#[test]
fn nulls_delete_or_are_nothing() {
    let merged = merge(
        "Pod",
        &json!({"metadata": {"labels": {"a": "1"}}}),
        &json!({"metadata": {"labels": null, "annotations": {"x": null}}}),
    );
    assert_eq!(merged.unwrap(), json!({"metadata": {"annotations": {}}}));
}

proptest! {
    #[test]
    fn never_panics_and_is_stable(current in containers(), patch in containers(), order in prop::collection::vec("[a-d]", 0..4)) {
        let names: Vec<Value> = order.iter().map(|n| json!({"name": n})).collect();
        spec("Pod", current.clone(), json!({"containers": patch["containers"], "$setElementOrder/containers": names})).ok();
        let once = spec("Pod", current, patch.clone()).unwrap();
        let twice = spec("Pod", once.clone(), patch).unwrap();
        prop_assert_eq!(once, twice);
    }
}

fn containers() -> impl Strategy<Value = Value> {
    let names = proptest::sample::subsequence(vec!["a", "b", "c", "d"], 0..4).prop_shuffle();
    (names, 0..3).prop_map(|(names, n): (Vec<&str>, i32)| {
        let list: Vec<Value> = names
            .iter()
            .map(|name| json!({"name": name, "image": n.to_string()}))
            .collect();
        json!({"containers": list})
    })
}
