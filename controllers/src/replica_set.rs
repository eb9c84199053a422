//! Keeps as many pods of a template as a ReplicaSet asks for.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::events::{Recorder, Regarding};
use crate::expectations::Expectations;
use crate::informer::{Change, Informer};
use crate::manager::Shared;
use crate::ownership::{claim, controller_reference, parse_selector, settle};
use crate::queue::{Pace, Queue};
use crate::view::{Index, Key, Pod, ReplicaSet, View};
use crate::write::{Error, Merge, Writer};

mod plan;
mod status;

use plan::Scale;

const WORKERS: usize = 5;
/// So many pods are created or deleted in one go at most.
const BURST: usize = 500;
/// The longest distance between two writes of a status.
const SLOWEST: Duration = Duration::from_millis(200);

struct Controller {
    sets: Arc<Informer<ReplicaSet>>,
    pods: Arc<Informer<Pod>>,
    writer: Writer,
    recorder: Recorder,
    queue: Arc<Queue<Key>>,
    expectations: Expectations,
    pace: Pace<Key>,
}

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let controller = Arc::new(Controller {
        sets: shared.informers.replica_sets.want(),
        pods: shared.informers.pods.want(),
        writer: shared.writer("replicaset-controller"),
        recorder: shared.recorder("replicaset-controller"),
        queue: shared.queue("replicaset"),
        expectations: Expectations::default(),
        pace: Pace::default(),
    });
    controller.sets.tell(&controller, Controller::set_changed);
    controller.pods.tell(&controller, Controller::pod_changed);
    let synced = [controller.sets.synced(), controller.pods.synced()];
    let queue = Arc::clone(&controller.queue);
    shared.work(&queue, WORKERS, synced, move |key| {
        let this = Arc::clone(&controller);
        async move { this.sync(key).await }
    })
}

// === handlers: keys and expectations only ===

impl Controller {
    fn set_changed(&self, change: &Change<'_, ReplicaSet>) {
        let key = change.object().key();
        if change.is_deletion() {
            self.expectations.forget(&key);
        }
        self.queue.add(key);
    }

    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let pod = change.object();
        if let (Some(old), Some(new)) = (change.old, change.new) {
            let before = old.controller().map(|owner| &owner.uid);
            if before.is_some() && before != new.controller().map(|owner| &owner.uid) {
                self.owner_of(old).into_iter().for_each(|key| self.queue.add(key));
            }
        }
        let Some(owner) = self.owner_of(pod) else {
            if pod.controller().is_none() && !change.is_deletion() && needs_an_owner(change) {
                self.enqueue_selecting(pod);
            }
            return;
        };
        if change.old.is_none() {
            self.expectations.creation_observed(&owner);
        }
        if change.is_deletion() || pod.is_being_deleted() {
            self.expectations.deletion_observed(&owner, pod.uid());
        }
        self.queue.add(owner);
    }

    /// The ReplicaSet that controls the pod. One that is not in the store yet is answered too: its creation may be
    /// observed after its pods'.
    fn owner_of(&self, pod: &Pod) -> Option<Key> {
        let owner = pod.controller().filter(|owner| owner.kind == "ReplicaSet")?;
        let key = Key::new(pod.namespace(), &owner.name);
        match self.sets.get(&key) {
            Some(set) if set.uid() != owner.uid => None,
            _ => Some(key),
        }
    }

    fn enqueue_selecting(&self, pod: &Pod) {
        use kube::core::SelectorExt;
        let selecting = |set: &ReplicaSet| parse_selector(&set.spec.selector).is_some_and(|s| s.matches(pod.labels()));
        for set in self.sets.select(pod.namespace(), selecting) {
            self.queue.add(set.key());
        }
    }
}

/// Whether an orphan has just become one or may be selected by others now.
fn needs_an_owner(change: &Change<'_, Pod>) -> bool {
    match (change.old, change.new) {
        (Some(old), Some(new)) => old.labels() != new.labels() || old.controller().is_some() || Arc::ptr_eq(old, new),
        _ => true,
    }
}

// === sync ===

