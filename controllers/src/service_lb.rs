//! Gives Services of type LoadBalancer the addresses of nodes: a cluster without a cloud is its own load balancer.
//!
//! The addresses are published as the Service's ingress; the proxies of all nodes make its ports answer there. Services
//! with a `loadBalancerClass` are somebody else's; `--controllers=*,-service-lb-controller` leaves all to somebody else.
//! One worker decides, so that two Services never get one port.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::discovery::v1::EndpointSlice;
use skiff_api::k8s_openapi::api::networking::v1::IngressClass;

use crate::events::{Recorder, Regarding};
use crate::informer::{Change, Informer};
use crate::manager::Shared;
use crate::queue::Queue;
use crate::view::{Index, Key, Node, Service, View};
use crate::write::{Error, Merge, Writer};

mod plan;

use plan::{Given, Port, Refusal};

/// Keeps a Service until nothing answers for it any more.
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Namespace and name of the API server's own Service.
const API_SERVER: (&str, &str) = ("default", "kubernetes");

struct Controller {
    services: Arc<Informer<Service>>,
    nodes: Arc<Informer<Node>>,
    slices: Arc<Informer<EndpointSlice>>,
    classes: Arc<Informer<IngressClass>>,
    node_ports: RangeInclusive<u16>,
    writer: Writer,
    recorder: Recorder,
    queue: Arc<Queue<Key>>,
    /// Known here at once, by the informer later; and what a Service asks for may be more than it was given.
    given: Mutex<Given>,
}

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let controller = Arc::new(Controller {
        services: shared.informers.services.want(),
        nodes: shared.informers.nodes.want(),
        slices: shared.informers.endpoint_slices.want(),
        classes: shared.informers.ingress_classes.want(),
        node_ports: shared.config.node_port_range.clone(),
        writer: shared.writer("service-controller"),
        recorder: shared.recorder("service-controller"),
        queue: shared.queue("service"),
        given: Mutex::default(),
    });
    controller.services.tell(&controller, Controller::service_changed);
    controller.nodes.tell(&controller, Controller::node_changed);
    controller.slices.tell(&controller, Controller::slice_changed);
    controller.classes.tell(&controller, Controller::class_changed);
    let synced = [
        controller.services.synced(),
        controller.nodes.synced(),
        controller.slices.synced(),
        controller.classes.synced(),
    ];
    let queue = Arc::clone(&controller.queue);
    shared.work(&queue, 1, synced, move |key| {
        let this = Arc::clone(&controller);
        async move { this.sync(key).await }
    })
}

impl Controller {
    /// A port that a Service gives back, or loses with its others, may be what another waits for.
    fn service_changed(&self, change: &Change<'_, Service>) {
        let service = change.object();
        if plan::is_ours(service) || has_finalizer(service) {
            self.queue.add(service.key());
        }
        if change.is_deletion() || !(plan::is_ours(service) || has_finalizer(service)) {
            self.given.lock().remove(service.uid());
        }
        let asked = |service: Option<&Arc<Service>>| {
            let ours = service.filter(|service| plan::is_ours(service));
            ours.map(|service| plan::ports(service)).unwrap_or_default()
        };
        let shows =
            |service: Option<&Arc<Service>>| service.is_some_and(|service| !plan::published(service).is_empty());
        let (before, after) = (asked(change.old), asked(change.new));
        if before != after || (shows(change.old) && !shows(change.new)) {
            self.look_at_those_with(&before);
        }
    }

    fn look_at_those_with(&self, ports: &BTreeSet<Port>) {
        if ports.is_empty() {
            return;
        }
        for other in self.balanced() {
            if !plan::ports(&other).is_disjoint(ports) {
                self.queue.add(other.key());
            }
        }
    }

    fn node_changed(&self, change: &Change<'_, Node>) {
        let seen = |node: Option<&Arc<Node>>| node.map(|node| (plan::addresses(node), plan::kubelet_port(node)));
        if seen(change.old) != seen(change.new) {
            self.look_at_all();
        }
    }

    /// Ports that an ingress controller took or gave back.
    fn class_changed(&self, change: &Change<'_, IngressClass>) {
        let claims = |class: Option<&Arc<IngressClass>>| class.map(|class| plan::claims(class)).unwrap_or_default();
        if claims(change.old) != claims(change.new) {
            self.look_at_all();
        }
    }

    fn look_at_all(&self) {
        for service in self.balanced() {
            self.queue.add(service.key());
        }
    }

    fn slice_changed(&self, change: &Change<'_, EndpointSlice>) {
        let slice = change.object();
        let Some(name) = slice.label(SERVICE_NAME) else {
            return;
        };
        let key = Key::new(slice.namespace(), name);
        let numbers = |slice: Option<&Arc<EndpointSlice>>| slice.map(|slice| plan::numbers(slice)).unwrap_or_default();
        if (slice.namespace(), name) == API_SERVER && numbers(change.old) != numbers(change.new) {
            self.look_at_all();
        }
        let local = |service: &Service| plan::is_ours(service) && plan::is_local(service);
        if self.services.get(&key).is_some_and(|service| local(&service)) {
            self.queue.add(key);
        }
    }

    fn balanced(&self) -> Vec<Arc<Service>> {
        let mut services = self.services.list();
        services.retain(|service| plan::is_ours(service));
        services
    }

    async fn sync(&self, key: Key) -> Result<(), Error> {
        let Some(service) = self.services.get(&key) else {
            return Ok(());
        };
        if plan::is_ours(&service) {
            self.ensure(&service).await
        } else if has_finalizer(&service) {
            self.clean_up(&service).await
        } else {
            Ok(())
        }
    }

