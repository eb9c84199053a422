//! A work queue of keys: each key waits at most once, is in the hands of at most one worker, and is retried with growing
//! delays. Workers get the key only and read the present state themselves.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::fmt::Display;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use skiff_daemon::{Shutdown, error_chain};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::metrics::QueueMetrics;

const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_secs(1000);

/// What keys must be able to do.
pub(crate) trait QueueKey: Clone + Eq + Ord + Hash + Display + Send + Sync + 'static {}
impl<T: Clone + Eq + Ord + Hash + Display + Send + Sync + 'static> QueueKey for T {}

/// An error that a worker may end with.
pub(crate) trait Retriable: std::error::Error + Send + 'static {
    /// Whether it is expected in normal running (somebody else was faster), so that nobody needs to hear of it.
    fn is_expected(&self) -> bool;
}

pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    wake: Notify,
    metrics: QueueMetrics,
}

struct State<T> {
    ready: VecDeque<T>,
    /// Waiting in `ready`, or to be put there when the worker that holds the key is done; with the time it was added.
    dirty: HashMap<T, Instant>,
    held: HashSet<T>,
    delayed: BinaryHeap<Reverse<(Instant, T)>>,
    /// The one entry of `delayed` that counts for a key; others are stale.
    due: HashMap<T, Instant>,
    failures: HashMap<T, u32>,
}

/// Spaces out writes of objects that grow: each write goes to every watcher, so a burst of changes should cost a few
/// writes and not one each. The first change is written at once.
pub(crate) struct Pace<T> {
    last: Mutex<HashMap<T, Instant>>,
}

impl<T> Default for Pace<T> {
    fn default() -> Self {
        Self {
            last: Mutex::new(HashMap::new()),
        }
    }
}

impl<T: QueueKey> Pace<T> {
    /// How long to wait before the next write of `key`, if its last was less than `interval` ago.
    pub(crate) fn wait(&self, key: &T, interval: Duration) -> Option<Duration> {
        let mut last = self.last.lock();
        let since = last.get(key)?.elapsed();
        if since < interval {
            return Some(interval - since);
        }
        last.remove(key);
        None
    }

    pub(crate) fn wrote(&self, key: &T) {
        self.last.lock().insert(key.clone(), Instant::now());
    }

    pub(crate) fn forget(&self, key: &T) {
        self.last.lock().remove(key);
    }
}

// === impl Queue ===

impl<T: QueueKey> Queue<T> {
    pub(crate) fn new(metrics: QueueMetrics) -> Arc<Self> {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashMap::new(),
            held: HashSet::new(),
            delayed: BinaryHeap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
        };
        Arc::new(Self {
            state: Mutex::new(state),
            wake: Notify::new(),
            metrics,
        })
    }

    /// Asks for the key to be worked on as soon as possible.
    pub(crate) fn add(&self, key: T) {
        let mut state = self.state.lock();
        if self.enqueue(&mut state, key) {
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Asks for the key to be worked on after `delay`; an earlier time already asked for stays.
    pub(crate) fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + delay;
        let mut state = self.state.lock();
        if state.due.get(&key).is_some_and(|due| *due <= at) {
            return;
        }
        state.due.insert(key.clone(), at);
        state.delayed.push(Reverse((at, key)));
        drop(state);
        self.wake.notify_one();
    }

    /// The next key; the caller holds it until [`Queue::done`].
    pub(crate) async fn next(&self) -> T {
        loop {
            let deadline = {
                let mut state = self.state.lock();
                self.promote(&mut state);
                if let Some(key) = state.ready.pop_front() {
                    if let Some(added) = state.dirty.remove(&key) {
                        self.metrics.taken(added.elapsed(), state.ready.len());
                    }
                    state.held.insert(key.clone());
                    return key;
                }
                state.delayed.peek().map(|Reverse((at, _))| *at)
            };
            match deadline {
                Some(at) => {
                    // Either way the state is looked at again.
                    tokio::time::timeout_at(at, self.wake.notified()).await.ok();
                }
                None => self.wake.notified().await,
            }
        }
    }

    /// Gives the key back. `retry` brings it again after a delay that grows with each failure in a row.
    pub(crate) fn done(&self, key: T, retry: bool) {
        let delay = {
            let mut state = self.state.lock();
            state.held.remove(&key);
            if state.dirty.contains_key(&key) {
                state.ready.push_back(key.clone());
                self.metrics.depth(state.ready.len());
                self.wake.notify_one();
            }
            if !retry {
                state.failures.remove(&key);
                return;
            }
            let failures = state.failures.entry(key.clone()).or_default();
            let delay = retry_delay(*failures);
            *failures = failures.saturating_add(1);
            delay
        };
        self.metrics.retried();
        self.add_after(key, delay);
    }

    /// Works on the queue with `workers` tasks until shutdown.
    pub(crate) async fn work<F, R, E>(self: Arc<Self>, workers: usize, shutdown: Shutdown, reconcile: F)
    where
        F: Fn(T) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send,
        E: Retriable,
    {
        let mut tasks = JoinSet::new();
        for _ in 0..workers {
            let (queue, shutdown, reconcile) = (Arc::clone(&self), shutdown.clone(), reconcile.clone());
            tasks.spawn(async move {
                loop {
                    let key = tokio::select! {
                        biased;
                        () = shutdown.cancelled() => return,
                        key = queue.next() => key,
                    };
                    // What is cut off here is done by the next process, as after a crash.
                    tokio::select! {
                        biased;
                        () = shutdown.cancelled() => return,
                        () = queue.work_on(key, &reconcile) => {}
                    }
                }
            });
        }
        tasks.join_all().await;
    }

    async fn work_on<F, R, E>(&self, key: T, reconcile: &F)
    where
        F: Fn(T) -> R,
        R: Future<Output = Result<(), E>>,
        E: Retriable,
    {
        let work = self.metrics.work();
        let result = reconcile(key.clone()).await;
        drop(work);
        match &result {
            Ok(()) => {}
            Err(error) if error.is_expected() => {
                tracing::debug!(queue = self.metrics.name(), %key, error = %error_chain(error), "will retry");
            }
            Err(error) => {
                tracing::warn!(queue = self.metrics.name(), %key, error = %error_chain(error), "sync failed; will retry");
            }
        }
        self.done(key, result.is_err());
    }

    /// Whether the key went to `ready`.
    fn enqueue(&self, state: &mut State<T>, key: T) -> bool {
        if state.dirty.contains_key(&key) {
            return false;
        }
        self.metrics.added();
        state.dirty.insert(key.clone(), Instant::now());
        if state.held.contains(&key) {
            return false;
        }
        state.ready.push_back(key);
        self.metrics.depth(state.ready.len());
        true
    }

    /// Moves what is due to `ready`.
    fn promote(&self, state: &mut State<T>) {
        let now = Instant::now();
        while let Some(Reverse((at, _))) = state.delayed.peek() {
            if *at > now {
                return;
            }
            let Some(Reverse((at, key))) = state.delayed.pop() else {
                return;
            };
            if state.due.get(&key) == Some(&at) {
                state.due.remove(&key);
                if self.enqueue(state, key) && state.ready.len() > 1 {
                    self.wake.notify_one();
                }
            }
        }
    }
}

