//! Volumes of pods, and the parts that persistent volumes share with them.

use serde_json::Value;

use super::{Fields, absent, child, descend, items, text};

const MODE: i64 = 0o644;

/// Defaults of one volume of a pod.
pub(super) fn apply(volume: &mut Fields) {
    let sourceless = volume.iter().all(|(key, value)| key == "name" || value.is_null());
    if sourceless {
        volume.insert("emptyDir".to_owned(), Fields::new().into());
    }
    for key in ["configMap", "secret"] {
        if let Some(source) = child(volume, key) {
            absent(source, "defaultMode", MODE);
        }
    }
    if let Some(source) = child(volume, "downwardAPI") {
        absent(source, "defaultMode", MODE);
        field_refs(source);
    }
    if let Some(source) = child(volume, "projected") {
        projected(source);
    }
    if let Some(claim) = descend(volume, &["ephemeral", "volumeClaimTemplate", "spec"]) {
        claim_spec(claim);
    }
    if let Some(image) = child(volume, "image") {
        let reference = image.get("reference").and_then(Value::as_str).unwrap_or_default();
        let policy = super::container::pull_policy(reference);
        text(image, "pullPolicy", policy);
    }
    source(volume);
}

fn projected(source: &mut Fields) {
    absent(source, "defaultMode", MODE);
    for part in items(source, "sources") {
        if let Some(token) = child(part, "serviceAccountToken") {
            absent(token, "expirationSeconds", 3600);
        }
        if let Some(downward) = child(part, "downwardAPI") {
            field_refs(downward);
        }
        if let Some(certificate) = child(part, "podCertificate") {
            absent(certificate, "maxExpirationSeconds", 86400);
        }
    }
}

fn field_refs(downward: &mut Fields) {
    for item in items(downward, "items") {
        if let Some(field) = child(item, "fieldRef") {
            text(field, "apiVersion", "v1");
        }
    }
}

/// Sources that pods and persistent volumes have in common.
pub(super) fn source(volume: &mut Fields) {
    if let Some(path) = child(volume, "hostPath") {
        absent(path, "type", "");
    }
    if let Some(iscsi) = child(volume, "iscsi") {
        text(iscsi, "iscsiInterface", "default");
    }
    if let Some(rbd) = child(volume, "rbd") {
        text(rbd, "pool", "rbd");
        text(rbd, "user", "admin");
        text(rbd, "keyring", "/etc/ceph/keyring");
    }
    if let Some(disk) = child(volume, "azureDisk") {
        absent(disk, "cachingMode", "ReadWrite");
        absent(disk, "kind", "Shared");
        absent(disk, "fsType", "ext4");
        absent(disk, "readOnly", false);
    }
    if let Some(scale_io) = child(volume, "scaleIO") {
        text(scale_io, "storageMode", "ThinProvisioned");
        text(scale_io, "fsType", "xfs");
    }
}

/// Specification of a claim, wherever it is embedded.
pub(super) fn claim_spec(spec: &mut Fields) {
    absent(spec, "volumeMode", "Filesystem");
}

/// Defaults of a persistent volume.
pub(super) fn persistent(object: &mut Fields) {
    if let Some(spec) = child(object, "spec") {
        text(spec, "persistentVolumeReclaimPolicy", "Retain");
        absent(spec, "volumeMode", "Filesystem");
        source(spec);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sources() {
        for (volume, defaulted) in [
            (json!({"name": "v"}), json!({"name": "v", "emptyDir": {}})),
            (
                json!({"name": "v", "configMap": {"name": "c"}}),
                json!({"name": "v", "configMap": {"name": "c", "defaultMode": 420}}),
            ),
            (
                json!({"name": "v", "secret": {"secretName": "s", "defaultMode": 256}}),
                json!({"name": "v", "secret": {"secretName": "s", "defaultMode": 256}}),
            ),
            (
                json!({"name": "v", "hostPath": {"path": "/x"}}),
                json!({"name": "v", "hostPath": {"path": "/x", "type": ""}}),
            ),
            (
                json!({"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}},
                    {"downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}}),
                json!({"name": "v", "projected": {"defaultMode": 420, "sources": [
                    {"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}},
                    {"downwardAPI": {"items": [{"path": "n", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}}]}}),
            ),
        ] {
            let mut volume = volume;
            apply(volume.as_object_mut().unwrap());
            assert_eq!(volume, defaulted);
        }
    }
}
