//! TLS connections in: who is there, what is asked, the date.
//!
//! One task a connection. A client certificate is read once, when the connection is made; every request on it carries the identity.
//! What clients can make the server hold is bounded by [`skiff_daemon::serve`].

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderValue;
use http::header::DATE;
use hyper::body::Incoming;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use rustls::ServerConfig;
use skiff_daemon::Shutdown;
use skiff_daemon::serve::{Bounds, Door, Place};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::authentication::{Certificate, Peer};
use crate::body;
use crate::server::Server;

/// Connections without a client certificate: all pods of a node may come from its address, and of a large cluster's two for each pod.
pub(crate) const STRANGERS: Bounds = Bounds {
    each: 1_000,
    all: 10_000,
};
/// How long open requests may go on after shutdown began; watches end at once.
const DRAIN: Duration = Duration::from_secs(10);

/// Accepts connections on `listener` until `shutdown`, then lets open requests end.
///
/// Each connection gets the TLS configuration of its time.
pub(crate) async fn serve(
    server: Arc<Server>,
    listener: TcpListener,
    tls: Arc<ArcSwap<ServerConfig>>,
    door: Arc<Door>,
    shutdown: Shutdown,
) {
    let connection = |stream, from| {
        let (server, door, shutdown) = (Arc::clone(&server), Arc::clone(&door), shutdown.clone());
        let acceptor = TlsAcceptor::from(tls.load_full());
        async move {
            if let Some((stream, place)) = door.enter(stream, from, acceptor, &shutdown).await {
                converse(server, stream, place, &shutdown).await;
            }
        }
    };
    skiff_daemon::serve::listen(listener, &shutdown, DRAIN, connection).await;
}

async fn converse(server: Arc<Server>, stream: TlsStream<TcpStream>, place: Option<Place>, shutdown: &Shutdown) {
    let peer = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|leaf| Certificate::parse(leaf))
        .map_or(Peer::Unknown, |certificate| Peer::Certificate(Arc::new(certificate)));
    let answer = |request: hyper::Request<Incoming>| {
        let server = Arc::clone(&server);
        let peer = peer.clone();
        async move {
            let mut response = server.handle(request.map(body::request), peer).await;
            response.headers_mut().insert(DATE, date(Timestamp::now()));
            response
        }
    };
    skiff_daemon::serve::converse(stream, answer, place, shutdown).await;
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
