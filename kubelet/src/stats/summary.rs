//! `/stats/summary`: the node and its pods as one JSON object, in upstream's form (`stats/v1alpha1`).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use skiff_cri::FilesystemUsage;

use super::disk::{self, Contents, FileSystem};
use super::machine::{self, Interface};
use super::{ContainerFigures, Measured, PodDisk, PodFigures, Snapshot, Stats, VolumeDisk};
use crate::cgroups::Stalls;
use crate::pod;

/// How old a figure of the disk may be: walking directories is costly.
const WALK: Duration = Duration::from_secs(60);

/// The summary; with `only_cpu_and_memory` without all that needs a disk.
pub(crate) async fn summary(stats: &Arc<Stats>, only_cpu_and_memory: bool) -> Value {
    let snapshot = stats.snapshot().await;
    if only_cpu_and_memory {
        let pods = snapshot.pods.iter().map(|pod| pod_summary(pod, snapshot.at, None));
        return json!({"node": node(stats.node_name(), &snapshot), "pods": pods.collect::<Vec<_>>()});
    }
    let node_fs = stats.node_fs();
    let mut pods = Vec::new();
    for pod in &snapshot.pods {
        let disk = stats.disk_of(&pod.pod, WALK).await;
        pods.push(pod_summary(pod, snapshot.at, Some((&disk, node_fs))));
    }
    let mut node = node(stats.node_name(), &snapshot);
    node["network"] = network(&snapshot.interfaces, snapshot.at);
    node["fs"] = file_system(node_fs, snapshot.at);
    node["rlimit"] = processes(snapshot.at);
    let images = stats.agent.runtime.image_fs_info().await.unwrap_or_default();
    if let Some(usage) = images.first() {
        let image_fs = image_fs(usage, snapshot.at);
        node["runtime"] = json!({"imageFs": image_fs, "containerFs": image_fs});
    }
    json!({"node": node, "pods": pods})
}

fn node(name: &str, snapshot: &Snapshot) -> Value {
    let started = Timestamp::from_second(machine::boot_time()).unwrap_or_default();
    let containers = snapshot.pods_total.iter().map(|measured| {
        json!({
            "name": "pods",
            "startTime": time(started),
            "cpu": cpu(measured, snapshot.at),
            "memory": memory(measured, snapshot.at),
        })
    });
    let mut summary = json!({
        "nodeName": name,
        "systemContainers": containers.collect::<Vec<_>>(),
        "startTime": time(started),
        "cpu": cpu(&snapshot.node, snapshot.at),
        "memory": node_memory(&snapshot.node, snapshot.at),
        "swap": swap(&snapshot.node, snapshot.at),
    });
    add_io(&mut summary, &snapshot.node, snapshot.at);
    summary
}

fn pod_summary(figures: &PodFigures, at: Timestamp, disk: Option<(&PodDisk, Option<FileSystem>)>) -> Value {
    let pod = &figures.pod;
    let containers = figures
        .containers
        .iter()
        .map(|container| container_summary(container, at, disk));
    let mut summary = json!({
        "podRef": {"name": pod::name(pod), "namespace": pod::namespace(pod), "uid": pod::uid(pod)},
        "startTime": figures.started.map(time),
        "containers": containers.collect::<Vec<_>>(),
    });
    if let Some(measured) = &figures.measured {
        summary["cpu"] = cpu(measured, at);
        summary["memory"] = memory(measured, at);
        summary["swap"] = swap(measured, at);
        add_io(&mut summary, measured, at);
        summary["process_stats"] = json!({"process_count": measured.usage.processes});
    }
    let Some((disk, file_system)) = disk else {
        return summary;
    };
    if !figures.interfaces.is_empty() {
        summary["network"] = network(&figures.interfaces, at);
    }
    let namespace = pod::namespace(pod);
    let volumes = disk.volumes.iter().map(|volume| volume_summary(volume, namespace, at));
    summary["volume"] = volumes.collect::<Vec<_>>().into();
    summary["ephemeral-storage"] = used(ephemeral(figures, disk), file_system, at);
    summary
}

fn volume_summary(volume: &VolumeDisk, namespace: &str, at: Timestamp) -> Value {
    let mut summary = used(volume.used, volume.system, at);
    summary["name"] = volume.name.as_str().into();
    if let Some(claim) = &volume.claim {
        summary["pvcRef"] = json!({"name": claim, "namespace": namespace});
    }
    summary
}

