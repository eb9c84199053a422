//! `/metrics/cadvisor`: the figures of cgroups and interfaces, under the names that dashboards know from cAdvisor.

use super::disk::FileSystem;
use super::exposition::{Text, float, seconds};
use super::machine::Interface;
use super::{ContainerFigures, PodFigures, Snapshot};
use crate::cgroups::{Stalls, Transfers, Usage};
use crate::pod;

/// Whose figures a line shows.
enum Of<'a> {
    Node,
    Pod(&'a PodFigures),
    Container(&'a PodFigures, &'a ContainerFigures),
}

type Value = fn(&Usage) -> Option<f64>;

/// Families made of what a cgroup has used.
const FAMILIES: &[(&str, &str, &str, Value)] = &[
    (
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed in seconds.",
        |usage| Some(seconds(usage.cpu)),
    ),
    (
        "container_cpu_cfs_periods_total",
        "counter",
        "Number of elapsed enforcement period intervals.",
        |usage| Some(float(usage.throttling.0)),
    ),
    (
        "container_cpu_cfs_throttled_periods_total",
        "counter",
        "Number of throttled period intervals.",
        |usage| Some(float(usage.throttling.1)),
    ),
    (
        "container_cpu_cfs_throttled_seconds_total",
        "counter",
        "Total time duration the container has been throttled.",
        |usage| Some(seconds(usage.throttling.2)),
    ),
    (
        "container_memory_usage_bytes",
        "gauge",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        |usage| Some(float(usage.memory)),
    ),
    (
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set in bytes.",
        |usage| Some(float(usage.working_set)),
    ),
    ("container_memory_rss", "gauge", "Size of RSS in bytes.", |usage| {
        Some(float(usage.rss))
    }),
    (
        "container_memory_cache",
        "gauge",
        "Number of bytes of page cache memory.",
        |usage| Some(float(usage.cache)),
    ),
    (
        "container_memory_mapped_file",
        "gauge",
        "Size of memory mapped files in bytes.",
        |usage| Some(float(usage.mapped)),
    ),
    (
        "container_memory_swap",
        "gauge",
        "Container swap usage in bytes.",
        |usage| Some(float(usage.swap)),
    ),
    (
        "container_processes",
        "gauge",
        "Number of processes running inside the container.",
        |usage| Some(float(usage.processes)),
    ),
    (
        "container_spec_memory_limit_bytes",
        "gauge",
        "Memory limit for the container.",
        |usage| Some(float(usage.limit.unwrap_or(0))),
    ),
    (
        "container_cpu_user_seconds_total",
        "counter",
        "Cumulative user cpu time consumed in seconds.",
        |usage| Some(seconds(usage.cpu_parts.0)),
    ),
    (
        "container_cpu_system_seconds_total",
        "counter",
        "Cumulative system cpu time consumed in seconds.",
        |usage| Some(seconds(usage.cpu_parts.1)),
    ),
    (
        "container_memory_failcnt",
        "counter",
        "Number of memory usage hits limits",
        |usage| Some(float(usage.refused)),
    ),
    (
        "container_memory_max_usage_bytes",
        "gauge",
        "Maximum memory usage recorded in bytes",
        |usage| usage.peak.map(float),
    ),
    (
        "container_threads",
        "gauge",
        "Number of threads running inside the container",
        // The kernel counts them in cgroups, not at the root.
        |usage| Some(usage.processes).filter(|threads| *threads > 0).map(float),
    ),
    (
        "container_pressure_cpu_waiting_seconds_total",
        "counter",
        "Total time duration tasks in the container have waited due to CPU congestion.",
        |usage| waited(usage.pressure.cpu),
    ),
    (
        "container_pressure_cpu_stalled_seconds_total",
        "counter",
        "Total time duration no tasks in the container could make progress due to CPU congestion.",
        |usage| stalled(usage.pressure.cpu),
    ),
    (
        "container_pressure_memory_waiting_seconds_total",
        "counter",
        "Total time duration tasks in the container have waited due to memory congestion.",
        |usage| waited(usage.pressure.memory),
    ),
    (
        "container_pressure_memory_stalled_seconds_total",
        "counter",
        "Total time duration no tasks in the container could make progress due to memory congestion.",
        |usage| stalled(usage.pressure.memory),
    ),
    (
        "container_pressure_io_waiting_seconds_total",
        "counter",
        "Total time duration tasks in the container have waited due to IO congestion.",
        |usage| waited(usage.pressure.io),
    ),
    (
        "container_pressure_io_stalled_seconds_total",
        "counter",
        "Total time duration no tasks in the container could make progress due to IO congestion.",
        |usage| stalled(usage.pressure.io),
    ),
];

