//! Lists, for each Service with a selector, the addresses behind it, in slices of at most 100 endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::events::{Recorder, Regarding};
use crate::informer::{Change, Informer};
use crate::manager::Shared;
use crate::queue::{Pace, Queue};
use crate::view::{Index, Key, Node, Pod, Service, View};
use crate::write::Error;

mod desired;
pub(crate) mod mirroring;
mod pack;
mod write;

pub(crate) use desired::resolve_ports;
use desired::{AddressType, endpoints_by_ports};
use pack::{Plan, pack};
use write::SliceWriter;

const WORKERS: usize = 5;
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const CONTROLLER_NAME: &str = "endpointslice-controller.k8s.io";
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";
/// The longest distance between two writes of a Service's slices.
const SLOWEST: Duration = Duration::from_millis(500);

struct Controller {
    services: Arc<Informer<Service>>,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    slices: Arc<Informer<EndpointSlice>>,
    writer: SliceWriter,
    recorder: Recorder,
    queue: Arc<Queue<Key>>,
    pace: Pace<Key>,
}

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let controller = Arc::new(Controller {
        services: shared.informers.services.want(),
        pods: shared.informers.pods.want(),
        nodes: shared.informers.nodes.want(),
        slices: shared.informers.endpoint_slices.want(),
        writer: SliceWriter::new(shared.writer("endpointslice-controller")),
        recorder: shared.recorder("endpoint-slice-controller"),
        queue: shared.queue("endpoint_slice"),
        pace: Pace::default(),
    });
    controller.services.feed(&controller.queue);
    let this = Arc::clone(&controller);
    controller.pods.on_change(move |change| {
        for key in services_of_pod(&this.services, change) {
            this.queue.add(key);
        }
    });
    controller.nodes.tell(&controller, Controller::node_changed);
    controller.slices.tell(&controller, Controller::slice_changed);
    let synced = [
        controller.services.synced(),
        controller.pods.synced(),
        controller.nodes.synced(),
        controller.slices.synced(),
    ];
    let queue = Arc::clone(&controller.queue);
    shared.work(&queue, WORKERS, synced, move |key| {
        let this = Arc::clone(&controller);
        async move { this.sync(key).await }
    })
}

/// The Services whose endpoints a pod's change may touch.
pub(crate) fn services_of_pod(services: &Informer<Service>, change: &Change<'_, Pod>) -> BTreeSet<Key> {
    let mut keys = BTreeSet::new();
    if let (Some(old), Some(new)) = (change.old, change.new)
        && !Arc::ptr_eq(old, new)
        && seen_by_services(old) == seen_by_services(new)
    {
        return keys;
    }
    for pod in [change.old, change.new].into_iter().flatten() {
        for (label, value) in pod.labels() {
            let index = Index::Selects(pod.namespace().to_owned(), label.clone(), value.clone());
            let selecting = services
                .by_index(&index)
                .into_iter()
                .filter(|service| service.selects(pod.labels()));
            keys.extend(selecting.map(|service| service.key()));
        }
    }
    keys
}

/// All of a pod that can show in an endpoint.
fn seen_by_services(pod: &Pod) -> impl PartialEq {
    let ips: Vec<String> = pod.status.pod_ips.iter().map(|ip| ip.ip.clone()).collect();
    let place = (
        pod.spec.node_name.clone(),
        pod.spec.hostname.clone(),
        pod.spec.subdomain.clone(),
    );
    let state = (pod.is_ready(), pod.is_terminal(), pod.is_being_deleted());
    (ips, pod.status.pod_ip.clone(), place, state, pod.labels().clone())
}

