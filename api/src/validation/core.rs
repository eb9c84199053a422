//! Namespaces, limit ranges, quotas.

use serde_json::Value;

use super::Errors;
use super::read::{entries, get, list, text};
use crate::field::{Error, Path};
use crate::quantity::Quantity;

const SPEC: Path<'static> = Path::root("spec");

pub(super) fn namespace(object: &Value, errors: &mut Errors) {
    super::metadata::finalizers(
        &SPEC.child("finalizers"),
        list(get(object, "spec"), "finalizers"),
        errors,
    );
}

pub(super) fn namespace_subresource(name: &str, new: &Value, old: &Value, errors: &mut Errors) {
    if name == "finalize" {
        namespace(new, errors);
        return;
    }
    let deleted = !get(get(new, "metadata"), "deletionTimestamp").is_null();
    let phase = text(get(new, "status"), "phase");
    let path = Path::root("status");
    if deleted && phase != "Terminating" {
        let detail = "may only be 'Terminating' if `deletionTimestamp` is not empty";
        errors.push(Error::invalid(&path.child("Phase"), phase, detail));
    } else if !deleted && phase == "Terminating" && text(get(old, "status"), "phase") != phase {
        let detail = "may not be 'Terminating' if `deletionTimestamp` is empty";
        errors.push(Error::invalid(&path.child("Phase"), phase, detail));
    }
}

pub(super) fn limit_range(object: &Value, errors: &mut Errors) {
    let limits = SPEC.child("limits");
    let mut seen: Vec<&str> = Vec::new();
    for (i, limit) in list(get(object, "spec"), "limits").iter().enumerate() {
        let path = limits.index(i);
        let kind = text(limit, "type");
        if kind.is_empty() {
            errors.push(Error::required(&path.child("type"), ""));
        } else if seen.contains(&kind) {
            errors.push(Error::duplicate(&path.child("type"), kind));
        }
        seen.push(kind);
        ordered(&path, limit, "min", "max", "min", errors);
        ordered(&path, limit, "min", "default", "default", errors);
        ordered(&path, limit, "default", "max", "default", errors);
        ordered(&path, limit, "defaultRequest", "default", "defaultRequest", errors);
        ordered(&path, limit, "defaultRequest", "max", "defaultRequest", errors);
    }
}

/// For each resource that both lists name, the first may not be greater.
fn ordered(path: &Path<'_>, limit: &Value, low: &str, high: &str, blamed: &str, errors: &mut Errors) {
    for (name, value) in entries(limit, low) {
        let (Some(small), Some(large)) = (quantity(value), quantity(get(get(limit, high), name))) else {
            continue;
        };
        if small > large {
            let shown = get(get(limit, blamed), name);
            let detail = match (low, blamed) {
                ("min", "default") => format!("min value {small} is greater than default value {large}"),
                _ => format!("{low} value {small} is greater than {high} value {large}"),
            };
            errors.push(Error::invalid(&path.child(blamed).key(name), shown.clone(), detail));
        }
    }
}

pub(super) fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

pub(super) fn resource_quota(object: &Value, errors: &mut Errors) {
    let hard = SPEC.child("hard");
    for (name, value) in entries(get(object, "spec"), "hard") {
        let path = hard.key(name);
        match quantity(value) {
            Some(quantity) if quantity.as_milli() < 0 => {
                errors.push(Error::invalid(&path, value.clone(), super::read::NON_NEGATIVE));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::created;

    #[test]
    fn limit_ranges() {
        let range = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"limits": [
            {"type": "Container", "min": {"cpu": "2"}, "max": {"cpu": "1"}}, {"type": "Container"}]}});
        assert_eq!(
            created("", "LimitRange", &range),
            [
                "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
                "spec.limits[1].type: Duplicate value: \"Container\""
            ]
        );
    }
}
