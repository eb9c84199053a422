//! The local-path provisioner of this node: directories as persistent volumes (docs/decisions/0014-local-volumes.md says why
//! it runs here).
//!
//! A claim that the scheduler sent to this node gets a directory and then a volume object; a released volume with policy
//! Delete loses its directory and then its object. Both begin from what the API server shows and can be cut off anywhere:
//! the next attempt finds what is there. One task watches, each piece of work has a task of its own, and what fails is
//! tried again with growing delays.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use skiff_api::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use skiff_daemon::Shutdown;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::agent::Agent;
use crate::events::Recorder;
use crate::watching::{Failures, patiently};

mod directory;
mod plan;
mod provision;
mod quota;
mod reclaim;

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(300);
/// The label by which a node finds its own volumes.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// Makes and removes the volumes of one node.
pub(crate) struct Provisioner {
    client: Client,
    /// The node's name, which is also its hostname label.
    node: String,
    /// Where the directories are.
    root: PathBuf,
    events: Recorder,
}

/// One piece of work.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Task {
    /// For the claim with this uid.
    Provision(String),
    /// The volume of this name.
    Reclaim(String),
}

/// What was seen on the API server.
enum Seen {
    /// All claims are listed from here on.
    ListBegins,
    Claim(Arc<PersistentVolumeClaim>),
    /// Claims that were not listed are gone.
    ListEnds,
    ClaimGone(Arc<PersistentVolumeClaim>),
    Volume(Arc<PersistentVolume>),
    VolumeGone(Arc<PersistentVolume>),
}

#[derive(Default)]
struct State {
    /// Claims that wait for this node, by uid.
    claims: HashMap<String, Arc<PersistentVolumeClaim>>,
    /// Volumes on this node, by name.
    volumes: HashMap<String, Arc<PersistentVolume>>,
    /// Of these, the ones seen since the last list began.
    listed: HashSet<String>,
    due: BTreeMap<Task, Instant>,
    failures: HashMap<Task, u32>,
    running: HashSet<Task>,
}

// === impl Provisioner ===

impl Provisioner {
    pub(crate) fn new(agent: &Agent) -> Self {
        Self {
            client: agent.client.clone(),
            node: agent.node_name.clone(),
            root: agent.config.local_path_dir(),
            events: agent.events.clone(),
        }
    }

