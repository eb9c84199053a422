//! TLS: the certificate by the name that the client asks for, both versions of HTTP, broken Secrets.

use std::sync::Arc;

use http::{Request, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::world::{HTTPS, code, get, identity, in_world};

/// Takes every certificate, but only with its key.
#[derive(Debug)]
struct Any(CryptoProvider);

impl ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

async fn handshake(name: &str, protocols: &[&str]) -> TlsStream<TcpStream> {
    let verifier = Arc::new(Any(aws_lc_rs::default_provider()));
    let mut config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TcpStream::connect(HTTPS).await.unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap()
}

async fn shown(name: &str) -> CertificateDer<'static> {
    handshake(name, &[]).await.get_ref().1.peer_certificates().unwrap()[0]
        .clone()
        .into_owned()
}

fn leaf(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[test]
fn each_host_shows_its_certificate_and_a_broken_one_disturbs_no_other() {
    in_world(
        |_| {},
        async |world| {
            let (one, wild, broken) = (identity("one.test"), identity("*.wild.test"), identity("broken.test"));
            world.echo(1);
            world.service("a", None, &[1]);
            world.secret("one", one.certificate_pem(), one.key_pem());
            world.secret("wild", wild.certificate_pem(), wild.key_pem());
            world.secret("broken", broken.certificate_pem(), one.key_pem());
            let tls = |host: &str, secret: &str| json!({"tls": [{"hosts": [host], "secretName": secret}]});
            world.ingress("one", &[("one.test", "/", "a")], tls("one.test", "one"));
            world.ingress("wild", &[("*.wild.test", "/", "a")], tls("*.wild.test", "wild"));
            world.ingress("broken", &[("broken.test", "/", "a")], tls("broken.test", "broken"));
            world
                .until(&get("broken.test", "/"), |answer| code(answer) == 308)
                .await;

            assert_eq!(shown("one.test").await, leaf(one.certificate_pem()));
            assert_eq!(shown("x.wild.test").await, leaf(wild.certificate_pem()));
            let default = shown("other.test").await;
            assert_eq!(shown("broken.test").await, default);
            assert_eq!(shown("x.y.wild.test").await, default);

            let event = world.written("events", |_| true).await;
            assert_eq!(
                (&event["reason"], &event["involvedObject"]["name"]),
                (&json!("InvalidCertificate"), &json!("broken"))
            );
            let message = event["message"].as_str().unwrap();
            assert!(
                message.starts_with("Secret n/broken: tls.key is not the key of the first certificate in tls.crt"),
                "{message}"
            );
            assert!(
                message.ends_with("; the default certificate is shown for broken.test"),
                "{message}"
            );

            // It is mended: the next connection shows it.
            world.secret("broken", broken.certificate_pem(), broken.key_pem());
            while shown("broken.test").await != leaf(broken.certificate_pem()) {
                tokio::task::yield_now().await;
            }
        },
    );
}

#[test]
fn both_versions_of_http_are_spoken_through_tls() {
    in_world(
        |_| {},
        async |world| {
            world.one_site().await;

            let stream = handshake("one.test", &["h2", "http/1.1"]).await;
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
            tokio::spawn(connection);
            let request = Request::get("https://one.test/x")
                .version(Version::HTTP_2)
                .body(Empty::<bytes::Bytes>::new());
            let response = sender.send_request(request.unwrap()).await.unwrap();
            assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let text = String::from_utf8_lossy(&body);
            assert!(
                text.contains("GET /x HTTP/1.1\nhost: one.test\n") && text.contains("x-forwarded-proto: https"),
                "{text}"
            );

            let stream = handshake("one.test", &["http/1.1"]).await;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            let request = Request::get("/y")
                .header("host", "one.test")
                .body(Empty::<bytes::Bytes>::new());
            let response = sender.send_request(request.unwrap()).await.unwrap();
            assert_eq!(response.status().as_u16(), 200);
        },
    );
}
