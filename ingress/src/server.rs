//! Connections in: accept loops, TLS, limits, drain.
//!
//! One task a listener, one a connection. A connection ends by itself, after its idle time, or at shutdown with its last
//! request.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use skiff_daemon::{Shutdown, error_chain};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::access::{Activity, Place};
use crate::config::Limits;
use crate::headers::Client;
use crate::metrics::Scheme;
use crate::proxy::Proxy;
use crate::socket;

const HANDSHAKE: Duration = Duration::from_secs(10);
/// Bytes of a stream, and of all streams of a connection, that a client may send ahead.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// What the listeners share.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    proxy: Arc<Proxy>,
    builder: Arc<auto::Builder<TokioExecutor>>,
    permits: Arc<Semaphore>,
    connections: TaskTracker,
    shutdown: Shutdown,
}

impl Server {
    pub(crate) fn new(proxy: Arc<Proxy>, shutdown: Shutdown) -> Self {
        Self {
            builder: Arc::new(builder(&proxy.limits)),
            permits: Arc::new(Semaphore::new(proxy.limits.max_connections.min(Semaphore::MAX_PERMITS))),
            connections: TaskTracker::new(),
            proxy,
            shutdown,
        }
    }

    /// Accepts connections until shutdown.
    pub(crate) async fn accept(self, listener: TcpListener, tls: Option<TlsAcceptor>) {
        let port = listener.local_addr().map_or(0, |address| address.port());
        loop {
            let next = async {
                // Past the limit, connections wait where they cost nothing: in the kernel.
                let permit = Arc::clone(&self.permits).acquire_owned().await;
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                next = next => next,
            };
            // It is never closed.
            let Ok(permit) = permit else { return };
            match accepted {
                Ok((stream, address)) => {
                    let connection = self.clone().connection(stream, address, port, tls.clone(), permit);
                    self.connections.spawn(connection);
                }
                Err(error) => {
                    // Out of file descriptors, most likely: give connections time to end.
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Waits for open requests to end, but no longer than is configured.
    pub(crate) async fn drain(&self) {
        self.connections.close();
        self.proxy.tunnels.close();
        let limit = self.proxy.limits.drain();
        // In this order: a connection that is upgraded meanwhile goes on as a tunnel.
        let all = async {
            self.connections.wait().await;
            self.proxy.tunnels.wait().await;
        };
        if timeout(limit, all).await.is_err() {
            let (requests, tunnels) = (self.connections.len(), self.proxy.tunnels.len());
            warn!(
                requests,
                tunnels, "connections were still open after {limit:?}: they are cut off"
            );
            self.proxy.end.cancel();
        }
    }

    async fn connection(
        self,
        stream: TcpStream,
        address: SocketAddr,
        port: u16,
        tls: Option<TlsAcceptor>,
        permit: OwnedSemaphorePermit,
    ) {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let gauge = self.proxy.metrics.connections.get_or_create_owned(&Scheme { scheme });
        let place = Place::new(gauge, permit);
        socket::prepare(&stream);
        let client = Client {
            address,
            secure: tls.is_some(),
            port,
        };
        let Some(acceptor) = tls else {
            return self.serve(stream, client, place).await;
        };
        match timeout(HANDSHAKE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => self.serve(stream, client, place).await,
            Ok(Err(error)) => {
                self.proxy.metrics.handshake_failures.inc();
                debug!(%address, %error, "TLS handshake failed");
            }
            Err(_) => drop(self.proxy.metrics.handshake_failures.inc()),
        }
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, client: Client, place: Place) {
        let activity = Activity::new(place);
        let service = service_fn(|request: Request<Incoming>| {
            let (proxy, activity) = (Arc::clone(&self.proxy), Arc::clone(&activity));
            async move { Ok::<_, Infallible>(proxy.handle(request, client, &activity).await) }
        });
        let connection = self
            .builder
            .serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let mut closing = false;
        let mut look = Instant::now() + self.patience(&activity);
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        debug!(address = %client.address, error = error_chain(&*error), "connection ended");
                    }
                    return;
                }
                () = self.shutdown.cancelled(), if !closing => {
                    connection.as_mut().graceful_shutdown();
                    closing = true;
                }
                () = sleep_until(look), if !closing => {
                    let limit = self.patience(&activity);
                    let since = activity.idle().map_or_else(Instant::now, |(since, _)| since);
                    look = since + limit;
                    if look <= Instant::now() {
                        connection.as_mut().graceful_shutdown();
                        closing = true;
                    }
                }
            }
        }
    }

    /// How long a connection may have no request: its first one must come sooner than the next.
    fn patience(&self, activity: &Activity) -> Duration {
        let limits = &self.proxy.limits;
        match activity.idle() {
            Some((_, false)) => limits.request_header().min(limits.idle()),
            _ => limits.idle(),
        }
    }
}

fn builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.request_header())
        .max_headers(limits.max_headers)
        .max_buf_size(limits.max_header_bytes);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(15))
        .max_concurrent_streams(limits.max_concurrent_streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // A client that opens and resets streams without end is cut off.
        .max_pending_accept_reset_streams(limits.max_pending_resets)
        .max_local_error_reset_streams(Some(256))
        .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX));
    builder
}
