//! This node in the API: registration, status, lease.
//!
//! One task: it patches the node's status the moment that something of it changes, and otherwise as often as upstream does;
//! a second one renews the lease. While the runtime or its network is not ready it asks the runtime again every few
//! milliseconds, so that the node is ready as soon as its network is.

pub(crate) mod facts;
mod lease;
mod seen;
mod status;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, Taint};
use skiff_api::k8s_openapi::jiff::Timestamp;
use skiff_cri::{Runtime, RuntimeStatus};
use skiff_daemon::{Shutdown, error_chain};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::agent::Agent;
use crate::config::Config;
use crate::events::{Recorder, Severity, is_not_found};
use crate::eviction::Pressure;
use facts::Facts;
pub(crate) use seen::Seen;
pub(crate) use status::allocatable;

/// The version that this kubelet says it is: that of the Kubernetes API whose behaviour it has.
pub(crate) const VERSION: &str = "v1.36.0";
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(7);

/// The annotation of a node whose volumes the controllers attach.
const ATTACHED_BY_CONTROLLER: &str = "volumes.kubernetes.io/controller-managed-attach-detach";

/// How long a runtime may be away before the node is not ready, as upstream's: a restart of containerd must not take the
/// pods out of their Services.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the node's task needs.
pub(crate) struct NodeTask {
    client: kube::Client,
    runtime: Arc<dyn Runtime>,
    events: Recorder,
    config: Config,
    name: String,
    ips: Vec<IpAddr>,
    facts: Facts,
    /// What runs short, as eviction sees it.
    pressure: watch::Receiver<Pressure>,
    /// What the runtime last said of itself, and when.
    heard: Mutex<Option<(Instant, RuntimeStatus)>>,
}

/// What the API was last seen to have: the next patch goes by this, whoever has written it.
struct Held {
    status: NodeStatus,
    /// What the last patch did not bring about: an older server does not know every field, and would be told without end.
    in_vain: Option<Value>,
    told_at: Instant,
}

/// What became of a patch.
enum Answer {
    Patched(Node),
    /// The node was gone, and is registered again.
    Registered(Node),
}

impl Held {
    fn new(node: Node) -> Self {
        Self {
            status: node.status.unwrap_or_default(),
            in_vain: None,
            told_at: Instant::now(),
        }
    }

    /// Takes in what the API has now.
    fn look(&mut self, node: Node) {
        self.status = node.status.unwrap_or_default();
    }

    /// Takes in what has become of the patch to this status. What is still missing and was not in the patch is another's work.
    fn told(&mut self, status: &NodeStatus, change: &Value, answer: Answer) {
        match answer {
            Answer::Registered(node) => *self = Self::new(node),
            Answer::Patched(node) => {
                *self = Self::new(node);
                self.in_vain = status::diff(&self.status, status, false);
                let missing = self
                    .in_vain
                    .as_mut()
                    .and_then(|missing| missing["status"].as_object_mut());
                if let Some(fields) = missing {
                    fields.retain(|field, _| change["status"].get(field).is_some());
                }
            }
        }
    }

    /// What the API is to be told, if anything.
    fn patch(&self, status: &NodeStatus, heartbeat: bool) -> Option<Value> {
        status::diff(&self.status, status, heartbeat).filter(|change| self.in_vain.as_ref() != Some(change))
    }
}

impl NodeTask {
    pub(crate) fn new(agent: &Agent) -> Self {
        Self {
            client: agent.client.clone(),
            runtime: agent.runtime.clone(),
            events: agent.events.clone(),
            config: agent.config.clone(),
            name: agent.node_name.clone(),
            ips: agent.node_ips.clone(),
            facts: agent.machine.clone(),
            pressure: agent.pressure.clone(),
            heard: Mutex::default(),
        }
    }

    /// Keeps the node in the API until shutdown.
    pub(crate) async fn run(self, ready: skiff_daemon::Check, shutdown: Shutdown) {
        let work = async {
            let node = self.register().await;
            ready.pass();
            tokio::join!(self.keep_status(node), lease::keep(&self));
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = work => {}
        }
    }

