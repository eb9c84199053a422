//! Persistent volumes and claims: which volume does for which claim, under upstream's names and in its words.
//!
//! The binder (in the controller manager) and the scheduler both decide by this: the first binds what needs no node, the
//! second what has to be near a pod.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::quantity::Quantity;
use crate::selector::{LabelSelector, node_terms};

/// On a claim: the binder has bound it completely.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a volume or claim: the binder wrote the reference to the other one, and may take it back.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume: the provisioner that made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: the node that the scheduler chose for the first pod that uses it.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a claim: who is to provision its volume.
pub const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// The same under its older name, which provisioners still read.
pub const BETA_STORAGE_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// On a class: claims without a class get this one.
pub const IS_DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// The same under its older name.
pub const BETA_IS_DEFAULT_CLASS: &str = "storageclass.beta.kubernetes.io/is-default-class";
/// The class of a volume or claim under the name from before it was a field; it goes first.
pub const BETA_STORAGE_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// Finalizer of a claim that a pod uses.
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Finalizer of a volume that is bound.
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// Finalizer of a provisioned volume: what it stands for is removed before its object.
pub const PROVISIONER_FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
/// The provisioner of classes that have none: their volumes are made by hand.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// The provisioner that every kubelet of skiff brings along: directories of its own node.
pub const LOCAL_PATH: &str = "skiff/local-path";

/// Why a volume that a claim asks for by name does not do for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// It is smaller than the claim asks for.
    #[error("requested PV is too small")]
    Small,
    /// It is of another class.
    #[error("storageClassName does not match")]
    Class,
    /// One is a file system, the other a device.
    #[error("incompatible volumeMode")]
    Mode,
    /// It cannot be used in all the ways that the claim asks for.
    #[error("incompatible accessMode")]
    Access,
}

/// For whom a volume is looked for.
#[derive(Clone, Copy, Debug)]
pub enum Seeker<'a> {
    /// For the binder, of a claim that is bound at once.
    Binder,
    /// For the binder, of a claim that waits for its first pod: only a volume that names the claim will do.
    Waiting,
    /// For the scheduler, on a node with these labels.
    Node(&'a BTreeMap<String, String>),
}

// === claims ===

fn annotation<'a>(annotations: Option<&'a BTreeMap<String, String>>, name: &str) -> Option<&'a str> {
    annotations?.get(name).map(String::as_str)
}

/// The name of the claim's class; empty when it has none.
pub fn claim_class(claim: &PersistentVolumeClaim) -> &str {
    let named = || claim.spec.as_ref()?.storage_class_name.as_deref();
    annotation(claim.metadata.annotations.as_ref(), BETA_STORAGE_CLASS)
        .or_else(named)
        .unwrap_or_default()
}

/// Whether nobody has said which class the claim should have, not even that it should have none.
pub fn wants_default_class(claim: &PersistentVolumeClaim) -> bool {
    let named = claim
        .spec
        .as_ref()
        .is_some_and(|spec| spec.storage_class_name.is_some());
    !named && annotation(claim.metadata.annotations.as_ref(), BETA_STORAGE_CLASS).is_none()
}

/// The volume that the claim names; empty when it names none.
pub fn claimed_volume(claim: &PersistentVolumeClaim) -> &str {
    let name = || claim.spec.as_ref()?.volume_name.as_deref();
    name().unwrap_or_default()
}

/// One of the claim's annotations.
pub fn claim_annotation<'a>(claim: &'a PersistentVolumeClaim, name: &str) -> Option<&'a str> {
    annotation(claim.metadata.annotations.as_ref(), name)
}

/// Whether the binder is done with the claim.
pub fn is_fully_bound(claim: &PersistentVolumeClaim) -> bool {
    !claimed_volume(claim).is_empty() && claim_annotation(claim, BIND_COMPLETED).is_some()
}

/// The claim's phase; empty before the binder has seen it.
pub fn claim_phase(claim: &PersistentVolumeClaim) -> &str {
    let phase = || claim.status.as_ref()?.phase.as_deref();
    phase().unwrap_or_default()
}

/// How much the claim asks for.
pub fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let requests = || claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref();
    storage(requests())
}

fn storage(amounts: Option<&BTreeMap<String, Text>>) -> Quantity {
    let text = amounts.and_then(|amounts| amounts.get("storage"));
    text.and_then(|text| text.0.parse().ok()).unwrap_or(Quantity::ZERO)
}

fn claim_modes(claim: &PersistentVolumeClaim) -> &[String] {
    let modes = || claim.spec.as_ref()?.access_modes.as_deref();
    modes().unwrap_or_default()
}

// === volumes ===

/// The volume's specification, where it has one.
fn volume_spec(volume: &PersistentVolume) -> Option<&PersistentVolumeSpec> {
    volume.spec.as_ref()
}

/// The name of the volume's class; empty when it has none.
pub fn volume_class(volume: &PersistentVolume) -> &str {
    let named = || volume_spec(volume)?.storage_class_name.as_deref();
    annotation(volume.metadata.annotations.as_ref(), BETA_STORAGE_CLASS)
        .or_else(named)
        .unwrap_or_default()
}

/// One of the volume's annotations.
pub fn volume_annotation<'a>(volume: &'a PersistentVolume, name: &str) -> Option<&'a str> {
    annotation(volume.metadata.annotations.as_ref(), name)
}

