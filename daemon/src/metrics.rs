//! One registry of metrics a process, in the text format that Prometheus reads.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// The process's metrics; clones share one registry.
#[derive(Clone, Default)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// Lets a component register what it measures, under upstream's names.
    ///
    /// prometheus-client appends `_total` to counters by itself: register `apiserver_request`, not `apiserver_request_total`.
    pub fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.registry.lock())
    }

    /// Everything registered, as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry.lock()) {
            tracing::error!(%error, "cannot encode metrics");
        }
        text
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::Metrics;

    #[test]
    fn what_is_registered_is_encoded() {
        let metrics = Metrics::default();
        let counter = Counter::<u64>::default();
        metrics.register(|registry| registry.register("pods_started", "Pods started", counter.clone()));
        counter.inc();
        assert!(metrics.encode().contains("pods_started_total 1"));
    }
}
