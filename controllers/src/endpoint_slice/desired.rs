//! The endpoints that a Service should have, grouped by the ports that they answer on.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use skiff_api::k8s_openapi::api::core::v1::ObjectReference;
use skiff_api::k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use skiff_api::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::view::{Pod, Service, ServicePort, View};

/// The IP family of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressType {
    Ipv4,
    Ipv6,
}

impl AddressType {
    /// The families that a Service uses.
    pub(super) fn of(service: &Service) -> Vec<Self> {
        let named: Vec<_> = service
            .spec
            .ip_families
            .iter()
            .filter_map(|family| match family.as_str() {
                "IPv4" => Some(Self::Ipv4),
                "IPv6" => Some(Self::Ipv6),
                _ => None,
            })
            .collect();
        if !named.is_empty() {
            return named;
        }
        // Without families the cluster IP tells.
        match service
            .spec
            .cluster_ip
            .as_deref()
            .and_then(|ip| ip.parse::<IpAddr>().ok())
        {
            Some(IpAddr::V6(_)) => vec![Self::Ipv6],
            _ => vec![Self::Ipv4],
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        }
    }

    pub(super) fn has(self, ip: &str) -> bool {
        match ip.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => self == Self::Ipv4,
            Ok(IpAddr::V6(_)) => self == Self::Ipv6,
            Err(_) => false,
        }
    }
}

/// A set of ports in a fixed order, so that equal sets are equal keys: name, protocol, port, application protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports(Vec<(String, String, i32, Option<String>)>);

impl Ports {
    pub(super) fn of(ports: &[EndpointPort]) -> Self {
        let parts = |port: &EndpointPort| {
            (
                port.name.clone().unwrap_or_default(),
                port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port.port.unwrap_or_default(),
                port.app_protocol.clone(),
            )
        };
        let mut ports: Vec<_> = ports.iter().map(parts).collect();
        ports.sort();
        Self(ports)
    }

    pub(super) fn to_ports(&self) -> Vec<EndpointPort> {
        let port = |(name, protocol, port, app_protocol): &(String, String, i32, Option<String>)| EndpointPort {
            name: Some(name.clone()),
            protocol: Some(protocol.clone()),
            port: Some(*port),
            app_protocol: app_protocol.clone(),
        };
        self.0.iter().map(port).collect()
    }
}

pub(super) fn endpoints_by_ports(
    service: &Service,
    pods: &[Arc<Pod>],
    family: AddressType,
    zone_of: &dyn Fn(&str) -> Option<String>,
) -> BTreeMap<Ports, Vec<Endpoint>> {
    let mut found: BTreeMap<Ports, Vec<Endpoint>> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !pod.is_terminal()) {
        let Some(endpoint) = endpoint(service, pod, family, zone_of) else {
            continue;
        };
        let ports: Vec<_> = resolve_ports(service, pod)
            .into_iter()
            .map(|(port, number)| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                port: Some(number),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        // A pod that has none of the ports is not behind the Service, unless that has no ports and so means addresses only.
        if ports.is_empty() && !(service.spec.ports.is_empty() && service.is_headless()) {
            continue;
        }
        found.entry(Ports::of(&ports)).or_default().push(endpoint);
    }
    found
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    family: AddressType,
    zone_of: &dyn Fn(&str) -> Option<String>,
) -> Option<Endpoint> {
    let listed = pod.status.pod_ips.iter().map(|ip| ip.ip.as_str());
    let address = listed.chain(pod.status.pod_ip.as_deref()).find(|ip| family.has(ip))?;
    let serving = pod.is_ready();
    let terminating = pod.is_being_deleted();
    let ready = service.spec.publish_not_ready_addresses || (serving && !terminating);
    let in_subdomain = pod.spec.subdomain.as_deref() == Some(service.name());
    let hostname = pod
        .spec
        .hostname
        .clone()
        .filter(|hostname| in_subdomain && !hostname.is_empty());
    Some(Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname,
        node_name: pod.spec.node_name.clone(),
        zone: pod.spec.node_name.as_deref().and_then(zone_of),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.namespace().to_owned()),
            name: Some(pod.name().to_owned()),
            uid: Some(pod.uid().to_owned()),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    })
}

