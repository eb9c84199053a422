//! A directory for a claim, and the volume object that stands for it.

use std::sync::Arc;

use kube::Api;
use kube::api::PostParams;
use skiff_api::k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use skiff_api::k8s_openapi::api::storage::v1::StorageClass;
use skiff_api::volumes;
use skiff_daemon::error_chain;

use super::{Provisioner, directory, plan, quota};
use crate::events::Severity;

/// Why a claim gets no volume now.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// What the claim asks for is not to be had.
    #[error("{0}")]
    Refused(String),
    #[error("read StorageClass {0:?}")]
    Class(String, #[source] kube::Error),
    #[error("make the directory")]
    Directory(#[from] directory::Error),
    #[error("create PersistentVolume {0:?}")]
    Create(String, #[source] kube::Error),
    #[error("the file system's task was cut off")]
    CutOff(#[from] tokio::task::JoinError),
}

impl Provisioner {
    /// Whether nothing is left to do for the claim.
    pub(super) async fn provision_one(&self, claim: Option<Arc<PersistentVolumeClaim>>) -> bool {
        let Some(claim) = claim else { return true };
        let tell = |severity, reason, message| self.events.object(reference(&claim), severity, reason, message);
        let metadata = &claim.metadata;
        let (namespace, name) = (
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref(),
        );
        let full_name = format!("{namespace}/{}", name.unwrap_or_default());
        match self.provision(&claim, &full_name).await {
            Ok(sized) => {
                let volume = plan::volume_name(&claim);
                tracing::info!(claim = full_name, volume, "provisioned a local volume");
                tell(
                    Severity::Normal,
                    "ProvisioningSucceeded",
                    format!("Successfully provisioned volume {volume}"),
                );
                if sized == quota::Sized::Unlimited {
                    let message = format!(
                        "the file system of {} does not enforce project quotas: the size of volume {volume} is not enforced; to \
                         enforce sizes, put an XFS or ext4 there that is mounted with prjquota",
                        self.root.display()
                    );
                    tell(Severity::Warning, "SizeNotEnforced", message);
                }
                true
            }
            Err(error) => {
                let class = volumes::claim_class(&claim);
                let message = format!(
                    "failed to provision volume with StorageClass {class:?}: {}",
                    error_chain(&error)
                );
                tracing::warn!(
                    claim = full_name,
                    error = error_chain(&error),
                    "cannot provision a local volume"
                );
                tell(Severity::Warning, "ProvisioningFailed", message);
                false
            }
        }
    }

    async fn provision(&self, claim: &PersistentVolumeClaim, full_name: &str) -> Result<quota::Sized, Error> {
        plan::check(claim).map_err(Error::Refused)?;
        let message = format!("External provisioner is provisioning volume for claim {full_name:?}");
        self.events
            .object(reference(claim), Severity::Normal, "Provisioning", message);
        let class = volumes::claim_class(claim);
        let found = Api::<StorageClass>::all(self.client.clone()).get(class).await;
        let class = found.map_err(|error| Error::Class(class.to_owned(), error))?;
        let (root, name, size) = (self.root.clone(), plan::volume_name(claim), volumes::requested(claim));
        let bytes = u64::try_from(size.value()).unwrap_or(u64::MAX);
        let made = tokio::task::spawn_blocking(move || directory::create(&root, &name, bytes)).await??;
        let name = plan::volume_name(claim);
        let volume = plan::volume(claim, &class, &self.node, &self.root.join(&name));
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let create = |error| Error::Create(name.clone(), error);
        let volume = serde_json::from_value(volume).map_err(|error| create(kube::Error::SerdeError(error)))?;
        match api.create(&PostParams::default(), &volume).await {
            // By an earlier attempt that never heard the answer: the name has the claim's uid in it.
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(made),
            Err(error) => Err(create(error)),
            Ok(_) => Ok(made),
        }
    }
}

fn reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("PersistentVolumeClaim".into()),
        namespace: claim.metadata.namespace.clone(),
        name: claim.metadata.name.clone(),
        uid: claim.metadata.uid.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        field_path: None,
    }
}
