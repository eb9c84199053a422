//! Services.

use serde_json::{Value, json};

use super::Errors;
use super::read::{
    NOT_AN_IP, cidr, complain, get, has, int, ip, list, non_special_ip, one_of, port_number, port_or_name,
    required_name, text,
};
use super::selector;
use crate::field::{Error, Path};
use crate::names;

const SPEC: Path<'static> = Path::root("spec");
const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const MAX_AFFINITY_SECONDS: i64 = 86400;

pub(super) fn service(object: &Value, errors: &mut Errors) {
    let spec = get(object, "spec");
    let kind = text(spec, "type");
    let headless = list(spec, "clusterIPs").first().is_some_and(|ip| ip == "None") || text(spec, "clusterIP") == "None";
    if list(spec, "ports").is_empty() && !headless && kind != "ExternalName" {
        errors.push(Error::required(&SPEC.child("ports"), ""));
    }
    if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        let path = SPEC.child("clusterIPs");
        let detail = format!("may not be set to 'None' for {kind} services");
        errors.push(Error::invalid(&path.index(0), "None", detail));
    }
    if kind == "ExternalName" {
        external_name(spec, errors);
    }
    ports(spec, kind, errors);
    selector::labels(&SPEC.child("selector"), get(spec, "selector"), errors);
    one_of(&SPEC, "sessionAffinity", spec, &["ClientIP", "None"], true, errors);
    if text(spec, "sessionAffinity") == "ClientIP" {
        affinity(spec, errors);
    }
    addresses(spec, kind, errors);
    one_of(&SPEC, "type", spec, &TYPES, true, errors);
    policies(spec, kind, errors);
}

fn external_name(spec: &Value, errors: &mut Errors) {
    if !list(spec, "clusterIPs").is_empty() || !text(spec, "clusterIP").is_empty() {
        errors.push(Error::forbidden(
            &SPEC.child("clusterIPs"),
            "may not be set for ExternalName services",
        ));
    }
    let path = SPEC.child("externalName");
    match text(spec, "externalName").trim_end_matches('.') {
        "" => errors.push(Error::required(&path, "")),
        name => complain(&path, name, names::dns1123_subdomain(name), errors),
    }
}

fn affinity(spec: &Value, errors: &mut Errors) {
    let client = get(get(spec, "sessionAffinityConfig"), "clientIP");
    let path = SPEC.child("sessionAffinityConfig.clientIP");
    match int(client, "timeoutSeconds") {
        None => errors.push(Error::required(
            &path,
            "should not be empty when session affinity is ClientIP",
        )),
        Some(seconds) if seconds <= 0 || seconds > MAX_AFFINITY_SECONDS => {
            let detail = format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
            errors.push(Error::invalid(&path.child("timeoutSeconds"), seconds, detail));
        }
        Some(_) => {}
    }
}

fn ports(spec: &Value, kind: &str, errors: &mut Errors) {
    let ports = list(spec, "ports");
    let root = SPEC.child("ports");
    let mut names: Vec<&str> = Vec::new();
    let mut seen: Vec<(&str, i64)> = Vec::new();
    let mut node_ports: Vec<(&str, i64)> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let path = root.index(i);
        one_port(&path, port, ports.len() > 1, errors);
        let name = text(port, "name");
        if !name.is_empty() && names.contains(&name) {
            errors.push(Error::duplicate(&path.child("name"), name));
        }
        names.push(name);
        let protocol = text(port, "protocol");
        let number = int(port, "port").unwrap_or(0);
        if seen.contains(&(protocol, number)) {
            errors.push(Error::duplicate(&path, json!({"protocol": protocol, "port": number})));
        }
        seen.push((protocol, number));
        let Some(node_port) = int(port, "nodePort").filter(|number| *number != 0) else {
            continue;
        };
        let path = path.child("nodePort");
        if kind == "ClusterIP" {
            errors.push(Error::forbidden(&path, "may not be used when `type` is 'ClusterIP'"));
        } else if node_ports.contains(&(protocol, node_port)) {
            errors.push(Error::duplicate(&path, node_port));
        }
        node_ports.push((protocol, node_port));
    }
}

fn one_port(path: &Path<'_>, port: &Value, needs_name: bool, errors: &mut Errors) {
    match text(port, "name") {
        "" if needs_name => errors.push(Error::required(&path.child("name"), "")),
        "" => {}
        _ => required_name(path, "name", port, names::dns1123_label, errors),
    }
    port_number(&path.child("port"), int(port, "port").unwrap_or(0), errors);
    one_of(path, "protocol", port, &["SCTP", "TCP", "UDP"], true, errors);
    port_or_name(&path.child("targetPort"), get(port, "targetPort"), errors);
    let protocol = text(port, "appProtocol");
    if !protocol.is_empty() {
        complain(
            &path.child("appProtocol"),
            protocol,
            names::qualified_name(protocol),
            errors,
        );
    }
}

