//! What the server measures, under upstream's names.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::resources::Resources;

/// Upstream's buckets of request durations, in seconds.
const DURATIONS: [f64; 24] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0, 120.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    verb: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: &'static str,
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InFlight {
    request_kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Decision {
    result: &'static str,
}

/// What a request was about, for its labels: only names that are served, so that clients cannot make labels up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Labels {
    /// Upstream's verb, in capitals.
    pub verb: &'static str,
    /// API group.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Plural name.
    pub resource: &'static str,
    /// Part of the object.
    pub subresource: &'static str,
}

/// Counts stored objects when somebody asks, straight from the caches.
#[derive(Debug)]
pub struct StorageObjects(pub Arc<Resources>);

impl Collector for StorageObjects {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut metric = encoder.encode_descriptor(
            "apiserver_storage_objects",
            "Stored objects by resource",
            None,
            MetricType::Gauge,
        )?;
        for served in self.0.all().iter().filter(|served| served.is_stored()) {
            let resource = served.resource.qualified().to_string();
            let count = u32::try_from(served.cache.len()).unwrap_or(u32::MAX);
            let labels = [("resource", resource.as_str())];
            ConstGauge::new(f64::from(count)).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// What the server measures.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Family<Request, Counter>,
    durations: Family<Labels, Histogram>,
    long_running: Family<Labels, Gauge>,
    in_flight: Family<InFlight, Gauge<i64, AtomicI64>>,
    allowed: Counter,
    refused: Counter,
    /// Requests refused because too many were in flight.
    pub rejected: Counter<u64, AtomicU64>,
}

impl Metrics {
    /// Registers everything.
    pub fn new(process: &skiff_daemon::Metrics, resources: &Arc<Resources>) -> Self {
        let decisions = Family::<Decision, Counter>::default();
        let decision = |result| decisions.get_or_create(&Decision { result }).clone();
        let metrics = Self {
            allowed: decision("allowed"),
            refused: decision("no-opinion"),
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(DURATIONS)),
            long_running: Family::default(),
            in_flight: Family::default(),
            rejected: Counter::default(),
        };
        process.register(|registry| {
            registry.register_collector(Box::new(StorageObjects(Arc::clone(resources))));
            registry.register(
                "apiserver_request",
                "Requests by verb, resource and response code",
                metrics.requests.clone(),
            );
            registry.register(
                "apiserver_request_duration_seconds",
                "Duration of requests",
                metrics.durations.clone(),
            );
            registry.register(
                "apiserver_longrunning_requests",
                "Watches and streams that are open",
                metrics.long_running.clone(),
            );
            registry.register(
                "apiserver_current_inflight_requests",
                "Requests being worked on",
                metrics.in_flight.clone(),
            );
            registry.register(
                "apiserver_authorization_attempts",
                "Requests by whether somebody allowed them: upstream calls it no-opinion when nobody did",
                decisions.clone(),
            );
            registry.register(
                "apiserver_request_terminations",
                "Requests refused in self-defence",
                metrics.rejected.clone(),
            );
        });
        metrics
    }

    /// It was decided whether a request is allowed.
    pub fn authorized(&self, allowed: bool) {
        let counter = if allowed { &self.allowed } else { &self.refused };
        counter.inc();
    }

    /// A request has been answered.
    pub fn answered(&self, labels: Labels, code: u16, seconds: f64) {
        let Labels {
            verb,
            group,
            version,
            resource,
            subresource,
        } = labels;
        self.durations.get_or_create(&labels).observe(seconds);
        let request = Request {
            verb,
            group,
            version,
            resource,
            subresource,
            code,
        };
        self.requests.get_or_create(&request).inc();
    }

    /// A long request goes on for as long as the guard lives.
    pub fn long_running(&self, labels: Labels) -> Open {
        Open::new(self.long_running.get_or_create(&labels).clone())
    }

    /// A short request goes on for as long as the guard lives.
    pub fn in_flight(&self, mutating: bool) -> Open {
        let request_kind = if mutating { "mutating" } else { "readOnly" };
        Open::new(self.in_flight.get_or_create(&InFlight { request_kind }).clone())
    }
}

/// Counts something that is open.
#[derive(Debug)]
pub struct Open(Gauge);

impl Open {
    fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
