//! The certificate authority of a cluster.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};

use crate::identity::{MAX_ORGANIZATIONS, belongs, certificates, parse_key, paths};
use crate::{Error, Identity, Request, Validity, files};

/// How long a new authority is valid: ten years, as kubeadm's.
pub const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long an issued certificate is valid unless asked otherwise: one year, as kubeadm's.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// Certificates begin this long ago, so that a node whose clock is a little behind accepts them.
pub(crate) const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

/// Signs certificates; its own is what others trust.
pub struct CertificateAuthority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl CertificateAuthority {
    /// A fresh authority.
    pub fn generate(common_name: &str) -> Result<Self, Error> {
        let key = generate_key()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::KeyCertSign,
        ];
        set_lifetime(&mut params, CA_LIFETIME);
        let certificate = params.self_signed(&key).map_err(|source| Error::Sign {
            common_name: common_name.to_owned(),
            source,
        })?;
        Ok(Self {
            certificate_pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads `<name>.crt` and `<name>.key` in `directory` (kubeadm's authority is named `ca`).
    pub fn load(directory: &Path, name: &str) -> Result<Self, Error> {
        let (certificate_path, key_path) = paths(directory, name);
        Self::from_pem(
            &certificate_path.display().to_string(),
            files::read(&certificate_path)?,
            &files::read(&key_path)?,
        )
    }

    /// Reads the authority in `directory`, or makes one there when neither of its files exists.
    ///
    /// One file without the other is an error: a new authority would silently cut off everything that trusts the old one.
    pub fn load_or_generate(directory: &Path, name: &str, common_name: &str) -> Result<Self, Error> {
        let (certificate, key) = paths(directory, name);
        match (certificate.exists(), key.exists()) {
            (true, true) => Self::load(directory, name),
            (true, false) => Err(Error::HalfMissing { path: key }),
            (false, true) => Err(Error::HalfMissing { path: certificate }),
            (false, false) => {
                let authority = Self::generate(common_name)?;
                authority.save(directory, name)?;
                Ok(authority)
            }
        }
    }

    /// Writes `<name>.key` (private) and `<name>.crt` in `directory`.
    pub fn save(&self, directory: &Path, name: &str) -> Result<(), Error> {
        let (certificate, key) = paths(directory, name);
        files::write_private(&key, self.issuer.key().serialize_pem().as_bytes())?;
        files::write_public(&certificate, self.certificate_pem.as_bytes())
    }

    /// The certificate to trust.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// When its certificate is valid.
    pub fn validity(&self) -> Result<Validity, Error> {
        Validity::of_pem(&self.certificate_pem)
    }

    /// Signs a certificate for a fresh ECDSA P-256 key.
    pub fn issue(&self, request: &Request) -> Result<Identity, Error> {
        let count = request.organizations.len();
        if count > MAX_ORGANIZATIONS {
            return Err(Error::TooManyOrganizations {
                common_name: request.common_name.clone(),
                count,
            });
        }
        let failed = |source| Error::Sign {
            common_name: request.common_name.clone(),
            source,
        };
        let key = generate_key()?;
        let mut params = request.params().map_err(failed)?;
        params.use_authority_key_identifier_extension = true;
        set_lifetime(&mut params, request.lifetime);
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Identity::from_pem(certificate.pem(), key.serialize_pem())
    }

    /// Reads `<name>.crt` and `<name>.key` in `directory`, or issues and writes them: when one is missing, they do not belong
    /// together, are near their end, or do not say what `request` asks for (a node got another address, the authority was replaced).
    pub fn load_or_issue(&self, directory: &Path, name: &str, request: &Request) -> Result<Identity, Error> {
        if let Some(identity) = Identity::load_if_whole(directory, name)?
            && self.still_serves(&identity, request)?
        {
            return Ok(identity);
        }
        let identity = self.issue(request)?;
        identity.save(directory, name)?;
        Ok(identity)
    }

    fn still_serves(&self, identity: &Identity, request: &Request) -> Result<bool, Error> {
        if identity.validity()?.should_renew(Timestamp::now()) {
            return Ok(false);
        }
        // Two certificates for the same request differ in serial number, key and dates only.
        let wanted = crate::validity::content(&self.issue(request)?.chain()?[0])?;
        Ok(crate::validity::content(&identity.chain()?[0])? == wanted)
    }

    pub(crate) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    fn from_pem(name: &str, certificate_pem: String, key_pem: &str) -> Result<Self, Error> {
        let key = parse_key(name, key_pem)?;
        let certificate = certificates(&certificate_pem, name)?.swap_remove(0);
        if !belongs(&certificate, &key, name)? {
            return Err(Error::KeyMismatch { name: name.to_owned() });
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|error| Error::ParseCertificate {
            name: name.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Self {
            certificate_pem,
            issuer,
        })
    }
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority").finish_non_exhaustive()
    }
}

pub(crate) fn generate_key() -> Result<KeyPair, Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::GenerateKey)
}

fn set_lifetime(params: &mut CertificateParams, lifetime: Duration) {
    let now = Timestamp::now();
    let end = now.checked_add(lifetime).unwrap_or(Timestamp::MAX);
    set_validity(params, now.checked_sub(CLOCK_SKEW).unwrap_or(now), end);
}

/// The span in which the certificate is valid, to the second.
pub(crate) fn set_validity(params: &mut CertificateParams, begin: Timestamp, end: Timestamp) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since = |at: Timestamp| Duration::from_secs(u64::try_from(at.as_second()).unwrap_or_default());
    params.not_before = epoch + since(begin);
    params.not_after = epoch + since(end);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Usage, peer_identity};

    #[test]
    fn an_authority_survives_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        let first = CertificateAuthority::load_or_generate(directory.path(), "ca", "kubernetes").unwrap();
        let again = CertificateAuthority::load_or_generate(directory.path(), "ca", "kubernetes").unwrap();
        assert_eq!(first.certificate_pem(), again.certificate_pem());
        again.issue(&Request::client("admin", &["system:masters"])).unwrap();
    }

    #[test]
    fn half_an_authority_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        CertificateAuthority::load_or_generate(directory.path(), "ca", "kubernetes").unwrap();
        std::fs::remove_file(directory.path().join("ca.key")).unwrap();
        let error = CertificateAuthority::load_or_generate(directory.path(), "ca", "kubernetes").unwrap_err();
        assert!(error.to_string().contains("ca.key is missing"), "{error}");
    }

    #[test]
    fn pairs_that_do_not_belong_together_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::generate("a").unwrap();
        authority.save(directory.path(), "ca").unwrap();
        CertificateAuthority::generate("b")
            .unwrap()
            .save(directory.path(), "other")
            .unwrap();
        std::fs::rename(directory.path().join("other.key"), directory.path().join("ca.key")).unwrap();
        assert!(matches!(
            CertificateAuthority::load(directory.path(), "ca"),
            Err(Error::KeyMismatch { .. })
        ));
    }

    #[test]
    fn a_pair_that_was_half_written_is_issued_anew() {
        let directory = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        let request = Request::client("u", &[]);
        let (certificate, key) = paths(directory.path(), "leaf");
        let other = authority.issue(&request).unwrap();
        let spoil: [&dyn Fn(); 3] = [
            &|| files::write_private(&key, other.key_pem().as_bytes()).unwrap(),
            &|| std::fs::remove_file(&key).unwrap(),
            &|| std::fs::remove_file(&certificate).unwrap(),
        ];
        for spoil in spoil {
            let former = authority.load_or_issue(directory.path(), "leaf", &request).unwrap();
            spoil();
            let anew = authority.load_or_issue(directory.path(), "leaf", &request).unwrap();
            assert_ne!(former, anew);
            assert_eq!(Identity::load(directory.path(), "leaf").unwrap(), anew);
        }
    }

    #[test]
    fn garbled_files_say_which() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.crt"), "nonsense").unwrap();
        std::fs::write(directory.path().join("ca.key"), "nonsense").unwrap();
        let error = CertificateAuthority::load(directory.path(), "ca").unwrap_err();
        assert!(error.to_string().contains("ca.crt"), "{error}");
    }

    #[test]
    fn subjects_name_users_and_groups() {
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        for groups in [&[][..], &["system:nodes"], &["a", "b"]] {
            let identity = authority.issue(&Request::client("system:node:n1", groups)).unwrap();
            let peer = peer_identity(&identity.chain().unwrap()[0]).unwrap();
            assert_eq!(peer.common_name, "system:node:n1");
            assert_eq!(peer.organizations, groups);
        }
        let three = authority.issue(&Request::client("u", &["a", "b", "c"]));
        assert!(matches!(three, Err(Error::TooManyOrganizations { .. })));
    }

    #[test]
    fn a_certificate_is_kept_until_it_no_longer_serves() {
        let directory = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        let request = Request::server("kube-apiserver", &["localhost"], &["10.96.0.1".parse().unwrap()]);
        let issue = |authority: &CertificateAuthority, request: &Request| {
            authority.load_or_issue(directory.path(), "apiserver", request).unwrap()
        };
        let first = issue(&authority, &request);
        assert_eq!(first, issue(&authority, &request));

        let mut moved = request.clone();
        moved.ip_addresses.push("192.0.2.7".parse().unwrap());
        let second = issue(&authority, &moved);
        assert_ne!(first, second);

        let mut both = moved.clone();
        both.usage = Usage::ClientAndServer;
        let third = issue(&authority, &both);
        assert_ne!(second, third);

        let other = CertificateAuthority::generate("kubernetes").unwrap();
        assert_ne!(third, issue(&other, &both));

        let fleeting = both.clone().lifetime(Duration::from_secs(1));
        authority
            .issue(&fleeting)
            .unwrap()
            .save(directory.path(), "apiserver")
            .unwrap();
        let renewed = issue(&authority, &both);
        assert!(renewed.validity().unwrap().remaining(Timestamp::now()) > LEAF_LIFETIME / 2);
    }
}
