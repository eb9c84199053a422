//! All pods of this node: one task that hands what sources, runtime and objects say to the pods' workers.

mod statics;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use skiff_api::k8s_openapi::api::core::v1::Pod;
use skiff_cri::events::{EventKind, Notice};
use skiff_daemon::Shutdown;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::admission;
use crate::agent::Agent;
use crate::config::sources::{Source, Update};
use crate::garbage;
use crate::memory::Finish;
use crate::observed::{self, Observed, PodIds};
use crate::pod;
use crate::pod_worker::{self, Admission, Handle, Wish};
use statics::Statics;

/// How often the runtime is asked for everything, in case an event was missed.
const RELIST: Duration = Duration::from_secs(60);
/// UIDs of ended pods remembered, so that a late word about one does not run it again.
const ENDED: usize = 4096;

/// The pods as others may see them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Directory {
    /// When the dispatcher last began a round.
    beat: Arc<Mutex<Option<Instant>>>,
    /// Whether all sources have told all their pods.
    complete: Arc<AtomicBool>,
    handles: Arc<RwLock<HashMap<String, Handle>>>,
}

/// A pod and what the runtime says of it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) pod: Arc<Pod>,
    pub(crate) observed: Arc<Observed>,
    /// What the runtime says from now on.
    pub(crate) view: watch::Receiver<Arc<Observed>>,
    /// Whether it ends or has ended, which the API may not know yet.
    pub(crate) ends: bool,
}

impl Directory {
    /// How long ago the dispatcher last began a round; none before its first.
    pub(crate) fn last_round(&self) -> Option<Duration> {
        self.beat.lock().map(|at| at.elapsed())
    }

    /// Whether all pods of this node are known: just after the start they are not.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// All pods.
    pub(crate) fn all(&self) -> Vec<Entry> {
        self.handles.read().values().map(entry).collect()
    }

    /// A pod by name; with `uid` only if it is that one. One that ends yet may have the name of one that has begun.
    pub(crate) fn find(&self, namespace: &str, name: &str, uid: Option<&str>) -> Option<Entry> {
        let handles = self.handles.read();
        let matches = |pod: &Pod| {
            pod::namespace(pod) == namespace && pod::name(pod) == name && uid.is_none_or(|uid| pod::uid(pod) == uid)
        };
        handles
            .values()
            .filter(|handle| matches(&handle.wish.borrow().pod))
            .max_by_key(|handle| standing(&handle.wish.borrow()))
            .map(entry)
    }

    /// Ends a pod for good: it fails with this reason and message. What comes back ends when it has given back what it held; `None` when
    /// there is no such pod, or it ends already.
    pub(crate) fn evict(&self, uid: &str, finish: Finish) -> Option<impl Future<Output = ()> + use<>> {
        let handles = self.handles.read();
        let handle = handles.get(uid)?;
        handle.end(finish).then(|| handle.emptied())
    }

    /// Takes away the dead containers of all pods that have ended, as the API knows: nobody runs such a pod again. What comes back ends
    /// when they are gone; true when there were any.
    pub(crate) fn clear_ended(&self) -> impl Future<Output = bool> + use<> {
        let gone: Vec<_> = self.handles.read().values().filter_map(Handle::clear).collect();
        async move { !futures::future::join_all(gone).await.is_empty() }
    }
}

/// Of several pods of one name, the name means the one with the highest standing.
fn standing(wish: &Wish) -> (bool, bool, Option<Timestamp>) {
    let created = wish.pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (!wish.gone, pod::deletion_time(&wish.pod).is_none(), created)
}

fn entry(handle: &Handle) -> Entry {
    Entry {
        pod: handle.wish.borrow().pod.clone(),
        observed: handle.view.borrow().clone(),
        view: handle.view.clone(),
        ends: handle.ends(),
    }
}

/// What the dispatcher listens to.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub(crate) sources: HashSet<Source>,
    pub(crate) updates: mpsc::Receiver<Update>,
    /// UIDs of pods whose objects changed.
    pub(crate) objects: mpsc::UnboundedReceiver<String>,
}

