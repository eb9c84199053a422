//! Which volumes a pod's claims would get on a node.

use std::sync::Arc;

use parking_lot::Mutex;
use skiff_api::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use skiff_api::k8s_openapi::api::storage::v1::StorageClass;
use skiff_api::volumes::{self, NO_PROVISIONER, SELECTED_NODE, Seeker};

use super::{Decision, Decisions, NAME};
use crate::cache::{Key, Objects};
use crate::framework::Rejection;
use crate::model::{Labels, Node};

const NODE_CONFLICT: &str = "node(s) had volume node affinity conflict";
const BIND_CONFLICT: &str = "node(s) didn't find available persistent volumes to bind";
const NO_VOLUME: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";

/// What is to be found for one pod.
pub(super) struct Wanted<'a> {
    decisions: &'a Mutex<Decisions>,
    objects: &'a Objects,
    /// The volumes of bound claims; `None` where one is missing.
    bound: Vec<Option<&'a Arc<PersistentVolume>>>,
    waiting: Vec<Waiting<'a>>,
}

/// A claim without a volume, and the volumes that may do for it on some node.
struct Waiting<'a> {
    key: Key,
    claim: &'a Arc<PersistentVolumeClaim>,
    candidates: Vec<&'a Arc<PersistentVolume>>,
}

impl<'a> Wanted<'a> {
    pub(super) fn new(decisions: &'a Mutex<Decisions>, objects: &'a Objects) -> Self {
        Self {
            decisions,
            objects,
            bound: Vec::new(),
            waiting: Vec::new(),
        }
    }

    pub(super) fn add_bound(&mut self, claim: &PersistentVolumeClaim) {
        self.bound
            .push(self.objects.volumes.get(volumes::claimed_volume(claim)));
    }

    pub(super) fn add_waiting(&mut self, key: Key, claim: &'a Arc<PersistentVolumeClaim>) {
        // What cannot do on any node is left out here, once, and not on each of them.
        let may_do = |volume: &&Arc<PersistentVolume>| {
            volumes::is_for(volume, claim)
                || (volumes::claim_ref(volume).is_none()
                    && volumes::volume_class(volume) == volumes::claim_class(claim))
        };
        let candidates = self.objects.volumes.values().filter(may_do).collect();
        self.waiting.push(Waiting { key, claim, candidates });
    }

    /// The smallest claim chooses first: a larger one could take the volume that alone does for it.
    pub(super) fn sort(&mut self) {
        self.waiting.sort_by_key(|waiting| volumes::requested(waiting.claim));
    }

    /// What the claims would get on the node, or why one of them gets nothing there.
    pub(super) fn choose(&self, node: &Node) -> Result<Decision, Rejection> {
        let mut reasons = Vec::new();
        if self.bound.iter().any(Option::is_none) {
            reasons.push(NO_VOLUME);
        } else if !self
            .bound
            .iter()
            .flatten()
            .all(|volume| volumes::allows_node(volume, &node.labels))
        {
            reasons.push(NODE_CONFLICT);
        }
        let mut decision = Decision {
            labels: node.labels.clone(),
            node: Arc::clone(&node.name),
            ..Decision::default()
        };
        let decisions = self.decisions.lock();
        if !self
            .waiting
            .iter()
            .all(|waiting| self.settle(waiting, node, &decisions, &mut decision))
        {
            reasons.push(BIND_CONFLICT);
        }
        if reasons.is_empty() {
            return Ok(decision);
        }
        Err(Rejection {
            reasons: reasons.into_iter().map(Into::into).collect(),
            ..Rejection::unresolvable(NAME, "")
        })
    }

    /// Finds something for one claim; whether there was anything.
    fn settle(&self, waiting: &Waiting<'_>, node: &Node, decisions: &Decisions, decision: &mut Decision) -> bool {
        let (key, claim) = (&waiting.key, waiting.claim);
        // Another pod that uses the claim is on its way: it is decided.
        if let Some(volume) = decisions.volume_of(key) {
            decision.bind.push((Arc::clone(volume), Arc::clone(claim), key.clone()));
            return volumes::allows_node(volume, &node.labels);
        }
        let selected = volumes::claim_annotation(claim, SELECTED_NODE);
        if let Some(selected) = selected.or(decisions.node_of(key)) {
            decision.provision.push((Arc::clone(claim), key.clone()));
            return *selected == *node.name;
        }
        let free = waiting.candidates.iter().filter(|volume| {
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            let mut chosen = decision
                .bind
                .iter()
                .map(|(chosen, ..)| chosen.metadata.name.as_deref().unwrap_or_default());
            decisions.claim_of(name).is_none() && !chosen.any(|chosen| chosen == name)
        });
        let best = volumes::best_match(claim, free.map(|volume| &***volume), Seeker::Node(&node.labels));
        let best = best.and_then(|best| self.objects.volumes.get(best.metadata.name.as_deref()?));
        if let Some(volume) = best {
            decision.bind.push((Arc::clone(volume), Arc::clone(claim), key.clone()));
            return true;
        }
        let class = self.objects.storage_classes.get(volumes::claim_class(claim));
        decision.provision.push((Arc::clone(claim), key.clone()));
        // A volume that names the claim is the one, and here it is not.
        let meant = waiting.candidates.iter().any(|volume| volumes::is_for(volume, claim));
        !meant && class.is_some_and(|class| provisions_on(class, &node.labels))
    }
}

/// Whether the class has a provisioner, and makes volumes for such nodes.
fn provisions_on(class: &StorageClass, labels: &Labels) -> bool {
    let topologies = class.allowed_topologies.as_deref().unwrap_or_default();
    let allowed = topologies.is_empty()
        || topologies.iter().any(|term| {
            let mut requirements = term.match_label_expressions.iter().flatten();
            requirements.all(|requirement| {
                labels
                    .get(&requirement.key)
                    .is_some_and(|value| requirement.values.contains(value))
            })
        });
    !class.provisioner.is_empty() && class.provisioner != NO_PROVISIONER && allowed
}