/// Seconds that some task has waited.
fn waited(stalls: Option<Stalls>) -> Option<f64> {
    stalls.map(|stalls| float(stalls.some.total) / 1e6)
}

/// Seconds that all tasks have waited.
fn stalled(stalls: Option<Stalls>) -> Option<f64> {
    stalls.map(|stalls| float(stalls.full.total) / 1e6)
}

/// The text for a look; `cpus` and `memory` are the machine's, `disk` is the node's with its device.
pub(crate) fn cadvisor(snapshot: &Snapshot, (cpus, memory): (i64, i64), disk: Option<(String, FileSystem)>) -> String {
    let mut text = Text::default();
    for (name, help, value) in [
        ("machine_cpu_cores", "Number of logical CPU cores.", cpus),
        (
            "machine_memory_bytes",
            "Amount of memory installed on the machine.",
            memory,
        ),
    ] {
        text.family(name, "gauge", help);
        text.sample(name, &[], float(u64::try_from(value).unwrap_or(0)), None);
    }
    for (name, kind, help, value) in FAMILIES {
        text.family(name, kind, help);
        each(snapshot, |of, usage| {
            let mut labels = labels(of);
            if *name == "container_cpu_usage_seconds_total" {
                labels.push(("cpu", "total"));
            }
            if let Some(value) = value(usage) {
                text.sample(name, &labels, value, Some(snapshot.at));
            }
        });
    }
    failures(&mut text, snapshot);
    times(&mut text, snapshot, disk.as_ref());
    limits_of_disk(&mut text, snapshot, disk.as_ref());
    for (name, kind, help, value) in OF_CONTAINERS {
        text.family(name, kind, help);
        for (pod, container) in containers(snapshot) {
            if let Some(value) = value(container) {
                text.sample(name, &labels(&Of::Container(pod, container)), value, Some(snapshot.at));
            }
        }
    }
    for (name, help, value) in TRANSFERS {
        text.family(name, "counter", help);
        transfers(&mut text, name, *value, snapshot);
    }
    for (name, help, value) in NETWORK {
        text.family(name, "counter", help);
        network(&mut text, name, *value, snapshot);
    }
    text.finish()
}

fn each(snapshot: &Snapshot, mut line: impl FnMut(&Of<'_>, &Usage)) {
    line(&Of::Node, &snapshot.node.usage);
    for pod in &snapshot.pods {
        if let Some(measured) = &pod.measured {
            line(&Of::Pod(pod), &measured.usage);
        }
        for container in &pod.containers {
            line(&Of::Container(pod, container), &container.measured.usage);
        }
    }
}

fn labels<'a>(of: &Of<'a>) -> Vec<(&'static str, &'a str)> {
    let of_pod = |pod: &'a PodFigures| [("namespace", pod::namespace(&pod.pod)), ("pod", pod::name(&pod.pod))];
    match of {
        Of::Node => vec![("id", "/")],
        Of::Pod(pod) => {
            let mut labels = vec![("container", ""), ("id", pod.cgroup.as_str())];
            labels.extend(of_pod(pod));
            labels
        }
        Of::Container(pod, container) => {
            let mut labels = vec![
                ("container", container.name.as_str()),
                ("id", container.cgroup.as_str()),
                ("image", container.image.as_str()),
                ("name", container.id.as_str()),
            ];
            labels.extend(of_pod(pod));
            labels
        }
    }
}

fn failures(text: &mut Text, snapshot: &Snapshot) {
    let name = "container_memory_failures_total";
    text.family(name, "counter", "Cumulative count of memory allocation failures.");
    each(snapshot, |of, usage| {
        for (kind, value) in [("pgfault", usage.faults), ("pgmajfault", usage.major_faults)] {
            let mut labels = labels(of);
            labels.extend([("failure_type", kind), ("scope", "hierarchy")]);
            text.sample(name, &labels, float(value), Some(snapshot.at));
        }
    });
}

