//! The watch cache: what every read and every watch is answered from.
//!
//! One task ([`Caches::feed`]) follows the store and applies its changes, a batch at a time, to one [`Cache`] a resource. An object
//! is kept as the bytes that clients receive (its resourceVersion spliced in once, when the change arrives) beside the few
//! parsed parts that selectors need. The last changes of a resource stay in a window, so that a watch can start at any revision in
//! it; watchers are cursors into that window, not queues, so a slow one costs nothing and is told 410 when it falls out.
//!
//! Who owns what: only the feeder writes; readers take a short read lock. `applied` is the revision up to which every cache is
//! complete; a consistent read waits until it reaches the store's revision.

mod change;
mod object;
mod window;

pub use change::{Change, Kind, frame};
pub use object::{Object, with_revision};
pub use window::{Cache, Listing};

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use parking_lot::RwLock;
use skiff_api::resource::Resource;
use skiff_store::{Event, Revision, Store};
use tokio::sync::watch;

use crate::strategy::Strategy;

/// What all keys begin with.
pub const ROOT: &str = "/registry/";

/// How long a read waits for the cache to catch up; upstream's number.
const CATCH_UP: Duration = Duration::from_secs(3);

/// How often a shared store is asked whether it is there, and how long it may take to say so; upstream's number.
const PROBE: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(2);

/// Why the cache cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error("read the store")]
    Store(#[source] skiff_store::Error),
    /// The revision asked for does not exist (yet).
    #[error("revision {wanted} is not reached, the cache is at {current}")]
    TooLarge {
        /// Revision asked for.
        wanted: u64,
        /// Newest revision that the cache has.
        current: u64,
    },
    /// The revision asked for is not in the window any more.
    #[error("revision {wanted} is too old, the oldest kept is {oldest}")]
    TooOld {
        /// Revision asked for.
        wanted: u64,
        /// Oldest revision that a watch may start from.
        oldest: u64,
    },
}

/// The caches of all resources, fed by one watch of the store.
pub struct Caches {
    store: Arc<dyn Store>,
    by_prefix: RwLock<HashMap<Box<str>, Arc<Cache>>>,
    applied: watch::Sender<u64>,
}

impl std::fmt::Debug for Caches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caches")
            .field("applied", &*self.applied.borrow())
            .finish_non_exhaustive()
    }
}

