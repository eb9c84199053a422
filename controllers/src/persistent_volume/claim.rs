//! What to do about a claim.

use std::sync::Arc;

use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use skiff_api::k8s_openapi::api::storage::v1::StorageClass;
use skiff_api::volumes::{
    self, BETA_STORAGE_PROVISIONER, BOUND_BY_CONTROLLER, LOCAL_PATH, NO_PROVISIONER, SELECTED_NODE,
    STORAGE_PROVISIONER, Seeker,
};

use super::{Controller, Note, unless_gone};
use crate::view::{Index, Key, Node, Pod, View};
use crate::write::{Error, Merge};

/// What is known of a claim's surroundings.
pub(super) struct Sight<'a> {
    pub(super) claim: &'a PersistentVolumeClaim,
    /// The volume that the claim names, if it is there.
    pub(super) named: Option<&'a PersistentVolume>,
    pub(super) volumes: &'a [Arc<PersistentVolume>],
    /// The claim's class, if it is there.
    pub(super) class: Option<&'a StorageClass>,
    pub(super) default_class: Option<&'a str>,
    /// Pods that name the claim and have no node yet.
    pub(super) waiting_pods: &'a [String],
}

/// What to do.
#[derive(Debug, PartialEq)]
pub(super) enum Plan {
    /// Nothing can be bound now: say why, and that it waits.
    Wait(Option<Note>),
    /// Give it the default class.
    Classify(String),
    /// Ask its class's provisioner for a volume.
    Provision(String),
    /// Bind it, or complete what was begun.
    Bind(String),
    /// The volume that it was bound to is gone.
    Lose(Note),
}

/// Decides about a claim.
pub(super) fn plan(sight: &Sight<'_>) -> Plan {
    if volumes::claim_annotation(sight.claim, volumes::BIND_COMPLETED).is_some() {
        plan_bound(sight)
    } else if volumes::claimed_volume(sight.claim).is_empty() {
        plan_unbound(sight)
    } else {
        plan_named(sight)
    }
}

fn plan_bound(sight: &Sight<'_>) -> Plan {
    let claim = sight.claim;
    let lost = |message: &str| Plan::Lose(Note::warning("ClaimLost", message));
    if volumes::claimed_volume(claim).is_empty() {
        return lost("Bound claim has lost reference to PersistentVolume. Data on the volume is lost!");
    }
    let Some(volume) = sight.named else {
        return lost("Bound claim has lost its PersistentVolume. Data on the volume is lost!");
    };
    if volumes::claim_ref(volume).is_none() || volumes::is_for(volume, claim) {
        return Plan::Bind(volume.name().to_owned());
    }
    let message = "Two claims are bound to the same volume, this one is bound incorrectly";
    Plan::Lose(Note::warning("ClaimMisbound", message))
}

fn plan_named(sight: &Sight<'_>) -> Plan {
    let claim = sight.claim;
    let Some(volume) = sight.named else {
        return Plan::Wait(None);
    };
    if volumes::is_for(volume, claim) {
        return Plan::Bind(volume.name().to_owned());
    }
    if volumes::claim_ref(volume).is_some() {
        let message = format!("volume {:?} already bound to a different claim.", volume.name());
        let by_user = claim.annotation(BOUND_BY_CONTROLLER).is_none();
        return Plan::Wait(by_user.then(|| Note::warning("FailedBinding", message)));
    }
    match volumes::check(volume, claim) {
        Ok(()) => Plan::Bind(volume.name().to_owned()),
        Err(misfit) => {
            let message = format!("Cannot bind to requested volume {:?}: {misfit}", volume.name());
            Plan::Wait(Some(Note::warning("VolumeMismatch", message)))
        }
    }
}

fn plan_unbound(sight: &Sight<'_>) -> Plan {
    let claim = sight.claim;
    let sent = claim.annotation(SELECTED_NODE).is_some();
    let delayed = sight.class.is_some_and(volumes::waits_for_consumer) && !sent;
    let seeker = if delayed { Seeker::Waiting } else { Seeker::Binder };
    if let Some(volume) = volumes::best_match(claim, sight.volumes.iter().map(|volume| &**volume), seeker) {
        return Plan::Bind(volume.name().to_owned());
    }
    if let Some(class) = sight.default_class.filter(|_| volumes::wants_default_class(claim)) {
        return Plan::Classify(class.to_owned());
    }
    if delayed {
        return Plan::Wait(Some(waits_for(sight.waiting_pods)));
    }
    let name = volumes::claim_class(claim);
    if name.is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set";
        return Plan::Wait(Some(Note::normal("FailedBinding", message)));
    }
    let failed = |message: String| Plan::Wait(Some(Note::warning("ProvisioningFailed", message)));
    match sight.class {
        None => failed(format!("storageclass.storage.k8s.io {name:?} not found")),
        Some(class) if class.provisioner == NO_PROVISIONER => {
            failed(format!("no volume plugin matched name: {NO_PROVISIONER}"))
        }
        Some(class) if class.provisioner == LOCAL_PATH && !sent => failed(format!(
            "{LOCAL_PATH} provisions volumes on the node of their first pod: class {name:?} needs volumeBindingMode WaitForFirstConsumer"
        )),
        Some(class) => Plan::Provision(class.provisioner.clone()),
    }
}

