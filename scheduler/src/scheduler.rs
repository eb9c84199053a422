//! The one task that owns the cache and the queue: takes in changes, tries pods, hands decisions on.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;

use kube::Client;
use skiff_api::k8s_openapi::api::core::v1::PersistentVolumeClaim;
use skiff_daemon::{Health, Shutdown, Tasks};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep_until};

use crate::Error;
use crate::cache::{Cache, Key, NodeChange, Objects, PodChange};
use crate::config::Config;
use crate::cycle::{self, Placement};
use crate::effects::{Effects, Nomination};
use crate::framework::{ClusterEvent, Diagnosis, Framework};
use crate::metrics::{Metrics, Outcome};
use crate::model::{Node, Pod};
use crate::queue::{Attempt, Backoff, Queue};
use crate::watch::{self, Change, Update};

/// Pods tried before changes are taken in again.
const BURST: usize = 16;

/// What became of a binding.
struct Bound {
    attempt: Attempt,
    node: Arc<str>,
    began: Instant,
    result: Result<(), Error>,
}

/// What the scheduler's task hears of.
struct Inbox {
    changes: UnboundedReceiver<Change>,
    results: UnboundedReceiver<Bound>,
    /// UIDs of pods that no room could be made for: a victim could not be deleted.
    no_room: UnboundedReceiver<Arc<str>>,
}

struct Scheduler {
    name: String,
    framework: Arc<Framework>,
    cache: Cache,
    queue: Queue,
    /// Where the next search begins.
    start: usize,
    /// Kinds that have been listed.
    listed: HashSet<std::mem::Discriminant<Change>>,
    workloads_listed: HashSet<&'static str>,
    effects: Effects,
    metrics: Metrics,
    bound: UnboundedSender<Bound>,
    tasks: Tasks,
}

/// Schedules pods until shutdown; where there is an election, while it leads.
///
/// # Errors
/// None at present: every failure is tried again.
pub async fn run(config: Config, client: Client, daemon: skiff_daemon::Context) -> Result<(), Error> {
    let metrics = Metrics::register(&daemon.metrics, &config.scheduler_name);
    let Some(election) = &config.leader_election else {
        schedule(&config, &client, &daemon.health, metrics, daemon.shutdown.clone()).await;
        return Ok(());
    };
    let term = |shutdown| {
        let schedule = schedule(&config, &client, &daemon.health, metrics.clone(), shutdown);
        async {
            schedule.await;
            Ok(())
        }
    };
    election
        .lead(client.clone(), &daemon.metrics, &daemon.shutdown, term)
        .await
}

/// Schedules pods; when this ends, everything that it started has ended too.
async fn schedule(config: &Config, client: &Client, health: &Health, metrics: Metrics, shutdown: Shutdown) {
    let tasks = Tasks::new(shutdown);
    let ready = health.readiness("scheduler");
    let (changes, incoming) = unbounded_channel();
    watch::start(client, &changes, &tasks);
    let (mut scheduler, mut inbox) = Scheduler::new(config, client, incoming, metrics, &tasks);
    let shutdown = tasks.shutdown();
    let work = async {
        while !scheduler.is_synced() {
            if let Some(change) = inbox.changes.recv().await {
                scheduler.take(change);
            }
        }
        ready.pass();
        tracing::info!(nodes = scheduler.cache.snapshot.nodes.len(), "scheduling");
        scheduler.serve(&mut inbox).await;
    };
    shutdown.run_until_cancelled(work).await;
    tasks.ended().await;
}

// === impl Scheduler ===

impl Scheduler {
    fn new(
        config: &Config,
        client: &Client,
        changes: UnboundedReceiver<Change>,
        metrics: Metrics,
        tasks: &Tasks,
    ) -> (Self, Inbox) {
        let (bound, results) = unbounded_channel();
        let (failed, no_room) = unbounded_channel();
        let scheduler = Self {
            framework: Arc::new(Framework::new(client.clone())),
            cache: Cache::default(),
            queue: Queue::new(Backoff {
                initial: config.pod_initial_backoff,
                max: config.pod_max_backoff,
            }),
            start: 0,
            listed: HashSet::new(),
            workloads_listed: HashSet::new(),
            effects: Effects::start(client, config, failed, tasks),
            metrics,
            name: config.scheduler_name.clone(),
            bound,
            tasks: tasks.clone(),
        };
        let inbox = Inbox {
            changes,
            results,
            no_room,
        };
        (scheduler, inbox)
    }

