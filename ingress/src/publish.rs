//! What is told to the API: the class, the addresses in Ingresses' status, events about what is wrong.
//!
//! One task owns it. It is given what the loop found last, compares that with what it told, and tells the difference;
//! what fails is repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::core::v1::Event;
use skiff_api::k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use skiff_api::k8s_openapi::jiff::Timestamp;
use skiff_daemon::{Shutdown, error_chain};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::CONTROLLER;
use crate::config::IngressConfiguration;
use crate::model::{Class, Key};
use crate::plan::{Ours, Problem};
use crate::wire::{DEFAULT_CLASS, LISTENS};

/// A problem that passes sooner is not told of: a Service or Secret often comes right after its Ingress.
const SETTLE: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(1);
const MOST_RETRY: Duration = Duration::from_secs(60);

/// What the loop found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// The Ingresses that are served here.
    pub(crate) ours: BTreeMap<Key, Ours>,
    /// The addresses in the status of all other ones.
    pub(crate) others: BTreeMap<Key, Vec<String>>,
    /// What is wrong.
    pub(crate) problems: BTreeSet<Problem>,
    /// Our class, when it is there.
    pub(crate) class: Option<Class>,
}

/// The task's own state.
pub(crate) struct Publisher {
    client: Client,
    class: String,
    addresses: Vec<String>,
    /// The class's annotation that tells where this controller listens, if that is known. It stays when the process ends: in
    /// a restart nobody else is to take the ports.
    listens: Option<(String, String)>,
    /// Ingresses whose status shows our addresses because they were ours.
    claimed: BTreeSet<Key>,
    problems: BTreeMap<Problem, Seen>,
    pause: Duration,
}

#[derive(Clone, Copy)]
struct Seen {
    since: Instant,
    told: bool,
}

impl Publisher {
    pub(crate) fn new(client: Client, config: &IngressConfiguration) -> Self {
        let mut addresses: Vec<_> = config.publish_addresses.iter().map(IpAddr::to_string).collect();
        addresses.sort();
        addresses.dedup();
        Self {
            client,
            class: config.ingress_class.clone(),
            listens: listens(config),
            addresses,
            claimed: BTreeSet::new(),
            problems: BTreeMap::new(),
            pause: RETRY,
        }
    }

