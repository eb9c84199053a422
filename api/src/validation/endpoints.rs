//! Endpoints and endpoint slices.

use std::net::IpAddr;

use serde_json::Value;

use super::Errors;
use super::read::{IMMUTABLE, complain, get, int, ip, list, non_special_ip, one_of, port_number, text};
use crate::field::{Error, Path};
use crate::names;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const MAX_ENDPOINTS: usize = 1000;
const MAX_PORTS: usize = 20000;
const MAX_ADDRESSES: usize = 100;

pub(super) fn endpoints(object: &Value, errors: &mut Errors) {
    let subsets = Path::root("subsets");
    for (i, subset) in list(object, "subsets").iter().enumerate() {
        let path = subsets.index(i);
        let (ready, not_ready) = (list(subset, "addresses"), list(subset, "notReadyAddresses"));
        if ready.is_empty() && not_ready.is_empty() {
            errors.push(Error::required(
                &path,
                "must specify `addresses` or `notReadyAddresses`",
            ));
        }
        for (key, addresses) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
            let root = path.child(key);
            for (i, address) in addresses.iter().enumerate() {
                let path = root.index(i);
                let (path, text) = (path.child("ip"), text(address, "ip"));
                if let Some(ip) = ip(&path, text, errors) {
                    non_special_ip(&path, text, ip, errors);
                }
            }
        }
        let ports = list(subset, "ports");
        let root = path.child("ports");
        for (i, port) in ports.iter().enumerate() {
            let path = root.index(i);
            match text(port, "name") {
                "" if ports.len() > 1 => errors.push(Error::required(&path.child("name"), "")),
                "" => {}
                name => complain(&path.child("name"), name, names::dns1123_label(name), errors),
            }
            port_number(&path.child("port"), int(port, "port").unwrap_or(0), errors);
            one_of(&path, "protocol", port, &PROTOCOLS, true, errors);
        }
    }
}

pub(super) fn slice(object: &Value, errors: &mut Errors) {
    let kind = text(object, "addressType");
    let path = Path::root("addressType");
    match kind {
        "" => errors.push(Error::required(&path, "")),
        "IPv4" | "IPv6" | "FQDN" => {}
        _ => errors.push(Error::not_supported(&path, kind, &["FQDN", "IPv4", "IPv6"])),
    }
    let root = Path::root("endpoints");
    let endpoints = list(object, "endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        errors.push(Error::too_many(&root, endpoints.len(), MAX_ENDPOINTS));
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        one_endpoint(&root.index(i), endpoint, kind, errors);
    }
    slice_ports(list(object, "ports"), errors);
}

fn one_endpoint(path: &Path<'_>, endpoint: &Value, kind: &str, errors: &mut Errors) {
    let addresses = list(endpoint, "addresses");
    let root = path.child("addresses");
    if addresses.is_empty() {
        errors.push(Error::required(&root, "must contain at least 1 address"));
    } else if addresses.len() > MAX_ADDRESSES {
        errors.push(Error::too_many(&root, addresses.len(), MAX_ADDRESSES));
    }
    for (i, address) in addresses.iter().enumerate() {
        let (path, address) = (root.index(i), address.as_str().unwrap_or_default());
        match kind {
            "IPv4" | "IPv6" => {
                let Some(ip) = ip(&path, address, errors) else { continue };
                if ip.is_ipv4() != (kind == "IPv4") {
                    let detail = format!("must be an {kind} address");
                    errors.push(Error::invalid(&path, address, detail));
                } else {
                    non_special_ip(&path, address, ip, errors);
                }
            }
            "FQDN" => {
                if address.parse::<IpAddr>().is_ok() {
                    errors.push(Error::invalid(&path, address, "must not be an IP address"));
                }
                complain(&path, address, names::dns1123_subdomain(address), errors);
            }
            _ => {}
        }
    }
    if let Some(node) = get(endpoint, "nodeName").as_str() {
        complain(&path.child("nodeName"), node, names::dns1123_subdomain(node), errors);
    }
    if let Some(host) = get(endpoint, "hostname").as_str() {
        complain(&path.child("hostname"), host, names::dns1123_label(host), errors);
    }
}

fn slice_ports(ports: &[Value], errors: &mut Errors) {
    let root = Path::root("ports");
    if ports.len() > MAX_PORTS {
        errors.push(Error::too_many(&root, ports.len(), MAX_PORTS));
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let (path, name) = (root.index(i), text(port, "name"));
        if !name.is_empty() {
            complain(&path.child("name"), name, names::dns1123_label(name), errors);
        }
        if seen.contains(&name) {
            errors.push(Error::duplicate(&path.child("name"), name));
        }
        seen.push(name);
        one_of(&path, "protocol", port, &PROTOCOLS, true, errors);
        if let Some(number) = int(port, "port") {
            port_number(&path.child("port"), number, errors);
        }
    }
}

pub(super) fn slice_update(new: &Value, old: &Value, errors: &mut Errors) {
    if get(new, "addressType") != get(old, "addressType") {
        errors.push(Error::invalid(
            &Path::root("addressType"),
            get(new, "addressType").clone(),
            IMMUTABLE,
        ));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{created, updated};
    use super::*;

    fn slice(fields: Value) -> Value {
        let mut slice = json!({"metadata": {"name": "web-abcde", "namespace": "default"}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 80}]});
        for (key, value) in fields.as_object().unwrap() {
            slice[key] = value.clone();
        }
        crate::defaults::apply("discovery.k8s.io", "v1", "EndpointSlice", &mut slice);
        slice
    }

    #[test]
    fn slices() {
        for (fields, messages) in [
            (json!({"endpoints": [{"addresses": ["10.0.0.1"]}]}), vec![]),
            (json!({"addressType": ""}), vec!["addressType: Required value"]),
            (
                json!({"endpoints": [{}, {"addresses": ["127.0.0.1", "::2"]}]}),
                vec![
                    "endpoints[0].addresses: Required value: must contain at least 1 address",
                    "endpoints[1].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                    "endpoints[1].addresses[1]: Invalid value: \"::2\": must be an IPv4 address",
                ],
            ),
            (
                json!({"ports": [{"name": "a", "port": 1}, {"name": "a", "port": 2}]}),
                vec!["ports[1].name: Duplicate value: \"a\""],
            ),
        ] {
            assert_eq!(created("discovery.k8s.io", "EndpointSlice", &slice(fields)), messages);
        }
        assert_eq!(
            updated(
                "discovery.k8s.io",
                "EndpointSlice",
                &slice(json!({"addressType": "IPv6"})),
                &slice(json!({}))
            ),
            ["addressType: Invalid value: \"IPv6\": field is immutable"]
        );
    }

    #[test]
    fn subsets() {
        let endpoints = json!({"metadata": {"name": "a", "namespace": "b"}, "subsets": [{"ports": [{"port": 1, "protocol": "TCP"}]},
            {"addresses": [{"ip": "169.254.1.1"}]}]});
        assert_eq!(
            created("", "Endpoints", &endpoints),
            [
                "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`",
                "subsets[1].addresses[0].ip: Invalid value: \"169.254.1.1\": may not be in the link-local range (169.254.0.0/16, fe80::/10)"
            ]
        );
    }
}
