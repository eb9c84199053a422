//! TLS connections in: accept loop, limits, drain.
//!
//! One task a connection. A client certificate is read once, when the connection is made; every request on it carries the identity.

use std::cell::RefCell;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderValue;
use http::header::DATE;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use rustls::ServerConfig;
use skiff_daemon::{Shutdown, error_chain};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::authentication::{Certificate, Peer};
use crate::body;
use crate::server::Server;

const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADERS: Duration = Duration::from_secs(32);
/// How long open requests may go on after shutdown began; watches end at once.
const DRAIN: Duration = Duration::from_secs(10);

/// Accepts connections on `listener` until `shutdown`, then lets open requests end.
///
/// Each connection gets the TLS configuration of its time.
pub(crate) async fn serve(
    server: Arc<Server>,
    listener: TcpListener,
    tls: Arc<ArcSwap<ServerConfig>>,
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
    watcher: hyper_util::server::graceful::Watcher,
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
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let server = Arc::clone(&server);
        let peer = peer.clone();
        async move {
            let mut response = server.handle(request.map(body::request), peer).await;
            response.headers_mut().insert(DATE, date(Timestamp::now()));
            Ok::<_, Infallible>(response)
        }
    });
    let builder = builder();
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
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
