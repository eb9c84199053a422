//! Pods that wait for a node.
//!
//! A pod is in one of four places: **active** (to be tried, the most important first), **backoff** (to be tried again
//! when its delay has passed, or as soon as nothing else is to be done), **unschedulable** (until something happens that
//! a plugin which kept it out takes for a reason to try again, or five minutes passed), **gated** (until its gates are
//! removed). While it is being tried or bound it is **in flight**.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::framework::{ClusterEvent, Framework};
use crate::model::Pod;

/// A pod is tried again after this time, whatever happened: a hint may have missed something.
const MAX_UNSCHEDULABLE: Duration = Duration::from_secs(5 * 60);

type Plugins = BTreeSet<&'static str>;

/// How long a pod waits after a failure: doubled from the first to the second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) initial: Duration,
    pub(crate) max: Duration,
}

/// All waiting pods of one scheduler.
#[derive(Debug)]
pub(crate) struct Queue {
    entries: HashMap<Arc<str>, Entry>,
    /// By rank, then by when they came.
    active: BTreeSet<(i64, u64, Arc<str>)>,
    backoff: BTreeSet<(Instant, Arc<str>)>,
    /// Also in backoff, after an error that is not the pod's: these are not tried early.
    errors: BTreeSet<(Instant, Arc<str>)>,
    unschedulable: BTreeSet<(Instant, Arc<str>)>,
    gated: usize,
    delays: Backoff,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<Pod>,
    place: Place,
    rank: i64,
    attempts: u32,
    came: Instant,
    failed: Option<Instant>,
    /// Who kept it out the last time.
    rejected_by: Plugins,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    Active { rank: i64, number: u64 },
    Backoff(Instant),
    Error(Instant),
    Unschedulable(Instant),
    Gated,
    InFlight,
}

/// A pod to be tried.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) pod: Arc<Pod>,
    /// This one included.
    pub(crate) number: u32,
    pub(crate) came: Instant,
}

/// How many pods are where.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Counts {
    pub(crate) active: usize,
    pub(crate) backoff: usize,
    pub(crate) unschedulable: usize,
    pub(crate) gated: usize,
}

/// A pod that moved, for metrics: where to.
pub(crate) type Moved = &'static str;

// === impl Queue ===

impl Queue {
    pub(crate) fn new(delays: Backoff) -> Self {
        Self {
            entries: HashMap::new(),
            active: BTreeSet::new(),
            backoff: BTreeSet::new(),
            errors: BTreeSet::new(),
            unschedulable: BTreeSet::new(),
            gated: 0,
            delays,
            next: 0,
        }
    }

    /// Takes in a pod, or its new state; where it went, if it moved.
    pub(crate) fn set(&mut self, pod: Arc<Pod>, framework: &Framework, now: Instant) -> Option<Moved> {
        let gated = framework.may_enqueue(&pod).is_err();
        let rank = framework.queue_sort.rank(&pod);
        let uid = Arc::clone(&pod.uid);
        let Some(entry) = self.entries.get_mut(&uid) else {
            let entry = Entry {
                pod,
                place: Place::Gated,
                rank,
                attempts: 0,
                came: now,
                failed: None,
                rejected_by: Plugins::new(),
            };
            self.entries.insert(Arc::clone(&uid), entry);
            self.gated += 1;
            return if gated {
                Some("gated")
            } else {
                Some(self.activate(&uid))
            };
        };
        let changed = wants_differ(&entry.pod, &pod);
        let reordered = entry.rank != rank;
        entry.pod = pod;
        entry.rank = rank;
        match entry.place {
            Place::Gated if !gated => Some(self.activate(&uid)),
            // Its own change may be what it waited for.
            Place::Unschedulable(_) if changed && !gated => Some(self.retry(&uid, now)),
            Place::Active { .. } if reordered => Some(self.activate(&uid)),
            _ => None,
        }
    }

    /// Forgets a pod.
    pub(crate) fn remove(&mut self, uid: &str) -> Option<Arc<Pod>> {
        let (uid, entry) = self.entries.remove_entry(uid)?;
        self.leave(&uid, entry.place);
        Some(entry.pod)
    }

