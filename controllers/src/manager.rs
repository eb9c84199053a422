//! Starts the informers and the enabled controllers, and ends them with the process.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};
use kube::{Api, Client};
use skiff_api::bootstrap_tokens;
use skiff_api::k8s_openapi::api::core::v1::{Endpoints, PersistentVolume, PersistentVolumeClaim};
use skiff_api::k8s_openapi::api::discovery::v1::EndpointSlice;
use skiff_api::k8s_openapi::api::networking::v1::IngressClass;
use skiff_api::k8s_openapi::api::storage::v1::StorageClass;
use skiff_daemon::{Context, Shutdown};
use tokio::task::JoinSet;

use crate::clients::Clients;
use crate::config::{Config, Error};
use crate::events::{Broadcaster, Recorder};
use crate::informer::Informer;
use crate::metrics::WorkqueueMetrics;
use crate::queue::{Queue, QueueKey, Retriable};
use crate::view::{
    ClusterRole, ConfigMap, Deployment, Lease, Namespace, Node, Pod, ReplicaSet, Service, ServiceAccount,
    SigningRequest, TokenSecret,
};
use crate::write::Writer;
use crate::{
    bootstrap_signer, certificates, cluster_role_aggregation, deployment, endpoint_slice, endpoints, ephemeral_volume,
    garbage_collector, namespace, node_ipam, node_lifecycle, persistent_volume, pod_gc, replica_set, root_ca,
    service_account, service_lb, taint_eviction, token_cleaner, volume_protection,
};

/// One informer for each kind that controllers read; only those wanted run.
pub(crate) struct Informers {
    pub(crate) bootstrap_tokens: Arc<Informer<TokenSecret>>,
    pub(crate) cluster_info: Arc<Informer<ConfigMap>>,
    pub(crate) cluster_roles: Arc<Informer<ClusterRole>>,
    pub(crate) config_maps: Arc<Informer<ConfigMap>>,
    pub(crate) deployments: Arc<Informer<Deployment>>,
    pub(crate) endpoint_slices: Arc<Informer<EndpointSlice>>,
    pub(crate) endpoints: Arc<Informer<Endpoints>>,
    pub(crate) ingress_classes: Arc<Informer<IngressClass>>,
    pub(crate) leases: Arc<Informer<Lease>>,
    pub(crate) namespaces: Arc<Informer<Namespace>>,
    pub(crate) nodes: Arc<Informer<Node>>,
    pub(crate) persistent_volume_claims: Arc<Informer<PersistentVolumeClaim>>,
    pub(crate) persistent_volumes: Arc<Informer<PersistentVolume>>,
    pub(crate) pods: Arc<Informer<Pod>>,
    pub(crate) replica_sets: Arc<Informer<ReplicaSet>>,
    pub(crate) service_accounts: Arc<Informer<ServiceAccount>>,
    pub(crate) services: Arc<Informer<Service>>,
    pub(crate) signing_requests: Arc<Informer<SigningRequest>>,
    pub(crate) storage_classes: Arc<Informer<StorageClass>>,
}

/// What every controller is made from.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) informers: Informers,
    clients: Clients,
    pub(crate) shutdown: Shutdown,
    metrics: WorkqueueMetrics,
    broadcaster: Broadcaster,
}

/// Runs the enabled controllers against the API server until shutdown; where there is an election, while it leads.
///
/// # Errors
///
/// When the configuration cannot be run; once running, errors are retried and logged.
pub async fn run(config: Config, clients: impl Into<Clients>, daemon: Context) -> Result<(), Error> {
    config.validate()?;
    let clients = clients.into();
    let metrics = WorkqueueMetrics::default();
    metrics.register(&daemon.metrics);
    let term = |shutdown| {
        let term = control(config.clone(), clients.clone(), metrics.clone(), shutdown);
        async {
            term.await;
            Ok(())
        }
    };
    match &config.leader_election {
        None => term(daemon.shutdown).await,
        Some(election) => {
            let (metrics, shutdown) = (&daemon.metrics, &daemon.shutdown);
            election.lead(clients.manager().clone(), metrics, shutdown, term).await
        }
    }
}