/// What counts as a pod's ephemeral storage: writable layers, logs, and volumes on the node's disk.
fn ephemeral(figures: &PodFigures, disk: &PodDisk) -> Contents {
    sum([layers(figures), kept(disk)].into_iter())
}

/// What a pod's containers have written into their own file systems.
pub(crate) fn layers(figures: &PodFigures) -> Contents {
    sum(figures.containers.iter().map(|container| container.root))
}

/// A pod's logs, and its volumes on the node's disk.
pub(crate) fn kept(disk: &PodDisk) -> Contents {
    let volumes = disk.volumes.iter().filter(|volume| volume.ephemeral);
    sum(disk.logs.values().copied().chain(volumes.map(|volume| volume.used)))
}

fn sum(parts: impl Iterator<Item = Contents>) -> Contents {
    parts.fold(Contents::default(), |sum, part| Contents {
        bytes: sum.bytes + part.bytes,
        inodes: sum.inodes + part.inodes,
    })
}

fn container_summary(
    container: &ContainerFigures,
    at: Timestamp,
    disk: Option<(&PodDisk, Option<FileSystem>)>,
) -> Value {
    let mut summary = json!({
        "name": container.name,
        "startTime": time(container.started),
        "cpu": cpu(&container.measured, at),
        "memory": memory(&container.measured, at),
        "swap": swap(&container.measured, at),
    });
    add_io(&mut summary, &container.measured, at);
    if let Some((disk, file_system)) = disk {
        summary["rootfs"] = used(container.root, file_system, at);
        let logs = disk.logs.get(&container.name).copied().unwrap_or_default();
        summary["logs"] = used(logs, file_system, at);
    }
    summary
}

