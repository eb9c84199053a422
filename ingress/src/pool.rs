//! Connections to endpoints, kept for the next request.
//!
//! Only endpoints of the table in force are kept connections to; a request that is on its way to one that has left ends
//! in peace, and its connection with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use skiff_daemon::{Shutdown, error_chain};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::body::Upload;
use crate::config::Limits;
use crate::socket;

/// HTTP/2 connections are looked after by pings in these intervals.
const PING: Duration = Duration::from_secs(30);

/// An endpoint that could not be reached gets no request for so long, as long as there are others.
const AVOID: Duration = Duration::from_secs(10);

/// Where a connection leads, and whether HTTP/2 is spoken there.
pub(crate) type Place = (SocketAddr, bool);

/// Why no connection could be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("connect to {0}")]
    Connect(SocketAddr, #[source] std::io::Error),
    #[error("connect to {0}: no answer in time")]
    Timeout(SocketAddr),
    #[error("begin HTTP with {0}")]
    Handshake(SocketAddr, #[source] hyper::Error),
}

/// All kept connections; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    places: Mutex<BTreeMap<Place, Kept>>,
    /// A connection was put back.
    returned: Notify,
    connect: Duration,
    keep: Duration,
    most: usize,
}

/// What is kept for one endpoint.
#[derive(Debug, Default)]
struct Kept {
    /// The one used last is at the end.
    idle: Vec<(http1::SendRequest<Upload>, Instant)>,
    /// One carries all requests at once.
    shared: Option<(http2::SendRequest<Upload>, Instant)>,
    /// Held while that one is made.
    making: Arc<tokio::sync::Mutex<()>>,
    /// When it could not be reached last, if it has not been since.
    unreachable: Option<Instant>,
}

/// One connection, for one request.
#[derive(Debug)]
pub(crate) enum Sender {
    Http1(http1::SendRequest<Upload>),
    Http2(http2::SendRequest<Upload>),
}

impl Sender {
    /// Sends a request. When not a byte of it was sent, the error holds it.
    pub(crate) async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Upload>>> {
        match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(request).await,
        }
    }
}

impl Pool {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            shared: Arc::new(Shared {
                places: Mutex::default(),
                returned: Notify::new(),
                connect: limits.connect(),
                keep: limits.keep_alive(),
                most: limits.max_idle_per_endpoint,
            }),
        }
    }

    /// Makes room for the endpoints of a table that is to come into force.
    pub(crate) fn admit(&self, places: &BTreeSet<Place>) {
        let mut kept = self.shared.places.lock();
        for place in places {
            kept.entry(*place).or_default();
        }
    }

    /// Forgets all endpoints but those of the table in force.
    pub(crate) fn retain(&self, places: &BTreeSet<Place>) {
        self.shared.places.lock().retain(|place, _| places.contains(place));
    }

    /// A connection to an endpoint, and whether it was used before. With `fresh`, a new one in any case.
    pub(crate) async fn connection(&self, place: Place, fresh: bool) -> Result<(Sender, bool), Error> {
        if !fresh && let Some(sender) = self.kept(place) {
            return Ok((sender, true));
        }
        if !place.1 {
            return Ok((Sender::Http1(self.connect_http1(place.0).await?), false));
        }
        let making = self
            .shared
            .places
            .lock()
            .get(&place)
            .map(|kept| Arc::clone(&kept.making));
        let _making = match &making {
            Some(making) => Some(making.lock().await),
            None => None,
        };
        // Somebody else may have made it meanwhile.
        if !fresh && let Some(sender) = self.kept(place) {
            return Ok((sender, true));
        }
        let sender = self.connect_http2(place.0).await?;
        if let Some(kept) = self.shared.places.lock().get_mut(&place) {
            kept.shared = Some((sender.clone(), Instant::now()));
            self.shared.returned.notify_one();
        }
        Ok((Sender::Http2(sender), false))
    }

    /// Whether the endpoint could not be reached lately.
    pub(crate) fn is_doubtful(&self, place: Place) -> bool {
        let places = self.shared.places.lock();
        let since = places.get(&place).and_then(|kept| kept.unreachable);
        since.is_some_and(|since| since.elapsed() < AVOID)
    }

    fn kept(&self, place: Place) -> Option<Sender> {
        let mut places = self.shared.places.lock();
        let kept = places.get_mut(&place)?;
        if let Some((sender, used)) = kept.shared.as_mut().filter(|(sender, _)| sender.is_ready()) {
            *used = Instant::now();
            return Some(Sender::Http2(sender.clone()));
        }
        while let Some((sender, _)) = kept.idle.pop() {
            if sender.is_ready() {
                return Some(Sender::Http1(sender));
            }
        }
        None
    }

    /// Keeps a connection as soon as its answer has been read to the end.
    pub(crate) fn put_back(&self, place: Place, sender: Sender) {
        let Sender::Http1(mut sender) = sender else { return };
        let pool = self.clone();
        tokio::spawn(async move {
            if sender.ready().await.is_err() {
                return;
            }
            if let Some(kept) = pool.shared.places.lock().get_mut(&place)
                && kept.idle.len() < pool.shared.most
            {
                kept.idle.push((sender, Instant::now()));
                pool.shared.returned.notify_one();
            }
        });
    }

    /// Closes connections that nobody used for some time, until shutdown. Rests while none is kept.
    pub(crate) async fn tidy(self, shutdown: Shutdown) {
        let work = async {
            loop {
                self.shared.returned.notified().await;
                while self.expire(Instant::now()) {
                    tokio::time::sleep(self.shared.keep / 2).await;
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Whether any is left.
    fn expire(&self, now: Instant) -> bool {
        let keep = |used: Instant| now.duration_since(used) < self.shared.keep;
        let mut left = false;
        for kept in self.shared.places.lock().values_mut() {
            kept.idle.retain(|(sender, used)| keep(*used) && sender.is_ready());
            if kept
                .shared
                .as_ref()
                .is_some_and(|(sender, used)| !keep(*used) || sender.is_closed())
            {
                kept.shared = None;
            }
            left |= !kept.idle.is_empty() || kept.shared.is_some();
            if kept.idle.is_empty() {
                kept.idle.shrink_to_fit();
            }
        }
        left
    }

    async fn connect_http1(&self, endpoint: SocketAddr) -> Result<http1::SendRequest<Upload>, Error> {
        let stream = self.dial((endpoint, false)).await?;
        let (sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Error::Handshake(endpoint, error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%endpoint, error = error_chain(&error), "connection to endpoint ended");
            }
        });
        Ok(sender)
    }

    async fn connect_http2(&self, endpoint: SocketAddr) -> Result<http2::SendRequest<Upload>, Error> {
        let stream = self.dial((endpoint, true)).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(PING))
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Error::Handshake(endpoint, error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%endpoint, error = error_chain(&error), "connection to endpoint ended");
            }
        });
        Ok(sender)
    }

    async fn dial(&self, place: Place) -> Result<TcpStream, Error> {
        let result = match timeout(self.shared.connect, TcpStream::connect(place.0)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(Error::Connect(place.0, error)),
            Err(_) => Err(Error::Timeout(place.0)),
        };
        if let Some(kept) = self.shared.places.lock().get_mut(&place) {
            kept.unreachable = result.is_err().then(Instant::now);
        }
        let stream = result?;
        socket::prepare(&stream);
        Ok(stream)
    }
}
