//! Deletes what no living owner owns, sets dependents free where that was asked for, and lets owners that are deleted in
//! the foreground go after their dependents.
//!
//! Tasks: a metadata-only watch for each kind that no informer watches ([`monitors`]); a few workers. All of them share the
//! [`graph`]; only workers talk to the API server.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kube::api::PropagationPolicy;
use kube::core::ObjectMeta;
use parking_lot::Mutex;
use serde_json::json;
use skiff_daemon::Shutdown;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::discovery::Kind;
use crate::events::{Recorder, Regarding};
use crate::manager::Shared;
use crate::queue::Queue;
use crate::view::Key;
use crate::write::Writer;

mod effects;
mod graph;
mod monitors;

use effects::{Error, Target};
use graph::{FOREGROUND, Going, Graph, Node, ORPHAN, Owner, Standing, Uid};

const WORKERS: usize = 10;
/// How long the first lists are waited for, as upstream. Where a kind cannot be listed, only owners that wait for their dependents are
/// held up for longer.
const FIRST_LISTS: Duration = Duration::from_secs(30);

struct Controller {
    writer: Writer,
    recorder: Recorder,
    graph: Mutex<Graph>,
    queue: Arc<Queue<Uid>>,
    /// By group and kind, which is how owner references name them.
    kinds: Mutex<HashMap<(String, String), Arc<Kind>>>,
    kinds_changed: Notify,
    /// Before that, dependents may be there that the graph does not know.
    all_listed: AtomicBool,
}

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let controller = Arc::new(Controller {
        writer: shared.writer("generic-garbage-collector"),
        recorder: shared.recorder("garbage-collector-controller"),
        graph: Mutex::default(),
        queue: shared.queue("garbage_collector"),
        kinds: Mutex::default(),
        kinds_changed: Notify::new(),
        all_listed: AtomicBool::new(false),
    });
    let fed = monitors::feed_from(&shared.informers, &controller);
    let synced = shared.informers.all_fed_synced();
    run(controller, fed, synced, shared.shutdown.clone())
}

/// Watches and works until shutdown. `fed` are the kinds that informers bring, `synced` ends when these have listed.
async fn run(
    controller: Arc<Controller>,
    fed: HashSet<(String, String)>,
    synced: impl Future<Output = ()> + Send,
    shutdown: Shutdown,
) {
    let (sender, mut ready) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tasks.spawn(Arc::clone(&controller).monitor(fed, sender, shutdown.clone()));
    let mut listed = pin!(async {
        synced.await;
        ready.wait_for(|ready| *ready).await.ok();
        controller.all_listed.store(true, Ordering::Relaxed);
    });
    // Owners not seen yet cost a request each.
    let waited = tokio::select! {
        () = shutdown.cancelled() => return,
        waited = tokio::time::timeout(FIRST_LISTS, &mut listed) => waited,
    };
    tasks.spawn(work(Arc::clone(&controller), shutdown.clone()));
    if waited.is_err() {
        tracing::warn!("not every kind could be listed; collecting garbage of the others");
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = listed => {}
        }
    }
    tasks.join_all().await;
}

async fn work(controller: Arc<Controller>, shutdown: Shutdown) {
    let queue = Arc::clone(&controller.queue);
    let process = move |uid| {
        let this = Arc::clone(&controller);
        async move { this.process(uid).await }
    };
    queue.work(WORKERS, shutdown, process).await;
}

// === observing ===

impl Controller {
    fn know(&self, kind: &Arc<Kind>) {
        self.kinds
            .lock()
            .insert((kind.group.clone(), kind.kind.clone()), Arc::clone(kind));
    }

    fn observe(&self, kind: &Arc<Kind>, meta: &ObjectMeta) {
        let work = self.graph.lock().put(kind, meta);
        work.into_iter().for_each(|uid| self.queue.add(uid));
        if kind.kind == "CustomResourceDefinition" || kind.kind == "APIService" {
            self.kinds_changed.notify_one();
        }
    }

    fn observe_end(&self, uid: &str) {
        let work = self.graph.lock().remove(uid);
        work.into_iter().for_each(|uid| self.queue.add(uid));
    }

    fn target<'a>(&'a self, node: &'a Node) -> Target<'a> {
        Target {
            client: self.writer.client(),
            kind: &node.kind,
            key: &node.key,
        }
    }
}

// === processing ===

