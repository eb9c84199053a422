//! TLS connections in: accept loop, limits, drain.
//!
//! One task a connection. A client certificate is read once, when the connection is made; every request on it carries the identity.
//! Whoever shows none is a stranger: there is room for so many of them, and a connection that says nothing does not last.

mod opening;

use std::cell::RefCell;
use std::convert::Infallible;
use std::sync::{Arc, Once};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::DATE;
use http::{HeaderValue, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use rustls::ServerConfig;
use skiff_daemon::{Shutdown, error_chain};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use crate::authentication::{Certificate, Peer};
use crate::body::{self, Body};
use crate::server::Server;

use opening::Opening;

const HANDSHAKE: Duration = Duration::from_secs(10);
/// Until a connection has said which HTTP it speaks, and then for the head of each HTTP/1 request.
const HEADERS: Duration = Duration::from_secs(32);
/// Connections without a client certificate: two for each pod of a large cluster, and a bound on what anybody can make the server hold.
const STRANGERS: usize = 10_000;
/// How long open requests may go on after shutdown began; watches end at once.
const DRAIN: Duration = Duration::from_secs(10);

/// The room for connections of nobody known.
#[derive(Debug)]
pub(crate) struct Strangers {
    room: Arc<Semaphore>,
    told: Once,
}

impl Default for Strangers {
    fn default() -> Self {
        Self::new(STRANGERS)
    }
}

impl Strangers {
    fn new(room: usize) -> Self {
        Self {
            room: Arc::new(Semaphore::new(room)),
            told: Once::new(),
        }
    }

    /// A place for `peer`, for as long as it is held; an error when there is none. Whoever showed a certificate needs none.
    fn admit(&self, peer: &Peer) -> Result<Option<OwnedSemaphorePermit>, ()> {
        if !matches!(peer, Peer::Unknown) {
            return Ok(None);
        }
        let place = Arc::clone(&self.room).try_acquire_owned();
        place.map(Some).map_err(|_| {
            self.told.call_once(|| {
                tracing::warn!(
                    "{STRANGERS} connections without a client certificate are open: further ones are closed until some end \
                     (this is told once)"
                );
            });
        })
    }
}

/// Accepts connections on `listener` until `shutdown`, then lets open requests end.
///
/// Each connection gets the TLS configuration of its time.
pub(crate) async fn serve(
    server: Arc<Server>,
    listener: TcpListener,
    tls: Arc<ArcSwap<ServerConfig>>,
    strangers: Arc<Strangers>,
    shutdown: Shutdown,
) {
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(
                    Arc::clone(&server),
                    stream,
                    TlsAcceptor::from(tls.load_full()),
                    Arc::clone(&strangers),
                    graceful.watcher(),
                );
                tokio::spawn(connection);
            }
            Err(error) => {
                // Out of file descriptors, most likely: give connections time to end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still open after {DRAIN:?}: they are cut off");
    }
}

async fn connection(
    server: Arc<Server>,
    stream: TcpStream,
    acceptor: TlsAcceptor,
    strangers: Arc<Strangers>,
    watcher: Watcher,
) {
    stream.set_nodelay(true).ok();
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let peer = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|leaf| Certificate::parse(leaf))
        .map_or(Peer::Unknown, |certificate| Peer::Certificate(Arc::new(certificate)));
    let Ok(_place) = strangers.admit(&peer) else { return };
    let answer = move |request: hyper::Request<Incoming>| {
        let server = Arc::clone(&server);
        let peer = peer.clone();
        async move {
            let mut response = server.handle(request.map(body::request), peer).await;
            response.headers_mut().insert(DATE, date(Timestamp::now()));
            response
        }
    };
    converse(stream, answer, watcher).await;
}

/// Answers the requests on a stream, in the HTTP that it speaks.
async fn converse<F>(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    answer: impl Fn(hyper::Request<Incoming>) -> F,
    watcher: Watcher,
) where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let service = hyper::service::service_fn(move |request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let builder = builder();
    let stream = TokioIo::new(Opening::new(stream, HEADERS));
    let connection = builder.serve_connection_with_upgrades(stream, service);
    if let Err(error) = watcher.watch(connection.into_owned()).await {
        tracing::debug!(error = error_chain(&*error), "connection ended");
    }
}

