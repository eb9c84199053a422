//! Bootstrap tokens: what a machine shows to join, kept as Secrets in `kube-system`.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};
use skiff_pki::BootstrapToken;

use crate::Error;
use crate::api::{Client, code};

/// The group of tokens that nodes join with; what it may do is bound to it by `init`.
pub const NODE_GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";
/// All that a token can be used for.
pub const USAGES: [&str; 2] = ["signing", "authentication"];

const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const PREFIX: &str = "bootstrap-token-";
const ID_LENGTH: usize = 6;
const EXPIRATION: &str = "expiration";
const DESCRIPTION: &str = "description";
const USAGE_PREFIX: &str = "usage-bootstrap-";
const GROUPS: &str = "auth-extra-groups";

/// A bootstrap token as it is typed and printed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Token(BootstrapToken);

/// What a token is for, apart from its text.
#[derive(Clone, Debug)]
pub struct Wish {
    /// How long it is valid from now; `None` for ever.
    pub ttl: Option<Duration>,
    /// For people.
    pub description: String,
    /// Of [`USAGES`].
    pub usages: Vec<String>,
    /// Groups of who shows it, besides `system:bootstrappers`.
    pub groups: Vec<String>,
}

/// A token that the cluster knows.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// The whole token.
    pub token: Token,
    /// When it ends; `None` never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// What it can be used for.
    pub usages: Vec<String>,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Groups of who shows it.
    pub groups: Vec<String>,
}

// === impl Token ===

impl Token {
    /// A fresh one.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate() -> Result<Self, Error> {
        Ok(Self(BootstrapToken::generate()?))
    }
}

impl Deref for Token {
    type Target = BootstrapToken;

    fn deref(&self) -> &BootstrapToken {
        &self.0
    }
}

impl FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The text is not shown: it may be a token with a slip of the finger.
        let refused = |_| {
            "a token is 6 and 16 small letters or digits with a dot between, as `skiff token create` prints it"
                .to_owned()
        };
        BootstrapToken::parse(text).map(Self).map_err(refused)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.reveal())
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

// === impl Wish ===

impl Default for Wish {
    fn default() -> Self {
        Self {
            ttl: Some(crate::config::TOKEN_TTL),
            description: String::new(),
            usages: USAGES.map(str::to_owned).to_vec(),
            groups: vec![NODE_GROUP.to_owned()],
        }
    }
}

/// Whether who shows a token can be in a group of this name.
///
/// # Errors
/// What is wrong with it.
pub fn check_group(name: &str) -> Result<(), String> {
    match name.strip_prefix("system:bootstrappers:") {
        Some(rest) if !rest.is_empty() => Ok(()),
        _ => Err("a token's group begins with system:bootstrappers:".to_owned()),
    }
}

/// The Secret that makes a token known.
pub fn secret(token: &Token, wish: &Wish, now: Timestamp) -> Value {
    let mut data = Map::new();
    let mut set = |key: &str, text: &str| drop(data.insert(key.to_owned(), STANDARD.encode(text).into()));
    set("token-id", token.id());
    set("token-secret", token.secret());
    if let Some(ttl) = wish.ttl {
        set(EXPIRATION, &expiration(now, ttl));
    }
    if !wish.description.is_empty() {
        set(DESCRIPTION, &wish.description);
    }
    for usage in &wish.usages {
        set(&format!("{USAGE_PREFIX}{usage}"), "true");
    }
    if !wish.groups.is_empty() {
        set(GROUPS, &wish.groups.join(","));
    }
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": TYPE,
        "metadata": { "name": token.secret_name(), "namespace": "kube-system" },
        "data": data,
    })
}

/// Whole seconds, as RFC 3339.
fn expiration(now: Timestamp, ttl: Duration) -> String {
    let seconds = now
        .as_second()
        .saturating_add(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX));
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX).to_string()
}

/// Makes a token known to the cluster; returns its Secret.
///
/// # Errors
/// When one has its id already, or the API server refuses.
pub async fn create(api: &Client, token: &Token, wish: &Wish) -> Result<Value, Error> {
    match api.create(SECRETS, &secret(token, wish, Timestamp::now())).await {
        Err(Error::Api { source, .. }) if code(&source) == Some(409) => Err(Error::TokenExists {
            id: token.id().to_owned(),
        }),
        made => made,
    }
}

/// Makes a token known to the cluster; one with its id is this token from then on, and for nothing else.
///
/// # Errors
/// When the API server refuses.
pub(crate) async fn set(api: &Client, token: &Token, wish: &Wish) -> Result<(), Error> {
    match create(api, token, wish).await {
        Err(Error::TokenExists { .. }) => {
            let patch = replacing(secret(token, wish, Timestamp::now()));
            api.merge(&format!("{SECRETS}/{}", token.secret_name()), &patch).await
        }
        made => made.map(drop),
    }
}