struct Dispatcher {
    agent: Arc<Agent>,
    directory: Directory,
    done: mpsc::UnboundedSender<String>,
    ended: HashSet<String>,
    /// Those of them that the API removed: where it lists one again, the cluster came back from a backup.
    removed: HashSet<String>,
    /// Those that are back while their worker still ends what ran: they get another one after it.
    returned: HashMap<String, Arc<Pod>>,
    ended_order: VecDeque<String>,
    /// Sources that have not told all their pods yet: until then, a container without a pod is no orphan.
    awaited: HashSet<Source>,
    /// Whether the runtime was asked since then.
    looked: bool,
    statics: Statics,
    listed: HashMap<String, PodIds>,
    /// The runtime is being asked for everything, beside the rounds: it may be slow.
    asking: JoinSet<Answer>,
    /// Whether it is to be asked again after that.
    again: bool,
    /// Whether it was asked ever, with whatever success: pods that run already are taken without admission.
    asked: bool,
    /// Pods of which nothing is left since it is being asked.
    passed: HashSet<String>,
    claims: Arc<garbage::Claims>,
    /// What is gone is being taken away, beside the rounds.
    collecting: JoinSet<garbage::Stuck>,
    stuck: garbage::Stuck,
}

/// What the runtime holds, and since when it was asked.
type Answer = (Instant, skiff_cri::Result<HashMap<String, PodIds>>);

/// Runs all pods until shutdown. Workers end with the runtime: pods go on without their kubelet.
pub(crate) async fn run(agent: Arc<Agent>, directory: Directory, mut inputs: Inputs, shutdown: Shutdown) {
    let mut events = agent.runtime.events();
    let (done, mut finished) = mpsc::unbounded_channel();
    let mut dispatcher = Dispatcher {
        agent,
        directory,
        done,
        ended: HashSet::new(),
        removed: HashSet::new(),
        returned: HashMap::new(),
        ended_order: VecDeque::new(),
        awaited: inputs.sources,
        looked: false,
        statics: Statics::default(),
        listed: HashMap::new(),
        asking: JoinSet::new(),
        again: false,
        asked: false,
        passed: HashSet::new(),
        claims: Arc::default(),
        collecting: JoinSet::new(),
        stuck: garbage::Stuck::default(),
    };
    let mut relist = tokio::time::interval(RELIST);
    relist.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        *dispatcher.directory.beat.lock() = Some(Instant::now());
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            Some(uid) = finished.recv() => dispatcher.finished(uid),
            Some(answer) = dispatcher.asking.join_next() => dispatcher.answered(answer),
            Some(stuck) = dispatcher.collecting.join_next() => dispatcher.stuck = stuck.unwrap_or_default(),
            Some(update) = inputs.updates.recv(), if dispatcher.asked => {
                let waited = !dispatcher.awaited.is_empty();
                dispatcher.update(update);
                if waited && dispatcher.awaited.is_empty() {
                    dispatcher.directory.complete.store(true, Ordering::Release);
                    dispatcher.relist();
                }
            }
            Some(uid) = inputs.objects.recv() => dispatcher.with(&uid, Handle::objects_changed),
            Some(notice) = events.next() => dispatcher.notice(notice),
            _ = relist.tick() => dispatcher.relist(),
        }
    }
}

impl Dispatcher {
    fn with(&self, uid: &str, act: impl FnOnce(&Handle)) {
        if let Some(handle) = self.directory.handles.read().get(uid) {
            act(handle);
        }
    }

