//! Who asks, and whether they may: certificates, TokenReview, SubjectAccessReview, with short memories.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use http::{Method, Request, StatusCode, header};
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use skiff_api::k8s_openapi::api::authentication::v1::TokenReview;
use skiff_api::k8s_openapi::api::authorization::v1::SubjectAccessReview;
use skiff_daemon::error_chain;
use tokio::time::Instant;

use super::Refusal;
use crate::config::KubeletConfiguration;

/// Answers remembered at most; then the memory starts anew.
const REMEMBERED: usize = 4096;

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) groups: Vec<String>,
    /// What else the API server said of who holds the token, by name.
    pub(super) extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Whom a certificate names: as every user that is known, a member of upstream's group for those.
    pub(super) fn certified(name: String, mut groups: Vec<String>) -> Self {
        const AUTHENTICATED: &str = "system:authenticated";
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.into());
        }
        Self {
            name,
            groups,
            ..Self::default()
        }
    }
}

/// Answers, each with the time until which it holds.
type Memory<K, V> = Mutex<HashMap<K, (Instant, V)>>;

/// Decides on requests.
pub(super) struct Access {
    client: kube::Client,
    node: String,
    tokens: bool,
    anonymous: bool,
    always: bool,
    token_ttl: Duration,
    allowed_ttl: Duration,
    refused_ttl: Duration,
    known_tokens: Memory<[u8; 32], Option<User>>,
    known_rights: Memory<(User, &'static str, &'static str), bool>,
}

impl Access {
    pub(super) fn new(client: kube::Client, config: &KubeletConfiguration, node: &str) -> Self {
        Self {
            client,
            node: node.to_owned(),
            tokens: config.authentication.webhook.enabled,
            anonymous: config.authentication.anonymous.enabled,
            always: config.authorization.mode == "AlwaysAllow",
            token_ttl: config.authentication.webhook.cache_ttl.0,
            allowed_ttl: config.authorization.webhook.cache_authorized_ttl.0,
            refused_ttl: config.authorization.webhook.cache_unauthorized_ttl.0,
            known_tokens: Mutex::default(),
            known_rights: Mutex::default(),
        }
    }

    /// Lets the request pass, or says why not.
    pub(super) async fn check<B>(&self, request: &Request<B>, peer: Option<User>, path: &str) -> Result<(), Refusal> {
        let user = match peer {
            Some(user) => user,
            None => self.authenticate(request).await?,
        };
        if self.always {
            return Ok(());
        }
        let verb = verb(request.method());
        let mut refused = String::new();
        for subresource in subresources(path) {
            match self.allowed(&user, subresource, verb).await {
                Ok(true) => return Ok(()),
                Ok(false) => refused = (*subresource).to_owned(),
                Err(error) => {
                    let text = format!("Authorization error (user={}, verb={verb}): {error}", user.name);
                    return Err(Refusal::internal(text));
                }
            }
        }
        let text = format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{refused}])",
            user.name
        );
        Err(Refusal::new(StatusCode::FORBIDDEN, text))
    }

    async fn authenticate<B>(&self, request: &Request<B>) -> Result<User, Refusal> {
        let unauthorized = || Refusal::new(StatusCode::UNAUTHORIZED, "Unauthorized");
        let value = request
            .headers()
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let token = value
            .and_then(|value| value.strip_prefix("Bearer "))
            .map(str::trim)
            .filter(|t| !t.is_empty());
        match token {
            Some(token) if self.tokens => match self.review(token).await {
                Ok(Some(user)) => Ok(user),
                Ok(None) => Err(unauthorized()),
                Err(error) => {
                    tracing::warn!(error, "cannot have a token reviewed");
                    Err(unauthorized())
                }
            },
            None if self.anonymous => Ok(User {
                name: "system:anonymous".into(),
                groups: vec!["system:unauthenticated".into()],
                ..User::default()
            }),
            _ => Err(unauthorized()),
        }
    }

    async fn review(&self, token: &str) -> Result<Option<User>, String> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let now = Instant::now();
        if let Some((until, user)) = self.known_tokens.lock().get(&key)
            && *until > now
        {
            return Ok(user.clone());
        }
        let body = json!({"metadata": {}, "spec": {"token": token}});
        let review: TokenReview = serde_json::from_value(body).map_err(|error| error.to_string())?;
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let review = api
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| error_chain(&error))?;
        let status = review.status.unwrap_or_default();
        let user = status
            .user
            .filter(|_| status.authenticated == Some(true))
            .map(|user| User {
                name: user.username.unwrap_or_default(),
                uid: user.uid.unwrap_or_default(),
                groups: user.groups.unwrap_or_default(),
                extra: user.extra.unwrap_or_default(),
            });
        let ttl = if user.is_some() {
            self.token_ttl
        } else {
            self.token_ttl.min(Duration::from_secs(10))
        };
        remember(&mut self.known_tokens.lock(), key, (now + ttl, user.clone()));
        Ok(user)
    }

    async fn allowed(&self, user: &User, subresource: &'static str, verb: &'static str) -> Result<bool, String> {
        let key = (user.clone(), verb, subresource);
        let now = Instant::now();
        if let Some((until, allowed)) = self.known_rights.lock().get(&key)
            && *until > now
        {
            return Ok(*allowed);
        }
        let body = json!({
            "metadata": {},
            "spec": {
                "user": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra,
                "resourceAttributes": {
                    "verb": verb, "version": "v1", "resource": "nodes", "subresource": subresource, "name": self.node,
                },
            },
        });
        let review: SubjectAccessReview = serde_json::from_value(body).map_err(|error| error.to_string())?;
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let review = api
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| error_chain(&error))?;
        let allowed = review.status.is_some_and(|status| status.allowed);
        let ttl = if allowed { self.allowed_ttl } else { self.refused_ttl };
        remember(&mut self.known_rights.lock(), key, (now + ttl, allowed));
        Ok(allowed)
    }
}

fn remember<K: std::hash::Hash + Eq, V>(map: &mut HashMap<K, V>, key: K, value: V) {
    if map.len() >= REMEMBERED {
        map.clear();
    }
    map.insert(key, value);
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// The subresources of the node of which one must be allowed, the narrowest first.
fn subresources(path: &str) -> &'static [&'static str] {
    match path.trim_matches('/').split('/').next().unwrap_or_default() {
        "metrics" => &["metrics"],
        "stats" => &["stats"],
        "logs" => &["log"],
        "spec" => &["spec"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        "pods" | "runningpods" => &["pods", "proxy"],
        _ => &["proxy"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificates_user_is_authenticated() {
        let groups = |given: &[&str]| {
            let given = given.iter().map(|group| (*group).to_owned()).collect();
            User::certified("u".into(), given).groups
        };
        assert_eq!(groups(&["g"]), ["g", "system:authenticated"]);
        assert_eq!(groups(&["system:authenticated"]), ["system:authenticated"]);
    }

    #[test]
    fn paths_ask_for_their_subresource() {
        let cases: [(&str, &[&str]); 5] = [
            ("/metrics/resource", &["metrics"]),
            ("/exec/ns/p/c", &["proxy"]),
            ("/healthz", &["healthz", "proxy"]),
            ("/", &["proxy"]),
            ("/containerLogs/a/b/c", &["proxy"]),
        ];
        for (path, wanted) in cases {
            assert_eq!(subresources(path), wanted, "{path}");
        }
        assert_eq!([verb(&Method::POST), verb(&Method::GET)], ["create", "get"]);
    }
}
