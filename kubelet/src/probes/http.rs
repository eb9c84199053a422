//! HTTP and HTTPS requests of probes and hooks. Certificates are not checked: a probe asks whether a server answers.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use skiff_api::k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::{dial_error, port};

const REDIRECTS: usize = 10;
const PROBE: &str = "kube-probe/1.36";
const HOOK: &str = "kube-lifecycle/1.36";
/// What is said of an HTTPS request that meets a plain server.
const PLAIN: &str = "http: server gave HTTP response to HTTPS client";
/// As much of an answer as upstream reads.
const LONGEST_BODY: usize = 10 * 1024;

/// What to ask.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    https: bool,
    host: String,
    port: u16,
    path: String,
    headers: Vec<(String, String)>,
    agent: &'static str,
}

/// What came back.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Of a redirect: the beginning of its text.
    pub(crate) body: String,
    location: Option<String>,
}

impl Target {
    /// The target of an action; `address` is the pod's.
    pub(crate) fn new(action: &HTTPGetAction, container: &Container, address: Option<&str>) -> Result<Self, String> {
        let host = action
            .host
            .as_deref()
            .filter(|host| !host.is_empty())
            .or(address)
            .unwrap_or_default();
        let path = action.path.as_deref().unwrap_or_default();
        let headers = action.http_headers.iter().flatten();
        Ok(Self {
            https: action
                .scheme
                .as_deref()
                .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
            host: host.to_owned(),
            port: port(&action.port, container)?,
            path: format!("/{}", path.trim_start_matches('/')),
            headers: headers
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
            agent: PROBE,
        })
    }

    /// The same without TLS, and without what only TLS may carry.
    fn plain(&self) -> Self {
        let mut plain = self.clone();
        plain.https = false;
        plain
            .headers
            .retain(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
        plain
    }

    /// Host and port.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn url(&self) -> String {
        format!(
            "{}://{}{}",
            if self.https { "https" } else { "http" },
            self.authority(),
            self.path
        )
    }

    /// Where a redirect leads, if it stays on this host.
    fn redirected(&self, location: &str) -> Option<Self> {
        if location.starts_with('/') {
            return Some(Self {
                path: location.to_owned(),
                ..self.clone()
            });
        }
        let uri: Uri = location.parse().ok()?;
        if uri.host()? != self.host {
            return None;
        }
        let https = uri.scheme_str() == Some("https");
        Some(Self {
            https,
            port: uri.port_u16().unwrap_or(if https { 443 } else { 80 }),
            path: uri
                .path_and_query()
                .map(ToString::to_string)
                .unwrap_or_else(|| "/".into()),
            ..self.clone()
        })
    }
}

/// Sends the request of a probe.
pub(crate) async fn get(target: &Target, timeout: Duration) -> Result<Answer, String> {
    tokio::time::timeout(timeout, follow(target)).await.unwrap_or_else(|_| {
        Err(format!(
            "Get {:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
            target.url()
        ))
    })
}

/// Sends the request of a lifecycle hook, for as long as the caller waits: any answer will do. True when an HTTPS hook has met a
/// plain server, which then was asked as it wants to be.
pub(crate) async fn call(target: &Target) -> Result<bool, String> {
    let target = Target {
        agent: HOOK,
        ..target.clone()
    };
    let Err(error) = follow(&target).await else {
        return Ok(false);
    };
    if error.ends_with(PLAIN) && follow(&target.plain()).await.is_ok() {
        return Ok(true);
    }
    Err(error)
}

/// Follows redirects on the same host; one that leads elsewhere counts as an answer.
async fn follow(target: &Target) -> Result<Answer, String> {
    let mut target = target.clone();
    for _ in 0..=REDIRECTS {
        let answer = once(&target).await?;
        let next = answer
            .location
            .as_deref()
            .filter(|_| (300..400).contains(&answer.status));
        match next.and_then(|location| target.redirected(location)) {
            Some(next) => target = next,
            None => return Ok(answer),
        }
    }
    Err(format!("Get {:?}: stopped after {REDIRECTS} redirects", target.url()))
}

async fn once(target: &Target) -> Result<Answer, String> {
    let failed = |text: String| format!("Get {:?}: {text}", target.url());
    let stream = TcpStream::connect((target.host.as_str(), target.port))
        .await
        .map_err(|error| failed(dial_error(&target.host, target.port, &error)))?;
    if !target.https {
        return send(target, stream).await.map_err(failed);
    }
    let config = client_config().map_err(|error| failed(error.to_string()))?;
    let name =
        rustls::pki_types::ServerName::try_from(target.host.clone()).map_err(|error| failed(error.to_string()))?;
    let connector = tokio_rustls::TlsConnector::from(config);
    let stream = connector.connect(name, stream).await.map_err(|error| {
        let text = if is_plain(&error) {
            PLAIN.to_owned()
        } else {
            error.to_string()
        };
        failed(text)
    })?;
    send(target, stream).await.map_err(failed)
}

/// Whether the first byte was one that no TLS record begins with.
fn is_plain(error: &std::io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    matches!(
        cause,
        Some(rustls::Error::InvalidMessage(
            rustls::InvalidMessage::InvalidContentType
        ))
    )
}

