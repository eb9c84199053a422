use serde_json::{Value, json};

use super::*;

fn claim(spec: Value) -> PersistentVolumeClaim {
    let mut all = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}}});
    merge(&mut all, spec);
    serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": "data", "uid": "u1"}, "spec": all})).unwrap()
}

fn volume(name: &str, size: &str, spec: Value) -> PersistentVolume {
    let mut all = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": size}, "hostPath": {"path": "/x"}});
    merge(&mut all, spec);
    let object = json!({
        "metadata": {"name": name, "labels": {"disk": name}},
        "spec": all,
        "status": {"phase": "Available"},
    });
    serde_json::from_value(object).unwrap()
}

fn merge(into: &mut Value, from: Value) {
    for (key, value) in from.as_object().unwrap() {
        into[key] = value.clone();
    }
}

fn found(claim: &PersistentVolumeClaim, volumes: &[PersistentVolume], seeker: Seeker<'_>) -> Option<String> {
    best_match(claim, volumes, seeker).and_then(|volume| volume.metadata.name.clone())
}

#[test]
fn a_volume_must_do_in_every_respect() {
    let on = |host: &str| {
        json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions":
            [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}]}}})
    };
    let reference = |name: &str, uid: &str| json!({"claimRef": {"namespace": "ns", "name": name, "uid": uid}});
    // What the claim asks for, what the volume is, whether the binder takes it.
    let cases = [
        ("exactly", json!({}), "5Gi", json!({}), true),
        ("larger", json!({}), "6Gi", json!({}), true),
        ("smaller", json!({}), "5119Mi", json!({}), false),
        ("other class", json!({"storageClassName": "a"}), "5Gi", json!({}), false),
        (
            "its class",
            json!({"storageClassName": "a"}),
            "5Gi",
            json!({"storageClassName": "a"}),
            true,
        ),
        (
            "class where none is asked for",
            json!({"storageClassName": ""}),
            "5Gi",
            json!({"storageClassName": "a"}),
            false,
        ),
        (
            "more access than asked for",
            json!({}),
            "5Gi",
            json!({"accessModes": ["ReadWriteMany", "ReadWriteOnce"]}),
            true,
        ),
        (
            "less access",
            json!({"accessModes": ["ReadWriteMany"]}),
            "5Gi",
            json!({}),
            false,
        ),
        ("a device", json!({}), "5Gi", json!({"volumeMode": "Block"}), false),
        (
            "both devices",
            json!({"volumeMode": "Block"}),
            "5Gi",
            json!({"volumeMode": "Block"}),
            true,
        ),
        (
            "a file system by default",
            json!({"volumeMode": "Filesystem"}),
            "5Gi",
            json!({}),
            true,
        ),
        (
            "selected",
            json!({"selector": {"matchLabels": {"disk": "v"}}}),
            "5Gi",
            json!({}),
            true,
        ),
        (
            "not selected",
            json!({"selector": {"matchLabels": {"disk": "w"}}}),
            "5Gi",
            json!({}),
            false,
        ),
        ("another's", json!({}), "5Gi", reference("other", ""), false),
        ("meant for it", json!({}), "5Gi", reference("data", ""), true),
        ("meant for it by uid", json!({}), "5Gi", reference("data", "u1"), true),
        (
            "meant for a former one",
            json!({}),
            "5Gi",
            reference("data", "u0"),
            false,
        ),
        ("on some node", json!({}), "5Gi", on("n1"), true),
    ];
    for (name, wanted, size, given, expected) in cases {
        let taken = found(&claim(wanted), &[volume("v", size, given)], Seeker::Binder);
        assert_eq!(taken.is_some(), expected, "{name}");
    }
    let nodes = |host: &str| [("kubernetes.io/hostname".to_owned(), host.to_owned())].into();
    let local = [volume("v", "5Gi", on("n1"))];
    assert!(found(&claim(json!({})), &local, Seeker::Node(&nodes("n1"))).is_some());
    assert!(found(&claim(json!({})), &local, Seeker::Node(&nodes("n2"))).is_none());
}

#[test]
fn the_closest_volume_is_taken() {
    let many = json!({"accessModes": ["ReadWriteOnce", "ReadOnlyMany"]});
    let volumes = [
        volume("many-small", "5Gi", many),
        volume("large", "50Gi", json!({})),
        volume("right", "10Gi", json!({})),
        volume("equal", "10Gi", json!({})),
    ];
    assert_eq!(
        found(&claim(json!({})), &volumes, Seeker::Binder).as_deref(),
        Some("equal")
    );
    assert_eq!(
        found(&claim(json!({})), &volumes, Seeker::Waiting),
        None,
        "the first pod decides"
    );
    let mut bound = volumes.to_vec();
    bound.push(volume(
        "meant",
        "90Gi",
        json!({"claimRef": {"namespace": "ns", "name": "data"}}),
    ));
    assert_eq!(
        found(&claim(json!({})), &bound, Seeker::Binder).as_deref(),
        Some("meant")
    );
    assert_eq!(
        found(&claim(json!({})), &bound, Seeker::Waiting).as_deref(),
        Some("meant")
    );
}

#[test]
fn what_is_not_free_is_not_taken() {
    for phase in ["Pending", "Bound", "Released", "Failed"] {
        let mut taken = volume("v", "5Gi", json!({}));
        taken.status.get_or_insert_default().phase = Some(phase.into());
        assert_eq!(found(&claim(json!({})), &[taken], Seeker::Binder), None, "{phase}");
    }
    let mut going = volume("v", "5Gi", json!({}));
    going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    assert_eq!(found(&claim(json!({})), &[going], Seeker::Binder), None);
}

#[test]
fn a_named_volume_is_checked() {
    let cases = [
        (json!({}), "5Gi", json!({}), Ok(())),
        (json!({}), "4Gi", json!({}), Err("requested PV is too small")),
        (
            json!({"storageClassName": "a"}),
            "5Gi",
            json!({}),
            Err("storageClassName does not match"),
        ),
        (
            json!({}),
            "5Gi",
            json!({"volumeMode": "Block"}),
            Err("incompatible volumeMode"),
        ),
        (
            json!({"accessModes": ["ReadWriteMany"]}),
            "5Gi",
            json!({}),
            Err("incompatible accessMode"),
        ),
    ];
    for (wanted, size, given, expected) in cases {
        let checked = check(&volume("v", size, given), &claim(wanted)).map_err(|misfit| misfit.to_string());
        assert_eq!(checked, expected.map_err(str::to_owned));
    }
}

#[test]
fn the_newest_default_class_counts() {
    let class = |name: &str, made: &str, default: &str| -> StorageClass {
        serde_json::from_value(json!({
            "metadata": {"name": name, "creationTimestamp": made, "annotations": {IS_DEFAULT_CLASS: default}},
            "provisioner": "p",
        }))
        .unwrap()
    };
    let classes = [
        class("old", "2026-01-01T00:00:00Z", "true"),
        class("newest", "2026-01-03T00:00:00Z", "false"),
        class("b", "2026-01-02T00:00:00Z", "true"),
        class("a", "2026-01-02T00:00:00Z", "true"),
    ];
    let chosen = default_class(&classes).and_then(|class| class.metadata.name.as_deref());
    assert_eq!(chosen, Some("a"));
    assert_eq!(default_class(&classes[1..2]), None);
}