    /// Creates the node, or brings the labels of an existing one up to date; tries until the API server answers.
    async fn register(&self) -> Node {
        let api: Api<Node> = Api::all(self.client.clone());
        let mut delay = FIRST_RETRY;
        loop {
            let status = self.status(&NodeStatus::default()).await;
            match self.try_register(&api, status).await {
                Ok(node) => {
                    tracing::info!(node = self.name, "registered this node");
                    self.events
                        .node(Severity::Normal, "Starting", "Starting kubelet.".into());
                    if rebooted(&node, &self.facts.boot_id) {
                        let text = format!("Node {} has been rebooted, boot id: {}", self.name, self.facts.boot_id);
                        self.events.node(Severity::Warning, "Rebooted", text);
                    }
                    return node;
                }
                Err(error) => {
                    tracing::warn!(
                        error = error_chain(&error),
                        "cannot register this node; it is tried again"
                    );
                }
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(LAST_RETRY);
        }
    }

    async fn try_register(&self, api: &Api<Node>, status: NodeStatus) -> kube::Result<Node> {
        if self.config.kubelet.register_node {
            let node = self.fresh(status);
            match api.create(&PostParams::default(), &node).await {
                Err(kube::Error::Api(answer)) if answer.code == 409 => {}
                created => return created,
            }
        }
        let node = api.get(&self.name).await?;
        let known = node.metadata.labels.clone().unwrap_or_default();
        let stale = stale(self.labels(), &known);
        if stale.is_empty() {
            return Ok(node);
        }
        api.patch(
            &self.name,
            &PatchParams::default(),
            &Patch::Strategic(json!({"metadata": {"labels": stale}})),
        )
        .await
    }

    /// The node as it is registered for the first time: afterwards its labels and taints are the administrator's.
    fn fresh(&self, status: NodeStatus) -> Node {
        let kubelet = &self.config.kubelet;
        let taints = kubelet.register_with_taints.iter().map(|taint| Taint {
            key: taint.key.clone(),
            value: Some(taint.value.clone()).filter(|value| !value.is_empty()),
            effect: taint.effect.clone(),
            time_added: None,
        });
        let mut node = Node::default();
        node.metadata.name = Some(self.name.clone());
        node.metadata.labels = Some(self.labels());
        node.metadata.annotations = Some([(ATTACHED_BY_CONTROLLER.into(), "true".into())].into());
        node.spec = Some(NodeSpec {
            taints: Some(taints.collect::<Vec<_>>()).filter(|taints| !taints.is_empty()),
            provider_id: Some(kubelet.provider_id.clone()).filter(|id| !id.is_empty()),
            ..NodeSpec::default()
        });
        node.status = Some(status);
        node
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.config.flags.node_labels.clone();
        let arch = facts::architecture();
        for (key, value) in [
            ("kubernetes.io/hostname", self.name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", arch),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", arch),
        ] {
            labels.insert(key.into(), value.into());
        }
        labels
    }

    /// Patches the status whenever it changes, at least every `nodeStatusReportFrequency`, and when somebody else has changed it: the
    /// node controller does when it heard nothing for a while, and does not take that back.
    async fn keep_status(&self, node: Node) {
        let api: Api<Node> = Api::all(self.client.clone());
        let report = self.config.kubelet.node_status_report_frequency.0;
        let mut held = Held::new(node);
        let mut delay = FIRST_RETRY;
        let mut unready_since = Instant::now();
        let mut looked = Instant::now();
        let mut first = true;
        let mut announced = NodeStatus::default();
        let mut pressure = self.pressure.clone();
        loop {
            if looked.elapsed() >= self.config.kubelet.node_status_update_frequency.0 {
                self.look(&api, &mut held).await;
                looked = Instant::now();
            }
            let status = self.status(&held.status).await;
            let change = held.patch(&status, first || held.told_at.elapsed() >= report);
            first = false;
            if let Some(change) = change {
                match self.send(&api, &change).await {
                    Ok(answer) => {
                        self.tell(&announced, &status);
                        held.told(&status, &change, answer);
                        announced = status;
                        delay = FIRST_RETRY;
                    }
                    Err(error) => {
                        tracing::warn!(
                            error = error_chain(&error),
                            "cannot patch this node's status; it is tried again"
                        );
                        tokio::time::sleep(delay).await;
                        delay = (delay * 2).min(LAST_RETRY);
                        continue;
                    }
                }
            }
            if status::is_ready(&held.status) {
                unready_since = Instant::now();
            }
            tokio::select! {
                () = tokio::time::sleep(self.pause(&held.status, unready_since)) => {}
                () = changed(&mut pressure) => {}
            }
        }
    }

    async fn look(&self, api: &Api<Node>, held: &mut Held) {
        match self.in_time(api.get(&self.name)).await {
            Ok(node) => held.look(node),
            Err(error) => tracing::debug!(error = error_chain(&error), "cannot look at this node's status"),
        }
    }

    async fn send(&self, api: &Api<Node>, change: &Value) -> kube::Result<Answer> {
        let (parameters, patch) = (PatchParams::default(), Patch::Strategic(change));
        match self.in_time(api.patch_status(&self.name, &parameters, &patch)).await {
            Err(error) if is_not_found(&error) => {
                // Somebody deleted the node while this kubelet ran: it comes back.
                let status = self.status(&NodeStatus::default()).await;
                self.try_register(api, status).await.map(Answer::Registered)
            }
            answer => answer.map(Answer::Patched),
        }
    }

    /// A request that says that the node lives is worth no more waiting than the next one: as long as upstream's client has for them.
    async fn in_time<T>(&self, request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
        let kubelet = &self.config.kubelet;
        let lease = Duration::from_secs(u64::try_from(kubelet.node_lease_duration_seconds).unwrap_or(40));
        let limit = kubelet
            .node_status_update_frequency
            .0
            .min(lease)
            .max(Duration::from_secs(1));
        let late = |_| Err(kube::Error::Service(Box::new(io::Error::from(io::ErrorKind::TimedOut))));
        tokio::time::timeout(limit, request).await.unwrap_or_else(late)
    }

    /// Short while the node waits for its network, upstream's otherwise.
    fn pause(&self, status: &NodeStatus, unready_since: Instant) -> Duration {
        if status::is_ready(status) {
            return self.config.kubelet.node_status_update_frequency.0;
        }
        match unready_since.elapsed().as_secs() {
            0..60 => Duration::from_millis(25),
            60..600 => Duration::from_millis(250),
            _ => Duration::from_secs(1),
        }
    }

    /// Events for conditions that have changed.
    fn tell(&self, old: &NodeStatus, new: &NodeStatus) {
        let of = |status: &NodeStatus, kind: &str| {
            status
                .conditions
                .iter()
                .flatten()
                .find(|c| c.type_ == kind)
                .map(|c| c.status == "True")
        };
        for (kind, yes, no) in [
            ("Ready", "NodeReady", "NodeNotReady"),
            ("MemoryPressure", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
            ("DiskPressure", "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
            ("PIDPressure", "NodeHasInsufficientPID", "NodeHasSufficientPID"),
        ] {
            let Some(now) = of(new, kind) else { continue };
            if of(old, kind) != Some(now) {
                let reason = if now { yes } else { no };
                self.events.node(
                    Severity::Normal,
                    reason,
                    format!("Node {} status is now: {reason}", self.name),
                );
            }
        }
    }

    /// What the runtime says; while it is silent for a moment, what it said last.
    fn hear(&self, answer: skiff_cri::Result<RuntimeStatus>) -> Result<RuntimeStatus, String> {
        let mut heard = self.heard.lock();
        match (answer, &*heard) {
            (Ok(status), _) => {
                *heard = Some((Instant::now(), status.clone()));
                Ok(status)
            }
            (Err(_), Some((at, status))) if at.elapsed() < PATIENCE => Ok(status.clone()),
            (Err(error), _) => Err(error.rpc_text()),
        }
    }

    async fn status(&self, last: &NodeStatus) -> NodeStatus {
        let (runtime, images, version) = tokio::join!(
            self.runtime.status(),
            self.runtime.list_images(),
            self.runtime.version()
        );
        let runtime = self.hear(runtime);
        let input = status::Input {
            config: &self.config,
            facts: &self.facts,
            name: &self.name,
            ips: &self.ips,
            runtime: runtime.as_ref().map_err(Clone::clone),
            version: version.ok(),
            images: images.unwrap_or_default(),
            pressure: *self.pressure.borrow(),
            last,
            now: Timestamp::now(),
        };
        status::generate(input)
    }
}

/// Labels that are facts of the machine or its place: they are put right. What else `--node-labels` says counts when the node is
/// registered.
const FACTS: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

/// Those of the labels that a known node must have and has not.
fn stale(mut labels: BTreeMap<String, String>, known: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    labels.retain(|key, value| FACTS.contains(&key.as_str()) && known.get(key) != Some(value));
    labels
}

/// Whether the machine has started anew since the node's status was written last.
fn rebooted(node: &Node, boot_id: &str) -> bool {
    let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
    info.is_some_and(|info| !info.boot_id.is_empty() && info.boot_id != boot_id)
}

/// Waits until what runs short has changed.
async fn changed(pressure: &mut watch::Receiver<Pressure>) {
    if pressure.changed().await.is_err() {
        // Nobody looks any longer: the kubelet is ending.
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(cpu: &str, features: Value) -> NodeStatus {
        serde_json::from_value(json!({"capacity": {"cpu": cpu}, "features": features})).unwrap()
    }

    fn node(status: &NodeStatus) -> Node {
        Node {
            status: Some(status.clone()),
            ..Node::default()
        }
    }

    #[test]
    fn labels_of_a_known_node_are_the_administrators_but_for_facts() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs
                .iter()
                .map(|(key, value)| ((*key).into(), (*value).into()))
                .collect()
        };
        let own = map(&[
            ("kubernetes.io/os", "linux"),
            ("role", "a"),
            ("topology.kubernetes.io/zone", "z"),
        ]);
        let cases = [
            (
                map(&[]),
                map(&[("kubernetes.io/os", "linux"), ("topology.kubernetes.io/zone", "z")]),
            ),
            (
                map(&[
                    ("kubernetes.io/os", "linux"),
                    ("role", "b"),
                    ("topology.kubernetes.io/zone", "y"),
                ]),
                map(&[("topology.kubernetes.io/zone", "z")]),
            ),
            (own.clone(), map(&[])),
        ];
        for (known, wanted) in cases {
            assert_eq!(stale(own.clone(), &known), wanted, "{known:?}");
        }
    }

    #[test]
    fn a_field_that_the_server_does_not_know_is_told_with_others_only() {
        let own = |cpu| status(cpu, json!({"supplementalGroupsPolicy": true}));
        let kept = |cpu| status(cpu, Value::Null);
        let mut held = Held::new(node(&kept("1")));
        for cpu in ["2", "4"] {
            let change = held.patch(&own(cpu), false).unwrap();
            assert!(change["status"]["features"].is_object(), "{change}");
            held.told(&own(cpu), &change, Answer::Patched(node(&kept(cpu))));
            assert_eq!(held.patch(&own(cpu), false), None);
            held.look(node(&kept(cpu)));
            assert_eq!(held.patch(&own(cpu), false), None);
        }
    }

    /// Just before a patch, after it, and the same once more.
    #[test]
    fn whatever_somebody_else_writes_is_put_right() {
        let (own, foreign) = (status("2", Value::Null), status("64", Value::Null));
        let with_another = |status: &NodeStatus| {
            let mut status = status.clone();
            status.addresses = serde_json::from_value(json!([{"type": "Hostname", "address": "other"}])).unwrap();
            status
        };
        let mut held = Held::new(node(&status("1", Value::Null)));
        // The answer has what was written before.
        let change = held.patch(&own, false).unwrap();
        held.told(&own, &change, Answer::Patched(node(&with_another(&own))));
        let looks = [
            with_another(&own),
            foreign.clone(),
            own.clone(),
            foreign.clone(),
            foreign,
        ];
        for found in looks {
            held.look(node(&found));
            let change = held.patch(&own, false);
            assert_eq!(change.is_some(), found != own, "{found:?}");
            if let Some(change) = change {
                held.told(&own, &change, Answer::Patched(node(&own)));
            }
            assert_eq!(held.patch(&own, false), None);
        }
    }
}
