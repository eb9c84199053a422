//! The health server on 10256 and the metrics server on 10249.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing::get};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use skiff_daemon::{Context, health};
use tokio::net::TcpListener;
use tracing::warn;

use crate::Error;
use crate::config::Config;
use crate::metrics::Metrics;

/// When rules were last in force, since when changes wait, and whether this node stays. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    times: Arc<Mutex<Times>>,
    patience: Duration,
}

#[derive(Debug)]
struct Times {
    updated: Option<Timestamp>,
    waiting: Option<Timestamp>,
    eligible: bool,
}

impl Health {
    /// Unhealthy when a change waits for longer than `patience`.
    pub(crate) fn new(patience: Duration) -> Self {
        let times = Times {
            updated: None,
            waiting: None,
            eligible: true,
        };
        Self {
            times: Arc::new(Mutex::new(times)),
            patience,
        }
    }

    /// A change waits for its rules.
    pub(crate) fn queued(&self) {
        self.times.lock().waiting.get_or_insert_with(Timestamp::now);
    }

    /// All rules are in force.
    pub(crate) fn updated(&self) {
        let mut times = self.times.lock();
        times.updated = Some(Timestamp::now());
        times.waiting = None;
    }

    /// Whether load balancers may send to this node.
    pub(crate) fn set_eligible(&self, eligible: bool) {
        self.times.lock().eligible = eligible;
    }

    /// Healthy as upstream sees it: once there were rules, and no change waits for longer than twice the period.
    pub(crate) fn is_healthy(&self) -> bool {
        self.report(Timestamp::now()).healthy
    }

    fn report(&self, now: Timestamp) -> Report {
        let times = self.times.lock();
        let late = times
            .waiting
            .is_some_and(|since| now.duration_since(since).unsigned_abs() > self.patience);
        Report {
            healthy: times.updated.is_some() && !late,
            updated: times.updated.unwrap_or(Timestamp::UNIX_EPOCH),
            eligible: times.eligible,
            now,
        }
    }
}

/// What is told to whoever asks.
#[derive(Debug, Clone, Copy)]
struct Report {
    healthy: bool,
    updated: Timestamp,
    eligible: bool,
    now: Timestamp,
}

impl Report {
    /// Whether load balancers may send to this node.
    fn healthz(&self) -> (bool, String) {
        let well = self.healthy && self.eligible;
        (
            well,
            format!("{{{}, \"nodeEligible\": {}}}", self.times(well), self.eligible),
        )
    }

    /// Whether this process does its work, wherever the node goes.
    fn livez(&self) -> (bool, String) {
        (self.healthy, format!("{{{}}}", self.times(self.healthy)))
    }

    /// The time of the last change is that of the answer as long as all is well.
    fn times(&self, well: bool) -> String {
        let as_go_prints = |at: Timestamp| at.strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC").to_string();
        let updated = as_go_prints(if well { self.now } else { self.updated });
        format!(
            "\"lastUpdated\": {updated:?},\"currentTime\": {:?}",
            as_go_prints(self.now)
        )
    }
}

/// Starts both servers; they end at shutdown.
pub(crate) async fn serve(config: &Config, daemon: &Context, health: Health, metrics: Metrics) -> Result<(), Error> {
    if let Some(listener) = listen(config, config.healthz).await? {
        let router = Router::new()
            .route("/healthz", get(healthz))
            .route("/livez", get(livez))
            .with_state((health, metrics));
        start("health", listener, router, daemon);
    }
    if let Some(listener) = listen(config, config.metrics).await? {
        let mode = get(async || ([(header::X_CONTENT_TYPE_OPTIONS, "nosniff")], "iptables"));
        let shown = json!({ "kubeproxy.config.k8s.io": config.shown }).to_string();
        let router = health::router(daemon.health.clone(), daemon.metrics.clone())
            .route("/proxyMode", mode)
            .route("/configz", get(async || respond(StatusCode::OK, shown)));
        start("metrics", listener, router, daemon);
    }
    Ok(())
}

fn start(what: &'static str, listener: TcpListener, router: Router, daemon: &Context) {
    let shutdown = daemon.shutdown.clone().cancelled_owned();
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(shutdown).await {
            warn!(%error, "the {what} server ended");
        }
    });
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

async fn healthz(State((health, metrics)): State<(Health, Metrics)>) -> Response {
    let (well, body) = health.report(Timestamp::now()).healthz();
    let status = status(well);
    metrics.count_healthz(status);
    respond(status, body)
}

async fn livez(State((health, metrics)): State<(Health, Metrics)>) -> Response {
    let (well, body) = health.report(Timestamp::now()).livez();
    let status = status(well);
    metrics.count_livez(status);
    respond(status, body)
}

fn status(well: bool) -> StatusCode {
    if well {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

fn respond(status: StatusCode, body: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_having_rules_and_no_change_that_waits_long() {
        let now = Timestamp::now();
        let late = now + jiff::SignedDuration::from_secs(300);
        let health = Health::new(Duration::from_secs(60));
        assert!(!health.report(now).healthy);
        health.updated();
        assert!(health.report(late).healthy);
        health.queued();
        assert!(health.report(now).healthy);
        assert!(!health.report(late).healthy);
    }

    #[test]
    fn a_node_on_its_way_out_is_alive_but_gets_no_more() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let report = |healthy, eligible| Report {
            healthy,
            eligible,
            updated: at("2026-11-21T06:00:00Z"),
            now: at("2026-11-21T07:00:00.5Z"),
        };
        let now = r#""2026-11-21 07:00:00.5 +0000 UTC""#;
        let old = r#""2026-11-21 06:00:00 +0000 UTC""#;
        for (healthy, eligible, healthz, livez) in [
            (true, true, (true, now), (true, now)),
            (true, false, (false, old), (true, now)),
            (false, true, (false, old), (false, old)),
        ] {
            let report = report(healthy, eligible);
            let body = format!(
                r#"{{"lastUpdated": {},"currentTime": {now}, "nodeEligible": {eligible}}}"#,
                healthz.1
            );
            assert_eq!(report.healthz(), (healthz.0, body));
            let body = format!(r#"{{"lastUpdated": {},"currentTime": {now}}}"#, livez.1);
            assert_eq!(report.livez(), (livez.0, body));
        }
    }
}
