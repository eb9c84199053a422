//! What the collector does to objects of any kind, knowing only their metadata.

use std::sync::Arc;

use kube::Client;
use kube::api::{DeleteParams, GetParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::{ObjectMeta, PartialObjectMeta, Request};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::discovery::Kind;
use crate::queue::Retriable;
use crate::view::Key;

/// A request about one object that failed.
#[derive(Debug, thiserror::Error)]
#[error("{verb} {resource} {key}")]
pub(super) struct Error {
    verb: &'static str,
    resource: String,
    key: Key,
    #[source]
    source: Box<kube::Error>,
}

impl Error {
    fn code(&self) -> u16 {
        if let kube::Error::Api(status) = &*self.source {
            status.code
        } else {
            0
        }
    }
}

impl Retriable for Error {
    fn is_expected(&self) -> bool {
        matches!(self.code(), 404 | 409)
    }
}

/// One object of a kind.
pub(super) struct Target<'a> {
    pub(super) client: &'a Client,
    pub(super) kind: &'a Arc<Kind>,
    pub(super) key: &'a Key,
}

impl Target<'_> {
    /// The object's metadata as it is now, if it exists.
    pub(super) async fn metadata(&self) -> Result<Option<ObjectMeta>, Error> {
        let request = self.request().get_metadata(&self.key.name, &GetParams::default());
        let request = request.map_err(|error| self.failed("get", kube::Error::BuildRequest(error)))?;
        match self.client.request::<PartialObjectMeta>(request).await {
            Ok(object) => Ok(Some(object.metadata)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(self.failed("get", error)),
        }
    }

    /// Changes the metadata, if the object is still at `version`, and returns what they are then. An object gone is no error.
    pub(super) async fn patch_metadata(
        &self,
        version: &ObjectMeta,
        mut metadata: Value,
    ) -> Result<Option<ObjectMeta>, Error> {
        metadata["uid"] = json!(version.uid);
        metadata["resourceVersion"] = json!(version.resource_version);
        let patch = json!({"metadata": metadata});
        let request = self
            .request()
            .patch_metadata(&self.key.name, &PatchParams::default(), &Patch::Merge(&patch));
        let request = request.map_err(|error| self.failed("patch", kube::Error::BuildRequest(error)))?;
        match self.client.request::<PartialObjectMeta>(request).await {
            Ok(object) => Ok(Some(object.metadata)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(self.failed("patch", error)),
        }
    }

    /// Deletes the object, if it is still at `version`: somebody may have given it a living owner. An object gone is no error.
    pub(super) async fn delete(&self, version: &ObjectMeta, policy: PropagationPolicy) -> Result<(), Error> {
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions {
                uid: version.uid.clone(),
                resource_version: version.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        let request = self.request().delete(&self.key.name, &params);
        let request = request.map_err(|error| self.failed("delete", kube::Error::BuildRequest(error)))?;
        match self.client.request::<IgnoredAny>(request).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop).map_err(|error| self.failed("delete", error)),
        }
    }

    fn request(&self) -> Request {
        Request::new(self.kind.path(&self.key.namespace))
    }

    fn failed(&self, verb: &'static str, source: kube::Error) -> Error {
        Error {
            verb,
            resource: self.kind.plural.clone(),
            key: self.key.clone(),
            source: Box::new(source),
        }
    }
}