/// Runs the controllers; when this ends, everything that it started has ended too.
async fn control(config: Config, clients: Clients, metrics: WorkqueueMetrics, shutdown: Shutdown) {
    let client = clients.manager().clone();
    let shared = Shared {
        config,
        informers: Informers::new(),
        clients,
        shutdown: shutdown.clone(),
        metrics,
        broadcaster: Broadcaster::new(),
    };
    let mut tasks = JoinSet::new();
    // Handlers are registered here, before any informer starts, so that none misses a change.
    start_controllers(&shared, &mut tasks);
    shared.informers.start(&client, &shutdown, &mut tasks);
    let Shared { broadcaster, .. } = shared;
    tasks.spawn(broadcaster.run(client, shutdown));
    tasks.join_all().await;
}

fn start_controllers(shared: &Shared, tasks: &mut JoinSet<()>) {
    let config = &shared.config;
    start_certificates(shared, tasks);
    if config.enables("clusterrole-aggregation-controller") {
        tasks.spawn(cluster_role_aggregation::start(shared));
    }
    if config.enables("deployment-controller") {
        tasks.spawn(deployment::start(shared));
    }
    if config.enables("endpoints-controller") {
        tasks.spawn(endpoints::start(shared));
    }
    if config.enables("endpointslice-controller") {
        tasks.spawn(endpoint_slice::start(shared));
    }
    if config.enables("endpointslice-mirroring-controller") {
        tasks.spawn(endpoint_slice::mirroring::start(shared));
    }
    if config.enables("ephemeral-volume-controller") {
        tasks.spawn(ephemeral_volume::start(shared));
    }
    if config.enables("garbage-collector-controller") {
        tasks.spawn(garbage_collector::start(shared));
    }
    if config.enables("namespace-controller") {
        tasks.spawn(namespace::start(shared));
    }
    if config.enables("node-ipam-controller") && !config.cluster_cidr.is_empty() {
        tasks.spawn(node_ipam::start(shared));
    }
    if config.enables("node-lifecycle-controller") {
        tasks.spawn(node_lifecycle::start(shared));
    }
    if config.enables("persistentvolume-binder-controller") {
        tasks.spawn(persistent_volume::start(shared));
    }
    if config.enables("persistentvolume-protection-controller") {
        tasks.spawn(volume_protection::start_volumes(shared));
    }
    if config.enables("persistentvolumeclaim-protection-controller") {
        tasks.spawn(volume_protection::start_claims(shared));
    }
    if config.enables("pod-garbage-collector-controller") {
        tasks.spawn(pod_gc::start(shared));
    }
    if config.enables("replicaset-controller") {
        tasks.spawn(replica_set::start(shared));
    }
    if config.enables("root-ca-certificate-publisher-controller") && !config.root_ca_pem.borrow().is_empty() {
        tasks.spawn(root_ca::start(shared));
    }
    if config.enables("service-lb-controller") {
        tasks.spawn(service_lb::start(shared));
    }
    if config.enables("serviceaccount-controller") {
        tasks.spawn(service_account::start(shared));
    }
    if config.enables("taint-eviction-controller") {
        tasks.spawn(taint_eviction::start(shared));
    }
}

/// What machines join by.
fn start_certificates(shared: &Shared, tasks: &mut JoinSet<()>) {
    let config = &shared.config;
    if config.enables("bootstrap-signer-controller") {
        tasks.spawn(bootstrap_signer::start(shared));
    }
    if config.enables("certificatesigningrequest-approving-controller") {
        tasks.spawn(certificates::start_approving(shared));
    }
    if config.enables("certificatesigningrequest-cleaner-controller") {
        tasks.spawn(certificates::start_cleaning(shared));
    }
    if let Some(signing) = &config.cluster_signing
        && config.enables("certificatesigningrequest-signing-controller")
    {
        tasks.spawn(certificates::start_signing(shared, signing));
    }
    if config.enables("token-cleaner-controller") {
        tasks.spawn(token_cleaner::start(shared));
    }
}

// === impl Shared ===

impl Shared {
    pub(crate) fn queue<T: QueueKey>(&self, name: &'static str) -> Arc<Queue<T>> {
        Queue::new(self.metrics.queue(name))
    }

