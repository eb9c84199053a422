//! TLS from identities: who a server is, whom it trusts, and who connected.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};

use crate::identity::certificates;
use crate::{Error, Identity, validity};

/// HTTP/2 first, HTTP/1.1 for upgrades and old clients.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Whom a client certificate names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerIdentity {
    /// Subject CN: the user.
    pub common_name: String,
    /// Subject O entries: the groups.
    pub organizations: Vec<String>,
}

/// The oldest TLS that a server speaks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OldestTls {
    /// 1.2.
    #[default]
    V12,
    /// 1.3.
    V13,
}

/// A TLS server (1.2 and newer) that shows `identity`, and checks client certificates against `client_ca_pem` where the
/// client sends one. Without an authority, no client certificate is asked for.
pub fn server_config(identity: &Identity, client_ca_pem: Option<&str>) -> Result<ServerConfig, Error> {
    server_config_since(OldestTls::V12, identity, client_ca_pem)
}

/// [`server_config`] for a server that speaks `oldest` and newer.
pub fn server_config_since(
    oldest: OldestTls,
    identity: &Identity,
    client_ca_pem: Option<&str>,
) -> Result<ServerConfig, Error> {
    let versions: &[_] = match oldest {
        OldestTls::V12 => &[&version::TLS13, &version::TLS12],
        OldestTls::V13 => &[&version::TLS13],
    };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(failed("choose protocol versions"))?;
    let builder = match client_ca_pem {
        None => builder.with_no_client_auth(),
        Some(pem) => builder.with_client_cert_verifier(client_verifier(pem)?),
    };
    let mut config = builder
        .with_single_cert(identity.chain()?, identity.private_key()?)
        .map_err(failed("use the server's certificate and key"))?;
    config.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// Whether a server can go by these authorities of its clients: why not, where it cannot.
pub fn check_client_ca(pem: &str) -> Result<(), Error> {
    client_verifier(pem).map(drop)
}

fn client_verifier(pem: &str) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots(pem)?), provider())
        .allow_unauthenticated()
        .build()
        .map_err(failed("trust the clients' certificate authority"))
}

/// A TLS client that trusts servers signed by `ca_pem`, and shows `identity` if it has one.
pub fn client_config(identity: Option<&Identity>, ca_pem: &str) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(failed("choose protocol versions"))?
        .with_root_certificates(roots(ca_pem)?);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder
            .with_client_auth_cert(identity.chain()?, identity.private_key()?)
            .map_err(failed("use the client's certificate and key"))?,
    };
    config.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// The user and groups that a client certificate names. It must have been verified already.
pub fn peer_identity(certificate_der: &[u8]) -> Result<PeerIdentity, Error> {
    let certificate = validity::parse(certificate_der)?;
    let subject = certificate.subject();
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| attribute.as_str().ok().map(str::to_owned);
    Ok(PeerIdentity {
        common_name: subject.iter_common_name().next().and_then(text).unwrap_or_default(),
        organizations: subject.iter_organization().filter_map(text).collect(),
    })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn roots(pem: &str) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, "of the authority")? {
        roots
            .add(certificate)
            .map_err(failed("trust a certificate authority"))?;
    }
    Ok(roots)
}

fn failed<E: std::error::Error + Send + Sync + 'static>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Tls {
        step,
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;
    use rustls::{ClientConnection, ServerConnection};

    use super::*;
    use crate::{CertificateAuthority, Request};

    /// Shakes hands in memory; the user that the server saw, or the first error.
    fn handshake(server: ServerConfig, client: ClientConfig) -> Result<Option<PeerIdentity>, rustls::Error> {
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name)?;
        let mut server = ServerConnection::new(Arc::new(server))?;
        let mut buffer = Vec::new();
        while client.is_handshaking() || server.is_handshaking() {
            client.write_tls(&mut buffer).unwrap();
            let mut bytes = &buffer[..];
            while !bytes.is_empty() {
                server.read_tls(&mut bytes).unwrap();
            }
            server.process_new_packets()?;
            buffer.clear();
            server.write_tls(&mut buffer).unwrap();
            let mut bytes = &buffer[..];
            while !bytes.is_empty() {
                client.read_tls(&mut bytes).unwrap();
            }
            client.process_new_packets()?;
            buffer.clear();
        }
        assert_eq!(server.alpn_protocol(), Some(&b"h2"[..]));
        Ok(server
            .peer_certificates()
            .map(|chain| peer_identity(&chain[0]).unwrap()))
    }

    #[test]
    fn clients_are_known_by_certificate_anonymous_or_refused() {
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        let stranger = CertificateAuthority::generate("kubernetes").unwrap();
        let trusted = authority.certificate_pem();
        let server_identity = authority.issue(&Request::server("s", &["localhost"], &[])).unwrap();
        let node = Request::client("system:node:n", &["system:nodes"]);
        let run = |identity: Option<&Identity>, ca: &str| {
            let server = server_config(&server_identity, Some(trusted)).unwrap();
            handshake(server, client_config(identity, ca).unwrap())
        };

        let known = authority.issue(&node).unwrap();
        let peer = run(Some(&known), trusted).unwrap().unwrap();
        assert_eq!(peer.common_name, "system:node:n");
        assert_eq!(peer.organizations, ["system:nodes"]);
        assert_eq!(run(None, trusted).unwrap(), None);
        assert!(run(Some(&stranger.issue(&node).unwrap()), trusted).is_err());
        assert!(run(None, stranger.certificate_pem()).is_err());
    }
    #[test]
    fn a_server_of_tls_1_3_refuses_older_clients() {
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        let identity = authority.issue(&Request::server("s", &["localhost"], &[])).unwrap();
        let old_client = || {
            let builder = ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&version::TLS12])
                .unwrap();
            let mut config = builder
                .with_root_certificates(roots(authority.certificate_pem()).unwrap())
                .with_no_client_auth();
            config.alpn_protocols = vec![b"h2".to_vec()];
            config
        };
        for (oldest, lets_in) in [(OldestTls::V12, true), (OldestTls::V13, false)] {
            let server = server_config_since(oldest, &identity, None).unwrap();
            assert_eq!(handshake(server, old_client()).is_ok(), lets_in, "{oldest:?}");
        }
    }
}