    fn update(&mut self, update: Update) {
        match update {
            Update::Apply(pod) if self.is_mirror(&pod) => self.mirror(pod::key(&pod), Some(pod)),
            Update::Apply(pod) => self.wish(pod),
            Update::Remove(pod) if self.is_mirror(&pod) => self.mirror(pod::key(&pod), None),
            Update::Remove(pod) => self.remove(pod),
            Update::All(Source::Api, pods) => {
                self.awaited.remove(&Source::Api);
                let (mirrors, mut pods): (Vec<_>, Vec<_>) = pods.into_iter().partition(|pod| self.is_mirror(pod));
                self.all_mirrors(mirrors);
                let present: HashSet<String> = pods.iter().map(|pod| pod::uid(pod).to_owned()).collect();
                for handle in self.directory.handles.read().values() {
                    if !handle.is_static() && !present.contains(pod::uid(&handle.wish.borrow().pod)) {
                        handle.wish.send_modify(|wish| wish.gone = true);
                    }
                }
                // A list is no late word: what it holds after a removal is there again.
                let ended = &mut self.ended;
                self.removed.retain(|uid| !(present.contains(uid) && ended.remove(uid)));
                // Those that were here first are admitted first.
                pods.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
                self.returned = self.still_ending(&pods);
                let (known, new): (Vec<_>, Vec<_>) = pods.into_iter().partition(|pod| admission::is_known(pod));
                known.into_iter().chain(new).for_each(|pod| self.wish(pod));
            }
            Update::All(Source::Manifests, pods) => {
                self.awaited.remove(&Source::Manifests);
                self.all_statics(pods);
            }
        }
    }

    /// Whether a pod of the API is a mirror. One that runs here is none, whatever somebody writes on it later.
    fn is_mirror(&self, pod: &Pod) -> bool {
        pod::is_mirror(pod) && !self.directory.handles.read().contains_key(pod::uid(pod))
    }

    /// Those whose worker was told that they are gone.
    fn still_ending(&self, pods: &[Arc<Pod>]) -> HashMap<String, Arc<Pod>> {
        let handles = self.directory.handles.read();
        let gone = |pod: &&Arc<Pod>| {
            handles
                .get(pod::uid(pod))
                .is_some_and(|handle| handle.wish.borrow().gone)
        };
        let entry = |pod: &Arc<Pod>| (pod::uid(pod).to_owned(), pod.clone());
        pods.iter().filter(gone).map(entry).collect()
    }

    fn remove(&mut self, pod: Arc<Pod>) {
        self.returned.remove(pod::uid(&pod));
        self.with(pod::uid(&pod), |handle| {
            handle.wish.send_modify(|wish| {
                wish.pod = pod.clone();
                wish.gone = true;
            });
        });
        self.remember(pod::uid(&pod).to_owned());
        self.removed.insert(pod::uid(&pod).to_owned());
    }

    /// A pod of the API is new or has changed.
    fn wish(&mut self, pod: Arc<Pod>) {
        let uid = pod::uid(&pod);
        if let Some(returned) = self.returned.get_mut(uid) {
            *returned = pod;
            return;
        }
        if let Some(handle) = self.directory.handles.read().get(uid) {
            handle.wish.send_if_modified(|known| {
                // Only a list brings back a pod that was gone.
                let news = !known.gone && known.pod.metadata.resource_version != pod.metadata.resource_version;
                if news {
                    known.pod = pod.clone();
                }
                news
            });
            return;
        }
        if !self.ended.contains(uid) {
            self.spawn(Wish::of(pod));
        }
    }

    /// Gives a pod its worker; one that this node cannot take gets one too, that says so.
    fn spawn(&mut self, wish: Wish) {
        let uid = pod::uid(&wish.pod).to_owned();
        let taken = admission::is_known(&wish.pod) || self.listed.contains_key(&uid) || wish.gone;
        let mut admission = if taken {
            Admission::default()
        } else {
            self.admit(&wish.pod)
        };
        admission.remains = self.claims.claim(&uid);
        let handle = pod_worker::spawn(self.agent.clone(), wish, admission, self.done.clone());
        self.directory.handles.write().insert(uid, handle);
        self.weigh();
    }

    /// The cgroup of burstable pods gets the weight that they ask for together.
    fn weigh(&self) {
        let handles = self.directory.handles.read();
        let pods: Vec<_> = handles
            .values()
            .map(|handle| handle.wish.borrow().pod.clone())
            .collect();
        let living = pods.iter().map(Arc::as_ref).filter(|pod| !pod::is_terminal(pod));
        if let Err(error) = self.agent.cgroups.weigh_burstable(living) {
            tracing::warn!(
                error = skiff_daemon::error_chain(&error),
                "cannot weigh the burstable pods"
            );
        }
    }