    /// The next pod to try. When none is active, one whose delay has not passed is better than doing nothing.
    pub(crate) fn pop(&mut self) -> Option<Attempt> {
        let active = self.active.first().map(|(_, _, uid)| uid);
        let uid = active.or_else(|| self.backoff.first().map(|(_, uid)| uid)).cloned()?;
        self.put(&uid, Place::InFlight);
        let entry = self.entries.get_mut(&uid)?;
        entry.attempts += 1;
        Some(Attempt {
            pod: Arc::clone(&entry.pod),
            number: entry.attempts,
            came: entry.came,
        })
    }

    /// No node could take a pod in flight; `by` kept it out.
    pub(crate) fn unschedulable(&mut self, uid: &str, by: Plugins, now: Instant) {
        let Some(entry) = self.in_flight(uid) else { return };
        entry.failed = Some(now);
        entry.rejected_by = by;
        let uid = Arc::clone(&entry.pod.uid);
        self.put(&uid, Place::Unschedulable(now));
    }

    /// Something else went wrong with a pod in flight: it is tried again after its delay.
    pub(crate) fn error(&mut self, uid: &str, now: Instant) {
        self.delay(uid, now, |place| place == Place::InFlight);
    }

    /// What an unschedulable pod waits for will not happen: it is tried again after its delay.
    pub(crate) fn retry_later(&mut self, uid: &str, now: Instant) {
        self.delay(uid, now, |place| matches!(place, Place::Unschedulable(_)));
    }

    /// Room is being made for a pod at a node (or not any more).
    pub(crate) fn nominate(&mut self, uid: &str, node: Option<Arc<str>>) -> Option<Arc<Pod>> {
        let entry = self.entries.get_mut(uid)?;
        if entry.pod.nominated_node != node {
            Arc::make_mut(&mut entry.pod).nominated_node = node;
        }
        Some(Arc::clone(&entry.pod))
    }

    /// Something happened: wakes the pods that it may let in. Where each went.
    pub(crate) fn wake(&mut self, event: &ClusterEvent<'_>, framework: &Framework, now: Instant) -> Vec<Moved> {
        let concerned = |uid: &&Arc<str>| {
            let entry = self.entries.get(&***uid);
            entry.is_some_and(|entry| {
                let mut plugins = entry.rejected_by.iter();
                plugins.any(|plugin| framework.hint(plugin, &entry.pod, event))
            })
        };
        let waiting = self.unschedulable.iter().map(|(_, uid)| uid);
        let uids: Vec<Arc<str>> = waiting.filter(concerned).cloned().collect();
        uids.iter().map(|uid| self.retry(uid, now)).collect()
    }

    /// Moves what has waited long enough.
    pub(crate) fn tick(&mut self, now: Instant) {
        for uid in [due(&self.backoff, now), due(&self.errors, now)].concat() {
            self.activate(&uid);
        }
        let forgotten = now
            .checked_sub(MAX_UNSCHEDULABLE)
            .map(|then| due(&self.unschedulable, then));
        for uid in forgotten.into_iter().flatten() {
            self.retry(&uid, now);
        }
    }

    /// When [`Queue::tick`] has something to do next.
    pub(crate) fn next_tick(&self, now: Instant) -> Instant {
        // Pods that nothing wakes are looked at twice a minute, which is often enough for five minutes.
        let leftover = now + MAX_UNSCHEDULABLE / 10;
        let first = |set: &BTreeSet<(Instant, Arc<str>)>| set.first().map_or(leftover, |(until, _)| *until);
        leftover.min(first(&self.backoff)).min(first(&self.errors))
    }

    /// Whether [`Queue::pop`] has something to give.
    pub(crate) fn has_work(&self) -> bool {
        !self.active.is_empty() || !self.backoff.is_empty()
    }

