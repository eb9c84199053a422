//! The older form of a Service's addresses: one Endpoints object, for consumers that do not read EndpointSlices.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::api::DeleteParams;
use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference,
};

use crate::endpoint_slice::{HEADLESS, label_patch, resolve_ports, services_of_pod};
use crate::events::{Recorder, Regarding};
use crate::informer::Informer;
use crate::manager::Shared;
use crate::queue::{Pace, Queue};
use crate::view::{Key, Pod, Service, View};
use crate::write::{Error, Merge, Writer};

const WORKERS: usize = 5;
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const CONTROLLER_NAME: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// More addresses do not fit into one object.
const MAX_ADDRESSES: usize = 1000;
/// The distance between two writes of one object. No proxy waits for it: they read EndpointSlices.
const INTERVAL: Duration = Duration::from_millis(200);

struct Controller {
    services: Arc<Informer<Service>>,
    pods: Arc<Informer<Pod>>,
    endpoints: Arc<Informer<Endpoints>>,
    writer: Writer,
    recorder: Recorder,
    queue: Arc<Queue<Key>>,
    pace: Pace<Key>,
}

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let controller = Arc::new(Controller {
        services: shared.informers.services.want(),
        pods: shared.informers.pods.want(),
        endpoints: shared.informers.endpoints.want(),
        writer: shared.writer("endpoint-controller"),
        recorder: shared.recorder("endpoint-controller"),
        queue: shared.queue("endpoint"),
        pace: Pace::default(),
    });
    controller.services.feed(&controller.queue);
    let this = Arc::clone(&controller);
    controller.pods.on_change(move |change| {
        for key in services_of_pod(&this.services, change) {
            this.queue.add(key);
        }
    });
    controller.endpoints.feed(&controller.queue);
    let synced = [
        controller.services.synced(),
        controller.pods.synced(),
        controller.endpoints.synced(),
    ];
    let queue = Arc::clone(&controller.queue);
    shared.work(&queue, WORKERS, synced, move |key| {
        let this = Arc::clone(&controller);
        async move { this.sync(key).await }
    })
}

impl Controller {
    async fn sync(&self, key: Key) -> Result<(), Error> {
        let current = self.endpoints.get(&key);
        let Some(service) = self.services.get(&key) else {
            self.pace.forget(&key);
            // Endpoints that people keep by hand have no such label and stay.
            let Some(current) = current.filter(|endpoints| endpoints.label(MANAGED_BY).is_some()) else {
                return Ok(());
            };
            return match self
                .writer
                .delete::<Endpoints>(&key, current.uid(), DeleteParams::default())
                .await
            {
                Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
                _ => Ok(()),
            };
        };
        let without = service.spec.selector.as_ref().is_none_or(BTreeMap::is_empty);
        if without || service.spec.type_.as_deref() == Some("ExternalName") || service.is_being_deleted() {
            return Ok(());
        }
        if let Some(left) = self.pace.wait(&key, INTERVAL) {
            self.queue.add_after(key, left);
            return Ok(());
        }
        let pods = self
            .pods
            .select(service.namespace(), |pod| service.selects(pod.labels()));
        let (subsets, truncated) = subsets(&service, &pods);
        let labels = labels(&service);
        if current
            .as_ref()
            .is_some_and(|current| is_same(current, &subsets, &labels, truncated))
        {
            return Ok(());
        }
        self.pace.wrote(&key);
        let result = match &current {
            None => self.create(&service, &key, &subsets, &labels, truncated).await,
            Some(current) => self.update(current, &subsets, &labels, truncated).await,
        };
        match result {
            Err(error) if error.is_namespace_terminating() => Ok(()),
            Err(error) => {
                let (verb, reason) = match current {
                    None => ("create", "FailedToCreateEndpoint"),
                    Some(_) => ("update", "FailedToUpdateEndpoint"),
                };
                if !error.is_conflict() {
                    let message = format!("Failed to {verb} endpoint {key}: {}", error.message());
                    self.recorder.warning(Regarding::of(&*service), reason, message);
                }
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    async fn create(
        &self,
        service: &Service,
        key: &Key,
        subsets: &[EndpointSubset],
        labels: &BTreeMap<String, String>,
        truncated: bool,
    ) -> Result<(), Error> {
        let mut body = json!({
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": {"name": service.name(), "namespace": service.namespace(), "labels": labels},
            "subsets": subsets,
        });
        if truncated {
            body["metadata"]["annotations"] = json!({OVER_CAPACITY: "truncated"});
        }
        match self.writer.create::<Endpoints>(key, &body).await {
            // The store was behind; its event brings us back.
            Err(error) if error.is_already_exists() => Ok(()),
            other => other.map(drop),
        }
    }

    async fn update(
        &self,
        current: &Endpoints,
        subsets: &[EndpointSubset],
        labels: &BTreeMap<String, String>,
        truncated: bool,
    ) -> Result<(), Error> {
        let patch = json!({
            "metadata": {
                "uid": current.uid(),
                "resourceVersion": current.resource_version(),
                "labels": label_patch(current.labels(), labels),
                "annotations": {OVER_CAPACITY: if truncated { json!("truncated") } else { Value::Null }},
            },
            "subsets": subsets,
        });
        self.writer
            .patch::<Endpoints>(&current.key(), Merge::Json, &patch)
            .await
            .map(drop)
    }
}

fn is_same(
    current: &Endpoints,
    subsets: &[EndpointSubset],
    labels: &BTreeMap<String, String>,
    truncated: bool,
) -> bool {
    let marked = current.annotation(OVER_CAPACITY).is_some();
    current.subsets.as_deref().unwrap_or_default() == subsets && current.labels() == labels && marked == truncated
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    if service.is_headless() {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER_NAME.to_owned());
    labels
}

/// Ports in a fixed order: name, number, protocol, application protocol.
type Ports = Vec<(String, i32, String, Option<String>)>;

/// The addresses by the ports that they have, ready ones apart; and whether some had to be left out.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let mut found: BTreeMap<Ports, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !pod.is_terminal()) {
        let always = service.spec.publish_not_ready_addresses;
        let Some(ip) = pod.status.pod_ip.clone().filter(|_| always || !pod.is_being_deleted()) else {
            continue;
        };
        let mut ports: Ports = resolve_ports(service, pod)
            .into_iter()
            .map(|(port, number)| {
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
                (
                    port.name.clone().unwrap_or_default(),
                    number,
                    protocol,
                    port.app_protocol.clone(),
                )
            })
            .collect();
        ports.sort();
        if ports.is_empty() && !(service.spec.ports.is_empty() && service.is_headless()) {
            continue;
        }
        let (ready, not_ready) = found.entry(ports).or_default();
        let list = if always || pod.is_ready() { ready } else { not_ready };
        list.push(address(service, pod, ip));
    }
    let total: usize = found
        .values()
        .map(|(ready, not_ready)| ready.len() + not_ready.len())
        .sum();
    let mut room = MAX_ADDRESSES;
    let mut take = |mut list: Vec<EndpointAddress>| {
        list.sort_by(|a, b| a.ip.cmp(&b.ip));
        list.truncate(room);
        room -= list.len();
        (!list.is_empty()).then_some(list)
    };
    // Ready addresses are the last to be left out.
    let found: Vec<_> = found
        .into_iter()
        .map(|(ports, (ready, not_ready))| (ports, take(ready), not_ready))
        .collect();
    let subsets = found.into_iter().map(|(ports, addresses, not_ready)| EndpointSubset {
        addresses,
        not_ready_addresses: take(not_ready),
        ports: (!ports.is_empty()).then(|| ports.into_iter().map(port).collect()),
    });
    let subsets = subsets
        .filter(|subset| subset.addresses.is_some() || subset.not_ready_addresses.is_some())
        .collect();
    (subsets, total > MAX_ADDRESSES)
}

fn address(service: &Service, pod: &Pod, ip: String) -> EndpointAddress {
    let in_subdomain = pod.spec.subdomain.as_deref() == Some(service.name());
    EndpointAddress {
        ip,
        hostname: pod
            .spec
            .hostname
            .clone()
            .filter(|hostname| in_subdomain && !hostname.is_empty()),
        node_name: pod.spec.node_name.clone(),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.namespace().to_owned()),
            name: Some(pod.name().to_owned()),
            uid: Some(pod.uid().to_owned()),
            ..ObjectReference::default()
        }),
    }
}

