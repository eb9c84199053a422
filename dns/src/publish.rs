//! How pods find this server: the Service `kube-system/kube-dns` at the usual address, and a slice that leads here.
//!
//! Level-triggered: what is missing is made again. Every server has a slice and a Lease of its own name; a server that
//! stops takes its own away, and what one left behind that was killed for good is removed by the others when its Lease is
//! renewed no more.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::coordination::v1::Lease;
use skiff_api::k8s_openapi::api::core::v1::Service;
use skiff_api::k8s_openapi::api::discovery::v1::EndpointSlice;
use skiff_daemon::{Shutdown, error_chain};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use crate::Config;
use crate::index::{Change, Key};
use crate::names;
use crate::resolver::Resolver;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";
/// Who manages the slices, and which fields are ours.
const MANAGER: &str = "skiff-dns";
/// As node leases: renewed four times before they are over.
const RENEWALS: u32 = 4;
const WITHDRAW: Duration = Duration::from_secs(2);
const PORTS: [(&str, &str, u16); 3] = [("dns", "UDP", 53), ("dns-tcp", "TCP", 53), ("metrics", "TCP", 9153)];

/// What failed.
#[derive(Debug, thiserror::Error)]
#[error("{what} {NAMESPACE}/{name}")]
struct Error {
    what: &'static str,
    name: String,
    #[source]
    source: Box<kube::Error>,
}

/// Whose the Service is.
#[derive(Debug, Eq, PartialEq)]
enum Owner {
    Nobody,
    Us,
    /// It has a selector: its pods are the DNS servers, and this one keeps out of it.
    Others,
}

/// Keeps the Service and this server's slice.
#[derive(Debug)]
pub(crate) struct Publisher {
    services: Api<Service>,
    slices: Api<EndpointSlice>,
    leases: Api<Lease>,
    /// Where this server answers.
    address: IpAddr,
    /// What pods know.
    service_ip: IpAddr,
    /// How long a server counts as there that renews its Lease no more.
    lease: Duration,
    /// The name of our slice and Lease.
    name: String,
    resolver: Arc<Resolver>,
    /// When the Leases of other servers were last seen to change.
    others: BTreeMap<String, (Option<Timestamp>, Instant)>,
    complained: Option<String>,
    /// It was told that others serve the names.
    yielded: bool,
}

/// Whether a change touches what is published.
pub(crate) fn concerns(change: &Change) -> bool {
    let is_service = |key: &Key| *key.namespace == *NAMESPACE && *key.name == *NAME;
    let is_slice = |key: &Key| *key.namespace == *NAMESPACE && key.name.starts_with(NAME);
    match change {
        Change::Service(key, _) => is_service(key),
        Change::Slice { key, .. } | Change::Gone(_, key) => is_slice(key),
        _ => false,
    }
}

// === impl Publisher ===

impl Publisher {
    pub(crate) fn new(config: &Config, client: Client, resolver: Arc<Resolver>) -> Self {
        let address = config.address.ip();
        Self {
            services: Api::namespaced(client.clone(), NAMESPACE),
            slices: Api::namespaced(client.clone(), NAMESPACE),
            leases: Api::namespaced(client, NAMESPACE),
            address,
            service_ip: config.service_ip,
            lease: config.lease,
            name: format!("{NAME}-{}", names::dashed(address)),
            resolver,
            others: BTreeMap::new(),
            complained: None,
            yielded: false,
        }
    }

    /// Publishes until shutdown, then withdraws.
    pub(crate) async fn run(mut self, changed: Arc<Notify>, shutdown: Shutdown) {
        loop {
            match self.sync().await {
                Ok(()) => self.complained = None,
                Err(error) => self.complain(&error),
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = changed.notified() => {}
                () = tokio::time::sleep(self.lease / RENEWALS) => {}
            }
        }
        if timeout(WITHDRAW, self.remove(&self.name.clone())).await.is_err() {
            debug!("the server's address stays published: the API does not answer");
        }
    }

    /// Says what is wrong, once for as long as it is the same.
    fn complain(&mut self, error: &Error) {
        let text = error_chain(error);
        if self.complained.as_ref() != Some(&text) {
            warn!(
                error = text,
                "pods may not find cluster DNS at {}: repeated until it works", self.service_ip
            );
            self.complained = Some(text);
        }
    }

    async fn sync(&mut self) -> Result<(), Error> {
        let failed = |what| self.failed(what, NAME);
        let service = self.services.get_opt(NAME).await.map_err(failed("get Service"))?;
        match owner(service.as_ref()) {
            Owner::Others => {
                if !std::mem::replace(&mut self.yielded, true) {
                    info!("Service {NAMESPACE}/{NAME} has a selector: its pods serve the cluster's names");
                }
                return self.remove(&self.name).await;
            }
            Owner::Nobody => {
                let object = serde_json::from_value(service_object(self.service_ip)).unwrap_or_default();
                let created = self.services.create(&post_params(), &object).await;
                // Another server may have been first.
                if let Err(error) = created
                    && !is_code(&error, 409)
                {
                    return Err(self.failed("create Service", NAME)(error));
                }
            }
            Owner::Us => {}
        }
        let slice = slice_object(&self.name, self.address);
        let published = ensure(&self.slices, &self.name, &slice).await;
        published.map_err(self.failed("publish the server's address in EndpointSlice", &self.name))?;
        let lease = lease_object(&self.name, self.address, self.lease, Timestamp::now());
        let renewed = ensure(&self.leases, &self.name, &lease).await;
        renewed.map_err(self.failed("renew Lease", &self.name))?;
        self.sweep().await
    }

