//! Pods, and the templates from which controllers make them.

use serde_json::Value;

use super::{Fields, absent, child, container, is_empty, items, text, volume};

const CONTAINERS: [&str; 2] = ["containers", "initContainers"];

/// A pod itself: some defaults must not show in templates, where they would make every controller's template differ.
pub(super) fn apply(object: &mut Fields) {
    let Some(spec) = child(object, "spec") else { return };
    apply_spec(spec);
    absent(spec, "enableServiceLinks", true);
    for key in CONTAINERS {
        for container in items(spec, key) {
            container::requests_from_limits(container);
        }
    }
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        host_ports(spec);
    }
}

/// The template under `key`.
pub(super) fn apply_template(parent: &mut Fields, key: &str) {
    if let Some(spec) = super::descend(parent, &[key, "spec"]) {
        apply_spec(spec);
    }
}

fn apply_spec(spec: &mut Fields) {
    text(spec, "restartPolicy", "Always");
    text(spec, "dnsPolicy", "ClusterFirst");
    text(spec, "schedulerName", "default-scheduler");
    absent(spec, "terminationGracePeriodSeconds", 30);
    absent(spec, "securityContext", Fields::new());
    service_account(spec);
    for key in ["containers", "initContainers", "ephemeralContainers"] {
        for item in items(spec, key) {
            container::apply(item);
        }
    }
    for item in items(spec, "volumes") {
        volume::apply(item);
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are kept the same.
fn service_account(spec: &mut Fields) {
    let current = spec
        .get("serviceAccountName")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let old = spec.get("serviceAccount").and_then(Value::as_str).unwrap_or_default();
    let name = if current.is_empty() { old } else { current }.to_owned();
    if !name.is_empty() {
        spec.insert("serviceAccountName".to_owned(), name.clone().into());
        spec.insert("serviceAccount".to_owned(), name.into());
    }
}

/// On the host's network a container's port is the host's port.
fn host_ports(spec: &mut Fields) {
    for key in CONTAINERS {
        for container in items(spec, key) {
            for port in items(container, "ports") {
                let number = port.get("containerPort").and_then(Value::as_i64).unwrap_or(0);
                super::number(port, "hostPort", number);
            }
        }
    }
}

/// A replication controller: selector and labels come from the template.
pub(super) fn replication_controller(object: &mut Fields) {
    let labels = object
        .get("spec")
        .and_then(|spec| spec.pointer("/template/metadata/labels"))
        .and_then(Value::as_object)
        .filter(|labels| !labels.is_empty())
        .cloned();
    if let (Some(labels), Some(metadata)) = (&labels, child(object, "metadata"))
        && is_empty(metadata, "labels")
    {
        metadata.insert("labels".to_owned(), labels.clone().into());
    }
    let Some(spec) = child(object, "spec") else { return };
    if let Some(labels) = labels.filter(|_| is_empty(spec, "selector")) {
        spec.insert("selector".to_owned(), labels.into());
    }
    absent(spec, "replicas", 1);
    apply_template(spec, "template");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::applied;

    #[test]
    fn smallest_pod() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "busybox"}]}});
        assert_eq!(
            applied("", "Pod", pod)["spec"],
            json!({
                "containers": [{"name": "c", "image": "busybox", "imagePullPolicy": "Always", "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
                "terminationGracePeriodSeconds": 30, "securityContext": {}, "enableServiceLinks": true,
            })
        );
    }

    #[test]
    fn explicit_values_stay() {
        let spec = json!({"containers": [], "restartPolicy": "Never", "dnsPolicy": "None", "schedulerName": "mine",
            "terminationGracePeriodSeconds": 0, "securityContext": {"runAsUser": 0}, "enableServiceLinks": false});
        assert_eq!(applied("", "Pod", json!({"spec": spec}))["spec"], spec);
    }

    #[test]
    fn limits_become_requests_and_host_ports() {
        let pod = json!({"spec": {"hostNetwork": true, "containers": [{"image": "a:1", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}}]}});
        let pod = applied("", "Pod", pod);
        let container = &pod["spec"]["containers"][0];
        assert_eq!(
            container["resources"]["requests"],
            json!({"cpu": "500m", "memory": "1Gi"})
        );
        assert_eq!(
            container["ports"],
            json!([{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}])
        );
    }

    #[test]
    fn templates_keep_pod_only_defaults_out() {
        let deployment = json!({"spec": {"template": {"spec": {"containers": [{"image": "a:1", "resources": {"limits": {"cpu": "1"}}}]}}}});
        let spec = &applied("apps", "Deployment", deployment)["spec"]["template"]["spec"];
        assert!(spec.get("enableServiceLinks").is_none());
        assert!(spec["containers"][0]["resources"].get("requests").is_none());
    }

    #[test]
    fn old_service_account_name() {
        let spec = &applied("", "Pod", json!({"spec": {"serviceAccount": "builder"}}))["spec"];
        assert_eq!(
            (&spec["serviceAccountName"], &spec["serviceAccount"]),
            (&json!("builder"), &json!("builder"))
        );
    }
}