fn addresses(spec: &Value, kind: &str, errors: &mut Errors) {
    let external = SPEC.child("externalIPs");
    for (i, address) in list(spec, "externalIPs").iter().enumerate() {
        let (path, address) = (external.index(i), address.as_str().unwrap_or_default());
        if let Some(ip) = ip(&path, address, errors) {
            non_special_ip(&path, address, ip, errors);
        }
    }
    let ranges = SPEC.child("loadBalancerSourceRanges");
    for (i, block) in list(spec, "loadBalancerSourceRanges").iter().enumerate() {
        cidr(&ranges.index(i), block.as_str().unwrap_or_default().trim(), errors);
    }
    if kind == "ExternalName" {
        return;
    }
    let (single, many) = (text(spec, "clusterIP"), list(spec, "clusterIPs"));
    let path = SPEC.child("clusterIPs");
    if let Some(first) = many.first().and_then(Value::as_str)
        && first != single
        && !single.is_empty()
    {
        errors.push(Error::invalid(
            &path,
            many.to_vec(),
            "first value must match `clusterIP`",
        ));
    }
    for (i, address) in many.iter().enumerate() {
        let address = address.as_str().unwrap_or_default();
        if (address != "None" || i > 0) && address.parse::<std::net::IpAddr>().is_err() {
            errors.push(Error::invalid(&path.index(i), address, NOT_AN_IP));
        }
    }
    if many.len() > 2 {
        errors.push(Error::invalid(&path, many.to_vec(), "may only hold up to 2 values"));
    }
    let policies = ["SingleStack", "PreferDualStack", "RequireDualStack"];
    one_of(&SPEC, "ipFamilyPolicy", spec, &policies, false, errors);
    let families = SPEC.child("ipFamilies");
    for (i, family) in list(spec, "ipFamilies").iter().enumerate() {
        let family = family.as_str().unwrap_or_default();
        if !matches!(family, "IPv4" | "IPv6") {
            errors.push(Error::not_supported(&families.index(i), family, &["IPv4", "IPv6"]));
        }
    }
}

fn policies(spec: &Value, kind: &str, errors: &mut Errors) {
    let values = ["Cluster", "Local"];
    one_of(&SPEC, "internalTrafficPolicy", spec, &values, false, errors);
    if has(spec, "externalTrafficPolicy") {
        let reachable = matches!(kind, "NodePort" | "LoadBalancer")
            || (kind == "ClusterIP" && !list(spec, "externalIPs").is_empty());
        if reachable {
            one_of(&SPEC, "externalTrafficPolicy", spec, &values, false, errors);
        } else {
            let detail = "may only be set for externally-accessible services";
            errors.push(Error::invalid(
                &SPEC.child("externalTrafficPolicy"),
                text(spec, "externalTrafficPolicy"),
                detail,
            ));
        }
    }
    if kind != "LoadBalancer" {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if has(spec, key) {
                errors.push(Error::forbidden(
                    &SPEC.child(key),
                    "may only be used when `type` is 'LoadBalancer'",
                ));
            }
        }
    }
}

pub(super) fn update(new: &Value, old: &Value, errors: &mut Errors) {
    let (spec, before) = (get(new, "spec"), get(old, "spec"));
    if text(spec, "type") == "ExternalName" || text(before, "type") == "ExternalName" {
        return;
    }
    let (ips, old_ips) = (list(spec, "clusterIPs"), list(before, "clusterIPs"));
    if let (Some(ip), Some(old_ip)) = (ips.first(), old_ips.first())
        && ip != old_ip
    {
        let path = SPEC.child("clusterIPs");
        errors.push(Error::invalid(&path.index(0), ips.to_vec(), "may not change once set"));
    }
    let (families, old_families) = (list(spec, "ipFamilies"), list(before, "ipFamilies"));
    if let (Some(family), Some(old_family)) = (families.first(), old_families.first())
        && family != old_family
    {
        let path = SPEC.child("ipFamilies");
        errors.push(Error::invalid(
            &path.index(0),
            families.to_vec(),
            "may not change once set",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{created, updated};
    use super::*;

    fn service(spec: Value) -> Value {
        let mut service = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec});
        crate::defaults::apply("", "v1", "Service", &mut service);
        service
    }

    #[test]
    fn services() {
        for (spec, messages) in [
            (json!({"ports": [{"port": 80}]}), vec![]),
            (json!({}), vec!["spec.ports: Required value"]),
            (json!({"clusterIP": "None"}), vec![]),
            (
                json!({"ports": [{"port": 70000}]}),
                vec![
                    "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
                    "spec.ports[0].targetPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                ],
            ),
            (
                json!({"ports": [{"port": 80}, {"port": 81, "name": "b"}]}),
                vec!["spec.ports[0].name: Required value"],
            ),
            (
                json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}),
                vec!["spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}"],
            ),
            (
                json!({"type": "Internal", "ports": [{"port": 80}]}),
                vec![
                    "spec.type: Unsupported value: \"Internal\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
                ],
            ),
            (
                json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 80}]}),
                vec!["spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services"],
            ),
            (
                json!({"ports": [{"port": 80, "nodePort": 30000}]}),
                vec!["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
            ),
            (
                json!({"type": "ExternalName"}),
                vec!["spec.externalName: Required value"],
            ),
            (
                json!({"ports": [{"port": 80}], "externalIPs": ["127.0.0.1"]}),
                vec![
                    "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                ],
            ),
        ] {
            assert_eq!(created("", "Service", &service(spec.clone())), messages, "{spec}");
        }
    }

    #[test]
    fn names_are_stricter() {
        let mut bad = service(json!({"ports": [{"port": 80}]}));
        bad["metadata"]["name"] = "1web".into();
        assert!(
            created("", "Service", &bad)[0]
                .starts_with("metadata.name: Invalid value: \"1web\": a DNS-1035 label must")
        );
    }

    #[test]
    fn addresses_stay() {
        let old = service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
        let new = service(json!({"clusterIP": "10.96.0.2", "ports": [{"port": 80}]}));
        assert_eq!(
            updated("", "Service", &new, &old),
            ["spec.clusterIPs[0]: Invalid value: [\"10.96.0.2\"]: may not change once set"]
        );
    }
}
