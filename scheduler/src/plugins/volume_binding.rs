//! VolumeBinding: a node must be able to reach the pod's volumes, those that are bound and those that can be.
//!
//! For claims that wait for their first pod, the decision for a node is also one for volumes: [`choose`] says which volume
//! each claim would get there, or that its provisioner is to make one. What was decided for pods under way counts as taken
//! ([`Decisions`]). Before the pod is bound, the decision is written and the binder's work waited for ([`write`]).

use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use kube::Client;
use parking_lot::Mutex;
use skiff_api::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use skiff_api::volumes;

use crate::Error;
use crate::cache::{Key, Objects, Snapshot};
use crate::framework::{ClusterEvent, Filter, Plugin, PostBind, PreBind, PreFilter, PreFiltered, Rejection, Reserve};
use crate::model::{Labels, Node, Pod, PodClaim};

mod choose;
mod write;

use choose::Wanted;

const NAME: &str = "VolumeBinding";
const UNBOUND_IMMEDIATE: &str = "pod has unbound immediate PersistentVolumeClaims";

/// Refuses nodes that the pod's volumes are not on, and binds volumes for the node that is chosen.
pub(crate) struct VolumeBinding {
    client: Client,
    decisions: Mutex<Decisions>,
}

/// What was decided for pods whose binding is under way.
#[derive(Debug, Default)]
struct Decisions {
    pods: HashMap<Arc<str>, Arc<Decision>>,
}

/// What becomes of the claims of one pod.
#[derive(Debug, Default)]
struct Decision {
    labels: Labels,
    /// Volumes that are there, each for a claim; both as they were.
    bind: Vec<(Arc<PersistentVolume>, Arc<PersistentVolumeClaim>, Key)>,
    /// Claims, as they were, that their provisioner makes a volume for, on this node.
    provision: Vec<(Arc<PersistentVolumeClaim>, Key)>,
    node: Arc<str>,
}

// === impl Decisions ===

impl Decisions {
    /// The claim that a volume was chosen for.
    fn claim_of(&self, volume: &str) -> Option<&Key> {
        let chosen = self.pods.values().flat_map(|decision| &decision.bind);
        let named = |volume: &PersistentVolume| volume.metadata.name.as_deref().unwrap_or_default().to_owned();
        chosen
            .filter(|(chosen, ..)| named(chosen) == volume)
            .map(|(.., claim)| claim)
            .next()
    }

    /// The volume that was chosen for a claim.
    fn volume_of(&self, claim: &Key) -> Option<&Arc<PersistentVolume>> {
        let chosen = self.pods.values().flat_map(|decision| &decision.bind);
        chosen
            .filter(|(.., for_claim)| for_claim == claim)
            .map(|(volume, ..)| volume)
            .next()
    }

    /// The node that a claim's volume is to be provisioned on.
    fn node_of(&self, claim: &Key) -> Option<&str> {
        let sends = |decision: &&Arc<Decision>| decision.provision.iter().any(|(_, sent)| sent == claim);
        let sent = self.pods.values().find(sends);
        sent.map(|decision| &*decision.node)
    }
}

// === impl VolumeBinding ===

impl VolumeBinding {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            decisions: Mutex::default(),
        }
    }

    /// The pod's claims, sorted by what is still to be done for them; or why no node can do.
    fn wanted<'a>(&'a self, pod: &Pod, objects: &'a Objects) -> Result<Wanted<'a>, String> {
        let mut wanted = Wanted::new(&self.decisions, objects);
        let mut immediate = false;
        for used in &pod.claims {
            let key = (Arc::clone(&pod.namespace), Arc::clone(&used.name));
            let claim = find(pod, used, &key, objects)?;
            if volumes::is_fully_bound(claim) {
                wanted.add_bound(claim);
                continue;
            }
            let class = objects.storage_classes.get(volumes::claim_class(claim));
            let waits = class.is_some_and(|class| volumes::waits_for_consumer(class));
            if waits && volumes::claimed_volume(claim).is_empty() {
                wanted.add_waiting(key, claim);
            } else {
                immediate = true;
            }
        }
        if immediate {
            return Err(UNBOUND_IMMEDIATE.to_owned());
        }
        wanted.sort();
        Ok(wanted)
    }
}