    /// How many pods wait where.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            active: self.active.len(),
            backoff: self.backoff.len() + self.errors.len(),
            unschedulable: self.unschedulable.len(),
            gated: self.gated,
        }
    }

    /// UIDs of all pods in it.
    pub(crate) fn uids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.entries.keys()
    }

    fn in_flight(&mut self, uid: &str) -> Option<&mut Entry> {
        self.entries.get_mut(uid).filter(|entry| entry.place == Place::InFlight)
    }

    fn delay(&mut self, uid: &str, now: Instant, concerns: fn(Place) -> bool) {
        let delays = self.delays;
        let Some(entry) = self.entries.get_mut(uid).filter(|entry| concerns(entry.place)) else {
            return;
        };
        entry.failed = Some(now);
        let until = now + delays.after(entry.attempts);
        let uid = Arc::clone(&entry.pod.uid);
        self.put(&uid, Place::Error(until));
    }

    /// Makes a pod active, or lets it wait for the rest of its delay.
    fn retry(&mut self, uid: &Arc<str>, now: Instant) -> Moved {
        let delays = self.delays;
        let Some(entry) = self.entries.get(uid) else {
            return "";
        };
        let until = entry
            .failed
            .map(|failed| failed + delays.after(entry.attempts))
            .filter(|until| *until > now);
        let Some(until) = until else {
            return self.activate(uid);
        };
        self.put(uid, Place::Backoff(until));
        "backoff"
    }

    fn activate(&mut self, uid: &Arc<str>) -> Moved {
        let Some(entry) = self.entries.get(uid) else {
            return "";
        };
        self.next += 1;
        let (rank, number) = (entry.rank, self.next);
        self.put(uid, Place::Active { rank, number });
        "active"
    }

    /// The one way from place to place.
    fn put(&mut self, uid: &Arc<str>, place: Place) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let before = std::mem::replace(&mut entry.place, place);
        self.leave(uid, before);
        let uid = Arc::clone(uid);
        let is_new = match place {
            Place::Active { rank, number } => self.active.insert((rank, number, uid)),
            Place::Backoff(until) => self.backoff.insert((until, uid)),
            Place::Error(until) => self.errors.insert((until, uid)),
            Place::Unschedulable(since) => self.unschedulable.insert((since, uid)),
            Place::InFlight => true,
            Place::Gated => {
                self.gated += 1;
                true
            }
        };
        debug_assert!(is_new, "a pod is in one place only");
    }

    fn leave(&mut self, uid: &Arc<str>, place: Place) {
        let uid = Arc::clone(uid);
        let was_there = match place {
            Place::Active { rank, number } => self.active.remove(&(rank, number, uid)),
            Place::Backoff(until) => self.backoff.remove(&(until, uid)),
            Place::Error(until) => self.errors.remove(&(until, uid)),
            Place::Unschedulable(since) => self.unschedulable.remove(&(since, uid)),
            Place::InFlight => true,
            Place::Gated => {
                self.gated -= 1;
                true
            }
        };
        debug_assert!(was_there, "a pod is where its entry says");
    }
}

/// Those whose time has come.
fn due(waiting: &BTreeSet<(Instant, Arc<str>)>, now: Instant) -> Vec<Arc<str>> {
    let due = waiting.iter().take_while(|(at, _)| *at <= now);
    due.map(|(_, uid)| Arc::clone(uid)).collect()
}

impl Backoff {
    fn after(self, attempts: u32) -> Duration {
        let doubled = self
            .initial
            .saturating_mul(2_u32.saturating_pow(attempts.saturating_sub(1)));
        doubled.min(self.max)
    }
}

