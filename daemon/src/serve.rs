//! HTTPS to whoever comes: what clients can make a process hold is bounded, and does not last.
//!
//! Everybody is a stranger until the TLS handshake has shown a client certificate, and so many connections of strangers may be open: of
//! one address, so that one pod cannot keep others out, and of all ([`Room`]). Handshake, first bytes and each head have a time; a
//! connection on which nothing is asked ends. An upgraded stream (exec, port-forward) keeps its place and may be silent. [`listen`] spawns
//! one task a connection and waits for them at the shutdown.

mod activity;
mod opening;
mod room;
mod seated;

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body, Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use crate::{Shutdown, error_chain};

use activity::{Activity, Counted};
use opening::Opening;
use seated::Seated;

pub use room::{Bounds, Place, Room, Yield};

const HANDSHAKE: Duration = Duration::from_secs(10);
/// Until a connection has said which HTTP it speaks, and then for the head of each HTTP/1 request.
const HEADERS: Duration = Duration::from_secs(32);
/// How long a connection lasts on which nothing is asked; upstream's figure.
const IDLE: Duration = Duration::from_secs(90);
/// Until what is open may have ended, when there are too many files.
const RESPITE: Duration = Duration::from_millis(50);

/// Any error of a body's transport.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The way in for TLS connections.
#[derive(Debug)]
pub struct Door {
    handshakes: Arc<Room>,
    strangers: Arc<Room>,
}

impl Door {
    /// One with so much room for strangers, and as much for those that shake hands.
    pub fn new(bounds: Bounds) -> Self {
        // A handshake takes moments: whoever has been at it for longest is the least likely to end it.
        let handshakes = Room::new("connections in their TLS handshake", bounds, Yield::Always);
        let strangers = Room::new("connections without a client certificate", bounds, Yield::ToSmaller);
        Self {
            handshakes: Arc::new(handshakes),
            strangers: Arc::new(strangers),
        }
    }

    /// Shakes hands with a client at `from`. Who shows no certificate gets a place of the strangers'; `None` when there is none,
    /// when the handshake fails, and when it is not done at the shutdown: nobody has asked anything yet.
    pub async fn enter(
        &self,
        stream: TcpStream,
        from: IpAddr,
        acceptor: TlsAcceptor,
        shutdown: &Shutdown,
    ) -> Option<(TlsStream<TcpStream>, Option<Place>)> {
        stream.set_nodelay(true).ok();
        let place = Room::enter(&self.handshakes, from)?;
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)) => shaken.ok()?,
            () = place.lost() => return None,
            () = shutdown.cancelled() => return None,
        };
        let stream = shaken
            .inspect_err(|error| tracing::debug!(%error, "TLS handshake failed"))
            .ok()?;
        drop(place);
        let known = stream
            .get_ref()
            .1
            .peer_certificates()
            .is_some_and(|chain| !chain.is_empty());
        if known {
            return Some((stream, None));
        }
        let place = Room::enter(&self.strangers, from)?;
        Some((stream, Some(place)))
    }
}

/// Accepts connections until the shutdown, each a task of its own; then waits for those that are open, for as long as `drain`.
pub async fn listen<F>(
    listener: TcpListener,
    shutdown: &Shutdown,
    drain: Duration,
    connection: impl Fn(TcpStream, IpAddr) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                connections.spawn(connection(stream, from.ip()));
            }
            Err(error) => {
                // Out of file descriptors, most likely: give connections time to end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(RESPITE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(drain, connections.wait()).await.is_err() {
        tracing::warn!("requests were still open after {drain:?}: they are cut off");
    }
}

/// Answers the requests on a stream, in the HTTP that it speaks, until the client goes, asks nothing more or loses its place. At the
/// shutdown what is open is answered to its end.
pub async fn converse<S, F, B>(
    stream: S,
    answer: impl Fn(Request<Incoming>) -> F,
    place: Option<Place>,
    shutdown: &Shutdown,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    let activity = Arc::new(Activity::default());
    let service = hyper::service::service_fn(|request| {
        let request_open = Activity::begin(&activity);
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await.map(|body| Counted::new(body, request_open))) }
    });
    let builder = builder();
    let mut lost = pin!(lost(place.as_ref()));
    let stream = TokioIo::new(Seated::new(Opening::new(stream, HEADERS), place));
    let mut connection = pin!(builder.serve_connection_with_upgrades(stream, service));
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = shutdown.cancelled() => None,
        () = activity.silence(IDLE) => None,
        () = lost.as_mut() => return,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = activity.silence(IDLE) => return,
                () = lost.as_mut() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = error_chain(&*error), "connection ended");
    }
}

/// Waits until a place is somebody else's; for ever without one.
fn lost(place: Option<&Place>) -> impl Future<Output = ()> + use<> {
    let told = place.map(Place::told);
    async move {
        match told {
            Some(told) => told.await,
            None => std::future::pending().await,
        }
    }
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
mod tests;
