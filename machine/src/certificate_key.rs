//! The key that a control plane's certificates are encrypted with while they lie in the cluster: AES-256-GCM, as kubeadm's.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use serde::{Deserialize, Deserializer};

use crate::Error;

const LENGTH: usize = 32;

/// 32 bytes, typed and printed in hexadecimal. Whoever holds it and may read the Secret is the cluster.
#[derive(Clone, Eq, PartialEq)]
pub struct CertificateKey([u8; LENGTH]);

impl CertificateKey {
    /// A fresh one.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate() -> Result<Self, Error> {
        let mut bytes = [0; LENGTH];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::Random)?;
        Ok(Self(bytes))
    }

    fn cipher(&self) -> Result<RandomizedNonceKey, Error> {
        RandomizedNonceKey::new(&AES_256_GCM, &self.0).map_err(|_| Error::Random)
    }

    /// A fresh nonce, and behind it what only this key opens.
    pub(crate) fn encrypt(&self, plain: &[u8]) -> Result<Vec<u8>, Error> {
        let mut sealed = plain.to_vec();
        let nonce = self
            .cipher()?
            .seal_in_place_append_tag(Aad::empty(), &mut sealed)
            .map_err(|_| Error::Random)?;
        Ok([nonce.as_ref().as_slice(), &sealed].concat())
    }

    /// What was encrypted; `None` when it was not with this key, or is garbled.
    pub(crate) fn decrypt(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let plain = self
            .cipher()
            .ok()?
            .open_in_place(nonce, Aad::empty(), &mut sealed)
            .ok()?;
        Some(plain.to_vec())
    }
}

impl FromStr for CertificateKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The text is not shown: it may be a key with a slip of the finger.
        let refused = || {
            "a certificate key is 64 hexadecimal digits, as `skiff certs certificate-key` and `skiff init --upload-certs` print it"
                .to_owned()
        };
        if text.len() != 2 * LENGTH || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(refused());
        }
        let mut bytes = [0; LENGTH];
        for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| refused())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for CertificateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CertificateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateKey(..)")
    }
}

impl<'de> Deserialize<'de> for CertificateKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_opens() {
        let key = CertificateKey::generate().unwrap();
        let sealed = key.encrypt(b"a private key").unwrap();
        assert_eq!(key.decrypt(&sealed).unwrap(), b"a private key");
        assert_ne!(sealed, key.encrypt(b"a private key").unwrap());
        assert!(CertificateKey::generate().unwrap().decrypt(&sealed).is_none());
        let mut garbled = sealed.clone();
        garbled[NONCE_LEN] ^= 1;
        assert!(key.decrypt(&garbled).is_none());
        assert!(key.decrypt(b"short").is_none() && key.decrypt(&[]).is_none());
    }

    /// Test vector of the GCM specification (case 14 of McGrew and Viega: key, nonce and text of zeros), in kubeadm's form: nonce,
    /// ciphertext, tag.
    #[test]
    fn it_is_aes_256_gcm() {
        let key: CertificateKey = "0".repeat(64).parse().unwrap();
        let sealed = "000000000000000000000000cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919";
        let sealed: Vec<u8> = (0..sealed.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&sealed[at..at + 2], 16).unwrap())
            .collect();
        assert_eq!(key.decrypt(&sealed).unwrap(), [0; 16]);
    }

    #[test]
    fn a_key_has_one_form() {
        let key = CertificateKey::generate().unwrap();
        assert_eq!(key.to_string().parse::<CertificateKey>().unwrap(), key);
        for text in ["", "00", &"g".repeat(64), &"é".repeat(32), &"+0".repeat(32)] {
            assert!(text.parse::<CertificateKey>().is_err(), "{text}");
        }
        assert!(!format!("{key:?}").contains(&key.to_string()[..8]));
    }
}
