//! `/health`, `/ready` and `/metrics`, at CoreDNS's ports.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use skiff_daemon::{Health, Metrics, Shutdown, health};
use tokio::net::TcpListener;
use tracing::warn;

use crate::Config;
use crate::resolver::Resolver;

/// What readiness follows from.
#[derive(Clone, Debug)]
pub(crate) struct Readiness {
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) listening: Arc<AtomicBool>,
}

impl Readiness {
    /// What is not ready yet, by CoreDNS's plugin names; empty when all is.
    fn missing(&self) -> &'static str {
        match (self.resolver.is_synced(), self.listening.load(Ordering::Acquire)) {
            (true, true) => "",
            (false, _) => "kubernetes",
            (true, false) => "listener",
        }
    }
}

/// Starts the servers. One whose port is taken is left out: names matter more than their watchers.
pub(crate) async fn serve(config: &Config, metrics: Metrics, readiness: Readiness, shutdown: &Shutdown) {
    if let Some(listener) = listen(config.health).await {
        let router = Router::new().route("/health", get(async || "OK"));
        start(listener, router, shutdown);
    }
    if let Some(listener) = listen(config.ready).await {
        let ready = async move || match readiness.missing() {
            "" => (StatusCode::OK, "OK"),
            missing => (StatusCode::SERVICE_UNAVAILABLE, missing),
        };
        start(listener, Router::new().route("/ready", get(ready)), shutdown);
    }
    if let Some(listener) = listen(config.metrics).await {
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            if let Err(error) = health::serve(listener, Health::default(), metrics, shutdown).await {
                warn!(%error, "the metrics server of DNS ended");
            }
        });
    }
}

fn start(listener: TcpListener, router: Router, shutdown: &Shutdown) {
    let end = shutdown.clone().cancelled_owned();
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(end).await {
            warn!(%error, "a health server of DNS ended");
        }
    });
}

async fn listen(address: Option<SocketAddr>) -> Option<TcpListener> {
    let address = address?;
    TcpListener::bind(address)
        .await
        .inspect_err(|error| {
            warn!(%address, %error, "cannot listen: another process may have the port; DNS goes on without");
        })
        .ok()
}