    /// Removes what servers left behind that renew their Lease no more.
    async fn sweep(&mut self) -> Result<(), Error> {
        let names = self.resolver.index.read().slice_names(NAMESPACE, NAME);
        let others: Vec<String> = names
            .iter()
            .map(ToString::to_string)
            .filter(|name| *name != self.name)
            .collect();
        self.others.retain(|name, _| others.contains(name));
        for name in others {
            let slice = self
                .slices
                .get_opt(&name)
                .await
                .map_err(self.failed("get EndpointSlice", &name))?;
            if !slice.is_some_and(|slice| is_ours(&slice)) {
                continue;
            }
            let lease = self
                .leases
                .get_opt(&name)
                .await
                .map_err(self.failed("get Lease", &name))?;
            let renewed = lease.and_then(|lease| Some(lease.spec?.renew_time?.0));
            let seen = self.others.entry(name.clone()).or_insert((renewed, Instant::now()));
            // By our own clock: the other's may be wrong.
            if seen.0 != renewed {
                *seen = (renewed, Instant::now());
            } else if seen.1.elapsed() > self.lease {
                info!(slice = name, "a DNS server is gone: its address is published no more");
                self.remove(&name).await?;
            }
        }
        Ok(())
    }

    async fn remove(&self, name: &str) -> Result<(), Error> {
        let params = DeleteParams::default();
        // The Lease first: a slice that outlives it is found and swept by others, a Lease alone by nobody.
        let lease = self.leases.delete(name, &params).await.map(drop);
        absent_is_fine(lease).map_err(self.failed("delete Lease", name))?;
        let slice = self.slices.delete(name, &params).await.map(drop);
        absent_is_fine(slice).map_err(self.failed("delete EndpointSlice", name))
    }

    fn failed(&self, what: &'static str, name: &str) -> impl FnOnce(kube::Error) -> Error + use<> {
        let name = name.to_owned();
        move |source| Error {
            what,
            name,
            source: Box::new(source),
        }
    }
}

/// Makes the object like this one, or creates it.
async fn ensure<K>(api: &Api<K>, name: &str, object: &Value) -> Result<(), kube::Error>
where
    K: Clone + Debug + DeserializeOwned + Serialize,
{
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    match api.patch(name, &params, &Patch::Merge(object)).await {
        Err(error) if is_code(&error, 404) => {}
        patched => return patched.map(drop),
    }
    let object = serde_json::from_value(object.clone()).map_err(kube::Error::SerdeError)?;
    api.create(&post_params(), &object).await.map(drop)
}

fn post_params() -> PostParams {
    PostParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PostParams::default()
    }
}

fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

fn absent_is_fine(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(error) if !is_code(&error, 404) => Err(error),
        _ => Ok(()),
    }
}

fn owner(service: Option<&Service>) -> Owner {
    let Some(service) = service else { return Owner::Nobody };
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    if selector.is_some_and(|selector| !selector.is_empty()) {
        return Owner::Others;
    }
    Owner::Us
}

fn is_ours(slice: &EndpointSlice) -> bool {
    let labels = slice.metadata.labels.as_ref();
    let manager = labels.and_then(|labels| labels.get("endpointslice.kubernetes.io/managed-by"));
    manager.is_some_and(|manager| manager == MANAGER)
}

fn service_object(ip: IpAddr) -> Value {
    let ports: Vec<Value> = PORTS
        .iter()
        .map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port, "targetPort": port}))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {
                "k8s-app": "kube-dns",
                "kubernetes.io/cluster-service": "true",
                "kubernetes.io/name": "CoreDNS",
            },
            "annotations": {"prometheus.io/port": "9153", "prometheus.io/scrape": "true"},
        },
        "spec": {"clusterIP": ip, "ports": ports},
    })
}

fn slice_object(name: &str, address: IpAddr) -> Value {
    let ports: Vec<Value> = PORTS
        .iter()
        .map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": {
                "kubernetes.io/service-name": NAME,
                "endpointslice.kubernetes.io/managed-by": MANAGER,
                "k8s-app": "kube-dns",
            },
        },
        "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": ports,
    })
}

fn lease_object(name: &str, address: IpAddr, lease: Duration, now: Timestamp) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"k8s-app": "kube-dns"}},
        "spec": {
            "holderIdentity": address,
            "leaseDurationSeconds": lease.as_secs().max(1),
            "renewTime": format!("{now:.6}"),
        },
    })
}
