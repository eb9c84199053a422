//! Certificate signing requests (PKCS #10): made for a key of ours, read of others, and signed.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose, SanType,
    SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

use crate::authority::{CLOCK_SKEW, generate_key, set_validity};
use crate::identity::{MAX_ORGANIZATIONS, ORGANIZATION_OID, parse_key};
use crate::validity::address;
use crate::{CertificateAuthority, Error, Request, Validity};

/// Lives up to this long are given whole; longer ones count from when the certificate is valid, as upstream's.
const SHORT: Duration = Duration::from_secs(8 * 3600);

const COMMON_NAME: &str = "2.5.4.3";
const ORGANIZATION: &str = "2.5.4.10";

/// A request for a certificate, as somebody sent it; its signature was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningRequest {
    /// Subject CN.
    pub common_name: String,
    /// Subject O, in their order.
    pub organizations: Vec<String>,
    /// Names that a server would answer to.
    pub dns_names: Vec<String>,
    /// Addresses that a server would answer at.
    pub ip_addresses: Vec<IpAddr>,
    /// Subject alternative names that are mail addresses.
    pub emails: Vec<String>,
    /// Subject alternative names that are URIs.
    pub uris: Vec<String>,
    /// The rest of the subject: object identifier (dotted) and text.
    pub other_subject: Vec<(String, String)>,
    public_key_der: Vec<u8>,
}

impl SigningRequest {
    /// A request in PEM for what `wanted` says, signed with the key (PEM) that it is for.
    ///
    /// # Errors
    /// When the key cannot be read or cannot sign.
    pub fn make(wanted: &Request, key_pem: &str) -> Result<String, Error> {
        let key = parse_key("of a signing request", key_pem)?;
        let failed = |source| Error::Sign {
            common_name: wanted.common_name.clone(),
            source,
        };
        let mut params = wanted.params().map_err(failed)?;
        // What the certificate is for is said beside the request, not in it.
        params.key_usages.clear();
        params.extended_key_usages.clear();
        let request = params.serialize_request(&key).map_err(failed)?;
        request.pem().map_err(failed)
    }

    /// A fresh private key, PEM.
    pub fn generate_key() -> Result<String, Error> {
        generate_key().map(|key| key.serialize_pem())
    }

    /// Reads a request in PEM and checks that whoever made it has the key.
    ///
    /// # Errors
    /// When it is not one, or its signature is not that of its key.
    pub fn parse(pem: &[u8]) -> Result<Self, Error> {
        let failed = |reason: &dyn std::fmt::Display| Error::ParseRequest {
            reason: reason.to_string(),
        };
        if pem.len() > LARGEST {
            return Err(failed(&format_args!("larger than {LARGEST} bytes")));
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem)
            .map_err(|_| failed(&"PEM block type must be CERTIFICATE REQUEST"))?;
        let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|error| failed(&error))?;
        if !rest.is_empty() {
            return Err(failed(&"trailing data"));
        }
        request.verify_signature().map_err(|error| failed(&error))?;
        let info = &request.certification_request_info;
        let mut parsed = Self {
            common_name: String::new(),
            organizations: Vec::new(),
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            emails: Vec::new(),
            uris: Vec::new(),
            other_subject: Vec::new(),
            public_key_der: info.subject_pki.raw.to_vec(),
        };
        for attribute in info.subject.iter_attributes() {
            let text = attribute.as_str().map_err(|error| failed(&error))?.to_owned();
            match attribute.attr_type().to_id_string() {
                // A second one would be read by some and not by others.
                oid if oid == COMMON_NAME && parsed.common_name.is_empty() => parsed.common_name = text,
                oid if oid == ORGANIZATION => parsed.organizations.push(text),
                oid => parsed.other_subject.push((oid, text)),
            }
        }
        for extension in request.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension {
                for name in &names.general_names {
                    parsed.add_name(name)?;
                }
            }
        }
        Ok(parsed)
    }

    fn add_name(&mut self, name: &GeneralName<'_>) -> Result<(), Error> {
        match name {
            GeneralName::DNSName(name) => self.dns_names.push((*name).to_owned()),
            GeneralName::RFC822Name(name) => self.emails.push((*name).to_owned()),
            GeneralName::URI(uri) => self.uris.push((*uri).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let address = address(bytes).ok_or_else(|| Error::ParseRequest {
                    reason: "an IP address of neither 4 nor 16 bytes".to_owned(),
                })?;
                self.ip_addresses.push(address);
            }
            other => {
                return Err(Error::ParseRequest {
                    reason: format!("a subject alternative name that is not supported: {other:?}"),
                });
            }
        }
        Ok(())
    }

    fn params(&self, usages: &[String]) -> Result<CertificateParams, Error> {
        let refused = |reason: String| Error::RefuseRequest { reason };
        let count = self.organizations.len();
        if count > MAX_ORGANIZATIONS {
            return Err(Error::TooManyOrganizations {
                common_name: self.common_name.clone(),
                count,
            });
        }
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        for (oid, text) in &self.other_subject {
            let parts: Option<Vec<u64>> = oid.split('.').map(|part| part.parse().ok()).collect();
            let ty = DnType::CustomDnType(parts.unwrap_or_default());
            if oid == COMMON_NAME || name.get(&ty).is_some() {
                return Err(refused(format!("the subject has more than one attribute {oid}")));
            }
            name.push(ty, text.as_str());
        }
        // See `Request::params` for the second spelling.
        let types = [
            DnType::OrganizationName,
            DnType::CustomDnType(ORGANIZATION_OID.to_vec()),
        ];
        for (ty, organization) in types.into_iter().zip(&self.organizations) {
            name.push(ty, organization.as_str());
        }
        if !self.common_name.is_empty() {
            name.push(DnType::CommonName, self.common_name.as_str());
        }
        params.distinguished_name = name;
        let text = |text: &String| {
            let reason = |error| refused(format!("subject alternative name {text:?}: {error}"));
            text.as_str().try_into().map_err(reason)
        };
        for dns in &self.dns_names {
            params.subject_alt_names.push(SanType::DnsName(text(dns)?));
        }
        for email in &self.emails {
            params.subject_alt_names.push(SanType::Rfc822Name(text(email)?));
        }
        for uri in &self.uris {
            params.subject_alt_names.push(SanType::URI(text(uri)?));
        }
        let addresses = self.ip_addresses.iter().copied().map(SanType::IpAddress);
        params.subject_alt_names.extend(addresses);
        for usage in usages {
            match key_usage(usage) {
                Some(Purpose::Key(purpose)) if !params.key_usages.contains(&purpose) => params.key_usages.push(purpose),
                Some(Purpose::Extended(purpose)) if !params.extended_key_usages.contains(&purpose) => {
                    params.extended_key_usages.push(purpose);
                }
                Some(_) => {}
                None => return Err(refused(format!("unrecognized usage values: [{usage}]"))),
            }
        }
        Ok(params)
    }
}

