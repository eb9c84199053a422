//! Storage, priority and runtime classes; volume attachments.

use serde_json::Value;

use super::Errors;
use super::read::{IMMUTABLE, complain, get, int, is_empty, one_of, required, text};
use crate::field::{Error, Path};
use crate::names;

const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;

pub(super) fn class(object: &Value, errors: &mut Errors) {
    let path = Path::OBJECT;
    match text(object, "provisioner") {
        "" => errors.push(Error::required(&path.child("provisioner"), "")),
        name => complain(
            &path.child("provisioner"),
            name,
            names::qualified_name(&name.to_lowercase()),
            errors,
        ),
    }
    one_of(&path, "reclaimPolicy", object, &["Delete", "Retain"], false, errors);
    one_of(
        &path,
        "volumeBindingMode",
        object,
        &["Immediate", "WaitForFirstConsumer"],
        true,
        errors,
    );
}

pub(super) fn class_update(new: &Value, old: &Value, errors: &mut Errors) {
    if get(new, "parameters") != get(old, "parameters") {
        errors.push(Error::forbidden(
            &Path::root("parameters"),
            "updates to parameters are forbidden.",
        ));
    }
    for key in ["provisioner", "reclaimPolicy"] {
        if get(new, key) != get(old, key) {
            errors.push(Error::forbidden(
                &Path::root(key),
                format!("updates to {key} are forbidden."),
            ));
        }
    }
    if get(new, "volumeBindingMode") != get(old, "volumeBindingMode") {
        let value = get(new, "volumeBindingMode").clone();
        errors.push(Error::invalid(&Path::root("volumeBindingMode"), value, IMMUTABLE));
    }
}

pub(super) fn attachment(object: &Value, errors: &mut Errors) {
    let (path, spec) = (Path::root("spec"), get(object, "spec"));
    for key in ["attacher", "nodeName"] {
        required(&path, key, spec, errors);
    }
    if is_empty(get(spec, "source"), "persistentVolumeName") && is_empty(get(spec, "source"), "inlineVolumeSpec") {
        errors.push(Error::required(
            &path.child("source"),
            "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
        ));
    }
}

pub(super) fn priority_class(object: &Value, errors: &mut Errors) {
    let name = text(get(object, "metadata"), "name");
    let value = int(object, "value").unwrap_or(0);
    if name.starts_with("system-") {
        let known = matches!(
            (name, value),
            ("system-node-critical", 2_000_001_000) | ("system-cluster-critical", 2_000_000_000)
        );
        if !known {
            let detail = "priority class names with 'system-' prefix are reserved for system use only. error: unknown system priority class";
            errors.push(Error::forbidden(&Path::root("metadata").child("name"), detail));
        }
    } else if value > HIGHEST_USER_PRIORITY {
        let detail = format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}");
        errors.push(Error::forbidden(&Path::root("value"), detail));
    }
    one_of(
        &Path::OBJECT,
        "preemptionPolicy",
        object,
        &["Never", "PreemptLowerPriority"],
        false,
        errors,
    );
}

pub(super) fn priority_update(new: &Value, old: &Value, errors: &mut Errors) {
    if int(new, "value").unwrap_or(0) != int(old, "value").unwrap_or(0) {
        errors.push(Error::forbidden(
            &Path::root("value"),
            "may not be changed in an update.",
        ));
    }
    if get(new, "preemptionPolicy") != get(old, "preemptionPolicy") {
        let value = get(new, "preemptionPolicy").clone();
        errors.push(Error::invalid(&Path::root("preemptionPolicy"), value, IMMUTABLE));
    }
}

pub(super) fn runtime_class(object: &Value, errors: &mut Errors) {
    match text(object, "handler") {
        "" => errors.push(Error::required(&Path::root("handler"), "")),
        handler => complain(&Path::root("handler"), handler, names::dns1123_label(handler), errors),
    }
}

pub(super) fn runtime_update(new: &Value, old: &Value, errors: &mut Errors) {
    if get(new, "handler") != get(old, "handler") {
        errors.push(Error::invalid(
            &Path::root("handler"),
            get(new, "handler").clone(),
            IMMUTABLE,
        ));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{created, updated};

    #[test]
    fn classes() {
        let class = |provisioner: &str| json!({"metadata": {"name": "fast"}, "provisioner": provisioner, "volumeBindingMode": "Immediate"});
        assert_eq!(
            created("storage.k8s.io", "StorageClass", &class("")),
            ["provisioner: Required value"]
        );
        assert_eq!(
            updated("storage.k8s.io", "StorageClass", &class("a/b"), &class("a/c")),
            ["provisioner: Forbidden: updates to provisioner are forbidden."]
        );
        let priority = |value: i64| json!({"metadata": {"name": "high"}, "value": value});
        assert_eq!(
            created("scheduling.k8s.io", "PriorityClass", &priority(2_000_000_000)),
            ["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"]
        );
        assert_eq!(
            updated("scheduling.k8s.io", "PriorityClass", &priority(1), &priority(2)),
            ["value: Forbidden: may not be changed in an update."]
        );
    }
}
