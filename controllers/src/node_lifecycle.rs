//! Notices nodes that fall silent, says so in their conditions and taints, and marks their pods not ready.
//!
//! A change of a node is answered at once. Silence is no event: leases are looked at every `node_monitor_period`, the one
//! thing in this manager that polls.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::join_all;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::config::Config;
use crate::events::{Recorder, Regarding};
use crate::informer::{Change, Informer};
use crate::manager::Shared;
use crate::queue::Queue;
use crate::view::{Index, Key, Lease, Node, Pod, View};
use crate::write::{Error, Merge, Writer};

mod health;
mod taints;

use health::{Disruption, Heard, Limiter, Readiness, readiness};
use taints::Evict;

const WORKERS: usize = 4;
/// Up to this size a zone that is partly disrupted evicts nobody.
const LARGE_ZONE: usize = 50;
/// Upstream's `--secondary-node-eviction-rate`, for larger ones.
const SECONDARY_EVICTION_RATE: f64 = 0.01;
const ZONE_LABELS: [&str; 2] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];

struct Controller {
    config: Config,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    leases: Arc<Informer<Lease>>,
    writer: Writer,
    recorder: Recorder,
    queue: Arc<Queue<Key>>,
    heard: Mutex<Heard>,
}

/// A node and how it is, if it has ever said.
type Seen = (Arc<Node>, Option<Readiness>);

/// What the monitor remembers from one look to the next.
#[derive(Default)]
struct Zones {
    limiters: HashMap<String, Limiter>,
    all_disrupted: bool,
}

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let controller = Arc::new(Controller {
        config: shared.config.clone(),
        nodes: shared.informers.nodes.want(),
        pods: shared.informers.pods.want(),
        leases: shared.informers.leases.want(),
        writer: shared.writer("node-controller"),
        recorder: shared.recorder("node-controller"),
        queue: shared.queue("node_lifecycle_controller"),
        heard: Mutex::default(),
    });
    controller.nodes.tell(&controller, Controller::node_changed);
    let this = Arc::clone(&controller);
    controller.leases.on_change(move |change| {
        if let Some(lease) = change.new {
            let renewed = lease.spec.renew_time.as_ref().map(|time| time.0);
            this.heard.lock().lease(lease.name(), renewed, Instant::now());
        }
    });
    let synced = [
        controller.nodes.synced(),
        controller.pods.synced(),
        controller.leases.synced(),
    ];
    let shutdown = shared.shutdown.clone();
    async move {
        if shutdown.run_until_cancelled(join_all(synced)).await.is_none() {
            return;
        }
        // The server may have been away for long: nobody is silent before we have listened.
        controller.heard.lock().forgive(Instant::now());
        let mut tasks = JoinSet::new();
        let (this, queue) = (Arc::clone(&controller), Arc::clone(&controller.queue));
        tasks.spawn(queue.work(WORKERS, shutdown.clone(), move |key| {
            let this = Arc::clone(&this);
            async move { this.sync(key).await }
        }));
        tasks.spawn(async move {
            let mut zones = Zones::default();
            let mut tick = tokio::time::interval(controller.config.node_monitor_period);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    _ = tick.tick() => controller.monitor(&mut zones).await,
                }
            }
        });
        tasks.join_all().await;
    }
}

// === a node's change ===

impl Controller {
    fn node_changed(&self, change: &Change<'_, Node>) {
        let node = change.object();
        let name = node.name();
        if change.is_deletion() {
            self.heard.lock().forget(name);
            let message = format!("Node {name} event: Removing Node {name} from Controller");
            self.recorder.normal(Regarding::of(&**node), "RemovingNode", message);
            return;
        }
        if change.old.is_none() {
            let message = format!("Node {name} event: Registered Node {name} in Controller");
            self.recorder.normal(Regarding::of(&**node), "RegisteredNode", message);
        }
        self.heard.lock().node(node, Instant::now());
        self.queue.add(node.key());
    }

    /// What follows from the node's own conditions, at once: NoSchedule taints, and the end of evictions.
    async fn sync(&self, key: Key) -> Result<(), Error> {
        let Some(node) = self.nodes.get(&key) else {
            return Ok(());
        };
        let readiness = readiness(&node);
        let evict = if readiness == Some(Readiness::Ready) {
            Evict::Clear
        } else {
            Evict::Keep
        };
        self.write_taints(&node, evict).await?;
        if readiness == Some(Readiness::Unknown) {
            self.mark_pods_not_ready(&node).await?;
        }
        Ok(())
    }

    async fn write_taints(&self, node: &Node, evict: Evict) -> Result<(), Error> {
        let Some(taints) = taints::desired(node, evict, Timestamp::now()) else {
            return Ok(());
        };
        let patch = json!({
            "metadata": {"uid": node.uid(), "resourceVersion": node.resource_version()},
            "spec": {"taints": if taints.is_empty() { serde_json::Value::Null } else { json!(taints) }},
        });
        self.writer
            .patch::<Node>(&node.key(), Merge::Json, &patch)
            .await
            .map(drop)
    }

