//! The core group, but for what pods and services need.

use serde_json::Value;

use super::{Fields, absent, child, is_empty, items, make, pod, service, text, volume};

pub(super) fn apply(kind: &str, object: &mut Fields) {
    match kind {
        "Pod" => pod::apply(object),
        "PodTemplate" => pod::apply_template(object, "template"),
        "ReplicationController" => pod::replication_controller(object),
        "Service" => service::apply(object),
        "Endpoints" => endpoints(object),
        "Namespace" => namespace(object),
        "Secret" => text(object, "type", "Opaque"),
        "Node" => node(object),
        "PersistentVolume" => volume::persistent(object),
        "PersistentVolumeClaim" => {
            if let Some(spec) = child(object, "spec") {
                volume::claim_spec(spec);
            }
        }
        "LimitRange" => limit_range(object),
        _ => {}
    }
}

/// A token lives an hour unless the request says otherwise.
pub(super) fn token_request(object: &mut Fields) {
    if let Some(spec) = make(object, "spec") {
        absent(spec, "expirationSeconds", 3600);
    }
}

fn namespace(object: &mut Fields) {
    let Some(metadata) = child(object, "metadata") else {
        return;
    };
    let name = metadata
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    if name.is_empty() {
        return;
    }
    if let Some(labels) = make(metadata, "labels") {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
    }
}

fn node(object: &mut Fields) {
    let Some(status) = child(object, "status") else { return };
    if let Some(capacity) = status.get("capacity").filter(|capacity| !capacity.is_null()).cloned() {
        absent(status, "allocatable", capacity);
    }
}

fn endpoints(object: &mut Fields) {
    for subset in items(object, "subsets") {
        for port in items(subset, "ports") {
            text(port, "protocol", "TCP");
        }
    }
}

/// Of a container's limits each one left out follows from the next: default <- max, defaultRequest <- default, then min.
fn limit_range(object: &mut Fields) {
    let Some(spec) = child(object, "spec") else { return };
    for item in items(spec, "limits").filter(|item| super::is_text(item, "type", "Container")) {
        for (target, source) in [
            ("default", "max"),
            ("defaultRequest", "default"),
            ("defaultRequest", "min"),
        ] {
            let values = item.get(source).and_then(Value::as_object).cloned().unwrap_or_default();
            if values.is_empty() && is_empty(item, target) {
                continue;
            }
            if let Some(fields) = make(item, target) {
                for (name, quantity) in values {
                    fields.entry(name).or_insert(quantity);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::applied;

    #[test]
    fn namespaces_are_labelled() {
        let namespace = applied(
            "",
            "Namespace",
            json!({"metadata": {"name": "a", "labels": {"x": "y"}}}),
        );
        assert_eq!(
            namespace["metadata"]["labels"],
            json!({"x": "y", "kubernetes.io/metadata.name": "a"})
        );
    }

    #[test]
    fn secrets_are_opaque() {
        assert_eq!(applied("", "Secret", json!({}))["type"], "Opaque");
        assert_eq!(applied("", "Secret", json!({"type": "a/b"}))["type"], "a/b");
    }

    #[test]
    fn limit_ranges() {
        let range = json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}, {"type": "Pod", "max": {"cpu": "4"}}]}});
        assert_eq!(
            applied("", "LimitRange", range)["spec"]["limits"],
            json!([{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}, "default": {"cpu": "2"},
                    "defaultRequest": {"cpu": "2", "memory": "1Mi"}}, {"type": "Pod", "max": {"cpu": "4"}}])
        );
    }

    #[test]
    fn replication_controllers_select_their_template() {
        let rc = applied(
            "",
            "ReplicationController",
            json!({"metadata": {}, "spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": {}}}}),
        );
        assert_eq!(rc["spec"]["selector"], json!({"a": "b"}));
        assert_eq!(rc["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!(rc["spec"]["replicas"], 1);
    }
}
