//! Questions about rights.

use serde_json::Value;

use super::Errors;
use super::read::{get, has, is_empty, list, text};
use crate::field::{Error, Path};

const SPEC: Path<'static> = Path::root("spec");

/// Every mistake in a SubjectAccessReview, LocalSubjectAccessReview or SelfSubjectAccessReview.
pub fn validate_access_review(kind: &str, review: &Value) -> Vec<Error> {
    let mut errors = Errors::new();
    let spec = get(review, "spec");
    let (resource, other) = (SPEC.child("resourceAttributes"), SPEC.child("nonResourceAttributes"));
    let asked = || get(spec, "nonResourceAttributes").clone();
    match (has(spec, "resourceAttributes"), has(spec, "nonResourceAttributes")) {
        (true, true) => {
            let why = "cannot be specified in combination with resourceAttributes";
            errors.push(Error::invalid(&other, asked(), why));
        }
        (false, false) => {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            errors.push(Error::invalid(&resource, Value::Null, why));
        }
        _ => {}
    }
    for name in ["fieldSelector", "labelSelector"] {
        selector(
            &resource.child(name),
            get(get(spec, "resourceAttributes"), name),
            &mut errors,
        );
    }
    if kind != "SelfSubjectAccessReview" && text(spec, "user").is_empty() && is_empty(spec, "groups") {
        let why = "at least one of user or group must be specified";
        errors.push(Error::invalid(&SPEC.child("user"), "", why));
    }
    if kind == "LocalSubjectAccessReview" && has(spec, "nonResourceAttributes") {
        errors.push(Error::invalid(&other, asked(), "disallowed on this kind of request"));
    }
    errors
}

fn selector(path: &Path<'_>, selector: &Value, errors: &mut Errors) {
    if !selector.is_object() {
        return;
    }
    let (raw, requirements) = (text(selector, "rawSelector"), list(selector, "requirements"));
    match (raw.is_empty(), requirements.is_empty()) {
        (false, false) => {
            let why = "may not specified at the same time as requirements";
            errors.push(Error::invalid(&path.child("rawSelector"), raw, why));
        }
        (true, true) => {
            let why = format!("when {path} is specified, requirements or rawSelector is required");
            errors.push(Error::required(&path.child("requirements"), why));
        }
        _ => {}
    }
    let all = path.child("requirements");
    for (index, requirement) in requirements.iter().enumerate() {
        let path = all.index(index);
        if text(requirement, "key").is_empty() {
            errors.push(Error::required(&path.child("key"), "must be specified"));
        }
        let (values, none) = (path.child("values"), is_empty(requirement, "values"));
        match text(requirement, "operator") {
            "In" | "NotIn" if none => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(Error::required(&values, why));
            }
            "Exists" | "DoesNotExist" if !none => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(Error::forbidden(&values, why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(Error::invalid(
                &path.child("operator"),
                other,
                "not a valid selector operator",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_thing_is_asked_about_somebody() {
        let pods = || json!({"verb": "list", "resource": "pods"});
        let path = || json!({"verb": "get", "path": "/metrics"});
        let with = |selector: Value| {
            let mut pods = pods();
            pods["fieldSelector"] = selector;
            json!({"user": "joe", "resourceAttributes": pods})
        };
        let (others, local, own) = (
            "SubjectAccessReview",
            "LocalSubjectAccessReview",
            "SelfSubjectAccessReview",
        );
        for (kind, spec, expected) in [
            (others, json!({"user": "joe", "resourceAttributes": pods()}), ""),
            (others, json!({"groups": ["dev"], "nonResourceAttributes": path()}), ""),
            (own, json!({"resourceAttributes": pods()}), ""),
            (
                others,
                json!({"user": "joe"}),
                "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ),
            (own, json!({}), "exactly one of"),
            (
                own,
                json!({"resourceAttributes": pods(), "nonResourceAttributes": path()}),
                "cannot be specified in combination with resourceAttributes",
            ),
            (
                others,
                json!({"resourceAttributes": pods(), "groups": []}),
                "spec.user: Invalid value: \"\": at least one of user or group must be specified",
            ),
            (
                local,
                json!({"user": "joe", "nonResourceAttributes": path()}),
                "disallowed on this kind of request",
            ),
            (others, with(json!({"rawSelector": "a=b"})), ""),
            (
                others,
                with(json!({"requirements": [{"key": "a", "operator": "In", "values": ["b"]}]})),
                "",
            ),
            (others, with(json!({})), "requirements or rawSelector is required"),
            (
                others,
                with(json!({"rawSelector": "a=b", "requirements": [{"key": "a", "operator": "Exists"}]})),
                "at the same time as requirements",
            ),
            (
                others,
                with(json!({"requirements": [{"key": "a", "operator": "In"}]})),
                "spec.resourceAttributes.fieldSelector.requirements[0].values: Required value",
            ),
            (
                others,
                with(json!({"requirements": [{"key": "a", "operator": "Near", "values": ["b"]}]})),
                "not a valid selector operator",
            ),
        ] {
            let found = validate_access_review(kind, &json!({"spec": spec}));
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            match expected {
                "" => assert!(found.is_empty(), "{spec}: {found:?}"),
                _ => assert!(found.len() == 1 && found[0].contains(expected), "{spec}: {found:?}"),
            }
        }
    }
}
