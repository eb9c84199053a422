//! Volumes, claims, classes, drivers.

use jiff::Timestamp;
use serde_json::Value;
use skiff_api::meta;

use super::read::{NONE, UNSET, at, joined, list, or, shown, text};
use super::{AGE, Column, NAME, Printer, age};

const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

pub(super) static VOLUMES: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Capacity"),
        Column::text("Access Modes"),
        Column::text("Reclaim Policy"),
        Column::text("Status"),
        Column::text("Claim"),
        Column::text("StorageClass"),
        Column::text("VolumeAttributesClass"),
        Column::text("Reason"),
        AGE,
        Column::wide("VolumeMode"),
    ],
    row: volume,
};

fn volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let claim = match at(object, "spec.claimRef") {
        Value::Null => String::new(),
        claim => format!("{}/{}", text(claim, "namespace"), text(claim, "name")),
    };
    vec![
        meta::name(object).into(),
        quantity(at(object, "spec.capacity.storage")).into(),
        modes(list(object, "spec.accessModes")).into(),
        text(object, "spec.persistentVolumeReclaimPolicy").into(),
        phase(object).into(),
        claim.into(),
        class(object).into(),
        or(text(object, "spec.volumeAttributesClassName"), UNSET).into(),
        text(object, "status.reason").into(),
        age::of(object, now),
        or(text(object, "spec.volumeMode"), UNSET).into(),
    ]
}

pub(super) static CLAIMS: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Status"),
        Column::text("Volume"),
        Column::text("Capacity"),
        Column::text("Access Modes"),
        Column::text("StorageClass"),
        Column::text("VolumeAttributesClass"),
        AGE,
        Column::wide("VolumeMode"),
    ],
    row: claim,
};

fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let bound = !text(object, "spec.volumeName").is_empty();
    let (capacity, modes) = if bound {
        (
            quantity(at(object, "status.capacity.storage")),
            modes(list(object, "status.accessModes")),
        )
    } else {
        (String::new(), String::new())
    };
    vec![
        meta::name(object).into(),
        phase(object).into(),
        text(object, "spec.volumeName").into(),
        capacity.into(),
        modes.into(),
        class(object).into(),
        or(text(object, "spec.volumeAttributesClassName"), UNSET).into(),
        age::of(object, now),
        or(text(object, "spec.volumeMode"), UNSET).into(),
    ]
}

fn phase(object: &Value) -> &str {
    if meta::deletion_timestamp(object).is_some() {
        "Terminating"
    } else {
        text(object, "status.phase")
    }
}

fn class(object: &Value) -> &str {
    meta::annotation(object, OLD_CLASS).unwrap_or_else(|| text(object, "spec.storageClassName"))
}

fn quantity(value: &Value) -> String {
    if value.is_null() { String::new() } else { shown(value) }
}

fn modes(modes: &[Value]) -> String {
    const SHORT: [(&str, &str); 4] = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    joined(
        SHORT
            .iter()
            .filter(|(long, _)| modes.iter().any(|mode| mode == long))
            .map(|(_, short)| *short),
        "",
    )
}

pub(super) static CLASSES: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Provisioner"),
        Column::text("ReclaimPolicy"),
        Column::text("VolumeBindingMode"),
        Column::boolean("AllowVolumeExpansion"),
        AGE,
    ],
    row: |object, now| {
        const DEFAULT: [&str; 2] = [
            "storageclass.kubernetes.io/is-default-class",
            "storageclass.beta.kubernetes.io/is-default-class",
        ];
        let default = DEFAULT.iter().any(|key| meta::annotation(object, key) == Some("true"));
        let mark = if default { " (default)" } else { "" };
        vec![
            format!("{}{mark}", meta::name(object)).into(),
            text(object, "provisioner").into(),
            or(text(object, "reclaimPolicy"), "Delete").into(),
            or(text(object, "volumeBindingMode"), "Immediate").into(),
            flag(object, "allowVolumeExpansion"),
            age::of(object, now),
        ]
    },
};

