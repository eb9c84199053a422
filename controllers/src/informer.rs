//! One watch and one store a kind, shared by every controller of the manager.
//!
//! Tasks: one for each informer that some controller asked for. It alone writes the store; after each change it calls
//! the handlers in order, which only enqueue keys or settle expectations.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use parking_lot::RwLock;
use skiff_daemon::{Shutdown, error_chain};
use tokio::sync::watch;

use crate::queue::Queue;
use crate::view::{Index, Key, View};

/// How often every object is handed to the handlers again, in case a controller's own state went astray.
const RESYNC: Duration = Duration::from_secs(30 * 60);

/// One object's change: added has no `old`, deleted has no `new`; a resync has the same object on both sides.
#[derive(Debug)]
pub(crate) struct Change<'a, K> {
    pub(crate) old: Option<&'a Arc<K>>,
    pub(crate) new: Option<&'a Arc<K>>,
}

impl<K> Change<'_, K> {
    /// The newest state known; for a deletion the last one seen.
    pub(crate) fn object(&self) -> &Arc<K> {
        self.new
            .or(self.old)
            .expect("a change has an object on at least one side")
    }

    pub(crate) fn is_deletion(&self) -> bool {
        self.new.is_none()
    }
}

type Handler<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;

/// The objects of one kind, kept current by a watch.
pub(crate) struct Informer<K> {
    store: RwLock<Store<K>>,
    handlers: RwLock<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
    wanted: AtomicBool,
    source: fn(Client) -> Api<K>,
    fields: Option<&'static str>,
}

struct Store<K> {
    objects: BTreeMap<Key, Arc<K>>,
    index: HashMap<Index, BTreeSet<Key>>,
}

// === impl Informer ===

impl<K: View> Informer<K> {
    /// An informer of the objects that `source` reaches and the field selector takes.
    pub(crate) fn new(source: fn(Client) -> Api<K>, fields: Option<&'static str>) -> Arc<Self> {
        Arc::new(Self {
            store: RwLock::new(Store {
                objects: BTreeMap::new(),
                index: HashMap::new(),
            }),
            handlers: RwLock::default(),
            synced: watch::Sender::new(false),
            wanted: AtomicBool::new(false),
            source,
            fields,
        })
    }

    /// One that watches nothing and holds these.
    #[cfg(test)]
    pub(crate) fn holding(objects: Vec<K>) -> Arc<Self> {
        let informer = Self::new(Api::all, None);
        informer.replace(objects.into_iter().map(Arc::new).collect());
        informer
    }

    /// Says that a controller reads this kind; without it the watch never starts.
    pub(crate) fn want(self: &Arc<Self>) -> Arc<Self> {
        self.wanted.store(true, Ordering::Relaxed);
        Arc::clone(self)
    }

