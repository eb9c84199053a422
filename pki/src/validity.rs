//! When a certificate is valid, and what it says apart from that.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};

use crate::Error;
use crate::identity::{Names, certificates};

/// The span in which a certificate is valid.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Validity {
    /// First second.
    pub not_before: Timestamp,
    /// Last second.
    pub not_after: Timestamp,
}

impl Validity {
    /// Of the first certificate in a PEM text.
    pub fn of_pem(pem: &str) -> Result<Self, Error> {
        Self::of_der(&certificates(pem, "given as text")?[0])
    }

    /// Of a DER certificate.
    pub fn of_der(der: &[u8]) -> Result<Self, Error> {
        let validity = parse(der)?.validity.clone();
        let time = |seconds| Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        Ok(Self {
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
        })
    }

    /// How long from `now` until it ends; zero when it has.
    pub fn remaining(&self, now: Timestamp) -> Duration {
        Duration::try_from(self.not_after.duration_since(now)).unwrap_or_default()
    }

    /// Whether less than a fifth of its life is left (or it is not valid yet): time for a new one.
    pub fn should_renew(&self, now: Timestamp) -> bool {
        let life = Duration::try_from(self.not_after.duration_since(self.not_before)).unwrap_or_default();
        now < self.not_before || self.remaining(now) < life / 5
    }
}

/// What a certificate says about whom it names and who vouches for it, comparable between two of them.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Content {
    subject: String,
    issuer: String,
    issuer_key: Option<Vec<u8>>,
    alternative_names: Vec<String>,
    usages: Vec<String>,
}

pub(crate) fn content(der: &[u8]) -> Result<Content, Error> {
    let certificate = parse(der)?;
    let mut content = Content {
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        issuer_key: None,
        alternative_names: Vec::new(),
        usages: Vec::new(),
    };
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                content.alternative_names = names.general_names.iter().map(|name| format!("{name:?}")).collect();
                content.alternative_names.sort();
            }
            ParsedExtension::AuthorityKeyIdentifier(identifier) => {
                content.issuer_key = identifier.key_identifier.as_ref().map(|key| key.0.to_vec());
            }
            usage @ (ParsedExtension::KeyUsage(_) | ParsedExtension::ExtendedKeyUsage(_)) => {
                content.usages.push(format!("{usage:?}"));
            }
            _ => {}
        }
    }
    Ok(content)
}

/// Which of the authorities in a PEM text has signed a certificate.
pub(crate) fn signer(der: &[u8], authorities_pem: &str) -> Result<Option<usize>, Error> {
    let certificate = parse(der)?;
    for (index, authority) in certificates(authorities_pem, "of the authorities")?.iter().enumerate() {
        let authority = parse(authority)?;
        if certificate.verify_signature(Some(authority.public_key())).is_ok() {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// The names and addresses that a certificate is for.
pub(crate) fn names(der: &[u8]) -> Result<Names, Error> {
    let certificate = parse(der)?;
    let mut names = Names::default();
    for extension in certificate.extensions() {
        let ParsedExtension::SubjectAlternativeName(found) = extension.parsed_extension() else {
            continue;
        };
        for name in &found.general_names {
            match name {
                GeneralName::DNSName(name) => names.dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => names.ip_addresses.extend(address(bytes)),
                _ => {}
            }
        }
    }
    Ok(names)
}

/// An address of 4 or 16 bytes.
pub(crate) fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Error> {
    match x509_parser::parse_x509_certificate(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(Error::ParseCertificate {
            name: "in DER form".to_owned(),
            reason: error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_begins_in_the_last_fifth() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let validity = Validity {
            not_before: at(1000),
            not_after: at(2000),
        };
        let cases = [(999, true), (1000, false), (1799, false), (1801, true), (2500, true)];
        for (now, renew) in cases {
            assert_eq!(validity.should_renew(at(now)), renew, "at {now}");
        }
        assert_eq!(validity.remaining(at(1900)), Duration::from_secs(100));
        assert_eq!(validity.remaining(at(2100)), Duration::ZERO);
    }
}
