//! Services.

use serde_json::{Value, json};

use super::{Fields, absent, child, is_empty, is_text, items, make, text};

pub(super) fn apply(object: &mut Fields) {
    let Some(spec) = child(object, "spec") else { return };
    text(spec, "type", "ClusterIP");
    affinity(spec);
    for port in items(spec, "ports") {
        text(port, "protocol", "TCP");
        let number = port.get("port").cloned().unwrap_or(Value::Null);
        if port
            .get("targetPort")
            .is_none_or(|target| target.is_null() || *target == 0 || *target == "")
            && !number.is_null()
        {
            port.insert("targetPort".to_owned(), number);
        }
    }
    let external_name = is_text(spec, "type", "ExternalName");
    let load_balancer = is_text(spec, "type", "LoadBalancer");
    let exposed =
        load_balancer || is_text(spec, "type", "NodePort") || (!external_name && !is_empty(spec, "externalIPs"));
    if exposed {
        text(spec, "externalTrafficPolicy", "Cluster");
    }
    if load_balancer {
        absent(spec, "allocateLoadBalancerNodePorts", true);
    }
    if !external_name {
        absent(spec, "internalTrafficPolicy", "Cluster");
        addresses(spec);
    }
}

fn affinity(spec: &mut Fields) {
    text(spec, "sessionAffinity", "None");
    if is_text(spec, "sessionAffinity", "None") {
        spec.remove("sessionAffinityConfig");
    } else if is_text(spec, "sessionAffinity", "ClientIP")
        && let Some(client) = make(spec, "sessionAffinityConfig").and_then(|config| make(config, "clientIP"))
    {
        absent(client, "timeoutSeconds", 10800);
    }
}

/// `clusterIP` and `clusterIPs` mirror each other; families follow from given addresses, or are those of a single-stack IPv4 cluster.
/// A headless service without selector may have endpoints of any family.
fn addresses(spec: &mut Fields) {
    let single = spec
        .get("clusterIP")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    if !single.is_empty() && is_empty(spec, "clusterIPs") {
        spec.insert("clusterIPs".to_owned(), json!([single]));
    }
    let headless = single == "None";
    if headless && is_empty(spec, "selector") && is_empty(spec, "ipFamilies") {
        absent(spec, "ipFamilyPolicy", "RequireDualStack");
        if is_text(spec, "ipFamilyPolicy", "RequireDualStack") {
            spec.insert("ipFamilies".to_owned(), json!(["IPv4", "IPv6"]));
            return;
        }
    }
    absent(spec, "ipFamilyPolicy", "SingleStack");
    if is_empty(spec, "ipFamilies") {
        let family = if single.contains(':') { "IPv6" } else { "IPv4" };
        spec.insert("ipFamilies".to_owned(), json!([family]));
    }
}

#[cfg(test)]
mod tests {
    use super::super::applied;
    use super::*;

    fn spec(spec: Value) -> Value {
        applied("", "Service", json!({"spec": spec}))["spec"].clone()
    }

    #[test]
    fn cluster_ip() {
        assert_eq!(
            spec(json!({"ports": [{"port": 80}, {"port": 53, "protocol": "UDP", "targetPort": "dns"}]})),
            json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}, {"port": 53, "protocol": "UDP", "targetPort": "dns"}]})
        );
    }

    #[test]
    fn other_types() {
        let node_port = spec(json!({"type": "NodePort"}));
        assert_eq!(node_port["externalTrafficPolicy"], "Cluster");
        assert!(node_port.get("allocateLoadBalancerNodePorts").is_none());
        assert_eq!(
            spec(json!({"type": "LoadBalancer"}))["allocateLoadBalancerNodePorts"],
            true
        );
        assert_eq!(
            spec(json!({"type": "ExternalName", "externalName": "a.b"})),
            json!({"type": "ExternalName", "externalName": "a.b", "sessionAffinity": "None"})
        );
        let headless = spec(json!({"clusterIP": "None", "selector": {"a": "b"}}));
        assert_eq!(
            (&headless["clusterIPs"], &headless["ipFamilyPolicy"]),
            (&json!(["None"]), &json!("SingleStack"))
        );
        assert_eq!(
            spec(json!({"clusterIP": "None"}))["ipFamilies"],
            json!(["IPv4", "IPv6"])
        );
    }

    #[test]
    fn sticky_sessions() {
        let sticky = spec(json!({"sessionAffinity": "ClientIP"}));
        assert_eq!(
            sticky["sessionAffinityConfig"],
            json!({"clientIP": {"timeoutSeconds": 10800}})
        );
    }
}
