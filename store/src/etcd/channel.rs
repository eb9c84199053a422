//! The connection: to one member after the other until one answers, with TLS where the URL says so.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::transport::{Channel, Endpoint};

use super::Options;
use crate::Error;

/// How long one member may take to let us in.
const CONNECT: Duration = Duration::from_secs(2);
/// A member that does not answer a ping of HTTP/2 within the second is given up; it is pinged each time that the first has passed.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5));
const PORT: u16 = 2379;

struct Member {
    host: String,
    port: u16,
    tls: bool,
}

struct Members {
    members: Vec<Member>,
    tls: Option<Tls>,
    /// Whom to ask first.
    turn: AtomicUsize,
}

/// How we are known and whom we trust, read anew for each connection: certificates are renewed while we run.
struct Tls {
    options: Options,
    /// As it was when it could be read last.
    current: Mutex<TlsConnector>,
}

/// A channel that connects when first used, and again whenever the connection is lost.
pub(super) fn connect(options: &Options) -> Result<Channel, Error> {
    let members: Vec<Member> = options
        .servers
        .iter()
        .map(|url| member(url))
        .collect::<Result<_, _>>()?;
    if members.is_empty() {
        return Err(wrong("no etcd servers are given".to_owned()));
    }
    let tls = members.iter().any(|member| member.tls) || options.ca_file.is_some();
    let members = Arc::new(Members {
        members,
        tls: tls.then(|| Tls::read(options)).transpose()?,
        turn: AtomicUsize::new(0),
    });
    let endpoint = Endpoint::from_static("http://etcd")
        .http2_keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let members = Arc::clone(&members);
        async move { members.connect().await.map(TokioIo::new) }
    })))
}

fn wrong(message: String) -> Error {
    Error::Configuration { message }
}

/// Reads `http://HOST:PORT` or `https://HOST:PORT`.
fn member(url: &str) -> Result<Member, Error> {
    let uri: http::Uri = url
        .parse()
        .map_err(|error| wrong(format!("{url:?} is not the URL of an etcd server: {error}")))?;
    let tls = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => {
            return Err(wrong(format!(
                "{url:?}: the URL of an etcd server begins with https:// or http://"
            )));
        }
    };
    let host = uri.host().ok_or_else(|| wrong(format!("{url:?} names no host")))?;
    Ok(Member {
        host: host.trim_matches(['[', ']']).to_owned(),
        port: uri.port_u16().unwrap_or(PORT),
        tls,
    })
}

fn connector(options: &Options) -> Result<TlsConnector, Error> {
    let Some(ca) = &options.ca_file else {
        return Err(wrong(
            "https needs --etcd-cafile, the authority of the servers' certificates".to_owned(),
        ));
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        let added = roots.add(certificate);
        added.map_err(|error| {
            wrong(format!(
                "{} holds a certificate that cannot be used: {error}",
                ca.display()
            ))
        })?;
    }
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let mut config = match (&options.cert_file, &options.key_file) {
        (Some(certificate), Some(key)) => {
            let secret = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| wrong(format!("cannot read the key in {}: {error}", key.display())))?;
            builder
                .with_client_auth_cert(certificates(certificate)?, secret)
                .map_err(|error| {
                    wrong(format!(
                        "{} and {} do not fit: {error}",
                        certificate.display(),
                        key.display()
                    ))
                })?
        }
        (None, None) => builder.with_no_client_auth(),
        _ => return Err(wrong("--etcd-certfile and --etcd-keyfile go together".to_owned())),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates =
        read.map_err(|error| wrong(format!("cannot read the certificates in {}: {error}", path.display())))?;
    if certificates.is_empty() {
        return Err(wrong(format!("{} holds no certificate", path.display())));
    }
    Ok(certificates)
}

impl Tls {
    fn read(options: &Options) -> Result<Self, Error> {
        Ok(Self {
            current: Mutex::new(connector(options)?),
            options: options.clone(),
        })
    }

    fn connector(&self) -> TlsConnector {
        let mut current = self.current.lock();
        match connector(&self.options) {
            Ok(read) => *current = read,
            Err(error) => tracing::warn!(%error, "still using the former certificates for etcd"),
        }
        current.clone()
    }
}

impl Members {
    /// The first member that lets us in; whoever is asked for again has failed, so the next time begins behind it.
    async fn connect(&self) -> io::Result<Connection> {
        let first = self.turn.load(Ordering::Relaxed);
        let mut last = io::Error::other("no etcd servers");
        for offset in 0..self.members.len() {
            let index = (first + offset) % self.members.len();
            let member = &self.members[index];
            match tokio::time::timeout(CONNECT, self.open(member)).await {
                Ok(Ok(connection)) => {
                    self.turn.store(index + 1, Ordering::Relaxed);
                    return Ok(connection);
                }
                Ok(Err(error)) => last = named(member, &error.to_string(), error.kind()),
                Err(_) => last = named(member, "no answer", io::ErrorKind::TimedOut),
            }
        }
        Err(last)
    }

    async fn open(&self, member: &Member) -> io::Result<Connection> {
        let tcp = TcpStream::connect((member.host.as_str(), member.port)).await?;
        tcp.set_nodelay(true)?;
        match (&self.tls, member.tls) {
            (Some(tls), true) => {
                let name = ServerName::try_from(member.host.clone()).map_err(io::Error::other)?;
                Ok(Connection::Tls(Box::new(tls.connector().connect(name, tcp).await?)))
            }
            _ => Ok(Connection::Plain(tcp)),
        }
    }
}

fn named(member: &Member, message: &str, kind: io::ErrorKind) -> io::Error {
    io::Error::new(kind, format!("{}:{}: {message}", member.host, member.port))
}

enum Connection {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::member;

    #[test]
    fn urls_name_a_member() {
        for (url, expected) in [
            ("https://10.0.0.1:2379", Some(("10.0.0.1", 2379, true))),
            ("http://etcd-1", Some(("etcd-1", 2379, false))),
            ("http://[::1]:4001/", Some(("::1", 4001, false))),
            ("10.0.0.1:2379", None),
            ("ftp://10.0.0.1", None),
            ("", None),
        ] {
            let read = member(url).ok();
            let read = read
                .as_ref()
                .map(|member| (member.host.as_str(), member.port, member.tls));
            assert_eq!(read, expected, "{url}");
        }
    }
}
