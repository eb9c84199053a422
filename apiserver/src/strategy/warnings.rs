//! What is allowed but most likely a mistake, or on its way out: said in the `Warning` header, which kubectl prints.

use serde_json::Value;
use skiff_api::field::{Path, quote};
use skiff_api::quantity::Quantity;

use super::generic::{at, text_at};

const OLD_LABELS: &[(&str, &str)] = &[
    (
        "beta.kubernetes.io/arch",
        "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
    ),
    (
        "beta.kubernetes.io/os",
        "deprecated since v1.14; use \"kubernetes.io/os\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
];

/// Warnings for whatever pod specification the object holds: its own, its template's, its job's template's.
pub(super) fn of_pods(object: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    let places: &[&str] = match object.get("kind").and_then(Value::as_str) {
        Some("Pod") => &["spec"],
        _ => &["spec.template.spec", "spec.jobTemplate.spec.template.spec"],
    };
    for place in places {
        if let Some(spec) = at(object, place) {
            pod(&Path::root(place), spec, &mut warnings);
        }
    }
    warnings
}

fn pod(path: &Path<'_>, spec: &Value, warnings: &mut Vec<String>) {
    let selector = path.child("nodeSelector");
    for (label, advice) in OLD_LABELS {
        if spec["nodeSelector"].get(label).is_some() {
            warnings.push(format!("{}: {advice}", selector.key(label)));
        }
    }
    let secrets = path.child("imagePullSecrets");
    for (i, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        if text_at(secret, "name").is_empty() {
            warnings.push(format!("{}: invalid empty name \"\"", secrets.index(i).child("name")));
        }
    }
    if at(spec, "terminationGracePeriodSeconds")
        .and_then(Value::as_i64)
        .is_some_and(|seconds| seconds < 0)
    {
        let path = path.child("terminationGracePeriodSeconds");
        warnings.push(format!(
            "{path}: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    for key in ["initContainers", "containers"] {
        let root = path.child(key);
        for (i, item) in list(spec, key).iter().enumerate() {
            container(&root.index(i), item, warnings);
        }
    }
}

fn container(path: &Path<'_>, container: &Value, warnings: &mut Vec<String>) {
    let variables = list(container, "env");
    let env = path.child("env");
    for (i, variable) in variables.iter().enumerate() {
        let name = text_at(variable, "name");
        // A later one may build on the earlier: then both are meant.
        let refers = text_at(variable, "value").contains(&format!("$({name})"));
        if !refers && variables[..i].iter().any(|other| text_at(other, "name") == name) {
            let hidden = quote(&name);
            warnings.push(format!(
                "{}: hides previous definition of {hidden}, which may be dropped when using apply",
                env.index(i)
            ));
        }
    }
    let ports = list(container, "ports");
    let root = path.child("ports");
    let key = |port: &Value| ["containerPort", "protocol", "hostIP", "hostPort"].map(|key| text_at(port, key));
    for (i, port) in ports.iter().enumerate() {
        if let Some(first) = ports[..i].iter().position(|other| key(other) == key(port)) {
            warnings.push(format!(
                "{}: duplicate port definition with {}",
                root.index(i),
                root.index(first)
            ));
        }
    }
    fractions(&path.child("resources"), container, warnings);
}

/// `memory: 100m` is a tenth of a byte.
fn fractions(path: &Path<'_>, container: &Value, warnings: &mut Vec<String>) {
    for list in ["limits", "requests"] {
        let path = path.child(list);
        for name in ["ephemeral-storage", "memory"] {
            let text = text_at(&container["resources"][list], name);
            if text
                .parse::<Quantity>()
                .is_ok_and(|quantity| quantity.as_milli() % 1000 != 0)
            {
                let shown = quote(&text);
                warnings.push(format!(
                    "{}: fractional byte value {shown} is invalid, must be an integer",
                    path.key(name)
                ));
            }
        }
    }
}

/// Parts of a service that its type does not use.
pub(super) fn of_service(service: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    let external = text_at(service, "spec.type") == "ExternalName";
    if external && !list(&service["spec"], "externalIPs").is_empty() {
        warnings.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if !external && !text_at(service, "spec.externalName").is_empty() {
        warnings.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if text_at(service, "spec.clusterIP") == "None" && text_at(service, "spec.sessionAffinity") == "ClientIP" {
        warnings.push("spec.SessionAffinity is ignored for headless services".to_owned());
    }
    warnings
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn likely_mistakes() {
        let container = json!({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "B"}, {"name": "B", "value": "$(B)x"}],
            "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "UDP"}, {"containerPort": 80, "protocol": "TCP"}],
            "resources": {"limits": {"memory": "100m", "cpu": "100m"}}});
        let spec = json!({"containers": [container], "nodeSelector": {"beta.kubernetes.io/os": "linux"}, "terminationGracePeriodSeconds": -1});
        let expected = [
            "nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
            "terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1",
            "containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
        ];
        let pod = of_pods(&json!({"kind": "Pod", "spec": spec}));
        assert_eq!(pod[..3], expected.map(|text| format!("spec.{text}")));
        assert_eq!(
            pod[3],
            "spec.containers[0].ports[2]: duplicate port definition with spec.containers[0].ports[0]"
        );
        assert_eq!(
            pod[4],
            "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer"
        );
        let deployment = of_pods(&json!({"kind": "Deployment", "spec": {"template": {"spec": spec}}}));
        assert_eq!(deployment[0], format!("spec.template.spec.{}", expected[0]));
        assert_eq!(of_pods(&json!({"kind": "ConfigMap"})), [""; 0]);
    }

    #[test]
    fn services() {
        let service = json!({"spec": {"type": "ClusterIP", "clusterIP": "None", "sessionAffinity": "ClientIP", "externalName": "a"}});
        assert_eq!(of_service(&service).len(), 2);
    }
}
