//! The key pair that signs service-account tokens.

use std::fmt;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PublicKeyData as _};

use crate::authority::generate_key;
use crate::identity::parse_key;
use crate::{Error, files};

/// An ECDSA P-256 key pair for ES256 tokens; on disk `sa.key` and `sa.pub`, as kubeadm names them.
pub struct ServiceAccountKey {
    pair: KeyPair,
}

impl ServiceAccountKey {
    /// A fresh pair.
    pub fn generate() -> Result<Self, Error> {
        generate_key().map(|pair| Self { pair })
    }

    /// Takes a private key in PEM.
    pub fn from_pem(private_pem: &str) -> Result<Self, Error> {
        parse_key("of service accounts", private_pem).map(|pair| Self { pair })
    }

    /// Reads `sa.key` in `directory`.
    pub fn load(directory: &Path) -> Result<Self, Error> {
        let path = directory.join("sa.key");
        let pair = parse_key(&path.display().to_string(), &files::read(&path)?)?;
        Ok(Self { pair })
    }

    /// Reads `sa.key` in `directory`, or makes it (and `sa.pub`, which is written again when missing).
    pub fn load_or_generate(directory: &Path) -> Result<Self, Error> {
        let key_path = directory.join("sa.key");
        let public_path = directory.join("sa.pub");
        let key = if key_path.exists() {
            Self::load(directory)?
        } else {
            let key = Self::generate()?;
            files::write_private(&key_path, key.private_pem().as_bytes())?;
            files::write_public(&public_path, key.public_pem().as_bytes())?;
            key
        };
        if !public_path.exists() {
            files::write_public(&public_path, key.public_pem().as_bytes())?;
        }
        Ok(key)
    }

    /// The private key, PKCS#8 PEM: what signs.
    pub fn private_pem(&self) -> String {
        self.pair.serialize_pem()
    }

    /// The public key, PEM: what verifies.
    pub fn public_pem(&self) -> String {
        self.pair.public_key_pem()
    }

    /// The `kid` of tokens signed with it, made as upstream makes it: the public key's SHA-256 in base64url.
    pub fn key_id(&self) -> String {
        URL_SAFE_NO_PAD.encode(digest(&SHA256, &self.pair.subject_public_key_info()))
    }
}

impl ServiceAccountKey {
    /// The public key as a JSON Web Key (RFC 7517): what others verify tokens with.
    pub fn jwk(&self) -> serde_json::Value {
        // An uncompressed point: 4, then both coordinates.
        let point = self.pair.der_bytes().get(1..).unwrap_or_default();
        let (x, y) = point.split_at(point.len() / 2);
        serde_json::json!({
            "use": "sig",
            "kty": "EC",
            "kid": self.key_id(),
            "alg": "ES256",
            "crv": "P-256",
            "x": URL_SAFE_NO_PAD.encode(x),
            "y": URL_SAFE_NO_PAD.encode(y),
        })
    }
}

impl fmt::Debug for ServiceAccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceAccountKey")
            .field("key_id", &self.key_id())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_survives_and_its_public_half_is_restored() {
        let directory = tempfile::tempdir().unwrap();
        let first = ServiceAccountKey::load_or_generate(directory.path()).unwrap();
        std::fs::remove_file(directory.path().join("sa.pub")).unwrap();
        let again = ServiceAccountKey::load_or_generate(directory.path()).unwrap();
        assert_eq!(first.key_id(), again.key_id());
        assert_eq!(
            files::read(&directory.path().join("sa.pub")).unwrap(),
            first.public_pem()
        );
        assert!(first.private_pem().starts_with("-----BEGIN PRIVATE KEY-----"));
    }
}
