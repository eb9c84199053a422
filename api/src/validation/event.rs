//! Events of both groups.

use serde_json::Value;

use super::Errors;
use super::read::{get, required, text};
use crate::field::{Error, Path};

pub(super) fn event(object: &Value, errors: &mut Errors) {
    let namespace = text(get(object, "metadata"), "namespace");
    for key in ["involvedObject", "regarding"] {
        let reference = get(object, key);
        if reference.is_null() {
            continue;
        }
        let path = Path::root(key);
        match text(reference, "namespace") {
            // What belongs to no namespace is reported in the default one.
            "" if matches!(namespace, "default" | "kube-system") => {}
            "" => {
                let detail = "does not match event.namespace";
                errors.push(Error::invalid(&path.child("namespace"), "", detail));
            }
            of_object if of_object == namespace => {}
            of_object => {
                let detail = "does not match event.namespace";
                errors.push(Error::invalid(&path.child("namespace"), of_object, detail));
            }
        }
    }
    // Only what clients of the new API create is held to its rules: it has an event time.
    if get(object, "eventTime").is_null() {
        return;
    }
    for (keys, limit) in [
        (["reportingController", "reportingComponent"], 128),
        (["action", "action"], 128),
        (["reason", "reason"], 128),
    ] {
        let value = keys
            .iter()
            .map(|key| text(object, key))
            .find(|value| !value.is_empty())
            .unwrap_or_default();
        if value.is_empty() {
            required(&Path::OBJECT, keys[0], object, errors);
        } else if value.len() > limit {
            let detail = format!("can have at most {limit} characters");
            errors.push(Error::invalid(&Path::root(keys[0]), value, detail));
        }
    }
    if !matches!(text(object, "type"), "Normal" | "Warning") {
        errors.push(Error::invalid(
            &Path::root("type"),
            text(object, "type"),
            "has invalid value: ",
        ));
    }
    let note = [text(object, "note"), text(object, "message")].concat();
    if note.len() > 1024 {
        errors.push(Error::invalid(
            &Path::root("message"),
            note,
            "can have at most 1024 characters",
        ));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::created;

    #[test]
    fn namespaces_match() {
        let event = |namespace: &str, of: &str| json!({"metadata": {"name": "a.1", "namespace": namespace}, "involvedObject": {"kind": "Pod", "namespace": of}});
        assert_eq!(created("", "Event", &event("a", "a")), [""; 0]);
        assert_eq!(created("", "Event", &event("default", "")), [""; 0]);
        assert_eq!(
            created("", "Event", &event("a", "b")),
            ["involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"]
        );
    }
}
