//! The end of a volume: its directory goes first, then what holds its object, then the object.

use std::path::Path;
use std::sync::Arc;

use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use skiff_api::k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume};
use skiff_api::volumes::PROVISIONER_FINALIZER;
use skiff_daemon::error_chain;

use super::plan::{self, Disposal};
use super::{Provisioner, directory};
use crate::events::Severity;

/// Why a volume is still there.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// Its path is not one that this node gave it.
    #[error("path {0} is not {1}; remove the data by hand, then the finalizer {PROVISIONER_FINALIZER}")]
    Foreign(String, String),
    #[error("remove the directory")]
    Directory(#[from] directory::Error),
    #[error("release PersistentVolume {0:?}")]
    Finalizer(String, #[source] kube::Error),
    #[error("delete PersistentVolume {0:?}")]
    Delete(String, #[source] kube::Error),
    #[error("the file system's task was cut off")]
    CutOff(#[from] tokio::task::JoinError),
}

impl Provisioner {
    /// Whether nothing is left to do about the volume.
    pub(super) async fn reclaim_one(&self, volume: Option<Arc<PersistentVolume>>) -> bool {
        let Some(volume) = volume else { return true };
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let done = match plan::disposal(&volume) {
            Disposal::Keep => return true,
            Disposal::LetGo => self.let_go(&volume, name).await,
            Disposal::Remove => self.remove(&volume, name).await,
        };
        match done {
            Ok(()) => {
                tracing::info!(volume = name, "a local volume is gone");
                true
            }
            Err(error) => {
                tracing::warn!(
                    volume = name,
                    error = error_chain(&error),
                    "cannot delete a local volume"
                );
                let about = reference(&volume);
                self.events
                    .object(about, Severity::Warning, "VolumeFailedDelete", error_chain(&error));
                false
            }
        }
    }

    async fn remove(&self, volume: &PersistentVolume, name: &str) -> Result<(), Error> {
        let local = volume.spec.as_ref().and_then(|spec| spec.local.as_ref());
        let path = local.map(|local| local.path.as_str()).unwrap_or_default();
        let own = self.root.join(name);
        if Path::new(path) != own {
            return Err(Error::Foreign(path.to_owned(), own.display().to_string()));
        }
        let (root, directory) = (self.root.clone(), name.to_owned());
        tokio::task::spawn_blocking(move || directory::remove(&root, &directory)).await??;
        self.let_go(volume, name).await?;
        let preconditions = Preconditions {
            uid: volume.metadata.uid.clone(),
            resource_version: None,
        };
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let deleted = api
            .delete(name, &DeleteParams::default().preconditions(preconditions))
            .await;
        unless_gone(deleted.map(drop)).map_err(|error| Error::Delete(name.to_owned(), error))
    }

    async fn let_go(&self, volume: &PersistentVolume, name: &str) -> Result<(), Error> {
        let mut finalizers = volume.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|there| there != PROVISIONER_FINALIZER);
        if volume.metadata.finalizers.as_ref() == Some(&finalizers) {
            return Ok(());
        }
        let patch = json!({"metadata": {
            "uid": volume.metadata.uid,
            "resourceVersion": volume.metadata.resource_version,
            "finalizers": finalizers,
        }});
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let patched = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        unless_gone(patched.map(drop)).map_err(|error| Error::Finalizer(name.to_owned(), error))
    }
}

fn unless_gone(result: kube::Result<()>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other,
    }
}

fn reference(volume: &PersistentVolume) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("PersistentVolume".into()),
        name: volume.metadata.name.clone(),
        uid: volume.metadata.uid.clone(),
        resource_version: volume.metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}