/// Made once: it costs more than a probe.
fn client_config() -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
    static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(config.clone());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    // Each probe asks a server as if it had never met it.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(CONFIG.get_or_init(|| Arc::new(config)).clone())
}

async fn send<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    target: &Target,
    stream: S,
) -> Result<Answer, String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let driver = tokio::spawn(connection);
    let mut request = Request::get(&target.path)
        .header("Host", target.authority())
        .header("User-Agent", target.agent)
        .header("Accept", "*/*")
        .header("Connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let own: Vec<(HeaderName, HeaderValue)> = target
        .headers
        .iter()
        .filter_map(|(name, value)| Some((name.try_into().ok()?, value.try_into().ok()?)))
        .collect();
    // What the probe names replaces ours; a name may come twice, and an empty Accept or User-Agent means none.
    for (name, _) in &own {
        request.headers_mut().remove(name);
    }
    for (name, value) in own {
        if !(value.is_empty() && matches!(name.as_str(), "accept" | "user-agent")) {
            request.headers_mut().append(name, value);
        }
    }
    let response = sender.send_request(request).await;
    let response = response.map_err(|error| skiff_daemon::error_chain(&error));
    let answer = match response {
        Ok(response) => Ok(answer(response).await),
        Err(error) => Err(error),
    };
    driver.abort();
    answer
}

async fn answer(response: hyper::Response<hyper::body::Incoming>) -> Answer {
    let status = response.status();
    let location = response
        .headers()
        .get("location")
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let mut body = String::new();
    if status.is_redirection()
        && let Ok(text) = Limited::new(response.into_body(), LONGEST_BODY).collect().await
    {
        body = String::from_utf8_lossy(&text.to_bytes()).into_owned();
    }
    Answer {
        status: status.as_u16(),
        body,
        location,
    }
}

/// Accepts any certificate: upstream's probes do not verify either.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &rustls::pki_types::CertificateDer<'_>,
        _intermediates: &[rustls::pki_types::CertificateDer<'_>],
        _server_name: &rustls::pki_types::ServerName<'_>,
        _ocsp: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &rustls::pki_types::CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &rustls::pki_types::CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn follows_redirects_and_sends_headers() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let mut seen = Vec::new();
            for answer in ["302 Found\r\nLocation: /b", "500 Oops"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 1024];
                let length = stream.read(&mut buffer).await.unwrap();
                seen.push(String::from_utf8_lossy(&buffer[..length]).to_lowercase());
                let text = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(text.as_bytes()).await.unwrap();
            }
            seen
        });
        let target = Target {
            https: false,
            host: "127.0.0.1".into(),
            port,
            path: "/a".into(),
            headers: vec![("X-Token".into(), "t".into())],
            agent: PROBE,
        };
        assert_eq!(get(&target, Duration::from_secs(5)).await.unwrap().status, 500);
        let seen = server.await.unwrap();
        assert!(
            seen[0].starts_with("get /a ") && seen[0].contains("x-token: t"),
            "{seen:?}"
        );
        assert!(seen[1].starts_with("get /b "), "{seen:?}");
    }

    #[tokio::test]
    async fn a_redirect_to_another_host_is_an_answer() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            let length = stream.read(&mut buffer).await.unwrap();
            let text = "HTTP/1.1 302 Found\r\nLocation: http://elsewhere.invalid/\r\nContent-Length: 4\r\n\r\naway";
            stream.write_all(text.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&buffer[..length]).to_lowercase()
        });
        let target = Target {
            https: false,
            host: "127.0.0.1".into(),
            port,
            path: "/".into(),
            headers: vec![
                ("Host".into(), "name".into()),
                ("X-A".into(), "1".into()),
                ("X-A".into(), "2".into()),
            ],
            agent: PROBE,
        };
        let answer = get(&target, Duration::from_secs(5)).await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (302, "away"));
        let seen = server.await.unwrap();
        assert!(
            seen.contains("host: name\r\n") && !seen.contains(&format!("host: 127.0.0.1:{port}")),
            "{seen}"
        );
        assert!(seen.contains("x-a: 1\r\n") && seen.contains("x-a: 2\r\n"), "{seen}");
    }

    /// A hook asks whether it can be said, not what is thought of it; an HTTPS one is said to a plain server, too.
    #[tokio::test]
    async fn a_hook_takes_any_answer() {
        skiff_daemon::install_crypto();
        for (https, fallback) in [(false, false), (true, true)] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = tokio::spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let mut buffer = [0; 4096];
                    let length = stream.read(&mut buffer).await.unwrap();
                    let answer = "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n";
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    if buffer.starts_with(b"GET") {
                        return String::from_utf8_lossy(&buffer[..length]).to_lowercase();
                    }
                }
            });
            let target = Target {
                https,
                host: "127.0.0.1".into(),
                port,
                path: "/".into(),
                headers: vec![("Authorization".into(), "secret".into())],
                agent: PROBE,
            };
            assert_eq!(call(&target).await, Ok(fallback), "HTTPS: {https}");
            let seen = server.await.unwrap();
            assert!(seen.contains("user-agent: kube-lifecycle/1.36\r\n"), "{seen}");
            assert_eq!(seen.contains("secret"), !https, "{seen}");
            assert!(call(&target).await.is_err(), "nobody listens any more");
        }
    }
}