    async fn serve(&mut self, inbox: &mut Inbox) -> Infallible {
        loop {
            let now = Instant::now();
            let wake = if self.queue.has_work() {
                now
            } else {
                self.queue.next_tick(now)
            };
            tokio::select! {
                biased;
                Some(result) = inbox.results.recv() => self.finish(result),
                Some(uid) = inbox.no_room.recv() => self.queue.retry_later(&uid, Instant::now()),
                Some(change) = inbox.changes.recv() => self.take(change),
                () = sleep_until(wake) => {}
            }
            while let Ok(result) = inbox.results.try_recv() {
                self.finish(result);
            }
            while let Ok(change) = inbox.changes.try_recv() {
                self.take(change);
            }
            self.queue.tick(Instant::now());
            for _ in 0..BURST {
                let Some(attempt) = self.queue.pop() else { break };
                self.attempt(attempt);
            }
            self.metrics.pending(self.queue.counts());
            // Bindings, watches and the API server itself may share this thread.
            tokio::task::yield_now().await;
        }
    }

    fn is_synced(&self) -> bool {
        self.listed.len() + self.workloads_listed.len() == watch::KINDS
    }

    // === Decisions ===

    fn attempt(&mut self, attempt: Attempt) {
        let began = Instant::now();
        let pod = &attempt.pod;
        let found = cycle::schedule(&self.framework, &self.cache.snapshot, pod, &mut self.start);
        self.metrics.algorithm(began.elapsed());
        match found {
            Ok(placement) => self.bind(attempt, placement, began),
            Err(diagnosis) => {
                self.give_up(&attempt, diagnosis, true, began);
            }
        }
    }

    fn bind(&mut self, attempt: Attempt, placement: Placement, began: Instant) {
        let node = placement.node;
        tracing::debug!(
            pod = attempt.pod.full_name(),
            %node,
            evaluated = placement.evaluated,
            feasible = placement.feasible,
            "found a node"
        );
        if let Err(rejection) = self.framework.reserve(&attempt.pod, &node, &self.cache.snapshot) {
            let diagnosis = Box::new(Diagnosis {
                nodes: self.cache.snapshot.nodes.len(),
                pre_filter: Some(rejection),
                ..Diagnosis::default()
            });
            self.give_up(&attempt, diagnosis, false, began);
            return;
        }
        // Counted at once; the next pod must not take the same room.
        self.cache.assume(&attempt.pod, &node);
        // Room that was kept on this very node is its own now.
        if let Some(left) = self.cache.nominate(&attempt.pod, None).filter(|left| *left != node) {
            self.room_freed(&attempt.pod, &left);
        }
        let (framework, effects, bound) = (Arc::clone(&self.framework), self.effects.clone(), self.bound.clone());
        self.tasks.spawn(async move {
            effects.settle(&attempt.pod.uid).await;
            let result = framework.bind(&attempt.pod, &node).await;
            // Nobody listens after shutdown.
            bound
                .send(Bound {
                    attempt,
                    node,
                    began,
                    result,
                })
                .ok();
        });
    }

    fn finish(&mut self, bound: Bound) {
        let Bound {
            attempt,
            node,
            began,
            result,
        } = bound;
        let uid = &attempt.pod.uid;
        match result {
            Ok(()) => {
                self.queue.remove(uid);
                self.metrics.attempt(Outcome::Scheduled, began.elapsed());
                self.metrics.bound(attempt.number, attempt.came);
                self.effects.scheduled(&attempt.pod, &node);
            }
            Err(error) => {
                tracing::warn!(error = %skiff_daemon::error_chain(&error), "cannot bind a pod; trying again");
                self.metrics.attempt(Outcome::Error, began.elapsed());
                self.framework.unreserve(&attempt.pod, &node);
                self.cache.forget(uid);
                // Also when the pod was deleted meanwhile: its volumes were kept for it until now.
                self.room_freed(&attempt.pod, &node);
                self.effects.failed(&attempt.pod, &error);
                if self.cache.knows(uid) {
                    // The API server had done it; only its answer was lost.
                    self.queue.remove(uid);
                } else {
                    self.queue.error(uid, Instant::now());
                }
            }
        }
    }