    /// Nobody can say any more that these pods answer.
    async fn mark_pods_not_ready(&self, node: &Node) -> Result<(), Error> {
        let now = Timestamp::now();
        let now = now.round(jiff::Unit::Second).unwrap_or(now);
        let pods = self.pods.by_index(&Index::Node(node.name().to_owned()));
        for pod in pods.into_iter().filter(|pod| pod.is_ready() && !pod.is_terminal()) {
            let patch = json!({
                "metadata": {"uid": pod.uid()},
                "status": {"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": now.to_string()}]},
            });
            match self
                .writer
                .patch_status::<Pod>(&pod.key(), Merge::Strategic, &patch)
                .await
            {
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => return Err(error),
                Ok(_) => self
                    .recorder
                    .warning(Regarding::of(&*pod), "NodeNotReady", "Node is not ready".to_owned()),
            }
        }
        Ok(())
    }
}

// === silence ===

impl Controller {
    async fn monitor(&self, zones: &mut Zones) {
        let now = Instant::now();
        let mut nodes: Vec<Seen> = Vec::new();
        for node in self.nodes.list() {
            let silent = self.heard.lock().is_silent(&node, &self.config, now);
            let node = if silent { self.silence(node).await } else { node };
            let readiness = readiness(&node);
            nodes.push((node, readiness));
        }
        let mut by_zone: HashMap<String, Vec<&Seen>> = HashMap::new();
        for entry in &nodes {
            by_zone.entry(zone(&entry.0)).or_default().push(entry);
        }
        zones.limiters.retain(|zone, _| by_zone.contains_key(zone));
        let states: HashMap<&String, Disruption> = by_zone
            .iter()
            .map(|(zone, nodes)| (zone, self.disruption(nodes)))
            .collect();
        let all_disrupted = !states.is_empty() && states.values().all(|state| *state == Disruption::Full);
        if all_disrupted != zones.all_disrupted {
            zones.all_disrupted = all_disrupted;
            self.heard.lock().forgive(now);
            if all_disrupted {
                tracing::warn!("no node is ready: the fault may be ours, so no pods are evicted");
            }
        }
        for (zone, nodes) in &by_zone {
            let rate = match states.get(zone) {
                Some(Disruption::Partial) if nodes.len() > LARGE_ZONE => SECONDARY_EVICTION_RATE,
                Some(Disruption::Partial) => 0.0,
                _ => self.config.node_eviction_rate,
            };
            let limiter = zones.limiters.entry(zone.clone()).or_insert_with(|| Limiter::new(now));
            for (node, readiness) in nodes {
                self.evict(node, *readiness, all_disrupted, limiter, rate, now).await;
            }
        }
    }

    async fn evict(
        &self,
        node: &Node,
        readiness: Option<Readiness>,
        all_disrupted: bool,
        limiter: &mut Limiter,
        rate: f64,
        now: Instant,
    ) {
        let Some(readiness) = readiness else { return };
        let mut evict = if all_disrupted {
            Evict::Clear
        } else {
            taints::evicting(readiness)
        };
        let needs_turn = matches!(evict, Evict::Taint(_)) && !taints::is_evicting(node);
        let has_turn = needs_turn && limiter.take(rate, now);
        if needs_turn && !has_turn {
            evict = Evict::Keep;
        }
        if let Err(error) = self.write_taints(node, evict).await {
            if has_turn {
                limiter.give_back();
            }
            if !error.is_conflict() && !error.is_not_found() {
                let error = skiff_daemon::error_chain(&error);
                tracing::warn!(node = node.name(), %error, "cannot taint; trying again soon");
            }
        }
    }

    /// Writes that a node is silent; returns the node as it is then.
    async fn silence(&self, node: Arc<Node>) -> Arc<Node> {
        let conditions = health::silenced_conditions(&node, Timestamp::now());
        if conditions.is_empty() {
            return node;
        }
        let patch = json!({"metadata": {"uid": node.uid()}, "status": {"conditions": conditions}});
        match self
            .writer
            .patch_status::<Node>(&node.key(), Merge::Strategic, &patch)
            .await
        {
            Ok(silenced) => {
                if readiness(&node) == Some(Readiness::Ready) {
                    let message = format!("Node {} status is now: NodeNotReady", node.name());
                    self.recorder.normal(Regarding::of(&*node), "NodeNotReady", message);
                }
                Arc::new(silenced)
            }
            Err(error) => {
                let error = skiff_daemon::error_chain(&error);
                tracing::warn!(node = node.name(), %error, "cannot write that the node is silent; trying again soon");
                node
            }
        }
    }

    fn disruption(&self, nodes: &[&Seen]) -> Disruption {
        let ready = nodes
            .iter()
            .filter(|(_, readiness)| *readiness == Some(Readiness::Ready))
            .count();
        health::disruption(ready, nodes.len() - ready, self.config.unhealthy_zone_threshold)
    }
}

fn zone(node: &Node) -> String {
    ZONE_LABELS.map(|label| node.label(label).unwrap_or_default()).join("/")
}
