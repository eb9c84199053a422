//! The watches of Namespaces, Services and EndpointSlices, reduced to what names are made of. One task owns them.

use std::pin::pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _, stream};
use hickory_proto::rr::Name;
use jiff::Timestamp;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use skiff_api::k8s_openapi::api::core::v1::{self as core, Namespace};
use skiff_api::k8s_openapi::api::discovery::v1::EndpointSlice;
use skiff_daemon::error_chain;
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::index::{Change, Endpoint, Index, Key, Kind, Port, Service, Slice, Watched};
use crate::publish;
use crate::resolver::Resolver;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// A change, and when what it tells of began.
struct Seen {
    change: Change,
    triggered: Option<Timestamp>,
}

/// Keeps the index, for ever. `published` is told when something of the DNS Service itself changes, `synced` when the
/// index is complete for the first time.
pub(crate) async fn watch(client: Client, resolver: Arc<Resolver>, published: Arc<Notify>, synced: Arc<Notify>) {
    let config = watcher::Config::default;
    let namespaces = watcher(Api::<Namespace>::all(client.clone()), config()).default_backoff();
    let services = watcher(Api::<core::Service>::all(client.clone()), config()).default_backoff();
    let slices = watcher(Api::<EndpointSlice>::all(client), config()).default_backoff();
    let namespaces = told("namespaces", namespaces).map(|event| change(Watched::Namespaces, event, namespace));
    let services = told("services", services).map(|event| change(Watched::Services, event, service));
    let slices = told("endpointslices", slices).map(|event| change(Watched::Slices, event, slice));
    let mut changes = pin!(stream::select(namespaces, stream::select(services, slices)));
    let mut missing = vec![Watched::Namespaces, Watched::Services, Watched::Slices];
    while let Some(seen) = changes.next().await {
        if let Change::Done(kind) = seen.change {
            missing.retain(|other| *other != kind);
        }
        let concerns = publish::concerns(&seen.change);
        take(&resolver, seen);
        if missing.is_empty() && resolver.set_synced() {
            info!("every name of the cluster is known");
            synced.notify_one();
        }
        if concerns {
            published.notify_one();
        }
    }
}

fn take(resolver: &Resolver, seen: Seen) {
    let owner = match &seen.change {
        Change::Slice {
            key,
            service: Some(service),
            ..
        } => Some(Key::new(&key.namespace, service)),
        _ => None,
    };
    let now = Timestamp::now();
    let headless = {
        let mut index = resolver.index.write();
        index.apply(seen.change);
        index.serial = u32::try_from(now.as_second()).unwrap_or_default();
        owner.is_some_and(|owner| is_headless(&index, &owner))
    };
    if let Some(began) = seen.triggered.filter(|_| headless) {
        let took = std::time::Duration::try_from(now - began).unwrap_or_default();
        resolver.metrics.programmed("headless_with_selector", took);
    }
}

fn is_headless(index: &Index, key: &Key) -> bool {
    let service = index.service(&key.namespace, &key.name);
    service.is_some_and(|(service, _)| service.kind == Kind::Headless)
}

/// Failures pass: the watch is begun again by itself, with pauses.
fn told<K>(what: &'static str, events: impl Stream<Item = watcher::Result<Event<K>>>) -> impl Stream<Item = Event<K>> {
    events.filter_map(move |event| {
        let event = event.inspect_err(|error| {
            warn!(
                error = error_chain(error),
                "cannot watch {what}: repeated until it works"
            );
        });
        std::future::ready(event.ok())
    })
}

fn change<K: kube::ResourceExt>(kind: Watched, event: Event<K>, read: fn(Key, &K) -> Change) -> Seen {
    let key = |object: &K| Key::new(&object.namespace().unwrap_or_default(), &object.name_any());
    let listed = |change| Seen {
        change,
        triggered: None,
    };
    match event {
        Event::Init => listed(Change::Begin(kind)),
        Event::InitDone => listed(Change::Done(kind)),
        Event::InitApply(object) => listed(read(key(&object), &object)),
        Event::Apply(object) => Seen {
            change: read(key(&object), &object),
            triggered: object.annotations().get(TRIGGERED).and_then(|text| text.parse().ok()),
        },
        Event::Delete(object) => listed(Change::Gone(kind, key(&object))),
    }
}

fn namespace(key: Key, _: &Namespace) -> Change {
    Change::Namespace(key)
}

