//! Bootstrap tokens, `<id>.<secret>`: what a machine joins with, and what it knows the right cluster by.
//!
//! The format, the Secret's name and the signature of `cluster-info` are upstream's.

use std::fmt;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use aws_lc_rs::{constant_time, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::Error;

const ID: usize = 6;
const SECRET: usize = 16;
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
/// Random bytes from here on would make some letters likelier than others.
const FAIR: u8 = 252;

/// A token of the form `[a-z0-9]{6}.[a-z0-9]{16}`; the part before the dot is public, the part behind it is not.
#[derive(Clone, Eq, PartialEq)]
pub struct BootstrapToken {
    id: String,
    secret: String,
}

impl BootstrapToken {
    /// Reads a token.
    ///
    /// # Errors
    /// When it is of another form. The error does not repeat the text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        text.split_once('.')
            .and_then(|(id, secret)| Self::of_parts(id, secret))
            .ok_or(Error::BootstrapToken)
    }

    /// A token of its two halves; `None` when they are of another form.
    pub fn of_parts(id: &str, secret: &str) -> Option<Self> {
        (is_part(id, ID) && is_part(secret, SECRET)).then(|| Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
        })
    }

    /// A fresh one.
    pub fn generate() -> Result<Self, Error> {
        Ok(Self {
            id: random(ID)?,
            secret: random(SECRET)?,
        })
    }

    /// The public half.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The secret half: never for a log.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// The whole token: never for a log.
    pub fn reveal(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    /// The name of the Secret that it is kept in, in `kube-system`.
    pub fn secret_name(&self) -> String {
        format!("bootstrap-token-{}", self.id)
    }

    /// Whether the secret half is this one, told in a time that says nothing about where they differ.
    pub fn has_secret(&self, secret: &[u8]) -> bool {
        constant_time::verify_slices_are_equal(self.secret.as_bytes(), secret).is_ok()
    }

    /// The detached signature (JWS, HS256) of a text: what `jws-kubeconfig-<id>` of ConfigMap `cluster-info` holds.
    pub fn sign_detached(&self, content: &str) -> String {
        let header = format!("{{\"alg\":\"HS256\",\"kid\":\"{}\"}}", self.id);
        let header = URL_SAFE_NO_PAD.encode(header);
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.secret.as_bytes());
        let tag = hmac::sign(&key, signed.as_bytes());
        format!("{header}..{}", URL_SAFE_NO_PAD.encode(tag))
    }

    /// Whether a detached signature is that of this token over a text.
    pub fn verifies(&self, content: &str, signature: &str) -> bool {
        constant_time::verify_slices_are_equal(self.sign_detached(content).as_bytes(), signature.as_bytes()).is_ok()
    }
}

impl fmt::Debug for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootstrapToken")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

fn is_part(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| ALPHABET.contains(&byte))
}

fn random(length: usize) -> Result<String, Error> {
    let source = SystemRandom::new();
    let mut text = String::with_capacity(length);
    let mut bytes = [0; SECRET];
    while text.len() < length {
        source.fill(&mut bytes).map_err(|_| Error::Random)?;
        let letters = bytes.iter().filter(|byte| **byte < FAIR);
        let letters = letters.map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]));
        text.extend(letters.take(length - text.len()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tokens_of_the_right_form_are_taken() {
        let token = BootstrapToken::parse("07401b.f395accd246ae52d").unwrap();
        assert_eq!(
            (token.id(), token.secret_name().as_str()),
            ("07401b", "bootstrap-token-07401b")
        );
        assert!(token.has_secret(b"f395accd246ae52d") && !token.has_secret(b"f395accd246ae52e"));
        for text in [
            "",
            "07401b",
            "07401b.",
            "07401b.f395accd246ae52",
            "07401b.f395accd246ae52dd",
            "07401B.f395accd246ae52d",
            "07401b.f395accd246ae52d ",
            "07401b.f395.ccd246ae52d",
            "07401é.f395accd246ae52d",
        ] {
            let error = BootstrapToken::parse(text).unwrap_err().to_string();
            assert!(text.is_empty() || !error.contains(text), "{error}");
        }
    }

    #[test]
    fn fresh_tokens_are_tokens_and_differ() {
        let (one, two) = (BootstrapToken::generate().unwrap(), BootstrapToken::generate().unwrap());
        assert_eq!(BootstrapToken::parse(&one.reveal()).unwrap(), one);
        assert_ne!(one, two);
        assert!(!format!("{one:?}").contains(one.secret()));
    }

    #[test]
    fn a_signature_holds_for_one_text_and_one_token() {
        let token = BootstrapToken::parse("abcdef.0123456789abcdef").unwrap();
        let signature = token.sign_detached("kubeconfig");
        // {"alg":"HS256","kid":"abcdef"}
        assert!(
            signature.starts_with("eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9.."),
            "{signature}"
        );
        assert!(token.verifies("kubeconfig", &signature));
        assert!(!token.verifies("kubeconfi", &signature));
        let other = BootstrapToken::parse("abcdef.0123456789abcdee").unwrap();
        assert!(!other.verifies("kubeconfig", &signature));
    }
}
