//! Client certificates: common name = user, organizations = groups. The chain was verified by the TLS handshake.

use std::sync::Arc;

use jiff::Timestamp;

use super::User;

/// What a client certificate says.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// Whom it names.
    pub user: Arc<User>,
    expires: Timestamp,
}

impl Certificate {
    /// Reads a certificate; `None` when it names nobody.
    pub fn parse(der: &[u8]) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?;
        if name.is_empty() {
            return None;
        }
        let groups: Vec<String> = subject
            .iter_organization()
            .filter_map(|organization| organization.as_str().ok().map(str::to_owned))
            .collect();
        Some(Self {
            user: Arc::new(User::new(name, groups)),
            expires: Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()?,
        })
    }

    /// Connections outlive certificates: each request asks again.
    pub fn is_valid_now(&self) -> bool {
        Timestamp::now() < self.expires
    }
}
