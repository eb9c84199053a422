//! How long pods take to start, and what their workers do, under upstream's names.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use skiff_daemon::Metrics;
use tokio::time::Instant;

use super::DEFAULT_BUCKETS;
use crate::pod::Role;

/// Upstream's buckets of a pod's start, in seconds.
const START_BUCKETS: [f64; 25] = [
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0,
    600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
/// Of a status that is told.
const SYNC_BUCKETS: [f64; 11] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0];
/// Of a pull.
const PULL_BUCKETS: [f64; 14] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 180.0, 300.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
/// Sizes of images as the label writes them: up to so many bytes.
const SIZES: [(u64, &str); 11] = [
    (10 << 20, "0-10MB"),
    (100 << 20, "10MB-100MB"),
    (500 << 20, "100MB-500MB"),
    (1 << 30, "500MB-1GB"),
    (5 << 30, "1GB-5GB"),
    (10 << 30, "5GB-10GB"),
    (20 << 30, "10GB-20GB"),
    (30 << 30, "20GB-30GB"),
    (40 << 30, "30GB-40GB"),
    (60 << 30, "40GB-60GB"),
    (100 << 30, "60GB-100GB"),
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Work {
    operation_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Started {
    container_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NotStarted {
    code: &'static str,
    container_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pulled {
    image_size_in_bytes: &'static str,
}

/// What is measured of pods' lives.
#[derive(Debug)]
pub(crate) struct Lives {
    starts: Histogram,
    sli: Histogram,
    totals: Histogram,
    work: Family<Work, Histogram>,
    worker_starts: Histogram,
    syncs: Histogram,
    sizes: Histogram,
    started: Family<Started, Counter>,
    not_started: Family<NotStarted, Counter>,
    pulls: Family<Pulled, Histogram>,
    /// When the first pull of a pod that is starting began and when the last one ended, by UID.
    pulling: Mutex<HashMap<String, (Instant, Instant)>>,
}

impl Lives {
    pub(super) fn new(process: &Metrics) -> Self {
        let lives = Self {
            starts: Histogram::new(START_BUCKETS),
            sli: Histogram::new(START_BUCKETS),
            totals: Histogram::new(START_BUCKETS),
            work: Family::new_with_constructor(|| Histogram::new(DEFAULT_BUCKETS)),
            worker_starts: Histogram::new(DEFAULT_BUCKETS),
            syncs: Histogram::new(SYNC_BUCKETS),
            sizes: Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0]),
            started: Family::default(),
            not_started: Family::default(),
            pulls: Family::new_with_constructor(|| Histogram::new(PULL_BUCKETS)),
            pulling: Mutex::default(),
        };
        lives.register(process);
        lives
    }

    fn register(&self, process: &Metrics) {
        let since_created = "measured from pod creation timestamp to when all its containers are reported as started and observed via watch";
        let histograms = [
            (
                "kubelet_pod_start_duration_seconds",
                "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run"
                    .to_owned(),
                &self.starts,
            ),
            (
                "kubelet_pod_start_sli_duration_seconds",
                format!(
                    "Duration in seconds to start a pod, excluding time to pull images and run init containers, {since_created}"
                ),
                &self.sli,
            ),
            (
                "kubelet_pod_start_total_duration_seconds",
                format!(
                    "Duration in seconds to start a pod since creation, including time to pull images and run init containers, {since_created}"
                ),
                &self.totals,
            ),
            (
                "kubelet_pod_worker_start_duration_seconds",
                "Duration in seconds from kubelet seeing a pod to starting a worker".to_owned(),
                &self.worker_starts,
            ),
            (
                "kubelet_pod_status_sync_duration_seconds",
                "Duration in seconds to sync a pod status update, from the change to the API's answer".to_owned(),
                &self.syncs,
            ),
            (
                "kubelet_containers_per_pod_count",
                "The number of containers per pod".to_owned(),
                &self.sizes,
            ),
        ];
        process.register(|registry| {
            for (name, help, histogram) in histograms {
                registry.register(name, help, histogram.clone());
            }
            let help = "Duration in seconds to sync a single pod. Broken down by operation type: create, update, sync, or kill";
            registry.register("kubelet_pod_worker_duration_seconds", help, self.work.clone());
            let help = "Cumulative number of containers started";
            registry.register("kubelet_started_containers", help, self.started.clone());
            let help = "Cumulative number of errors when starting containers";
            registry.register("kubelet_started_containers_errors", help, self.not_started.clone());
            let help = "Duration in seconds to pull an image";
            registry.register("kubelet_image_pull_duration_seconds", help, self.pulls.clone());
        });
    }

    /// A worker of a pod with so many containers begins, so long after the pod was seen.
    pub(crate) fn begun(&self, containers: usize, after: Duration) {
        self.worker_starts.observe(after.as_secs_f64());
        self.sizes
            .observe(f64::from(u32::try_from(containers).unwrap_or(u32::MAX)));
    }

    /// A worker's round has ended.
    pub(crate) fn worked(&self, operation_type: &'static str, took: Duration) {
        self.work
            .get_or_create(&Work { operation_type })
            .observe(took.as_secs_f64());
    }

    /// The API has taken a status that was to be told since `changed`.
    pub(crate) fn told(&self, changed: Instant) {
        self.syncs.observe(changed.elapsed().as_secs_f64());
    }

    /// A pod runs, so long after it was seen.
    pub(crate) fn runs(&self, after: Duration) {
        self.starts.observe(after.as_secs_f64());
    }

    /// The API knows that all containers of a pod have started, so long after the pod was created; `waited` is what its init
    /// containers took.
    pub(crate) fn is_known_to_run(&self, uid: &str, after: Duration, waited: Duration) {
        let pulled = self.pulling.lock().remove(uid);
        let pulled = pulled.map_or(Duration::ZERO, |(first, last)| last - first);
        self.totals.observe(after.as_secs_f64());
        self.sli
            .observe(after.saturating_sub(pulled).saturating_sub(waited).as_secs_f64());
    }

    /// A container is being started; with `code`, it could not be.
    pub(crate) fn started(&self, role: Role, code: Option<&'static str>) {
        let container_type = match role {
            Role::Main => "container",
            Role::Init | Role::Sidecar => "init_container",
            Role::Ephemeral => "ephemeral_container",
        };
        match code {
            None => self.started.get_or_create(&Started { container_type }).inc(),
            Some(code) => self
                .not_started
                .get_or_create(&NotStarted { code, container_type })
                .inc(),
        };
    }

    /// An image of this size was pulled for a pod.
    pub(crate) fn pulled(&self, uid: &str, begun: Instant, bytes: u64) {
        let now = Instant::now();
        let size = SIZES.iter().find(|(limit, _)| bytes < *limit);
        let image_size_in_bytes = size.map_or("GT100GB", |(_, name)| name);
        self.pulls
            .get_or_create(&Pulled { image_size_in_bytes })
            .observe((now - begun).as_secs_f64());
        let mut pulling = self.pulling.lock();
        let span = pulling.entry(uid.to_owned()).or_insert((begun, now));
        *span = (span.0.min(begun), span.1.max(now));
    }

    /// Nothing is left of a pod.
    pub(super) fn forget(&self, uid: &str) {
        self.pulling.lock().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_start_is_told_without_pulls_and_init_containers() {
        let process = Metrics::default();
        let lives = Lives::new(&process);
        lives.started(Role::Sidecar, None);
        lives.started(Role::Main, Some("ErrImagePull"));
        lives.worked("create", Duration::from_millis(3));
        let begun = Instant::now();
        tokio::time::advance(Duration::from_secs(2)).await;
        lives.pulled("u1", begun, 11 << 20);
        lives.pulled("u1", Instant::now(), 1);
        lives.is_known_to_run("u1", Duration::from_secs(5), Duration::from_millis(500));
        let text = process.encode();
        for line in [
            "kubelet_pod_start_sli_duration_seconds_sum 2.5",
            "kubelet_pod_start_total_duration_seconds_sum 5.0",
            "kubelet_started_containers_total{container_type=\"init_container\"} 1",
            "kubelet_started_containers_errors_total{code=\"ErrImagePull\",container_type=\"container\"} 1",
            "kubelet_image_pull_duration_seconds_sum{image_size_in_bytes=\"10MB-100MB\"} 2.0",
            "kubelet_image_pull_duration_seconds_count{image_size_in_bytes=\"0-10MB\"} 1",
            "kubelet_pod_worker_duration_seconds_count{operation_type=\"create\"} 1",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(lives.pulling.lock().is_empty());
    }
}
