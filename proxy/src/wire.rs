//! Services and EndpointSlices as the API sends them, as far as they are read here. The rest is not even decoded.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;
use kube::core::{ClusterResourceScope, NamespaceResourceScope, ObjectMeta};
use serde::Deserialize;

use crate::model::{self, Hint, Outside, Port, Protocol, SlicePort};

/// The Service of a slice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const SESSION_SECONDS: u32 = 10_800;
/// The label with a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";
/// The taint of a node that the autoscaler is about to take away.
const LEAVING: &str = "ToBeDeletedByClusterAutoscaler";

/// What the API server is asked for: what another proxy serves, or nobody, does not even come.
pub(crate) const SERVICES: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";
/// The same for slices.
pub(crate) const SLICES: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";

macro_rules! resource {
    ($name:ident, $scope:ident, $group:literal, $kind:literal, $plural:literal) => {
        impl kube::Resource for $name {
            type DynamicType = ();
            type Scope = $scope;

            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }

            fn group((): &()) -> Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> Cow<'_, str> {
                "v1".into()
            }

            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Service {
    metadata: ObjectMeta,
    spec: ServiceSpec,
    status: ServiceStatus,
}

resource!(Service, NamespaceResourceScope, "", "Service", "services");

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    ports: Option<Vec<ServicePort>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    session_affinity: Option<String>,
    session_affinity_config: Option<SessionAffinityConfig>,
    external_traffic_policy: Option<String>,
    internal_traffic_policy: Option<String>,
    health_check_node_port: Option<u16>,
    load_balancer_source_ranges: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServicePort {
    name: Option<String>,
    protocol: Option<String>,
    port: u16,
    node_port: Option<u16>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct SessionAffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: Option<ClientIp>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ClientIp {
    timeout_seconds: Option<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServiceStatus {
    load_balancer: Option<LoadBalancer>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    ingress: Option<Vec<Ingress>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Ingress {
    ip: Option<String>,
    ip_mode: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct EndpointSlice {
    metadata: ObjectMeta,
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<EndpointPort>>,
}

resource!(
    EndpointSlice,
    NamespaceResourceScope,
    "discovery.k8s.io",
    "EndpointSlice",
    "endpointslices"
);

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Endpoint {
    addresses: Vec<String>,
    conditions: Option<Conditions>,
    node_name: Option<String>,
    hints: Option<Hints>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Hints {
    for_zones: Option<Vec<Named>>,
    for_nodes: Option<Vec<Named>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct EndpointPort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<u16>,
}

/// A range that Services get their addresses from.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ServiceCidr {
    metadata: ObjectMeta,
    spec: ServiceCidrSpec,
}

resource!(
    ServiceCidr,
    ClusterResourceScope,
    "networking.k8s.io",
    "ServiceCIDR",
    "servicecidrs"
);

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ServiceCidrSpec {
    cidrs: Option<Vec<String>>,
}

/// This node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Node {
    metadata: ObjectMeta,
    spec: NodeSpec,
    status: NodeStatus,
}

resource!(Node, ClusterResourceScope, "", "Node", "nodes");

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    taints: Option<Vec<Taint>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Taint {
    key: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    addresses: Option<Vec<NodeAddress>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct NodeAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

impl ServiceCidr {
    pub(crate) fn name(&self) -> String {
        self.metadata.name.clone().unwrap_or_default()
    }

    pub(crate) fn ranges(&self) -> Vec<IpNet> {
        let texts = self.spec.cidrs.iter().flatten();
        texts
            .filter_map(|text| text.parse().ok())
            .filter(|range: &IpNet| range.addr().is_ipv4())
            .collect()
    }
}

/// `namespace/name`
fn full_name(metadata: &ObjectMeta) -> String {
    let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
    format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default())
}

fn addresses(texts: Option<&Vec<String>>) -> Vec<IpAddr> {
    texts
        .into_iter()
        .flatten()
        .filter_map(|text| text.parse().ok())
        .filter(IpAddr::is_ipv4)
        .collect()
}

impl Service {
    /// The Service `namespace/name`, to speak of.
    pub(crate) fn named(key: &str) -> Self {
        let (namespace, name) = key.split_once('/').unwrap_or_default();
        let mut named = Self::default();
        named.metadata.namespace = Some(namespace.to_owned());
        named.metadata.name = Some(name.to_owned());
        named
    }

    pub(crate) fn full_name(&self) -> String {
        full_name(&self.metadata)
    }

    /// The part that rules are made of; nothing for a Service without an address (headless, by another name).
    pub(crate) fn reduce(&self) -> Option<model::Service> {
        let spec = &self.spec;
        if spec.kind.as_deref() == Some("ExternalName") {
            return None;
        }
        let own = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        let cluster_ip = own.filter_map(|text| text.parse().ok()).find(IpAddr::is_ipv4)?;
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            Some(Port {
                name: port.name.as_deref().unwrap_or_default().into(),
                protocol: Protocol::parse(port.protocol.as_deref().unwrap_or_default())?,
                port: port.port,
                node_port: port.node_port.unwrap_or_default(),
            })
        });
        let seconds = spec
            .session_affinity_config
            .as_ref()
            .and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
        let sticky = spec.session_affinity.as_deref() == Some("ClientIP");
        Some(model::Service {
            cluster_ip,
            ports: ports.collect(),
            affinity: sticky.then(|| seconds.unwrap_or(SESSION_SECONDS)),
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            outside: self.outside(),
        })
    }

    fn outside(&self) -> Option<Box<Outside>> {
        let spec = &self.spec;
        let balanced = spec.kind.as_deref() == Some("LoadBalancer");
        let ingress = self
            .status
            .load_balancer
            .iter()
            .flat_map(|status| status.ingress.iter().flatten());
        // In mode "Proxy" the load balancer opens connections of its own to the nodes.
        let passing = ingress.filter(|ingress| balanced && ingress.ip_mode.as_deref() != Some("Proxy"));
        let ips = passing
            .filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
            .filter(IpAddr::is_ipv4);
        let ranges = spec.load_balancer_source_ranges.iter().flatten();
        let outside = Outside {
            external_ips: addresses(spec.external_ips.as_ref()),
            load_balancer_ips: ips.collect(),
            source_ranges: ranges
                .filter_map(|text| text.trim().parse().ok())
                .filter(|net: &IpNet| net.addr().is_ipv4())
                .collect(),
            health_check_node_port: spec
                .health_check_node_port
                .filter(|_| balanced && spec.external_traffic_policy.as_deref() == Some("Local"))
                .unwrap_or_default(),
        };
        (outside != Outside::default()).then(|| Box::new(outside))
    }
}

impl EndpointSlice {
    pub(crate) fn full_name(&self) -> String {
        full_name(&self.metadata)
    }

    /// `namespace/name` of the Service that the slice is a part of.
    pub(crate) fn service(&self) -> Option<String> {
        let name = self.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
        Some(format!(
            "{}/{name}",
            self.metadata.namespace.as_deref().unwrap_or_default()
        ))
    }

    /// Addresses that nothing is sent to, at most three: a slice can hold a thousand.
    pub(crate) fn refused(&self) -> Vec<String> {
        let first = self.endpoints.iter().flatten().filter_map(|one| one.addresses.first());
        let refused = first.filter(|text| text.parse().is_ok_and(|ip: IpAddr| ip.is_ipv4() && !is_remote(ip)));
        refused.take(3).cloned().collect()
    }

    /// When the change that this slice tells of began, in seconds since 1970.
    pub(crate) fn triggered(&self) -> Option<f64> {
        let text = self
            .metadata
            .annotations
            .as_ref()?
            .get("endpoints.kubernetes.io/last-change-trigger-time")?;
        let at: jiff::Timestamp = text.parse().ok()?;
        Some(at.as_duration().as_secs_f64())
    }

    /// The part that rules are made of.
    pub(crate) fn reduce(&self, node: &str) -> model::Slice {
        let ports = self.ports.iter().flatten().filter_map(|port| {
            Some(SlicePort {
                name: port.name.as_deref().unwrap_or_default().into(),
                protocol: Protocol::parse(port.protocol.as_deref().unwrap_or_default())?,
                port: port.port?,
            })
        });
        let endpoints = self.endpoints.iter().flatten().filter_map(|endpoint| {
            // Further addresses of an endpoint have no meaning in the API.
            let ip: IpAddr = endpoint.addresses.first()?.parse().ok()?;
            let conditions = endpoint.conditions.unwrap_or_default();
            let ready = conditions.ready.unwrap_or(true);
            is_remote(ip).then(|| model::Endpoint {
                ip,
                ready,
                serving: conditions.serving.unwrap_or(ready),
                terminating: conditions.terminating.unwrap_or(false),
                local: endpoint.node_name.as_deref() == Some(node),
                for_node: endpoint.for_node(node),
                for_zones: endpoint.for_zones(),
            })
        });
        model::Slice {
            ports: ports.collect(),
            endpoints: endpoints.collect(),
        }
    }
}

impl Endpoint {
    fn for_node(&self, node: &str) -> Hint {
        let nodes = self.hints.as_ref().and_then(|hints| hints.for_nodes.as_ref());
        match nodes.filter(|nodes| !nodes.is_empty()) {
            None => Hint::Absent,
            Some(nodes) if nodes.iter().any(|named| named.name == node) => Hint::Here,
            Some(_) => Hint::Elsewhere,
        }
    }

    fn for_zones(&self) -> Option<Box<[Box<str>]>> {
        let zones = self.hints.as_ref()?.for_zones.as_ref()?;
        (!zones.is_empty()).then(|| zones.iter().map(|named| named.name.as_str().into()).collect())
    }
}

impl Node {
    /// The node of a name, to speak of. Its events are found by its name for its identity, as the kubelet's are.
    pub(crate) fn named(name: &str) -> Self {
        let mut named = Self::default();
        named.metadata.name = Some(name.to_owned());
        named.metadata.uid = Some(name.to_owned());
        named
    }

    /// The part that rules and health are made of.
    pub(crate) fn reduce(&self) -> model::Node {
        let zone = self.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE));
        let own = self.spec.pod_cidrs.iter().flatten().chain(&self.spec.pod_cidr);
        let addresses = || self.status.addresses.iter().flatten();
        let address = |kind: &str| {
            addresses()
                .filter(|address| address.kind == kind)
                .filter_map(|address| address.address.parse().ok())
                .find(IpAddr::is_ipv4)
        };
        let leaving = self.spec.taints.iter().flatten().any(|taint| taint.key == LEAVING);
        model::Node {
            zone: zone.filter(|zone| !zone.is_empty()).map(|zone| zone.as_str().into()),
            pod_range: own
                .filter_map(|text| text.parse().ok())
                .find(|range: &IpNet| range.addr().is_ipv4()),
            address: address("InternalIP").or_else(|| address("ExternalIP")),
            eligible: self.metadata.deletion_timestamp.is_none() && !leaving,
        }
    }
}

