//! Moves a Deployment's pods from template to template by sizing its ReplicaSets.

use std::sync::Arc;

use jiff::Timestamp;
use kube::api::DeleteParams;
use kube::core::SelectorExt;
use serde_json::{Map, Value, json};
use skiff_api::k8s_openapi::api::apps::v1::DeploymentStatus;

use crate::events::{Recorder, Regarding};
use crate::informer::{Change, Informer};
use crate::manager::Shared;
use crate::ownership::{claim, parse_selector, settle};
use crate::queue::Queue;
use crate::view::{Deployment, Index, Key, Pod, ReplicaSet, View};
use crate::write::{Error, Merge, Writer};

mod history;
mod rollout;
mod status;

use history::History;
use rollout::Resize;

const WORKERS: usize = 5;

struct Controller {
    deployments: Arc<Informer<Deployment>>,
    sets: Arc<Informer<ReplicaSet>>,
    pods: Arc<Informer<Pod>>,
    writer: Writer,
    recorder: Recorder,
    queue: Arc<Queue<Key>>,
}

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let controller = Arc::new(Controller {
        deployments: shared.informers.deployments.want(),
        sets: shared.informers.replica_sets.want(),
        pods: shared.informers.pods.want(),
        writer: shared.writer("deployment-controller"),
        recorder: shared.recorder("deployment-controller"),
        queue: shared.queue("deployment"),
    });
    controller.deployments.feed(&controller.queue);
    controller.sets.tell(&controller, Controller::set_changed);
    controller.pods.tell(&controller, Controller::pod_changed);
    let synced = [
        controller.deployments.synced(),
        controller.sets.synced(),
        controller.pods.synced(),
    ];
    let queue = Arc::clone(&controller.queue);
    shared.work(&queue, WORKERS, synced, move |key| {
        let this = Arc::clone(&controller);
        async move { this.sync(key).await }
    })
}

// === handlers: keys only ===

impl Controller {
    fn set_changed(&self, change: &Change<'_, ReplicaSet>) {
        let set = change.object();
        let owners = [change.old, change.new]
            .into_iter()
            .flatten()
            .filter_map(|set| owner_of(set));
        for owner in owners {
            self.queue.add(owner);
        }
        if !change.is_deletion() && set.controller().is_none() {
            let selects = |d: &Deployment| parse_selector(&d.spec.selector).is_some_and(|s| s.matches(set.labels()));
            for deployment in self.deployments.select(set.namespace(), selects) {
                self.queue.add(deployment.key());
            }
        }
    }

    /// A pod that ends may be the last one that a Recreate waits for.
    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let pod = change.object();
        if !change.is_deletion() && !pod.is_terminal() {
            return;
        }
        let Some(set) = pod.controller().filter(|owner| owner.kind == "ReplicaSet") else {
            return;
        };
        let Some(set) = self.sets.get(&Key::new(pod.namespace(), &set.name)) else {
            return;
        };
        let Some(owner) = owner_of(&set) else { return };
        if self
            .deployments
            .get(&owner)
            .is_some_and(|deployment| !deployment.is_rolling())
        {
            self.queue.add(owner);
        }
    }
}

fn owner_of(set: &ReplicaSet) -> Option<Key> {
    let owner = set.controller().filter(|owner| owner.kind == "Deployment")?;
    Some(Key::new(set.namespace(), &owner.name))
}

// === sync ===

impl Controller {
    async fn sync(&self, key: Key) -> Result<(), Error> {
        let Some(deployment) = self.deployments.get(&key) else {
            return Ok(());
        };
        let now = Timestamp::now();
        let Some(selector) = parse_selector(&deployment.spec.selector) else {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder
                .warning(Regarding::of(&*deployment), "SelectingAll", message.into());
            let status = DeploymentStatus {
                observed_generation: deployment.metadata.generation,
                ..deployment.status.clone()
            };
            return self.write_status(&deployment, status).await;
        };
        let owned = self.sets.by_index(&Index::Controller(deployment.uid().to_owned()));
        let orphans = self.sets.by_index(&Index::Orphan(deployment.namespace().to_owned()));
        let sets = claim(&*deployment, &selector, owned.into_iter().chain(orphans));
        let sets = settle(&self.writer, &*deployment, sets).await?;
        let mut history = History::of(&deployment, &sets);
        if deployment.is_being_deleted() {
            let status = status::calculate(&deployment, &history, &deployment.status, now);
            return self.write_status(&deployment, status).await;
        }
        let before = status::with_pause(&deployment, now);
        if deployment.spec.paused || rollout::is_scaling(&deployment, &sets) {
            let (history, _) = self.sync_revision(&deployment, history).await?;
            self.resize_all(&deployment, rollout::proportional(&deployment, &history))
                .await?;
            if deployment.spec.paused {
                self.clean_up(&deployment, &history).await?;
            }
            let status = status::calculate(&deployment, &history, &before, now);
            return self.write_status(&deployment, status).await;
        }
        let mut before = before;
        if deployment.is_rolling() || self.old_pods_gone(&history) {
            self.ensure_new_set(&deployment, &mut history, &mut before, now).await?;
        } else {
            history = self.sync_revision(&deployment, history).await?.0;
        }
        self.roll(&deployment, &history, &before, now).await
    }

