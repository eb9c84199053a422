//! The API's objects, reduced to the model.

use std::net::IpAddr;
use std::str::FromStr as _;

use kube::ResourceExt as _;
use skiff_api::k8s_openapi::api::core::v1 as core;
use skiff_api::k8s_openapi::api::discovery::v1 as discovery;
use skiff_api::k8s_openapi::api::networking::v1 as networking;
use skiff_api::quantity::Quantity;

use crate::CONTROLLER;
use crate::model::{Backend, Class, Endpoint, Ingress, Key, Options, Path, PortRef, Protocol, Rule, Secret, Service};
use crate::model::{ServicePort, Slice, Tls};

/// The annotation that named a class before `spec.ingressClassName` was there.
const LEGACY_CLASS: &str = "kubernetes.io/ingress.class";
/// Makes a class that of Ingresses which name none.
pub(crate) const DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";
/// What the annotations of a class begin with in which its controllers tell where they listen: nobody else is to be given
/// these ports.
pub(crate) const LISTENS: &str = "listens.ingress.skiff/";
/// "false": plain requests to hosts with TLS are answered, not redirected.
const SSL_REDIRECT: &str = "ingress.skiff/ssl-redirect";
/// The largest request body as a quantity, 0 for any.
const MAX_BODY: &str = "ingress.skiff/max-body-size";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What identifies an object.
pub(crate) fn key(object: &impl kube::ResourceExt) -> Key {
    Key::new(object.namespace().unwrap_or_default(), object.name_any())
}

pub(crate) fn ingress(object: networking::Ingress) -> Ingress {
    let annotations = object.annotations();
    let mut complaints = Vec::new();
    let options = Options {
        ssl_redirect: annotation(annotations.get(SSL_REDIRECT), SSL_REDIRECT, &mut complaints, |text| {
            text.parse().ok()
        })
        .unwrap_or(true),
        max_body: annotation(annotations.get(MAX_BODY), MAX_BODY, &mut complaints, bytes),
    };
    let legacy_class = annotations.get(LEGACY_CLASS).cloned();
    let created = object.creation_timestamp().map_or(0, |time| time.0.as_second());
    let published = object.status.and_then(|status| status.load_balancer?.ingress);
    let published = published.into_iter().flatten().filter_map(|at| at.ip.or(at.hostname));
    let spec = object.spec.unwrap_or_default();
    Ingress {
        uid: object.metadata.uid.unwrap_or_default(),
        created,
        class: spec.ingress_class_name,
        legacy_class,
        options,
        default_backend: spec.default_backend.map(backend),
        rules: spec.rules.into_iter().flatten().map(rule).collect(),
        tls: spec.tls.into_iter().flatten().map(tls).collect(),
        published: published.collect(),
        complaints,
    }
}

/// A value that cannot be read counts as absent, and is told of.
fn annotation<T>(
    text: Option<&String>,
    name: &str,
    complaints: &mut Vec<String>,
    read: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    let text = text?;
    let value = read(text);
    if value.is_none() {
        complaints.push(format!("annotation {name} has a value that cannot be used: {text:?}"));
    }
    value
}

fn bytes(text: &str) -> Option<u64> {
    let quantity = Quantity::from_str(text).ok()?;
    u64::try_from(quantity.value()).ok()
}

fn rule(rule: networking::IngressRule) -> Rule {
    let paths = rule.http.into_iter().flat_map(|http| http.paths);
    Rule {
        host: rule.host.unwrap_or_default().to_ascii_lowercase(),
        paths: paths
            .map(|path| Path {
                path: path
                    .path
                    .filter(|path| !path.is_empty())
                    .unwrap_or_else(|| "/".to_owned()),
                exact: path.path_type == "Exact",
                backend: backend(path.backend),
            })
            .collect(),
    }
}

fn backend(backend: networking::IngressBackend) -> Backend {
    let Some(service) = backend.service else {
        let resource = backend.resource.unwrap_or_default();
        return Backend::Other(format!("{} {}", resource.kind, resource.name));
    };
    let port = service.port.unwrap_or_default();
    let number = port.number.and_then(|number| u16::try_from(number).ok());
    let port = match port.name.filter(|name| !name.is_empty()) {
        Some(name) => PortRef::Name(name),
        None => PortRef::Number(number.unwrap_or_default()),
    };
    Backend::Service {
        name: service.name,
        port,
    }
}

