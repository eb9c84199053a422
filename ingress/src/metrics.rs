//! What is measured. Labels are bounded by what Ingresses name; nothing that a client sends becomes one.

use std::collections::BTreeSet;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use skiff_daemon::Metrics as Registry;

use crate::model::Key;
use crate::table::Table;

const CODES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// A route's counters.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Route {
    namespace: String,
    ingress: String,
    host: String,
    code: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Ingress {
    namespace: String,
    ingress: String,
}

/// `http` or `https`.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(crate) struct Scheme {
    pub(crate) scheme: &'static str,
}

type Durations = Family<Ingress, Histogram, fn() -> Histogram>;

/// All of them; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    requests: Family<Route, Counter>,
    durations: Durations,
    pub(crate) connections: Family<Scheme, Gauge>,
    pub(crate) handshake_failures: Counter,
    pub(crate) retries: Counter,
    pub(crate) reloads: Counter,
    pub(crate) routes: Gauge,
    pub(crate) problems: Gauge,
    pub(crate) tunnels: Gauge,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> Self {
        let histogram: fn() -> Histogram = || {
            Histogram::new([
                0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
            ])
        };
        let metrics = Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(histogram),
            connections: Family::default(),
            handshake_failures: Counter::default(),
            retries: Counter::default(),
            reloads: Counter::default(),
            routes: Gauge::default(),
            problems: Gauge::default(),
            tunnels: Gauge::default(),
        };
        registry.register(|registry| {
            let registry = registry.sub_registry_with_prefix("skiff_ingress");
            let requests = "Requests by the route that matched and the class of the answer's code";
            registry.register("requests", requests, metrics.requests.clone());
            let durations = "Time from a request's headers to the end of its answer, in seconds";
            registry.register("request_duration_seconds", durations, metrics.durations.clone());
            registry.register(
                "connections",
                "Open connections of clients",
                metrics.connections.clone(),
            );
            let failures = "TLS handshakes that failed";
            registry.register("tls_handshake_failures", failures, metrics.handshake_failures.clone());
            let retries = "Requests that were sent to another endpoint after a failure";
            registry.register("retries", retries, metrics.retries.clone());
            registry.register("reloads", "Routing tables put in force", metrics.reloads.clone());
            registry.register("routes", "Paths in the routing table", metrics.routes.clone());
            registry.register("problems", "What is wrong with Ingresses", metrics.problems.clone());
            registry.register("tunnels", "Open upgraded connections", metrics.tunnels.clone());
        });
        metrics
    }

    /// Counts an answered request.
    pub(crate) fn answered(&self, route: Option<(&Key, &str)>, code: u16, took: Duration) {
        let (namespace, ingress, host) = match route {
            Some((key, host)) => (key.namespace.clone(), key.name.clone(), host.to_owned()),
            None => Default::default(),
        };
        let class = usize::from(code / 100).clamp(1, CODES.len()) - 1;
        let ingress = Ingress { namespace, ingress };
        self.durations.get_or_create(&ingress).observe(took.as_secs_f64());
        let Ingress { namespace, ingress } = ingress;
        self.requests
            .get_or_create(&Route {
                namespace,
                ingress,
                host,
                code: CODES[class],
            })
            .inc();
    }

    /// Forgets what was counted for routes that are gone.
    pub(crate) fn replaced(&self, before: &Table, now: &Table) {
        let (before, now) = (before.labels(), now.labels());
        let ingresses: BTreeSet<&Key> = now.iter().map(|(key, _)| key).collect();
        for (key, host) in before.difference(&now) {
            for code in CODES {
                self.requests.remove(&Route {
                    namespace: key.namespace.clone(),
                    ingress: key.name.clone(),
                    host: host.to_string(),
                    code,
                });
            }
            if !ingresses.contains(key) {
                self.durations.remove(&Ingress {
                    namespace: key.namespace.clone(),
                    ingress: key.name.clone(),
                });
            }
        }
    }
}
