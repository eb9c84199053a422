//! What an update of a pod may change.

use serde_json::Value;

use super::super::Errors;
use super::super::read::{at, get, int, list, text};
use super::{ANNOTATIONS, annotation, container};
use crate::field::{Error, Path, quote};
use crate::pods::MIRROR;

const SPEC: Path<'static> = Path::root("spec");
const MUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
                       `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
                       `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(in super::super) fn update(new: &Value, old: &Value, errors: &mut Errors) {
    let (spec, before) = (get(new, "spec"), get(old, "spec"));
    mirror(new, old, errors);
    for key in ["containers", "initContainers"] {
        if list(spec, key).len() != list(before, key).len() {
            errors.push(Error::forbidden(
                &SPEC.child(key),
                "pod updates may not add or remove containers",
            ));
            return;
        }
    }
    deadline(spec, before, errors);
    tolerations(spec, before, errors);
    let changes = differences(&masked(spec, before), before);
    if !changes.is_empty() {
        errors.push(Error::forbidden(&SPEC, format!("{MUTABLE}\n{}", changes.join("\n"))));
    }
}

/// A pod is a mirror all its life, or never.
fn mirror(new: &Value, old: &Value, errors: &mut Errors) {
    let detail = match (annotation(old, MIRROR), annotation(new, MIRROR)) {
        (before, after) if before == after => return,
        (None, _) => "may not add mirror pod annotation",
        (Some(_), _) => "may not remove or update mirror pod annotation",
    };
    errors.push(Error::forbidden(&ANNOTATIONS.key(MIRROR), detail));
}

fn deadline(spec: &Value, before: &Value, errors: &mut Errors) {
    let path = SPEC.child("activeDeadlineSeconds");
    match (int(spec, "activeDeadlineSeconds"), int(before, "activeDeadlineSeconds")) {
        (Some(new), Some(old)) if new > old => {
            errors.push(Error::invalid(
                &path,
                new,
                "must be less than or equal to previous value",
            ));
        }
        (None, Some(_)) => {
            let detail = "must not update from a positive integer to nil value";
            errors.push(Error::invalid(&path, Value::Null, detail));
        }
        _ => {}
    }
}

/// Tolerations may be added, and their seconds changed.
fn tolerations(spec: &Value, before: &Value, errors: &mut Errors) {
    let identity = |toleration: &Value| {
        let mut toleration = toleration.clone();
        toleration
            .as_object_mut()
            .and_then(|fields| fields.remove("tolerationSeconds"));
        toleration
    };
    let new: Vec<Value> = list(spec, "tolerations").iter().map(identity).collect();
    if list(before, "tolerations")
        .iter()
        .any(|old| !new.contains(&identity(old)))
    {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(Error::forbidden(&SPEC.child("tolerations"), detail));
    }
}

/// The new specification with everything that may change put back.
fn masked(spec: &Value, before: &Value) -> Value {
    let mut spec = spec.clone();
    let Some(fields) = spec.as_object_mut() else {
        return spec;
    };
    for key in ["containers", "initContainers"] {
        let old = list(before, key);
        let containers = fields.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten();
        for (container, old) in containers.zip(old) {
            restore(container, old, "image");
        }
    }
    let gated = !list(before, "schedulingGates").is_empty();
    let removed_gates_only = fields
        .get("schedulingGates")
        .and_then(Value::as_array)
        .is_none_or(|gates| gates.iter().all(|gate| list(before, "schedulingGates").contains(gate)));
    let mut mutable = vec!["activeDeadlineSeconds", "tolerations"];
    if gated {
        // A pod that waits at a gate may still be steered.
        mutable.extend(["nodeSelector", "affinity"]);
        if removed_gates_only {
            mutable.push("schedulingGates");
        }
    }
    let grace = "terminationGracePeriodSeconds";
    if int(before, grace).is_some_and(|seconds| seconds < 0) && fields.get(grace) == Some(&1.into()) {
        mutable.push(grace);
    }
    for key in mutable {
        restore(&mut spec, before, key);
    }
    spec
}

fn restore(target: &mut Value, source: &Value, key: &str) {
    let Some(target) = target.as_object_mut() else { return };
    match source.get(key) {
        Some(value) => {
            target.insert(key.to_owned(), value.clone());
        }
        None => {
            target.remove(key);
        }
    }
}

/// One line for each leaf in which two values differ; null and absent are the same.
fn differences(new: &Value, old: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    walk("spec", new, old, &mut lines);
    lines
}

fn walk(path: &str, new: &Value, old: &Value, lines: &mut Vec<String>) {
    if new == old {
        return;
    }
    match (new, old) {
        (Value::Object(a), Value::Object(b)) => {
            let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
            keys.sort_unstable();
            keys.dedup();
            for key in keys {
                walk(&format!("{path}.{key}"), get(new, key), get(old, key), lines);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (new, old)) in a.iter().zip(b).enumerate() {
                walk(&format!("{path}[{i}]"), new, old, lines);
            }
        }
        _ => lines.push(format!("{path}: {old} -> {new}")),
    }
}

/// Changes through `status`, `ephemeralcontainers` and `resize`.
pub(in super::super) fn subresource(name: &str, new: &Value, old: &Value, errors: &mut Errors) {
    match name {
        "ephemeralcontainers" => ephemeral(new, old, errors),
        "status" => status(new, old, errors),
        "resize" => super::create(new, errors),
        _ => {}
    }
}

fn ephemeral(new: &Value, old: &Value, errors: &mut Errors) {
    super::create(new, errors);
    let path = SPEC.child("ephemeralContainers");
    let containers = list(get(new, "spec"), "ephemeralContainers");
    for existing in list(get(old, "spec"), "ephemeralContainers") {
        let name = text(existing, "name");
        match containers.iter().find(|container| text(container, "name") == name) {
            None => {
                let detail = format!("existing ephemeral containers {} may not be removed\n", quote(name));
                errors.push(Error::forbidden(&path, detail));
            }
            Some(container) if container != existing => {
                let detail = format!("existing ephemeral containers {} may not be changed\n", quote(name));
                errors.push(Error::forbidden(&path, detail));
            }
            Some(_) => {}
        }
    }
}

/// A container that ended for good does not come back.
fn status(new: &Value, old: &Value, errors: &mut Errors) {
    let spec = get(new, "spec");
    let path = Path::root("status.containerStatuses");
    let statuses = list(get(new, "status"), "containerStatuses");
    for (i, status) in statuses.iter().enumerate() {
        let before = list(get(old, "status"), "containerStatuses")
            .iter()
            .find(|old| get(old, "name") == get(status, "name"));
        let Some(ended) = before
            .map(|before| at(before, "state.terminated"))
            .filter(|ended| !ended.is_null())
        else {
            continue;
        };
        let code = int(ended, "exitCode").unwrap_or(0);
        let restarts = container::restarts(spec, text(status, "name"), code);
        if !restarts && at(status, "state.terminated").is_null() {
            let detail = "may not be transitioned to non-terminated state";
            errors.push(Error::forbidden(&path.index(i).child("state"), detail));
        }
    }
}