impl Controller {
    fn node_changed(&self, change: &Change<'_, Node>) {
        let zone = |node: Option<&Arc<Node>>| node.and_then(|node| node.label(ZONE).map(str::to_owned));
        if zone(change.old) != zone(change.new) {
            self.services
                .list()
                .iter()
                .for_each(|service| self.queue.add(service.key()));
        }
    }

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
        let Some(service) = self.services.get(&key) else {
            // The garbage collector removes the slices of a Service that is gone.
            self.writer.forget(&key);
            self.pace.forget(&key);
            return Ok(());
        };
        let without = service.spec.selector.as_ref().is_none_or(BTreeMap::is_empty);
        if without || service.spec.type_.as_deref() == Some("ExternalName") || service.is_being_deleted() {
            return Ok(());
        }
        let ours = Index::Service(service.namespace().to_owned(), service.name().to_owned());
        let mut slices = self.slices.by_index(&ours);
        slices.retain(|slice| slice.label(MANAGED_BY) == Some(CONTROLLER_NAME) && !slice.is_being_deleted());
        if let Some(left) = self.writer.stale_for(&key, &slices) {
            // The slice's own event comes first; this is for the case that it never does.
            tracing::debug!(service = %key, ?left, "waiting to see our own write");
            self.queue.add_after(key, left);
            return Ok(());
        }
        // A millisecond for each endpoint: nothing for a small Service, a tenth of a second for a full slice.
        let size: usize = slices
            .iter()
            .map(|slice| slice.endpoints.as_ref().map_or(0, Vec::len))
            .sum();
        let interval = Duration::from_millis(u64::try_from(size).unwrap_or(u64::MAX)).min(SLOWEST);
        if let Some(left) = self.pace.wait(&key, interval) {
            self.queue.add_after(key, left);
            return Ok(());
        }
        let plan = self.plan(&service, slices);
        if !plan.is_empty() {
            self.pace.wrote(&key);
        }
        let result = self.writer.apply(&*service, &labels(&service), plan).await;
        if let Err(error) = &result
            && !error.is_namespace_terminating()
        {
            let message = format!("Error updating Endpoint Slices for Service {key}: {}", error.message());
            self.recorder
                .warning(Regarding::of(&*service), "FailedToUpdateEndpointSlices", message);
        }
        result
    }

    fn plan(&self, service: &Service, slices: Vec<Arc<EndpointSlice>>) -> Plan {
        let pods = self
            .pods
            .select(service.namespace(), |pod| service.selects(pod.labels()));
        let zone_of = |node: &str| {
            self.nodes
                .get(&Key::cluster(node))
                .and_then(|node| node.label(ZONE).map(str::to_owned))
        };
        let families = AddressType::of(service);
        let is_known = |slice: &Arc<EndpointSlice>| families.iter().any(|family| family.as_str() == slice.address_type);
        let (known, foreign): (Vec<_>, Vec<_>) = slices.into_iter().partition(is_known);
        let mut plan = Plan {
            delete: foreign,
            ..Plan::default()
        };
        for family in &families {
            let existing = known
                .iter()
                .filter(|slice| slice.address_type == family.as_str())
                .cloned()
                .collect();
            let desired = endpoints_by_ports(service, &pods, *family, &zone_of);
            plan.extend(pack(existing, desired, family.as_str(), &labels(service)));
        }
        plan
    }
}

/// The Service's own labels and those that say whose slice it is.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    if service.is_headless() {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), service.name().to_owned());
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER_NAME.to_owned());
    labels
}

/// A merge patch from some labels to others.
pub(crate) fn label_patch(from: &BTreeMap<String, String>, to: &BTreeMap<String, String>) -> Value {
    let gone = from
        .keys()
        .filter(|key| !to.contains_key(*key))
        .map(|key| (key.clone(), Value::Null));
    let set = to
        .iter()
        .filter(|(key, value)| from.get(*key) != Some(*value))
        .map(|(key, value)| (key.clone(), json!(value)));
    Value::Object(gone.chain(set).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_the_service() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "labels": {"team": "a"}}, "spec": {"clusterIP": "None"},
        }))
        .unwrap();
        let wanted = labels(&service);
        let had = BTreeMap::from([("old".to_owned(), "x".to_owned()), ("team".to_owned(), "a".to_owned())]);
        assert_eq!(
            label_patch(&had, &wanted),
            json!({"old": null, SERVICE_NAME: "web", MANAGED_BY: CONTROLLER_NAME, HEADLESS: ""})
        );
    }
}
