//! What the scheduler measures, under upstream's names.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use tokio::time::{Duration, Instant};

use crate::queue::Counts;

/// What became of an attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    Scheduled,
    Unschedulable,
    Error,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct AttemptLabels {
    result: &'static str,
    profile: String,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct QueueLabels {
    queue: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct IncomingLabels {
    queue: &'static str,
    event: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct SliLabels {
    attempts: u32,
}

/// The scheduler's metrics.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    profile: String,
    attempts: Family<AttemptLabels, Counter>,
    attempt_seconds: Family<AttemptLabels, Histogram, fn() -> Histogram>,
    algorithm_seconds: Histogram,
    pod_attempts: Histogram,
    sli_seconds: Family<SliLabels, Histogram, fn() -> Histogram>,
    pending: Family<QueueLabels, Gauge>,
    incoming: Family<IncomingLabels, Counter>,
    preemptions: Counter,
    victims: Histogram,
}

fn fast() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

fn slow() -> Histogram {
    Histogram::new(exponential_buckets(0.01, 2.0, 20))
}

impl Metrics {
    pub(crate) fn register(metrics: &skiff_daemon::Metrics, profile: &str) -> Self {
        let own = Self {
            profile: profile.to_owned(),
            attempts: Family::default(),
            attempt_seconds: Family::new_with_constructor(fast),
            algorithm_seconds: fast(),
            pod_attempts: Histogram::new(exponential_buckets(1.0, 2.0, 5)),
            sli_seconds: Family::new_with_constructor(slow),
            pending: Family::default(),
            incoming: Family::default(),
            preemptions: Counter::default(),
            victims: Histogram::new(exponential_buckets(1.0, 2.0, 7)),
        };
        metrics.register(|registry| {
            let scheduler = registry.sub_registry_with_prefix("scheduler");
            scheduler.register(
                "schedule_attempts",
                "Attempts to schedule a pod, by result",
                own.attempts.clone(),
            );
            scheduler.register(
                "scheduling_attempt_duration_seconds",
                "Time of an attempt: algorithm and binding",
                own.attempt_seconds.clone(),
            );
            scheduler.register(
                "scheduling_algorithm_duration_seconds",
                "Time of the algorithm",
                own.algorithm_seconds.clone(),
            );
            scheduler.register(
                "pod_scheduling_attempts",
                "Attempts that a pod needed",
                own.pod_attempts.clone(),
            );
            scheduler.register(
                "pod_scheduling_sli_duration_seconds",
                "Time from the queue to a node, by number of attempts",
                own.sli_seconds.clone(),
            );
            scheduler.register("pending_pods", "Pods that wait, by queue", own.pending.clone());
            scheduler.register(
                "queue_incoming_pods",
                "Pods that came into a queue, by event",
                own.incoming.clone(),
            );
            scheduler.register("preemption_attempts", "Attempts to make room", own.preemptions.clone());
            scheduler.register(
                "preemption_victims",
                "Pods deleted to make room for one",
                own.victims.clone(),
            );
        });
        own
    }

    pub(crate) fn attempt(&self, outcome: Outcome, took: Duration) {
        let labels = AttemptLabels {
            result: match outcome {
                Outcome::Scheduled => "scheduled",
                Outcome::Unschedulable => "unschedulable",
                Outcome::Error => "error",
            },
            profile: self.profile.clone(),
        };
        self.attempts.get_or_create(&labels).inc();
        self.attempt_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    pub(crate) fn algorithm(&self, took: Duration) {
        self.algorithm_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn bound(&self, attempts: u32, came: Instant) {
        self.pod_attempts.observe(f64::from(attempts));
        let labels = SliLabels { attempts };
        self.sli_seconds
            .get_or_create(&labels)
            .observe(came.elapsed().as_secs_f64());
    }

    pub(crate) fn incoming(&self, queue: &'static str, event: &'static str) {
        self.incoming.get_or_create(&IncomingLabels { queue, event }).inc();
    }

    pub(crate) fn preemption_tried(&self) {
        self.preemptions.inc();
    }

    pub(crate) fn preempted(&self, victims: usize) {
        self.victims
            .observe(f64::from(u32::try_from(victims).unwrap_or(u32::MAX)));
    }

    pub(crate) fn pending(&self, counts: Counts) {
        let each = [
            ("active", counts.active),
            ("backoff", counts.backoff),
            ("unschedulable", counts.unschedulable),
            ("gated", counts.gated),
        ];
        for (queue, count) in each {
            self.pending
                .get_or_create(&QueueLabels { queue })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}
