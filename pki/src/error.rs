//! What can go wrong with keys, certificates and kubeconfig files.

use std::path::PathBuf;

/// A failed step; the path or name says on what.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// A file could not be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A fresh key could not be made.
    #[error("generate a private key")]
    GenerateKey(#[source] rcgen::Error),
    /// Text that should hold a private key does not.
    #[error("parse the private key {name}: it should be a PEM file holding one unencrypted key")]
    ParseKey {
        /// Which key.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
    /// Bytes that should hold a certificate do not.
    #[error("parse the certificate {name}: {reason}; it should be a PEM file holding X.509 certificates")]
    ParseCertificate {
        /// Which certificate.
        name: String,
        /// What the parser said.
        reason: String,
    },
    /// A certificate and a key that should belong together do not.
    #[error(
        "the certificate {name} does not belong to the private key beside it: restore the pair; `skiff certs renew` makes another, where it is no authority's"
    )]
    KeyMismatch {
        /// Which pair.
        name: String,
    },
    /// Only one half of a pair of files is there.
    #[error("{} is missing, but its other half is there: restore it; `skiff certs renew` makes another pair, where it is no authority's", path.display())]
    HalfMissing {
        /// The missing file.
        path: PathBuf,
    },
    /// A certificate could not be signed.
    #[error("sign a certificate for {common_name:?}")]
    Sign {
        /// Whom it was for.
        common_name: String,
        /// Why.
        source: rcgen::Error,
    },
    /// More organizations were asked for than a certificate can name.
    #[error("sign a certificate for {common_name:?}: {count} organizations asked for, at most two can be named")]
    TooManyOrganizations {
        /// Whom it was for.
        common_name: String,
        /// How many were asked for.
        count: usize,
    },
    /// Text that should be a bootstrap token is not.
    #[error(
        "not a bootstrap token: it should be of the form \"abcdef.0123456789abcdef\"; skiff token list shows those that there are"
    )]
    BootstrapToken,
    /// The system gave no random bytes.
    #[error("get random bytes from the system")]
    Random,
    /// Bytes that should hold a certificate signing request do not.
    #[error("parse a certificate signing request: {reason}")]
    ParseRequest {
        /// What the parser said.
        reason: String,
    },
    /// A certificate signing request asks for what cannot be said in a certificate of ours.
    #[error("refuse a certificate signing request: {reason}")]
    RefuseRequest {
        /// What cannot be said.
        reason: String,
    },
    /// The TLS library refused a key, a certificate or an authority.
    #[error("set up TLS: {step}")]
    Tls {
        /// What it was asked to do.
        step: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A kubeconfig file is not valid.
    #[error("parse kubeconfig {}: {reason}", path.display())]
    ParseKubeconfig {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A kubeconfig is valid, but does not say what is needed.
    #[error("kubeconfig {}: {reason}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
}

pub use PkiError as Error;