/// The API's times have whole seconds.
fn time(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

fn cpu(measured: &Measured, at: Timestamp) -> Value {
    let mut cpu = json!({"time": time(at), "usageCoreNanoSeconds": measured.usage.cpu});
    if let Some(rate) = measured.nano_cores {
        cpu["usageNanoCores"] = rate.into();
    }
    if let Some(stalls) = &measured.usage.pressure.cpu {
        cpu["psi"] = psi(stalls);
    }
    cpu
}

fn memory(measured: &Measured, at: Timestamp) -> Value {
    let usage = &measured.usage;
    let mut memory = json!({
        "time": time(at),
        "usageBytes": usage.memory,
        "workingSetBytes": usage.working_set,
        "rssBytes": usage.rss,
        "pageFaults": usage.faults,
        "majorPageFaults": usage.major_faults,
    });
    if let Some(limit) = usage.limit {
        memory["availableBytes"] = limit.saturating_sub(usage.working_set).into();
    }
    if let Some(stalls) = &usage.pressure.memory {
        memory["psi"] = psi(stalls);
    }
    memory
}

/// I/O is there for its pressure alone.
fn add_io(summary: &mut Value, measured: &Measured, at: Timestamp) {
    if let Some(stalls) = &measured.usage.pressure.io {
        summary["io"] = json!({"time": time(at), "psi": psi(stalls)});
    }
}

fn psi(stalls: &Stalls) -> Value {
    let [full, some] = [stalls.full, stalls.some]
        .map(|stall| json!({"total": stall.total, "avg10": stall.avg10, "avg60": stall.avg60, "avg300": stall.avg300}));
    json!({"full": full, "some": some})
}

fn node_memory(measured: &Measured, at: Timestamp) -> Value {
    let mut memory = memory(measured, at);
    let total = u64::try_from(crate::node::facts::meminfo("MemTotal")).unwrap_or(0);
    memory["availableBytes"] = total.saturating_sub(measured.usage.working_set).into();
    memory
}

fn swap(measured: &Measured, at: Timestamp) -> Value {
    json!({"time": time(at), "swapUsageBytes": measured.usage.swap})
}

fn network(interfaces: &[Interface], at: Timestamp) -> Value {
    let list: Vec<Value> = interfaces
        .iter()
        .map(|interface| {
            json!({
                "name": interface.name,
                "rxBytes": interface.received.bytes,
                "rxErrors": interface.received.errors,
                "txBytes": interface.sent.bytes,
                "txErrors": interface.sent.errors,
            })
        })
        .collect();
    // The interface that the node speaks through comes first, where it has the usual name.
    let default = interfaces
        .iter()
        .position(|interface| interface.name == "eth0")
        .unwrap_or(0);
    let mut network: Map<String, Value> = list
        .get(default)
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    network.insert("time".into(), time(at).into());
    network.insert("interfaces".into(), list.into());
    network.into()
}

fn file_system(system: Option<FileSystem>, at: Timestamp) -> Value {
    let system = system.unwrap_or_default();
    json!({
        "time": time(at),
        "availableBytes": system.available,
        "capacityBytes": system.capacity,
        "usedBytes": system.used,
        "inodesFree": system.inodes_free,
        "inodes": system.inodes,
        "inodesUsed": system.inodes.saturating_sub(system.inodes_free),
    })
}

fn used(contents: Contents, system: Option<FileSystem>, at: Timestamp) -> Value {
    let mut value = file_system(system, at);
    value["usedBytes"] = contents.bytes.into();
    value["inodesUsed"] = contents.inodes.into();
    value
}

fn image_fs(usage: &FilesystemUsage, at: Timestamp) -> Value {
    let mut value = file_system(disk::file_system(Path::new(&usage.mountpoint)), at);
    value["usedBytes"] = usage.used_bytes.into();
    value["inodesUsed"] = usage.inodes_used.into();
    value
}

fn processes(at: Timestamp) -> Value {
    match crate::node::facts::pids() {
        Some((used, limit)) => json!({"time": time(at), "maxpid": limit, "curproc": used}),
        None => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_part() {
        let snapshot = super::super::tests::snapshot(10, 1_500_000_000);
        let volume = |name: &str, bytes: u64, ephemeral: bool, claim: Option<&str>| VolumeDisk {
            name: name.into(),
            used: Contents { bytes, inodes: 2 },
            system: Some(FileSystem {
                capacity: 5000,
                ..FileSystem::default()
            }),
            ephemeral,
            claim: claim.map(str::to_owned),
        };
        let disk = PodDisk {
            logs: [("c".to_owned(), Contents { bytes: 100, inodes: 1 })].into(),
            volumes: vec![
                volume("disk", 30, true, None),
                volume("memory", 999, false, None),
                volume("data", 888, false, Some("claim")),
            ],
        };
        let summary = pod_summary(&snapshot.pods[0], snapshot.at, Some((&disk, None)));
        assert_eq!(summary["podRef"], json!({"name": "p", "namespace": "ns", "uid": "u1"}));
        assert_eq!(
            summary["cpu"],
            json!({"time": "1970-01-01T00:00:10Z", "usageNanoCores": 500, "usageCoreNanoSeconds": 1_500_000_000})
        );
        assert_eq!(summary["memory"]["availableBytes"], 3000);
        assert_eq!(summary["containers"][0]["rootfs"]["usedBytes"], 7);
        assert_eq!(summary["containers"][0]["logs"]["usedBytes"], 100);
        assert_eq!(
            summary["ephemeral-storage"]["usedBytes"], 137,
            "not what lies in memory or is claimed"
        );
        assert!(summary["volume"][0]["pvcRef"].is_null());
        let claimed = &summary["volume"][2];
        assert_eq!(claimed["pvcRef"], json!({"name": "claim", "namespace": "ns"}));
        assert_eq!(
            (&claimed["usedBytes"], &claimed["capacityBytes"]),
            (&json!(888), &json!(5000))
        );
        assert_eq!(summary["network"]["name"], "eth0");
        let small = pod_summary(&snapshot.pods[0], snapshot.at, None);
        assert!(small["network"].is_null() && small["volume"].is_null());
    }

    #[test]
    fn pressure_is_told_where_the_kernel_tells() {
        let mut snapshot = super::super::tests::snapshot(10, 1);
        let told = |snapshot: &Snapshot| {
            let summary = &pod_summary(&snapshot.pods[0], snapshot.at, None)["containers"][0];
            [&summary["cpu"]["psi"], &summary["memory"]["psi"], &summary["io"]["psi"]].map(Clone::clone)
        };
        assert_eq!(told(&snapshot), [Value::Null, Value::Null, Value::Null]);
        let mut stalls = Stalls::default();
        (stalls.some.avg10, stalls.some.total) = (1.5, 7);
        let pressure = &mut snapshot.pods[0].containers[0].measured.usage.pressure;
        (pressure.cpu, pressure.io) = (Some(stalls), Some(stalls));
        let shown = json!({
            "some": {"total": 7, "avg10": 1.5, "avg60": 0.0, "avg300": 0.0},
            "full": {"total": 0, "avg10": 0.0, "avg60": 0.0, "avg300": 0.0},
        });
        assert_eq!(told(&snapshot), [shown.clone(), Value::Null, shown]);
    }
}
