//! Requests about objects of any kind.

use kube::Client;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use skiff_api::meta;
use skiff_daemon::error_chain;

use super::apply_set::PART_OF;
use super::merge;

/// Who writes, as `managedFields` show it.
const MANAGER: &str = "fieldManager=skiff-manifests";
/// A field that no kind has is a mistake in the file.
const STRICT: &str = "fieldValidation=Strict";

/// A request that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub(super) struct Error {
    step: String,
    #[source]
    source: Box<kube::Error>,
}

impl Error {
    pub(super) fn discover(source: kube::Error) -> Self {
        Self {
            step: "ask the server which kinds it has".to_owned(),
            source: Box::new(source),
        }
    }

    /// The server's own words, where it answered.
    pub(super) fn message(&self) -> String {
        match &*self.source {
            kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
            _ => error_chain(self),
        }
    }

    fn code(&self) -> u16 {
        match &*self.source {
            kube::Error::Api(status) => status.code,
            _ => 0,
        }
    }
}

/// Asks the server.
pub(super) struct Requests {
    client: Client,
}

impl Requests {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) async fn get(&self, path: &str) -> Result<Option<Value>, Error> {
        match self.send("GET", path, "application/json", &Value::Null).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.code() == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The objects of a set in a collection.
    pub(super) async fn list(&self, path: &str, set: &str) -> Result<Vec<Value>, Error> {
        let path = format!("{path}?labelSelector={PART_OF}%3D{set}");
        let mut list: Value = self.send("GET", &path, "application/json", &Value::Null).await?;
        Ok(match list["items"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        })
    }

    /// Creates an object, with what it says noted on it.
    pub(super) async fn create(&self, collection: &str, object: &Value) -> Result<Value, Error> {
        let path = format!("{collection}?{MANAGER}&{STRICT}");
        self.send("POST", &path, "application/json", &merge::noted(object))
            .await
    }

    pub(super) async fn patch(&self, path: &str, patch: &Value) -> Result<Value, Error> {
        let path = format!("{path}?{MANAGER}&{STRICT}");
        self.send("PATCH", &path, "application/merge-patch+json", patch).await
    }

    /// Deletes the object if it is still this one.
    pub(super) async fn delete(&self, path: &str, object: &Value) -> Result<(), Error> {
        let options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background",
            "preconditions": {"uid": meta::uid(object)},
        });
        let deleted = self
            .send::<serde::de::IgnoredAny>("DELETE", path, "application/json", &options)
            .await;
        match deleted {
            Err(error) if !matches!(error.code(), 404 | 409) => Err(error),
            _ => Ok(()),
        }
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: &'static str,
        path: &str,
        content_type: &str,
        body: &Value,
    ) -> Result<T, Error> {
        let failed = |source: kube::Error| Error {
            step: format!("{method} {path}"),
            source: Box::new(source),
        };
        let bytes = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, content_type)
            .body(bytes)
            .map_err(|error| failed(kube::Error::HttpError(error)))?;
        self.client.request(request).await.map_err(failed)
    }
}