fn port((name, number, protocol, app_protocol): (String, i32, String, Option<String>)) -> EndpointPort {
    EndpointPort {
        name: (!name.is_empty()).then_some(name),
        port: number,
        protocol: Some(protocol),
        app_protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, ip: &str, ready: bool, port: i32) -> Arc<Pod> {
        let object = json!({
            "metadata": {"namespace": "ns", "name": name, "uid": name},
            "spec": {"nodeName": "n1", "containers": [{"ports": [{"name": "http", "containerPort": port}]}]},
            "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "web"},
            "spec": {"ports": [{"name": "w", "port": 80, "targetPort": "http"}]},
        }))
        .unwrap()
    }

    #[test]
    fn addresses_are_grouped_by_ports_and_readiness() {
        let pods = [
            pod("b", "10.0.0.2", true, 8080),
            pod("a", "10.0.0.1", true, 8080),
            pod("c", "10.0.0.3", false, 8080),
            pod("d", "10.0.0.4", true, 9090),
        ];
        let (subsets, truncated) = subsets(&service(), &pods);
        let short: Vec<_> = subsets
            .iter()
            .map(|subset| {
                let ips = |list: &Option<Vec<EndpointAddress>>| {
                    list.iter()
                        .flatten()
                        .map(|a| a.ip.clone())
                        .collect::<Vec<_>>()
                        .join(" ")
                };
                (
                    subset.ports.as_ref().unwrap()[0].port,
                    ips(&subset.addresses),
                    ips(&subset.not_ready_addresses),
                )
            })
            .collect();
        assert_eq!(
            short,
            [
                (8080, "10.0.0.1 10.0.0.2".into(), "10.0.0.3".into()),
                (9090, "10.0.0.4".into(), String::new())
            ]
        );
        assert!(!truncated);
    }

    #[test]
    fn what_does_not_fit_is_left_out_not_ready_first() {
        let many: Vec<_> = (0..1010)
            .map(|n| pod(&n.to_string(), &format!("10.0.{}.{}", n / 250, n % 250), n >= 20, 8080))
            .collect();
        let (subsets, truncated) = subsets(&service(), &many);
        assert!(truncated);
        assert_eq!(subsets[0].addresses.as_ref().unwrap().len(), 990);
        assert_eq!(subsets[0].not_ready_addresses.as_ref().unwrap().len(), 10);
    }
}