fn tls(tls: networking::IngressTLS) -> Tls {
    let hosts = tls.hosts.into_iter().flatten();
    Tls {
        hosts: hosts.map(|host| host.to_ascii_lowercase()).collect(),
        secret: tls.secret_name.filter(|name| !name.is_empty()),
    }
}

pub(crate) fn class(object: &networking::IngressClass) -> Class {
    let controller = object.spec.as_ref().and_then(|spec| spec.controller.as_deref());
    Class {
        ours: controller == Some(CONTROLLER),
        default: object
            .annotations()
            .get(DEFAULT_CLASS)
            .is_some_and(|text| text == "true"),
        listens: (object.annotations().iter())
            .filter(|(name, _)| name.starts_with(LISTENS))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
    }
}

pub(crate) fn service(object: core::Service) -> Service {
    let spec = object.spec.unwrap_or_default();
    let ports = spec.ports.into_iter().flatten();
    let ports = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    Service {
        external: spec.type_.as_deref() == Some("ExternalName"),
        ports: ports
            .filter_map(|port| {
                let app_protocol = port.app_protocol.unwrap_or_default();
                Some(ServicePort {
                    name: port.name.unwrap_or_default(),
                    number: u16::try_from(port.port).ok()?,
                    protocol: protocol(&app_protocol),
                    app_protocol,
                })
            })
            .collect(),
    }
}

/// What is not known is spoken to as HTTP/1.1, but what surely is something else is not spoken to at all.
fn protocol(name: &str) -> Protocol {
    match name.to_ascii_lowercase().as_str() {
        "kubernetes.io/h2c" | "h2c" | "grpc" => Protocol::H2c,
        "kubernetes.io/wss" | "https" | "grpcs" | "tls" => Protocol::Unknown,
        _ => Protocol::Http1,
    }
}

pub(crate) fn slice(object: discovery::EndpointSlice) -> Slice {
    let service = object.labels().get(SERVICE_NAME).cloned().unwrap_or_default();
    let ports = object.ports.into_iter().flatten();
    let ports = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    let endpoints = object.endpoints.into_iter().flatten().filter_map(|endpoint| {
        let conditions = endpoint.conditions.unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        let serving = conditions.serving.unwrap_or(ready);
        let ending = conditions.terminating.unwrap_or(false) && serving;
        // Further addresses of an endpoint have no meaning in the API.
        let ip: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        ((ready || ending) && is_remote(ip)).then_some(Endpoint { ip, ready })
    });
    Slice {
        service,
        endpoints: endpoints.collect(),
        ports: ports
            .filter_map(|port| Some((port.name.unwrap_or_default(), u16::try_from(port.port?).ok()?)))
            .collect(),
    }
}

/// An endpoint on loopback or link-local would lead into the node's own services, or its cloud's.
fn is_remote(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_multicast()),
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified() || ip.is_multicast()),
    }
}

