//! Feeds the graph: from the informers that run anyway, and by metadata-only watches of every other kind.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::Api;
use kube::core::{ObjectMeta, PartialObjectMeta};
use kube::runtime::{WatchStreamExt, watcher};
use skiff_daemon::{Shutdown, error_chain};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Controller;
use crate::discovery::{Kind, discover};
use crate::informer::Informer;
use crate::manager::Informers;
use crate::view::View;

const DISCOVERY_RETRY: Duration = Duration::from_secs(5);
/// How soon it is asked again what a group serves that did not answer; nothing tells when it does.
const STALE_RETRY: Duration = Duration::from_secs(30);
/// Definitions often come many at once.
const SETTLE: Duration = Duration::from_secs(1);

/// A watch that runs, and whether its first list is in the graph.
struct Monitor {
    stop: Shutdown,
    synced: watch::Receiver<bool>,
}

/// Lets the informers of these kinds feed the graph; their watches need no second.
pub(super) fn feed_from(informers: &Informers, controller: &Arc<Controller>) -> HashSet<(String, String)> {
    let mut fed = HashSet::new();
    feed(&informers.deployments, true, controller, &mut fed);
    feed(&informers.endpoint_slices, true, controller, &mut fed);
    feed(&informers.endpoints, true, controller, &mut fed);
    feed(&informers.namespaces, false, controller, &mut fed);
    feed(&informers.nodes, false, controller, &mut fed);
    feed(&informers.pods, true, controller, &mut fed);
    feed(&informers.replica_sets, true, controller, &mut fed);
    feed(&informers.service_accounts, true, controller, &mut fed);
    feed(&informers.services, true, controller, &mut fed);
    fed
}

fn feed<K: View>(
    informer: &Arc<Informer<K>>,
    namespaced: bool,
    controller: &Arc<Controller>,
    fed: &mut HashSet<(String, String)>,
) {
    let kind = Arc::new(Kind {
        group: K::group(&()).into_owned(),
        version: K::version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        plural: K::plural(&()).into_owned(),
        namespaced,
        verbs: Vec::new(),
    });
    fed.insert((kind.group.clone(), kind.plural.clone()));
    controller.know(&kind);
    let controller = Arc::clone(controller);
    informer.on_change(move |change| match change.new {
        Some(object) => controller.observe(&kind, object.meta()),
        None => controller.observe_end(change.object().uid()),
    });
}

impl Controller {
    /// Keeps a watch on every kind that can be collected, until shutdown. `ready` is set when all first lists are in.
    pub(super) async fn monitor(
        self: Arc<Self>,
        fed: HashSet<(String, String)>,
        ready: watch::Sender<bool>,
        shutdown: Shutdown,
    ) {
        let mut tasks = JoinSet::new();
        let mut monitors: HashMap<Arc<Kind>, Monitor> = HashMap::new();
        loop {
            let is_stale = match discover(self.writer.client()).await {
                Ok(found) => {
                    let wanted: HashSet<_> = found
                        .kinds
                        .into_iter()
                        .filter(|kind| is_collectable(kind, &fed))
                        .collect();
                    // A group that does not answer at the moment keeps its watches.
                    let stale = |kind: &Kind| found.stale.contains(&kind.api_version());
                    monitors.retain(|kind, monitor| {
                        wanted.contains(kind) || stale(kind) || {
                            monitor.stop.cancel();
                            false
                        }
                    });
                    for kind in wanted {
                        monitors
                            .entry(Arc::clone(&kind))
                            .or_insert_with(|| self.start_monitor(kind, &shutdown, &mut tasks));
                    }
                    !found.stale.is_empty()
                }
                Err(error) => {
                    tracing::warn!(error = %error_chain(&error), "cannot discover what to collect; retrying");
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        () = tokio::time::sleep(DISCOVERY_RETRY) => continue,
                    }
                }
            };
            let all_synced = async {
                for monitor in monitors.values() {
                    // A monitor that ended has been stopped or the process ends.
                    monitor.synced.clone().wait_for(|synced| *synced).await.ok();
                }
                ready.send_replace(true);
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = all_synced => {}
                () = tokio::time::sleep(STALE_RETRY), if is_stale => {}
                () = self.kinds_changed.notified() => {}
            }
            tokio::time::sleep(SETTLE).await;
        }
    }

    fn start_monitor(self: &Arc<Self>, kind: Arc<Kind>, shutdown: &Shutdown, tasks: &mut JoinSet<()>) -> Monitor {
        self.know(&kind);
        // Nobody could be asked about owners of this kind before.
        self.look_for_owners_of(&kind);
        let stop = shutdown.child_token();
        let (sender, synced) = watch::channel(false);
        tasks.spawn(Arc::clone(self).watch(kind, sender, stop.clone()));
        Monitor { stop, synced }
    }

    async fn watch(self: Arc<Self>, kind: Arc<Kind>, synced: watch::Sender<bool>, stop: Shutdown) {
        let api = Api::<PartialObjectMeta>::all_with(self.writer.client().clone(), &kind.resource());
        let events = watcher(api, watcher::Config::default()).default_backoff();
        let mut events = std::pin::pin!(events);
        let mut listed: Vec<ObjectMeta> = Vec::new();
        loop {
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                event = events.next() => event,
            };
            match event {
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(object))) => listed.push(object.metadata),
                Some(Ok(watcher::Event::InitDone)) => {
                    self.replace(&kind, std::mem::take(&mut listed));
                    synced.send_replace(true);
                }
                Some(Ok(watcher::Event::Apply(object))) => self.observe(&kind, &object.metadata),
                Some(Ok(watcher::Event::Delete(object))) => {
                    self.observe_end(object.metadata.uid.as_deref().unwrap_or_default())
                }
                Some(Err(error)) => {
                    tracing::warn!(resource = kind.plural, error = %error_chain(&error), "watch of metadata failed; retrying");
                }
                None => break,
            }
        }
    }

    pub(super) fn replace(&self, kind: &Arc<Kind>, listed: Vec<ObjectMeta>) {
        let present: HashSet<&str> = listed.iter().filter_map(|meta| meta.uid.as_deref()).collect();
        let known = self.graph.lock().of_kind(kind);
        for uid in known.iter().filter(|uid| !present.contains(&***uid)) {
            self.observe_end(uid);
        }
        listed.iter().for_each(|meta| self.observe(kind, meta));
        self.look_for_owners_of(kind);
    }

    /// Whether an owner is there that was never seen may be told differently now.
    fn look_for_owners_of(&self, kind: &Kind) {
        let waiting = self.graph.lock().missing_owner_of(kind);
        waiting.into_iter().for_each(|uid| self.queue.add(uid));
    }
}

fn is_collectable(kind: &Kind, fed: &HashSet<(String, String)>) -> bool {
    // Events are many, own nothing, and end by themselves.
    let is_event = kind.plural == "events" && matches!(kind.group.as_str(), "" | "events.k8s.io");
    let watchable = ["delete", "list", "watch"].iter().all(|verb| kind.allows(verb));
    watchable && !is_event && !fed.contains(&(kind.group.clone(), kind.plural.clone()))
}