/// An endpoint on loopback or link-local would lead into the node's own services, or its cloud's.
fn is_remote(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_multicast()),
        IpAddr::V6(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_without_an_address_needs_no_rules() {
        for spec in [
            r#"{"clusterIP":"None","ports":[{"port":80}]}"#,
            r#"{"type":"ExternalName"}"#,
            "{}",
        ] {
            let service: Service =
                serde_json::from_str(&format!(r#"{{"metadata":{{"name":"a"}},"spec":{spec}}}"#)).unwrap();
            assert_eq!(service.reduce(), None, "{spec}");
        }
    }

    #[test]
    fn a_service_is_reduced_to_what_rules_are_made_of() {
        let service: Service = serde_json::from_str(
            r#"{"metadata":{"namespace":"n","name":"a"},"spec":{"type":"LoadBalancer","clusterIP":"10.96.0.5",
                "clusterIPs":["fd00::5","10.96.0.5"],"ports":[{"name":"dns","protocol":"UDP","port":53,"nodePort":30053}],
                "sessionAffinity":"ClientIP","externalTrafficPolicy":"Local","loadBalancerSourceRanges":[" 10.0.0.0/8"]},
                "status":{"loadBalancer":{"ingress":[{"ip":"1.2.3.4"},{"ip":"5.6.7.8","ipMode":"Proxy"},{"hostname":"x"}]}}}"#,
        )
        .unwrap();
        assert_eq!(service.full_name(), "n/a");
        let reduced = service.reduce().unwrap();
        assert_eq!(reduced.cluster_ip.to_string(), "10.96.0.5");
        assert_eq!((reduced.affinity, reduced.external_local), (Some(10_800), true));
        assert_eq!(
            (reduced.ports[0].protocol, reduced.ports[0].node_port),
            (Protocol::Udp, 30053)
        );
        let outside = reduced.outside.unwrap();
        assert_eq!(outside.load_balancer_ips, ["1.2.3.4".parse::<IpAddr>().unwrap()]);
        assert_eq!(outside.source_ranges, ["10.0.0.0/8".parse().unwrap()]);
    }

    #[test]
    fn endpoints_get_upstreams_defaults_and_dangerous_ones_are_left_out() {
        let slice: EndpointSlice = serde_json::from_str(
            r#"{"metadata":{"namespace":"n","name":"a-1","labels":{"kubernetes.io/service-name":"a"}},
                "ports":[{"port":8080},{"name":"all"}],
                "endpoints":[{"addresses":["10.244.0.2"],"nodeName":"me"},
                {"addresses":["10.244.0.3"],"conditions":{"ready":false,"serving":true,"terminating":true}},
                {"addresses":["127.0.0.1"]},{"addresses":["169.254.169.254"]},{"addresses":["junk"]},{"addresses":[]}]}"#,
        )
        .unwrap();
        assert_eq!(slice.service().as_deref(), Some("n/a"));
        assert_eq!(slice.refused(), ["127.0.0.1", "169.254.169.254"]);
        let reduced = slice.reduce("me");
        assert_eq!(reduced.ports.len(), 1);
        let seen: Vec<_> = reduced
            .endpoints
            .iter()
            .map(|e| (e.ready, e.serving, e.terminating, e.local))
            .collect();
        assert_eq!(seen, [(true, true, false, true), (false, true, true, false)]);
    }

    #[test]
    fn hints_are_read_as_seen_from_this_node() {
        let slice: EndpointSlice = serde_json::from_str(
            r#"{"endpoints":[{"addresses":["10.244.0.2"]},
                {"addresses":["10.244.0.3"],"hints":{"forZones":[{"name":"a"},{"name":"b"}],"forNodes":[{"name":"me"}]}},
                {"addresses":["10.244.0.4"],"hints":{"forZones":[],"forNodes":[{"name":"other"}]}}]}"#,
        )
        .unwrap();
        let seen = slice.reduce("me");
        let hints: Vec<_> = seen
            .endpoints
            .iter()
            .map(|e| (e.for_node, e.for_zones.is_some()))
            .collect();
        assert_eq!(
            hints,
            [(Hint::Absent, false), (Hint::Here, true), (Hint::Elsewhere, false)]
        );
    }

    #[test]
    fn a_node_is_reduced_to_zone_range_address_and_whether_it_stays() {
        for (text, wanted) in [
            ("{}", model::Node::default()),
            (
                r#"{"metadata":{"labels":{"topology.kubernetes.io/zone":"a"}},"spec":{"podCIDR":"10.244.3.0/24",
                    "podCIDRs":["fd00::/64","10.244.3.0/24"],"taints":[{"key":"x"}]},
                    "status":{"addresses":[{"type":"ExternalIP","address":"192.0.2.1"},
                    {"type":"InternalIP","address":"fd00::1"},{"type":"InternalIP","address":"172.30.0.1"}]}}"#,
                model::Node {
                    zone: Some("a".into()),
                    pod_range: Some("10.244.3.0/24".parse().unwrap()),
                    address: Some("172.30.0.1".parse().unwrap()),
                    eligible: true,
                },
            ),
            (
                r#"{"spec":{"taints":[{"key":"ToBeDeletedByClusterAutoscaler"}]}}"#,
                model::Node {
                    eligible: false,
                    ..model::Node::default()
                },
            ),
            (
                r#"{"metadata":{"deletionTimestamp":"2026-11-21T00:00:00Z"}}"#,
                model::Node {
                    eligible: false,
                    ..model::Node::default()
                },
            ),
        ] {
            assert_eq!(serde_json::from_str::<Node>(text).unwrap().reduce(), wanted, "{text}");
        }
    }
}
