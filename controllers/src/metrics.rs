//! `workqueue_*`, as upstream names them.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    name: &'static str,
}

type Histograms = Family<QueueLabels, Histogram, fn() -> Histogram>;

/// The metrics of all queues.
#[derive(Clone)]
pub(crate) struct WorkqueueMetrics {
    depth: Family<QueueLabels, Gauge>,
    adds: Family<QueueLabels, Counter>,
    retries: Family<QueueLabels, Counter>,
    queue_duration: Histograms,
    work_duration: Histograms,
}

/// Those of one queue.
pub(crate) struct QueueMetrics {
    name: &'static str,
    depth: Gauge,
    adds: Counter,
    retries: Counter,
    queue_duration: Histogram,
    work_duration: Histogram,
}

fn seconds() -> Histogram {
    // Upstream's edges: 10 ns to 10 s, a decade each.
    Histogram::new((-8..=1).map(|exponent| 10_f64.powi(exponent)))
}

impl Default for WorkqueueMetrics {
    fn default() -> Self {
        Self {
            depth: Family::default(),
            adds: Family::default(),
            retries: Family::default(),
            queue_duration: Family::new_with_constructor(seconds),
            work_duration: Family::new_with_constructor(seconds),
        }
    }
}

impl WorkqueueMetrics {
    /// Registers the families with the process.
    pub(crate) fn register(&self, metrics: &skiff_daemon::Metrics) {
        metrics.register(|registry| {
            registry.register("workqueue_depth", "Current depth of workqueue", self.depth.clone());
            registry.register(
                "workqueue_adds",
                "Total number of adds handled by workqueue",
                self.adds.clone(),
            );
            registry.register(
                "workqueue_retries",
                "Total number of retries handled by workqueue",
                self.retries.clone(),
            );
            registry.register(
                "workqueue_queue_duration_seconds",
                "How long in seconds an item stays in workqueue before being requested",
                self.queue_duration.clone(),
            );
            registry.register(
                "workqueue_work_duration_seconds",
                "How long in seconds processing an item from workqueue takes",
                self.work_duration.clone(),
            );
        });
    }

    pub(crate) fn queue(&self, name: &'static str) -> QueueMetrics {
        let labels = QueueLabels { name };
        QueueMetrics {
            name,
            depth: self.depth.get_or_create_owned(&labels),
            adds: self.adds.get_or_create_owned(&labels),
            retries: self.retries.get_or_create_owned(&labels),
            queue_duration: self.queue_duration.get_or_create_owned(&labels),
            work_duration: self.work_duration.get_or_create_owned(&labels),
        }
    }
}

impl QueueMetrics {
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn added(&self) {
        self.adds.inc();
    }

    pub(crate) fn retried(&self) {
        self.retries.inc();
    }

    pub(crate) fn depth(&self, depth: usize) {
        self.depth.set(i64::try_from(depth).unwrap_or(i64::MAX));
    }

    pub(crate) fn taken(&self, waited: Duration, left: usize) {
        self.queue_duration.observe(waited.as_secs_f64());
        self.depth(left);
    }

    pub(crate) fn worked(&self, took: Duration) {
        self.work_duration.observe(took.as_secs_f64());
    }
}
