//! Ingresses, their classes, network policies.

use serde_json::Value;

use super::Errors;
use super::read::{IMMUTABLE, at, cidr, complain, get, has, int, is_empty, list, one_of, port_name, port_number, text};
use super::selector;
use crate::field::{Error, Path};
use crate::names;

const SPEC: Path<'static> = Path::root("spec");

pub(super) fn ingress(object: &Value, errors: &mut Errors) {
    let spec = get(object, "spec");
    if is_empty(spec, "rules") && !has(spec, "defaultBackend") {
        let detail = "either `defaultBackend` or `rules` must be specified";
        errors.push(Error::invalid(&SPEC, get(spec, "rules").clone(), detail));
    }
    if has(spec, "defaultBackend") {
        backend(&SPEC.child("defaultBackend"), get(spec, "defaultBackend"), errors);
    }
    let rules = SPEC.child("rules");
    for (i, rule) in list(spec, "rules").iter().enumerate() {
        ingress_rule(&rules.index(i), rule, errors);
    }
    if let Some(class) = get(spec, "ingressClassName").as_str() {
        complain(
            &SPEC.child("ingressClassName"),
            class,
            names::dns1123_subdomain(class),
            errors,
        );
    }
}

fn ingress_rule(path: &Path<'_>, rule: &Value, errors: &mut Errors) {
    let host = text(rule, "host");
    if !host.is_empty() {
        let path = path.child("host");
        if host.parse::<std::net::IpAddr>().is_ok() {
            errors.push(Error::invalid(&path, host, "must be a DNS name, not an IP address"));
        } else if let Some(rest) = host.strip_prefix("*.") {
            complain(&path, host, names::dns1123_subdomain(rest), errors);
        } else {
            complain(&path, host, names::dns1123_subdomain(host), errors);
        }
    }
    if !has(rule, "http") {
        return;
    }
    let paths = list(get(rule, "http"), "paths");
    let root = path.child("http.paths");
    if paths.is_empty() {
        errors.push(Error::required(&root, ""));
    }
    for (i, entry) in paths.iter().enumerate() {
        let path = root.index(i);
        let target = text(entry, "path");
        match text(entry, "pathType") {
            "" => errors.push(Error::required(&path.child("pathType"), "pathType must be specified")),
            "Exact" | "Prefix" => {
                if !target.starts_with('/') {
                    errors.push(Error::invalid(&path.child("path"), target, "must be an absolute path"));
                }
                for bad in ["//", "/./", "/../", "%2f", "%2F"]
                    .iter()
                    .filter(|bad| target.contains(**bad))
                {
                    errors.push(Error::invalid(
                        &path.child("path"),
                        target,
                        format!("must not contain '{bad}'"),
                    ));
                }
            }
            "ImplementationSpecific" => {
                if !target.is_empty() && !target.starts_with('/') {
                    errors.push(Error::invalid(&path.child("path"), target, "must be an absolute path"));
                }
            }
            other => {
                let kinds = ["Exact", "ImplementationSpecific", "Prefix"];
                errors.push(Error::not_supported(&path.child("pathType"), other, &kinds));
            }
        }
        backend(&path.child("backend"), get(entry, "backend"), errors);
    }
}

fn backend(path: &Path<'_>, backend: &Value, errors: &mut Errors) {
    match (has(backend, "service"), has(backend, "resource")) {
        (true, true) => {
            errors.push(Error::invalid(
                path,
                "",
                "cannot set both resource and service backends",
            ));
        }
        (false, true) => {}
        (false, false) => errors.push(Error::required(&path.child("service"), "")),
        (true, false) => {
            let (path, service) = (path.child("service"), get(backend, "service"));
            match text(service, "name") {
                "" => errors.push(Error::required(&path.child("name"), "")),
                name => complain(&path.child("name"), name, names::dns1035_label(name), errors),
            }
            let (name, number) = (
                text(get(service, "port"), "name"),
                int(get(service, "port"), "number").unwrap_or(0),
            );
            match (name, number) {
                ("", 0) => errors.push(Error::required(&path, "port name or number is required")),
                ("", number) => port_number(&path.child("port.number"), number, errors),
                (name, 0) => complain(&path.child("port.name"), name, port_name(name), errors),
                _ => errors.push(Error::invalid(&path, "", "cannot set both port name & port number")),
            }
        }
    }
}

pub(super) fn ingress_class(object: &Value, errors: &mut Errors) {
    let controller = at(object, "spec.controller").as_str().unwrap_or_default();
    let path = SPEC.child("controller");
    if controller.is_empty() {
        errors.push(Error::required(&path, ""));
    } else if !controller.contains('/') {
        errors.push(Error::invalid(
            &path,
            controller,
            "must be a domain-prefixed path (such as \"acme.io/foo\")",
        ));
    }
}

pub(super) fn ingress_class_update(new: &Value, old: &Value, errors: &mut Errors) {
    if at(new, "spec.controller") != at(old, "spec.controller") {
        errors.push(Error::invalid(
            &SPEC.child("controller"),
            at(new, "spec.controller").clone(),
            IMMUTABLE,
        ));
    }
}

