//! The health server on 10256 and the metrics server on 10249.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::{Router, routing::get};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use skiff_daemon::{Context, health};
use tokio::net::TcpListener;
use tracing::warn;

use crate::Error;
use crate::config::Config;

/// When rules were last in force, and since when changes wait.
#[derive(Debug, Clone, Default)]
pub(crate) struct Freshness(Arc<Mutex<Times>>);

#[derive(Debug, Default)]
struct Times {
    updated: Option<Timestamp>,
    waiting: Option<Timestamp>,
}

impl Freshness {
    /// A change waits for its rules.
    pub(crate) fn queued(&self) {
        self.0.lock().waiting.get_or_insert_with(Timestamp::now);
    }

    /// All rules are in force.
    pub(crate) fn updated(&self) {
        *self.0.lock() = Times {
            updated: Some(Timestamp::now()),
            waiting: None,
        };
    }

    /// Healthy as upstream sees it: once there were rules, and no change waits for longer than twice the period.
    fn report(&self, patience: std::time::Duration, now: Timestamp) -> (bool, Timestamp) {
        let times = self.0.lock();
        let late = times
            .waiting
            .is_some_and(|since| now.duration_since(since).unsigned_abs() > patience);
        let updated = times.updated.is_some() && !late;
        (
            updated,
            if updated {
                now
            } else {
                times.updated.unwrap_or(Timestamp::UNIX_EPOCH)
            },
        )
    }
}

#[derive(Clone)]
struct Health {
    freshness: Freshness,
    patience: std::time::Duration,
}

/// Starts both servers; they end at shutdown.
pub(crate) async fn serve(config: &Config, daemon: &Context, freshness: Freshness) -> Result<(), Error> {
    if let Some(listener) = listen(config, config.healthz).await? {
        let state = Health {
            freshness,
            patience: config.sync_period * 2,
        };
        let router = Router::new()
            .route("/healthz", get(healthz))
            .route("/livez", get(healthz))
            .with_state(state);
        let shutdown = daemon.shutdown.clone();
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router)
                .with_graceful_shutdown(shutdown.cancelled_owned())
                .await
            {
                warn!(%error, "the health server ended");
            }
        });
    }
    if let Some(listener) = listen(config, config.metrics).await? {
        let daemon = daemon.clone();
        tokio::spawn(async move {
            if let Err(error) = health::serve(listener, daemon.health, daemon.metrics, daemon.shutdown).await {
                warn!(%error, "the metrics server ended");
            }
        });
    }
    Ok(())
}

async fn listen(config: &Config, address: Option<SocketAddr>) -> Result<Option<TcpListener>, Error> {
    let Some(address) = address else { return Ok(None) };
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(source) if config.bind_hard_fail => Err(Error::Listen { address, source }),
        Err(error) => {
            // As upstream: Services matter more than their watchers.
            warn!(%address, %error, "cannot listen: another process may have the port; going on without");
            Ok(None)
        }
    }
}

async fn healthz(State(health): State<Health>) -> impl IntoResponse {
    let now = Timestamp::now();
    let (healthy, updated) = health.freshness.report(health.patience, now);
    let status = if healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({ "lastUpdated": updated.to_string(), "currentTime": now.to_string(), "nodeEligible": true });
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, body.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_having_rules_and_no_change_that_waits_long() {
        let patience = std::time::Duration::from_secs(60);
        let now = Timestamp::now();
        let late = now + jiff::SignedDuration::from_secs(300);
        let freshness = Freshness::default();
        assert!(!freshness.report(patience, now).0);
        freshness.updated();
        assert!(freshness.report(patience, late).0);
        freshness.queued();
        assert!(freshness.report(patience, now).0);
        assert!(!freshness.report(patience, late).0);
    }
}