/// Whether two states of a waiting pod differ in something that decides about nodes.
fn wants_differ(old: &Pod, new: &Pod) -> bool {
    let mut wants = new.wants.clone();
    wants.condition.clone_from(&old.wants.condition);
    old.wants != wants || old.labels != new.labels || old.requests != new.requests || old.priority != new.priority
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::testing::{asking, node, pod, running};
    use crate::testing::no_client;

    struct Fixture {
        queue: Queue,
        framework: Framework,
        now: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            let delays = Backoff {
                initial: Duration::from_secs(1),
                max: Duration::from_secs(10),
            };
            Self {
                queue: Queue::new(delays),
                framework: Framework::new(no_client()),
                now: Instant::now(),
            }
        }

        fn set(&mut self, pod: Pod) {
            self.queue.set(Arc::new(pod), &self.framework, self.now);
        }

        fn pop(&mut self) -> Option<String> {
            self.queue.pop().map(|attempt| attempt.pod.name.to_string())
        }

        fn fail(&mut self, name: &str) {
            self.queue
                .unschedulable(name, Plugins::from(["NodeResourcesFit"]), self.now);
        }
    }

    fn with_priority(name: &str, priority: i32) -> Pod {
        pod(name, json!({"priority": priority}))
    }

    #[tokio::test]
    async fn the_most_important_goes_first_then_the_first() {
        let mut fixture = Fixture::new();
        for (name, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
            fixture.set(with_priority(name, priority));
        }
        fixture.set(with_priority("c", 20));
        let order: Vec<String> = std::iter::from_fn(|| fixture.pop()).collect();
        assert_eq!(order, ["c", "b", "d", "a"]);
        assert_eq!(fixture.queue.counts(), Counts::default());
    }

    #[tokio::test]
    async fn an_unschedulable_pod_waits_for_a_reason() {
        let mut fixture = Fixture::new();
        fixture.set(pod("a", asking("1", "1Gi")));
        fixture.pop();
        fixture.fail("a");
        let cordoned = node("n", json!({}));
        let small = {
            let mut node = cordoned.clone();
            node.allocatable.milli_cpu = 10;
            node
        };
        fixture
            .queue
            .wake(&ClusterEvent::NodeAdded(&small), &fixture.framework, fixture.now);
        assert_eq!(fixture.pop(), None, "a node without room is no reason");
        let moved = fixture
            .queue
            .wake(&ClusterEvent::NodeAdded(&cordoned), &fixture.framework, fixture.now);
        assert_eq!(moved, ["backoff"], "its delay has not passed");
        assert_eq!(fixture.pop().as_deref(), Some("a"), "but nothing else is to be done");
        fixture.fail("a");
        fixture.now += Duration::from_secs(3);
        let gone = running("x", "n", json!({}), json!({}));
        let moved = fixture
            .queue
            .wake(&ClusterEvent::PodGone(&gone), &fixture.framework, fixture.now);
        assert_eq!(moved, ["active"]);
    }

    #[tokio::test]
    async fn its_own_change_is_a_reason_but_its_status_is_not() {
        let mut fixture = Fixture::new();
        fixture.set(pod("a", json!({"nodeSelector": {"x": "y"}})));
        fixture.pop();
        fixture.fail("a");
        let mut told = pod("a", json!({"nodeSelector": {"x": "y"}}));
        told.wants.condition = Some(crate::model::Condition::default());
        fixture.set(told);
        assert_eq!(fixture.pop(), None);
        fixture.set(pod("a", json!({})));
        assert_eq!(fixture.pop().as_deref(), Some("a"));
    }

    #[tokio::test]
    async fn errors_wait_longer_each_time() {
        let mut fixture = Fixture::new();
        fixture.set(pod("a", json!({})));
        for seconds in [1, 2, 4, 8, 10, 10] {
            assert_eq!(fixture.pop().as_deref(), Some("a"));
            fixture.queue.error("a", fixture.now);
            assert!(!fixture.queue.has_work());
            let due = fixture.now + Duration::from_secs(seconds);
            assert_eq!(fixture.queue.next_tick(fixture.now), due);
            fixture.queue.tick(due - Duration::from_millis(1));
            assert!(!fixture.queue.has_work());
            fixture.queue.tick(due);
            fixture.now = due;
        }
    }

    #[tokio::test]
    async fn only_an_unschedulable_pod_can_have_waited_in_vain() {
        let mut fixture = Fixture::new();
        fixture.set(pod("a", json!({})));
        fixture.queue.retry_later("a", fixture.now);
        assert_eq!(fixture.queue.counts().active, 1);
        fixture.pop();
        fixture.fail("a");
        fixture.queue.retry_later("a", fixture.now);
        assert!(!fixture.queue.has_work(), "it is not tried before its delay has passed");
        fixture.queue.tick(fixture.now + Duration::from_secs(1));
        assert_eq!(fixture.pop().as_deref(), Some("a"));
    }

    #[tokio::test]
    async fn gates_and_forgotten_pods() {
        let mut fixture = Fixture::new();
        fixture.set(pod("g", json!({"schedulingGates": [{"name": "x/y"}]})));
        assert_eq!((fixture.pop(), fixture.queue.counts().gated), (None, 1));
        fixture.set(pod("g", json!({})));
        assert_eq!(fixture.pop().as_deref(), Some("g"));
        fixture.fail("g");
        fixture.queue.tick(fixture.now + Duration::from_secs(299));
        assert_eq!(fixture.queue.counts().unschedulable, 1);
        fixture.queue.tick(fixture.now + Duration::from_secs(300));
        assert_eq!(fixture.pop().as_deref(), Some("g"));
        assert!(fixture.queue.remove("g").is_some());
        fixture.fail("g");
        assert_eq!(fixture.queue.counts(), Counts::default(), "what was removed stays so");
    }
}
