//! Every write of the manager goes through here: create, patch, delete; never a PUT of a typed object.

use http::Request as HttpRequest;
use kube::Client;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{Request, Status};
use serde::de::DeserializeOwned;
use serde_json::Value;
use skiff_daemon::error_chain;

use crate::queue::Retriable;
use crate::view::Key;

/// Upstream's field manager, so that `managedFields` read the same.
const FIELD_MANAGER: &str = "kube-controller-manager";

/// A request to the API server that failed.
#[derive(Debug, thiserror::Error)]
#[error("{verb} {resource} {key}")]
pub(crate) struct Error {
    verb: &'static str,
    resource: String,
    key: Key,
    #[source]
    source: Box<kube::Error>,
}

/// Which kind of merge a patch asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Merge {
    /// RFC 7396: lists are replaced.
    Json,
    /// Lists are merged by their keys.
    Strategic,
}

/// The writing half of the API client.
#[derive(Clone)]
pub(crate) struct Writer {
    client: Client,
}

// === impl Error ===

impl Error {
    pub(crate) fn status(&self) -> Option<&Status> {
        match &*self.source {
            kube::Error::Api(status) => Some(status),
            _ => None,
        }
    }

    fn has_reason(&self, reason: &str) -> bool {
        self.status().is_some_and(|status| status.reason == reason)
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.status().is_some_and(|status| status.code == 404)
    }

    pub(crate) fn is_conflict(&self) -> bool {
        self.has_reason("Conflict")
    }

    pub(crate) fn is_already_exists(&self) -> bool {
        self.has_reason("AlreadyExists")
    }

    pub(crate) fn is_invalid(&self) -> bool {
        self.has_reason("Invalid")
    }

    /// Nothing can be created there any more: the namespace goes.
    pub(crate) fn is_namespace_terminating(&self) -> bool {
        let causes = self
            .status()
            .and_then(|status| status.details.as_ref())
            .map(|details| &details.causes);
        causes.is_some_and(|causes| causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
    }

    /// What upstream's `%v` of the error says: the server's own words where it answered.
    pub(crate) fn message(&self) -> String {
        match self.status() {
            Some(status) if !status.message.is_empty() => status.message.clone(),
            _ => error_chain(self),
        }
    }
}

impl Retriable for Error {
    fn is_expected(&self) -> bool {
        self.is_conflict() || self.is_not_found() || self.is_already_exists() || self.is_namespace_terminating()
    }
}

// === impl Writer ===

impl Writer {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Reads the object from the server, past every cache.
    pub(crate) async fn get<K: Object>(&self, key: &Key) -> Result<Option<K>, Error> {
        let request = at::<K>(key).get(&key.name, &kube::api::GetParams::default());
        match self.send::<K, K>("get", key, request).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lists the objects of a namespace from the server, past every cache.
    pub(crate) async fn list<K: Object + Clone>(&self, namespace: &str) -> Result<Vec<K>, Error> {
        let key = Key::new(namespace, "");
        let request = at::<K>(&key).list(&kube::api::ListParams::default());
        let list: kube::core::ObjectList<K> = self.send::<K, _>("list", &key, request).await?;
        Ok(list.items)
    }

    pub(crate) async fn create<K: Object>(&self, key: &Key, body: &Value) -> Result<K, Error> {
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PostParams::default()
        };
        let request = at::<K>(key).create(&params, body.to_string().into_bytes());
        self.send::<K, K>("create", key, request).await
    }

    /// Creates an object and reads no more of the answer than its name: once the server has said yes, nothing in the answer
    /// may turn that into a failure and so into a second object.
    pub(crate) async fn create_one_of<K: Object>(&self, namespace: &str, body: &Value) -> Result<String, Error> {
        let key = Key::new(namespace, "");
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PostParams::default()
        };
        let request = at::<K>(&key).create(&params, body.to_string().into_bytes());
        let answer: Value = self.send::<K, Value>("create", &key, request).await?;
        Ok(answer["metadata"]["name"].as_str().unwrap_or_default().to_owned())
    }

