//! Node-pressure eviction: when the node runs short of memory, disk or process ids, it says so in its conditions, frees what nobody
//! uses, and then ends pods, one at a time, as upstream ranks them.
//!
//! One task. It looks every ten seconds, and every second while something comes near a threshold; what a look means is decided by
//! pure functions ([`state`], [`rank`], [`message`]).

mod message;
mod rank;
mod signal;
mod state;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use skiff_api::k8s_openapi::api::core::v1::Pod;
use skiff_daemon::Shutdown;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::agent::Agent;
use crate::events::Severity;
use crate::image_gc::ImageGc;
use crate::memory::Finish;
use crate::node::facts;
use crate::pod::{self, Qos};
use crate::pods::{Directory, Entry};
use crate::stats::{self, PodFigures, Stats, disk, machine};
use disk::Contents;
use rank::{Candidate, Stored};
use signal::{Observation, Observations, Threshold};
use state::State;

pub(crate) use rank::is_critical;
pub(crate) use signal::{Amount, Signal};
pub(crate) use state::Pressure;

const PERIOD: Duration = Duration::from_secs(10);
/// While something comes near a threshold.
const NEAR_PERIOD: Duration = Duration::from_secs(1);
/// How long an evicted pod may take to end before the next one is chosen.
const CLEANUP: Duration = Duration::from_secs(30);
/// Seconds that the containers get when a hard threshold is crossed.
const IMMEDIATE: i64 = 1;
/// How old a figure of a pod's directories may be when it is chosen.
const WALK: Duration = Duration::from_secs(10);