fn service(key: Key, object: &core::Service) -> Change {
    let spec = object.spec.clone().unwrap_or_default();
    let external = spec.type_.as_deref() == Some("ExternalName");
    let texts = spec.cluster_ips.filter(|texts| !texts.is_empty());
    let texts = texts.unwrap_or_else(|| spec.cluster_ip.into_iter().collect());
    let kind = if external {
        external_name(spec.external_name.as_deref().unwrap_or_default()).map_or(Kind::Nowhere, Kind::External)
    } else if texts.first().is_some_and(|text| text == "None") {
        Kind::Headless
    } else {
        let ips: Vec<_> = texts.iter().filter_map(|text| text.parse().ok()).collect();
        if ips.is_empty() {
            Kind::Nowhere
        } else {
            Kind::ClusterIps(ips)
        }
    };
    let ports = spec.ports.into_iter().flatten();
    let service = Service {
        kind,
        ports: ports
            .map(|found| port(found.name.as_deref(), found.protocol.as_deref(), Some(found.port)))
            .collect(),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
    };
    Change::Service(key, service)
}

/// An address is no name, and cannot be an alias' target.
fn external_name(text: &str) -> Option<Name> {
    if text.is_empty() || text.parse::<std::net::IpAddr>().is_ok() {
        return None;
    }
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn slice(key: Key, object: &EndpointSlice) -> Change {
    let ports = object.ports.iter().flatten();
    let endpoints = object.endpoints.iter().flatten().flat_map(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
        let hostname: Option<Box<str>> = endpoint
            .hostname
            .as_deref()
            .filter(|name| !name.is_empty())
            .map(Into::into);
        let ips = endpoint.addresses.iter().filter_map(|text| text.parse().ok());
        ips.map(move |ip| Endpoint {
            ip,
            hostname: hostname.clone(),
            ready,
        })
    });
    Change::Slice {
        service: object.labels().get(SERVICE_NAME).map(|name| name.as_str().into()),
        slice: Slice {
            endpoints: endpoints.collect(),
            ports: ports
                .map(|found| port(found.name.as_deref(), found.protocol.as_deref(), found.port))
                .collect(),
        },
        key,
    }
}

fn port(name: Option<&str>, protocol: Option<&str>, number: Option<i32>) -> Port {
    Port {
        name: name.unwrap_or_default().to_ascii_lowercase().into(),
        protocol: protocol.unwrap_or("TCP").to_ascii_lowercase().into(),
        number: number.and_then(|number| u16::try_from(number).ok()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_service(spec: serde_json::Value) -> Service {
        let object =
            serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec})).unwrap();
        match service(Key::new("n", "s"), &object) {
            Change::Service(_, service) => service,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn kinds_of_services() {
        let name = |text: &str| Name::from_ascii(text).unwrap();
        let cases = [
            (
                json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5", "fd00::5"]}),
                Kind::ClusterIps(vec!["10.96.0.5".parse().unwrap(), "fd00::5".parse().unwrap()]),
            ),
            (json!({"clusterIP": "None", "clusterIPs": ["None"]}), Kind::Headless),
            (
                json!({"type": "ExternalName", "externalName": "Db.example.com"}),
                Kind::External(name("db.example.com.")),
            ),
            (
                json!({"type": "ExternalName", "externalName": "10.0.0.1"}),
                Kind::Nowhere,
            ),
            (json!({"type": "ExternalName", "externalName": "a..b"}), Kind::Nowhere),
            (json!({}), Kind::Nowhere),
        ];
        for (spec, kind) in cases {
            assert_eq!(read_service(spec.clone()).kind, kind, "{spec}");
        }
    }

    #[test]
    fn a_slice_is_reduced_to_addresses_names_and_ports() {
        let object = json!({
            "metadata": {"name": "s-1", "namespace": "n", "labels": {"kubernetes.io/service-name": "s"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}, {"name": "any"}],
            "endpoints": [{"addresses": ["10.244.0.2"], "hostname": "web-0"},
                          {"addresses": ["10.244.0.3", "no address"], "conditions": {"ready": false}, "hostname": ""}],
        });
        let Change::Slice { service, slice, .. } =
            slice(Key::new("n", "s-1"), &serde_json::from_value(object).unwrap())
        else {
            panic!("no slice");
        };
        assert_eq!(service.as_deref(), Some("s"));
        assert_eq!(
            slice.ports,
            [port(Some("http"), None, Some(8080)), port(Some("any"), None, None)]
        );
        let seen: Vec<_> = slice
            .endpoints
            .iter()
            .map(|e| (e.ip.to_string(), e.hostname.as_deref(), e.ready))
            .collect();
        assert_eq!(
            seen,
            [
                ("10.244.0.2".to_owned(), Some("web-0"), true),
                ("10.244.0.3".to_owned(), None, false)
            ]
        );
    }
}
