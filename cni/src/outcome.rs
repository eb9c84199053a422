//! What a plugin answers: interfaces, addresses, routes, in the shape of the version that was asked for.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::{Dns, nullable};
use crate::version::at_least;

/// The answer to a verb.
#[derive(Debug)]
pub(crate) enum Reply {
    /// Nothing to say: DEL, CHECK, STATUS, GC.
    Silent,
    /// What ADD made.
    Network(Network),
}

/// An attachment: what ADD prints, and what later calls get back as `prevResult`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Network {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(crate) interfaces: Vec<Interface>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(crate) ips: Vec<Ip>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(crate) routes: Vec<Route>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) dns: Dns,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Interface {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) mac: String,
    /// Since 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mtu: Option<u32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) sandbox: String,
    /// Since 1.1.0: of plugins before us in the chain.
    #[serde(rename = "socketPath", skip_serializing_if = "String::is_empty")]
    pub(crate) socket_path: String,
    /// Since 1.1.0: of plugins before us in the chain.
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub(crate) pci_id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ip {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) interface: Option<usize>,
    pub(crate) address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Route {
    pub(crate) dst: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gw: Option<IpAddr>,
    /// Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mtu: Option<u32>,
    /// Since 1.1.0, as all below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) advmss: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) priority: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) table: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) scope: Option<u8>,
}

impl Route {
    pub(crate) fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self {
            dst,
            gw,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }
}

impl Network {
    /// The answer in the shape of a version.
    pub(crate) fn to_json(&self, version: &str) -> String {
        // A result of plain strings, numbers and lists always has a JSON form.
        let mut json = serde_json::to_value(self).unwrap_or_else(|_| json!({}));
        json["cniVersion"] = json!(version);
        let each = |json: &mut Value, list: &str, change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
            let items = json.get_mut(list).and_then(Value::as_array_mut);
            items
                .into_iter()
                .flatten()
                .filter_map(Value::as_object_mut)
                .for_each(change);
        };
        if !at_least(version, "1.1.0") {
            each(&mut json, "interfaces", &|interface| {
                interface.retain(|key, _| !matches!(key.as_str(), "mtu" | "socketPath" | "pciID"));
            });
            each(&mut json, "routes", &|route| {
                route.retain(|key, _| matches!(key.as_str(), "dst" | "gw"))
            });
        }
        if !at_least(version, "1.0.0") {
            each(&mut json, "ips", &|ip| {
                let six = ip
                    .get("address")
                    .and_then(Value::as_str)
                    .is_some_and(|address| address.contains(':'));
                ip.insert("version".to_owned(), json!(if six { "6" } else { "4" }));
            });
        }
        format!("{json:#}")
    }

    /// The gateway that a route without one goes through: that of the first address of its family.
    pub(crate) fn gateway_for(&self, route: &Route) -> Option<IpAddr> {
        let gateways = || self.ips.iter().filter_map(|ip| ip.gateway);
        route
            .gw
            .or_else(|| gateways().find(|gateway| gateway.is_ipv4() == route.dst.addr().is_ipv4()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        Network {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: "0a:58:0a:f4:00:02".into(),
                mtu: Some(1500),
                sandbox: "/run/netns/pod".into(),
                pci_id: "0000:00:1f.6".into(),
                ..Interface::default()
            }],
            ips: vec![Ip {
                interface: Some(0),
                address: "10.244.0.2/24".parse().unwrap(),
                gateway: Some("10.244.0.1".parse().unwrap()),
            }],
            routes: vec![Route {
                table: Some(7),
                ..Route::new("0.0.0.0/0".parse().unwrap(), None)
            }],
            dns: Dns::default(),
        }
    }

    #[test]
    fn each_version_has_its_shape() {
        for (version, wanted_ip_version, wanted_mtu) in [
            ("0.3.1", json!("4"), Value::Null),
            ("1.0.0", Value::Null, Value::Null),
            ("1.1.0", Value::Null, json!(1500)),
        ] {
            let json: Value = serde_json::from_str(&network().to_json(version)).unwrap();
            assert_eq!(json["cniVersion"], version);
            assert_eq!(json["ips"][0]["version"], wanted_ip_version, "{version}");
            assert_eq!(json["interfaces"][0]["mtu"], wanted_mtu, "{version}");
            let new = version == "1.1.0";
            assert_eq!(json["routes"][0].get("table").is_some(), new, "{version}");
            assert_eq!(json["interfaces"][0].get("pciID").is_some(), new, "{version}");
            assert_eq!(json["dns"], json!({}));
        }
    }

    #[test]
    fn every_shape_is_read_back() {
        for version in crate::version::SUPPORTED {
            let read: Network = serde_json::from_str(&network().to_json(version)).unwrap();
            assert_eq!(read.ips, network().ips);
        }
        assert_eq!(
            serde_json::from_str::<Network>(r#"{"ips":null}"#).unwrap(),
            Network::default()
        );
    }

    #[test]
    fn routes_go_through_the_gateway_of_their_family() {
        let network = network();
        assert_eq!(network.gateway_for(&network.routes[0]), network.ips[0].gateway);
        let six = Route::new("::/0".parse().unwrap(), None);
        assert_eq!(network.gateway_for(&six), None);
    }
}