impl Controller {
    async fn process(&self, uid: Uid) -> Result<(), Error> {
        let Some(node) = self.graph.lock().node(&uid).cloned() else {
            return Ok(());
        };
        match node.going {
            Going::No => self.collect(&uid, &node).await,
            Going::Background => Ok(()),
            _ if !self.all_listed.load(Ordering::Relaxed) => {
                // An owner that went before dependents that are not known yet would take them along, or leave them behind.
                self.queue.add_after(uid, FIRST_LISTS);
                Ok(())
            }
            Going::Foreground => self.wait_for_dependents(&uid, &node).await,
            Going::Orphan => self.orphan_dependents(&uid, &node).await,
        }
    }

    /// Deletes the object if all of its owners are gone or wait for it; takes references to such owners away if another
    /// one lives.
    async fn collect(&self, uid: &Uid, node: &Node) -> Result<(), Error> {
        if node.owners.is_empty() || !self.has_lost_an_owner(node) {
            return Ok(());
        }
        let Some(live) = self
            .target(node)
            .metadata()
            .await?
            .filter(|live| live.uid.as_deref() == Some(&**uid))
        else {
            self.observe_end(uid);
            return Ok(());
        };
        // The references that count are those of now. The graph is not told: its watch may know of something newer.
        let node = Node {
            owners: self.graph.lock().owners(&live),
            ..node.clone()
        };
        let (mut solid, mut lost, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        for owner in &node.owners {
            match self.settle_standing(uid, &node, owner).await? {
                Standing::Dangling => lost.push(owner),
                Standing::Waiting => waiting.push(owner),
                Standing::Solid | Standing::Unknown => solid.push(owner),
            }
        }
        if !solid.is_empty() {
            if lost.is_empty() && waiting.is_empty() {
                return Ok(());
            }
            let keep = |owner: &&skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| {
                solid.iter().any(|solid| *solid.uid == *owner.uid)
            };
            let references: Vec<_> = live.owner_references.iter().flatten().filter(keep).collect();
            let patched = self
                .target(&node)
                .patch_metadata(&live, json!({"ownerReferences": references}))
                .await;
            return patched.map(drop);
        }
        if lost.is_empty() && waiting.is_empty() {
            return Ok(());
        }
        if !waiting.is_empty() && self.graph.lock().has_dependents(uid) {
            return self.delete_in_foreground(uid, &node, &live).await;
        }
        let has = |name: &str| live.finalizers.iter().flatten().any(|finalizer| finalizer == name);
        let policy = match (has(ORPHAN), has(FOREGROUND)) {
            (true, _) => PropagationPolicy::Orphan,
            (_, true) => PropagationPolicy::Foreground,
            _ => PropagationPolicy::Background,
        };
        tracing::debug!(kind = node.kind.kind, key = %node.key, ?policy, "deleting: no owner is left");
        self.target(&node).delete(&live, policy).await
    }

    /// An owner waits for this object, so this object waits for its own dependents, unless they wait for each other.
    async fn delete_in_foreground(&self, uid: &Uid, node: &Node, live: &ObjectMeta) -> Result<(), Error> {
        let dependents = self.graph.lock().dependents(uid);
        let circular = dependents
            .iter()
            .any(|(_, dependent)| dependent.going == Going::Foreground);
        let mut decided_on = Some(live.clone());
        if circular && node.owners.iter().any(|owner| owner.blocks) {
            let mut references = live.owner_references.clone().unwrap_or_default();
            references
                .iter_mut()
                .for_each(|reference| reference.block_owner_deletion = Some(false));
            decided_on = self
                .target(node)
                .patch_metadata(live, json!({"ownerReferences": references}))
                .await?;
        }
        match decided_on {
            Some(version) => self.target(node).delete(&version, PropagationPolicy::Foreground).await,
            None => Ok(()),
        }
    }

    fn has_lost_an_owner(&self, node: &Node) -> bool {
        let graph = self.graph.lock();
        node.owners
            .iter()
            .any(|owner| graph.standing(owner) != Standing::Solid || is_elsewhere(&graph, node, owner))
    }

    /// The owner's standing; the server is asked where the graph does not know.
    async fn settle_standing(&self, uid: &Uid, node: &Node, owner: &Owner) -> Result<Standing, Error> {
        {
            let graph = self.graph.lock();
            let standing = graph.standing(owner);
            if is_elsewhere(&graph, node, owner) {
                self.warn_of_namespace(uid, node, owner);
            } else if standing != Standing::Unknown {
                return Ok(standing);
            }
        }
        let kind = self
            .kinds
            .lock()
            .get(&(owner.group().to_owned(), owner.kind.to_string()))
            .cloned();
        let Some(kind) = kind else {
            tracing::debug!(owner = %owner.name, kind = %owner.kind, "an owner is of a kind that is not served; kept");
            return Ok(Standing::Unknown);
        };
        if kind.namespaced && node.key.namespace.is_empty() {
            // A cluster-wide object cannot belong to one in a namespace: nobody can tell which, so it stays.
            self.warn_of_namespace(uid, node, owner);
            return Ok(Standing::Solid);
        }
        let key = if kind.namespaced {
            Key::new(&node.key.namespace, &owner.name)
        } else {
            Key::cluster(&owner.name)
        };
        let found = Target {
            client: self.writer.client(),
            kind: &kind,
            key: &key,
        }
        .metadata()
        .await?;
        match found.filter(|found| found.uid.as_deref() == Some(&*owner.uid)) {
            // As in `collect`, the graph is not told.
            Some(found) => Ok(owner.standing_when(Going::of(&found))),
            None => {
                let mut graph = self.graph.lock();
                if graph.node(&owner.uid).is_none() {
                    graph.remember_gone(Arc::clone(&owner.uid));
                }
                Ok(Standing::Dangling)
            }
        }
    }

    fn warn_of_namespace(&self, dependent: &Uid, node: &Node, owner: &Owner) {
        let about = Regarding::named(
            &node.kind.api_version(),
            &node.kind.kind,
            &node.key.namespace,
            &node.key.name,
            dependent,
        );
        let Owner {
            api_version,
            kind,
            name,
            uid,
            ..
        } = owner;
        let message = format!(
            "ownerRef [{api_version}/{kind}, namespace: {}, name: {name}, uid: {uid}] does not exist in namespace {:?}",
            node.key.namespace, node.key.namespace
        );
        self.recorder.warning(about, "OwnerRefInvalidNamespace", message);
    }

    /// Deletes the dependents that block the owner; with none left, lets the owner go.
    async fn wait_for_dependents(&self, uid: &Uid, node: &Node) -> Result<(), Error> {
        let dependents = self.graph.lock().dependents(uid);
        let blocks = |dependent: &Node| dependent.owners.iter().any(|owner| owner.uid == *uid && owner.blocks);
        let mut blocked = false;
        for (dependent, _) in dependents.iter().filter(|(_, dependent)| blocks(dependent)) {
            blocked = true;
            self.queue.add(Arc::clone(dependent));
        }
        if blocked {
            Ok(())
        } else {
            self.remove_finalizer(uid, node, FOREGROUND).await
        }
    }

    /// Takes the owner's reference from each dependent, then lets the owner go.
    async fn orphan_dependents(&self, uid: &Uid, node: &Node) -> Result<(), Error> {
        let dependents = self.graph.lock().dependents(uid);
        for (dependent_uid, dependent) in dependents {
            let target = self.target(&dependent);
            let Some(live) = target
                .metadata()
                .await?
                .filter(|live| live.uid.as_deref() == Some(&*dependent_uid))
            else {
                continue;
            };
            let references = live.owner_references.as_deref().unwrap_or_default();
            let kept: Vec<_> = references.iter().filter(|reference| *reference.uid != **uid).collect();
            if kept.len() < references.len() {
                target.patch_metadata(&live, json!({"ownerReferences": kept})).await?;
            }
        }
        self.remove_finalizer(uid, node, ORPHAN).await
    }

    async fn remove_finalizer(&self, uid: &Uid, node: &Node, finalizer: &str) -> Result<(), Error> {
        let target = self.target(node);
        let Some(live) = target
            .metadata()
            .await?
            .filter(|live| live.uid.as_deref() == Some(&**uid))
        else {
            return Ok(());
        };
        let finalizers = live.finalizers.as_deref().unwrap_or_default();
        let kept: Vec<_> = finalizers.iter().filter(|kept| *kept != finalizer).collect();
        if kept.len() == finalizers.len() {
            return Ok(());
        }
        target
            .patch_metadata(&live, json!({"finalizers": kept}))
            .await
            .map(drop)
    }
}

/// Whether the owner that has this uid lives in another namespace than the one the reference means.
fn is_elsewhere(graph: &Graph, node: &Node, owner: &Owner) -> bool {
    let found = graph.node(&owner.uid);
    found.is_some_and(|found| found.kind.namespaced && found.key.namespace != node.key.namespace)
}

#[cfg(test)]
mod tests;
