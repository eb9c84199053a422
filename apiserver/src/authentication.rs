//! Who sends a request: a client certificate, a bearer token, or nobody in particular.

mod bootstrap_token;
mod certificate;
mod token;

pub use certificate::Certificate;
pub use token::{Bound, Issued, Lookup, Tokens, service_account_groups, username};

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, header};
use skiff_api::status::Status;
use skiff_pki::BootstrapToken;

use crate::cache::Cache;
use crate::errors::Result;
use bootstrap_token::BootstrapTokens;

/// Name of those who did not prove who they are.
pub const ANONYMOUS: &str = "system:anonymous";
/// Group of everybody who proved who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Group of those who did not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Group that may do everything.
pub const MASTERS: &str = "system:masters";

/// Who sends a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// Unique name.
    pub name: String,
    /// Unique over time; often empty.
    pub uid: String,
    /// Groups, `system:authenticated` among them.
    pub groups: Vec<String>,
    /// What else the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// An authenticated user.
    pub fn new(name: &str, groups: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().map(Into::into).collect();
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Self {
            name: name.to_owned(),
            groups,
            ..Self::default()
        }
    }

    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }

    /// Whether the user is in a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }
}

/// Who stands at the other end of a connection.
#[derive(Debug, Clone)]
pub enum Peer {
    /// Nobody known; a request may bring a token.
    Unknown,
    /// Somebody with a client certificate.
    Certificate(Arc<Certificate>),
    /// A component in this process.
    InProcess(Arc<User>),
}

/// Tells who sends requests.
#[derive(Debug)]
pub struct Authenticator {
    tokens: Arc<Tokens>,
    bootstrap: BootstrapTokens,
    anonymous: Arc<User>,
}

impl Authenticator {
    /// An authenticator for certificates, for tokens of `tokens`, and for bootstrap tokens among `secrets`.
    pub fn new(tokens: Arc<Tokens>, secrets: Arc<Cache>) -> Self {
        Self {
            tokens,
            bootstrap: BootstrapTokens { secrets },
            anonymous: Arc::new(User::anonymous()),
        }
    }

    /// Who sends a request with these headers over a connection from `peer`.
    pub fn authenticate(&self, headers: &HeaderMap, peer: &Peer) -> Result<Arc<User>> {
        match peer {
            Peer::InProcess(user) => return Ok(Arc::clone(user)),
            Peer::Certificate(certificate) if certificate.is_valid_now() => return Ok(Arc::clone(&certificate.user)),
            Peer::Certificate(_) | Peer::Unknown => {}
        }
        let authorization = headers.get(header::AUTHORIZATION);
        let token = authorization.and_then(|value| value.to_str().ok()).and_then(bearer);
        match token {
            Some(token) => self.review(token, &[]).map(|(user, _)| user).map_err(|error| {
                tracing::debug!(error = skiff_daemon::error_chain(&*error), "bearer token refused");
                Status::unauthorized()
            }),
            // Who says who they are is not taken for nobody: with a certificate that has ended they must come anew.
            None if matches!(peer, Peer::Certificate(_)) => Err(Status::unauthorized()),
            None => Ok(Arc::clone(&self.anonymous)),
        }
    }

    /// Whom a bearer token stands for, and for which of `audiences` (of this server, when empty) it is good.
    ///
    /// # Errors
    /// Why it is refused; never holds the token.
    pub fn review(&self, token: &str, audiences: &[String]) -> std::result::Result<Reviewed, Refusal> {
        let Ok(bootstrap) = BootstrapToken::parse(token) else {
            return Ok(self.tokens.verify_for(token, audiences)?);
        };
        // They say nothing of audiences: they are for this server.
        let audiences = self.tokens.own_audiences(audiences)?;
        let user = self.bootstrap.verify(&bootstrap)?;
        Ok((Arc::new(user), audiences))
    }
}

/// A user, and the audiences for which their token is good.
pub type Reviewed = (Arc<User>, Vec<String>);

/// Why a bearer token is refused.
pub type Refusal = Box<dyn std::error::Error + Send + Sync>;

fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