/// The time as HTTP writes it, made once a second. hyper's own stands still while a clock that was set back catches up, and `skiff join`
/// compares clocks by it.
fn date(now: Timestamp) -> HeaderValue {
    thread_local! {
        static LAST: RefCell<(i64, HeaderValue)> = const { RefCell::new((i64::MIN, HeaderValue::from_static(""))) };
    }
    LAST.with_borrow_mut(|(second, value)| {
        if *second != now.as_second() {
            let text = DateTimePrinter::new().timestamp_to_rfc9110_string(&now);
            let made = text.ok().and_then(|text| HeaderValue::try_from(text).ok());
            *value = made.unwrap_or(HeaderValue::from_static(""));
            *second = now.as_second();
        }
        value.clone()
    })
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(64 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(15))
        .max_concurrent_streams(1000)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_frame_size(64 * 1024)
        .max_send_buf_size(256 * 1024)
        // A client that opens and resets streams without end is cut off.
        .max_pending_accept_reset_streams(100)
        .max_local_error_reset_streams(Some(1024))
        .max_header_list_size(64 * 1024);
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::{Instant, timeout};

    /// Says `opening` and no more; how long the connection lasts, and what was answered.
    async fn lasts(opening: &'static [u8]) -> (Duration, Vec<u8>) {
        let graceful = GracefulShutdown::new();
        let (mut client, server) = tokio::io::duplex(1 << 16);
        // Slower than the patience with openings: that is not what is waited for then.
        let answer = |_| async {
            tokio::time::sleep(HEADERS * 2).await;
            Response::new(Body::Empty)
        };
        let begin = Instant::now();
        tokio::spawn(converse(server, answer, graceful.watcher()));
        client.write_all(opening).await.unwrap();
        let mut heard = Vec::new();
        let ended = timeout(HEADERS * 100, client.read_to_end(&mut heard)).await;
        ended.expect("it is held for ever").unwrap();
        (begin.elapsed(), heard)
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_not_waited_for() {
        let pings = Duration::from_secs(30 + 15);
        for (opening, at_most) in [
            (&b""[..], HEADERS),
            (b"P", HEADERS),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", HEADERS),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", pings),
            (b"GET /", HEADERS),
            (b"PRI * HTTP/1.1\r\n", HEADERS),
        ] {
            let (lasted, _) = lasts(opening).await;
            let shown = String::from_utf8_lossy(opening);
            assert!(lasted <= at_most + Duration::from_secs(1), "{shown:?}: {lasted:?}");
        }
        // Shorter than HTTP/2's opening, and whole.
        let (lasted, heard) = lasts(b"GET / HTTP/1.0\r\n\r\n").await;
        assert!(heard.starts_with(b"HTTP/1.0 200 OK"), "{heard:?} after {lasted:?}");
    }

    #[test]
    fn strangers_have_so_much_room() {
        let strangers = Strangers::new(1);
        let first = strangers.admit(&Peer::Unknown);
        assert!(matches!(first, Ok(Some(_))));
        assert!(strangers.admit(&Peer::Unknown).is_err());
        let known = Peer::InProcess(Arc::new(crate::authentication::User::anonymous()));
        assert!(matches!(strangers.admit(&known), Ok(None)));
        drop(first);
        assert!(strangers.admit(&Peer::Unknown).is_ok());
    }

    #[test]
    fn the_date_follows_a_clock_that_is_set_back() {
        let now: Timestamp = "1994-11-06T08:49:37.5Z".parse().unwrap();
        let hour = jiff::SignedDuration::from_hours(1);
        for (at, wanted) in [
            (now, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (now + hour, "Sun, 06 Nov 1994 09:49:37 GMT"),
            (now - hour, "Sun, 06 Nov 1994 07:49:37 GMT"),
        ] {
            assert_eq!(date(at), wanted);
        }
    }
}