/// The Service's ports that this pod has, with their numbers there: a named target may differ from pod to pod.
pub(crate) fn resolve_ports<'a>(service: &'a Service, pod: &Pod) -> Vec<(&'a ServicePort, i32)> {
    let number = |port: &ServicePort| match &port.target_port {
        Some(IntOrString::String(name)) => named_port(pod, name, port.protocol.as_deref().unwrap_or("TCP")),
        Some(IntOrString::Int(number)) if *number != 0 => Some(*number),
        _ => Some(port.port),
    };
    service
        .spec
        .ports
        .iter()
        .filter_map(|port| number(port).map(|number| (port, number)))
        .collect()
}

fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let containers = pod.spec.containers.iter().chain(&pod.spec.init_containers);
    let mut ports = containers.flat_map(|container| &container.ports);
    let matches = |port: &&crate::view::ContainerPort| {
        port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol
    };
    ports.find(matches).map(|port| port.container_port)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": "web"}, "spec": spec})).unwrap()
    }

    fn pod(name: &str, ip: &str, ready: bool, extra: Value) -> Arc<Pod> {
        let mut object = json!({
            "metadata": {"namespace": "ns", "name": name, "uid": name},
            "spec": {"nodeName": "n1", "hostname": "h", "subdomain": "web",
                     "containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}, {"ip": "fd00::1"}],
                       "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        for (pointer, value) in extra.as_object().unwrap() {
            let (parent, field) = pointer.rsplit_once('/').unwrap();
            object.pointer_mut(parent).unwrap()[field] = value.clone();
        }
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn zone(node: &str) -> Option<String> {
        (node == "n1").then(|| "z1".to_owned())
    }

    #[test]
    fn an_endpoint_tells_where_and_in_what_state() {
        let service = service(json!({"ports": [{"port": 80, "targetPort": "http"}]}));
        let pods = [pod("a", "10.0.0.1", true, json!({}))];
        let found = endpoints_by_ports(&service, &pods, AddressType::Ipv4, &zone);
        let (ports, endpoints) = found.first_key_value().unwrap();
        assert_eq!(
            json!(ports.to_ports()),
            json!([{"name": "", "protocol": "TCP", "port": 8080}])
        );
        let expected = json!([{
            "addresses": ["10.0.0.1"], "conditions": {"ready": true, "serving": true, "terminating": false},
            "hostname": "h", "nodeName": "n1", "zone": "z1",
            "targetRef": {"kind": "Pod", "namespace": "ns", "name": "a", "uid": "a"},
        }]);
        assert_eq!(json!(endpoints), expected);
        let six = endpoints_by_ports(&service, &pods, AddressType::Ipv6, &zone);
        assert_eq!(six.values().next().unwrap()[0].addresses, ["fd00::1"]);
    }

    #[test]
    fn conditions_follow_the_pod() {
        let plain = service(json!({"ports": [{"port": 80}]}));
        let always = service(json!({"ports": [{"port": 80}], "publishNotReadyAddresses": true}));
        let going = json!({"/metadata/deletionTimestamp": "2026-01-01T00:00:00Z"});
        // (ready, going) -> (ready, serving, terminating)
        let cases = [
            (&plain, true, json!({}), (true, true, false)),
            (&plain, false, json!({}), (false, false, false)),
            (&plain, true, going.clone(), (false, true, true)),
            (&always, false, json!({}), (true, false, false)),
            (&always, true, going, (true, true, true)),
        ];
        for (service, ready, extra, (is_ready, serving, terminating)) in cases {
            let found = endpoints_by_ports(service, &[pod("a", "10.0.0.1", ready, extra)], AddressType::Ipv4, &zone);
            let conditions = found.values().next().unwrap()[0].conditions.clone().unwrap();
            assert_eq!(
                (conditions.ready, conditions.serving, conditions.terminating),
                (Some(is_ready), Some(serving), Some(terminating))
            );
        }
    }

    #[test]
    fn pods_that_cannot_answer_are_left_out() {
        let named = service(json!({"ports": [{"port": 80, "targetPort": "metrics"}]}));
        let plain = service(json!({"ports": [{"port": 80}]}));
        let addresses_only = service(json!({"clusterIP": "None"}));
        let pods = |extra| [pod("a", "10.0.0.1", true, extra)];
        let count =
            |service: &Service, extra| endpoints_by_ports(service, &pods(extra), AddressType::Ipv4, &zone).len();
        assert_eq!(count(&named, json!({})), 0, "has no such port");
        assert_eq!(count(&plain, json!({"/status/phase": "Succeeded"})), 0);
        assert_eq!(count(&plain, json!({"/status/podIPs": [], "/status/podIP": null})), 0);
        assert_eq!(count(&addresses_only, json!({})), 1);
    }
}
