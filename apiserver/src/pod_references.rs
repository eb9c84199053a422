//! Which objects of its namespace a pod names.

use serde_json::Value;

/// A kind of object that a pod may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Referenced {
    /// Environment, volumes, pull secrets.
    Secret,
    /// Environment and volumes.
    ConfigMap,
    /// Volumes.
    Claim,
    /// Who the pod acts as.
    ServiceAccount,
}

/// Whether a pod names an object of its namespace.
pub(crate) fn refers(pod: &Value, kind: Referenced, name: &str) -> bool {
    let mut found = false;
    visit(pod, &mut |visited, named| found |= visited == kind && named == name);
    found
}

/// Whether a pod names any object of a kind.
pub(crate) fn refers_to_any(pod: &Value, kind: Referenced) -> bool {
    let mut found = false;
    visit(pod, &mut |visited, _| found |= visited == kind);
    found
}

/// The names of all objects of a kind that a pod names.
pub(crate) fn names(pod: &Value, kind: Referenced) -> Vec<String> {
    let mut names = Vec::new();
    visit(pod, &mut |visited, named| {
        if visited == kind {
            names.push(named.to_owned());
        }
    });
    names
}

type See<'a> = &'a mut dyn FnMut(Referenced, &str);

fn visit(pod: &Value, see: See<'_>) {
    let spec = &pod["spec"];
    name(spec, "serviceAccountName", Referenced::ServiceAccount, see);
    for secret in list(spec, "imagePullSecrets") {
        name(secret, "name", Referenced::Secret, see);
    }
    for containers in ["initContainers", "containers", "ephemeralContainers"] {
        for container in list(spec, containers) {
            environment(container, see);
        }
    }
    for volume in list(spec, "volumes") {
        self::volume(pod, volume, see);
    }
}

fn environment(container: &Value, see: See<'_>) {
    for variable in list(container, "env") {
        let from = &variable["valueFrom"];
        name(&from["secretKeyRef"], "name", Referenced::Secret, see);
        name(&from["configMapKeyRef"], "name", Referenced::ConfigMap, see);
    }
    for source in list(container, "envFrom") {
        name(&source["secretRef"], "name", Referenced::Secret, see);
        name(&source["configMapRef"], "name", Referenced::ConfigMap, see);
    }
}

fn volume(pod: &Value, volume: &Value, see: See<'_>) {
    name(&volume["secret"], "secretName", Referenced::Secret, see);
    name(&volume["configMap"], "name", Referenced::ConfigMap, see);
    name(&volume["persistentVolumeClaim"], "claimName", Referenced::Claim, see);
    if volume["ephemeral"].is_object() {
        // Its claim is made for it, under a name made of both.
        let [pod, volume] = [&pod["metadata"], volume].map(|named| named["name"].as_str().unwrap_or_default());
        see(Referenced::Claim, &format!("{pod}-{volume}"));
    }
    for source in list(&volume["projected"], "sources") {
        name(&source["secret"], "name", Referenced::Secret, see);
        name(&source["configMap"], "name", Referenced::ConfigMap, see);
    }
    for driver in ["cephfs", "flexVolume", "iscsi", "rbd", "scaleIO", "storageos"] {
        name(&volume[driver]["secretRef"], "name", Referenced::Secret, see);
    }
    name(&volume["azureFile"], "secretName", Referenced::Secret, see);
    name(&volume["csi"]["nodePublishSecretRef"], "name", Referenced::Secret, see);
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn name(value: &Value, key: &str, kind: Referenced, see: See<'_>) {
    if let Some(name) = value[key].as_str().filter(|name| !name.is_empty()) {
        see(kind, name);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Referenced, names, refers, refers_to_any};

    fn spec(spec: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": spec})
    }

    #[test]
    fn every_place_of_a_name_is_seen() {
        use Referenced::{Claim, ConfigMap, Secret, ServiceAccount};
        let volumes = |volume: Value| spec(json!({"volumes": [volume]}));
        let table = [
            (spec(json!({"serviceAccountName": "x"})), ServiceAccount),
            (spec(json!({"imagePullSecrets": [{"name": "x"}]})), Secret),
            (
                spec(json!({"containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "x"}}}]}]})),
                Secret,
            ),
            (
                spec(json!({"initContainers": [{"env": [{"valueFrom": {"configMapKeyRef": {"name": "x"}}}]}]})),
                ConfigMap,
            ),
            (
                spec(json!({"ephemeralContainers": [{"envFrom": [{"secretRef": {"name": "x"}}]}]})),
                Secret,
            ),
            (
                spec(json!({"containers": [{"envFrom": [{"configMapRef": {"name": "x"}}]}]})),
                ConfigMap,
            ),
            (volumes(json!({"secret": {"secretName": "x"}})), Secret),
            (volumes(json!({"configMap": {"name": "x"}})), ConfigMap),
            (volumes(json!({"persistentVolumeClaim": {"claimName": "x"}})), Claim),
            (
                volumes(json!({"projected": {"sources": [{"secret": {"name": "x"}}]}})),
                Secret,
            ),
            (
                volumes(json!({"projected": {"sources": [{"configMap": {"name": "x"}}]}})),
                ConfigMap,
            ),
            (volumes(json!({"csi": {"nodePublishSecretRef": {"name": "x"}}})), Secret),
        ];
        for (pod, kind) in table {
            assert!(refers(&pod, kind, "x"), "{kind:?} in {pod}");
            assert!(!refers(&pod, kind, "y"), "{kind:?} in {pod}");
            for other in [Secret, ConfigMap, Claim, ServiceAccount] {
                assert_eq!(refers_to_any(&pod, other), other == kind, "{other:?} in {pod}");
            }
        }
        let ephemeral = volumes(json!({"name": "v", "ephemeral": {}}));
        assert!(refers(&ephemeral, Claim, "p-v"));
        assert_eq!(names(&ephemeral, Claim), ["p-v"]);
        assert!(!refers_to_any(&json!({}), Secret));
    }
}