impl Controller {
    async fn sync(&self, key: Key) -> Result<(), Error> {
        let Some(set) = self.sets.get(&key) else {
            self.expectations.forget(&key);
            self.pace.forget(&key);
            return Ok(());
        };
        let Some(selector) = parse_selector(&set.spec.selector) else {
            return Ok(());
        };
        // Asked before the pods are read: what is seen in between makes them fresher, never staler.
        let fresh = self.expectations.time_left(&key).is_none();
        let owned = self.pods.by_index(&Index::Controller(set.uid().to_owned()));
        let orphans = self.pods.by_index(&Index::Orphan(set.namespace().to_owned()));
        let candidates = owned
            .into_iter()
            .chain(orphans.into_iter().filter(|pod| pod.is_active()));
        let pods = settle(&self.writer, &*set, claim(&*set, &selector, candidates)).await?;

        let now = Timestamp::now();
        let active: Vec<_> = pods.iter().filter(|pod| pod.is_active()).cloned().collect();
        let mut scaled = Ok(());
        if fresh && !set.is_being_deleted() {
            scaled = self.scale(&set, &active, now).await;
        }
        let failure = scaled
            .as_ref()
            .err()
            .map(|error| (set.replicas() > len(&active), error.message()));
        let terminating = pods.iter().filter(|pod| pod.is_terminating()).count();
        let status = status::calculate(&set, &active, terminating, failure, now);
        if status != status::normalized(&set.status) {
            match self.pace.wait(&key, status_interval(active.len())) {
                Some(left) => self.queue.add_after(key.clone(), left),
                None => {
                    self.pace.wrote(&key);
                    let patch = status::patch(&set, &status);
                    self.writer
                        .patch_status::<ReplicaSet>(&key, Merge::Json, &patch)
                        .await?;
                }
            }
        }
        if let Some(left) = status::next_available(&set, &active, now) {
            self.queue.add_after(key.clone(), left.max(Duration::from_millis(1)));
        }
        if let Some(left) = self.expectations.time_left(&key) {
            // What will never be seen must not hold the set up until somebody touches it.
            self.queue.add_after(key, left);
        }
        scaled
    }

    async fn scale(&self, set: &ReplicaSet, active: &[Arc<Pod>], now: Timestamp) -> Result<(), Error> {
        let related = || self.related(set);
        match plan::scale(set.replicas(), active, related, now) {
            Scale::Keep => Ok(()),
            Scale::Create(count) => self.create(set, count.min(BURST)).await,
            Scale::Delete(mut pods) => {
                pods.truncate(BURST);
                self.delete(set, &pods).await
            }
        }
    }

    /// Active pods of the ReplicaSets that belong to the same owner, the set's own included.
    fn related(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let siblings = match set.controller() {
            Some(owner) => self.sets.by_index(&Index::Controller(owner.uid.clone())),
            None => Vec::new(),
        };
        let uids = siblings
            .iter()
            .map(|sibling| sibling.uid())
            .filter(|uid| *uid != set.uid())
            .chain([set.uid()]);
        uids.flat_map(|uid| self.pods.by_index(&Index::Controller(uid.to_owned())))
            .filter(|pod| pod.is_active())
            .collect()
    }

    /// Creates pods in batches of 1, 2, 4, …: when creation fails for all (a quota), few requests were wasted.
    async fn create(&self, set: &ReplicaSet, count: usize) -> Result<(), Error> {
        let key = set.key();
        let body = pod_body(set);
        self.expectations.expect_creations(&key, count);
        let (mut left, mut batch) = (count, 1);
        while left > 0 {
            batch = batch.min(left);
            let created = join_all((0..batch).map(|_| self.create_one(set, &key, &body))).await;
            left -= batch;
            if let Some(error) = created.into_iter().find_map(Result::err) {
                self.expectations.creations_observed(&key, left);
                return if error.is_namespace_terminating() {
                    Ok(())
                } else {
                    Err(error)
                };
            }
            batch *= 2;
        }
        Ok(())
    }

    async fn create_one(&self, set: &ReplicaSet, owner: &Key, body: &Value) -> Result<(), Error> {
        match self.writer.create_one_of::<Pod>(set.namespace(), body).await {
            Ok(name) => {
                self.recorder
                    .normal(Regarding::of(set), "SuccessfulCreate", format!("Created pod: {name}"));
                Ok(())
            }
            Err(error) => {
                self.expectations.creation_observed(owner);
                if !error.is_namespace_terminating() {
                    let message = format!("Error creating: {}", error.message());
                    self.recorder.warning(Regarding::of(set), "FailedCreate", message);
                }
                Err(error)
            }
        }
    }

