//! HTTP and HTTPS requests of probes and hooks. Certificates are not checked: a probe asks whether a server answers.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use skiff_api::k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::{dial_error, port};

mod location;

use location::Place;

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
    /// The beginning of its text, or why that cannot be read.
    pub(crate) body: Result<String, String>,
}

/// What came back, as far as its headers.
struct Head {
    status: u16,
    location: Option<String>,
    body: Incoming,
    _driver: Driver,
}

/// What moves a connection's bytes, for as long as somebody waits for them.
struct Driver(AbortHandle);

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
        match location::resolve(self.https, &self.path, location) {
            Place::Here(path) => Some(Self { path, ..self.clone() }),
            Place::Elsewhere(url) => self.at(&url.parse().ok()?),
        }
    }

    fn at(&self, uri: &Uri) -> Option<Self> {
        if uri.host()?.trim_matches(['[', ']']) != self.host {
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

/// Sends the request of a probe, and reads what comes back: both in the time that the probe has.
pub(crate) async fn get(target: &Target, timeout: Duration) -> Result<Answer, String> {
    let end = Instant::now() + timeout;
    let head = tokio::time::timeout_at(end, follow(target)).await.unwrap_or_else(|_| {
        Err(format!(
            "Get {:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
            target.url()
        ))
    });
    let mut head = head?;
    // Like any other body that cannot be read, one that is late says nothing: what streams for ever has begun to answer.
    let body = tokio::time::timeout_at(end, head.text()).await.unwrap_or_else(|_| {
        Err("context deadline exceeded (Client.Timeout or context cancellation while reading body)".to_owned())
    });
    Ok(Answer {
        status: head.status,
        body,
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
async fn follow(target: &Target) -> Result<Head, String> {
    let mut target = target.clone();
    for _ in 0..=REDIRECTS {
        let head = once(&target).await?;
        let next = head.location.as_deref().filter(|_| (300..400).contains(&head.status));
        match next.and_then(|location| target.redirected(location)) {
            Some(next) => target = next,
            None => return Ok(head),
        }
    }
    Err(format!("Get {:?}: stopped after {REDIRECTS} redirects", target.url()))
}

async fn once(target: &Target) -> Result<Head, String> {
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

async fn send<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(target: &Target, stream: S) -> Result<Head, String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let driver = Driver(tokio::spawn(connection).abort_handle());
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
    let response = response.map_err(|error| skiff_daemon::error_chain(&error))?;
    let location = response.headers().get("location");
    let location = location.and_then(|value| value.to_str().ok()).map(str::to_owned);
    Ok(Head {
        status: response.status().as_u16(),
        location,
        body: response.into_body(),
        _driver: driver,
    })
}

impl Head {
    /// The beginning of the body.
    async fn text(&mut self) -> Result<String, String> {
        let mut text = Vec::new();
        while text.len() < LONGEST_BODY
            && let Some(frame) = self.body.frame().await
        {
            let frame = frame.map_err(|error| skiff_daemon::error_chain(&error))?;
            text.extend(frame.into_data().unwrap_or_default());
        }
        text.truncate(LONGEST_BODY);
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
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
        assert_eq!((answer.status, answer.body), (302, Ok("away".into())));
        let seen = server.await.unwrap();
        assert!(
            seen.contains("host: name\r\n") && !seen.contains(&format!("host: 127.0.0.1:{port}")),
            "{seen}"
        );
        assert!(seen.contains("x-a: 1\r\n") && seen.contains("x-a: 2\r\n"), "{seen}");
    }

    /// A server that accepts one connection for each of these answers, and leaves it open.
    async fn serve(answers: &[&str]) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answers: Vec<String> = answers.iter().map(|answer| format!("HTTP/1.1 {answer}")).collect();
        let server = tokio::spawn(async move {
            let (mut seen, mut open) = (Vec::new(), Vec::new());
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 1024];
                let length = stream.read(&mut buffer).await.unwrap();
                let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
                seen.push(request.split(' ').nth(1).unwrap_or_default().to_owned());
                stream.write_all(answer.as_bytes()).await.unwrap();
                open.push(stream);
            }
            // Until the client has gone.
            for mut stream in open {
                stream.read_to_end(&mut Vec::new()).await.ok();
            }
            seen
        });
        (port, server)
    }

    fn target(port: u16, path: &str) -> Target {
        Target {
            https: false,
            host: "127.0.0.1".into(),
            port,
            path: path.into(),
            headers: Vec::new(),
            agent: PROBE,
        }
    }

    #[tokio::test]
    async fn follows_redirects_that_are_relative() {
        let cases = [
            ("login.jsp", "/app/login.jsp"),
            ("../x?b#c", "/x?b"),
            ("?b", "/app/start?b"),
        ];
        for (location, path) in cases {
            let redirect = format!("302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
            let (port, server) = serve(&[&redirect, "404 Not Found\r\nContent-Length: 0\r\n\r\n"]).await;
            let answer = get(&target(port, "/app/start?a"), Duration::from_secs(5))
                .await
                .unwrap();
            assert_eq!(answer.status, 404, "{location}");
            assert_eq!(server.await.unwrap(), ["/app/start?a", path]);
        }
    }

    /// Of a server that begins to answer and hangs nothing can be said.
    #[tokio::test]
    async fn a_body_is_part_of_the_answer() {
        let (port, server) = serve(&["200 OK\r\nContent-Length: 4\r\n\r\nok"]).await;
        let late = get(&target(port, "/"), Duration::from_millis(200)).await.unwrap();
        let late = late.body.unwrap_err();
        assert!(late.ends_with("while reading body)"), "{late}");
        server.await.unwrap();
        // One that has more to say than is read has said enough.
        let long = format!("200 OK\r\nContent-Length: 1000000\r\n\r\n{}", "x".repeat(LONGEST_BODY));
        let (port, server) = serve(&[&long]).await;
        let answer = get(&target(port, "/"), Duration::from_secs(5)).await.unwrap();
        assert_eq!(answer.body.map(|body| body.len()), Ok(LONGEST_BODY));
        server.await.unwrap();
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