    /// Whether this node takes a new pod; a critical one may make others end, and begins when they have.
    fn admit(&self, pod: &Pod) -> Admission {
        let refused = |refusal| Admission {
            refusal: Some(refusal),
            ..Admission::default()
        };
        if let Some(message) = self.agent.pressure.borrow().refuses(pod) {
            let reason = "Evicted".into();
            return refused(admission::Refusal { reason, message });
        }
        let handles = self.directory.handles.read();
        let others: Vec<_> = handles
            .values()
            .filter(|handle| !handle.refused)
            .map(|handle| handle.wish.borrow().pod.clone())
            .collect();
        let others = others.iter().map(Arc::as_ref).filter(|pod| !pod::is_terminal(pod));
        let allocatable = &self.agent.allocatable;
        let taken = Admission {
            asks_node: admission::needs_node(pod),
            ..Admission::default()
        };
        let Err(refusal) = admission::check(pod, others.clone(), allocatable, &self.agent.host) else {
            return taken;
        };
        let shortages = admission::shortages(pod, others.clone(), allocatable);
        let Some(victims) = admission::preemption::victims(pod, &shortages, others.clone()) else {
            return refused(refusal);
        };
        let left = others.filter(|other| !victims.iter().any(|victim| std::ptr::eq(*victim, *other)));
        if let Err(refusal) = admission::check(pod, left, allocatable, &self.agent.host) {
            return refused(refusal);
        }
        let mut room = Vec::new();
        for victim in victims {
            if let Some(handle) = handles.get(pod::uid(victim)) {
                room.push(handle.yielding(admission::preemption::finish(victim)));
            }
        }
        let short = shortages.into_iter().map(|short| short.resource).collect();
        Admission { room, short, ..taken }
    }

    fn finished(&mut self, uid: String) {
        let handle = self.directory.handles.write().remove(&uid);
        self.agent.ids.forget(&uid);
        self.agent.objects.release(&uid);
        self.agent.images.forget(&uid);
        self.agent.measures.forget(&uid);
        self.weigh();
        self.listed.remove(&uid);
        self.claims.release(&uid);
        if !self.asking.is_empty() {
            self.passed.insert(uid.clone());
        }
        match handle.filter(Handle::is_static) {
            Some(handle) => self.static_ended(&handle),
            None => {
                match self.returned.remove(&uid) {
                    Some(pod) => self.come_back(pod),
                    None => self.remember(uid),
                }
                self.sweep_mirrors();
            }
        }
    }

    fn come_back(&mut self, pod: Arc<Pod>) {
        self.ended.remove(pod::uid(&pod));
        self.removed.remove(pod::uid(&pod));
        self.wish(pod);
    }

