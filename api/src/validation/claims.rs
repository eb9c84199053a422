//! Persistent volumes and claims.

use serde_json::Value;

use super::Errors;
use super::core::quantity;
use super::read::{IMMUTABLE, at, complain, entries, get, is_empty, list, one_of, text};
use super::selector;
use crate::field::{Error, Path};
use crate::names;

const SPEC: Path<'static> = Path::root("spec");
const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// Fields of a volume's specification that are no source of storage.
const NOT_SOURCES: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

fn access_modes(spec: &Value, errors: &mut Errors) {
    let path = SPEC.child("accessModes");
    let modes = list(spec, "accessModes");
    if modes.is_empty() {
        errors.push(Error::required(&path, "at least 1 access mode is required"));
    }
    for mode in modes
        .iter()
        .filter_map(Value::as_str)
        .filter(|mode| !MODES.contains(mode))
    {
        errors.push(Error::not_supported(&path, mode, &MODES));
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        let detail = "may not use ReadWriteOncePod with other access modes";
        errors.push(Error::forbidden(&path, detail));
    }
}

fn positive_storage(path: &Path<'_>, value: &Value, errors: &mut Errors) {
    if quantity(value).is_none_or(|amount| amount.as_milli() <= 0) {
        errors.push(Error::invalid(path, value.clone(), "must be greater than zero"));
    }
}

pub(super) fn claim(object: &Value, errors: &mut Errors) {
    let spec = get(object, "spec");
    access_modes(spec, errors);
    selector::selector(&SPEC.child("selector"), get(spec, "selector"), errors);
    let requests = SPEC.child("resources");
    match at(spec, "resources.requests.storage") {
        Value::Null => errors.push(Error::required(&requests.key("storage"), "")),
        size => positive_storage(&requests.key("storage"), size, errors),
    }
    if let Some(class) = get(spec, "storageClassName").as_str().filter(|class| !class.is_empty()) {
        complain(
            &SPEC.child("storageClassName"),
            class,
            names::dns1123_subdomain(class),
            errors,
        );
    }
    one_of(&SPEC, "volumeMode", spec, &["Block", "Filesystem"], false, errors);
}

pub(super) fn claim_update(new: &Value, old: &Value, errors: &mut Errors) {
    let (spec, before) = (get(new, "spec"), get(old, "spec"));
    let fixed = |spec: &Value| {
        let mut fields = spec.as_object().cloned().unwrap_or_default();
        fields.retain(|key, value| {
            !matches!(key.as_str(), "resources" | "volumeAttributesClassName") && !value.is_null()
        });
        // The binder fills these in once.
        if text(before, "volumeName").is_empty() {
            fields.remove("volumeName");
        }
        // Nobody chose one yet: the default may still come. The empty name is a choice.
        if get(before, "storageClassName").is_null() {
            fields.remove("storageClassName");
        }
        fields
    };
    if fixed(spec) != fixed(before) {
        let detail =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.push(Error::forbidden(&SPEC, detail));
    }
    let (size, old_size) = (
        quantity(at(spec, "resources.requests.storage")),
        quantity(at(before, "resources.requests.storage")),
    );
    if let (Some(size), Some(old_size)) = (size, old_size) {
        let status = quantity(at(old, "status.capacity.storage"));
        if size < old_size && status.is_none_or(|status| size < status) {
            let detail = "field can not be less than status.capacity";
            errors.push(Error::forbidden(&SPEC.child("resources.requests.storage"), detail));
        } else if size != old_size && text(get(old, "status"), "phase") != "Bound" {
            let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
            errors.push(Error::forbidden(&SPEC, detail));
        }
    }
}

pub(super) fn volume(object: &Value, errors: &mut Errors) {
    let spec = get(object, "spec");
    access_modes(spec, errors);
    let capacity = SPEC.child("capacity");
    if is_empty(spec, "capacity") {
        errors.push(Error::required(&capacity, ""));
    } else if at(spec, "capacity.storage").is_null() {
        errors.push(Error::not_supported(
            &capacity,
            get(spec, "capacity").clone(),
            &["storage"],
        ));
    }
    for (name, value) in entries(spec, "capacity") {
        positive_storage(&capacity.key(name), value, errors);
    }
    let policies = ["Delete", "Recycle", "Retain"];
    one_of(&SPEC, "persistentVolumeReclaimPolicy", spec, &policies, false, errors);
    let mut sources = spec
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| !NOT_SOURCES.contains(&key.as_str()) && !value.is_null());
    match (sources.next(), sources.next()) {
        (None, _) => errors.push(Error::required(&SPEC, "must specify a volume type")),
        (_, Some((key, _))) => {
            errors.push(Error::forbidden(
                &SPEC.child(key),
                "may not specify more than 1 volume type",
            ));
        }
        (Some((key, _)), None) if key == "local" && is_empty(spec, "nodeAffinity") => {
            errors.push(Error::required(
                &SPEC.child("nodeAffinity"),
                "Local volume requires node affinity",
            ));
        }
        _ => {}
    }
    one_of(&SPEC, "volumeMode", spec, &["Block", "Filesystem"], false, errors);
}

pub(super) fn volume_update(new: &Value, old: &Value, errors: &mut Errors) {
    let (spec, before) = (get(new, "spec"), get(old, "spec"));
    let source = |spec: &Value| {
        let mut fields = spec.as_object().cloned().unwrap_or_default();
        fields.retain(|key, value| !NOT_SOURCES.contains(&key.as_str()) && !value.is_null());
        fields
    };
    if source(spec) != source(before) {
        let detail = "spec.persistentvolumesource is immutable after creation";
        errors.push(Error::forbidden(&SPEC.child("persistentvolumesource"), detail));
    }
    if get(spec, "volumeMode") != get(before, "volumeMode") {
        errors.push(Error::invalid(
            &SPEC.child("volumeMode"),
            get(spec, "volumeMode").clone(),
            IMMUTABLE,
        ));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{created, updated};
    use super::*;

    #[test]
    fn claims() {
        let claim = |spec: Value| json!({"metadata": {"name": "a", "namespace": "b"}, "spec": spec});
        assert_eq!(
            created(
                "",
                "PersistentVolumeClaim",
                &claim(json!({"accessModes": ["Sometimes"]}))
            ),
            [
                "spec.accessModes: Unsupported value: \"Sometimes\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
                "spec.resources[storage]: Required value"
            ]
        );
        let old = claim(
            json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "a"}),
        );
        let mut bound = old.clone();
        bound["spec"]["volumeName"] = "pv".into();
        assert_eq!(updated("", "PersistentVolumeClaim", &bound, &old), [""; 0]);
        let mut other = old.clone();
        other["spec"]["accessModes"] = json!(["ReadWriteMany"]);
        assert_eq!(
            updated("", "PersistentVolumeClaim", &other, &old),
            [
                "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"
            ]
        );
    }

    #[test]
    fn volumes() {
        let volume = json!({"metadata": {"name": "a"}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "0"}}});
        assert_eq!(
            created("", "PersistentVolume", &volume),
            [
                "spec.capacity[storage]: Invalid value: \"0\": must be greater than zero",
                "spec: Required value: must specify a volume type"
            ]
        );
    }
}