fn flag(object: &Value, path: &str) -> Value {
    at(object, path).as_bool().unwrap_or(false).into()
}

pub(super) static DRIVERS: Printer = Printer {
    columns: &[
        NAME,
        Column::boolean("AttachRequired"),
        Column::boolean("PodInfoOnMount"),
        Column::boolean("StorageCapacity"),
        Column::text("TokenRequests"),
        Column::boolean("RequiresRepublish"),
        Column::text("Modes"),
        AGE,
    ],
    row: |object, now| {
        let audiences = list(object, "spec.tokenRequests")
            .iter()
            .map(|request| text(request, "audience"));
        let modes = list(object, "spec.volumeLifecycleModes")
            .iter()
            .filter_map(Value::as_str);
        vec![
            meta::name(object).into(),
            at(object, "spec.attachRequired").as_bool().unwrap_or(true).into(),
            flag(object, "spec.podInfoOnMount"),
            flag(object, "spec.storageCapacity"),
            joined(audiences, UNSET).into(),
            flag(object, "spec.requiresRepublish"),
            joined(modes, NONE).into(),
            age::of(object, now),
        ]
    },
};

pub(super) static DRIVER_NODES: Printer = Printer {
    columns: &[NAME, Column::integer("Drivers"), AGE],
    row: |object, now| {
        vec![
            meta::name(object).into(),
            list(object, "spec.drivers").len().into(),
            age::of(object, now),
        ]
    },
};

pub(super) static ATTACHMENTS: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Attacher"),
        Column::text("PV"),
        Column::text("Node"),
        Column::boolean("Attached"),
        AGE,
    ],
    row: |object, now| {
        vec![
            meta::name(object).into(),
            text(object, "spec.attacher").into(),
            text(object, "spec.source.persistentVolumeName").into(),
            text(object, "spec.nodeName").into(),
            flag(object, "status.attached"),
            age::of(object, now),
        ]
    },
};

pub(super) static CAPACITIES: Printer = Printer {
    columns: &[NAME, Column::text("StorageClassName"), Column::text("Capacity")],
    row: |object, _now| {
        let capacity = quantity(at(object, "capacity"));
        vec![
            meta::name(object).into(),
            text(object, "storageClassName").into(),
            or(&capacity, UNSET).into(),
        ]
    },
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::check;

    #[test]
    fn volumes_and_claims() {
        let volume = json!({"metadata": {"name": "pv"}, "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain", "claimRef": {"namespace": "a", "name": "b"}, "storageClassName": "fast", "volumeMode": "Filesystem"},
            "status": {"phase": "Bound"}});
        check(
            "",
            "persistentvolumes",
            &volume,
            "NAME | CAPACITY | ACCESS MODES | RECLAIM POLICY | STATUS | CLAIM | STORAGECLASS | VOLUMEATTRIBUTESCLASS | REASON | AGE | VOLUMEMODE",
            "pv | 1Gi | RWO,RWX | Retain | Bound | a/b | fast | <unset> |  | <unknown> | Filesystem",
        );
        let claim = json!({"metadata": {"name": "c"}, "spec": {"storageClassName": "fast", "volumeMode": "Filesystem"}, "status": {"phase": "Pending"}});
        check(
            "",
            "persistentvolumeclaims",
            &claim,
            "NAME | STATUS | VOLUME | CAPACITY | ACCESS MODES | STORAGECLASS | VOLUMEATTRIBUTESCLASS | AGE | VOLUMEMODE",
            "c | Pending |  |  |  | fast | <unset> | <unknown> | Filesystem",
        );
    }

    #[test]
    fn classes() {
        let class = json!({"metadata": {"name": "fast", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
            "provisioner": "a/b", "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer"});
        check(
            "storage.k8s.io",
            "storageclasses",
            &class,
            "NAME | PROVISIONER | RECLAIMPOLICY | VOLUMEBINDINGMODE | ALLOWVOLUMEEXPANSION | AGE",
            "fast (default) | a/b | Delete | WaitForFirstConsumer | false | <unknown>",
        );
    }
}