fn retry_delay(failures: u32) -> Duration {
    FIRST_RETRY
        .saturating_mul(1_u32.checked_shl(failures.min(31)).unwrap_or(u32::MAX))
        .min(LAST_RETRY)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use futures::FutureExt;
    use tokio::time::Instant;

    use super::{LAST_RETRY, Pace, Queue, retry_delay};
    use crate::metrics::WorkqueueMetrics;

    fn queue() -> Arc<Queue<String>> {
        Queue::new(WorkqueueMetrics::default().queue("test"))
    }

    fn take(queue: &Queue<String>) -> Option<String> {
        queue.next().now_or_never()
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_is_held_by_one() {
        let queue = queue();
        queue.add("a".into());
        queue.add("a".into());
        assert_eq!(take(&queue).as_deref(), Some("a"));
        queue.add("a".into());
        assert_eq!(take(&queue), None, "held: must wait for the worker");
        queue.done("a".into(), false);
        assert_eq!(take(&queue).as_deref(), Some("a"));
        queue.done("a".into(), false);
        assert_eq!(take(&queue), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_delay_counts() {
        let queue = queue();
        let start = Instant::now();
        queue.add_after("a".into(), Duration::from_secs(5));
        queue.add_after("a".into(), Duration::from_secs(2));
        queue.add_after("a".into(), Duration::from_secs(9));
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed().as_secs(), 2);
        queue.done("a".into(), false);
        let again = tokio::time::timeout(Duration::from_secs(60), queue.next()).await;
        assert!(again.is_err(), "the later times were superseded");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_delay_more_and_success_resets() {
        let queue = queue();
        for expected in [5, 10, 20] {
            queue.add("a".into());
            let key = queue.next().await;
            let start = Instant::now();
            queue.done(key, true);
            let key = queue.next().await;
            assert_eq!(start.elapsed().as_millis(), expected);
            queue.done(key, false);
            for _ in 0..expected.ilog2() - 1 {
                queue
                    .state
                    .lock()
                    .failures
                    .entry("a".into())
                    .and_modify(|n| *n += 1)
                    .or_insert(1);
            }
        }
        assert_eq!(retry_delay(60), LAST_RETRY);
    }
    #[tokio::test(start_paused = true)]
    async fn writes_keep_their_distance() {
        let pace = Pace::<String>::default();
        let (key, interval) = ("a".to_owned(), Duration::from_millis(50));
        assert_eq!(pace.wait(&key, interval), None, "the first goes at once");
        pace.wrote(&key);
        tokio::time::advance(Duration::from_millis(20)).await;
        assert_eq!(pace.wait(&key, interval), Some(Duration::from_millis(30)));
        assert_eq!(pace.wait(&key, Duration::ZERO), None);
        pace.wrote(&key);
        tokio::time::advance(interval).await;
        assert_eq!(pace.wait(&key, interval), None);
    }
}
