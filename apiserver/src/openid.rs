//! What others need to verify service-account tokens without asking: OpenID Connect's discovery document and the public keys.

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use serde_json::json;

use crate::body::Body;
use crate::config::Config;

const CONFIGURATION: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/openid/v1/jwks";

/// The two documents.
#[derive(Debug)]
pub(crate) struct OpenId {
    configuration: Bytes,
    keys: Bytes,
}

impl OpenId {
    pub(crate) fn new(config: &Config) -> Self {
        let address = std::net::SocketAddr::new(config.advertise_address, config.advertise_port);
        let configuration = json!({
            "issuer": config.service_account_issuer,
            "jwks_uri": format!("https://{address}{KEYS}"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        });
        let keys = json!({"keys": [config.service_account_key.jwk()]});
        Self {
            configuration: configuration.to_string().into(),
            keys: keys.to_string().into(),
        }
    }

    /// The document at a path.
    pub(crate) fn answer(&self, path: &str) -> Option<Response<Body>> {
        let (kind, document) = match path {
            CONFIGURATION => ("application/json", &self.configuration),
            KEYS => ("application/jwk-set+json", &self.keys),
            _ => return None,
        };
        let mut response = Response::new(document.clone().into());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
        Some(response)
    }
}
