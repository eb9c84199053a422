//! What a controller has asked for and not yet seen: until it has, its view of the children is known to be stale.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::view::Key;

/// After this long an expectation is given up: an event was lost, and a resync is due anyway.
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
    /// Whether everything asked for has been seen, so that the children in the store can be counted.
    pub(crate) fn satisfied(&self, owner: &Key) -> bool {
        self.pending.lock().get(owner).is_none_or(|pending| {
            (pending.creations == 0 && pending.deletions.is_empty()) || pending.since.elapsed() > TIMEOUT
        })
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
        let owner = Key::new("ns", "web");
        assert!(expectations.satisfied(&owner));
        expectations.expect_creations(&owner, 2);
        expectations.creation_observed(&owner);
        assert!(!expectations.satisfied(&owner));
        expectations.creation_observed(&owner);
        assert!(expectations.satisfied(&owner));
        expectations.expect_deletions(&owner, ["a".to_owned(), "b".to_owned()]);
        expectations.deletion_observed(&owner, "a");
        expectations.deletion_observed(&owner, "a");
        assert!(
            !expectations.satisfied(&owner),
            "the same deletion seen twice counts once"
        );
        tokio::time::advance(TIMEOUT * 2).await;
        assert!(expectations.satisfied(&owner));
    }
}