    /// Nothing is pushed out (`may_preempt`) for a pod that a node could have taken.
    fn give_up(&mut self, attempt: &Attempt, mut diagnosis: Box<Diagnosis>, may_preempt: bool, began: Instant) {
        let pod = &attempt.pod;
        let mut nomination = Nomination::Keep;
        if diagnosis.nodes > 0 && may_preempt {
            self.metrics.preemption_tried();
            let found = self.framework.post_filter(pod, &self.cache.snapshot, &diagnosis);
            diagnosis.post_filter = found.message;
            if let Some(preemption) = found.preemption {
                self.metrics.preempted(preemption.victims.len());
                nomination = Nomination::Set(Arc::clone(&preemption.node));
                self.effects.preempt(pod, preemption);
            } else if pod.nominated_node.is_some() && !found.keeps_nomination {
                // The room that was made has gone to others: it is not kept free any longer.
                nomination = Nomination::Clear;
            }
        }
        let message = diagnosis.message();
        tracing::debug!(pod = pod.full_name(), message, "no node");
        self.metrics.attempt(Outcome::Unschedulable, began.elapsed());
        let mut plugins = diagnosis.plugins();
        if diagnosis.nodes == 0 {
            // Any plugin that takes a new node for a reason to try again will do.
            plugins.insert("NodeResourcesFit");
        }
        let node = match &nomination {
            Nomination::Keep => pod.nominated_node.clone(),
            Nomination::Set(node) => Some(Arc::clone(node)),
            Nomination::Clear => None,
        };
        // While it is in flight: what its own nomination leaves free is no reason to try it again.
        if let Some(waiting) = self.queue.nominate(&pod.uid, node.clone()) {
            self.nominate(&waiting, node.as_ref());
        }
        self.queue.unschedulable(&pod.uid, plugins, Instant::now());
        self.effects.unschedulable(pod, message, nomination);
    }

    /// What a pod had, or was to get, on a node is there for others again.
    fn room_freed(&mut self, pod: &Pod, node: &Arc<str>) {
        self.wake(&ClusterEvent::PodGone(&pod.bound_to(node)));
    }

    fn wake(&mut self, event: &ClusterEvent<'_>) {
        for queue in self.queue.wake(event, &self.framework, Instant::now()) {
            self.metrics.incoming(queue, event.name());
        }
    }

    // === Changes ===

    fn take(&mut self, change: Change) {
        let kind = std::mem::discriminant(&change);
        let workload = if let Change::Workload(workload, _) = &change {
            Some(*workload)
        } else {
            None
        };
        let is_list = match change {
            Change::Pod(update) => self.take_pods(update),
            Change::Node(update) => self.take_nodes(update),
            Change::Namespace(update) => {
                let is_list = replace(&mut self.cache.objects().namespaces, update);
                self.wake(&ClusterEvent::NamespaceChanged);
                is_list
            }
            Change::Service(update) => replace(&mut self.cache.objects().services, update),
            Change::Workload(kind, update) => {
                let objects: &mut Objects = self.cache.objects();
                replace(objects.workloads.entry(kind).or_default(), update)
            }
            Change::Budget(update) => replace(&mut self.cache.objects().budgets, update),
            Change::Claim(update) => self.take_claims(update),
            Change::Volume(update) => {
                let is_list = replace(&mut self.cache.objects().volumes, update);
                self.wake(&ClusterEvent::VolumeChanged);
                is_list
            }
            Change::StorageClass(update) => {
                let is_list = replace(&mut self.cache.objects().storage_classes, update);
                self.wake(&ClusterEvent::StorageClassChanged);
                is_list
            }
        };
        match (is_list, workload) {
            (true, Some(workload)) => {
                self.workloads_listed.insert(workload);
            }
            (true, None) => {
                self.listed.insert(kind);
            }
            (false, _) => {}
        }
    }

    fn take_claims(&mut self, update: Update<(Key, Arc<PersistentVolumeClaim>)>) -> bool {
        let changed: Vec<Key> = match &update {
            Update::Set((key, _)) | Update::Remove((key, _)) => vec![key.clone()],
            Update::Replace(all) => all.iter().map(|(key, _)| key.clone()).collect(),
        };
        let is_list = replace(&mut self.cache.objects().claims, update);
        for key in &changed {
            self.wake(&ClusterEvent::ClaimChanged(key));
        }
        is_list
    }