/// The node's eviction manager.
pub(crate) struct Manager {
    agent: Arc<Agent>,
    directory: Directory,
    stats: Arc<Stats>,
    images: Arc<ImageGc>,
    thresholds: Vec<Threshold>,
    state: State,
    pressure: watch::Sender<Pressure>,
    image_fs: Option<PathBuf>,
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Manager {
    pub(crate) fn new(
        agent: Arc<Agent>,
        directory: Directory,
        stats: Arc<Stats>,
        images: Arc<ImageGc>,
        pressure: watch::Sender<Pressure>,
    ) -> Self {
        Self {
            thresholds: signal::thresholds(&agent.config.kubelet),
            agent,
            directory,
            stats,
            images,
            state: State::default(),
            pressure,
            image_fs: None,
        }
    }

    /// Looks and acts until shutdown.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        let work = async {
            loop {
                let near = self.round().await;
                tokio::time::sleep(if near { NEAR_PERIOD } else { PERIOD }).await;
            }
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = work => {}
        }
    }

    /// One look and what follows from it; true when the next should come soon.
    async fn round(&mut self) -> bool {
        let observations = self.observe().await;
        let starved = self.take_in(&observations);
        if let Some(threshold) = starved.first() {
            self.reclaim(threshold, &observations).await;
            return true;
        }
        state::is_near(&self.thresholds, &observations)
    }

    /// A first look, so that the node is registered with true conditions.
    pub(crate) async fn look(&mut self) {
        let observations = self.observe().await;
        self.take_in(&observations);
    }

    fn take_in(&mut self, observations: &Observations) -> Vec<Threshold> {
        let transition = self.agent.config.kubelet.eviction_pressure_transition_period.0;
        let verdict = self
            .state
            .step(&self.thresholds, observations, transition, Instant::now());
        self.pressure.send_if_modified(|pressure| {
            let changed = *pressure != verdict.pressure;
            *pressure = verdict.pressure;
            changed
        });
        verdict.starved
    }

    /// What is left of everything.
    async fn observe(&mut self) -> Observations {
        let mut observations = Observations::new();
        let used = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let total = self.agent.machine.memory;
        if total > 0 {
            let seen = Observation {
                available: total - used(machine::usage().working_set),
                capacity: total,
            };
            observations.insert(Signal::Memory, seen);
        }
        if let Some(pods) = self.agent.cgroups.usage_of_pods()
            && let Some(limit) = pods.limit
        {
            let seen = Observation {
                available: used(limit) - used(pods.working_set),
                capacity: used(limit),
            };
            observations.insert(Signal::AllocatableMemory, seen);
        }
        if let Some((processes, limit)) = facts::pids() {
            let seen = Observation {
                available: limit - processes,
                capacity: limit,
            };
            observations.insert(Signal::Pids, seen);
        }
        let root = self.agent.config.flags.root_dir.clone();
        observe_disk(&mut observations, &root, (Signal::NodeFs, Signal::NodeFsInodes));
        self.find_image_fs().await;
        if let Some(path) = &self.image_fs {
            observe_disk(&mut observations, path, (Signal::ImageFs, Signal::ImageFsInodes));
        }
        observations
    }

    async fn find_image_fs(&mut self) {
        if self.image_fs.as_ref().is_some_and(|path| path.exists()) {
            return;
        }
        self.image_fs = image_fs(&self.agent).await.ok().flatten();
    }

    fn has_own_image_fs(&self) -> bool {
        lies_apart(&self.agent, self.image_fs.as_deref())
    }

    /// Frees what nobody uses; when that is not enough, ends one pod and waits until it has ended.
    async fn reclaim(&mut self, threshold: &Threshold, observations: &Observations) {
        let resource = threshold.signal.resource();
        let complete = self.directory.is_complete();
        let text = format!("Attempting to reclaim {resource}");
        self.agent.events.node(Severity::Warning, "EvictionThresholdMet", text);
        tracing::warn!(signal = threshold.signal.name(), "the node runs short: reclaiming");
        let images_lie_there = match threshold.signal {
            Signal::ImageFs | Signal::ImageFsInodes => true,
            Signal::NodeFs | Signal::NodeFsInodes => !self.has_own_image_fs(),
            _ => false,
        };
        let removed = images_lie_there && self.remove_leftovers().await;
        if removed && self.is_enough_after_freeing(threshold).await {
            return;
        }
        if !complete {
            // Of those that are known, the wrong one would go; and what the others left is not cleared away.
            return;
        }
        let with_disk = matches!(resource, "ephemeral-storage" | "inodes");
        let mut candidates = self.candidates(with_disk).await;
        rank::rank(&mut candidates, threshold.signal, self.has_own_image_fs());
        let Some(chosen) = candidates.first() else {
            tracing::warn!(
                signal = threshold.signal.name(),
                "the node runs short, but there is no pod to evict"
            );
            return;
        };
        // Others remove containers too, and the runtime may not have freed those.
        if images_lie_there && !removed && self.is_enough_after_freeing(threshold).await {
            return;
        }
        let grace = self.grace(threshold, &chosen.pod);
        let text = message::low(threshold, observations, chosen);
        self.evict(&chosen.pod, text, grace, threshold.signal.name()).await;
    }

    /// Removes what ended pods have left and images that nobody uses; true when there was anything.
    async fn remove_leftovers(&self) -> bool {
        // An image is in use as long as there is a container of it.
        let cleared = tokio::time::timeout(CLEANUP, self.directory.clear_ended()).await;
        let cleared = cleared.unwrap_or_else(|_| {
            tracing::warn!("dead containers of pods that have ended are not gone yet; looking on without them");
            true
        });
        let freed = self.images.remove_unused().await.unwrap_or_else(|error| {
            tracing::warn!(error, "cannot remove images that nobody uses");
            0
        });
        if freed > 0 {
            tracing::info!(bytes = freed, "removed all images that nobody uses");
        }
        cleared || freed > 0
    }

    /// Has the runtime free what was removed, and looks again: whether the threshold is crossed no longer. Costly for the runtime.
    async fn is_enough_after_freeing(&mut self, threshold: &Threshold) -> bool {
        match tokio::time::timeout(CLEANUP, self.agent.runtime.free_removed()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = skiff_daemon::error_chain(&error);
                tracing::debug!(error, "the runtime may free later what was removed");
            }
            Err(_) => tracing::warn!("the runtime has not freed yet what was removed; looking on without it"),
        }
        let observations = self.observe().await;
        !self.take_in(&observations).contains(threshold)
    }

    fn grace(&self, threshold: &Threshold, pod: &Pod) -> i64 {
        if threshold.is_hard() {
            return IMMEDIATE;
        }
        let most = i64::from(self.agent.config.kubelet.eviction_max_pod_grace_period);
        pod::grace_period(pod).min(most).max(IMMEDIATE)
    }

    /// Pods that may be ended, with what they use.
    async fn candidates(&self, with_disk: bool) -> Vec<Candidate> {
        let entries = self.directory.all();
        let snapshot = self.stats.snapshot().await;
        let mut candidates = Vec::new();
        for figures in &snapshot.pods {
            let mut same = entries
                .iter()
                .filter(|entry| pod::uid(&entry.pod) == pod::uid(&figures.pod));
            if rank::is_critical(&figures.pod) || !same.any(may_end) {
                continue;
            }
            candidates.push(if with_disk {
                self.weigh(figures).await
            } else {
                candidate(figures, None)
            });
        }
        candidates
    }

    /// A pod with what it has on the disk.
    async fn weigh(&self, figures: &PodFigures) -> Candidate {
        let disk = self.stats.disk_of(&figures.pod, WALK).await;
        candidate(figures, Some(&disk))
    }

    async fn evict(&self, pod: &Arc<Pod>, text: String, grace: i64, signal: &'static str) {
        let uid = pod::uid(pod);
        tracing::warn!(pod = pod::full_name(pod), message = text, "evicting a pod");
        let Some(emptied) = self.directory.evict(uid, Finish::evicted(&text, grace)) else {
            return;
        };
        self.agent.measures.evicted(signal);
        // Its disk is free when its volumes are gone, not when its processes are.
        if tokio::time::timeout(CLEANUP, emptied).await.is_err() {
            tracing::warn!(
                pod = pod::full_name(pod),
                "an evicted pod has not ended yet; looking on without it"
            );
        }
    }
}

