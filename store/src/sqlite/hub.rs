//! Committed changes to live watchers, in order, never waiting for any of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::{Event, Prefix, Revision};

/// Where the store stands, and who is told when it moves.
#[derive(Debug)]
pub(super) struct Hub {
    published: AtomicU64,
    compacted: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    watchers: Vec<Watcher>,
}

#[derive(Debug)]
struct Watcher {
    prefix: Prefix,
    sender: UnboundedSender<Vec<Event>>,
    /// Changes sent and not yet taken.
    pending: Arc<AtomicUsize>,
    limit: usize,
}

/// A watcher's end. It ends without an error when the watcher was too slow, or the store closed.
#[derive(Debug)]
pub(super) struct Subscription {
    /// Everything after this revision comes by here.
    pub(super) from: Revision,
    receiver: UnboundedReceiver<Vec<Event>>,
    pending: Arc<AtomicUsize>,
}

// === impl Hub ===

impl Hub {
    pub(super) fn new(published: Revision, compacted: Revision) -> Self {
        Self {
            published: AtomicU64::new(published.0),
            compacted: AtomicU64::new(compacted.0),
            state: Mutex::default(),
        }
    }

    pub(super) fn published(&self) -> Revision {
        Revision(self.published.load(Ordering::Acquire))
    }

    pub(super) fn compacted(&self) -> Revision {
        Revision(self.compacted.load(Ordering::Acquire))
    }

    pub(super) fn set_compacted(&self, revision: Revision) {
        self.compacted.store(revision.0, Ordering::Release);
    }

    pub(super) fn watchers(&self) -> usize {
        self.state.lock().watchers.len()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Hands out committed changes, which follow those of the call before.
    pub(super) fn publish(&self, events: Vec<Event>) {
        let Some(last) = events.last().map(Event::revision) else {
            return;
        };
        let mut state = self.state.lock();
        state.watchers.retain(|watcher| watcher.offer(&events));
        // Under the lock, so that a subscription knows exactly where it begins.
        self.published.store(last.0, Ordering::Release);
    }

    /// Joins; `None` once the store is closed.
    pub(super) fn subscribe(&self, prefix: Prefix, limit: usize) -> Option<Subscription> {
        let mut state = self.state.lock();
        if state.closed {
            return None;
        }
        let (sender, receiver) = unbounded_channel();
        let pending = Arc::new(AtomicUsize::new(0));
        state.watchers.push(Watcher {
            prefix,
            sender,
            pending: Arc::clone(&pending),
            limit,
        });
        Some(Subscription {
            from: self.published(),
            receiver,
            pending,
        })
    }

    /// Ends every subscription.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.watchers.clear();
    }
}

// === impl Watcher ===

impl Watcher {
    /// Sends what concerns it; `false` when it is gone or too far behind, and has to go.
    fn offer(&self, events: &[Event]) -> bool {
        let wanted: Vec<Event> = events
            .iter()
            .filter(|event| self.prefix.contains(event.key()))
            .cloned()
            .collect();
        if wanted.is_empty() {
            return !self.sender.is_closed();
        }
        let count = wanted.len();
        if self.pending.load(Ordering::Relaxed) + count > self.limit {
            return false;
        }
        self.pending.fetch_add(count, Ordering::Relaxed);
        self.sender.send(wanted).is_ok()
    }
}

// === impl Subscription ===

impl Subscription {
    /// The next changes; `None` when no more come by here.
    pub(super) async fn next(&mut self) -> Option<Vec<Event>> {
        let events = self.receiver.recv().await?;
        self.pending.fetch_sub(events.len(), Ordering::Relaxed);
        Some(events)
    }
}
