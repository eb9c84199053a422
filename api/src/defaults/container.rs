//! Containers: messages, pull policy, ports, probes, hooks.

use serde_json::Value;

use super::{Fields, absent, child, descend, is_empty, items, number, text};

/// Defaults of one container, init container or ephemeral container.
pub(super) fn apply(container: &mut Fields) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = pull_policy(image);
    text(container, "imagePullPolicy", policy);
    text(container, "terminationMessagePath", "/dev/termination-log");
    text(container, "terminationMessagePolicy", "File");
    absent(container, "resources", Fields::new());
    for port in items(container, "ports") {
        text(port, "protocol", "TCP");
    }
    for env in items(container, "env") {
        if let Some(field) = descend(env, &["valueFrom", "fieldRef"]) {
            text(field, "apiVersion", "v1");
        }
        if let Some(file) = descend(env, &["valueFrom", "fileKeyRef"]) {
            absent(file, "optional", false);
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = child(container, key) {
            apply_probe(probe);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(get) = descend(container, &["lifecycle", hook, "httpGet"]) {
            apply_http_get(get);
        }
    }
}

/// `Always` for an image that may change under its name, else `IfNotPresent`.
pub(super) fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    // A colon before the last slash belongs to the registry's port.
    let name = image.rsplit('/').next().unwrap_or(image);
    match name.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn apply_probe(probe: &mut Fields) {
    number(probe, "timeoutSeconds", 1);
    number(probe, "periodSeconds", 10);
    number(probe, "successThreshold", 1);
    number(probe, "failureThreshold", 3);
    if let Some(get) = child(probe, "httpGet") {
        apply_http_get(get);
    }
    if let Some(grpc) = child(probe, "grpc") {
        absent(grpc, "service", "");
    }
}

fn apply_http_get(get: &mut Fields) {
    text(get, "path", "/");
    text(get, "scheme", "HTTP");
}

/// A limit without a request is the request too.
pub(super) fn requests_from_limits(holder: &mut Fields) {
    let Some(resources) = child(holder, "resources") else {
        return;
    };
    if is_empty(resources, "limits") {
        return;
    }
    let limits = resources
        .get("limits")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    if let Some(requests) = super::make(resources, "requests") {
        for (name, quantity) in limits {
            requests.entry(name).or_insert(quantity);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pull_policies() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("registry:5000/nginx", "Always"),
            ("registry:5000/a/nginx:v1", "IfNotPresent"),
            ("nginx@sha256:0123", "IfNotPresent"),
            ("nginx:latest@sha256:0123", "IfNotPresent"),
            ("", "Always"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn probes() {
        let mut container = json!({"name": "c", "image": "x:1", "readinessProbe": {"httpGet": {"port": 80}, "periodSeconds": 0},
            "lifecycle": {"preStop": {"httpGet": {"port": 1, "path": "/stop"}}}});
        apply(container.as_object_mut().unwrap());
        assert_eq!(
            container["readinessProbe"],
            json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
                   "successThreshold": 1, "failureThreshold": 3})
        );
        assert_eq!(
            container["lifecycle"]["preStop"]["httpGet"],
            json!({"port": 1, "path": "/stop", "scheme": "HTTP"})
        );
    }
}