    /// One step of the rollout, and the status after it.
    async fn roll(
        &self,
        deployment: &Deployment,
        history: &History,
        before: &DeploymentStatus,
        now: Timestamp,
    ) -> Result<(), Error> {
        let steps = if deployment.is_rolling() {
            rollout::rolling(deployment, history)
        } else {
            rollout::recreate(deployment, history, self.old_pods_gone(history))
        };
        let moving = !steps.is_empty();
        self.resize_all(deployment, steps).await?;
        if !moving && status::is_complete(deployment, &deployment.status) {
            self.clean_up(deployment, history).await?;
        }
        let status = status::rollout(deployment, history, before, now);
        if let Some(later) = status::look_again(deployment, &status, now) {
            self.queue.add_after(deployment.key(), later);
        }
        self.write_status(deployment, status).await
    }

    /// Whether no pod of an old set is left that has not ended.
    fn old_pods_gone(&self, history: &History) -> bool {
        history.old.iter().all(|set| {
            set.replicas() == 0
                && set.status.replicas == 0
                && self
                    .pods
                    .by_index(&Index::Controller(set.uid().to_owned()))
                    .iter()
                    .all(|pod| pod.is_terminal())
        })
    }

    /// Brings the newest set's annotations and the Deployment's revision up to date, if there is such a set.
    async fn sync_revision(
        &self,
        deployment: &Deployment,
        mut history: History,
    ) -> Result<(History, Option<Arc<ReplicaSet>>), Error> {
        let Some(new) = history.new.clone() else {
            return Ok((history, None));
        };
        let next = history.next_revision();
        let mut new = new;
        if let Some(mut patch) = history::new_set_patch(deployment, &new, next) {
            patch["metadata"]["uid"] = json!(new.uid());
            patch["metadata"]["resourceVersion"] = json!(new.resource_version());
            new = Arc::new(self.writer.patch::<ReplicaSet>(&new.key(), Merge::Json, &patch).await?);
            history.new = Some(Arc::clone(&new));
        }
        if let Some(revision) = new.annotation(history::REVISION) {
            self.set_revision(deployment, revision).await?;
        }
        Ok((history, Some(new)))
    }

    async fn set_revision(&self, deployment: &Deployment, revision: &str) -> Result<(), Error> {
        if deployment.annotation(history::REVISION) == Some(revision) {
            return Ok(());
        }
        let patch = json!({"metadata": {"uid": deployment.uid(), "annotations": {history::REVISION: revision}}});
        self.writer
            .patch::<Deployment>(&deployment.key(), Merge::Json, &patch)
            .await
            .map(drop)
    }

    /// Finds or makes the set with the Deployment's template.
    async fn ensure_new_set(
        &self,
        deployment: &Deployment,
        history: &mut History,
        before: &mut DeploymentStatus,
        now: Timestamp,
    ) -> Result<(), Error> {
        let (synced, found) = self.sync_revision(deployment, history.clone()).await?;
        *history = synced;
        let has_deadline = status::deadline(deployment).is_some();
        if let Some(set) = found {
            let knows = before
                .conditions
                .iter()
                .flatten()
                .any(|condition| condition.type_ == "Progressing");
            if has_deadline && !knows {
                let message = format!("Found new replica set {:?}", set.name());
                status::set_condition(before, status::progressing("True", "FoundNewReplicaSet", message, now));
            }
            return Ok(());
        }
        let total = history.old.iter().map(|set| set.replicas()).sum();
        let size = rollout::new_set_size(deployment, total, 0);
        let revision = history.next_revision();
        let body = history::new_set(deployment, size, revision);
        let key = Key::new(
            deployment.namespace(),
            body["metadata"]["name"].as_str().unwrap_or_default(),
        );
        let created = match self.writer.create::<ReplicaSet>(&key, &body).await {
            Err(error) if error.is_already_exists() => self.found_existing(deployment, &key, error).await?,
            Err(error) => return Err(self.creation_failed(deployment, &key, error, now).await),
            Ok(set) => {
                if size > 0 {
                    let message = format!("Scaled up replica set {} from 0 to {size}", set.name());
                    self.recorder
                        .normal(Regarding::of(deployment), "ScalingReplicaSet", message);
                }
                if has_deadline {
                    let message = format!("Created new replica set {:?}", set.name());
                    status::set_condition(
                        before,
                        status::progressing("True", "NewReplicaSetCreated", message, now),
                    );
                }
                set
            }
        };
        history.new = Some(Arc::new(created));
        self.set_revision(deployment, &revision.to_string()).await
    }

