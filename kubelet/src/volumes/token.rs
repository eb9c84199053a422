//! Bound service account tokens: asked of the API server, renewed when four fifths of their life are over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use serde_json::json;
use skiff_api::k8s_openapi::api::authentication::v1::TokenRequest;
use skiff_api::k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use tokio::time::Instant;

use super::Error;
use crate::backoff;
use crate::pod;

/// Upstream renews after a day, however long a token lives.
const MAX_AGE: i64 = 24 * 3600;
/// When a renewal that failed is tried again.
const RETRY: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    uid: String,
    audience: String,
    seconds: i64,
}

#[derive(Clone)]
struct Token {
    text: String,
    /// By the steady clock: this node's idea of the time may be wrong, or be set right.
    renew: Instant,
}

/// All tokens of this node's pods.
#[derive(Clone)]
pub(crate) struct Tokens {
    client: kube::Client,
    known: Arc<Mutex<BTreeMap<Key, Token>>>,
}

/// Tokens must not reach logs at any verbosity.
impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens")
            .field("count", &self.known.lock().len())
            .finish_non_exhaustive()
    }
}

impl Tokens {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self {
            client,
            known: Arc::default(),
        }
    }

    /// A token that is good for a while yet.
    pub(super) async fn get(&self, pod: &Pod, projection: &ServiceAccountTokenProjection) -> Result<String, Error> {
        let audience = projection.audience.clone().unwrap_or_default();
        let seconds = projection.expiration_seconds.unwrap_or(3600);
        let key = Key {
            uid: pod::uid(pod).into(),
            audience,
            seconds,
        };
        let known = self.known.lock().get(&key).cloned();
        if let Some(token) = known.as_ref().filter(|token| token.renew > Instant::now()) {
            return Ok(token.text.clone());
        }
        match self.request(pod, &key).await {
            Ok(token) => {
                self.known.lock().insert(key, token.clone());
                Ok(token.text)
            }
            // The old one is still good: the API server may be away for a while.
            Err(error) => match known {
                Some(mut token) => {
                    token.renew = Instant::now() + RETRY;
                    self.known.lock().insert(key, token.clone());
                    Ok(token.text)
                }
                None => Err(error),
            },
        }
    }

    async fn request(&self, pod: &Pod, key: &Key) -> Result<Token, Error> {
        let account = pod::spec(pod).service_account_name.as_deref().unwrap_or("default");
        let failed = |source| Error::Token {
            account: format!("{}/{account}", pod::namespace(pod)),
            source,
        };
        let audiences: Vec<&str> = if key.audience.is_empty() {
            Vec::new()
        } else {
            vec![&key.audience]
        };
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
            "spec": {
                "audiences": audiences, "expirationSeconds": key.seconds,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod::name(pod), "uid": pod::uid(pod)},
            },
        });
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), pod::namespace(pod));
        let answer: TokenRequest = api
            .create_subresource("token", account, &PostParams::default(), &body)
            .await
            .map_err(failed)?;
        let status = answer.status.unwrap_or_default();
        // What the server has granted, which may be less than what was asked for.
        let granted = answer.spec.and_then(|spec| spec.expiration_seconds);
        let life = granted.unwrap_or(key.seconds).clamp(0, MAX_AGE);
        Ok(Token {
            text: status.token.unwrap_or_default(),
            renew: Instant::now() + Duration::from_secs(life.unsigned_abs()) * 4 / 5,
        })
    }

    pub(super) fn refresh_at(&self, uid: &str) -> Option<Timestamp> {
        let known = self.known.lock();
        let renewals = known
            .iter()
            .filter(|(key, _)| key.uid == uid)
            .map(|(_, token)| token.renew);
        let left = renewals.min()?.saturating_duration_since(Instant::now());
        Some(backoff::after(Timestamp::now(), left))
    }

    pub(super) fn forget(&self, uid: &str) {
        self.known.lock().retain(|key, _| key.uid != uid);
    }
}
