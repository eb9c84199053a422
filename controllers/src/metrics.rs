//! `workqueue_*`, as upstream names them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use tokio::time::Instant;

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
    running: Running,
}

/// Since when each worker has been at its key, by queue; asked at each scrape.
#[derive(Clone, Debug, Default)]
struct Running {
    queues: Arc<Mutex<Vec<(&'static str, Started)>>>,
}

/// The starts of one queue's workers; a worker that is idle has none.
type Started = Arc<Mutex<Vec<Instant>>>;

/// A worker is at a key while this lives.
pub(crate) struct Work<'a> {
    metrics: &'a QueueMetrics,
    since: Instant,
}

/// Those of one queue.
pub(crate) struct QueueMetrics {
    name: &'static str,
    depth: Gauge,
    adds: Counter,
    retries: Counter,
    queue_duration: Histogram,
    work_duration: Histogram,
    started: Started,
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
            running: Running::default(),
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
            registry.register_collector(Box::new(self.running.clone()));
        });
    }

    pub(crate) fn queue(&self, name: &'static str) -> QueueMetrics {
        let labels = QueueLabels { name };
        let started = Started::default();
        let mut queues = self.running.queues.lock();
        // A manager that leads once more makes its queues anew.
        queues.retain(|(other, _)| *other != name);
        queues.push((name, Arc::clone(&started)));
        drop(queues);
        QueueMetrics {
            name,
            depth: self.depth.get_or_create_owned(&labels),
            adds: self.adds.get_or_create_owned(&labels),
            retries: self.retries.get_or_create_owned(&labels),
            queue_duration: self.queue_duration.get_or_create_owned(&labels),
            work_duration: self.work_duration.get_or_create_owned(&labels),
            started,
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

    /// A worker begins with a key.
    pub(crate) fn work(&self) -> Work<'_> {
        let since = Instant::now();
        self.started.lock().push(since);
        Work { metrics: self, since }
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        let mut started = self.metrics.started.lock();
        if let Some(at) = started.iter().position(|since| *since == self.since) {
            started.swap_remove(at);
        }
        self.metrics.work_duration.observe(self.since.elapsed().as_secs_f64());
    }
}

impl fmt::Debug for Work<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work")
            .field("since", &self.since)
            .finish_non_exhaustive()
    }
}

impl Collector for Running {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let queues: Vec<(&'static str, Vec<f64>)> = self
            .queues
            .lock()
            .iter()
            .map(|(name, started)| {
                (
                    *name,
                    started
                        .lock()
                        .iter()
                        .map(|since| since.elapsed().as_secs_f64())
                        .collect(),
                )
            })
            .collect();
        let name = "workqueue_unfinished_work_seconds";
        let help =
            "How many seconds of work has been done that is in progress and hasn't been observed by work_duration";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (name, running) in &queues {
            let labels = QueueLabels { name };
            ConstGauge::new(running.iter().fold(0.0, |total, running| total + running))
                .encode(family.encode_family(&labels)?)?;
        }
        let name = "workqueue_longest_running_processor_seconds";
        let help = "How many seconds has the longest running processor for workqueue been running";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (name, running) in &queues {
            let labels = QueueLabels { name };
            let longest = running.iter().copied().fold(0.0, f64::max);
            ConstGauge::new(longest).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::WorkqueueMetrics;

    #[tokio::test(start_paused = true)]
    async fn work_in_progress_is_seen() {
        let metrics = skiff_daemon::Metrics::default();
        let queues = WorkqueueMetrics::default();
        queues.register(&metrics);
        let queue = queues.queue("deployment");
        queue.added();
        let work = queue.work();
        tokio::time::advance(std::time::Duration::from_secs(3)).await;
        let text = metrics.encode();
        for line in [
            r#"workqueue_adds_total{name="deployment"} 1"#,
            r#"workqueue_unfinished_work_seconds{name="deployment"} 3.0"#,
            r#"workqueue_longest_running_processor_seconds{name="deployment"} 3.0"#,
        ] {
            assert!(text.contains(line), "{line} not in {text}");
        }
        drop(work);
        let text = metrics.encode();
        assert!(
            text.contains(r#"workqueue_unfinished_work_seconds{name="deployment"} 0.0"#),
            "{text}"
        );
        assert!(
            text.contains(r#"workqueue_work_duration_seconds_count{name="deployment"} 1"#),
            "{text}"
        );
    }
}
