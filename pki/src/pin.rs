//! Knowing an authority by the hash of its public key, as kubeadm's `--discovery-token-ca-cert-hash` does.

use aws_lc_rs::digest::{SHA256, digest};

use crate::identity::certificates;
use crate::{Error, validity};

/// `sha256:` and the hash, in hexadecimal, of the public key (its SubjectPublicKeyInfo, RFC 7469) of the first certificate in a PEM
/// text.
///
/// # Errors
/// When there is no certificate in it.
pub fn public_key_pin(certificate_pem: &str) -> Result<String, Error> {
    pin(&certificates(certificate_pem, "given as text")?[0])
}

/// The same for every certificate in a PEM text.
///
/// # Errors
/// When there is no certificate in it.
pub fn public_key_pins(certificates_pem: &str) -> Result<Vec<String>, Error> {
    certificates(certificates_pem, "given as text")?
        .iter()
        .map(|der| pin(der))
        .collect()
}

fn pin(der: &[u8]) -> Result<String, Error> {
    let certificate = validity::parse(der)?;
    let hash = digest(&SHA256, certificate.public_key().raw);
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{hex}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CertificateAuthority;

    #[test]
    fn a_pin_stays_with_the_key() {
        let one = CertificateAuthority::generate("kubernetes").unwrap();
        let other = CertificateAuthority::generate("kubernetes").unwrap();
        let pin = public_key_pin(one.certificate_pem()).unwrap();
        assert!(pin.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64), "{pin}");
        let both = format!("{}{}", other.certificate_pem(), one.certificate_pem());
        assert_eq!(public_key_pins(&both).unwrap()[1], pin);
        assert_ne!(public_key_pin(&both).unwrap(), pin);
        assert!(public_key_pin("nothing").is_err());
    }

    /// As `openssl x509 -pubkey | openssl pkey -pubin -outform der | openssl dgst -sha256` said of this certificate.
    #[test]
    fn a_pin_is_what_openssl_says() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.crt");
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        std::fs::write(&path, authority.certificate_pem()).unwrap();
        let script = format!(
            "openssl x509 -pubkey -noout -in {} | openssl pkey -pubin -outform der | openssl dgst -sha256 -r",
            path.display()
        );
        let said = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        let wanted = format!("sha256:{}", said.split(' ').next().unwrap());
        assert_eq!(public_key_pin(authority.certificate_pem()).unwrap(), wanted);
    }
}
