//! Named checks, and the endpoints that show them: `/livez`, `/readyz`, `/healthz`, `/metrics`.
//!
//! The text is upstream's: `ok`, or with `?verbose` (and on failure) one `[+]name ok` / `[-]name failed: reason` line a check.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::RwLock;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::{Metrics, Shutdown, metrics};

/// The endpoint of [`Health::report`] that systemd's watchdog goes by.
pub(crate) const WATCHDOG: &str = "watchdog";

/// The checks of one process; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Health {
    checks: Arc<RwLock<BTreeMap<String, CheckState>>>,
}

#[derive(Clone, Debug)]
struct CheckState {
    failure: Option<Failure>,
    /// How long it may fail before it counts for liveness, if it ever does.
    liveness: Option<Duration>,
}

#[derive(Clone, Debug)]
struct Failure {
    reason: String,
    since: Instant,
}

/// One component's entry in [`Health`]; starts as failing with "not started", and leaves when it is dropped.
#[derive(Debug)]
pub struct Check {
    health: Health,
    name: String,
}

/// What a set of checks says: whether all passed, and the text to show.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// No check failed.
    pub ok: bool,
    /// One line a check, then a closing line.
    pub text: String,
}

impl Health {
    /// Adds a readiness check, failing until [`Check::pass`].
    pub fn readiness(&self, name: &str) -> Check {
        let not_started = Failure {
            reason: "not started".to_owned(),
            since: Instant::now(),
        };
        self.add(name, Some(not_started), None)
    }

    /// Adds a check that counts for liveness too, passing until [`Check::fail`].
    pub fn liveness(&self, name: &str) -> Check {
        self.patient_liveness(name, Duration::ZERO)
    }

    /// As [`Health::liveness`], but `livez` looks over a failure for as long as `patience`: of what a restart seldom mends.
    pub fn patient_liveness(&self, name: &str, patience: Duration) -> Check {
        self.add(name, None, Some(patience))
    }

    fn add(&self, name: &str, failure: Option<Failure>, liveness: Option<Duration>) -> Check {
        self.checks
            .write()
            .insert(name.to_owned(), CheckState { failure, liveness });
        Check {
            health: self.clone(),
            name: name.to_owned(),
        }
    }

    /// Whether every check passes.
    pub fn is_ready(&self) -> bool {
        self.checks.read().values().all(|state| state.failure.is_none())
    }

    /// Every check of `endpoint` (`livez` asks only those for liveness, [`WATCHDOG`] those of them that a start anew mends), but those
    /// excluded.
    pub fn report(&self, endpoint: &str, exclude: &[String]) -> Report {
        let mut text = "[+]ping ok\n".to_owned();
        let mut ok = true;
        for (name, state) in self.checks.read().iter() {
            if !state.counts_for(endpoint) || exclude.contains(name) {
                continue;
            }
            let line = match state.failure_at(endpoint) {
                None => writeln!(text, "[+]{name} ok"),
                Some(reason) => {
                    ok = false;
                    writeln!(text, "[-]{name} failed: {reason}")
                }
            };
            line.ok();
        }
        text.push_str(&format!("{endpoint} check {}\n", if ok { "passed" } else { "failed" }));
        Report { ok, text }
    }

    /// One check by name, as `endpoint` sees it; `None` when there is no such check.
    pub fn one(&self, endpoint: &str, name: &str) -> Option<Report> {
        if name == "ping" {
            return Some(Report {
                ok: true,
                text: "ok".to_owned(),
            });
        }
        let checks = self.checks.read();
        let state = checks.get(name)?;
        Some(match state.failure_at(endpoint) {
            None => Report {
                ok: true,
                text: "ok".to_owned(),
            },
            Some(reason) => Report {
                ok: false,
                text: format!("{name} failed: {reason}\n"),
            },
        })
    }
}

impl CheckState {
    fn counts_for(&self, endpoint: &str) -> bool {
        match endpoint {
            "livez" => self.liveness.is_some(),
            // What one is patient with, a start anew does not mend.
            WATCHDOG => self.liveness == Some(Duration::ZERO),
            _ => true,
        }
    }

    /// Why it fails, in the eyes of `endpoint`.
    fn failure_at(&self, endpoint: &str) -> Option<&str> {
        let patience = self.liveness.filter(|_| endpoint == "livez").unwrap_or_default();
        let failure = self.failure.as_ref();
        let failure = failure.filter(|failure| failure.since.elapsed() >= patience);
        failure.map(|failure| failure.reason.as_str())
    }
}

impl Check {
    /// The component is fine.
    pub fn pass(&self) {
        self.set(None);
    }