    fn remember(&mut self, uid: String) {
        if !self.ended.insert(uid.clone()) {
            return;
        }
        self.ended_order.push_back(uid);
        if self.ended_order.len() > ENDED
            && let Some(oldest) = self.ended_order.pop_front()
        {
            self.ended.remove(&oldest);
            self.removed.remove(&oldest);
        }
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Connected => self.relist(),
            Notice::Lost { reason } => {
                tracing::warn!(reason, "the runtime's events are lost; they are asked for again")
            }
            Notice::Event(event) => {
                tracing::debug!(id = event.id, kind = ?event.kind, "the runtime tells");
                let Some(uid) = self.agent.ids.pod(&event.id) else {
                    return;
                };
                match event.kind {
                    EventKind::Exited { exit_code, at } => {
                        self.with(&uid, |handle| handle.ended(&event.id, exit_code, at));
                    }
                    EventKind::Deleted => self.with(&uid, Handle::look),
                    EventKind::OutOfMemory => self.with(&uid, |handle| handle.out_of_memory(&event.id)),
                    // Starts are the workers' own doing.
                    EventKind::Started { .. } => {}
                }
            }
        }
    }

    /// Asks the runtime for everything; while it is being asked, it is asked once more after that.
    fn relist(&mut self) {
        if !self.asking.is_empty() {
            self.again = true;
            return;
        }
        self.passed.clear();
        let runtime = self.agent.runtime.clone();
        self.asking.spawn(async move {
            let begun = Instant::now();
            (begun, observed::pods(&runtime).await)
        });
    }

    fn answered(&mut self, answer: Result<Answer, JoinError>) {
        self.asked = true;
        match answer {
            Ok((begun, Ok(mut pods))) => {
                pods.retain(|uid, _| !self.passed.contains(uid));
                self.compare(pods);
                self.agent.measures.relisted(begun);
            }
            Ok((_, Err(error))) => tracing::warn!(
                error = skiff_daemon::error_chain(&error),
                "cannot list the runtime's containers"
            ),
            Err(error) => tracing::error!(%error, "listing the runtime's containers panicked"),
        }
        if std::mem::take(&mut self.again) {
            self.relist();
        }
    }

    /// Pods that changed unseen are looked at, pods that nobody wants are ended.
    fn compare(&mut self, pods: HashMap<String, PodIds>) {
        for (uid, ids) in &pods {
            if self.listed.get(uid) != Some(ids) {
                self.with(uid, Handle::look);
            }
        }
        for uid in self.listed.keys().filter(|uid| !pods.contains_key(*uid)) {
            self.with(uid, Handle::look);
        }
        if self.awaited.is_empty() {
            for (uid, ids) in &pods {
                if !self.directory.handles.read().contains_key(uid) {
                    self.end_orphan(uid, ids);
                }
            }
            self.collect();
        }
        self.listed = pods;
        self.looked |= self.awaited.is_empty();
        self.sweep_mirrors();
    }

    /// Takes away what pods that are gone have left.
    fn collect(&mut self) {
        if self.collecting.is_empty() {
            let told = std::mem::take(&mut self.stuck);
            let round = garbage::orphans(self.agent.clone(), self.claims.clone(), told);
            self.collecting.spawn(round);
        }
    }

    /// A pod that only the runtime knows gets a worker whose one aim is its end.
    fn end_orphan(&self, uid: &str, ids: &PodIds) {
        tracing::info!(
            uid,
            name = ids.name,
            namespace = ids.namespace,
            "ending a pod that no source has"
        );
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.to_owned());
        pod.metadata.name = Some(ids.name.clone());
        pod.metadata.namespace = Some(ids.namespace.clone());
        // Nobody can say how long it may take: upstream gives a second.
        pod.metadata.deletion_grace_period_seconds = Some(1);
        let wish = Wish {
            gone: true,
            ..Wish::of(Arc::new(pod))
        };
        let admission = Admission {
            remains: self.claims.claim(uid),
            ..Admission::default()
        };
        let handle = pod_worker::spawn(self.agent.clone(), wish, admission, self.done.clone());
        self.directory.handles.write().insert(uid.to_owned(), handle);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_means_the_pod_that_lives() {
        let wish = |gone: bool, deleted: bool, minute: u8| {
            let mut pod = pod::tests::pod(&json!({}));
            let time = |minute| serde_json::from_value(json!(format!("2026-01-01T00:{minute:02}:00Z"))).unwrap();
            pod.metadata.creation_timestamp = Some(time(minute));
            pod.metadata.deletion_timestamp = deleted.then(|| time(59));
            Wish {
                gone,
                ..Wish::of(Arc::new(pod))
            }
        };
        let rising = [
            wish(true, true, 9),
            wish(true, false, 8),
            wish(false, true, 7),
            wish(false, false, 5),
            wish(false, false, 6),
        ];
        assert!(rising.is_sorted_by_key(standing));
        let mut orphan = wish(true, false, 0);
        Arc::make_mut(&mut orphan.pod).metadata.creation_timestamp = None;
        assert!(standing(&orphan) < standing(&rising[1]));
    }
}
