//! The ports where load balancers ask whether this node has endpoints of a Service (`healthCheckNodePort`).
//!
//! One small server a Service. A port that is taken is tried again later; an event on the Service tells of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use skiff_daemon::Shutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tracing::warn;

use crate::events::Events;
use crate::healthz::Health;
use crate::index::Key;
use crate::plan::HealthCheck;

/// The servers, by their Services. Dropping it closes them.
#[derive(Debug)]
pub(crate) struct ServiceHealth {
    node: String,
    health: Health,
    events: Events,
    shutdown: Shutdown,
    servers: HashMap<Key, Server>,
    /// Whose port was taken.
    waiting: BTreeMap<Key, HealthCheck>,
}

#[derive(Debug)]
struct Server {
    port: u16,
    endpoints: Arc<AtomicUsize>,
    stop: Shutdown,
    /// Each comes to its end when a listener is closed.
    closed: Vec<oneshot::Receiver<()>>,
}

/// A listener that tells when it is closed: dropped, and the other end of the channel with it.
struct Listener {
    inner: TcpListener,
    _open: oneshot::Sender<()>,
}

#[derive(Clone)]
struct Answers {
    key: Key,
    endpoints: Arc<AtomicUsize>,
    health: Health,
}

impl ServiceHealth {
    pub(crate) fn new(node: &str, health: Health, events: Events, shutdown: &Shutdown) -> Self {
        Self {
            node: node.to_owned(),
            health,
            events,
            shutdown: shutdown.child_token(),
            servers: HashMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// Opens, changes and closes the ports of some Services. `addresses` are those of this node that node ports answer at.
    ///
    /// What is to be closed is closed first: a port may go from one Service to another.
    pub(crate) async fn update(&mut self, checks: &[(Key, Option<HealthCheck>)], addresses: &[IpAddr]) {
        let mut closing = Vec::new();
        for (key, wanted) in checks {
            let port = wanted.map(|wanted| wanted.port);
            if self.servers.get(key).is_some_and(|server| Some(server.port) != port) {
                closing.extend(self.servers.remove(key));
            }
        }
        let any_closed = !closing.is_empty();
        close(closing).await;
        for (key, wanted) in checks {
            self.set(key, *wanted, addresses).await;
        }
        if any_closed {
            self.retry(addresses).await;
        }
    }

    /// The same for all Services: those that are not in `checks` have no ports.
    pub(crate) async fn replace(&mut self, mut checks: Vec<(Key, Option<HealthCheck>)>, addresses: &[IpAddr]) {
        let wanted: HashSet<&Key> = checks.iter().map(|(key, _)| key).collect();
        let known = self.servers.keys().chain(self.waiting.keys());
        let gone: Vec<_> = known.filter(|key| !wanted.contains(key)).cloned().collect();
        checks.extend(gone.into_iter().map(|key| (key, None)));
        self.update(&checks, addresses).await;
    }

    async fn set(&mut self, key: &Key, wanted: Option<HealthCheck>, addresses: &[IpAddr]) {
        let waited = self.waiting.remove(key);
        let Some(wanted) = wanted else { return };
        if let Some(server) = self.servers.get(key) {
            server.endpoints.store(wanted.endpoints, Ordering::Relaxed);
            return;
        }
        match self.open(key, wanted, addresses).await {
            Ok(server) => drop(self.servers.insert(key.clone(), server)),
            Err(error) => {
                // Told once, not at each further try.
                if waited.is_none_or(|before| before.port != wanted.port) {
                    let (node, port) = (&self.node, wanted.port);
                    let message = format!("node {node} failed to start healthcheck {key:?} on port {port}: {error}");
                    warn!("{message}; tried again later");
                    self.events
                        .service(key, "FailedToStartServiceHealthcheck", "Listen", message);
                }
                self.waiting.insert(key.clone(), wanted);
            }
        }
    }

    /// Tries the ports again that were taken.
    pub(crate) async fn retry(&mut self, addresses: &[IpAddr]) {
        for (key, wanted) in self.waiting.clone() {
            self.set(&key, Some(wanted), addresses).await;
        }
    }

    async fn open(&self, key: &Key, wanted: HealthCheck, addresses: &[IpAddr]) -> std::io::Result<Server> {
        let any = [IpAddr::from(Ipv4Addr::UNSPECIFIED)];
        let addresses = if addresses.is_empty() { &any } else { addresses };
        let (mut listeners, mut closed) = (Vec::new(), Vec::new());
        for ip in addresses {
            let inner = TcpListener::bind(SocketAddr::new(*ip, wanted.port)).await?;
            let (open, ends) = oneshot::channel();
            listeners.push(Listener { inner, _open: open });
            closed.push(ends);
        }
        let endpoints = Arc::new(AtomicUsize::new(wanted.endpoints));
        let stop = self.shutdown.child_token();
        let answers = Answers {
            key: key.clone(),
            endpoints: endpoints.clone(),
            health: self.health.clone(),
        };
        for listener in listeners {
            let router = Router::new().fallback(answer).with_state(answers.clone());
            let stopped = stop.clone().cancelled_owned();
            tokio::spawn(async move {
                if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stopped).await {
                    warn!(%error, "a health check server ended");
                }
            });
        }
        Ok(Server {
            port: wanted.port,
            endpoints,
            stop,
            closed,
        })
    }
}

/// Closes the listeners of servers, and waits for that; requests that are being answered go on.
async fn close(servers: Vec<Server>) {
    servers.iter().for_each(|server| server.stop.cancel());
    for closed in servers.into_iter().flat_map(|server| server.closed) {
        // It ends without a word.
        closed.await.ok();
    }
}

impl axum::serve::Listener for Listener {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        axum::serve::Listener::accept(&mut self.inner).await
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

impl Drop for ServiceHealth {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn answer(State(answers): State<Answers>) -> impl IntoResponse {
    let endpoints = answers.endpoints.load(Ordering::Relaxed);
    let (namespace, name) = answers.key.split_once('/').unwrap_or_default();
    let healthy = answers.health.is_healthy();
    let status = if endpoints > 0 && healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let headers = [
        (header::CONTENT_TYPE.as_str(), "application/json".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS.as_str(), "nosniff".to_owned()),
        ("x-load-balancing-endpoint-weight", endpoints.to_string()),
    ];
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace:?},\n\t\t\"name\": {name:?}\n\t}},\n\t\
         \"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    );
    (status, headers, body)
}
