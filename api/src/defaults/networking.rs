//! Network policies, ingress classes, endpoint slices.

use serde_json::json;

use super::{Fields, absent, child, is_empty, items};

pub(super) fn apply(kind: &str, object: &mut Fields) {
    match kind {
        "EndpointSlice" => endpoint_slice(object),
        "NetworkPolicy" => network_policy(object),
        "IngressClass" => {
            if let Some(parameters) = super::descend(object, &["spec", "parameters"]) {
                absent(parameters, "scope", "Cluster");
            }
        }
        _ => {}
    }
}

fn endpoint_slice(object: &mut Fields) {
    for port in items(object, "ports") {
        absent(port, "name", "");
        absent(port, "protocol", "TCP");
    }
}

fn network_policy(object: &mut Fields) {
    let Some(spec) = child(object, "spec") else { return };
    for direction in ["ingress", "egress"] {
        for rule in items(spec, direction) {
            for port in items(rule, "ports") {
                absent(port, "protocol", "TCP");
            }
        }
    }
    if is_empty(spec, "policyTypes") {
        let egress = !is_empty(spec, "egress");
        spec.insert(
            "policyTypes".to_owned(),
            if egress {
                json!(["Ingress", "Egress"])
            } else {
                json!(["Ingress"])
            },
        );
    }
    absent(spec, "podSelector", Fields::new());
}

#[cfg(test)]
mod tests {
    use super::super::applied;
    use super::*;

    #[test]
    fn policy_types_follow_the_rules() {
        for (spec, types) in [
            (json!({}), json!(["Ingress"])),
            (json!({"egress": [{}]}), json!(["Ingress", "Egress"])),
            (json!({"policyTypes": ["Egress"]}), json!(["Egress"])),
        ] {
            assert_eq!(
                applied("networking.k8s.io", "NetworkPolicy", json!({"spec": spec}))["spec"]["policyTypes"],
                types
            );
        }
    }

    #[test]
    fn endpoint_ports() {
        let slice = applied("discovery.k8s.io", "EndpointSlice", json!({"ports": [{"port": 80}]}));
        assert_eq!(slice["ports"], json!([{"name": "", "protocol": "TCP", "port": 80}]));
    }
}