/// Requests are small; a hundred names fit into this.
const LARGEST: usize = 64 * 1024;

enum Purpose {
    Key(KeyUsagePurpose),
    Extended(ExtendedKeyUsagePurpose),
}

/// What `spec.usages` of a CertificateSigningRequest means.
fn key_usage(usage: &str) -> Option<Purpose> {
    let key = |purpose| Some(Purpose::Key(purpose));
    let extended = |purpose| Some(Purpose::Extended(purpose));
    let other = |last: &[u64]| {
        Some(Purpose::Extended(ExtendedKeyUsagePurpose::Other(
            [&[1, 3, 6, 1][..], last].concat(),
        )))
    };
    match usage {
        "signing" | "digital signature" => key(KeyUsagePurpose::DigitalSignature),
        "content commitment" => key(KeyUsagePurpose::ContentCommitment),
        "key encipherment" => key(KeyUsagePurpose::KeyEncipherment),
        "key agreement" => key(KeyUsagePurpose::KeyAgreement),
        "data encipherment" => key(KeyUsagePurpose::DataEncipherment),
        "cert sign" => key(KeyUsagePurpose::KeyCertSign),
        "crl sign" => key(KeyUsagePurpose::CrlSign),
        "encipher only" => key(KeyUsagePurpose::EncipherOnly),
        "decipher only" => key(KeyUsagePurpose::DecipherOnly),
        "any" => extended(ExtendedKeyUsagePurpose::Any),
        "server auth" => extended(ExtendedKeyUsagePurpose::ServerAuth),
        "client auth" => extended(ExtendedKeyUsagePurpose::ClientAuth),
        "code signing" => extended(ExtendedKeyUsagePurpose::CodeSigning),
        "email protection" | "s/mime" => extended(ExtendedKeyUsagePurpose::EmailProtection),
        "ipsec end system" => other(&[5, 5, 7, 3, 5]),
        "ipsec tunnel" => other(&[5, 5, 7, 3, 6]),
        "ipsec user" => other(&[5, 5, 7, 3, 7]),
        "timestamping" => extended(ExtendedKeyUsagePurpose::TimeStamping),
        "ocsp signing" => extended(ExtendedKeyUsagePurpose::OcspSigning),
        "microsoft sgc" => other(&[4, 1, 311, 10, 3, 3]),
        "netscape sgc" => Some(Purpose::Extended(ExtendedKeyUsagePurpose::Other(vec![
            2, 16, 840, 1, 113_730, 4, 1,
        ]))),
        _ => None,
    }
}

