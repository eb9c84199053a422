//! The cache of one resource: its objects, and the window of its last changes.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use skiff_store::{Entry, Event};
use tokio::sync::watch;

use super::{Change, Error, Object};
use crate::strategy::Strategy;

/// A change older than this may leave the window.
const AGE: Duration = Duration::from_secs(300);
/// The window keeps so many changes whatever their age.
const KEPT: usize = 100;
/// The window never keeps more changes than this,
const MOST: usize = 32 * 1024;
/// nor more bytes than this.
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// The cache of one resource.
pub struct Cache {
    prefix: String,
    strategy: &'static dyn Strategy,
    state: RwLock<State>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    changes: VecDeque<Arc<Change>>,
    weight: usize,
    /// A watch may start from this revision or any later one.
    oldest: u64,
    /// Revision of the last change.
    revision: u64,
}

/// Objects of one resource at one revision.
#[derive(Debug)]
pub struct Listing {
    /// The objects, in the order of their keys.
    pub objects: Vec<Arc<Object>>,
    /// Revision that they are complete at.
    pub revision: u64,
    /// Whether there are more behind the last one.
    pub more: bool,
    /// How many more there are, when no selector hides some.
    pub remaining: usize,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl Cache {
    pub(super) fn new(prefix: String, strategy: &'static dyn Strategy) -> Self {
        Self {
            prefix,
            strategy,
            state: RwLock::default(),
            changed: watch::Sender::new(0),
        }
    }

    /// What the kind adds.
    pub fn strategy(&self) -> &'static dyn Strategy {
        self.strategy
    }

    /// The key of an object.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if namespace.is_empty() {
            [&self.prefix, name].concat()
        } else {
            [&self.prefix, namespace, "/", name].concat()
        }
    }

    /// What the keys of a namespace begin with; of the whole resource when it is empty.
    pub fn prefix(&self, namespace: &str) -> String {
        if namespace.is_empty() {
            self.prefix.clone()
        } else {
            [&self.prefix, namespace, "/"].concat()
        }
    }

    /// Makes an object of an entry that was read from the store.
    pub fn object(&self, entry: &Entry) -> Object {
        Object::new(entry, self.prefix.len(), self.strategy)
    }

    /// One object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.state
            .read()
            .objects
            .get(self.key(namespace, name).as_str())
            .cloned()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Revision of the last change of any of the objects.
    pub fn revision(&self) -> u64 {
        *self.changed.borrow()
    }

    /// Follows [`Cache::revision`].
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Every object of a namespace (of all when it is empty), as they are now.
    pub fn all(&self, namespace: &str) -> Vec<Arc<Object>> {
        self.list(namespace, None, 0, 0, |_| true).objects
    }

    /// The objects of a namespace (of all when it is empty) that `wanted` lets through, behind the key `after`, at most `limit` (0 = all).
    ///
    /// `applied` is the revision that the caches were complete at before this call: the listing is complete at least there.
    pub fn list(
        &self,
        namespace: &str,
        after: Option<&str>,
        limit: usize,
        applied: u64,
        wanted: impl Fn(&Object) -> bool,
    ) -> Listing {
        let prefix = self.prefix(namespace);
        let start = match after {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(prefix.as_str()),
        };
        let state = self.state.read();
        let mut range = state
            .objects
            .range::<str, _>((start, Bound::Unbounded))
            .map(|(_, object)| object)
            .take_while(|object| object.key().starts_with(&prefix));
        let mut objects = Vec::new();
        let mut more = false;
        let mut remaining = 0;
        for object in range.by_ref() {
            if !wanted(object) {
                continue;
            }
            if limit > 0 && objects.len() == limit {
                more = true;
                remaining = 1 + range.count();
                break;
            }
            objects.push(Arc::clone(object));
        }
        Listing {
            objects,
            revision: state.revision.max(applied),
            more,
            remaining,
        }
    }

    /// The changes behind `revision`, `limit` of them, and those of the last one's revision.
    pub fn since(&self, revision: u64, limit: usize) -> Result<Vec<Arc<Change>>, Error> {
        let state = self.state.read();
        if revision < state.oldest {
            return Err(Error::TooOld {
                wanted: revision,
                oldest: state.oldest,
            });
        }
        let start = state.changes.partition_point(|change| change.revision <= revision);
        let mut changes: Vec<Arc<Change>> = Vec::new();
        for change in state.changes.range(start..) {
            // The rest of a revision would be behind the cursor of whoever reads on.
            if changes.len() >= limit && changes.last().is_none_or(|last| last.revision < change.revision) {
                break;
            }
            changes.push(Arc::clone(change));
        }
        Ok(changes)
    }

    /// Replaces everything; watches of older revisions end.
    pub(super) fn reset<'a>(&self, entries: impl Iterator<Item = &'a Entry>, revision: u64) {
        let objects: BTreeMap<_, _> = entries
            .map(|entry| (Arc::clone(&entry.key), Arc::new(self.object(entry))))
            .collect();
        *self.state.write() = State {
            objects,
            oldest: revision,
            revision,
            ..State::default()
        };
        self.changed.send_replace(revision);
    }

    /// Applies changes of this resource, in their order. A revision is in one batch, whole: etcd can delete many keys in one.
    pub(super) fn apply(&self, events: Vec<Event>) {
        let parsed: Vec<_> = events
            .iter()
            .map(|event| match event {
                Event::Put { entry, .. } => (
                    entry.mod_revision.0,
                    Arc::clone(&entry.key),
                    Some(Arc::new(self.object(entry))),
                ),
                Event::Delete { revision, previous } => (revision.0, Arc::clone(&previous.key), None),
            })
            .collect();
        let mut state = self.state.write();
        let applied = state.revision;
        for (revision, key, current) in parsed {
            if revision <= applied && applied != 0 {
                continue;
            }
            let previous = match &current {
                Some(object) => state.objects.insert(key, Arc::clone(object)),
                None => state.objects.remove(&key),
            };
            state.push(Arc::new(Change::new(revision, current, previous)));
        }
        let revision = state.revision;
        state.trim();
        drop(state);
        self.changed.send_replace(revision);
    }
}