pub(crate) fn secret(object: core::Secret) -> Secret {
    let mut data = object.data.unwrap_or_default();
    let mut take = |name| data.remove(name).map(|bytes| bytes.0).unwrap_or_default();
    Secret::new(take("tls.crt"), take("tls.key"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    #[test]
    fn an_ingress_is_reduced_with_its_annotations() {
        let object = |annotations: Value| {
            ingress(
                from_value(json!({
                    "metadata": {"namespace": "n", "name": "a", "uid": "u", "creationTimestamp": "1970-01-01T00:01:00Z", "annotations": annotations},
                    "spec": {
                        "defaultBackend": {"resource": {"kind": "Bucket", "name": "b"}},
                        "rules": [{"host": "A.Test", "http": {"paths": [
                            {"pathType": "ImplementationSpecific", "backend": {"service": {"name": "s", "port": {"name": "web"}}}},
                            {"path": "/x", "pathType": "Exact", "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}],
                        "tls": [{"hosts": ["A.Test"], "secretName": "t"}, {}],
                    },
                    "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}, {"hostname": "x"}]}},
                }))
                .unwrap(),
            )
        };
        let plain = object(json!({}));
        let service = |port| Backend::Service {
            name: "s".to_owned(),
            port,
        };
        assert_eq!(
            (plain.created, plain.uid.as_str(), plain.options),
            (60, "u", Options::default())
        );
        assert_eq!(plain.default_backend, Some(Backend::Other("Bucket b".to_owned())));
        assert_eq!(plain.rules[0].host, "a.test");
        assert_eq!(
            (plain.rules[0].paths[0].path.as_str(), plain.rules[0].paths[0].exact),
            ("/", false)
        );
        assert_eq!(
            plain.rules[0].paths[0].backend,
            service(PortRef::Name("web".to_owned()))
        );
        assert_eq!(plain.rules[0].paths[1].backend, service(PortRef::Number(80)));
        assert!(plain.rules[0].paths[1].exact);
        assert_eq!(plain.tls[0].hosts, ["a.test"]);
        assert_eq!(plain.published, ["1.2.3.4", "x"]);

        let asked = object(json!({SSL_REDIRECT: "false", MAX_BODY: "8Mi", LEGACY_CLASS: "other"}));
        assert_eq!(
            asked.options,
            Options {
                ssl_redirect: false,
                max_body: Some(8 << 20)
            }
        );
        assert_eq!(asked.legacy_class.as_deref(), Some("other"));
        let wrong = object(json!({SSL_REDIRECT: "perhaps", MAX_BODY: "-1"}));
        assert_eq!(wrong.options, Options::default());
        assert_eq!(wrong.complaints.len(), 2, "{:?}", wrong.complaints);
    }

    #[test]
    fn endpoints_that_must_not_be_sent_to_are_left_out() {
        let reduced = slice(
            from_value(json!({
                "metadata": {"labels": {SERVICE_NAME: "s"}}, "addressType": "IPv4",
                "ports": [{"name": "web", "port": 8080}, {"port": 53, "protocol": "UDP"}, {"name": "all"}],
                "endpoints": [{"addresses": ["10.0.0.1"]},
                    {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                    {"addresses": ["10.0.0.3"], "conditions": {"ready": false}},
                    {"addresses": ["10.0.0.4"], "conditions": {"ready": false, "serving": false, "terminating": true}},
                    {"addresses": ["127.0.0.1"]}, {"addresses": ["169.254.169.254"]}, {"addresses": ["::ffff:127.0.0.1"]},
                    {"addresses": ["junk"]}, {"addresses": []}],
            }))
            .unwrap(),
        );
        assert_eq!(
            (reduced.service.as_str(), reduced.ports),
            ("s", vec![("web".to_owned(), 8080)])
        );
        let seen: Vec<_> = reduced.endpoints.iter().map(|e| (e.ip.to_string(), e.ready)).collect();
        assert_eq!(seen, [("10.0.0.1".to_owned(), true), ("10.0.0.2".to_owned(), false)]);
    }

    #[test]
    fn services_and_classes() {
        let reduced = service(
            from_value(json!({"spec": {"ports": [
                {"name": "a", "port": 80}, {"name": "b", "port": 81, "appProtocol": "kubernetes.io/h2c"},
                {"name": "c", "port": 82, "appProtocol": "https"}, {"name": "d", "port": 83, "appProtocol": "kubernetes.io/ws"},
                {"name": "e", "port": 84, "protocol": "UDP"}]}}))
            .unwrap(),
        );
        let protocols: Vec<_> = reduced.ports.iter().map(|port| (port.number, port.protocol)).collect();
        let wanted = [
            (80, Protocol::Http1),
            (81, Protocol::H2c),
            (82, Protocol::Unknown),
            (83, Protocol::Http1),
        ];
        assert_eq!(protocols, wanted);
        let read = |controller: &str, default: &str| {
            let object =
                json!({"metadata": {"annotations": {DEFAULT_CLASS: default}}, "spec": {"controller": controller}});
            let Class { ours, default, .. } = class(&from_value(object).unwrap());
            (ours, default)
        };
        let listening =
            json!({"metadata": {"annotations": {"listens.ingress.skiff/10.0.0.1": "10.0.0.1:80", "other": "x"}}});
        let listens = class(&from_value(listening).unwrap()).listens;
        assert_eq!(listens.into_values().collect::<Vec<_>>(), ["10.0.0.1:80"]);
        assert_eq!(read(CONTROLLER, "true"), (true, true));
        assert_eq!(read("someone.else/ingress", "no"), (false, false));
    }
}
