//! A private key and the certificate that says whose it is.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PublicKeyData as _, SanType,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::{Error, LEAF_LIFETIME, Validity, files, validity};

pub(crate) const ORGANIZATION_OID: [u64; 4] = [2, 5, 4, 10];

/// How many organizations a certificate can name.
pub(crate) const MAX_ORGANIZATIONS: usize = 2;

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Usage {
    /// To connect.
    Client,
    /// To be connected to.
    Server,
    /// Both, as etcd's peers.
    ClientAndServer,
}

/// What a certificate should say. In Kubernetes the common name is the user, each organization a group.
#[derive(Clone, Debug)]
pub struct Request {
    /// Subject CN.
    pub common_name: String,
    /// Subject O, at most two.
    pub organizations: Vec<String>,
    /// Names that a server answers to.
    pub dns_names: Vec<String>,
    /// Addresses that a server answers at.
    pub ip_addresses: Vec<IpAddr>,
    /// What the certificate is for.
    pub usage: Usage,
    /// How long it is valid, from now.
    pub lifetime: Duration,
}

/// The names and addresses of a server's certificate.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Names {
    /// Names.
    pub dns_names: Vec<String>,
    /// Addresses.
    pub ip_addresses: Vec<IpAddr>,
}

/// A key with its certificate chain, both PEM.
#[derive(Clone, Eq, PartialEq)]
pub struct Identity {
    certificate_pem: String,
    key_pem: String,
}

// === impl Request ===

impl Request {
    /// A client's certificate: who it is, and in which groups.
    pub fn client(user: impl Into<String>, groups: &[&str]) -> Self {
        Self {
            common_name: user.into(),
            organizations: groups.iter().map(|&group| group.to_owned()).collect(),
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            usage: Usage::Client,
            lifetime: LEAF_LIFETIME,
        }
    }

    /// A server's certificate: the names and addresses it is reached by.
    pub fn server(common_name: impl Into<String>, dns_names: &[&str], ip_addresses: &[IpAddr]) -> Self {
        Self {
            common_name: common_name.into(),
            organizations: Vec::new(),
            dns_names: dns_names.iter().map(|&name| name.to_owned()).collect(),
            ip_addresses: ip_addresses.to_vec(),
            usage: Usage::Server,
            lifetime: LEAF_LIFETIME,
        }
    }

    /// The same with another lifetime.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    pub(crate) fn params(&self) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // rcgen holds one value for each type; the same object identifier spelt as a custom type makes room for a second O.
        let types = [
            DnType::OrganizationName,
            DnType::CustomDnType(ORGANIZATION_OID.to_vec()),
        ];
        for (ty, organization) in types.into_iter().zip(&self.organizations) {
            params.distinguished_name.push(ty, organization.as_str());
        }
        params
            .distinguished_name
            .push(DnType::CommonName, self.common_name.as_str());
        for name in &self.dns_names {
            params
                .subject_alt_names
                .push(SanType::DnsName(name.as_str().try_into()?));
        }
        params
            .subject_alt_names
            .extend(self.ip_addresses.iter().copied().map(SanType::IpAddress));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = match self.usage {
            Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Usage::ClientAndServer => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        Ok(params)
    }
}

// === impl Identity ===

impl Identity {
    /// Takes a certificate (the leaf first, then its chain) and its key, both PEM; refuses a pair that does not belong together.
    pub fn from_pem(certificate_pem: String, key_pem: String) -> Result<Self, Error> {
        Self::checked("given as text", certificate_pem, key_pem)
    }

    /// Takes a certificate (and its chain) and its key out of one PEM text.
    pub fn from_combined_pem(pem: &str) -> Result<Self, Error> {
        const END: &str = "-----END CERTIFICATE-----";
        let (mut certificates, mut key) = (String::new(), pem.to_owned());
        while let Some(begin) = key.find("-----BEGIN CERTIFICATE-----") {
            let end = key[begin..].find(END).map_or(key.len(), |end| begin + end + END.len());
            certificates.push_str(&key[begin..end]);
            certificates.push('\n');
            key.replace_range(begin..end, "");
        }
        Self::from_pem(certificates, key.trim_start().to_owned())
    }

    /// Whether a PEM text holds a private key that can be used.
    pub fn is_key(pem: &str) -> bool {
        parse_key("", pem).is_ok()
    }

    /// The names and addresses that the certificate is for.
    pub fn names(&self) -> Result<Names, Error> {
        crate::validity::names(&self.chain()?[0])
    }

    /// Reads `<name>.crt` and `<name>.key` in `directory`.
    pub fn load(directory: &Path, name: &str) -> Result<Self, Error> {
        let (certificate, key) = paths(directory, name);
        Self::load_files(&certificate, &key)
    }

    /// Reads a certificate file and a key file.
    pub fn load_files(certificate: &Path, key: &Path) -> Result<Self, Error> {
        Self::checked(
            &certificate.display().to_string(),
            files::read(certificate)?,
            files::read(key)?,
        )
    }

    /// Like [`Identity::load`]; `None` when neither file is there.
    pub fn load_if_there(directory: &Path, name: &str) -> Result<Option<Self>, Error> {
        let (certificate, key) = paths(directory, name);
        match (certificate.exists(), key.exists()) {
            (false, false) => Ok(None),
            (true, true) => Self::load(directory, name).map(Some),
            (true, false) => Err(Error::HalfMissing { path: key }),
            (false, true) => Err(Error::HalfMissing { path: certificate }),
        }
    }