    pub(crate) async fn patch<K: Object>(&self, key: &Key, merge: Merge, body: &Value) -> Result<K, Error> {
        let params = patch_params();
        let request = match merge {
            Merge::Json => at::<K>(key).patch(&key.name, &params, &Patch::Merge(body)),
            Merge::Strategic => at::<K>(key).patch(&key.name, &params, &Patch::Strategic(body)),
        };
        self.send::<K, K>("patch", key, request).await
    }

    pub(crate) async fn patch_status<K: Object>(&self, key: &Key, merge: Merge, body: &Value) -> Result<K, Error> {
        let params = patch_params();
        let request = match merge {
            Merge::Json => at::<K>(key).patch_subresource("status", &key.name, &params, &Patch::Merge(body)),
            Merge::Strategic => at::<K>(key).patch_subresource("status", &key.name, &params, &Patch::Strategic(body)),
        };
        self.send::<K, K>("patch status of", key, request).await
    }

    /// Merges a patch into an object through another of its subresources.
    pub(crate) async fn patch_part<K: Object>(&self, part: &'static str, key: &Key, body: &Value) -> Result<K, Error> {
        let request = at::<K>(key).patch_subresource(part, &key.name, &patch_params(), &Patch::Merge(body));
        self.send::<K, K>("patch a part of", key, request).await
    }

    /// Deletes the object if it is still the one with this uid.
    pub(crate) async fn delete<K: Object>(&self, key: &Key, uid: &str, params: DeleteParams) -> Result<(), Error> {
        let preconditions = Preconditions {
            uid: Some(uid.to_owned()),
            ..params.preconditions.clone().unwrap_or_default()
        };
        let params = params.preconditions(preconditions);
        let request = at::<K>(key).delete(&key.name, &params);
        let request = request.map_err(|error| failed::<K>("delete", key, kube::Error::BuildRequest(error)))?;
        // The answer is the object or a Status; success is all that matters.
        let answer = self.client.request::<serde::de::IgnoredAny>(request).await;
        answer.map(drop).map_err(|error| failed::<K>("delete", key, error))
    }

    async fn send<K: Object, T: DeserializeOwned>(
        &self,
        verb: &'static str,
        key: &Key,
        request: Result<HttpRequest<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<T, Error> {
        let request = request.map_err(|error| failed::<K>(verb, key, kube::Error::BuildRequest(error)))?;
        self.client
            .request(request)
            .await
            .map_err(|error| failed::<K>(verb, key, error))
    }
}

/// A kind with a fixed path.
pub(crate) trait Object: kube::Resource<DynamicType = ()> + DeserializeOwned {}
impl<K: kube::Resource<DynamicType = ()> + DeserializeOwned> Object for K {}

fn at<K: Object>(key: &Key) -> Request {
    Request::new(K::url_path(&(), (!key.namespace.is_empty()).then_some(&*key.namespace)))
}

fn patch_params() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PatchParams::default()
    }
}

fn failed<K: Object>(verb: &'static str, key: &Key, source: kube::Error) -> Error {
    Error {
        verb,
        resource: K::plural(&()).into_owned(),
        key: key.clone(),
        source: Box::new(source),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An error as the API server would answer it.
    pub(crate) fn api_error(code: u16, reason: &str, message: &str) -> Error {
        let status = Status {
            code,
            reason: reason.into(),
            message: message.into(),
            ..Status::failure("", "")
        };
        failed::<crate::view::Pod>("create", &Key::new("ns", "p"), kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn reasons_are_told_apart() {
        assert!(api_error(409, "Conflict", "").is_conflict());
        assert!(!api_error(409, "AlreadyExists", "").is_conflict());
        assert!(api_error(404, "NotFound", "").is_expected());
        assert!(!api_error(403, "Forbidden", "").is_expected());
        assert_eq!(
            api_error(403, "Forbidden", "exceeded quota").message(),
            "exceeded quota"
        );
    }
}
