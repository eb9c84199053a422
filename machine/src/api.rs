//! The API server as `init`, `join` and their companions ask it: whole objects, by their paths, each call bounded in time.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Limited};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

use crate::Error;
use crate::token::Token;

/// How long one answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Twice the size that an object may have, in bytes.
const LARGEST: usize = 2 << 20;

/// A client of one API server.
#[derive(Clone)]
pub struct Client {
    client: kube::Client,
    server: String,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// As the kubeconfig at `path` says.
    ///
    /// # Errors
    /// When it cannot be read, or names nothing usable.
    pub async fn from_file(path: &Path) -> Result<Self, Error> {
        Self::build(config(path).await?)
    }

    /// As the user of the kubeconfig at `path`, but at `server`.
    ///
    /// # Errors
    /// When it cannot be read, or there is no such URL.
    pub async fn from_file_at(path: &Path, server: &str) -> Result<Self, Error> {
        let mut config = config(path).await?;
        let url = server.parse();
        config.cluster_url = url.map_err(|_| Error::ServerUrl { url: server.to_owned() })?;
        Self::build(config)
    }

    /// As the holder of a bootstrap token; `ca_pem` says whom to trust, and without one nobody is asked who they are: what then comes
    /// back proves nothing.
    ///
    /// # Errors
    /// When there is no such URL.
    pub fn with_token(server: &str, ca_pem: Option<&str>, token: Option<&Token>) -> Result<Self, Error> {
        let url = server
            .parse()
            .map_err(|_| Error::ServerUrl { url: server.to_owned() })?;
        let mut config = kube::Config::new(url);
        match ca_pem {
            None => config.accept_invalid_certs = true,
            Some(pem) => config.root_cert = Some(certificates(pem)),
        }
        if let Some(token) = token {
            config.auth_info.token = Some(token.to_string().into());
        }
        Self::build(config)
    }

    fn build(mut config: kube::Config) -> Result<Self, Error> {
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        config.connect_timeout = Some(ANSWER_WITHIN);
        config.read_timeout = Some(ANSWER_WITHIN);
        config.write_timeout = Some(ANSWER_WITHIN);
        // Whoever asks decides how often.
        config.default_retry = false;
        let client = kube::Client::try_from(config).map_err(Error::api("make a client", &server))?;
        Ok(Self { client, server })
    }

    /// `https://host:port`.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The text at a path.
    ///
    /// # Errors
    /// When there is no answer, or another one than success.
    pub async fn text(&self, path: &str) -> Result<String, Error> {
        self.call(Method::GET, path, None)
            .await
            .map_err(Error::api(format!("GET {path}"), &self.server))
    }

    /// An object or a list; `None` when there is none.
    ///
    /// # Errors
    /// When there is no answer, or it is refused.
    pub async fn get(&self, path: &str) -> Result<Option<Value>, Error> {
        match self.call(Method::GET, path, None).await {
            Ok(text) => self.decode(path, &text).map(Some),
            Err(error) if code(&error) == Some(404) => Ok(None),
            Err(error) => Err(Error::api(format!("GET {path}"), &self.server)(error)),
        }
    }

    /// Makes an object of a collection; with the same name it becomes what is given, as far as that goes.
    ///
    /// # Errors
    /// When there is no answer, or it is refused.
    pub async fn apply(&self, collection: &str, object: &Value) -> Result<(), Error> {
        match self.call(Method::POST, collection, Some(object)).await {
            Ok(_) => Ok(()),
            Err(error) if code(&error) == Some(409) => {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                self.merge(&format!("{collection}/{name}"), object).await
            }
            Err(error) => Err(Error::api(format!("POST {collection}"), &self.server)(error)),
        }
    }

    /// Makes an object.
    ///
    /// # Errors
    /// When there is no answer, or it is refused.
    pub async fn create(&self, collection: &str, object: &Value) -> Result<Value, Error> {
        let text = self.call(Method::POST, collection, Some(object)).await;
        let text = text.map_err(Error::api(format!("POST {collection}"), &self.server))?;
        self.decode(collection, &text)
    }

    /// Lays a merge patch over an object.
    ///
    /// # Errors
    /// When there is no answer, or it is refused.
    pub async fn merge(&self, path: &str, patch: &Value) -> Result<(), Error> {
        let patched = self.call(Method::PATCH, path, Some(patch)).await;
        patched
            .map(drop)
            .map_err(Error::api(format!("PATCH {path}"), &self.server))
    }

    /// Removes an object. Returns whether it was there.
    ///
    /// # Errors
    /// When there is no answer, or it is refused.
    pub async fn delete(&self, path: &str) -> Result<bool, Error> {
        match self.call(Method::DELETE, path, Some(&json!({}))).await {
            Ok(_) => Ok(true),
            Err(error) if code(&error) == Some(404) => Ok(false),
            Err(error) => Err(Error::api(format!("DELETE {path}"), &self.server)(error)),
        }
    }

    /// A text and the time that the server says it is, for comparing clocks.
    ///
    /// # Errors
    /// When there is no answer, or it is refused.
    pub(crate) async fn text_and_date(&self, path: &str) -> Result<(String, Option<String>), Error> {
        let failed = |error| Error::api(format!("GET {path}"), &self.server)(error);
        let request = Request::get(path).body(kube::client::Body::empty());
        let request = request.map_err(|error| failed(kube::Error::HttpError(error)))?;
        let response = self.client.send(request).await.map_err(failed)?;
        let date = response.headers().get(http::header::DATE);
        let date = date.and_then(|date| date.to_str().ok()).map(str::to_owned);
        if response.status().is_success() {
            // Nobody knows yet who answers: what is longer than any ConfigMap is not read.
            let body = Limited::new(response.into_body(), LARGEST).collect().await;
            let bytes = body.map(|body| body.to_bytes()).unwrap_or_default();
            return Ok((String::from_utf8_lossy(&bytes).into_owned(), date));
        }
        Err(Error::Answer {
            what: format!("GET {path}"),
            server: self.server.clone(),
            status: response.status().as_u16(),
        })
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<String, kube::Error> {
        let kind = if method == Method::PATCH {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, kind);
        let request = request.body(body).map_err(kube::Error::HttpError)?;
        self.client.request_text(request).await
    }

    fn decode(&self, path: &str, text: &str) -> Result<Value, Error> {
        serde_json::from_str(text).map_err(|_| Error::NotAnApiServer {
            path: path.to_owned(),
            server: self.server.clone(),
        })
    }
}

async fn config(path: &Path) -> Result<kube::Config, Error> {
    let failed = |source| Error::Kubeconfig {
        path: path.to_owned(),
        source: Box::new(source),
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    config.map_err(failed)
}

/// The HTTP status of an answer that the server gave.
pub(crate) fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// The certificates in a PEM text, in DER.
pub(crate) fn certificates(pem: &str) -> Vec<Vec<u8>> {
    let blocks = pem.split("-----BEGIN CERTIFICATE-----").skip(1);
    blocks
        .filter_map(|block| {
            let encoded = block.split("-----END").next()?;
            let encoded: String = encoded.chars().filter(|c| !c.is_whitespace()).collect();
            STANDARD.decode(encoded).ok()
        })
        .collect()
}