fn times(text: &mut Text, snapshot: &Snapshot, disk: Option<&(String, FileSystem)>) {
    for (name, help) in [
        (
            "container_start_time_seconds",
            "Start time of the container since unix epoch in seconds.",
        ),
        ("container_last_seen", "Last time a container was seen by the exporter"),
        (
            "container_fs_usage_bytes",
            "Number of bytes that are consumed by the container on this filesystem.",
        ),
    ] {
        text.family(name, "gauge", help);
        if let Some((device, system)) = disk.filter(|_| name == "container_fs_usage_bytes") {
            let labels = [("id", "/"), ("device", device.as_str())];
            text.sample(name, &labels, float(system.used), Some(snapshot.at));
        }
        for pod in &snapshot.pods {
            for container in &pod.containers {
                let value = match name {
                    "container_start_time_seconds" => container.started.as_duration().as_secs_f64(),
                    "container_last_seen" => snapshot.at.as_duration().as_secs_f64(),
                    _ => float(container.root.bytes),
                };
                text.sample(name, &labels(&Of::Container(pod, container)), value, Some(snapshot.at));
            }
        }
    }
}

/// Of the node's disk: containers have a limit of their own nowhere.
fn limits_of_disk(text: &mut Text, snapshot: &Snapshot, disk: Option<&(String, FileSystem)>) {
    let name = "container_fs_limit_bytes";
    let help = "Number of bytes that can be consumed by the container on this filesystem.";
    text.family(name, "gauge", help);
    if let Some((device, system)) = disk {
        let labels = [("id", "/"), ("device", device.as_str())];
        text.sample(name, &labels, float(system.capacity), Some(snapshot.at));
    }
}

fn containers(snapshot: &Snapshot) -> impl Iterator<Item = (&PodFigures, &ContainerFigures)> {
    let pods = snapshot.pods.iter();
    pods.flat_map(|pod| pod.containers.iter().map(move |container| (pod, container)))
}

type OfContainer = fn(&ContainerFigures) -> Option<f64>;

/// What is told of containers alone.
const OF_CONTAINERS: &[(&str, &str, &str, OfContainer)] = &[
    (
        "container_oom_events_total",
        "counter",
        "Count of out of memory events observed for the container",
        |container| Some(float(container.measured.usage.kills)),
    ),
    (
        "container_spec_cpu_shares",
        "gauge",
        "CPU share of the container.",
        |container| positive(container.given.shares),
    ),
    (
        "container_spec_cpu_quota",
        "gauge",
        "CPU quota of the container.",
        |container| positive(container.given.quota),
    ),
    (
        "container_spec_cpu_period",
        "gauge",
        "CPU period of the container.",
        |container| positive(container.given.period),
    ),
];

fn positive(value: i64) -> Option<f64> {
    u64::try_from(value).ok().filter(|value| *value > 0).map(float)
}

type Transferred = fn(&Transfers) -> u64;

const TRANSFERS: &[(&str, &str, Transferred)] = &[
    (
        "container_fs_reads_total",
        "Cumulative count of reads completed",
        |transfers| transfers.reads,
    ),
    (
        "container_fs_writes_total",
        "Cumulative count of writes completed",
        |transfers| transfers.writes,
    ),
    (
        "container_fs_reads_bytes_total",
        "Cumulative count of bytes read",
        |transfers| transfers.read_bytes,
    ),
    (
        "container_fs_writes_bytes_total",
        "Cumulative count of bytes written",
        |transfers| transfers.written_bytes,
    ),
];

fn transfers(text: &mut Text, name: &str, value: Transferred, snapshot: &Snapshot) {
    for (pod, container) in containers(snapshot) {
        for transfers in &container.transfers {
            let mut labels = labels(&Of::Container(pod, container));
            labels.push(("device", transfers.device.as_str()));
            text.sample(name, &labels, float(value(transfers)), Some(snapshot.at));
        }
    }
}

type Count = fn(&Interface) -> u64;