    /// The hands of a controller: writes go under its own identity.
    pub(crate) fn writer(&self, account: &'static str) -> Writer {
        Writer::new(self.clients.of(account))
    }

    pub(crate) fn recorder(&self, component: &'static str) -> Recorder {
        self.broadcaster.recorder(component)
    }

    /// Works on a queue from when the informers behind `synced` have listed until shutdown.
    pub(crate) fn work<T, F, R, E, const N: usize>(
        &self,
        queue: &Arc<Queue<T>>,
        workers: usize,
        synced: [BoxFuture<'static, ()>; N],
        reconcile: F,
    ) -> impl Future<Output = ()> + Send + use<T, F, R, E, N>
    where
        T: QueueKey,
        F: Fn(T) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send,
        E: Retriable,
    {
        let (queue, shutdown) = (Arc::clone(queue), self.shutdown.clone());
        async move {
            if shutdown.run_until_cancelled(join_all(synced)).await.is_some() {
                queue.work(workers, shutdown, reconcile).await;
            }
        }
    }
}

// === impl Informers ===

impl Informers {
    fn new() -> Self {
        Self {
            bootstrap_tokens: Informer::new(
                |client| Api::namespaced(client, bootstrap_tokens::NAMESPACE),
                Some("type=bootstrap.kubernetes.io/token"),
            ),
            cluster_info: Informer::new(
                |client| Api::namespaced(client, bootstrap_tokens::CLUSTER_INFO_NAMESPACE),
                Some("metadata.name=cluster-info"),
            ),
            cluster_roles: Informer::new(Api::all, None),
            config_maps: Informer::new(Api::all, Some("metadata.name=kube-root-ca.crt")),
            deployments: Informer::new(Api::all, None),
            endpoint_slices: Informer::new(Api::all, None),
            endpoints: Informer::new(Api::all, None),
            ingress_classes: Informer::new(Api::all, None),
            leases: Informer::new(|client| Api::namespaced(client, "kube-node-lease"), None),
            namespaces: Informer::new(Api::all, None),
            nodes: Informer::new(Api::all, None),
            persistent_volume_claims: Informer::new(Api::all, None),
            persistent_volumes: Informer::new(Api::all, None),
            pods: Informer::new(Api::all, None),
            replica_sets: Informer::new(Api::all, None),
            service_accounts: Informer::new(Api::all, None),
            services: Informer::new(Api::all, None),
            signing_requests: Informer::new(Api::all, None),
            storage_classes: Informer::new(Api::all, None),
        }
    }

    /// Ends when the informers that the garbage collector is fed from have listed.
    pub(crate) fn all_fed_synced(&self) -> impl Future<Output = ()> + Send + use<> {
        let Self {
            deployments,
            endpoint_slices,
            endpoints,
            namespaces,
            nodes,
            pods,
            ..
        } = self;
        let Self {
            replica_sets,
            service_accounts,
            services,
            ..
        } = self;
        let synced = [
            deployments.want().synced(),
            endpoint_slices.want().synced(),
            endpoints.want().synced(),
            namespaces.want().synced(),
            nodes.want().synced(),
            pods.want().synced(),
            replica_sets.want().synced(),
            service_accounts.want().synced(),
            services.want().synced(),
        ];
        join_all(synced).map(drop)
    }

    fn start(&self, client: &Client, shutdown: &Shutdown, tasks: &mut JoinSet<()>) {
        tasks.spawn(Arc::clone(&self.bootstrap_tokens).run(client.clone(), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.cluster_info).run(client.clone(), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.cluster_roles).run(client.clone(), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.config_maps).run(client.clone(), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.deployments).run(client.clone(), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.endpoint_slices).run(client.clone(), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.endpoints).run(client.clone(), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.ingress_classes).run(client.clone(), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.leases).run(client.clone(), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.namespaces).run(client.clone(), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.nodes).run(client.clone(), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.persistent_volume_claims).run(client.clone(), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.persistent_volumes).run(client.clone(), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.pods).run(client.clone(), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.replica_sets).run(client.clone(), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.service_accounts).run(client.clone(), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.services).run(client.clone(), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.signing_requests).run(client.clone(), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.storage_classes).run(client.clone(), shutdown.clone()));
    }
}