impl State {
    fn push(&mut self, change: Arc<Change>) {
        self.revision = change.revision;
        self.weight += change.weight();
        self.changes.push_back(change);
    }

    fn trim(&mut self) {
        while let Some(first) = self.changes.front() {
            let full = self.changes.len() > MOST || self.weight > MOST_BYTES;
            let stale = self.changes.len() > KEPT && first.arrived.elapsed() > AGE;
            if !full && !stale {
                break;
            }
            self.oldest = first.revision;
            self.weight -= first.weight();
            self.changes.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use skiff_store::Revision;

    use super::*;

    fn entry(name: &str, revision: u64) -> Entry {
        Entry {
            key: format!("/registry/core/configmaps/default/{name}").into(),
            value: Bytes::from_static(br#"{"metadata":{}}"#),
            create_revision: Revision(revision),
            mod_revision: Revision(revision),
        }
    }

    /// As `etcdctl del --prefix` does it.
    #[test]
    fn what_happens_at_one_revision_stays_together() {
        let strategy = crate::strategy::lookup("", "configmaps");
        let cache = Cache::new("/registry/core/configmaps/".to_owned(), strategy);
        let put = |(name, revision)| Event::Put {
            entry: entry(name, revision),
            previous: None,
        };
        let delete = |(name, revision)| Event::Delete {
            revision: Revision(5),
            previous: entry(name, revision),
        };
        let names = || {
            cache
                .all("")
                .iter()
                .map(|object| object.name().to_owned())
                .collect::<Vec<_>>()
        };
        cache.apply([("a", 2), ("b", 3), ("c", 4)].map(put).into());
        cache.apply([("a", 2), ("b", 3)].map(delete).into());
        assert_eq!(names(), ["c"]);
        for (behind, limit, wanted) in [
            (1, 2, &[2, 3][..]),
            (3, 1, &[4]),
            (3, 2, &[4, 5, 5]),
            (4, 1, &[5, 5]),
            (5, 1, &[]),
        ] {
            let changes = cache.since(behind, limit).unwrap();
            let revisions: Vec<u64> = changes.iter().map(|change| change.revision).collect();
            assert_eq!(revisions, wanted, "{limit} behind {behind}");
        }
        // What comes again changes nothing.
        cache.apply(vec![delete(("c", 4))]);
        assert_eq!(names(), ["c"]);
    }
}
