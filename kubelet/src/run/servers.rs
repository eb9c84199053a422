//! Where the kubelet listens.

use skiff_daemon::Context;
use tokio::net::TcpListener;

use super::Error;
use crate::config::Config;

/// The listener for health checks; without one the kubelet still works.
pub(super) async fn healthz(config: &Config) -> Option<TcpListener> {
    let kubelet = &config.kubelet;
    let port = u16::try_from(kubelet.healthz_port).ok().filter(|port| *port > 0)?;
    match TcpListener::bind((kubelet.healthz_bind_address.as_str(), port)).await {
        Ok(listener) => Some(listener),
        Err(error) => {
            tracing::warn!(%error, port, "cannot serve health checks: is healthzPort taken? Set another, or 0 for none");
            None
        }
    }
}

pub(super) async fn listen(config: &Config) -> Result<TcpListener, Error> {
    let address = &config.kubelet.address;
    let host = if address.contains(':') {
        format!("[{address}]")
    } else {
        address.clone()
    };
    let address = format!("{host}:{}", config.kubelet.port);
    TcpListener::bind(&address)
        .await
        .map_err(|source| Error::Listen { address, source })
}

/// Answers health checks until shutdown.
pub(super) async fn serve_health(listener: TcpListener, daemon: Context) {
    let serving = skiff_daemon::health::serve(listener, daemon.health, daemon.metrics, daemon.shutdown);
    if let Err(error) = serving.await {
        tracing::error!(%error, "cannot serve health checks any longer");
    }
}