/// The patch that leaves nothing of what a Secret of this name was for.
fn replacing(mut secret: Value) -> Value {
    let usages = USAGES.map(|usage| format!("{USAGE_PREFIX}{usage}"));
    let rights = [EXPIRATION, DESCRIPTION, GROUPS].map(str::to_owned);
    if let Some(data) = secret["data"].as_object_mut() {
        for key in usages.into_iter().chain(rights) {
            data.entry(key).or_insert(Value::Null);
        }
    }
    secret
}

/// The cluster's tokens, in order of their ids.
///
/// # Errors
/// When the API server refuses.
pub async fn list(api: &Client) -> Result<Vec<Listed>, Error> {
    let found = api
        .get(&format!("{SECRETS}?fieldSelector=type%3D{}", TYPE.replace('/', "%2F")))
        .await?;
    let items = found.iter().flat_map(|list| list["items"].as_array()).flatten();
    let mut tokens: Vec<Listed> = items.filter_map(read).collect();
    tokens.sort_by(|one, other| one.token.id().cmp(other.token.id()));
    Ok(tokens)
}

/// Removes a token by its id, or by its whole text. Returns whether it was there.
///
/// # Errors
/// When the API server refuses.
pub async fn delete(api: &Client, id: &str) -> Result<bool, Error> {
    let id = id.split('.').next().unwrap_or_default();
    let valid = id.len() == ID_LENGTH
        && id
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if !valid {
        return Err(Error::TokenId { id: id.to_owned() });
    }
    api.delete(&format!("{SECRETS}/{PREFIX}{id}")).await
}

/// What a Secret says of a token; `None` when it is not a usable one.
fn read(secret: &Value) -> Option<Listed> {
    let text = |key: &str| {
        let decoded = STANDARD.decode(secret["data"][key].as_str()?).ok()?;
        String::from_utf8(decoded).ok()
    };
    let token = format!("{}.{}", text("token-id")?, text("token-secret")?)
        .parse()
        .ok()?;
    let usages = ["authentication", "signing"].into_iter();
    Some(Listed {
        token,
        expires: text(EXPIRATION),
        usages: usages
            .filter(|usage| text(&format!("{USAGE_PREFIX}{usage}")).as_deref() == Some("true"))
            .map(str::to_owned)
            .collect(),
        description: text(DESCRIPTION).unwrap_or_default(),
        groups: text(GROUPS)
            .iter()
            .flat_map(|groups| groups.split(','))
            .map(str::to_owned)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_one_form() {
        let token = Token::generate().unwrap();
        assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
        assert_ne!(token, Token::generate().unwrap());
        for text in [
            "",
            "abcdef",
            "abcdef.0123456789abcde",
            "ABCDEF.0123456789abcdef",
            "abcdef.0123456789abcdef0",
            "abcdeé.0123456789abcdef",
        ] {
            let error = text.parse::<Token>().unwrap_err();
            assert!(error.contains("skiff token create"), "{text}");
        }
        assert!(!format!("{token:?}").contains(token.secret()));
    }

    #[test]
    fn a_secret_says_what_a_token_is_for() {
        let token: Token = "abcdef.0123456789abcdef".parse().unwrap();
        let now: Timestamp = "2026-01-01T00:00:00.9Z".parse().unwrap();
        let secret = secret(&token, &Wish::default(), now);
        assert_eq!(secret["metadata"]["name"], "bootstrap-token-abcdef");
        assert_eq!(secret["data"]["token-id"], STANDARD.encode("abcdef"));
        let listed = read(&secret).unwrap();
        assert_eq!(listed.token, token);
        assert_eq!(listed.expires.as_deref(), Some("2026-01-02T00:00:00Z"));
        assert_eq!(listed.usages, ["authentication", "signing"]);
        assert_eq!(listed.groups, [NODE_GROUP]);
        let endless = Wish {
            ttl: None,
            ..Wish::default()
        };
        assert_eq!(read(&super::secret(&token, &endless, now)).unwrap().expires, None);
    }

    #[test]
    fn a_token_that_is_set_again_keeps_nothing_of_what_it_was_for() {
        let token: Token = "abcdef.0123456789abcdef".parse().unwrap();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let less = Wish {
            ttl: None,
            description: String::new(),
            usages: vec!["signing".to_owned()],
            groups: Vec::new(),
        };
        for (wish, removed) in [
            (Wish::default(), &["description"][..]),
            (
                less,
                &[
                    "auth-extra-groups",
                    "description",
                    "expiration",
                    "usage-bootstrap-authentication",
                ],
            ),
        ] {
            let patch = replacing(secret(&token, &wish, now));
            let data = patch["data"].as_object().unwrap();
            let nulls: Vec<_> = data.iter().filter(|(_, value)| value.is_null()).collect();
            let mut nulls: Vec<_> = nulls.into_iter().map(|(key, _)| key.as_str()).collect();
            nulls.sort_unstable();
            assert_eq!(nulls, removed);
            assert_eq!(data["token-secret"], STANDARD.encode(token.secret()));
        }
    }

    #[test]
    fn what_is_no_token_is_not_listed() {
        assert!(read(&json!({"data": {"token-id": STANDARD.encode("abcdef")}})).is_none());
    }
}
