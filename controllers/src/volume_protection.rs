//! Lets volumes and claims go only when nobody uses them: a volume while it is bound, a claim while a pod on a node names
//! it, keeps its finalizer.

use std::sync::Arc;

use serde_json::json;
use skiff_api::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use skiff_api::volumes::{self, CLAIM_PROTECTION, VOLUME_PROTECTION};

use crate::informer::Informer;
use crate::manager::Shared;
use crate::queue::Queue;
use crate::view::{Index, Key, Pod, View};
use crate::write::{Error, Merge, Object, Writer};

/// What to do about an object's finalizer.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Add,
    /// Only after asking the server: the store may have missed a user.
    Remove,
}

fn step(has_finalizer: bool, is_being_deleted: bool, is_used: bool) -> Step {
    match (is_being_deleted, has_finalizer) {
        (true, true) if !is_used => Step::Remove,
        (false, false) => Step::Add,
        _ => Step::Nothing,
    }
}

fn has<K: View>(object: &K, finalizer: &str) -> bool {
    object
        .meta()
        .finalizers
        .iter()
        .flatten()
        .any(|there| there == finalizer)
}

/// Writes the list of finalizers with or without this one, unless the object has changed since.
async fn write<K: View + Object>(writer: &Writer, object: &K, finalizer: &str, keep: bool) -> Result<(), Error> {
    let mut finalizers = object.meta().finalizers.clone().unwrap_or_default();
    finalizers.retain(|there| there != finalizer);
    if keep {
        finalizers.push(finalizer.to_owned());
    }
    let patch = json!({"metadata": {
        "uid": object.uid(),
        "resourceVersion": object.resource_version(),
        "finalizers": finalizers,
    }});
    match writer.patch::<K>(&object.key(), Merge::Json, &patch).await {
        Err(error) if error.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

/// Registers the handlers of pv-protection; the future runs until shutdown.
pub(crate) fn start_volumes(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let volumes = shared.informers.persistent_volumes.want();
    let queue: Arc<Queue<Key>> = shared.queue("pvprotection");
    let waiting = Arc::clone(&queue);
    volumes.on_change(move |change| waiting.add(change.object().key()));
    let writer = shared.writer("pv-protection-controller");
    shared.work(&queue, 1, [volumes.synced()], move |key| {
        let (volumes, writer) = (Arc::clone(&volumes), writer.clone());
        async move {
            match volumes.get(&key) {
                Some(volume) => protect_volume(&writer, &volume).await,
                None => Ok(()),
            }
        }
    })
}

async fn protect_volume(writer: &Writer, volume: &PersistentVolume) -> Result<(), Error> {
    let bound = volumes::volume_phase(volume) == "Bound";
    match step(has(volume, VOLUME_PROTECTION), volume.is_being_deleted(), bound) {
        Step::Nothing => Ok(()),
        Step::Add => write(writer, volume, VOLUME_PROTECTION, true).await,
        // A volume that has become bound meanwhile has another version, which refuses this.
        Step::Remove => write(writer, volume, VOLUME_PROTECTION, false).await,
    }
}

struct Claims {
    claims: Arc<Informer<PersistentVolumeClaim>>,
    pods: Arc<Informer<Pod>>,
    writer: Writer,
}

/// Registers the handlers of pvc-protection; the future runs until shutdown.
pub(crate) fn start_claims(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let controller = Arc::new(Claims {
        claims: shared.informers.persistent_volume_claims.want(),
        pods: shared.informers.pods.want(),
        writer: shared.writer("pvc-protection-controller"),
    });
    let queue: Arc<Queue<Key>> = shared.queue("pvcprotection");
    let waiting = Arc::clone(&queue);
    controller
        .claims
        .on_change(move |change| waiting.add(change.object().key()));
    let waiting = Arc::clone(&queue);
    controller.pods.on_change(move |change| {
        // Only a pod that goes can set a claim free.
        if let Some(pod) = change.old.filter(|_| change.is_deletion()) {
            for claim in pod.claims() {
                waiting.add(Key::new(pod.namespace(), &claim));
            }
        }
    });
    let synced = [controller.claims.synced(), controller.pods.synced()];
    shared.work(&queue, 1, synced, move |key| {
        let this = Arc::clone(&controller);
        async move { this.sync(key).await }
    })
}

impl Claims {
    async fn sync(&self, key: Key) -> Result<(), Error> {
        let Some(claim) = self.claims.get(&key) else {
            return Ok(());
        };
        let (namespace, name) = (key.namespace.to_string(), key.name.to_string());
        let users = self.pods.by_index(&Index::Claim(namespace, name));
        let used = users.iter().any(|pod| uses(pod, &claim));
        match step(has(&*claim, CLAIM_PROTECTION), claim.is_being_deleted(), used) {
            Step::Nothing => Ok(()),
            Step::Add => write(&self.writer, &*claim, CLAIM_PROTECTION, true).await,
            Step::Remove => {
                let pods = self.writer.list::<Pod>(&key.namespace).await?;
                if pods.iter().any(|pod| uses(pod, &claim)) {
                    return Ok(());
                }
                write(&self.writer, &*claim, CLAIM_PROTECTION, false).await
            }
        }
    }
}

/// Whether a pod holds a claim. One that is on no node yet does not: no kubelet starts it while the claim goes.
fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let owner = claim.controller().map(|owner| owner.uid.as_str());
    pod.spec.node_name.is_some()
        && pod.spec.volumes.iter().zip(pod.claims()).any(|(volume, name)| {
            // The claim of an ephemeral volume is the pod's own, or it is another's of the same name.
            name == claim.name() && (volume.ephemeral.is_none() || owner == Some(pod.uid()))
        })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_finalizer_goes_only_from_what_is_unused_and_going() {
        let cases = [
            ((false, false, false), Step::Add),
            ((false, false, true), Step::Add),
            ((true, false, false), Step::Nothing),
            ((true, true, true), Step::Nothing),
            ((true, true, false), Step::Remove),
            ((false, true, false), Step::Nothing),
        ];
        for ((finalizer, going, used), expected) in cases {
            assert_eq!(step(finalizer, going, used), expected, "{finalizer} {going} {used}");
        }
    }

    #[test]
    fn pods_on_a_node_use_what_they_name() {
        let claim = |owner: Value| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": "p-v", "ownerReferences": owner}}))
                .unwrap()
        };
        let own = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}]);
        let pod = |node: Value, volume: Value| -> Pod {
            let spec = json!({"nodeName": node, "volumes": [volume]});
            serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": "p", "uid": "u"}, "spec": spec}))
                .unwrap()
        };
        let named = json!({"name": "x", "persistentVolumeClaim": {"claimName": "p-v"}});
        let ephemeral = json!({"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}});
        assert!(uses(&pod(json!("n"), named.clone()), &claim(json!([]))));
        assert!(!uses(&pod(json!(null), named), &claim(json!([]))));
        assert!(uses(&pod(json!("n"), ephemeral.clone()), &claim(own)));
        assert!(!uses(&pod(json!("n"), ephemeral), &claim(json!([]))));
    }
}