impl Caches {
    /// Caches over `store`, empty until [`Caches::load`].
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            by_prefix: RwLock::default(),
            applied: watch::Sender::new(0),
        }
    }

    /// Adds the cache of a resource. Resources that share their storage get the same cache.
    pub fn add(&self, resource: &Resource, strategy: &'static dyn Strategy) -> Arc<Cache> {
        let prefix = prefix(resource.group, resource.plural);
        let mut caches = self.by_prefix.write();
        let cache = caches
            .entry(prefix.clone().into_boxed_str())
            .or_insert_with(|| Arc::new(Cache::new(prefix, strategy)));
        Arc::clone(cache)
    }

    /// The revision up to which every cache is complete.
    pub fn applied(&self) -> u64 {
        *self.applied.borrow()
    }

    /// Follows [`Caches::applied`].
    pub fn progress(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Waits until reads see everything that was acknowledged before this call.
    pub async fn fresh(&self) -> Result<(), Error> {
        let Revision(wanted) = self.store.revision().await.map_err(Error::Store)?;
        self.reach(wanted).await
    }

    /// Waits until the caches have come to `wanted`.
    pub async fn reach(&self, wanted: u64) -> Result<(), Error> {
        if self.applied() >= wanted {
            return Ok(());
        }
        let mut progress = self.applied.subscribe();
        let reached = progress.wait_for(|applied| *applied >= wanted);
        match tokio::time::timeout(CATCH_UP, reached).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Error::TooLarge {
                wanted,
                current: self.applied(),
            }),
        }
    }

    /// Reads everything from the store. What watchers follow is lost to them: they start anew.
    pub async fn load(&self) -> Result<Revision, Error> {
        let page = self.store.list(ROOT, None, None, 0).await.map_err(Error::Store)?;
        let mut objects: HashMap<&str, Vec<_>> = HashMap::new();
        for entry in &page.entries {
            objects.entry(resource_prefix(&entry.key)).or_default().push(entry);
        }
        for (prefix, cache) in self.by_prefix.read().iter() {
            let entries = objects.remove(&**prefix).unwrap_or_default();
            cache.reset(entries.into_iter(), page.revision.0);
        }
        self.applied.send_replace(page.revision.0);
        Ok(page.revision)
    }

    /// Applies the store's changes from `revision` on until `shutdown`; after a failure it reads everything anew. `check` passes for as
    /// long as changes arrive and the store answers.
    pub async fn feed(
        self: Arc<Self>,
        mut revision: Revision,
        check: skiff_daemon::Check,
        shutdown: skiff_daemon::Shutdown,
    ) {
        let arriving = AtomicBool::new(true);
        let follow = async {
            loop {
                self.follow(&mut revision).await;
                arriving.store(false, Ordering::Relaxed);
                check.fail("the store's changes do not arrive");
                tokio::time::sleep(Duration::from_millis(200)).await;
                match self.load().await {
                    Ok(loaded) => {
                        revision = loaded;
                        arriving.store(true, Ordering::Relaxed);
                        check.pass();
                    }
                    Err(error) => tracing::error!(error = skiff_daemon::error_chain(&error), "cannot reload the cache"),
                }
            }
        };
        tokio::select! {
            () = follow => {}
            () = self.probe(&arriving, &check) => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Asks a store of other processes time and again whether it is there: a watch waits for it in silence.
    async fn probe(&self, arriving: &AtomicBool, check: &skiff_daemon::Check) {
        if !self.store.is_shared() {
            return std::future::pending().await;
        }
        let mut answers = true;
        loop {
            tokio::time::sleep(PROBE).await;
            let answered = tokio::time::timeout(ANSWER, self.store.revision()).await;
            let answered = matches!(answered, Ok(Ok(_)));
            match answered {
                true if arriving.load(Ordering::Relaxed) => check.pass(),
                true => {}
                false => check.fail("the store does not answer"),
            }
            match (answers, answered) {
                (true, false) => {
                    tracing::warn!("the store does not answer: nothing can be read or written until it does")
                }
                (false, true) => tracing::info!("the store answers again"),
                _ => {}
            }
            answers = answered;
        }
    }

    /// Applies changes for as long as the store delivers them.
    async fn follow(&self, revision: &mut Revision) {
        let mut changes = match self.store.watch(ROOT, *revision).await {
            Ok(changes) => changes,
            Err(error) => {
                tracing::warn!(
                    error = skiff_daemon::error_chain(&error),
                    "cannot watch the store: reading it anew"
                );
                return;
            }
        };
        while let Some(batch) = changes.next().await {
            match batch {
                Ok(events) => {
                    if let Some(last) = self.apply(events) {
                        *revision = Revision(last);
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        error = skiff_daemon::error_chain(&error),
                        "the store's watch ended: reading it anew"
                    );
                    return;
                }
            }
        }
        tracing::warn!("the store's watch ended: reading it anew");
    }

    /// Applies one batch, each resource's part of it at once.
    fn apply(&self, events: Vec<Event>) -> Option<u64> {
        let mut last = None;
        let mut parts: Vec<(Arc<Cache>, Vec<Event>)> = Vec::new();
        {
            let caches = self.by_prefix.read();
            for event in events {
                last = last.max(Some(event.revision().0));
                let Some(cache) = caches.get(resource_prefix(event.key())) else {
                    continue;
                };
                match parts.iter_mut().find(|(other, _)| Arc::ptr_eq(other, cache)) {
                    Some((_, part)) => part.push(event),
                    None => parts.push((Arc::clone(cache), vec![event])),
                }
            }
        }
        for (cache, part) in parts {
            cache.apply(part);
        }
        if let Some(last) = last {
            self.applied.send_replace(last);
        }
        last
    }
}

/// What the keys of a resource begin with.
pub fn prefix(group: &str, plural: &str) -> String {
    let group = if group.is_empty() { "core" } else { group };
    format!("{ROOT}{group}/{plural}/")
}

/// The part of a key that names its resource: up to the fourth slash.
fn resource_prefix(key: &str) -> &str {
    match key.match_indices('/').nth(3) {
        Some((end, _)) => &key[..=end],
        None => key,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use serde_json::Value;
    use skiff_api::meta;
    use skiff_store::{Entry, Revision};

    use super::{Cache, prefix, resource_prefix};

    /// The cache of a resource with these objects in it.
    pub(crate) fn filled(group: &str, plural: &str, objects: &[Value]) -> Arc<Cache> {
        let cache = Cache::new(prefix(group, plural), crate::strategy::lookup(group, plural));
        fill(&cache, 1, objects);
        Arc::new(cache)
    }

    /// Puts these objects in place of what is in the cache.
    pub(crate) fn fill(cache: &Cache, revision: u64, objects: &[Value]) {
        let entry = |object: &Value| Entry {
            key: cache.key(meta::namespace(object), meta::name(object)).into(),
            value: object.to_string().into(),
            create_revision: Revision(revision),
            mod_revision: Revision(revision),
        };
        let entries: Vec<Entry> = objects.iter().map(entry).collect();
        cache.reset(entries.iter(), revision);
    }

    #[test]
    fn keys_lead_to_their_resource() {
        assert_eq!(prefix("", "pods"), "/registry/core/pods/");
        assert_eq!(
            resource_prefix("/registry/core/pods/default/web"),
            "/registry/core/pods/"
        );
        assert_eq!(resource_prefix("/registry/core/nodes/n1"), "/registry/core/nodes/");
        assert_eq!(resource_prefix("/registry/core"), "/registry/core");
    }
}
