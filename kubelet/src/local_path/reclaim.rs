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
    #[error("read PersistentVolume {0:?} again")]
    Read(String, #[source] kube::Error),
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
            Ok(()) => true,
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

    async fn remove(&self, seen: &PersistentVolume, name: &str) -> Result<(), Error> {
        let Some(volume) = &self.still_to_remove(seen, name).await? else {
            tracing::info!(
                volume = name,
                "a local volume is in use again, or its object is gone: its directory stays"
            );
            return Ok(());
        };
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
        unless_gone(deleted.map(drop)).map_err(|error| Error::Delete(name.to_owned(), error))?;
        tracing::info!(volume = name, "a local volume is gone");
        Ok(())
    }

    /// The volume as it is now, if it is still to be removed: what was seen may be old, and removed data does not come back.
    async fn still_to_remove(&self, seen: &PersistentVolume, name: &str) -> Result<Option<PersistentVolume>, Error> {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let found = api.get_opt(name).await;
        let found = found.map_err(|error| Error::Read(name.to_owned(), error))?;
        Ok(found.filter(|now| now.metadata.uid == seen.metadata.uid && plan::disposal(now) == Disposal::Remove))
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

#[cfg(test)]
mod tests {
    use kube::client::Body;
    use serde_json::Value;
    use skiff_api::volumes::{LOCAL_PATH, PROVISIONED_BY};

    use super::*;

    fn volume(uid: &str, phase: &str, path: &Path) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": "pvc-1", "uid": uid, "annotations": {PROVISIONED_BY: LOCAL_PATH}},
            "spec": {"persistentVolumeReclaimPolicy": "Delete", "local": {"path": path}},
            "status": {"phase": phase},
        })
    }

    /// A provisioner whose API server answers every request with this object, or that there is none.
    fn provisioner(root: &Path, now: Option<Value>) -> Provisioner {
        let (status, body) = match now {
            Some(now) => (200, now),
            None => (
                404,
                json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}),
            ),
        };
        let serve = move |_: http::Request<Body>| {
            let answer = http::Response::builder().status(status);
            let answer = answer.body(Body::from(body.to_string().into_bytes()));
            async { answer.map_err(std::io::Error::other) }
        };
        Provisioner {
            client: kube::Client::new(tower::service_fn(serve), "default"),
            node: "n1".to_owned(),
            root: root.to_owned(),
            events: crate::events::recorder("n1").0,
        }
    }

    /// The volume was seen Released; what it is by now counts.
    #[tokio::test]
    async fn a_directory_goes_only_if_its_volume_is_still_to_go() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("pvc-1");
        let cases = [
            ("bound again", Some(volume("a", "Bound", &path)), true),
            ("another of that name", Some(volume("b", "Released", &path)), true),
            ("gone", None, true),
            ("still released", Some(volume("a", "Released", &path)), false),
        ];
        for (what, now, stays) in cases {
            std::fs::create_dir_all(&path).unwrap();
            let seen = serde_json::from_value(volume("a", "Released", &path)).unwrap();
            let provisioner = provisioner(place.path(), now);
            assert!(provisioner.reclaim_one(Some(Arc::new(seen))).await, "{what}");
            assert_eq!(path.exists(), stays, "{what}");
        }
    }
}
