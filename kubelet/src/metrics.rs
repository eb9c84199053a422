//! What the kubelet measures of itself, under upstream's names: `/metrics`, and `/metrics/probes`.

mod lives;
mod runtime;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use skiff_api::k8s_openapi::api::core::v1::Pod;
use skiff_daemon::Metrics;
use tokio::time::Instant;

use crate::observed::State;
use crate::pod;
use crate::pods::{Directory, Entry};

pub(crate) use lives::Lives;
pub(crate) use runtime::Measured;

/// Prometheus' default buckets, in seconds.
const DEFAULT_BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Served {
    method: &'static str,
    path: &'static str,
    server_type: &'static str,
    long_running: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Signal {
    eviction_signal: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Preempted {
    preemption_signal: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Handler {
    runtime_handler: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Probed {
    probe_type: &'static str,
    result: &'static str,
    container: String,
    pod: String,
    namespace: String,
    pod_uid: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    git_version: &'static str,
    major: String,
    minor: String,
    platform: String,
}

/// What the kubelet measures; one for each kubelet.
#[derive(Debug)]
pub(crate) struct Measures {
    operations: Family<Operation, Counter>,
    operation_errors: Family<Operation, Counter>,
    operation_durations: Family<Operation, Histogram>,
    started_pods: Counter,
    started_pod_errors: Counter,
    relists: Histogram,
    relist_intervals: Histogram,
    relisted: Mutex<Option<Instant>>,
    requests: Family<Served, Counter>,
    // Upstream's counter has no `_total` in its name, which this library gives to every counter.
    evictions: Family<Signal, Gauge>,
    preemptions: Family<Preempted, Gauge>,
    collected_images: Family<Reason, Counter>,
    cgroup_changes: Family<Operation, Histogram>,
    build: Family<Build, Gauge>,
    sandboxes: Family<Handler, Histogram>,
    sandbox_errors: Family<Handler, Counter>,
    hook_fallbacks: Counter,
    /// Starts of pods and the work of their workers.
    pub(crate) lives: Lives,
    probes: Family<Probed, Counter>,
    /// Label sets of each pod, to be forgotten with it.
    probed: Mutex<HashMap<String, Vec<Probed>>>,
}

impl Measures {
    /// Registers everything; probes have an endpoint, and so a registry, of their own.
    pub(crate) fn new(process: &Metrics, probes: &Metrics, node: &str) -> Arc<Self> {
        let measures = Arc::new(Self {
            operations: Family::default(),
            operation_errors: Family::default(),
            operation_durations: Family::new_with_constructor(operation_histogram),
            started_pods: Counter::default(),
            started_pod_errors: Counter::default(),
            relists: Histogram::new(DEFAULT_BUCKETS),
            relist_intervals: Histogram::new(DEFAULT_BUCKETS),
            relisted: Mutex::default(),
            requests: Family::default(),
            evictions: Family::default(),
            preemptions: Family::default(),
            collected_images: Family::default(),
            cgroup_changes: Family::new_with_constructor(|| Histogram::new(DEFAULT_BUCKETS)),
            build: Family::default(),
            sandboxes: Family::new_with_constructor(operation_histogram),
            sandbox_errors: Family::default(),
            hook_fallbacks: Counter::default(),
            lives: Lives::new(process),
            probes: Family::default(),
            probed: Mutex::default(),
        });
        measures.build.get_or_create(&build()).set(1);
        measures.register(process, node);
        probes.register(|registry| {
            let help = "Cumulative number of a liveness, readiness or startup probe for a container by result";
            registry.register("prober_probe", help, measures.probes.clone());
        });
        measures
    }

    fn register(&self, process: &Metrics, node: &str) {
        let name = NodeName(node.to_owned());
        process.register(|registry| {
            registry.register_collector(Box::new(skiff_daemon::process::Process));
            registry.register_collector(Box::new(name));
            let counters = [
                (
                    "kubelet_runtime_operations",
                    "Cumulative number of runtime operations by operation type",
                    &self.operations,
                ),
                (
                    "kubelet_runtime_operations_errors",
                    "Cumulative number of runtime operation errors by operation type",
                    &self.operation_errors,
                ),
            ];
            for (name, help, family) in counters {
                registry.register(name, help, family.clone());
            }
            let help = "Duration in seconds of runtime operations, by operation type";
            registry.register(
                "kubelet_runtime_operations_duration_seconds",
                help,
                self.operation_durations.clone(),
            );
            let help = "Cumulative number of pods started";
            registry.register("kubelet_started_pods", help, self.started_pods.clone());
            let help = "Cumulative number of errors when starting pods";
            registry.register("kubelet_started_pods_errors", help, self.started_pod_errors.clone());
            let help = "Duration in seconds for relisting pods";
            registry.register("kubelet_pleg_relist_duration_seconds", help, self.relists.clone());
            let help = "Interval in seconds between relisting pods";
            registry.register(
                "kubelet_pleg_relist_interval_seconds",
                help,
                self.relist_intervals.clone(),
            );
            let help = "Number of the http requests received since the server started";
            registry.register("kubelet_http_requests", help, self.requests.clone());
            let help = "Cumulative number of pod evictions by eviction signal";
            registry.register("kubelet_evictions", help, self.evictions.clone());
            let help = "Cumulative number of pod preemptions by preemption resource";
            registry.register("kubelet_preemptions", help, self.preemptions.clone());
            let help = "Duration in seconds of the run_podsandbox operations. Broken down by RuntimeClass.Handler";
            registry.register("kubelet_run_podsandbox_duration_seconds", help, self.sandboxes.clone());
            let help = "Cumulative number of the run_podsandbox operation errors by RuntimeClass.Handler";
            registry.register("kubelet_run_podsandbox_errors", help, self.sandbox_errors.clone());
            let help = "Total number of images garbage collected by the kubelet, by the reason";
            registry.register("kubelet_image_garbage_collected", help, self.collected_images.clone());
            let help = "Duration in seconds for cgroup manager operations. Broken down by method.";
            let changes = self.cgroup_changes.clone();
            registry.register("kubelet_cgroup_manager_duration_seconds", help, changes);
            let help = "What this kubelet is; the value is always 1";
            registry.register("kubernetes_build_info", help, self.build.clone());
            let help = "The number of times lifecycle handlers successfully fell back to http from https";
            registry.register(
                "kubelet_lifecycle_handler_http_fallbacks",
                help,
                self.hook_fallbacks.clone(),
            );
        });
    }

    /// One call to the runtime has ended.
    fn operated(&self, operation_type: &'static str, took: Duration, failed: bool) {
        let operation = Operation { operation_type };
        self.operations.get_or_create(&operation).inc();
        self.operation_durations
            .get_or_create(&operation)
            .observe(took.as_secs_f64());
        if failed {
            self.operation_errors.get_or_create(&operation).inc();
        }
    }

    /// A sandbox was made, or not: upstream counts the attempt as a start, too.
    fn sandbox_run(&self, handler: &str, took: Duration, failed: bool) {
        let runtime_handler = handler.to_owned();
        let handler = Handler { runtime_handler };
        self.sandboxes.get_or_create(&handler).observe(took.as_secs_f64());
        self.started_pods.inc();
        if failed {
            self.sandbox_errors.get_or_create(&handler).inc();
            self.started_pod_errors.inc();
        }
    }

    /// All pods of the runtime were listed.
    pub(crate) fn relisted(&self, begun: Instant) {
        self.relists.observe(begun.elapsed().as_secs_f64());
        if let Some(before) = self.relisted.lock().replace(begun) {
            self.relist_intervals.observe((begun - before).as_secs_f64());
        }
    }

    /// An HTTPS hook has met a plain server, which took it.
    pub(crate) fn hook_fell_back(&self) {
        self.hook_fallbacks.inc();
    }

    /// A request to the server; `path` is the first part of a path that is served.
    pub(crate) fn requested(&self, method: &'static str, path: &'static str, long_running: bool) {
        let served = Served {
            method,
            path,
            server_type: "readwrite",
            long_running,
        };
        self.requests.get_or_create(&served).inc();
    }

    /// A pod was evicted.
    pub(crate) fn evicted(&self, eviction_signal: &'static str) {
        self.evictions.get_or_create(&Signal { eviction_signal }).inc();
    }

    /// A pod had to make room for a critical one; `resource` was short.
    pub(crate) fn preempted(&self, resource: &str) {
        let preemption_signal = resource.to_owned();
        self.preemptions.get_or_create(&Preempted { preemption_signal }).inc();
    }

    /// A pod's cgroup was made (`create`) or removed (`destroy`).
    pub(crate) fn changed_cgroup(&self, operation_type: &'static str, begun: Instant) {
        let took = begun.elapsed().as_secs_f64();
        self.cgroup_changes
            .get_or_create(&Operation { operation_type })
            .observe(took);
    }

    /// An image was removed, for `space` or for its `age`.
    pub(crate) fn collected(&self, reason: &'static str) {
        self.collected_images.get_or_create(&Reason { reason }).inc();
    }

    /// A probe has ended; `probe_type` is upstream's (`Liveness`), `result` is `successful`, `failed` or `unknown`.
    pub(crate) fn probed(&self, pod: &Pod, container: &str, probe_type: &'static str, result: &'static str) {
        let labels = Probed {
            probe_type,
            result,
            container: container.to_owned(),
            pod: pod::name(pod).to_owned(),
            namespace: pod::namespace(pod).to_owned(),
            pod_uid: pod::uid(pod).to_owned(),
        };
        self.probes.get_or_create(&labels).inc();
        let mut probed = self.probed.lock();
        let known = probed.entry(labels.pod_uid.clone()).or_default();
        if !known.contains(&labels) {
            known.push(labels);
        }
    }

    /// Nothing is left of a pod: what was counted of its probes goes too, so that counts do not grow for ever.
    pub(crate) fn forget(&self, uid: &str) {
        for labels in self.probed.lock().remove(uid).unwrap_or_default() {
            self.probes.remove(&labels);
        }
        self.lives.forget(uid);
    }
}

/// The version that this kubelet is compatible with.
fn build() -> Build {
    let git_version = crate::node::VERSION;
    let mut parts = git_version.trim_start_matches('v').split('.').map(str::to_owned);
    Build {
        git_version,
        major: parts.next().unwrap_or_default(),
        minor: parts.next().unwrap_or_default(),
        platform: format!("linux/{}", crate::node::facts::architecture()),
    }
}

fn operation_histogram() -> Histogram {
    Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(
        0.005, 2.5, 14,
    ))
}

/// `kubelet_node_name`.
#[derive(Debug)]
struct NodeName(String);

impl Collector for NodeName {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut metric = encoder.encode_descriptor(
            "kubelet_node_name",
            "The node's name. The count is always 1",
            None,
            MetricType::Gauge,
        )?;
        let labels = [("node", self.0.as_str())];
        ConstGauge::new(1.0).encode(metric.encode_family(&labels)?)
    }
}

/// `kubelet_running_pods`, `kubelet_running_containers`: counted when somebody asks.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) Directory);

impl Collector for Running {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let entries = self.0.all();
        let pods = entries
            .iter()
            .filter(|entry| entry.observed.ready_sandbox().is_some())
            .count();
        let metric = encoder.encode_descriptor(
            "kubelet_running_pods",
            "Number of pods that have a running pod sandbox",
            None,
            MetricType::Gauge,
        )?;
        gauge(pods).encode(metric)?;
        desired(&entries, &mut encoder)?;
        let mut states = [("created", 0), ("running", 0), ("exited", 0), ("unknown", 0)];
        for container in entries.iter().flat_map(|entry| &entry.observed.containers) {
            let index = match container.state {
                State::Created => 0,
                State::Running(_) => 1,
                State::Exited(_) => 2,
                State::Unknown => 3,
            };
            states[index].1 += 1;
        }
        let mut metric = encoder.encode_descriptor(
            "kubelet_running_containers",
            "Number of containers currently running",
            None,
            MetricType::Gauge,
        )?;
        for (state, count) in states {
            let labels = [("container_state", state)];
            gauge(count).encode(metric.encode_family(&labels)?)?;
        }
        last_seen(&self.0, &mut encoder)
    }
}

/// `kubelet_pleg_last_seen_seconds`: here the loop that takes the runtime's events, and lists all now and then, began a round.
fn last_seen(directory: &Directory, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
    let Some(ago) = directory.last_round() else {
        return Ok(());
    };
    let now = jiff::Timestamp::now().as_duration().as_secs_f64();
    let help = "Timestamp in seconds when PLEG was last seen active.";
    let metric = encoder.encode_descriptor("kubelet_pleg_last_seen_seconds", help, None, MetricType::Gauge)?;
    ConstGauge::new(now - ago.as_secs_f64()).encode(metric)
}

/// `kubelet_desired_pods`, `kubelet_active_pods` (those that have not ended), `kubelet_mirror_pods`.
fn desired(entries: &[Entry], encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
    let statics = |is_static: bool| {
        entries
            .iter()
            .filter(move |entry| pod::is_static(&entry.pod) == is_static)
    };
    let active = |is_static: bool| statics(is_static).filter(|entry| !pod::is_terminal(&entry.pod)).count();
    for (name, help, counts) in [
        (
            "kubelet_desired_pods",
            "The number of pods the kubelet is being instructed to run. static is true if the pod is not from the apiserver",
            [statics(false).count(), statics(true).count()],
        ),
        (
            "kubelet_active_pods",
            "The number of pods the kubelet considers active and which are being considered when admitting new pods. static is true \
             if the pod is not from the apiserver",
            [active(false), active(true)],
        ),
    ] {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (label, count) in ["", "true"].into_iter().zip(counts) {
            let labels = [("static", label)];
            gauge(count).encode(metric.encode_family(&labels)?)?;
        }
    }
    let help = "The number of mirror pods the kubelet will try to create (one per admitted static pod)";
    let metric = encoder.encode_descriptor("kubelet_mirror_pods", help, None, MetricType::Gauge)?;
    gauge(statics(true).count()).encode(metric)
}

fn gauge(count: usize) -> ConstGauge<f64> {
    ConstGauge::new(f64::from(u32::try_from(count).unwrap_or(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn names_are_upstreams_and_probes_are_forgotten_with_their_pod() {
        let (process, probes) = (Metrics::default(), Metrics::default());
        let measures = Measures::new(&process, &probes, "node-1");
        measures.operated("run_podsandbox", Duration::from_millis(3), false);
        measures.sandbox_run("", Duration::from_millis(3), false);
        measures.sandbox_run("gvisor", Duration::from_millis(3), true);
        measures.preempted("memory");
        measures.hook_fell_back();
        measures.operated("pull_image", Duration::from_secs(1), true);
        measures.evicted("memory.available");
        measures.changed_cgroup("create", Instant::now());
        let text = process.encode();
        for line in [
            "kubelet_evictions{eviction_signal=\"memory.available\"} 1",
            "kubelet_node_name{node=\"node-1\"} 1",
            "kubelet_runtime_operations_total{operation_type=\"pull_image\"} 1",
            "kubelet_runtime_operations_errors_total{operation_type=\"pull_image\"} 1",
            "kubelet_runtime_operations_duration_seconds_bucket{le=\"0.005\",operation_type=\"run_podsandbox\"} 1",
            "kubelet_lifecycle_handler_http_fallbacks_total 1",
            "kubelet_started_pods_total 2",
            "kubelet_started_pods_errors_total 1",
            "kubelet_run_podsandbox_errors_total{runtime_handler=\"gvisor\"} 1",
            "kubelet_preemptions{preemption_signal=\"memory\"} 1",
            "kubelet_cgroup_manager_duration_seconds_count{operation_type=\"create\"} 1",
            "kubernetes_build_info{git_version=\"v1.36.0\",major=\"1\",minor=\"36\",platform=\"linux/",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        let p = pod(&json!({"containers": [{"name": "c"}]}));
        measures.probed(&p, "c", "Liveness", "successful");
        assert!(
            probes
                .encode()
                .contains("prober_probe_total{probe_type=\"Liveness\",result=\"successful\",container=\"c\"")
        );
        measures.forget(pod::uid(&p));
        assert!(!probes.encode().contains("probe_type"));
    }
}
