//! What to do about a volume.

use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use skiff_api::volumes::{self, BOUND_BY_CONTROLLER, PROVISIONED_BY};

use super::{Controller, Note, Work, unless_gone};
use crate::view::{Key, View};
use crate::write::{Error, Merge};

/// What to do.
#[derive(Debug, PartialEq)]
pub(super) enum Plan {
    /// It waits for its claim, or for any.
    Free,
    /// Its claim has it.
    Bound,
    /// Its claim has not heard of it yet.
    TellClaim,
    /// The two can never come together.
    Mismatch,
    /// Its claim took another one; it is free again for all, or for a claim of that name.
    Unbind,
    /// Its claim is gone; what becomes of it is for its policy to say.
    Release,
}

/// Decides about a volume. `claim` is the one that it names, if that is there with the same uid.
pub(super) fn plan(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> Plan {
    let Some(reference) = volumes::claim_ref(volume) else {
        return Plan::Free;
    };
    if reference.uid.as_deref().unwrap_or_default().is_empty() {
        return Plan::Free;
    }
    let Some(claim) = claim else {
        return Plan::Release;
    };
    match volumes::claimed_volume(claim) {
        "" if volumes::modes_differ(claim, volume) => Plan::Mismatch,
        "" => Plan::TellClaim,
        named if named == volume.name() => Plan::Bound,
        // Provisioned for a claim that found another in the meantime: nobody else asked for it.
        _ if volume.annotation(PROVISIONED_BY).is_some() && volumes::reclaim_policy(volume) == "Delete" => {
            Plan::Release
        }
        _ => Plan::Unbind,
    }
}

/// Why a released volume cannot be reclaimed here: its phase becomes Failed, and an event says this.
pub(super) fn cannot_reclaim(volume: &PersistentVolume) -> Option<Note> {
    match volumes::reclaim_policy(volume) {
        "Recycle" => Some(Note::warning(
            "VolumeFailedRecycle",
            "No recycler plugin found for the volume!",
        )),
        // Who provisioned it deletes it.
        "Delete" if volume.annotation(PROVISIONED_BY).is_none() => Some(Note::warning(
            "VolumeFailedDelete",
            format!(
                "error getting deleter volume plugin for volume {:?}: no deletable volume plugin matched",
                volume.name()
            ),
        )),
        _ => None,
    }
}

impl Controller {
    pub(super) async fn sync_volume(&self, key: &Key) -> Result<(), Error> {
        let Some(volume) = self.volumes.get(key) else {
            return Ok(());
        };
        let claim = self.claim_of(&volume).await?;
        let done = match plan(&volume, claim.as_ref()) {
            Plan::Free => self.set_phase(&volume, "Available", "").await,
            Plan::Bound => self.set_phase(&volume, "Bound", "").await,
            Plan::TellClaim => {
                if let Some(claim) = claim {
                    self.queue.add(Work::Claim(claim.key()));
                }
                Ok(())
            }
            Plan::Mismatch => {
                self.tell_mismatch(&volume, claim.as_ref());
                Ok(())
            }
            Plan::Unbind => self.unbind(&volume).await,
            Plan::Release => self.release(&volume).await,
        };
        unless_gone(done)
    }

    /// The claim that the volume names, if it is there and the one that is meant. Before a volume counts as released, the
    /// server is asked: the store may be behind.
    async fn claim_of(&self, volume: &PersistentVolume) -> Result<Option<PersistentVolumeClaim>, Error> {
        let Some(reference) = volumes::claim_ref(volume) else {
            return Ok(None);
        };
        let key = Key::new(
            reference.namespace.as_deref().unwrap_or_default(),
            reference.name.as_deref().unwrap_or_default(),
        );
        let meant = |claim: &PersistentVolumeClaim| reference.uid.as_deref() == claim.metadata.uid.as_deref();
        if let Some(claim) = self.claims.get(&key).filter(|claim| meant(claim)) {
            return Ok(Some(PersistentVolumeClaim::clone(&claim)));
        }
        if matches!(volumes::volume_phase(volume), "Released" | "Failed") {
            return Ok(None);
        }
        Ok(self.writer.get::<PersistentVolumeClaim>(&key).await?.filter(meant))
    }

    fn tell_mismatch(&self, volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) {
        let Some(claim) = claim else { return };
        let message = format!(
            "Cannot bind PersistentVolume to requested PersistentVolumeClaim {:?} due to incompatible volumeMode.",
            claim.name()
        );
        self.tell(volume, Note::warning("VolumeMismatch", message));
        let message = format!(
            "Cannot bind PersistentVolume {:?} to requested PersistentVolumeClaim due to incompatible volumeMode.",
            volume.name()
        );
        self.tell(claim, Note::warning("VolumeMismatch", message));
    }

    /// Takes the volume's reference back. One that a person wrote keeps its name.
    async fn unbind(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let patch = if volume.annotation(BOUND_BY_CONTROLLER).is_some() {
            json!({"metadata": {"annotations": {BOUND_BY_CONTROLLER: null}}, "spec": {"claimRef": null}})
        } else {
            json!({"spec": {"claimRef": {"uid": null}}})
        };
        let freed = self.patch_volume(volume, patch).await?;
        self.set_phase(&freed, "Available", "").await
    }

    async fn release(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let phase = volumes::volume_phase(volume);
        if !matches!(phase, "Released" | "Failed") {
            return self.set_phase(volume, "Released", "").await;
        }
        match cannot_reclaim(volume) {
            Some(note) if phase == "Released" => {
                self.set_phase(volume, "Failed", &note.message).await?;
                self.tell(volume, note);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Patches the volume, unless it has changed since it was decided on.
    pub(super) async fn patch_volume(
        &self,
        volume: &PersistentVolume,
        mut patch: Value,
    ) -> Result<PersistentVolume, Error> {
        patch["metadata"]["uid"] = json!(volume.uid());
        patch["metadata"]["resourceVersion"] = json!(volume.resource_version());
        self.writer
            .patch::<PersistentVolume>(&volume.key(), Merge::Json, &patch)
            .await
    }

    /// Writes the phase that was decided on for this version: Released costs the data, so it is never another version's.
    pub(super) async fn set_phase(&self, volume: &PersistentVolume, phase: &str, message: &str) -> Result<(), Error> {
        let status = volume.status.as_ref();
        let told = status.and_then(|status| status.message.as_deref()).unwrap_or_default();
        if volumes::volume_phase(volume) == phase && told == message {
            return Ok(());
        }
        let message = (!message.is_empty()).then_some(message);
        let patch = json!({
            "metadata": {"uid": volume.uid(), "resourceVersion": volume.resource_version()},
            "status": {"phase": phase, "message": message},
        });
        self.writer
            .patch_status::<PersistentVolume>(&volume.key(), Merge::Json, &patch)
            .await
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(claim: Value, annotations: Value, policy: &str) -> PersistentVolume {
        let spec = json!({"claimRef": claim, "persistentVolumeReclaimPolicy": policy});
        serde_json::from_value(json!({"metadata": {"name": "v", "annotations": annotations}, "spec": spec})).unwrap()
    }

    fn claim(volume: &str, mode: &str) -> PersistentVolumeClaim {
        let spec = json!({"volumeName": volume, "volumeMode": mode});
        serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": "c", "uid": "u"}, "spec": spec})).unwrap()
    }

    #[test]
    fn phases_follow_the_claim() {
        let reference = json!({"namespace": "ns", "name": "c", "uid": "u"});
        let plain = || volume(reference.clone(), json!({}), "Delete");
        let provisioned = |policy| volume(reference.clone(), json!({PROVISIONED_BY: "p"}), policy);
        let fs = |volume: &str| Some(claim(volume, "Filesystem"));
        let cases = [
            (volume(json!(null), json!({}), "Retain"), None, Plan::Free),
            (
                volume(json!({"namespace": "ns", "name": "c"}), json!({}), "Retain"),
                None,
                Plan::Free,
            ),
            (plain(), None, Plan::Release),
            (plain(), fs("v"), Plan::Bound),
            (plain(), fs(""), Plan::TellClaim),
            (plain(), Some(claim("", "Block")), Plan::Mismatch),
            (plain(), fs("w"), Plan::Unbind),
            (provisioned("Delete"), fs("w"), Plan::Release),
            (provisioned("Retain"), fs("w"), Plan::Unbind),
        ];
        for (volume, claim, expected) in cases {
            assert_eq!(plan(&volume, claim.as_ref()), expected, "{volume:?} {claim:?}");
        }
    }

    #[test]
    fn only_a_provisioner_reclaims() {
        let reason = |volume: &PersistentVolume| cannot_reclaim(volume).map(|note| note.reason);
        let none = json!({});
        assert_eq!(reason(&volume(json!({}), none.clone(), "Retain")), None);
        assert_eq!(reason(&volume(json!({}), json!({PROVISIONED_BY: "p"}), "Delete")), None);
        assert_eq!(
            reason(&volume(json!({}), none.clone(), "Delete")),
            Some("VolumeFailedDelete")
        );
        assert_eq!(reason(&volume(json!({}), none, "Recycle")), Some("VolumeFailedRecycle"));
    }
}
