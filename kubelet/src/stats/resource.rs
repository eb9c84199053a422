//! `/metrics/resource`: what autoscalers need, and no more.

use super::exposition::{Text, float, seconds};
use super::{PodFigures, Snapshot};
use crate::pod;

/// The text for a look.
pub(crate) fn resource(snapshot: &Snapshot) -> String {
    let mut text = Text::default();
    containers(&mut text, snapshot);
    let node = &snapshot.node.usage;
    for (name, kind, help, value) in [
        (
            "node_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
            seconds(node.cpu),
        ),
        (
            "node_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the node in bytes",
            float(node.working_set),
        ),
        (
            "node_swap_usage_bytes",
            "gauge",
            "[ALPHA] Current swap usage of the node in bytes",
            float(node.swap),
        ),
    ] {
        text.family(name, kind, help);
        text.sample(name, &[], value, Some(snapshot.at));
    }
    for (name, kind, help, value) in [
        (
            "pod_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
            (|pod| Some(seconds(pod.measured?.usage.cpu))) as fn(&PodFigures) -> Option<f64>,
        ),
        (
            "pod_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the pod in bytes",
            |pod| Some(float(pod.measured?.usage.working_set)),
        ),
        (
            "pod_swap_usage_bytes",
            "gauge",
            "[ALPHA] Current amount of the pod swap usage in bytes",
            |pod| Some(float(pod.measured?.usage.swap)),
        ),
    ] {
        text.family(name, kind, help);
        for figures in &snapshot.pods {
            let labels = [
                ("namespace", pod::namespace(&figures.pod)),
                ("pod", pod::name(&figures.pod)),
            ];
            if let Some(value) = value(figures) {
                text.sample(name, &labels, value, Some(snapshot.at));
            }
        }
    }
    let name = "resource_scrape_error";
    text.family(
        name,
        "gauge",
        "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
    );
    text.sample(name, &[], 0.0, None);
    text.finish()
}

fn containers(text: &mut Text, snapshot: &Snapshot) {
    let at = Some(snapshot.at);
    for (name, kind, help) in [
        (
            "container_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
        ),
        (
            "container_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the container in bytes",
        ),
        (
            "container_start_time_seconds",
            "gauge",
            "[STABLE] Start time of the container since unix epoch in seconds",
        ),
        (
            "container_swap_usage_bytes",
            "gauge",
            "[ALPHA] Current amount of the container swap usage in bytes",
        ),
    ] {
        text.family(name, kind, help);
        for figures in &snapshot.pods {
            for container in &figures.containers {
                let labels = [
                    ("container", container.name.as_str()),
                    ("namespace", pod::namespace(&figures.pod)),
                    ("pod", pod::name(&figures.pod)),
                ];
                let usage = &container.measured.usage;
                let (value, at) = match name {
                    "container_cpu_usage_seconds_total" => (seconds(usage.cpu), at),
                    "container_memory_working_set_bytes" => (float(usage.working_set), at),
                    "container_swap_usage_bytes" => (float(usage.swap), at),
                    _ => (container.started.as_duration().as_secs_f64(), None),
                };
                text.sample(name, &labels, value, at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_metrics_server_reads() {
        let text = resource(&super::super::tests::snapshot(10, 1_500_000_000));
        for line in [
            "# TYPE container_cpu_usage_seconds_total counter",
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"ns\",pod=\"p\"} 1.5 10000",
            "container_memory_working_set_bytes{container=\"c\",namespace=\"ns\",pod=\"p\"} 1000 10000",
            "container_start_time_seconds{container=\"c\",namespace=\"ns\",pod=\"p\"} 2",
            "node_cpu_usage_seconds_total 1.5 10000",
            "node_memory_working_set_bytes 1000 10000",
            "pod_cpu_usage_seconds_total{namespace=\"ns\",pod=\"p\"} 1.5 10000",
            "resource_scrape_error 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