    fn take_pods(&mut self, update: Update<Arc<Pod>>) -> bool {
        match update {
            Update::Set(pod) => self.set_pod(pod),
            Update::Remove(pod) => self.remove_pod(&pod.uid),
            Update::Replace(pods) => {
                let there: HashSet<Arc<str>> = pods.iter().map(|pod| Arc::clone(&pod.uid)).collect();
                // A pod whose binding is on its way is among them, without its node.
                let known = self.cache.uids().chain(self.queue.uids());
                let gone: Vec<Arc<str>> = known.filter(|uid| !there.contains(*uid)).cloned().collect();
                for uid in gone {
                    self.remove_pod(&uid);
                }
                for pod in pods {
                    self.set_pod(pod);
                }
                return true;
            }
        }
        false
    }

    fn set_pod(&mut self, pod: Arc<Pod>) {
        if pod.finished {
            self.remove_pod(&pod.uid);
        } else if pod.node.is_some() {
            self.set_placed(pod);
        } else if pod.is_waiting(&self.name) {
            self.set_waiting(pod);
        } else {
            // Being deleted, or handed to another scheduler.
            self.leave_queue(&pod.uid);
        }
    }

    fn set_placed(&mut self, pod: Arc<Pod>) {
        if !self.cache.is_assumed(&pod.uid) {
            self.leave_queue(&pod.uid);
        }
        match self.cache.set_pod(Arc::clone(&pod)) {
            PodChange::Placed => self.wake(&ClusterEvent::PodPlaced(&pod)),
            PodChange::Changed(old) => self.wake(&ClusterEvent::PodChanged { old: &old, new: &pod }),
            PodChange::Same => {}
        }
    }

    fn set_waiting(&mut self, pod: Arc<Pod>) {
        if self.cache.is_assumed(&pod.uid) {
            return;
        }
        if let Some(node) = pod.nominated_node.clone() {
            self.nominate(&pod, Some(&node));
        }
        if let Some(queue) = self.queue.set(pod, &self.framework, Instant::now()) {
            self.metrics.incoming(queue, "UnscheduledPodAdd");
        }
    }

    fn remove_pod(&mut self, uid: &Arc<str>) {
        self.leave_queue(uid);
        if let Some(gone) = self.cache.remove_pod(uid) {
            self.wake(&ClusterEvent::PodGone(&gone));
        }
    }

    fn leave_queue(&mut self, uid: &str) {
        if let Some(pod) = self.queue.remove(uid) {
            self.nominate(&pod, None);
        }
    }

    /// Keeps room on a node for a pod, or on none any more; others hear of room that is no longer kept.
    fn nominate(&mut self, pod: &Arc<Pod>, node: Option<&Arc<str>>) {
        if let Some(left) = self.cache.nominate(pod, node) {
            self.room_freed(pod, &left);
        }
    }

    fn take_nodes(&mut self, update: Update<Box<Node>>) -> bool {
        match update {
            Update::Set(node) => self.set_node(*node),
            Update::Remove(node) => self.remove_node(&node.name),
            Update::Replace(nodes) => {
                let there: HashSet<&Arc<str>> = nodes.iter().map(|node| &node.name).collect();
                let known = self.cache.snapshot.nodes.iter().map(|node| &node.name);
                let gone: Vec<Arc<str>> = known.filter(|name| !there.contains(name)).cloned().collect();
                for name in gone {
                    self.remove_node(&name);
                }
                for node in nodes {
                    self.set_node(*node);
                }
                return true;
            }
        }
        false
    }

    fn set_node(&mut self, node: Node) {
        let name = Arc::clone(&node.name);
        let change = self.cache.set_node(node);
        let Some(new) = self.cache.snapshot.node(&name).cloned() else {
            return;
        };
        match change {
            NodeChange::Added => self.wake(&ClusterEvent::NodeAdded(&new)),
            NodeChange::Changed(old) => self.wake(&ClusterEvent::NodeChanged { old: &old, new: &new }),
            NodeChange::Same => {}
        }
    }

    fn remove_node(&mut self, name: &Arc<str>) {
        if let Some(gone) = self.cache.remove_node(name) {
            self.wake(&ClusterEvent::NodeGone(&gone));
        }
    }
}

/// Brings a map up to date; whether it was a whole list.
fn replace<K: std::hash::Hash + Eq, V>(map: &mut std::collections::HashMap<K, V>, update: Update<(K, V)>) -> bool {
    match update {
        Update::Set((key, value)) => {
            map.insert(key, value);
            false
        }
        Update::Remove((key, _)) => {
            map.remove(&key);
            false
        }
        Update::Replace(all) => {
            *map = all.into_iter().collect();
            true
        }
    }
}

#[cfg(test)]
mod tests;