    async fn delete(&self, set: &ReplicaSet, pods: &[Arc<Pod>]) -> Result<(), Error> {
        let key = set.key();
        self.expectations
            .expect_deletions(&key, pods.iter().map(|pod| pod.uid().to_owned()));
        let deleted = join_all(pods.iter().map(|pod| self.delete_one(set, &key, pod))).await;
        deleted.into_iter().find_map(Result::err).map_or(Ok(()), Err)
    }

    async fn delete_one(&self, set: &ReplicaSet, owner: &Key, pod: &Pod) -> Result<(), Error> {
        match self
            .writer
            .delete::<Pod>(&pod.key(), pod.uid(), DeleteParams::default())
            .await
        {
            Ok(()) => {
                self.recorder.normal(
                    Regarding::of(set),
                    "SuccessfulDelete",
                    format!("Deleted pod: {}", pod.name()),
                );
                Ok(())
            }
            Err(error) => {
                self.expectations.deletion_observed(owner, pod.uid());
                // Gone already, or another pod of that name: either way this one is no more.
                if error.is_not_found() || error.is_conflict() {
                    return Ok(());
                }
                let message = format!("Error deleting: {}", error.message());
                self.recorder.warning(Regarding::of(set), "FailedDelete", message);
                Err(error)
            }
        }
    }
}

/// The distance between two writes of a set's status: nothing for a few pods, 20 ms for a hundred.
fn status_interval(pods: usize) -> Duration {
    Duration::from_millis(u64::try_from(pods / 5).unwrap_or(u64::MAX)).min(SLOWEST)
}

/// The pod that the template describes, with a name still to be generated.
fn pod_body(set: &ReplicaSet) -> Value {
    let template = &set.spec.template;
    let mut metadata = json!({
        "generateName": format!("{}-", set.name()),
        "namespace": set.namespace(),
        "ownerReferences": [controller_reference(set)],
    });
    for field in ["labels", "annotations", "finalizers"] {
        let value = &template["metadata"][field];
        if !value.is_null() {
            metadata[field] = value.clone();
        }
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

fn len<T>(items: &[T]) -> i32 {
    i32::try_from(items.len()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use http::{Request, Response};
    use kube::client::Body;
    use parking_lot::Mutex;

    use super::*;
    use crate::events::Broadcaster;
    use crate::metrics::WorkqueueMetrics;

    /// A server that takes everything and writes down what is created.
    fn server(created: &Arc<Mutex<usize>>) -> kube::Client {
        let created = Arc::clone(created);
        let service = tower::service_fn(move |request: Request<Body>| {
            *created.lock() += usize::from(request.method() == "POST");
            let body = json!({"metadata": {"namespace": "ns", "name": "web"}}).to_string();
            std::future::ready(Response::builder().body(Body::from(body.into_bytes())))
        });
        kube::Client::new(service, "default")
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_never_seen_is_waited_for_no_longer_than_it_must() {
        let set: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "web", "uid": "u"},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}},
        }))
        .unwrap();
        let (key, created, events) = (set.key(), Arc::default(), Broadcaster::new());
        let controller = Controller {
            sets: Informer::holding(vec![set]),
            pods: Informer::holding(Vec::new()),
            writer: Writer::new(server(&created)),
            recorder: events.recorder("test"),
            queue: Queue::new(WorkqueueMetrics::default().queue("test")),
            expectations: Expectations::default(),
            pace: Pace::default(),
        };
        controller.sync(key.clone()).await.unwrap();
        controller.sync(key.clone()).await.unwrap();
        assert_eq!(*created.lock(), 1, "the pod may still be seen");
        assert_eq!(controller.queue.next().now_or_never(), None);
        // The clock stands still unless everybody waits.
        let next = tokio::time::timeout(Duration::from_secs(600), controller.queue.next()).await;
        assert_eq!(next.unwrap(), key);
        controller.sync(key).await.unwrap();
        assert_eq!(*created.lock(), 2);
    }
}