const NETWORK: &[(&str, &str, Count)] = &[
    (
        "container_network_receive_bytes_total",
        "Cumulative count of bytes received",
        |interface| interface.received.bytes,
    ),
    (
        "container_network_receive_packets_total",
        "Cumulative count of packets received",
        |interface| interface.received.packets,
    ),
    (
        "container_network_receive_errors_total",
        "Cumulative count of errors encountered while receiving",
        |interface| interface.received.errors,
    ),
    (
        "container_network_receive_packets_dropped_total",
        "Cumulative count of packets dropped while receiving",
        |interface| interface.received.dropped,
    ),
    (
        "container_network_transmit_bytes_total",
        "Cumulative count of bytes transmitted",
        |interface| interface.sent.bytes,
    ),
    (
        "container_network_transmit_packets_total",
        "Cumulative count of packets transmitted",
        |interface| interface.sent.packets,
    ),
    (
        "container_network_transmit_errors_total",
        "Cumulative count of errors encountered while transmitting",
        |interface| interface.sent.errors,
    ),
    (
        "container_network_transmit_packets_dropped_total",
        "Cumulative count of packets dropped while transmitting",
        |interface| interface.sent.dropped,
    ),
];

fn network(text: &mut Text, name: &str, value: Count, snapshot: &Snapshot) {
    let mut line = |of: &Of<'_>, interface: &Interface| {
        let mut labels = labels(of);
        labels.push(("interface", interface.name.as_str()));
        text.sample(name, &labels, float(value(interface)), Some(snapshot.at));
    };
    for interface in &snapshot.interfaces {
        line(&Of::Node, interface);
    }
    for pod in &snapshot.pods {
        for interface in &pod.interfaces {
            line(&Of::Pod(pod), interface);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dashboards_read() {
        let mut snapshot = super::super::tests::snapshot(10, 1_500_000_000);
        let mut stalls = Stalls::default();
        (stalls.some.total, stalls.full.total) = (2_000_000, 500_000);
        snapshot.pods[0].containers[0].measured.usage.pressure.cpu = Some(stalls);
        let system = FileSystem {
            capacity: 5000,
            used: 40,
            ..FileSystem::default()
        };
        let text = cadvisor(&snapshot, (2, 1024), Some(("/dev/sda1".into(), system)));
        let of_container =
            "container=\"c\",id=\"/kubepods/podu1/id1\",image=\"busybox:1\",name=\"id1\",namespace=\"ns\",pod=\"p\"";
        for line in [
            "machine_cpu_cores 2".to_owned(),
            "container_fs_limit_bytes{id=\"/\",device=\"/dev/sda1\"} 5000 10000".into(),
            "container_fs_usage_bytes{id=\"/\",device=\"/dev/sda1\"} 40 10000".into(),
            "container_cpu_usage_seconds_total{id=\"/\",cpu=\"total\"} 1.5 10000".into(),
            format!("container_cpu_usage_seconds_total{{{of_container},cpu=\"total\"}} 1.5 10000"),
            format!("container_memory_working_set_bytes{{{of_container}}} 1000 10000"),
            format!("container_fs_usage_bytes{{{of_container}}} 7 10000"),
            format!("container_fs_reads_total{{{of_container},device=\"/dev/sda\"}} 1 10000"),
            format!("container_fs_writes_bytes_total{{{of_container},device=\"/dev/sda\"}} 1024 10000"),
            format!("container_oom_events_total{{{of_container}}} 1 10000"),
            format!("container_memory_max_usage_bytes{{{of_container}}} 3000 10000"),
            format!("container_memory_failcnt{{{of_container}}} 4 10000"),
            format!("container_spec_cpu_shares{{{of_container}}} 512 10000"),
            format!("container_spec_cpu_quota{{{of_container}}} 50000 10000"),
            format!("container_spec_cpu_period{{{of_container}}} 100000 10000"),
            format!("container_cpu_user_seconds_total{{{of_container}}} 1.5 10000"),
            format!("container_threads{{{of_container}}} 2 10000"),
            format!("container_pressure_cpu_waiting_seconds_total{{{of_container}}} 2 10000"),
            format!("container_pressure_cpu_stalled_seconds_total{{{of_container}}} 0.5 10000"),
            "container_network_receive_bytes_total{container=\"\",id=\"/kubepods/podu1\",namespace=\"ns\",pod=\"p\",interface=\"eth0\"} 10 10000".into(),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(
            !text.contains("container_pressure_io_waiting_seconds_total{"),
            "not told"
        );
    }
}