    /// Like [`Identity::load_if_there`]; `None` also when the two files do not belong together, or one is missing: whoever wrote
    /// them was interrupted, and whoever can issue another pair need not mind.
    pub fn load_if_whole(directory: &Path, name: &str) -> Result<Option<Self>, Error> {
        match Self::load_if_there(directory, name) {
            Err(Error::KeyMismatch { .. } | Error::HalfMissing { .. }) => Ok(None),
            found => found,
        }
    }

    /// Writes `<name>.key` (private) and `<name>.crt` in `directory`, which is made when missing.
    pub fn save(&self, directory: &Path, name: &str) -> Result<(), Error> {
        let (certificate, key) = paths(directory, name);
        files::write_private(&key, self.key_pem.as_bytes())?;
        files::write_public(&certificate, self.certificate_pem.as_bytes())
    }

    /// The certificate and its chain.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The private key.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// When the leaf certificate is valid.
    pub fn validity(&self) -> Result<Validity, Error> {
        Validity::of_pem(&self.certificate_pem)
    }

    /// Whether another certificate of an authorities' file than its first one has signed it: while one authority takes over from
    /// another, both are in the file, and the first is the one that signs.
    pub fn is_of_former(&self, authorities_pem: &str) -> Result<bool, Error> {
        let signer = validity::signer(&self.chain()?[0], authorities_pem)?;
        Ok(signer.is_some_and(|index| index > 0))
    }

    pub(crate) fn chain(&self) -> Result<Vec<CertificateDer<'static>>, Error> {
        certificates(&self.certificate_pem, "of this process")
    }

    pub(crate) fn private_key(&self) -> Result<PrivateKeyDer<'static>, Error> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(|error| Error::Tls {
            step: "read the private key",
            source: Box::new(error),
        })
    }

    fn checked(name: &str, certificate_pem: String, key_pem: String) -> Result<Self, Error> {
        let key = parse_key(name, &key_pem)?;
        let chain = certificates(&certificate_pem, name)?;
        if !belongs(&chain[0], &key, name)? {
            return Err(Error::KeyMismatch { name: name.to_owned() });
        }
        Ok(Self {
            certificate_pem,
            key_pem,
        })
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key must not reach a log.
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

pub(crate) fn paths(directory: &Path, name: &str) -> (PathBuf, PathBuf) {
    (
        directory.join(format!("{name}.crt")),
        directory.join(format!("{name}.key")),
    )
}

pub(crate) fn parse_key(name: &str, pem: &str) -> Result<KeyPair, Error> {
    // The key may stand behind its certificate, in one file.
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| rcgen::Error::CouldNotParseKeyPair)
        .and_then(|key| KeyPair::try_from(&key))
        .map_err(|source| Error::ParseKey {
            name: name.to_owned(),
            source,
        })
}

/// Every certificate in a PEM text; at least one.
pub(crate) fn certificates(pem: &str, name: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let failed = |reason: String| Error::ParseCertificate {
        name: name.to_owned(),
        reason,
    };
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| failed(error.to_string()))?;
    if chain.is_empty() {
        return Err(failed("no certificate in it".to_owned()));
    }
    Ok(chain)
}

pub(crate) fn belongs(certificate: &CertificateDer<'_>, key: &KeyPair, name: &str) -> Result<bool, Error> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|error| Error::ParseCertificate {
        name: name.to_owned(),
        reason: error.to_string(),
    })?;
    Ok(parsed.public_key().raw == key.subject_public_key_info())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CertificateAuthority;

    #[test]
    fn one_file_holds_both() {
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        let wanted = Request::server("s", &["localhost"], &["192.0.2.1".parse().unwrap()]);
        let identity = authority.issue(&wanted).unwrap();
        for pem in [
            format!("{}\n{}", identity.certificate_pem(), identity.key_pem()),
            format!("{}\n{}", identity.key_pem(), identity.certificate_pem()),
        ] {
            let read = Identity::from_combined_pem(&pem).unwrap();
            assert!(!read.certificate_pem().contains("PRIVATE") && !read.key_pem().contains("CERTIFICATE"));
            assert_eq!(read.chain().unwrap(), identity.chain().unwrap());
            assert_eq!(
                read.names().unwrap(),
                Names {
                    dns_names: wanted.dns_names.clone(),
                    ip_addresses: wanted.ip_addresses.clone(),
                }
            );
        }
        assert!(Identity::from_combined_pem(identity.certificate_pem()).is_err());
    }

    #[test]
    fn the_first_of_two_authorities_signs() {
        let [former, next] = [(); 2].map(|()| CertificateAuthority::generate("kubernetes").unwrap());
        let identity = former.issue(&Request::client("u", &[])).unwrap();
        let [former, next] = [&former, &next].map(CertificateAuthority::certificate_pem);
        for (authorities, is_former) in [
            (former.to_owned(), false),
            (format!("{former}{next}"), false),
            (format!("{next}{former}"), true),
            (next.to_owned(), false),
        ] {
            assert_eq!(identity.is_of_former(&authorities).unwrap(), is_former, "{authorities}");
        }
        assert!(identity.is_of_former("").is_err());
    }
}