    async fn ensure(&self, service: &Service) -> Result<(), Error> {
        let services = self.balanced();
        let nodes = self.nodes.list();
        let reserved = plan::reserved(&nodes, &self.api_server_slices(), &self.node_ports);
        let published = plan::published(service);
        let admitted = plan::admit(service, &services, &self.given.lock(), &reserved);
        let may_have = admitted.is_ok();
        let wanted = match admitted {
            Ok(()) => {
                // Before anything answers.
                self.give(service, plan::ports(service));
                self.places(service, &nodes, &published)
            }
            Err(refusal) => {
                self.refuse(service, &refusal);
                Vec::new()
            }
        };
        if !has_finalizer(service) || wanted != published {
            self.show(service, &published, &wanted).await?;
        }
        if !may_have {
            // Not before nothing answers any more.
            self.give(service, BTreeSet::new());
        }
        Ok(())
    }

    /// The addresses of a Service that may have its ports.
    fn places(&self, service: &Service, nodes: &[Arc<Node>], published: &[IpAddr]) -> Vec<IpAddr> {
        if nodes.iter().all(|node| plan::addresses(node).is_none()) {
            let message = "There are no available nodes for LoadBalancer".to_owned();
            self.recorder
                .warning(Regarding::of(service), "UnAvailableLoadBalancer", message);
        }
        let all = plan::ingress(service, nodes, &self.endpoint_nodes(service));
        let claims = self
            .classes
            .list()
            .iter()
            .flat_map(|class| plan::claims(class))
            .collect();
        let (left, lost) = plan::without_claimed(service, &all, &claims);
        if let Some(refusal) = lost.filter(|_| left.is_empty() || left != published) {
            self.refuse(service, &refusal);
        }
        left
    }

    fn give(&self, service: &Service, ports: BTreeSet<Port>) {
        self.given.lock().insert(service.uid().to_owned(), ports);
    }

    async fn show(&self, service: &Service, published: &[IpAddr], wanted: &[IpAddr]) -> Result<(), Error> {
        let first = published.is_empty() && !wanted.is_empty();
        if first {
            self.tell(service, "EnsuringLoadBalancer", "Ensuring load balancer");
        }
        if !has_finalizer(service) {
            // Before anything answers: else it would go on after a deletion that came in between.
            let mut finalizers = service.metadata.finalizers.clone().unwrap_or_default();
            finalizers.push(FINALIZER.to_owned());
            self.set_finalizers(service, &finalizers).await?;
        }
        if wanted != published {
            drop(self.publish(service, wanted).await?);
        }
        match (first, wanted.is_empty()) {
            (true, _) => self.tell(service, "EnsuredLoadBalancer", "Ensured load balancer"),
            (false, false) => self.tell(service, "UpdatedLoadBalancer", "Updated load balancer with new hosts"),
            (false, true) => {}
        }
        Ok(())
    }

    fn refuse(&self, service: &Service, refusal: &Refusal) {
        let message = format!("Error syncing load balancer: failed to ensure load balancer: {refusal}");
        self.recorder
            .warning(Regarding::of(service), "SyncLoadBalancerFailed", message);
    }

    fn tell(&self, service: &Service, reason: &'static str, message: &str) {
        self.recorder.normal(Regarding::of(service), reason, message.to_owned());
    }

    async fn clean_up(&self, service: &Service) -> Result<(), Error> {
        self.tell(service, "DeletingLoadBalancer", "Deleting load balancer");
        if plan::published(service).is_empty() || service.is_being_deleted() {
            self.let_go(service).await?;
        } else {
            // Of the newest version: others may have added and removed theirs.
            let emptied = self.publish(service, &[]).await?;
            self.let_go(&emptied).await?;
        }
        self.tell(service, "DeletedLoadBalancer", "Deleted load balancer");
        Ok(())
    }

    async fn let_go(&self, service: &Service) -> Result<(), Error> {
        self.give(service, BTreeSet::new());
        let mut finalizers = service.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|name| name != FINALIZER);
        self.set_finalizers(service, &finalizers).await
    }

    /// The list is replaced as a whole: the resource version makes sure that nobody's entry is lost.
    async fn set_finalizers(&self, service: &Service, finalizers: &[String]) -> Result<(), Error> {
        let metadata = json!({
            "uid": service.uid(),
            "resourceVersion": service.resource_version(),
            "finalizers": finalizers,
        });
        let patch = json!({ "metadata": metadata });
        self.writer
            .patch::<Service>(&service.key(), Merge::Json, &patch)
            .await
            .map(drop)
    }

    async fn publish(&self, service: &Service, addresses: &[IpAddr]) -> Result<Service, Error> {
        // Packets arrive with the address itself as their destination.
        let ingress: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        let ingress = if ingress.is_empty() {
            Value::Null
        } else {
            json!(ingress)
        };
        let patch = json!({"metadata": {"uid": service.uid()}, "status": {"loadBalancer": {"ingress": ingress}}});
        self.writer
            .patch_status::<Service>(&service.key(), Merge::Json, &patch)
            .await
    }

    fn slices_of(&self, namespace: &str, name: &str) -> Vec<Arc<EndpointSlice>> {
        self.slices
            .by_index(&Index::Service(namespace.to_owned(), name.to_owned()))
    }

    fn endpoint_nodes(&self, service: &Service) -> BTreeSet<String> {
        plan::endpoint_nodes(&self.slices_of(service.namespace(), service.name()))
    }

    fn api_server_slices(&self) -> Vec<Arc<EndpointSlice>> {
        self.slices_of(API_SERVER.0, API_SERVER.1)
    }
}

fn has_finalizer(service: &Service) -> bool {
    let finalizers = service.metadata.finalizers.as_ref();
    finalizers.is_some_and(|finalizers| finalizers.iter().any(|name| name == FINALIZER))
}
