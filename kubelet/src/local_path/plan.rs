//! What is to be done about a claim or a volume, decided from it alone.

use std::path::Path;

use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use skiff_api::k8s_openapi::api::storage::v1::StorageClass;
use skiff_api::volumes::{self, LOCAL_PATH, PROVISIONED_BY, PROVISIONER_FINALIZER, SELECTED_NODE, STORAGE_PROVISIONER};

use super::HOSTNAME;

/// What to do about a volume that this node provisioned.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Disposal {
    /// It is in use, or kept.
    Keep,
    /// Its directory goes, then its object.
    Remove,
    /// Its object may go; the data stays.
    LetGo,
}

/// Whether the claim waits for a directory on this node.
pub(super) fn is_sent_to(claim: &PersistentVolumeClaim, node: &str) -> bool {
    volumes::claim_annotation(claim, STORAGE_PROVISIONER) == Some(LOCAL_PATH)
        && volumes::claim_annotation(claim, SELECTED_NODE) == Some(node)
        && volumes::claimed_volume(claim).is_empty()
        && claim.metadata.deletion_timestamp.is_none()
}

/// Why a directory cannot be what the claim asks for.
pub(super) fn check(claim: &PersistentVolumeClaim) -> Result<(), String> {
    let Some(spec) = &claim.spec else {
        return Err("the claim has no spec".to_owned());
    };
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    let refused = modes
        .iter()
        .find(|mode| !matches!(mode.as_str(), "ReadWriteOnce" | "ReadWriteOncePod"));
    match () {
        () if spec.volume_mode.as_deref() == Some("Block") => Err(format!(
            "{LOCAL_PATH} makes directories: volumeMode Block is not supported"
        )),
        () if spec.selector.is_some() => {
            Err("claim.Spec.Selector is not supported for dynamic provisioning".to_owned())
        }
        () if spec.data_source.is_some() || spec.data_source_ref.is_some() => Err(format!(
            "{LOCAL_PATH} makes empty directories: dataSource is not supported"
        )),
        () => match refused {
            Some(mode) => Err(format!(
                "access mode {mode} is not supported: {LOCAL_PATH} volumes are on one node (ReadWriteOnce, ReadWriteOncePod)"
            )),
            None => Ok(()),
        },
    }
}

/// Whether there may be anything to do about the volume, now or after a failure.
pub(super) fn concerns(volume: &PersistentVolume) -> bool {
    disposal(volume) != Disposal::Keep
}

/// What to do about the volume.
pub(super) fn disposal(volume: &PersistentVolume) -> Disposal {
    let ours = volumes::volume_annotation(volume, PROVISIONED_BY) == Some(LOCAL_PATH);
    let free = matches!(volumes::volume_phase(volume), "Released" | "Failed");
    if !ours || !free {
        return Disposal::Keep;
    }
    let held = volume
        .metadata
        .finalizers
        .iter()
        .flatten()
        .any(|there| there == PROVISIONER_FINALIZER);
    match volumes::reclaim_policy(volume) {
        "Delete" => Disposal::Remove,
        _ if volume.metadata.deletion_timestamp.is_some() && held => Disposal::LetGo,
        _ => Disposal::Keep,
    }
}

/// The name of a claim's volume, and of its directory.
pub(super) fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default())
}

/// The volume object of a claim.
pub(super) fn volume(claim: &PersistentVolumeClaim, class: &StorageClass, node: &str, path: &Path) -> Value {
    let spec = claim.spec.clone().unwrap_or_default();
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": volume_name(claim),
            "labels": {HOSTNAME: node},
            "annotations": {PROVISIONED_BY: LOCAL_PATH},
            "finalizers": [PROVISIONER_FINALIZER],
        },
        "spec": {
            "accessModes": spec.access_modes,
            "capacity": {"storage": spec.resources.and_then(|r| r.requests).and_then(|mut r| r.remove("storage"))},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": claim.metadata.namespace,
                "name": claim.metadata.name,
                "uid": claim.metadata.uid,
            },
            "local": {"path": path},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [node]}]},
            ]}},
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": volumes::claim_class(claim),
            "volumeMode": "Filesystem",
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(annotations: Value, spec: Value) -> PersistentVolumeClaim {
        let metadata = json!({"namespace": "ns", "name": "c", "uid": "u", "annotations": annotations});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    #[test]
    fn only_claims_for_this_node_are_provisioned() {
        let sent = |provisioner: &str, node: &str| json!({STORAGE_PROVISIONER: provisioner, SELECTED_NODE: node});
        let cases = [
            (claim(sent(LOCAL_PATH, "n1"), json!({})), true),
            (claim(sent(LOCAL_PATH, "n2"), json!({})), false),
            (claim(sent("other", "n1"), json!({})), false),
            (claim(sent(LOCAL_PATH, "n1"), json!({"volumeName": "v"})), false),
            (claim(json!({SELECTED_NODE: "n1"}), json!({})), false),
        ];
        for (claim, expected) in cases {
            assert_eq!(is_sent_to(&claim, "n1"), expected, "{claim:?}");
        }
    }

    #[test]
    fn what_a_directory_cannot_be_is_refused() {
        let refused = |spec: Value| check(&claim(json!({}), spec)).err().unwrap_or_default();
        assert_eq!(refused(json!({"accessModes": ["ReadWriteOnce"]})), "");
        assert!(refused(json!({"accessModes": ["ReadWriteMany"]})).starts_with("access mode ReadWriteMany is not"));
        assert!(refused(json!({"volumeMode": "Block"})).contains("Block is not supported"));
        assert!(refused(json!({"selector": {}})).contains("Selector is not supported"));
    }

    #[test]
    fn only_released_volumes_of_ours_go() {
        let volume = |by: &str, phase: &str, policy: &str, deleted: bool| -> PersistentVolume {
            let deleted = deleted.then_some("2026-01-01T00:00:00Z");
            let metadata = json!({
                "annotations": {PROVISIONED_BY: by},
                "deletionTimestamp": deleted,
                "finalizers": [PROVISIONER_FINALIZER],
            });
            let spec = json!({"persistentVolumeReclaimPolicy": policy});
            serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": {"phase": phase}})).unwrap()
        };
        let cases = [
            (volume(LOCAL_PATH, "Released", "Delete", false), Disposal::Remove),
            (volume(LOCAL_PATH, "Failed", "Delete", false), Disposal::Remove),
            (volume(LOCAL_PATH, "Bound", "Delete", true), Disposal::Keep),
            (volume(LOCAL_PATH, "Available", "Delete", true), Disposal::Keep),
            (volume(LOCAL_PATH, "Released", "Retain", false), Disposal::Keep),
            (volume(LOCAL_PATH, "Released", "Retain", true), Disposal::LetGo),
            (volume("other", "Released", "Delete", true), Disposal::Keep),
        ];
        for (volume, expected) in cases {
            assert_eq!(disposal(&volume), expected, "{volume:?}");
        }
    }
}