impl CertificateAuthority {
    /// Signs a request for the usages and the life asked for, no longer than the authority's own; returns the certificate in PEM.
    ///
    /// Whether whoever asks may have it is the caller's to know.
    ///
    /// # Errors
    /// When the request says what a certificate of ours cannot (more than two organizations); nothing is dropped silently.
    pub fn sign(&self, request: &SigningRequest, usages: &[String], lifetime: Duration) -> Result<String, Error> {
        let failed = |source| Error::Sign {
            common_name: request.common_name.clone(),
            source,
        };
        let mut params = request.params(usages)?;
        let own = Validity::of_pem(self.certificate_pem())?;
        let now = Timestamp::now();
        let begin = now.checked_sub(CLOCK_SKEW).unwrap_or(now);
        let counted_from = if lifetime <= SHORT { now } else { begin };
        let end = counted_from.checked_add(lifetime).unwrap_or(own.not_after);
        set_validity(&mut params, begin, end.min(own.not_after));
        params.use_authority_key_identifier_extension = true;
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        let key = SubjectPublicKeyInfo::from_der(&request.public_key_der).map_err(failed)?;
        let certificate = params.signed_by(&key, self.issuer()).map_err(failed)?;
        Ok(certificate.pem())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Identity, peer_identity};

    fn usages(list: &[&str]) -> Vec<String> {
        list.iter().map(|&usage| usage.to_owned()).collect()
    }

    #[test]
    fn a_request_becomes_the_certificate_that_it_asks_for() {
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        let key = SigningRequest::generate_key().unwrap();
        let mut wanted = Request::server("system:node:n", &["n"], &["192.0.2.1".parse().unwrap()]);
        wanted.organizations = vec!["system:nodes".to_owned()];
        let pem = SigningRequest::make(&wanted, &key).unwrap();
        let request = SigningRequest::parse(pem.as_bytes()).unwrap();
        assert_eq!(request.common_name, "system:node:n");
        assert_eq!(request.organizations, ["system:nodes"]);
        assert_eq!(request.dns_names, ["n"]);
        assert_eq!(request.ip_addresses, wanted.ip_addresses);
        let hour = Duration::from_secs(3600);
        let certificate = authority
            .sign(&request, &usages(&["digital signature", "server auth"]), hour)
            .unwrap();
        // The pair belongs together.
        let identity = Identity::from_pem(certificate, key).unwrap();
        let left = identity.validity().unwrap().remaining(Timestamp::now());
        assert!(left <= hour && left > hour - Duration::from_secs(60), "{left:?}");
        let peer = peer_identity(&identity.chain().unwrap()[0]).unwrap();
        assert_eq!(
            (peer.common_name.as_str(), peer.organizations.as_slice()),
            ("system:node:n", &["system:nodes".to_owned()][..])
        );
        let long = authority
            .sign(
                &request,
                &usages(&["client auth"]),
                Duration::from_secs(100 * 365 * 24 * 3600),
            )
            .unwrap();
        let own = Validity::of_pem(authority.certificate_pem()).unwrap();
        assert_eq!(Validity::of_pem(&long).unwrap().not_after, own.not_after);
        let error = authority
            .sign(&request, &usages(&["world domination"]), hour)
            .unwrap_err();
        assert!(error.to_string().contains("world domination"), "{error}");
    }

    #[test]
    fn what_cannot_be_said_is_refused() {
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        let request = SigningRequest {
            common_name: "u".to_owned(),
            organizations: usages(&["a", "b", "c"]),
            ..SigningRequest::parse(request_pem("u").as_bytes()).unwrap()
        };
        let refused = authority.sign(&request, &usages(&["client auth"]), SHORT);
        assert!(matches!(refused, Err(Error::TooManyOrganizations { count: 3, .. })));
        let twice = SigningRequest {
            other_subject: vec![(COMMON_NAME.to_owned(), "root".to_owned())],
            organizations: Vec::new(),
            ..request
        };
        let refused = authority.sign(&twice, &usages(&["client auth"]), SHORT);
        assert!(matches!(refused, Err(Error::RefuseRequest { .. })));
    }

    fn request_pem(user: &str) -> String {
        SigningRequest::make(&Request::client(user, &[]), &SigningRequest::generate_key().unwrap()).unwrap()
    }

    #[test]
    fn requests_that_are_none_are_refused() {
        let good = request_pem("u");
        assert!(SigningRequest::parse(good.as_bytes()).is_ok());
        // Another subject under the same signature.
        let mut der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes())
            .unwrap()
            .to_vec();
        let at = der.windows(3).position(|bytes| bytes == [0x0c, 1, b'u']).unwrap();
        der[at + 2] = b'v';
        let forged = X509CertificationRequest::from_der(&der).unwrap().1;
        assert!(forged.verify_signature().is_err());
        for text in ["", "nonsense", &good.replace("CERTIFICATE REQUEST", "CERTIFICATE")] {
            assert!(
                matches!(SigningRequest::parse(text.as_bytes()), Err(Error::ParseRequest { .. })),
                "{text}"
            );
        }
        let huge = good.repeat(LARGEST / good.len() + 1);
        assert!(SigningRequest::parse(huge.as_bytes()).is_err());
    }
}