    /// The name is taken: by our own set, which the store has not seen yet, or by another whose hash collides.
    async fn found_existing(&self, deployment: &Deployment, key: &Key, error: Error) -> Result<ReplicaSet, Error> {
        let Some(existing) = self.writer.get::<ReplicaSet>(key).await? else {
            return Err(error);
        };
        let ours = existing.is_controlled_by(deployment.uid());
        if ours && history::same_template(&existing.spec.template, &deployment.spec.template) {
            return Ok(existing);
        }
        let count = deployment.status.collision_count.unwrap_or_default() + 1;
        let patch = json!({"metadata": {"uid": deployment.uid()}, "status": {"collisionCount": count}});
        self.writer
            .patch_status::<Deployment>(&deployment.key(), Merge::Json, &patch)
            .await?;
        tracing::info!(deployment = %deployment.key(), count, "another replica set has the hash of this template; trying the next");
        Err(error)
    }

    async fn creation_failed(&self, deployment: &Deployment, key: &Key, error: Error, now: Timestamp) -> Error {
        if error.is_namespace_terminating() {
            return error;
        }
        let message = format!("Failed to create new replica set {:?}: {}", &*key.name, error.message());
        if status::deadline(deployment).is_some() {
            let mut status = deployment.status.clone();
            status::set_condition(
                &mut status,
                status::progressing("False", "ReplicaSetCreateError", message.clone(), now),
            );
            if let Err(error) = self.write_status(deployment, status).await {
                tracing::debug!(deployment = %deployment.key(), %error, "the failure is not in the status yet");
            }
        }
        self.recorder
            .warning(Regarding::of(deployment), "ReplicaSetCreateError", message);
        error
    }

    async fn resize_all(&self, deployment: &Deployment, steps: Vec<Resize>) -> Result<(), Error> {
        for step in steps {
            self.resize(deployment, &step).await?;
        }
        Ok(())
    }

    async fn resize(&self, deployment: &Deployment, Resize { set, to }: &Resize) -> Result<(), Error> {
        let annotations: Map<String, Value> = history::size_annotations(deployment).into_iter().collect();
        let from = set.replicas();
        let annotated = annotations
            .iter()
            .all(|(key, value)| set.annotation(key) == value.as_str());
        if from == *to && annotated {
            return Ok(());
        }
        // The size was decided on this version of the set; if it has changed, decide again.
        let patch = json!({
            "metadata": {"uid": set.uid(), "resourceVersion": set.resource_version(), "annotations": annotations},
            "spec": {"replicas": to},
        });
        self.writer.patch::<ReplicaSet>(&set.key(), Merge::Json, &patch).await?;
        if from != *to {
            let direction = if from < *to { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {} from {from} to {to}", set.name());
            self.recorder
                .normal(Regarding::of(deployment), "ScalingReplicaSet", message);
        }
        Ok(())
    }

    async fn clean_up(&self, deployment: &Deployment, history: &History) -> Result<(), Error> {
        for set in history.surplus(deployment.spec.revision_history_limit) {
            match self
                .writer
                .delete::<ReplicaSet>(&set.key(), set.uid(), DeleteParams::default())
                .await
            {
                Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    async fn write_status(&self, deployment: &Deployment, status: DeploymentStatus) -> Result<(), Error> {
        let status = status::normalized(&status);
        if status == status::normalized(&deployment.status) {
            return Ok(());
        }
        let patch = status::patch(deployment, &status);
        self.writer
            .patch_status::<Deployment>(&deployment.key(), Merge::Json, &patch)
            .await
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::view::{Deployment, ReplicaSet};

    fn merge(into: &mut Value, from: Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                for (key, value) in from {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, from) => *into = from,
        }
    }

    fn template(container: &Value) -> Value {
        let mut spec = json!({"name": "c", "image": "new"});
        merge(&mut spec, container.clone());
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [spec]}})
    }

    /// A Deployment of 10 with defaults, changed by `extra`.
    pub(super) fn deployment(extra: Value) -> Deployment {
        let mut object = json!({
            "metadata": {"namespace": "ns", "name": "web", "uid": "d"},
            "spec": {"replicas": 10, "selector": {"matchLabels": {"app": "web"}}, "template": template(&json!({}))},
        });
        merge(&mut object, extra);
        serde_json::from_value(object).unwrap()
    }

    /// A set whose one container is changed by `container`.
    pub(super) fn set(name: &str, replicas: i32, container: Value) -> ReplicaSet {
        let object = json!({
            "metadata": {"namespace": "ns", "name": name, "uid": name},
            "spec": {"replicas": replicas, "template": template(&container)},
        });
        serde_json::from_value(object).unwrap()
    }
}