pub(super) fn policy(object: &Value, errors: &mut Errors) {
    let spec = get(object, "spec");
    selector::selector(&SPEC.child("podSelector"), get(spec, "podSelector"), errors);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        let root = SPEC.child(direction);
        for (i, rule) in list(spec, direction).iter().enumerate() {
            let path = root.index(i);
            policy_ports(&path.child("ports"), list(rule, "ports"), errors);
            let root = path.child(peers);
            for (i, peer) in list(rule, peers).iter().enumerate() {
                policy_peer(&root.index(i), peer, errors);
            }
        }
    }
    let types = list(spec, "policyTypes");
    let path = SPEC.child("policyTypes");
    if types.len() > 2 {
        errors.push(Error::invalid(
            &path,
            types.to_vec(),
            "may not specify more than two policyTypes",
        ));
        return;
    }
    for (i, kind) in types.iter().enumerate() {
        let kind = kind.as_str().unwrap_or_default();
        if !matches!(kind, "Ingress" | "Egress") {
            errors.push(Error::not_supported(&path.index(i), kind, &["Egress", "Ingress"]));
        }
    }
}

fn policy_ports(path: &Path<'_>, ports: &[Value], errors: &mut Errors) {
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        one_of(&path, "protocol", port, &["SCTP", "TCP", "UDP"], false, errors);
        match get(port, "port") {
            Value::Null if has(port, "endPort") => {
                errors.push(Error::required(
                    &path.child("port"),
                    "must be specified when `endPort` is specified",
                ));
            }
            Value::Null => {}
            Value::String(name) => complain(&path.child("port"), name, port_name(name), errors),
            number => {
                let number = number.as_i64().unwrap_or(0);
                port_number(&path.child("port"), number, errors);
                if let Some(end) = int(port, "endPort").filter(|end| *end < number) {
                    let detail = "must be greater than or equal to `port`";
                    errors.push(Error::invalid(&path.child("endPort"), end, detail));
                }
            }
        }
    }
}

fn policy_peer(path: &Path<'_>, peer: &Value, errors: &mut Errors) {
    let mut peers = 0;
    for key in ["podSelector", "namespaceSelector"] {
        if has(peer, key) {
            peers += 1;
            selector::selector(&path.child(key), get(peer, key), errors);
        }
    }
    if !has(peer, "ipBlock") {
        if peers == 0 {
            errors.push(Error::required(path, "must specify a peer"));
        }
        return;
    }
    if peers > 0 {
        errors.push(Error::forbidden(path, "may not specify both ipBlock and another peer"));
    }
    ip_block(&path.child("ipBlock"), get(peer, "ipBlock"), errors);
}

fn ip_block(path: &Path<'_>, block: &Value, errors: &mut Errors) {
    if text(block, "cidr").is_empty() {
        errors.push(Error::required(&path.child("cidr"), ""));
        return;
    }
    let Some(outer) = cidr(&path.child("cidr"), text(block, "cidr"), errors) else {
        return;
    };
    let root = path.child("except");
    for (i, except) in list(block, "except").iter().enumerate() {
        let (path, except) = (root.index(i), except.as_str().unwrap_or_default());
        if let Some(inner) = cidr(&path, except, errors)
            && (!outer.contains(&inner) || inner == outer)
        {
            errors.push(Error::invalid(&path, except, "must be a strict subset of `cidr`"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::created;
    use super::*;

    fn check(kind: &str, spec: Value, messages: &[&str]) {
        let object = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": spec});
        assert_eq!(created("networking.k8s.io", kind, &object), messages);
    }

    #[test]
    fn ingresses() {
        check(
            "Ingress",
            json!({"rules": [{"host": "1.2.3.4", "http": {"paths": [{"path": "a", "pathType": "Prefix",
                "backend": {"service": {"name": "web", "port": {}}}}]}}]}),
            &[
                "spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address",
                "spec.rules[0].http.paths[0].path: Invalid value: \"a\": must be an absolute path",
                "spec.rules[0].http.paths[0].backend.service: Required value: port name or number is required",
            ],
        );
        let ok = json!({"defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}});
        check("Ingress", ok, &[]);
    }

    #[test]
    fn policies() {
        check(
            "NetworkPolicy",
            json!({"podSelector": {}, "ingress": [{"from": [{}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/8"]}}],
                "ports": [{"port": 90, "endPort": 80}]}], "policyTypes": ["Both"]}),
            &[
                "spec.ingress[0].ports[0].endPort: Invalid value: 80: must be greater than or equal to `port`",
                "spec.ingress[0].from[0]: Required value: must specify a peer",
                "spec.ingress[0].from[1].ipBlock.except[0]: Invalid value: \"11.0.0.0/8\": must be a strict subset of `cidr`",
                "spec.policyTypes[0]: Unsupported value: \"Both\": supported values: \"Egress\", \"Ingress\"",
            ],
        );
    }
}
