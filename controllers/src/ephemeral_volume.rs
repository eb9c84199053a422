//! Makes the claims of pods' ephemeral volumes. Each belongs to its pod, so that the garbage collector takes it along.

use std::sync::Arc;

use serde_json::json;
use skiff_api::k8s_openapi::api::core::v1::PersistentVolumeClaim;

use crate::events::{Recorder, Regarding};
use crate::informer::Informer;
use crate::manager::Shared;
use crate::ownership::controller_reference;
use crate::queue::Queue;
use crate::view::{Index, Key, Pod, View};
use crate::write::{Error, Writer};

struct Controller {
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    writer: Writer,
    recorder: Recorder,
}

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let controller = Arc::new(Controller {
        pods: shared.informers.pods.want(),
        claims: shared.informers.persistent_volume_claims.want(),
        writer: shared.writer("ephemeral-volume-controller"),
        recorder: shared.recorder("ephemeral_volume"),
    });
    let queue: Arc<Queue<Key>> = shared.queue("ephemeral_volume");
    let waiting = Arc::clone(&queue);
    controller.pods.on_change(move |change| {
        let ephemeral = |pod: &&Arc<Pod>| pod.spec.volumes.iter().any(|volume| volume.ephemeral.is_some());
        if change.old.is_none()
            && let Some(pod) = change.new.filter(ephemeral)
        {
            waiting.add(pod.key());
        }
    });
    let waiting = Arc::clone(&queue);
    let pods = Arc::clone(&controller.pods);
    // Whosever claim it was: it may have stood where a pod's own belongs.
    controller.claims.on_change(move |change| {
        let claim = change.object();
        if change.is_deletion() {
            let place = Index::Claim(claim.namespace().to_owned(), claim.name().to_owned());
            for pod in pods.by_index(&place) {
                waiting.add(pod.key());
            }
        }
    });
    let synced = [controller.pods.synced(), controller.claims.synced()];
    shared.work(&queue, 1, synced, move |key| {
        let this = Arc::clone(&controller);
        async move { this.sync(key).await }
    })
}

impl Controller {
    async fn sync(&self, key: Key) -> Result<(), Error> {
        let Some(pod) = self.pods.get(&key).filter(|pod| pod.is_active()) else {
            return Ok(());
        };
        for (volume, name) in pod.spec.volumes.iter().zip(pod.claims()) {
            let Some(source) = &volume.ephemeral else { continue };
            let claim = Key::new(pod.namespace(), &name);
            let there = match self.claims.get(&claim) {
                Some(there) => Some(there),
                None => {
                    let made = self.create(&pod, &claim, &source.volume_claim_template).await;
                    made.inspect_err(|error| {
                        let message = format!("ephemeral volume {}: {}", volume.name, error.message());
                        self.recorder.warning(Regarding::of(&*pod), "FailedBinding", message);
                    })?
                }
            };
            if let Some(foreign) = there.filter(|there| !there.is_controlled_by(pod.uid())) {
                let message = format!(
                    "ephemeral volume {}: PVC {} was not created for pod {} (pod is not owner)",
                    volume.name,
                    foreign.key(),
                    pod.key()
                );
                self.recorder.warning(Regarding::of(&*pod), "FailedBinding", message);
            }
        }
        Ok(())
    }

    async fn create(
        &self,
        pod: &Pod,
        key: &Key,
        template: &serde_json::Value,
    ) -> Result<Option<Arc<PersistentVolumeClaim>>, Error> {
        let metadata = &template["metadata"];
        let body = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": &*key.name,
                "namespace": &*key.namespace,
                "labels": metadata["labels"],
                "annotations": metadata["annotations"],
                "ownerReferences": [controller_reference(pod)],
            },
            "spec": template["spec"],
        });
        match self.writer.create::<PersistentVolumeClaim>(key, &body).await {
            Err(error) if error.is_already_exists() => {
                Ok(self.writer.get::<PersistentVolumeClaim>(key).await?.map(Arc::new))
            }
            Err(error) if error.is_namespace_terminating() => Ok(None),
            Err(error) => Err(error),
            Ok(claim) => Ok(Some(Arc::new(claim))),
        }
    }
}