    /// Calls `handler` after each change. It runs in the informer's task: it must not block.
    pub(crate) fn on_change(&self, handler: impl Fn(&Change<'_, K>) + Send + Sync + 'static) {
        self.wanted.store(true, Ordering::Relaxed);
        self.handlers.write().push(Box::new(handler));
    }

    /// The same with a controller's own method.
    pub(crate) fn tell<C>(&self, controller: &Arc<C>, method: fn(&C, &Change<'_, K>))
    where
        C: Send + Sync + 'static,
    {
        let this = Arc::clone(controller);
        self.on_change(move |change| method(&this, change));
    }

    /// Puts the key of each object that changes into a queue.
    pub(crate) fn feed(&self, queue: &Arc<Queue<Key>>) {
        let queue = Arc::clone(queue);
        self.on_change(move |change| queue.add(change.object().key()));
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.store.read().objects.get(key).cloned()
    }

    pub(crate) fn list(&self) -> Vec<Arc<K>> {
        self.store.read().objects.values().cloned().collect()
    }

    /// The objects of a namespace that `pick` takes, in the order of their names.
    pub(crate) fn select(&self, namespace: &str, pick: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        let store = self.store.read();
        let range = store.objects.range(Key::new(namespace, "")..);
        range
            .take_while(|(key, _)| &*key.namespace == namespace)
            .filter(|(_, object)| pick(object))
            .map(|(_, object)| Arc::clone(object))
            .collect()
    }

    pub(crate) fn by_index(&self, index: &Index) -> Vec<Arc<K>> {
        let store = self.store.read();
        let keys = store.index.get(index).into_iter().flatten();
        keys.filter_map(|key| store.objects.get(key).cloned()).collect()
    }

    /// Ends when the first list is complete.
    pub(crate) fn synced(self: &Arc<Self>) -> BoxFuture<'static, ()> {
        let this = Arc::clone(self);
        async move {
            let mut synced = this.synced.subscribe();
            if synced.wait_for(|synced| *synced).await.is_err() {
                // The sender lives in self, so this cannot happen while somebody waits; never return unsynced.
                std::future::pending::<()>().await;
            }
        }
        .boxed()
    }

    /// Watches until shutdown; returns at once when nobody wants the kind.
    pub(crate) async fn run(self: Arc<Self>, client: Client, shutdown: Shutdown) {
        if !self.wanted.load(Ordering::Relaxed) {
            return;
        }
        let config = watcher::Config {
            field_selector: self.fields.map(str::to_owned),
            ..watcher::Config::default()
        };
        let events = watcher((self.source)(client), config).default_backoff();
        let mut events = std::pin::pin!(events);
        let mut resync = tokio::time::interval_at(tokio::time::Instant::now() + RESYNC, RESYNC);
        let mut relist: Vec<Arc<K>> = Vec::new();
        loop {
            let event = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                event = events.next() => event,
                _ = resync.tick() => { self.resync(); continue }
            };
            match event {
                Some(Ok(watcher::Event::Init)) => relist.clear(),
                Some(Ok(watcher::Event::InitApply(object))) => relist.push(trimmed(object)),
                Some(Ok(watcher::Event::InitDone)) => {
                    self.replace(std::mem::take(&mut relist));
                    self.synced.send_replace(true);
                }
                Some(Ok(watcher::Event::Apply(object))) => self.put(trimmed(object)),
                Some(Ok(watcher::Event::Delete(object))) => self.remove(&object.key()),
                Some(Err(error)) => {
                    tracing::warn!(resource = %K::plural(&()), error = %error_chain(&error), "watch failed; retrying");
                }
                None => return,
            }
        }
    }

    fn put(&self, object: Arc<K>) {
        let old = self.store.write().insert(Arc::clone(&object));
        match old {
            // Deleted and made again while the watch was away: two objects, not one that changed.
            Some(old) if old.uid() != object.uid() => {
                self.notify(Some(&old), None);
                self.notify(None, Some(&object));
            }
            old => self.notify(old.as_ref(), Some(&object)),
        }
    }

    fn remove(&self, key: &Key) {
        let old = self.store.write().remove(key);
        if let Some(old) = old {
            self.notify(Some(&old), None);
        }
    }

    /// Takes a complete list: what it lacks is gone.
    fn replace(&self, objects: Vec<Arc<K>>) {
        let listed: BTreeSet<Key> = objects.iter().map(|object| object.key()).collect();
        let gone: Vec<Key> = self
            .store
            .read()
            .objects
            .keys()
            .filter(|key| !listed.contains(key))
            .cloned()
            .collect();
        for key in gone {
            self.remove(&key);
        }
        for object in objects {
            let known = self.get(&object.key());
            if known.is_none_or(|known| known.resource_version() != object.resource_version()) {
                self.put(object);
            }
        }
    }

    fn resync(&self) {
        for object in self.list() {
            self.notify(Some(&object), Some(&object));
        }
    }

    fn notify(&self, old: Option<&Arc<K>>, new: Option<&Arc<K>>) {
        for handler in self.handlers.read().iter() {
            handler(&Change { old, new });
        }
    }
}

fn trimmed<K: View>(mut object: K) -> Arc<K> {
    object.trim();
    let meta = object.meta_mut();
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    Arc::new(object)
}

// === impl Store ===

impl<K: View> Store<K> {
    fn insert(&mut self, object: Arc<K>) -> Option<Arc<K>> {
        let key = object.key();
        let old = self.objects.insert(key.clone(), Arc::clone(&object));
        let before = old.as_ref().map(|old| old.index()).unwrap_or_default();
        let after = object.index();
        for index in before.iter().filter(|index| !after.contains(index)) {
            self.unindex(index, &key);
        }
        for index in after {
            self.index.entry(index).or_default().insert(key.clone());
        }
        old
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let old = self.objects.remove(key)?;
        for index in old.index() {
            self.unindex(&index, key);
        }
        Some(old)
    }

    fn unindex(&mut self, index: &Index, key: &Key) {
        if let Some(keys) = self.index.get_mut(index) {
            keys.remove(key);
            if keys.is_empty() {
                self.index.remove(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use serde_json::json;

    use kube::Api;

    use super::{Informer, trimmed};
    use crate::view::{Index, Key, Pod};

    fn pod(name: &str, uid: &str, version: &str, owner: Option<&str>) -> Arc<Pod> {
        let owners: Vec<_> = owner
            .map(|uid| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": uid, "controller": true}))
            .into_iter()
            .collect();
        let object = json!({"metadata": {"namespace": "ns", "name": name, "uid": uid, "resourceVersion": version, "ownerReferences": owners}});
        trimmed(serde_json::from_value(object).unwrap())
    }

    fn informer() -> (Arc<Informer<Pod>>, Arc<Mutex<Vec<String>>>) {
        let informer = Informer::<Pod>::new(Api::all, None);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        informer.on_change(move |change| {
            let side =
                |object: Option<&Arc<Pod>>| object.map_or("-".to_owned(), |pod| pod.metadata.uid.clone().unwrap());
            log.lock().push(format!("{}>{}", side(change.old), side(change.new)));
        });
        (informer, seen)
    }

    #[test]
    fn a_relist_removes_what_it_lacks_and_reports_only_what_changed() {
        let (informer, seen) = informer();
        informer.replace(vec![pod("a", "1", "1", None), pod("b", "2", "2", None)]);
        informer.replace(vec![pod("b", "2", "2", None), pod("c", "3", "3", None)]);
        assert_eq!(*seen.lock(), ["->1", "->2", "1>-", "->3"]);
        assert_eq!(informer.list().len(), 2);
    }

    #[test]
    fn the_same_name_with_another_uid_is_a_deletion_and_an_addition() {
        let (informer, seen) = informer();
        informer.put(pod("a", "1", "1", None));
        informer.put(pod("a", "9", "2", None));
        assert_eq!(*seen.lock(), ["->1", "1>-", "->9"]);
    }

    #[test]
    fn the_index_follows_the_owner() {
        let (informer, _) = informer();
        informer.put(pod("a", "1", "1", None));
        assert_eq!(informer.by_index(&Index::Orphan("ns".into())).len(), 1);
        informer.put(pod("a", "1", "2", Some("rs")));
        assert!(informer.by_index(&Index::Orphan("ns".into())).is_empty());
        assert_eq!(informer.by_index(&Index::Controller("rs".into())).len(), 1);
        informer.remove(&Key::new("ns", "a"));
        assert!(informer.by_index(&Index::Controller("rs".into())).is_empty());
    }
}