fn waits_for(pods: &[String]) -> Note {
    match pods {
        [] => Note::normal(
            "WaitForFirstConsumer",
            "waiting for first consumer to be created before binding",
        ),
        [pod] => Note::normal("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
        several => Note::normal(
            "WaitForPodScheduled",
            format!("waiting for pods {} to be scheduled", several.join(",")),
        ),
    }
}

impl Controller {
    pub(super) async fn sync_claim(&self, key: &Key) -> Result<(), Error> {
        let Some(claim) = self.claims.get(key) else {
            return Ok(());
        };
        if self.is_sent_nowhere(&claim).await? {
            return self.recall(&claim).await;
        }
        let (named, all) = match volumes::claimed_volume(&claim) {
            "" => (None, self.volumes.list()),
            name => (self.volumes.get(&Key::cluster(name)), Vec::new()),
        };
        let decided = {
            let class = self.classes.get(&Key::cluster(volumes::claim_class(&claim)));
            let classes = self.classes.list();
            plan(&Sight {
                claim: &claim,
                named: named.as_deref(),
                volumes: &all,
                class: class.as_deref(),
                default_class: volumes::default_class(classes.iter().map(|class| &**class)).map(View::name),
                waiting_pods: &self.waiting_pods(key),
            })
        };
        let done = match decided {
            Plan::Wait(note) => self.wait(&claim, note).await,
            Plan::Classify(class) => {
                self.patch_claim(&claim, json!({"spec": {"storageClassName": class}}))
                    .await
            }
            Plan::Provision(provisioner) => self.provision(&claim, &provisioner).await,
            // The one that was decided on: by now it may be another claim's, and only its version tells.
            Plan::Bind(name) => match named.iter().chain(&all).find(|volume| volume.name() == name) {
                Some(volume) => self.bind(volume, &claim).await,
                None => Ok(()),
            },
            Plan::Lose(note) => self.lose(&claim, note).await,
        };
        unless_gone(done)
    }

    fn waiting_pods(&self, claim: &Key) -> Vec<String> {
        let users = self
            .pods
            .by_index(&Index::Claim(claim.namespace.to_string(), claim.name.to_string()));
        let waiting = |pod: &&Arc<Pod>| pod.spec.node_name.is_none() && pod.is_active();
        users.iter().filter(waiting).map(|pod| pod.name().to_owned()).collect()
    }

    /// Whether the claim waits for a node that is no more: only that node could have provisioned its volume.
    async fn is_sent_nowhere(&self, claim: &PersistentVolumeClaim) -> Result<bool, Error> {
        let Some(node) = claim.annotation(SELECTED_NODE) else {
            return Ok(false);
        };
        let class = self.classes.get(&Key::cluster(volumes::claim_class(claim)));
        let local = class.is_some_and(|class| class.provisioner == LOCAL_PATH);
        let key = Key::cluster(node);
        if !local || !volumes::claimed_volume(claim).is_empty() || self.nodes.get(&key).is_some() {
            return Ok(false);
        }
        // The store may have missed it; only the server knows for sure.
        Ok(self.writer.get::<Node>(&key).await?.is_none())
    }

    async fn recall(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let node = claim.annotation(SELECTED_NODE).unwrap_or_default();
        let message = format!("failed to get target node: node {node:?} not found");
        // The scheduler may have sent it to another node meanwhile.
        let patch = json!({"metadata": {
            "resourceVersion": claim.resource_version(),
            "annotations": {SELECTED_NODE: null},
        }});
        let recalled = self.patch_claim(claim, patch).await;
        if recalled.is_ok() {
            self.tell(claim, Note::warning("ProvisioningFailed", message));
        }
        unless_gone(recalled)
    }

    async fn wait(&self, claim: &PersistentVolumeClaim, note: Option<Note>) -> Result<(), Error> {
        if let Some(note) = note {
            self.tell(claim, note);
        }
        if volumes::claim_phase(claim) == "Pending" {
            return Ok(());
        }
        self.patch_claim_status(
            claim,
            json!({"phase": "Pending", "accessModes": null, "capacity": null}),
        )
        .await
    }

    async fn provision(&self, claim: &PersistentVolumeClaim, provisioner: &str) -> Result<(), Error> {
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
        );
        self.wait(claim, Some(Note::normal("ExternalProvisioning", message)))
            .await?;
        if claim.annotation(STORAGE_PROVISIONER) == Some(provisioner) {
            return Ok(());
        }
        let annotations = json!({STORAGE_PROVISIONER: provisioner, BETA_STORAGE_PROVISIONER: provisioner});
        self.patch_claim(claim, json!({"metadata": {"annotations": annotations}}))
            .await
    }

    async fn lose(&self, claim: &PersistentVolumeClaim, note: Note) -> Result<(), Error> {
        if volumes::claim_phase(claim) == "Lost" {
            return Ok(());
        }
        self.patch_claim_status(claim, json!({"phase": "Lost", "accessModes": null, "capacity": null}))
            .await?;
        self.tell(claim, note);
        Ok(())
    }

    /// Patches the claim, unless it has been deleted and made again.
    pub(super) async fn patch_claim(&self, claim: &PersistentVolumeClaim, mut patch: Value) -> Result<(), Error> {
        patch["metadata"]["uid"] = json!(claim.uid());
        self.writer
            .patch::<PersistentVolumeClaim>(&claim.key(), Merge::Json, &patch)
            .await
            .map(drop)
    }

    pub(super) async fn patch_claim_status(&self, claim: &PersistentVolumeClaim, status: Value) -> Result<(), Error> {
        let patch = json!({"metadata": {"uid": claim.uid()}, "status": status});
        self.writer
            .patch_status::<PersistentVolumeClaim>(&claim.key(), Merge::Json, &patch)
            .await
            .map(drop)
    }
}

#[cfg(test)]
mod tests;
