//! A certificate like one that is there, with a new life.

use x509_parser::extensions::{GeneralName, ParsedExtension};

use crate::identity::certificates;
use crate::{CertificateAuthority, Error, Identity, LEAF_LIFETIME, Request, Usage, peer_identity, validity};

impl Request {
    /// What the first certificate of a PEM text says, to be asked for again.
    ///
    /// # Errors
    /// When it is no certificate.
    pub fn like(certificate_pem: &str) -> Result<Self, Error> {
        let der = &certificates(certificate_pem, "to be renewed")?[0];
        let subject = peer_identity(der)?;
        let certificate = validity::parse(der)?;
        let mut request = Self {
            common_name: subject.common_name,
            organizations: subject.organizations,
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            usage: Usage::Client,
            lifetime: LEAF_LIFETIME,
        };
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    for name in &names.general_names {
                        request.add_name(name);
                    }
                }
                ParsedExtension::ExtendedKeyUsage(usages) => {
                    request.usage = match (usages.client_auth, usages.server_auth) {
                        (true, true) => Usage::ClientAndServer,
                        (_, true) => Usage::Server,
                        _ => Usage::Client,
                    };
                }
                _ => {}
            }
        }
        Ok(request)
    }

    fn add_name(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(name) => self.dns_names.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(*bytes).map(std::net::IpAddr::from);
                let address = v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(std::net::IpAddr::from));
                self.ip_addresses.extend(address.ok());
            }
            _ => {}
        }
    }
}

impl CertificateAuthority {
    /// A certificate that says the same as the first one of a PEM text, for a new key and a new year.
    ///
    /// # Errors
    /// When the given one cannot be read, or signing fails.
    pub fn renew(&self, certificate_pem: &str) -> Result<Identity, Error> {
        self.issue(&Request::like(certificate_pem)?)
    }

    /// Whether the first certificate of a PEM text is of this authority, or of another one in its file.
    ///
    /// # Errors
    /// When the given one cannot be read.
    pub fn has_signed(&self, certificate_pem: &str) -> Result<bool, Error> {
        let der = &certificates(certificate_pem, "given as text")?[0];
        Ok(validity::signer(der, self.certificate_pem())?.is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_renewed_certificate_says_the_same_for_longer() {
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        let addresses = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let mut server = Request::server("kube-apiserver", &["kubernetes", "a.example"], &addresses);
        server.usage = Usage::ClientAndServer;
        for request in [server, Request::client("kubernetes-admin", &["a", "b"])] {
            let old = authority
                .issue(&request.clone().lifetime(Duration::from_secs(60)))
                .unwrap();
            let new = authority.renew(old.certificate_pem()).unwrap();
            let read = Request::like(new.certificate_pem()).unwrap();
            assert_eq!(
                (
                    &read.common_name,
                    &read.organizations,
                    &read.dns_names,
                    &read.ip_addresses,
                    read.usage
                ),
                (
                    &request.common_name,
                    &request.organizations,
                    &request.dns_names,
                    &request.ip_addresses,
                    request.usage
                )
            );
            assert_ne!(old.key_pem(), new.key_pem());
            assert!(authority.has_signed(new.certificate_pem()).unwrap());
            let other = CertificateAuthority::generate("kubernetes").unwrap();
            assert!(!other.has_signed(new.certificate_pem()).unwrap());
            assert!(new.validity().unwrap().remaining(Timestamp::now()) > LEAF_LIFETIME / 2);
        }
    }
}
