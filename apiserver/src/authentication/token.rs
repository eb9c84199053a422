//! Service-account tokens: JWTs signed by this server, bound to objects that must still exist.
//!
//! A signature is checked once and remembered; expiry and the bound objects are looked at on every request.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use skiff_api::meta;

use super::User;
use crate::cache::Cache;

/// Signatures remembered at most; beyond it all are forgotten.
const REMEMBERED: usize = 10_000;
/// Upstream's leeway in seconds: before a token's begin, since servers' clocks differ, and after the due end of what it is bound to.
const LEEWAY: i64 = 60;

/// Why a token is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a token of ours, tampered with, or expired.
    #[error("verify the token's signature")]
    Signature(#[source] jsonwebtoken::errors::Error),
    /// Not a token for this server.
    #[error("the token is for audiences {audiences:?}")]
    Audience {
        /// Whom it is for.
        audiences: Vec<String>,
    },
    /// It was good once.
    #[error("the token has expired")]
    Expired,
    /// Something that it is bound to is gone.
    #[error("the token is bound to {kind} {name}, which does not exist any more")]
    Unbound {
        /// Kind of what is gone.
        kind: &'static str,
        /// Its name.
        name: String,
    },
}

/// An object that a token is bound to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Its name.
    pub name: String,
    /// Its uid.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// Upstream's private claims.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Private {
    namespace: String,
    serviceaccount: Bound,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    warnafter: Option<i64>,
}

/// What a token says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: i64,
    iat: i64,
    nbf: i64,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    private: Private,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Audience {
    Many(Vec<String>),
    One(String),
}

/// What a token is wanted for.
#[derive(Debug, Clone, Default)]
pub struct Issued {
    /// Namespace of the service account.
    pub namespace: String,
    /// The service account.
    pub service_account: Bound,
    /// The pod that it is bound to.
    pub pod: Option<Bound>,
    /// The secret that it is bound to.
    pub secret: Option<Bound>,
    /// The node that it is bound to, or that its pod runs on.
    pub node: Option<Bound>,
    /// Whom it is for; this server when empty.
    pub audiences: Vec<String>,
    /// Seconds that it is good for.
    pub seconds: i64,
}

/// The caches that say whether what a token is bound to still exists.
#[derive(Debug)]
pub struct Lookup {
    /// Service accounts.
    pub service_accounts: Arc<Cache>,
    /// Pods.
    pub pods: Arc<Cache>,
    /// Secrets.
    pub secrets: Arc<Cache>,
    /// Nodes.
    pub nodes: Arc<Cache>,
}

struct Verified {
    claims: Claims,
    user: Arc<User>,
}

/// Issues tokens, and knows its own.
pub struct Tokens {
    issuer: String,
    header: Header,
    signing: EncodingKey,
    verifying: DecodingKey,
    remembered: RwLock<HashMap<Box<str>, Arc<Verified>>>,
    lookup: Lookup,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens")
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

impl Tokens {
    /// Signs with `key`, in the name of `issuer`.
    pub fn new(
        key: &skiff_pki::ServiceAccountKey,
        issuer: &str,
        lookup: Lookup,
    ) -> Result<Self, jsonwebtoken::errors::Error> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        header.kid = Some(key.key_id());
        Ok(Self {
            issuer: issuer.to_owned(),
            header,
            signing: EncodingKey::from_ec_pem(key.private_pem().as_bytes())?,
            verifying: DecodingKey::from_ec_pem(key.public_pem().as_bytes())?,
            remembered: RwLock::default(),
            lookup,
        })
    }

    /// Who issues.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Makes a token; returns it with the second at which it expires.
    pub fn issue(&self, wanted: Issued) -> Result<(String, Timestamp), jsonwebtoken::errors::Error> {
        let now = Timestamp::now();
        let audiences = if wanted.audiences.is_empty() {
            vec![self.issuer.clone()]
        } else {
            wanted.audiences
        };
        let expires = now.as_second() + wanted.seconds;
        let claims = Claims {
            iss: self.issuer.clone(),
            sub: username(&wanted.namespace, &wanted.service_account.name),
            aud: Audience::Many(audiences),
            exp: expires,
            iat: now.as_second(),
            nbf: now.as_second(),
            jti: meta::new_uid(),
            private: Private {
                namespace: wanted.namespace,
                serviceaccount: wanted.service_account,
                pod: wanted.pod,
                secret: wanted.secret,
                node: wanted.node,
                warnafter: None,
            },
        };
        let token = jsonwebtoken::encode(&self.header, &claims, &self.signing)?;
        Ok((token, Timestamp::from_second(expires).unwrap_or(now)))
    }