/// The claim that the volume is meant for.
pub fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume_spec(volume)?.claim_ref.as_ref()
}

/// The volume's phase; empty before the binder has seen it.
pub fn volume_phase(volume: &PersistentVolume) -> &str {
    let phase = || volume.status.as_ref()?.phase.as_deref();
    phase().unwrap_or_default()
}

/// What becomes of the volume after its claim: `Retain` unless it says otherwise.
pub fn reclaim_policy(volume: &PersistentVolume) -> &str {
    let policy = || volume_spec(volume)?.persistent_volume_reclaim_policy.as_deref();
    policy().unwrap_or("Retain")
}

/// How much the volume holds.
pub fn capacity(volume: &PersistentVolume) -> Quantity {
    storage(volume_spec(volume).and_then(|spec| spec.capacity.as_ref()))
}

fn volume_modes(volume: &PersistentVolume) -> &[String] {
    let modes = || volume_spec(volume)?.access_modes.as_deref();
    modes().unwrap_or_default()
}

/// Whether the volume's node affinity allows a node with these labels.
pub fn allows_node(volume: &PersistentVolume, labels: &BTreeMap<String, String>) -> bool {
    let required = || volume_spec(volume)?.node_affinity.as_ref()?.required.as_ref();
    // As upstream: volumes know nodes by their labels only.
    required().is_none_or(|selector| node_terms(selector).iter().any(|term| term.matches("", labels)))
}

/// Whether the volume is meant for this claim: it names it, and if it names a uid, then this one's.
pub fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    claim_ref(volume).is_some_and(|reference| {
        reference.name == claim.metadata.name
            && reference.namespace == claim.metadata.namespace
            && reference
                .uid
                .as_deref()
                .is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_deref())
    })
}

/// Whether one is a file system and the other a device.
pub fn modes_differ(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let wanted = || claim.spec.as_ref()?.volume_mode.as_deref();
    let given = || volume_spec(volume)?.volume_mode.as_deref();
    wanted().unwrap_or("Filesystem") != given().unwrap_or("Filesystem")
}

fn grants_access(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let given = volume_modes(volume);
    claim_modes(claim).iter().all(|mode| given.contains(mode))
}

// === classes ===

/// Whether claims of the class wait for their first pod.
pub fn waits_for_consumer(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// Whether claims without a class get this one.
pub fn is_default_class(class: &StorageClass) -> bool {
    [IS_DEFAULT_CLASS, BETA_IS_DEFAULT_CLASS]
        .iter()
        .any(|name| annotation(class.metadata.annotations.as_ref(), name) == Some("true"))
}

/// The class that claims without one get: of several the newest, among equals the first by name.
pub fn default_class<'a>(classes: impl IntoIterator<Item = &'a StorageClass>) -> Option<&'a StorageClass> {
    let age = |class: &StorageClass| {
        let made = class.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (std::cmp::Reverse(made), class.metadata.name.clone())
    };
    classes
        .into_iter()
        .filter(|class| is_default_class(class))
        .min_by_key(|class| age(class))
}

// === matching ===

/// Why a volume that the claim names does not do for it.
pub fn check(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), Misfit> {
    match () {
        () if capacity(volume) < requested(claim) => Err(Misfit::Small),
        () if volume_class(volume) != claim_class(claim) => Err(Misfit::Class),
        () if modes_differ(claim, volume) => Err(Misfit::Mode),
        () if !grants_access(claim, volume) => Err(Misfit::Access),
        () => Ok(()),
    }
}

/// The volume that suits the claim best: one that names it, or else the one with the fewest ways of access beyond what is
/// asked for and of these the smallest.
pub fn best_match<'a>(
    claim: &PersistentVolumeClaim,
    volumes: impl IntoIterator<Item = &'a PersistentVolume>,
    seeker: Seeker<'_>,
) -> Option<&'a PersistentVolume> {
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    // The API server has validated it; one that slipped through selects nothing.
    let selector = selector.map(|selector| LabelSelector::from_typed(Some(selector)).unwrap_or(LabelSelector::NOTHING));
    let mut best: Option<&PersistentVolume> = None;
    for volume in volumes {
        let for_other = claim_ref(volume).is_some() && !is_for(volume, claim);
        let small = capacity(volume) < requested(claim);
        if for_other || small || modes_differ(claim, volume) || volume.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let on_node = match seeker {
            Seeker::Node(labels) => allows_node(volume, labels),
            Seeker::Binder | Seeker::Waiting => true,
        };
        if is_for(volume, claim) {
            // It is the one, wherever it is: on no other node is there another.
            return on_node.then_some(volume);
        }
        let selected = selector
            .as_ref()
            .is_none_or(|selector| selector.matches_labels(volume.metadata.labels.as_ref()));
        let free = volume_phase(volume) == "Available" && volume_class(volume) == claim_class(claim);
        let waits = matches!(seeker, Seeker::Waiting);
        if waits || !free || !selected || !on_node || !grants_access(claim, volume) {
            continue;
        }
        if best.is_none_or(|best| rank(volume) < rank(best)) {
            best = Some(volume);
        }
    }
    best
}

fn rank(volume: &PersistentVolume) -> (usize, Quantity, Option<&str>) {
    (
        volume_modes(volume).len(),
        capacity(volume),
        volume.metadata.name.as_deref(),
    )
}

#[cfg(test)]
mod tests;
