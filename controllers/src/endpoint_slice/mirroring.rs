//! Copies Endpoints that people or programs keep for a Service without a selector into slices, which are all that proxies and
//! DNS read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skiff_api::k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints};
use skiff_api::k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};

use super::desired::{AddressType, Ports};
use super::pack::{Plan, pack};
use super::write::SliceWriter;
use super::{HEADLESS, MANAGED_BY, SERVICE_NAME};
use crate::events::{Recorder, Regarding};
use crate::informer::{Change, Informer};
use crate::manager::Shared;
use crate::queue::Queue;
use crate::view::{Index, Key, Service, View};
use crate::write::Error;

const WORKERS: usize = 5;
const CONTROLLER_NAME: &str = "endpointslicemirroring-controller.k8s.io";
/// Whoever sets it to "true" writes slices too.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// An Endpoints object that is a lock, and no list of addresses.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Upstream's `--mirroring-max-endpoints-per-subset`.
const MAX_PER_SUBSET: usize = 1000;

struct Controller {
    services: Arc<Informer<Service>>,
    endpoints: Arc<Informer<Endpoints>>,
    slices: Arc<Informer<EndpointSlice>>,
    writer: SliceWriter,
    recorder: Recorder,
    queue: Arc<Queue<Key>>,
}

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let controller = Arc::new(Controller {
        services: shared.informers.services.want(),
        endpoints: shared.informers.endpoints.want(),
        slices: shared.informers.endpoint_slices.want(),
        writer: SliceWriter::new(shared.writer("endpointslicemirroring-controller")),
        recorder: shared.recorder("endpoint-slice-mirroring-controller"),
        queue: shared.queue("endpoint_slice_mirroring"),
    });
    controller.services.feed(&controller.queue);
    controller.endpoints.feed(&controller.queue);
    controller.slices.tell(&controller, Controller::slice_changed);
    let synced = [
        controller.services.synced(),
        controller.endpoints.synced(),
        controller.slices.synced(),
    ];
    let queue = Arc::clone(&controller.queue);
    shared.work(&queue, WORKERS, synced, move |key| {
        let this = Arc::clone(&controller);
        async move { this.sync(key).await }
    })
}

impl Controller {
    fn slice_changed(&self, change: &Change<'_, EndpointSlice>) {
        let slice = change.object();
        if change.is_deletion() {
            self.writer.forget_slice(slice.uid());
        }
        if slice.label(MANAGED_BY) == Some(CONTROLLER_NAME)
            && let Some(service) = slice.label(SERVICE_NAME)
        {
            self.queue.add(Key::new(slice.namespace(), service));
        }
    }

    async fn sync(&self, key: Key) -> Result<(), Error> {
        let mut slices = self
            .slices
            .by_index(&Index::Service(key.namespace.to_string(), key.name.to_string()));
        slices.retain(|slice| slice.label(MANAGED_BY) == Some(CONTROLLER_NAME) && !slice.is_being_deleted());
        let service = self.services.get(&key).filter(|service| is_without_selector(service));
        let endpoints = self.endpoints.get(&key).filter(|endpoints| is_mirrored(endpoints));
        let Some((_, endpoints)) = service.zip(endpoints) else {
            self.writer.forget(&key);
            return self.writer.delete(&slices).await;
        };
        if let Some(left) = self.writer.stale_for(&key, &slices) {
            self.queue.add_after(key, left);
            return Ok(());
        }
        let labels = labels(&endpoints);
        let result = self
            .writer
            .apply(&*endpoints, &labels, plan(&endpoints, slices, &labels))
            .await;
        if let Err(error) = &result
            && !error.is_namespace_terminating()
        {
            let message = format!(
                "Error mirroring EndpointSlices for Endpoints {key}: {}",
                error.message()
            );
            self.recorder
                .warning(Regarding::of(&*endpoints), "FailedToUpdateEndpointSlices", message);
        }
        result
    }
}

fn is_without_selector(service: &Service) -> bool {
    !service.is_being_deleted() && service.spec.selector.as_ref().is_none_or(BTreeMap::is_empty)
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    let skipped = endpoints.label(SKIP) == Some("true");
    !skipped && !endpoints.is_being_deleted() && endpoints.annotation(LEADER).is_none()
}

/// The object's own labels and those that say whose slice it is.
fn labels(endpoints: &Endpoints) -> BTreeMap<String, String> {
    let mut labels = endpoints.labels().clone();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.to_owned(), endpoints.name().to_owned());
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER_NAME.to_owned());
    labels
}

fn plan(endpoints: &Endpoints, slices: Vec<Arc<EndpointSlice>>, labels: &BTreeMap<String, String>) -> Plan {
    let desired = [AddressType::Ipv4, AddressType::Ipv6].map(|family| (family, by_ports(endpoints, family)));
    let is_empty = desired.iter().all(|(_, found)| found.is_empty());
    let mut left = slices;
    let mut plan = Plan::default();
    for (family, found) in desired {
        // Without any address an empty slice stands for the object.
        if found.is_empty() && !(is_empty && family == AddressType::Ipv4) {
            continue;
        }
        let (ours, others) = left
            .into_iter()
            .partition(|slice| slice.address_type == family.as_str());
        left = others;
        plan.extend(pack(ours, found, family.as_str(), labels));
    }
    plan.delete.extend(left);
    plan
}

