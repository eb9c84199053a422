//! Bootstrap tokens as they are kept: Secrets of type `bootstrap.kubernetes.io/token` in `kube-system`.

use std::fmt;

use jiff::Timestamp;
use serde_json::Value;

use crate::{defaults, meta};

/// The type of their Secrets.
pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
/// Where they are.
pub const NAMESPACE: &str = "kube-system";
/// What the names of their Secrets begin with; the token's id follows.
pub const NAME_PREFIX: &str = "bootstrap-token-";
/// What the name of the user begins with whom a token stands for; the token's id follows.
pub const USER_PREFIX: &str = "system:bootstrap:";
/// The group of all who come with a token.
pub const GROUP: &str = "system:bootstrappers";
/// The group of kubeadm's tokens: their holders may ask for a node's certificate.
pub const NODE_GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";

/// Where machines that join find the cluster's authority: a ConfigMap of this name in `kube-public`.
pub const CLUSTER_INFO: &str = "cluster-info";
/// The namespace of [`CLUSTER_INFO`].
pub const CLUSTER_INFO_NAMESPACE: &str = "kube-public";
/// The key of [`CLUSTER_INFO`] that holds a kubeconfig without credentials.
pub const KUBECONFIG: &str = "kubeconfig";
/// What the keys of [`CLUSTER_INFO`] begin with that hold signatures; the token's id follows.
pub const SIGNATURE_PREFIX: &str = "jws-kubeconfig-";

const ID: usize = 6;
const SECRET: usize = 16;

/// What the Secret of a token says.
#[derive(Clone, PartialEq, Eq)]
pub struct BootstrapSecret {
    /// The public half.
    pub id: String,
    /// The secret half: never for a log.
    pub secret: String,
    /// When it ends; `None` when it never does. What cannot be read has ended.
    pub expiration: Option<Timestamp>,
    /// Whether it may be used to authenticate.
    pub authentication: bool,
    /// Whether `cluster-info` is signed with it.
    pub signing: bool,
    /// The groups of whoever comes with it, [`GROUP`] among them; `None` when one of them is not allowed.
    pub groups: Option<Vec<String>>,
    /// What it is for.
    pub description: String,
}

impl BootstrapSecret {
    /// Reads a Secret; `None` when it is no token's: of another type or name, or without a well-formed id and secret.
    pub fn of(secret: &Value) -> Option<Self> {
        let text = |key: &str| -> Option<String> {
            let encoded = secret.get("data")?.get(key)?.as_str()?;
            String::from_utf8(defaults::from_base64(encoded)?).ok()
        };
        let id = text("token-id").filter(|id| is_part(id, ID))?;
        let named = meta::name(secret).strip_prefix(NAME_PREFIX) == Some(&id);
        if secret.get("type")? != SECRET_TYPE || !named || meta::namespace(secret) != NAMESPACE {
            return None;
        }
        let expiration = text("expiration").filter(|text| !text.is_empty());
        let is = |key: &str| text(key).as_deref() == Some("true");
        Some(Self {
            secret: text("token-secret").filter(|secret| is_part(secret, SECRET))?,
            expiration: expiration.map(|text| meta::parse_time(&text).unwrap_or(Timestamp::MIN)),
            authentication: is("usage-bootstrap-authentication"),
            signing: is("usage-bootstrap-signing"),
            groups: groups(&text("auth-extra-groups").unwrap_or_default()),
            description: text("description").unwrap_or_default(),
            id,
        })
    }

    /// Whether its time is over.
    pub fn has_expired(&self, now: Timestamp) -> bool {
        self.expiration.is_some_and(|end| end <= now)
    }
}

impl fmt::Debug for BootstrapSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootstrapSecret")
            .field("id", &self.id)
            .field("expiration", &self.expiration)
            .finish_non_exhaustive()
    }
}

fn is_part(text: &str, length: usize) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() == length && text.bytes().all(allowed)
}

/// The groups of `auth-extra-groups` and the one of all; `None` when one is not below `system:bootstrappers:`.
fn groups(extra: &str) -> Option<Vec<String>> {
    let mut groups = vec![GROUP.to_owned()];
    for group in extra.split(',').filter(|group| !group.is_empty()) {
        let rest = group.strip_prefix(GROUP)?.strip_prefix(':')?;
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b":-".contains(&byte);
        let ends_well = rest.bytes().last().is_some_and(|last| last.is_ascii_alphanumeric());
        if !ends_well || rest.len() > 256 || !rest.bytes().all(allowed) {
            return None;
        }
        groups.push(group.to_owned());
    }
    Some(groups)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(changes: &[(&str, Option<&str>)]) -> Value {
        let mut secret = json!({
            "metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"},
            "type": "bootstrap.kubernetes.io/token",
            "data": {},
        });
        let plain = [
            ("token-id", Some("abcdef")),
            ("token-secret", Some("0123456789abcdef")),
            ("usage-bootstrap-authentication", Some("true")),
        ];
        for (key, value) in plain.iter().chain(changes) {
            secret["data"][key] = match value {
                Some(value) => defaults::base64(value.as_bytes()).into(),
                None => Value::Null,
            };
        }
        secret
    }

    #[test]
    fn a_token_is_read_out_of_its_secret() {
        let read = |changes: &[(&str, Option<&str>)]| BootstrapSecret::of(&secret(changes));
        let token = read(&[
            ("auth-extra-groups", Some(NODE_GROUP)),
            ("expiration", Some("2026-01-01T00:00:00Z")),
        ])
        .unwrap();
        assert_eq!(token.groups.as_deref().unwrap(), [GROUP, NODE_GROUP]);
        assert!(token.authentication && !token.signing);
        let at = |text: &str| meta::parse_time(text).unwrap();
        assert!(token.has_expired(at("2026-01-01T00:00:00Z")) && !token.has_expired(at("2025-12-31T23:59:59Z")));
        assert!(!format!("{token:?}").contains("0123456789abcdef"));

        let forever = read(&[]).unwrap();
        assert!(!forever.has_expired(Timestamp::MAX));
        let garbled = read(&[("expiration", Some("tomorrow"))]).unwrap();
        assert!(garbled.has_expired(at("2026-01-01T00:00:00Z")));
        for groups in [
            "system:masters",
            "system:bootstrappers:",
            "system:bootstrappers:A",
            "a,b",
        ] {
            assert_eq!(
                read(&[("auth-extra-groups", Some(groups))]).unwrap().groups,
                None,
                "{groups}"
            );
        }
    }

    #[test]
    fn other_secrets_are_no_tokens() {
        for changes in [
            [("token-id", Some("abcdeg"))],
            [("token-id", None)],
            [("token-secret", None)],
            [("token-secret", Some("0123456789ABCDEF"))],
        ] {
            assert!(BootstrapSecret::of(&secret(&changes)).is_none(), "{changes:?}");
        }
        let mut other = secret(&[]);
        other["type"] = "Opaque".into();
        assert!(BootstrapSecret::of(&other).is_none());
        let mut elsewhere = secret(&[]);
        elsewhere["metadata"]["namespace"] = "default".into();
        assert!(BootstrapSecret::of(&elsewhere).is_none());
    }
}