    /// Tells what is found, until shutdown.
    pub(crate) async fn run(mut self, mut found: watch::Receiver<Arc<Found>>, shutdown: Shutdown) {
        let mut due: Option<Instant> = None;
        loop {
            let wait = async {
                match due {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = found.changed() => if changed.is_err() { return },
                () = wait => {}
            }
            let now = Arc::clone(&found.borrow_and_update());
            due = match self.tell(&now).await {
                Ok(next) => {
                    self.pause = RETRY;
                    next
                }
                Err(error) => {
                    warn!(
                        error = error_chain(&error),
                        "cannot tell the API about ingresses: repeated until it works"
                    );
                    let at = Instant::now() + self.pause;
                    self.pause = (self.pause * 2).min(MOST_RETRY);
                    Some(at)
                }
            };
        }
    }

    /// Returns when to look again.
    async fn tell(&mut self, found: &Found) -> Result<Option<Instant>, kube::Error> {
        match &found.class {
            None => self.make_class().await?,
            Some(class) if class.ours => self.claim_ports(class).await?,
            Some(_) => {}
        }
        self.publish(found).await?;
        self.note(&found.problems);
        let now = Instant::now();
        let ripe = self
            .problems
            .iter()
            .filter(|(_, seen)| !seen.told && seen.since + SETTLE <= now);
        let ripe: Vec<Problem> = ripe.map(|(problem, _)| problem.clone()).collect();
        for problem in ripe {
            if let Some(ours) = found.ours.get(&problem.ingress) {
                self.event(&problem, &ours.uid).await?;
            }
            if let Some(seen) = self.problems.get_mut(&problem) {
                seen.told = true;
            }
        }
        let waiting = self
            .problems
            .values()
            .filter(|seen| !seen.told)
            .map(|seen| seen.since + SETTLE);
        Ok(waiting.min())
    }

    /// Remembers since when there is which problem; one that comes back is a new one.
    fn note(&mut self, problems: &BTreeSet<Problem>) {
        self.problems.retain(|problem, _| problems.contains(problem));
        let since = Instant::now();
        for problem in problems {
            let new = Seen { since, told: false };
            self.problems.entry(problem.clone()).or_insert(new);
        }
    }

    async fn make_class(&self) -> Result<(), kube::Error> {
        let mut annotations = json!({DEFAULT_CLASS: "true"});
        if let Some((name, value)) = &self.listens {
            annotations[name] = value.as_str().into();
        }
        let class = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "IngressClass",
            "metadata": {"name": self.class, "annotations": annotations},
            "spec": {"controller": CONTROLLER},
        });
        let class: IngressClass = serde_json::from_value(class).map_err(kube::Error::SerdeError)?;
        match Api::all(self.client.clone())
            .create(&PostParams::default(), &class)
            .await
        {
            Ok(_) => info!(class = self.class, "made the IngressClass"),
            // Whoever made it may have changed it: it stays as it is.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Says in the class where this controller listens.
    async fn claim_ports(&self, class: &Class) -> Result<(), kube::Error> {
        let Some((name, value)) = self
            .listens
            .as_ref()
            .filter(|(name, value)| class.listens.get(name) != Some(value))
        else {
            return Ok(());
        };
        let patch = Patch::Merge(json!({"metadata": {"annotations": {name: value}}}));
        let classes = Api::<IngressClass>::all(self.client.clone());
        match classes.patch(&self.class, &PatchParams::default(), &patch).await {
            // Another class than the usual one may not be changed: nobody but load balancers misses it.
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {
                warn!(
                    class = self.class,
                    status = status.message,
                    "cannot say in the class where this controller listens"
                );
                Ok(())
            }
            result => result.map(|_| ()),
        }
    }

    async fn publish(&mut self, found: &Found) -> Result<(), kube::Error> {
        if self.addresses.is_empty() {
            return Ok(());
        }
        for (key, ours) in &found.ours {
            self.claimed.insert(key.clone());
            if !same(&ours.published, &self.addresses) {
                let at: Vec<Value> = self.addresses.iter().map(|ip| json!({"ip": ip})).collect();
                self.set_status(key, json!(at)).await?;
            }
        }
        let left: Vec<Key> = self
            .claimed
            .iter()
            .filter(|key| !found.ours.contains_key(key))
            .cloned()
            .collect();
        for key in left {
            // Whoever serves it now may have said so already.
            if found
                .others
                .get(&key)
                .is_some_and(|published| same(published, &self.addresses))
            {
                self.set_status(&key, Value::Null).await?;
            }
            self.claimed.remove(&key);
        }
        Ok(())
    }

    async fn set_status(&self, key: &Key, ingress: Value) -> Result<(), kube::Error> {
        let patch = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": ingress}}}));
        let api = Api::<Ingress>::namespaced(self.client.clone(), &key.namespace);
        match api.patch_status(&key.name, &PatchParams::default(), &patch).await {
            // Gone meanwhile: the next thing that the loop hears.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            result => result.map(|_| ()),
        }
    }

    async fn event(&self, problem: &Problem, uid: &str) -> Result<(), kube::Error> {
        let Key { namespace, name } = &problem.ingress;
        warn!(ingress = %problem.ingress, reason = problem.reason, message = problem.message, "part of an ingress cannot work");
        let unique = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let now = Timestamp::now();
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": namespace, "name": format!("{name}.{unique:x}")},
            "involvedObject": {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "namespace": namespace, "name": name, "uid": uid},
            "type": "Warning",
            "reason": problem.reason,
            "message": problem.message,
            "source": {"component": "skiff-ingress"},
            "reportingComponent": "skiff-ingress",
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        });
        let event: Event = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
        let api = Api::<Event>::namespaced(self.client.clone(), namespace);
        match api.create(&PostParams::default(), &event).await {
            // The namespace is going, or gone.
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {
                warn!(ingress = %problem.ingress, status = status.message, "the API takes no event");
                Ok(())
            }
            result => result.map(|_| ()),
        }
    }
}

/// Named by the first address, which no other controller of the class has.
fn listens(config: &IngressConfiguration) -> Option<(String, String)> {
    let ports = [config.http_port, config.https_port]
        .into_iter()
        .filter(|port| *port != 0);
    let places = config
        .publish_addresses
        .iter()
        .flat_map(|ip| ports.clone().map(|port| SocketAddr::new(*ip, port).to_string()));
    let first = config.publish_addresses.first()?.to_string().replace(':', "-");
    Some((format!("{LISTENS}{first}"), places.collect::<Vec<_>>().join(",")))
}

fn same(published: &[String], sorted: &[String]) -> bool {
    let mut published = published.to_vec();
    published.sort();
    published == sorted
}