/// The addresses of one family, by the ports that they have.
fn by_ports(endpoints: &Endpoints, family: AddressType) -> BTreeMap<Ports, Vec<Endpoint>> {
    let mut found: BTreeMap<Ports, Vec<Endpoint>> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let mut seen = BTreeSet::new();
        let all = addresses(subset).filter(|(address, _)| family.has(&address.ip));
        let new = all.filter(|(address, _)| seen.insert(address.ip.clone()));
        let mirrored: Vec<_> = new
            .take(MAX_PER_SUBSET)
            .map(|(address, ready)| endpoint(address, ready))
            .collect();
        if !mirrored.is_empty() {
            found.entry(ports(subset)).or_default().extend(mirrored);
        }
    }
    found
}

/// All addresses, and whether each is ready: those come first.
fn addresses(subset: &EndpointSubset) -> impl Iterator<Item = (&EndpointAddress, bool)> {
    let ready = subset.addresses.iter().flatten().map(|address| (address, true));
    let not_ready = subset.not_ready_addresses.iter().flatten();
    ready.chain(not_ready.map(|address| (address, false)))
}

fn ports(subset: &EndpointSubset) -> Ports {
    let ports = subset.ports.iter().flatten().map(|port| EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        protocol: port.protocol.clone(),
        port: Some(port.port),
        app_protocol: port.app_protocol.clone(),
    });
    Ports::of(&ports.collect::<Vec<_>>())
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn endpoints(metadata: Value, subsets: Value) -> Endpoints {
        let mut object =
            json!({"metadata": {"namespace": "ns", "name": "db", "labels": {"team": "a"}}, "subsets": subsets});
        for (key, value) in metadata.as_object().unwrap() {
            object["metadata"][key] = value.clone();
        }
        serde_json::from_value(object).unwrap()
    }

    fn short(plan: &Plan) -> Value {
        let created = plan.create.iter().map(|content| {
            let addresses = content.endpoints.iter().map(|endpoint| {
                let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready);
                json!([endpoint.addresses[0], ready])
            });
            json!({"type": content.address_type, "ports": content.ports, "addresses": addresses.collect::<Vec<_>>()})
        });
        created.collect()
    }

    #[test]
    fn subsets_become_slices_by_family_and_ports() {
        let object = endpoints(
            json!({}),
            json!([
                {"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}, {"ip": "192.0.2.1"}],
                 "ports": [{"port": 5432}]},
                {"addresses": [{"ip": "192.0.2.3"}], "ports": [{"name": "admin", "port": 80, "protocol": "TCP"}]},
            ]),
        );
        let labels = labels(&object);
        assert_eq!(labels["team"], "a");
        assert_eq!(
            (labels[SERVICE_NAME].as_str(), labels[MANAGED_BY].as_str()),
            ("db", CONTROLLER_NAME)
        );
        let unnamed = json!([{"name": "", "protocol": "TCP", "port": 5432}]);
        let wanted = json!([
            {"type": "IPv4", "ports": unnamed, "addresses": [["192.0.2.1", true], ["192.0.2.2", false]]},
            {"type": "IPv4", "ports": [{"name": "admin", "protocol": "TCP", "port": 80}], "addresses": [["192.0.2.3", true]]},
            {"type": "IPv6", "ports": unnamed, "addresses": [["2001:db8::1", true]]},
        ]);
        assert_eq!(short(&plan(&object, Vec::new(), &labels)), wanted);
        let none = endpoints(json!({}), json!(null));
        let wanted = json!([{"type": "IPv4", "ports": [], "addresses": []}]);
        assert_eq!(short(&plan(&none, Vec::new(), &labels)), wanted);
    }

    #[test]
    fn slices_of_a_family_without_addresses_go() {
        let object = endpoints(
            json!({}),
            json!([{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 80}]}]),
        );
        let slice = serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "db-x"}, "addressType": "IPv6", "endpoints": [],
        }));
        let plan = plan(&object, vec![Arc::new(slice.unwrap())], &labels(&object));
        assert_eq!((plan.create.len(), plan.delete.len()), (1, 1));
    }

    #[test]
    fn whose_slices_are_somebody_elses() {
        for (metadata, wanted) in [
            (json!({}), true),
            (json!({"labels": {SKIP: "true"}}), false),
            (json!({"labels": {SKIP: "false"}}), true),
            (json!({"annotations": {LEADER: "{}"}}), false),
            (json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), false),
        ] {
            assert_eq!(
                is_mirrored(&endpoints(metadata.clone(), json!(null))),
                wanted,
                "{metadata}"
            );
        }
    }
}