/// Where the runtime keeps images and containers' layers.
async fn image_fs(agent: &Agent) -> skiff_cri::Result<Option<PathBuf>> {
    let systems = agent.runtime.image_fs_info().await?;
    Ok(systems.first().map(|usage| PathBuf::from(&usage.mountpoint)))
}

/// Whether images have a disk of their own.
fn lies_apart(agent: &Agent, image_fs: Option<&Path>) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let images = image_fs.and_then(device);
    images.is_some() && images != device(&agent.config.flags.root_dir)
}

/// Whether images have a disk of their own, as the runtime says now; `None` when it does not say.
pub(crate) async fn has_own_image_fs(agent: &Agent) -> Option<bool> {
    let path = image_fs(agent).await.ok()?;
    Some(lies_apart(agent, path.as_deref()))
}

fn observe_disk(observations: &mut Observations, path: &Path, (bytes, inodes): (Signal, Signal)) {
    let Some(system) = disk::file_system(path) else {
        return;
    };
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let of = |available: u64, capacity: u64| Observation {
        available: number(available),
        capacity: number(capacity),
    };
    observations.insert(bytes, of(system.available, system.capacity));
    observations.insert(inodes, of(system.inodes_free, system.inodes));
}

/// Whether a pod goes on and was not told to end already. None of its containers need run: what they have left on the disk between
/// two runs is there.
pub(crate) fn may_end(entry: &Entry) -> bool {
    pod::deletion_time(&entry.pod).is_none() && !pod::is_terminal(&entry.pod) && !entry.ends
}

fn candidate(figures: &PodFigures, disk: Option<&stats::PodDisk>) -> Candidate {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let usage = figures.measured.map(|measured| measured.usage).unwrap_or_default();
    let stored = |contents: Contents| Stored {
        bytes: number(contents.bytes),
        inodes: number(contents.inodes),
    };
    let containers = figures.containers.iter().map(|container| {
        let logs = disk
            .and_then(|disk| disk.logs.get(&container.name))
            .copied()
            .unwrap_or_default();
        (
            container.name.clone(),
            number(container.measured.usage.working_set),
            number(container.root.bytes + logs.bytes),
        )
    });
    Candidate {
        pod: figures.pod.clone(),
        memory: number(usage.working_set),
        layers: stored(stats::layers(figures)),
        kept: stored(disk.map(stats::kept).unwrap_or_default()),
        processes: number(usage.processes),
        containers: containers.collect(),
    }
}

impl Pressure {
    /// Why a pod may not start on a node under pressure, as the text that follows "Pod was rejected: ".
    pub(crate) fn refuses(self, pod: &Pod) -> Option<String> {
        let conditions = self.conditions();
        if conditions.is_empty() || rank::is_critical(pod) {
            return None;
        }
        let only_memory = conditions == ["MemoryPressure"];
        if only_memory && (pod::qos(pod) != Qos::BestEffort || tolerates_memory_pressure(pod)) {
            return None;
        }
        Some(message::refused(self))
    }
}

fn tolerates_memory_pressure(pod: &Pod) -> bool {
    const TAINT: &str = "node.kubernetes.io/memory-pressure";
    pod::spec(pod).tolerations.iter().flatten().any(|toleration| {
        let key = toleration.key.as_deref().unwrap_or_default();
        let effect = toleration.effect.as_deref().unwrap_or_default();
        let exists = toleration.operator.as_deref() == Some("Exists");
        let named = key == TAINT && (exists || toleration.value.as_deref().unwrap_or_default().is_empty());
        (named || (key.is_empty() && exists)) && (effect.is_empty() || effect == "NoSchedule")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_may_start_under_pressure() {
        let pressure = |memory: bool, disk: bool| Pressure {
            memory,
            disk,
            pids: false,
        };
        let best_effort = crate::pod::tests::pod(&json!({"containers": [{"name": "c"}]}));
        let burstable = crate::pod::tests::pod(
            &json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "1Mi"}}}]}),
        );
        let tolerant = crate::pod::tests::pod(&json!({
            "containers": [{"name": "c"}],
            "tolerations": [{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"}],
        }));
        let critical = crate::pod::tests::pod(&json!({"containers": [{"name": "c"}], "priority": 2_000_001_000}));
        let refused = |memory, disk, pod: &Pod| pressure(memory, disk).refuses(pod).is_some();
        assert!(!refused(false, false, &best_effort));
        assert!(refused(true, false, &best_effort));
        assert!(!refused(true, false, &burstable));
        assert!(!refused(true, false, &tolerant));
        assert!(refused(false, true, &burstable) && refused(true, true, &burstable) && refused(false, true, &tolerant));
        assert!(!refused(true, true, &critical));
    }
}
