//! Certificates: out of Secrets, the default one, and which one a client is shown.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs::{Ticketer, sign};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use skiff_pki::{CertificateAuthority, Request};

use crate::table::Table;

/// HTTP/2 first, HTTP/1.1 for upgrades and old clients.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// What is wrong with a certificate or its key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `tls.crt` is no PEM text with certificates.
    #[error("tls.crt holds no certificate in PEM form")]
    Certificate,
    /// `tls.key` is no PEM text with a private key.
    #[error("tls.key holds no private key in PEM form")]
    Key,
    /// The key cannot be used for TLS.
    #[error("tls.key is of a kind that cannot be used")]
    Unusable(#[source] rustls::Error),
    /// Certificate and key are not a pair.
    #[error("tls.key is not the key of the first certificate in tls.crt")]
    Mismatch(#[source] rustls::Error),
    /// The default certificate cannot be made.
    #[error("make the default certificate")]
    Default(#[source] skiff_pki::Error),
    /// TLS cannot be set up.
    #[error("set up TLS")]
    Tls(#[source] rustls::Error),
}

/// A certificate chain and its key out of two PEM texts, checked to belong together.
pub(crate) fn parse(certificate: &[u8], key: &[u8]) -> Result<CertifiedKey, Error> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<_, _>>()
        .map_err(|_| Error::Certificate)?;
    if chain.is_empty() {
        return Err(Error::Certificate);
    }
    // The cause is left out: it might quote the key.
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| Error::Key)?;
    let key = sign::any_supported_type(&key).map_err(Error::Unusable)?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(error) => Err(Error::Mismatch(error)),
    }
}

/// A certificate that nobody trusts, for hosts without one of their own.
pub(crate) fn default_certificate() -> Result<CertifiedKey, Error> {
    let authority = CertificateAuthority::generate("skiff ingress default").map_err(Error::Default)?;
    let request = Request::server("skiff ingress default certificate", &["ingress.invalid"], &[]);
    let identity = authority.issue(&request).map_err(Error::Default)?;
    parse(identity.certificate_pem().as_bytes(), identity.key_pem().as_bytes())
}

/// Chooses by the name that the client asks for.
struct Resolver {
    table: Arc<ArcSwap<Table>>,
    default: Arc<CertifiedKey>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let own = hello
            .server_name()
            .and_then(|name| self.table.load().certificate(&name.to_ascii_lowercase()));
        Some(own.unwrap_or_else(|| Arc::clone(&self.default)))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

/// A TLS server (1.2 and newer) that shows the certificates of the table.
pub(crate) fn server_config(table: Arc<ArcSwap<Table>>) -> Result<ServerConfig, Error> {
    let resolver = Resolver {
        table,
        default: Arc::new(default_certificate()?),
    };
    let mut config = ServerConfig::builder_with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
    // Sessions are kept by the clients, in tickets: no memory is used for them here.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = Ticketer::new().map_err(Error::Tls)?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(name: &str) -> skiff_pki::Identity {
        let authority = CertificateAuthority::generate("test").unwrap();
        authority.issue(&Request::server(name, &[name], &[])).unwrap()
    }

    #[test]
    fn a_pair_is_taken_and_everything_else_says_what_is_wrong() {
        let (one, other) = (identity("a.test"), identity("b.test"));
        let check = |certificate: &str, key: &str| {
            let parsed = parse(certificate.as_bytes(), key.as_bytes());
            parsed.map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(check(one.certificate_pem(), one.key_pem()), Ok(()));
        for (certificate, key, complaint) in [
            ("", one.key_pem(), "tls.crt holds no certificate in PEM form"),
            ("junk", one.key_pem(), "tls.crt holds no certificate in PEM form"),
            (one.certificate_pem(), "", "tls.key holds no private key in PEM form"),
            (
                one.certificate_pem(),
                one.certificate_pem(),
                "tls.key holds no private key in PEM form",
            ),
            (
                one.certificate_pem(),
                other.key_pem(),
                "tls.key is not the key of the first certificate in tls.crt",
            ),
        ] {
            assert_eq!(check(certificate, key), Err(complaint.to_owned()));
        }
    }
}