    /// Whom a token names, and for which of `audiences` (of this server, when empty) it is good.
    pub fn verify_for(&self, token: &str, audiences: &[String]) -> Result<(Arc<User>, Vec<String>), Error> {
        let known = self.remembered.read().get(token).cloned();
        let verified = match known {
            Some(verified) => verified,
            None => self.check_signature(token)?,
        };
        let claims = &verified.claims;
        let now = Timestamp::now().as_second();
        if now >= claims.exp || now + LEEWAY < claims.nbf {
            return Err(Error::Expired);
        }
        let good_for = self.good_for(&claims.aud, audiences)?;
        self.check_bound(&claims.private)?;
        Ok((Arc::clone(&verified.user), good_for))
    }

    fn check_signature(&self, token: &str) -> Result<Arc<Verified>, Error> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[&self.issuer]);
        validation.validate_aud = false;
        validation.validate_nbf = false;
        let claims: Claims = jsonwebtoken::decode(token, &self.verifying, &validation)
            .map_err(Error::Signature)?
            .claims;
        let user = Arc::new(user(&claims));
        let verified = Arc::new(Verified { claims, user });
        let mut remembered = self.remembered.write();
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(token.into(), Arc::clone(&verified));
        Ok(verified)
    }

    fn good_for(&self, own: &Audience, wanted: &[String]) -> Result<Vec<String>, Error> {
        let own = match own {
            Audience::Many(many) => many.as_slice(),
            Audience::One(one) => std::slice::from_ref(one),
        };
        let good: Vec<String> = if wanted.is_empty() {
            own.iter()
                .filter(|audience| **audience == self.issuer)
                .cloned()
                .collect()
        } else {
            wanted
                .iter()
                .filter(|audience| own.contains(audience))
                .cloned()
                .collect()
        };
        if good.is_empty() {
            return Err(Error::Audience {
                audiences: own.to_vec(),
            });
        }
        Ok(good)
    }

    /// Those of `wanted` that mean this server; all of its own when none is wanted.
    pub(super) fn own_audiences(&self, wanted: &[String]) -> Result<Vec<String>, Error> {
        self.good_for(&Audience::One(self.issuer.clone()), wanted)
    }

    fn check_bound(&self, private: &Private) -> Result<(), Error> {
        let namespace = &private.namespace;
        check(
            &self.lookup.service_accounts,
            "service account",
            namespace,
            &private.serviceaccount,
        )?;
        if let Some(pod) = &private.pod {
            check(&self.lookup.pods, "pod", namespace, pod)?;
        }
        if let Some(secret) = &private.secret {
            check(&self.lookup.secrets, "secret", namespace, secret)?;
        }
        // A pod's token names its node for information only.
        if let (Some(node), None) = (&private.node, &private.pod) {
            check(&self.lookup.nodes, "node", "", node)?;
        }
        Ok(())
    }
}

/// The user name of a service account.
pub fn username(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// The groups of all service accounts of a namespace.
pub fn service_account_groups(namespace: &str) -> [String; 2] {
    [
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
    ]
}

fn user(claims: &Claims) -> User {
    let private = &claims.private;
    let mut user = User::new(
        &username(&private.namespace, &private.serviceaccount.name),
        service_account_groups(&private.namespace),
    );
    user.uid.clone_from(&private.serviceaccount.uid);
    let mut say = |key: &str, value: &str| {
        user.extra
            .insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
    };
    say("credential-id", &format!("JTI={}", claims.jti));
    if let Some(pod) = &private.pod {
        say("pod-name", &pod.name);
        say("pod-uid", &pod.uid);
    }
    if let Some(node) = &private.node {
        say("node-name", &node.name);
        if !node.uid.is_empty() {
            say("node-uid", &node.uid);
        }
    }
    user
}

fn check(cache: &Cache, kind: &'static str, namespace: &str, bound: &Bound) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Head {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        #[serde(default)]
        uid: String,
        #[serde(default)]
        deletion_timestamp: Option<String>,
    }
    let unbound = || Error::Unbound {
        kind,
        name: bound.name.clone(),
    };
    let object = cache.get(namespace, &bound.name).ok_or_else(unbound)?;
    let head: Head = serde_json::from_slice(&object.bytes).map_err(|_| unbound())?;
    if head.metadata.uid != bound.uid {
        return Err(unbound());
    }
    let end = head.metadata.deletion_timestamp.as_deref().and_then(meta::parse_time);
    match end {
        Some(end) if end.as_second() + LEEWAY < Timestamp::now().as_second() => Err(unbound()),
        _ => Ok(()),
    }
}
