//! Bootstrap tokens: what machines come with that are to become nodes. Looked up in the watch cache; nothing is remembered beside
//! it, so that a token ends at the moment when its Secret does.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use skiff_api::bootstrap_tokens::{BootstrapSecret, NAMESPACE, USER_PREFIX};
use skiff_api::meta;
use skiff_pki::BootstrapToken;

use super::User;
use crate::cache::Cache;

/// Why a bootstrap token is refused; never holds a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// No Secret of its name, or one that is being deleted.
    #[error("there is no such bootstrap token")]
    Unknown,
    /// The Secret is not one of a token.
    #[error("the bootstrap token's Secret is incomplete or of another type")]
    Incomplete,
    /// Its secret half is another.
    #[error("the bootstrap token's secret does not match")]
    Secret,
    /// It was good once.
    #[error("the bootstrap token has expired")]
    Expired,
    /// It is for signing only.
    #[error("the bootstrap token is not enabled for authentication: usage-bootstrap-authentication is not \"true\"")]
    Usage,
    /// It would put its holder into groups outside of `system:bootstrappers:`.
    #[error("auth-extra-groups of the bootstrap token holds a group that does not begin with system:bootstrappers:")]
    Groups,
}

/// Knows the bootstrap tokens.
#[derive(Debug)]
pub(super) struct BootstrapTokens {
    pub(super) secrets: Arc<Cache>,
}

impl BootstrapTokens {
    /// Whom a token stands for.
    pub(super) fn verify(&self, token: &BootstrapToken) -> Result<User, Refused> {
        let secret = self.secrets.get(NAMESPACE, &token.secret_name());
        user_of(&secret.ok_or(Refused::Unknown)?.value(), token, Timestamp::now())
    }
}

/// Whom a token stands for, by its Secret.
fn user_of(secret: &Value, token: &BootstrapToken, now: Timestamp) -> Result<User, Refused> {
    if meta::deletion_timestamp(secret).is_some() {
        return Err(Refused::Unknown);
    }
    let known = BootstrapSecret::of(secret).ok_or(Refused::Incomplete)?;
    if !token.has_secret(known.secret.as_bytes()) {
        return Err(Refused::Secret);
    }
    if known.has_expired(now) {
        return Err(Refused::Expired);
    }
    if !known.authentication {
        return Err(Refused::Usage);
    }
    let groups = known.groups.ok_or(Refused::Groups)?;
    Ok(User::new(&format!("{USER_PREFIX}{}", known.id), groups))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skiff_api::defaults::base64;

    use super::*;

    #[test]
    fn a_token_is_good_for_what_its_secret_says() {
        let now = meta::parse_time("2026-01-01T00:00:00Z").unwrap();
        let plain = json!({
            "metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"},
            "type": "bootstrap.kubernetes.io/token",
            "data": {
                "token-id": base64(b"abcdef"),
                "token-secret": base64(b"0123456789abcdef"),
                "usage-bootstrap-authentication": base64(b"true"),
                "expiration": base64(b"2026-01-01T00:00:01Z"),
                "auth-extra-groups": base64(b"system:bootstrappers:a"),
            },
        });
        let token = BootstrapToken::parse("abcdef.0123456789abcdef").unwrap();
        let user = user_of(&plain, &token, now).unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert_eq!(
            user.groups,
            ["system:bootstrappers", "system:bootstrappers:a", "system:authenticated"]
        );

        let wrong = BootstrapToken::parse("abcdef.0123456789abcdee").unwrap();
        assert_eq!(user_of(&plain, &wrong, now), Err(Refused::Secret));
        let cases: [(&str, Value, Refused); 6] = [
            ("/type", json!("Opaque"), Refused::Incomplete),
            ("/metadata/name", json!("bootstrap-token-abcdeg"), Refused::Incomplete),
            (
                "/data/expiration",
                json!(base64(b"2026-01-01T00:00:00Z")),
                Refused::Expired,
            ),
            ("/data/expiration", json!(base64(b"soon")), Refused::Expired),
            (
                "/data/usage-bootstrap-authentication",
                json!(base64(b"false")),
                Refused::Usage,
            ),
            (
                "/data/auth-extra-groups",
                json!(base64(b"system:masters")),
                Refused::Groups,
            ),
        ];
        for (pointer, value, refused) in cases {
            let mut secret = plain.clone();
            *secret.pointer_mut(pointer).unwrap() = value;
            assert_eq!(user_of(&secret, &token, now), Err(refused), "{pointer}");
        }
        let mut leaving = plain;
        leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(user_of(&leaving, &token, now), Err(Refused::Unknown));
    }
}