    /// The component is not fine; the reason is shown to whoever asks.
    pub fn fail(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    fn set(&self, failure: Option<String>) {
        if let Some(state) = self.health.checks.write().get_mut(&self.name) {
            state.failure = failure.map(|reason| Failure {
                reason,
                since: (state.failure.as_ref()).map_or_else(Instant::now, |failure| failure.since),
            });
        }
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        self.health.checks.write().remove(&self.name);
    }
}

#[derive(Clone)]
struct Endpoints {
    health: Health,
    metrics: Metrics,
}

/// Serves the checks and the metrics on `listener`, until `shutdown`.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(listener: TcpListener, health: Health, metrics: Metrics, shutdown: Shutdown) -> std::io::Result<()> {
    axum::serve(listener, router(health, metrics))
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

/// The endpoints of the checks and the metrics, for a server that has others too.
pub fn router(health: Health, metrics: Metrics) -> Router {
    Router::new()
        .route("/livez", get(|state, query| all("livez", state, query)))
        .route("/readyz", get(|state, query| all("readyz", state, query)))
        .route("/healthz", get(|state, query| all("healthz", state, query)))
        .route("/livez/{name}", get(|state, name| one("livez", state, name)))
        .route("/readyz/{name}", get(|state, name| one("readyz", state, name)))
        .route("/healthz/{name}", get(|state, name| one("healthz", state, name)))
        .route("/metrics", get(scrape))
        .with_state(Endpoints { health, metrics })
}

async fn all(endpoint: &'static str, State(state): State<Endpoints>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let verbose = query
        .split('&')
        .any(|pair| pair == "verbose" || pair.starts_with("verbose="));
    let exclude: Vec<String> = query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("exclude="))
        .map(str::to_owned)
        .collect();
    respond(state.health.report(endpoint, &exclude), verbose)
}

async fn one(endpoint: &'static str, State(state): State<Endpoints>, Path(name): Path<String>) -> Response {
    match state.health.one(endpoint, &name) {
        Some(report) => respond(report, true),
        None => (StatusCode::NOT_FOUND, "404 page not found\n").into_response(),
    }
}

fn respond(report: Report, verbose: bool) -> Response {
    let status = if report.ok {
        StatusCode::OK
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    };
    let text = if report.ok && !verbose {
        "ok".to_owned()
    } else {
        report.text
    };
    (
        status,
        [
            (header::CACHE_CONTROL, "no-cache, private"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ],
        text,
    )
        .into_response()
}

async fn scrape(State(state): State<Endpoints>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], state.metrics.encode()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_fails_until_it_passes_and_leaves_with_its_guard() {
        let health = Health::default();
        let check = health.readiness("informer-sync");
        assert_eq!(
            health.report("readyz", &[]).text,
            "[+]ping ok\n[-]informer-sync failed: not started\nreadyz check failed\n"
        );
        check.pass();
        assert!(health.is_ready());
        check.fail("no connection");
        assert!(!health.is_ready());
        drop(check);
        assert!(health.is_ready());
    }

    #[test]
    fn liveness_asks_only_liveness_checks_and_exclusions_are_left_out() {
        let health = Health::default();
        let _readiness = health.readiness("informer-sync");
        let liveness = health.liveness("loop");
        assert!(health.report("livez", &[]).ok);
        liveness.fail("stuck");
        assert!(!health.report("livez", &[]).ok);
        assert!(!health.report(WATCHDOG, &[]).ok);
        assert!(
            health
                .report("readyz", &["loop".to_owned(), "informer-sync".to_owned()])
                .ok
        );
        assert_eq!(health.one("livez", "loop").map(|report| report.ok), Some(false));
        assert_eq!(health.one("livez", "absent"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_that_may_pass_counts_for_readiness_at_once_and_for_liveness_when_it_lasts() {
        let health = Health::default();
        let check = health.patient_liveness("etcd", Duration::from_secs(60));
        let seen = || {
            let all = ["livez", "readyz"].map(|endpoint| health.report(endpoint, &[]).ok);
            let one = ["livez", "readyz"].map(|endpoint| health.one(endpoint, "etcd").is_some_and(|report| report.ok));
            assert_eq!(all, one);
            all
        };
        assert_eq!(seen(), [true, true]);
        check.fail("no answer");
        assert_eq!(seen(), [true, false]);
        tokio::time::advance(Duration::from_secs(59)).await;
        check.fail("still none");
        assert_eq!(seen(), [true, false]);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(seen(), [false, false]);
        assert!(health.report(WATCHDOG, &[]).ok, "a start anew brings no etcd");
        check.pass();
        check.fail("again");
        assert_eq!(seen(), [true, false]);
    }
}