/// The claim, if it is one that a pod can use.
fn find<'a>(
    pod: &Pod,
    used: &PodClaim,
    key: &Key,
    objects: &'a Objects,
) -> Result<&'a Arc<PersistentVolumeClaim>, String> {
    let name = &used.name;
    let Some(claim) = objects.claims.get(key) else {
        return Err(if used.ephemeral {
            format!("waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}")
        } else {
            format!("persistentvolumeclaim {name:?} not found")
        });
    };
    if volumes::claim_phase(claim) == "Lost" {
        let volume = volumes::claimed_volume(claim);
        return Err(format!(
            "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
        ));
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
    }
    if used.ephemeral && !skiff_api::owners::is_controlled_by(&claim.metadata, &pod.uid) {
        let namespace = &pod.namespace;
        return Err(format!(
            "PVC {namespace}/{name} was not created for pod {namespace}/{} (pod is not owner)",
            pod.name
        ));
    }
    Ok(claim)
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        NAME
    }

    fn hint(&self, pod: &Pod, event: &ClusterEvent<'_>) -> bool {
        let mut claims = pod.claims.iter();
        match event {
            ClusterEvent::ClaimChanged((namespace, name)) => {
                *namespace == pod.namespace && claims.any(|claim| claim.name == *name)
            }
            ClusterEvent::VolumeChanged
            | ClusterEvent::StorageClassChanged
            | ClusterEvent::NodeAdded(_)
            | ClusterEvent::NodeChanged { .. } => claims.next().is_some(),
            // What was decided for its claims may not have come true.
            ClusterEvent::PodGone(gone) => claims.next().is_some() && !gone.claims.is_empty(),
            _ => false,
        }
    }
}

impl PreFilter for VolumeBinding {
    fn pre_filter<'a>(&'a self, pod: &'a Pod, snapshot: &'a Snapshot) -> PreFiltered<'a> {
        if pod.claims.is_empty() {
            return PreFiltered::Skip;
        }
        match self.wanted(pod, &snapshot.objects) {
            Ok(wanted) => PreFiltered::Filter(Box::new(wanted)),
            Err(why) => PreFiltered::Reject(Rejection::unresolvable(NAME, why)),
        }
    }
}

impl Filter for Wanted<'_> {
    fn filter(&self, node: &Node) -> Result<(), Rejection> {
        self.choose(node).map(drop)
    }
}

impl Reserve for VolumeBinding {
    fn reserve(&self, pod: &Pod, node: &str, snapshot: &Snapshot) -> Result<(), Rejection> {
        let Some(node) = snapshot.node(node).filter(|_| !pod.claims.is_empty()) else {
            return Ok(());
        };
        let wanted = self.wanted(pod, &snapshot.objects);
        let wanted = wanted.map_err(|why| Rejection::unresolvable(NAME, why))?;
        let decision = wanted.choose(node)?;
        self.decisions
            .lock()
            .pods
            .insert(Arc::clone(&pod.uid), Arc::new(decision));
        Ok(())
    }

    fn unreserve(&self, pod: &Pod, _node: &str) {
        self.decisions.lock().pods.remove(&pod.uid);
    }
}

impl PreBind for VolumeBinding {
    fn pre_bind<'a>(&'a self, pod: &'a Pod, _node: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        let decision = self.decisions.lock().pods.get(&pod.uid).cloned();
        async move {
            let Some(decision) = decision else { return Ok(()) };
            let written = write::carry_out(&self.client, pod, &decision).await;
            written.map_err(|source| Error::Volumes {
                pod: pod.full_name(),
                source,
            })
        }
        .boxed()
    }
}

impl PostBind for VolumeBinding {
    fn post_bind(&self, pod: &Pod, node: &str) {
        self.unreserve(pod, node);
    }
}

#[cfg(test)]
mod tests;
