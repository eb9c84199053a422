//! Named checks, and the endpoints that show them: `/livez`, `/readyz`, `/healthz`, `/metrics`.
//!
//! The text is upstream's: `ok`, or with `?verbose` (and on failure) one `[+]name ok` / `[-]name failed: reason` line a check.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::RwLock;
use tokio::net::TcpListener;

use crate::{Metrics, Shutdown, metrics};

/// The checks of one process; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Health {
    checks: Arc<RwLock<BTreeMap<String, CheckState>>>,
}

#[derive(Clone, Debug)]
struct CheckState {
    failure: Option<String>,
    liveness: bool,
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
        self.add(name, Some("not started".to_owned()), false)
    }

    /// Adds a check that counts for liveness too, passing until [`Check::fail`].
    pub fn liveness(&self, name: &str) -> Check {
        self.add(name, None, true)
    }

    fn add(&self, name: &str, failure: Option<String>, liveness: bool) -> Check {
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

    /// Every check of `endpoint` (`livez` asks only those for liveness), but those excluded.
    pub fn report(&self, endpoint: &str, exclude: &[String]) -> Report {
        let mut text = "[+]ping ok\n".to_owned();
        let mut ok = true;
        for (name, state) in self.checks.read().iter() {
            if (endpoint == "livez" && !state.liveness) || exclude.contains(name) {
                continue;
            }
            let line = match &state.failure {
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

    /// One check by name; `None` when there is no such check.
    pub fn one(&self, name: &str) -> Option<Report> {
        if name == "ping" {
            return Some(Report {
                ok: true,
                text: "ok".to_owned(),
            });
        }
        let checks = self.checks.read();
        let state = checks.get(name)?;
        Some(match &state.failure {
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
            state.failure = failure;
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
        .route("/livez/{name}", get(one))
        .route("/readyz/{name}", get(one))
        .route("/healthz/{name}", get(one))
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

async fn one(State(state): State<Endpoints>, Path(name): Path<String>) -> Response {
    match state.health.one(&name) {
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
    use super::Health;

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
        assert!(
            health
                .report("readyz", &["loop".to_owned(), "informer-sync".to_owned()])
                .ok
        );
        assert_eq!(health.one("loop").map(|report| report.ok), Some(false));
        assert_eq!(health.one("absent"), None);
    }
}
