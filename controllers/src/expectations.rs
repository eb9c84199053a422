//! What a controller has asked for and not yet seen: until it has, its view of the children is known to be stale.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::view::Key;

/// After this long an expectation is given up: an event was lost (a pod came and went while the watch was away).
const TIMEOUT: Duration = Duration::from_secs(5 * 60);

#[derive(Default)]
pub(crate) struct Expectations {
    pending: Mutex<HashMap<Key, Pending>>,
}

struct Pending {
    creations: usize,
    deletions: HashSet<String>,
    since: Instant,
}

impl Expectations {
    /// How long to wait at most for what was asked for and not yet seen; `None` when the children in the store can be
    /// counted.
    pub(crate) fn time_left(&self, owner: &Key) -> Option<Duration> {
        let all = self.pending.lock();
        let pending = all.get(owner)?;
        if pending.creations == 0 && pending.deletions.is_empty() {
            return None;
        }
        let left = TIMEOUT.saturating_sub(pending.since.elapsed());
        (!left.is_zero()).then_some(left)
    }

    pub(crate) fn expect_creations(&self, owner: &Key, count: usize) {
        self.set(
            owner,
            Pending {
                creations: count,
                deletions: HashSet::new(),
                since: Instant::now(),
            },
        );
    }

    pub(crate) fn expect_deletions(&self, owner: &Key, uids: impl IntoIterator<Item = String>) {
        self.set(
            owner,
            Pending {
                creations: 0,
                deletions: uids.into_iter().collect(),
                since: Instant::now(),
            },
        );
    }

    /// A child appeared, or will not appear because its creation failed.
    pub(crate) fn creation_observed(&self, owner: &Key) {
        self.creations_observed(owner, 1);
    }

    pub(crate) fn creations_observed(&self, owner: &Key, count: usize) {
        if let Some(pending) = self.pending.lock().get_mut(owner) {
            pending.creations = pending.creations.saturating_sub(count);
        }
    }

    /// A child is going, or will not go because its deletion failed.
    pub(crate) fn deletion_observed(&self, owner: &Key, uid: &str) {
        if let Some(pending) = self.pending.lock().get_mut(owner) {
            pending.deletions.remove(uid);
        }
    }

    pub(crate) fn forget(&self, owner: &Key) {
        self.pending.lock().remove(owner);
    }

    fn set(&self, owner: &Key, pending: Pending) {
        self.pending.lock().insert(owner.clone(), pending);
    }
}

#[cfg(test)]
mod tests {
    use super::{Expectations, TIMEOUT};
    use crate::view::Key;

    #[tokio::test(start_paused = true)]
    async fn they_are_satisfied_when_seen_or_given_up() {
        let expectations = Expectations::default();
        let satisfied = |owner| expectations.time_left(owner).is_none();
        let owner = Key::new("ns", "web");
        assert!(satisfied(&owner));
        expectations.expect_creations(&owner, 2);
        expectations.creation_observed(&owner);
        assert!(!satisfied(&owner));
        expectations.creation_observed(&owner);
        assert!(satisfied(&owner));
        expectations.expect_deletions(&owner, ["a".to_owned(), "b".to_owned()]);
        expectations.deletion_observed(&owner, "a");
        expectations.deletion_observed(&owner, "a");
        assert!(!satisfied(&owner), "the same deletion seen twice counts once");
        tokio::time::advance(TIMEOUT / 4).await;
        assert_eq!(expectations.time_left(&owner), Some(TIMEOUT / 4 * 3));
        tokio::time::advance(TIMEOUT / 4 * 3).await;
        assert!(satisfied(&owner));
    }
}