    /// Works until shutdown.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let this = Arc::new(self);
        let mut seen = std::pin::pin!(this.watch());
        let mut state = State::default();
        let mut tasks: JoinSet<(Task, bool)> = JoinSet::new();
        loop {
            let next = state.next_due();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                Some(seen) = seen.next() => state.take(seen, &this.node),
                Some(ended) = tasks.join_next() => {
                    if let Ok((task, done)) = ended {
                        state.ended(task, done);
                    }
                }
                () = sleep_until(next) => {}
            }
            for task in state.begin_due() {
                let this = Arc::clone(&this);
                match &task {
                    Task::Provision(uid) => {
                        let claim = state.claims.get(uid).cloned();
                        tasks.spawn(async move { (task, this.provision_one(claim).await) });
                    }
                    Task::Reclaim(name) => {
                        let volume = state.volumes.get(name).cloned();
                        tasks.spawn(async move { (task, this.reclaim_one(volume).await) });
                    }
                }
            }
        }
    }

    /// Claims of the whole cluster (which node one is for is an annotation, not a label), and this node's volumes.
    fn watch(&self) -> impl futures::Stream<Item = Seen> + use<> {
        let claims = watcher(Api::all(self.client.clone()), watcher::Config::default());
        let own = watcher::Config::default().labels(&format!("{HOSTNAME}={}", self.node));
        let volumes = watcher(Api::all(self.client.clone()), own);
        // Another API server than skiff's refuses both, until nodes have the ClusterRole system:node:local-path-provisioner.
        let failures = |kind| Failures::of(kind, LAST_RETRY);
        let claims = patiently(failures("persistentvolumeclaims, for local volumes"), claims);
        let volumes = patiently(failures("persistentvolumes, for local volumes"), volumes);
        let claims = claims.map(|event| match event {
            Event::Init => Seen::ListBegins,
            Event::InitApply(claim) | Event::Apply(claim) => Seen::Claim(Arc::new(claim)),
            Event::InitDone => Seen::ListEnds,
            Event::Delete(claim) => Seen::ClaimGone(Arc::new(claim)),
        });
        let volumes = volumes.filter_map(|event| async {
            match event {
                Event::InitApply(volume) | Event::Apply(volume) => Some(Seen::Volume(Arc::new(volume))),
                Event::Delete(volume) => Some(Seen::VolumeGone(Arc::new(volume))),
                // A volume that went unseen needs nothing: its work finds it gone.
                Event::Init | Event::InitDone => None,
            }
        });
        futures::stream::select(claims, volumes)
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

// === impl State ===

impl State {
    fn take(&mut self, seen: Seen, node: &str) {
        match seen {
            Seen::ListBegins => self.listed.clear(),
            Seen::Claim(claim) => self.set_claim(claim, node),
            Seen::ListEnds => {
                let listed = std::mem::take(&mut self.listed);
                self.claims.retain(|uid, _| listed.contains(uid));
            }
            Seen::ClaimGone(claim) => {
                self.forget_claim(claim.metadata.uid.as_deref().unwrap_or_default());
            }
            Seen::Volume(volume) => self.set_volume(volume),
            Seen::VolumeGone(volume) => {
                self.volumes.remove(volume.metadata.name.as_deref().unwrap_or_default());
            }
        }
    }

    fn set_claim(&mut self, claim: Arc<PersistentVolumeClaim>, node: &str) {
        let uid = claim.metadata.uid.clone().unwrap_or_default();
        if !plan::is_sent_to(&claim, node) {
            self.forget_claim(&uid);
            return;
        }
        self.listed.insert(uid.clone());
        self.claims.insert(uid.clone(), claim);
        self.now(Task::Provision(uid));
    }

    fn forget_claim(&mut self, uid: &str) {
        self.claims.remove(uid);
        self.listed.remove(uid);
    }

    fn set_volume(&mut self, volume: Arc<PersistentVolume>) {
        let name = volume.metadata.name.clone().unwrap_or_default();
        if plan::concerns(&volume) {
            self.volumes.insert(name.clone(), volume);
            self.now(Task::Reclaim(name));
        } else {
            self.volumes.remove(&name);
        }
    }

    fn now(&mut self, task: Task) {
        self.due.insert(task, Instant::now());
    }

    fn next_due(&self) -> Option<Instant> {
        let waiting = self.due.iter().filter(|(task, _)| !self.running.contains(task));
        waiting.map(|(_, at)| *at).min()
    }

    /// The work whose time has come; nothing is begun twice at once.
    fn begin_due(&mut self) -> Vec<Task> {
        let now = Instant::now();
        let due = self
            .due
            .iter()
            .filter(|(task, at)| **at <= now && !self.running.contains(task));
        let tasks: Vec<Task> = due.map(|(task, _)| task.clone()).collect();
        for task in &tasks {
            self.due.remove(task);
            self.running.insert(task.clone());
        }
        tasks
    }

    fn ended(&mut self, task: Task, done: bool) {
        self.running.remove(&task);
        let wanted = match &task {
            Task::Provision(uid) => self.claims.contains_key(uid),
            Task::Reclaim(name) => self.volumes.contains_key(name),
        };
        if done || !wanted {
            self.failures.remove(&task);
            return;
        }
        let failures = self.failures.entry(task.clone()).or_default();
        let delay = FIRST_RETRY.saturating_mul(1 << (*failures).min(16)).min(LAST_RETRY);
        *failures = failures.saturating_add(1);
        // A change that came meanwhile is looked at earlier.
        self.due.entry(task).or_insert_with(|| Instant::now() + delay);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skiff_api::volumes::{LOCAL_PATH, SELECTED_NODE, STORAGE_PROVISIONER};

    use super::*;

    fn claim(uid: &str, node: &str) -> Seen {
        let annotations = json!({STORAGE_PROVISIONER: LOCAL_PATH, SELECTED_NODE: node});
        let claim = json!({"metadata": {"uid": uid, "annotations": annotations}});
        Seen::Claim(Arc::new(serde_json::from_value(claim).unwrap()))
    }

    fn task(uid: &str) -> Task {
        Task::Provision(uid.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn work_is_done_once_at_a_time_and_again_after_a_change_or_a_failure() {
        let mut state = State::default();
        state.take(claim("a", "n1"), "n1");
        state.take(claim("b", "n2"), "n1");
        assert_eq!(state.begin_due(), [task("a")]);
        state.take(claim("a", "n1"), "n1");
        assert_eq!(state.begin_due(), [], "it is being worked on");
        state.ended(task("a"), true);
        assert_eq!(state.begin_due(), [task("a")], "it has changed meanwhile");
        for seconds in [1, 2, 4] {
            state.ended(task("a"), false);
            let wait = state.next_due().unwrap() - Instant::now();
            assert_eq!(wait.as_secs(), seconds);
            tokio::time::advance(wait).await;
            assert_eq!(state.begin_due(), [task("a")]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_new_list_lacks_is_forgotten() {
        let mut state = State::default();
        state.take(claim("a", "n1"), "n1");
        state.begin_due();
        state.take(Seen::ListBegins, "n1");
        state.take(claim("b", "n1"), "n1");
        state.take(Seen::ListEnds, "n1");
        state.ended(task("a"), false);
        assert_eq!(state.begin_due(), [task("b")]);
        assert_eq!(state.next_due(), None, "nobody waits for it any more");
    }
}
