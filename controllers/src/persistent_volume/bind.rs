//! Writes a binding: reference and phase of the volume, then reference and status of the claim. Each step is made only where
//! it is missing, so that a binding that was cut off anywhere is completed by doing it again.

use serde_json::json;
use skiff_api::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use skiff_api::volumes::{self, BIND_COMPLETED, BOUND_BY_CONTROLLER};

use super::Controller;
use crate::view::View;
use crate::write::Error;

impl Controller {
    pub(super) async fn bind(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let volume = self.refer_to_claim(volume, claim).await?;
        self.set_phase(&volume, "Bound", "").await?;
        self.refer_to_volume(&volume, claim).await?;
        self.complete(&volume, claim).await
    }

    async fn refer_to_claim(
        &self,
        volume: &PersistentVolume,
        claim: &PersistentVolumeClaim,
    ) -> Result<PersistentVolume, Error> {
        let uid = volumes::claim_ref(volume).and_then(|reference| reference.uid.as_deref());
        if volumes::is_for(volume, claim) && uid == Some(claim.uid()) {
            return Ok(volume.clone());
        }
        let mut patch = json!({"spec": {"claimRef": {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "namespace": claim.namespace(),
            "name": claim.name(),
            "uid": claim.uid(),
            "resourceVersion": claim.resource_version(),
        }}});
        // A reference that a person wrote is not ours to take back.
        if volumes::claim_ref(volume).is_none() {
            patch["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
        }
        self.patch_volume(volume, patch).await
    }

    async fn refer_to_volume(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        if volumes::is_fully_bound(claim) {
            return Ok(());
        }
        let mut annotations = json!({BIND_COMPLETED: "yes"});
        if volumes::claimed_volume(claim).is_empty() {
            annotations[BOUND_BY_CONTROLLER] = json!("yes");
        }
        let patch = json!({
            "metadata": {"resourceVersion": claim.resource_version(), "annotations": annotations},
            "spec": {"volumeName": volume.name()},
        });
        self.patch_claim(claim, patch).await
    }

    async fn complete(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let spec = volume.spec.as_ref();
        let modes = spec.and_then(|spec| spec.access_modes.as_ref());
        let capacity = spec.and_then(|spec| spec.capacity.as_ref());
        let status = claim.status.as_ref();
        let same =
            status.is_some_and(|status| status.access_modes.as_ref() == modes && status.capacity.as_ref() == capacity);
        if same && volumes::claim_phase(claim) == "Bound" {
            return Ok(());
        }
        let status = json!({"phase": "Bound", "accessModes": modes, "capacity": capacity});
        self.patch_claim_status(claim, status).await
    }
}
