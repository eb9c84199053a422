//! Services: the cluster IP is the server's to give; an update may leave it out.

use serde_json::Value;
use skiff_api::field;

use super::generic::{self, Status, at, keep, keep_all_but_status};
use super::{Context, Strategy, warnings};

/// See the module. The registry gives addresses and node ports between `prepare_*` and validation.
#[derive(Debug)]
pub(super) struct Service;

impl Strategy for Service {
    fn prepare_create(&self, object: &mut Value, _context: &Context<'_>) {
        object["status"] = serde_json::json!({"loadBalancer": {}});
        mirror_cluster_ip(object);
        drop_foreign_fields(object);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, subresource: Option<&str>) {
        if subresource == Some("status") {
            keep_all_but_status(new, old, Status::Plain);
            return;
        }
        keep(new, old, "status");
        carry_addresses(new, old);
        carry_node_ports(new, old);
        mirror_cluster_ip(new);
        drop_foreign_fields(new);
    }

    fn validate_create(&self, object: &Value) -> Vec<field::Error> {
        generic::validate_create(object)
    }

    fn validate_update(&self, new: &Value, old: &Value, subresource: Option<&str>) -> Vec<field::Error> {
        generic::validate_update(new, old, subresource)
    }

    fn fields(&self) -> &'static [&'static str] {
        &["spec.clusterIP", "spec.type"]
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        warnings::of_service(object)
    }
}

fn kind(service: &Value) -> String {
    generic::text_at(service, "spec.type")
}

/// `clusterIP` and the first of `clusterIPs` are one thing under two names.
fn mirror_cluster_ip(service: &mut Value) {
    let single = generic::text_at(service, "spec.clusterIP");
    let many = at(service, "spec.clusterIPs")
        .and_then(Value::as_array)
        .is_some_and(|ips| !ips.is_empty());
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    if !single.is_empty() && !many {
        spec.insert("clusterIPs".to_owned(), vec![single].into());
    }
}

/// What an update leaves out comes back, as long as the service keeps a kind that has it.
fn carry_addresses(new: &mut Value, old: &Value) {
    let external = |service: &Value| kind(service) == "ExternalName";
    if external(new) || external(old) {
        return;
    }
    let same_single = {
        let ip = generic::text_at(new, "spec.clusterIP");
        ip.is_empty() || ip == generic::text_at(old, "spec.clusterIP")
    };
    for key in [
        "clusterIP",
        "clusterIPs",
        "ipFamilies",
        "ipFamilyPolicy",
        "healthCheckNodePort",
    ] {
        let path = format!("spec.{key}");
        let absent = at(new, &path).is_none_or(|value| value == "" || value == 0);
        if !absent || (key != "healthCheckNodePort" && !same_single) {
            continue;
        }
        if key == "healthCheckNodePort" && !needs_health_check_port(new) {
            continue;
        }
        if let (Some(value), Some(spec)) = (
            at(old, &path).cloned(),
            new.get_mut("spec").and_then(Value::as_object_mut),
        ) {
            spec.insert(key.to_owned(), value);
        }
    }
}

/// Node ports that the update leaves out stay with the port of the same protocol and number.
fn carry_node_ports(new: &mut Value, old: &Value) {
    let exposed = |service: &Value| matches!(kind(service).as_str(), "NodePort" | "LoadBalancer");
    if !exposed(new) || !exposed(old) {
        return;
    }
    let old_ports: Vec<Value> = at(old, "spec.ports")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let key = |port: &Value| {
        (
            generic::text_at(port, "protocol"),
            port.get("port").and_then(Value::as_i64),
        )
    };
    let Some(ports) = new.pointer_mut("/spec/ports").and_then(Value::as_array_mut) else {
        return;
    };
    let taken: Vec<i64> = ports.iter().filter_map(node_port).collect();
    for port in ports.iter_mut() {
        if node_port(port).is_some() {
            continue;
        }
        let before = old_ports.iter().find(|old| key(old) == key(port)).and_then(node_port);
        if let Some(number) = before.filter(|number| !taken.contains(number)) {
            port["nodePort"] = number.into();
        }
    }
}

fn node_port(port: &Value) -> Option<i64> {
    port.get("nodePort")
        .and_then(Value::as_i64)
        .filter(|number| *number != 0)
}

fn needs_health_check_port(service: &Value) -> bool {
    kind(service) == "LoadBalancer" && generic::text_at(service, "spec.externalTrafficPolicy") == "Local"
}

/// Fields of another type of service go when the type changed.
fn drop_foreign_fields(service: &mut Value) {
    let kind = kind(service);
    let health = needs_health_check_port(service);
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    if kind == "ExternalName" {
        for key in [
            "clusterIP",
            "clusterIPs",
            "ipFamilies",
            "ipFamilyPolicy",
            "internalTrafficPolicy",
        ] {
            spec.remove(key);
        }
    }
    if kind != "LoadBalancer" {
        spec.remove("allocateLoadBalancerNodePorts");
        spec.remove("loadBalancerClass");
    }
    if !health {
        spec.remove("healthCheckNodePort");
    }
    if matches!(kind.as_str(), "ClusterIP" | "ExternalName") {
        if spec
            .get("externalIPs")
            .and_then(Value::as_array)
            .is_none_or(Vec::is_empty)
        {
            spec.remove("externalTrafficPolicy");
        }
        for port in spec
            .get_mut("ports")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            port.as_object_mut().and_then(|port| port.remove("nodePort"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn update_keeps_what_the_server_gave() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}, "status": {"loadBalancer": {}}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "TCP"}]}});
        Service.prepare_update(&mut new, &old, None);
        assert_eq!(new["spec"]["clusterIP"], "10.96.0.7");
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.96.0.7"]));
        assert_eq!(
            new["spec"]["ports"],
            json!([{"port": 80, "protocol": "TCP", "nodePort": 30080}, {"port": 81, "protocol": "TCP"}])
        );
        assert_eq!(new["status"], old["status"]);
    }

    #[test]
    fn node_ports_go_with_the_type() {
        let old =
            json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.7", "ports": [{"port": 80, "nodePort": 30080}]}});
        let mut new = old.clone();
        new["spec"]["type"] = "ClusterIP".into();
        Service.prepare_update(&mut new, &old, None);
        assert_eq!(new["spec"]["ports"], json!([{"port": 80}]));
        new["spec"]["type"] = "ExternalName".into();
        Service.prepare_update(&mut new, &old, None);
        assert!(new["spec"].get("clusterIP").is_none());
    }
}
