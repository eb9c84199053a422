//! What the node, its pods and their containers use: looked at when somebody asks, remembered for a moment.
//!
//! CPU and memory are read from the pods' cgroups, the writable layers come from the runtime, traffic from `/proc`. Nothing is
//! collected while nobody asks.

pub(crate) mod disk;
pub(crate) mod exposition;
pub(crate) mod machine;

mod cadvisor;
mod resource;
mod summary;
mod volumes;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use skiff_api::k8s_openapi::api::core::v1::Pod;
use skiff_cri::{ContainerFilter, ContainerStats};
use tokio::time::Instant;

use crate::agent::Agent;
use crate::cgroups::{self, Transfers, Usage};
use crate::observed::State;
use crate::pod;
use crate::pods::{Directory, Entry};
use disk::{Contents, Directories, FileSystem};
use machine::Interface;

pub(crate) use cadvisor::cadvisor;
pub(crate) use resource::resource;
pub(crate) use summary::{kept, layers, summary};
pub(crate) use volumes::{VolumeDisk, VolumeStats};

/// How old a look may be that is shown again.
const MAX_AGE: Duration = Duration::from_secs(1);

/// The node's figures.
pub(crate) struct Stats {
    agent: Arc<Agent>,
    directory: Directory,
    directories: Directories,
    last: tokio::sync::Mutex<Option<(Instant, Arc<Snapshot>)>>,
}

impl std::fmt::Debug for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stats").finish_non_exhaustive()
    }
}

/// A figure and what it was a moment before.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measured {
    pub(crate) usage: Usage,
    /// CPU cores in use since the look before, in billionths; none at the first look.
    pub(crate) nano_cores: Option<u64>,
}

/// What one look has found.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) at: Timestamp,
    pub(crate) node: Measured,
    /// All pods together.
    pub(crate) pods_total: Option<Measured>,
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) pods: Vec<PodFigures>,
}

/// A pod's figures.
#[derive(Debug)]
pub(crate) struct PodFigures {
    pub(crate) pod: Arc<Pod>,
    pub(crate) started: Option<Timestamp>,
    pub(crate) measured: Option<Measured>,
    pub(crate) cgroup: String,
    pub(crate) containers: Vec<ContainerFigures>,
    /// Its own interfaces; none with the node's network.
    pub(crate) interfaces: Vec<Interface>,
}

/// A running container's figures.
#[derive(Debug)]
pub(crate) struct ContainerFigures {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) image: String,
    pub(crate) cgroup: String,
    pub(crate) started: Timestamp,
    pub(crate) measured: Measured,
    /// The writable layer.
    pub(crate) root: Contents,
    /// What it has read from and written to disks.
    pub(crate) transfers: Vec<Transfers>,
    /// What it was given of the CPU.
    pub(crate) given: Given,
}

/// What a container was given of the CPU.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Given {
    /// Weight, in the measure of cgroups' version 1.
    pub(crate) shares: i64,
    /// Microseconds in each period; zero for no limit.
    pub(crate) quota: i64,
    /// Microseconds.
    pub(crate) period: i64,
}

/// What a pod has on the disk.
#[derive(Debug, Default)]
pub(crate) struct PodDisk {
    /// Logs by container name.
    pub(crate) logs: HashMap<String, Contents>,
    pub(crate) volumes: Vec<VolumeDisk>,
}

// === impl Stats ===

impl Stats {
    pub(crate) fn new(agent: Arc<Agent>, directory: Directory) -> Self {
        Self {
            agent,
            directory,
            directories: Directories::default(),
            last: tokio::sync::Mutex::default(),
        }
    }

    /// The node's name.
    pub(crate) fn node_name(&self) -> &str {
        &self.agent.node_name
    }

    /// The file system of the kubelet's root directory.
    pub(crate) fn node_fs(&self) -> Option<FileSystem> {
        disk::file_system(&self.agent.config.flags.root_dir)
    }

    /// That file system, with its device.
    pub(crate) fn node_disk(&self) -> Option<(String, FileSystem)> {
        let root = &self.agent.config.flags.root_dir;
        Some((disk::device(root).unwrap_or_default(), self.node_fs()?))
    }

    /// The figures of this moment.
    pub(crate) async fn snapshot(&self) -> Arc<Snapshot> {
        // Who asks while another looks gets what that one finds.
        let mut last = self.last.lock().await;
        if let Some((at, snapshot)) = &*last
            && at.elapsed() < MAX_AGE
        {
            return snapshot.clone();
        }
        let layers = self.layers().await;
        let (agent, entries) = (self.agent.clone(), self.directory.all());
        let before = last.as_ref().map(|(_, snapshot)| snapshot.clone());
        let look = tokio::task::spawn_blocking(move || look(&agent, entries, &layers, before.as_deref()));
        let snapshot = Arc::new(match look.await {
            Ok(snapshot) => snapshot,
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        });
        *last = Some((Instant::now(), snapshot.clone()));
        snapshot
    }

    /// The runtime's figures by container id.
    async fn layers(&self) -> HashMap<String, ContainerStats> {
        match self
            .agent
            .runtime
            .list_container_stats(&ContainerFilter::default())
            .await
        {
            Ok(stats) => stats.into_iter().map(|stats| (stats.id.clone(), stats)).collect(),
            Err(error) => {
                tracing::debug!(
                    error = skiff_daemon::error_chain(&error),
                    "the runtime does not tell what containers use"
                );
                HashMap::new()
            }
        }
    }

    /// What a pod has on the disk, as of `max_age` ago at most; takes as long as walking its directories.
    pub(crate) async fn disk_of(self: &Arc<Self>, pod: &Arc<Pod>, max_age: Duration) -> PodDisk {
        let (stats, pod) = (self.clone(), pod.clone());
        let walk = tokio::task::spawn_blocking(move || stats.walk(&pod, max_age));
        walk.await.unwrap_or_default()
    }

    fn walk(&self, pod: &Pod, max_age: Duration) -> PodDisk {
        let logs = self.agent.log_dir(pod);
        let contents = |path: &Path| self.directories.contents(path, max_age);
        PodDisk {
            logs: pod::containers(pod)
                .map(|(_, container)| (container.name.clone(), contents(&logs.join(&container.name))))
                .collect(),
            volumes: volumes::measure(&self.agent.volumes, pod, &self.directories, max_age),
        }
    }
}

fn look(
    agent: &Agent,
    entries: Vec<Entry>,
    layers: &HashMap<String, ContainerStats>,
    before: Option<&Snapshot>,
) -> Snapshot {
    let at = Timestamp::now();
    let known = before.map(Known::of);
    let measured = |key: &str, usage: Usage| Measured {
        usage,
        nano_cores: known.as_ref().and_then(|known| known.rate(key, usage.cpu, at)),
    };
    let pods = entries
        .into_iter()
        .filter_map(|entry| look_at_pod(agent, &entry, layers, &measured))
        .collect();
    Snapshot {
        at,
        node: measured(NODE, machine::usage()),
        pods_total: agent.cgroups.usage_of_pods().map(|usage| measured(PODS, usage)),
        interfaces: machine::interfaces(None),
        pods,
    }
}

fn look_at_pod(
    agent: &Agent,
    entry: &Entry,
    layers: &HashMap<String, ContainerStats>,
    measured: &dyn Fn(&str, Usage) -> Measured,
) -> Option<PodFigures> {
    let sandbox = entry.observed.ready_sandbox()?;
    let pod = &entry.pod;
    let mut containers = Vec::new();
    for container in entry.observed.running() {
        let State::Running(started) = container.state else {
            continue;
        };
        let layer = layers.get(&container.id);
        let usage = agent.cgroups.usage_of_container(pod, &container.id);
        let Some(usage) = usage.or_else(|| layer.map(told)) else {
            continue;
        };
        containers.push(ContainerFigures {
            name: container.name.clone(),
            id: container.id.clone(),
            image: container.image.clone(),
            cgroup: agent.cgroups.container_path(pod, &container.id),
            started,
            measured: measured(&container.id, usage),
            transfers: agent.cgroups.transfers_of_container(pod, &container.id),
            given: given(agent, pod, &container.name),
            root: layer.map_or_else(Contents::default, |layer| Contents {
                bytes: layer.writable_layer_bytes,
                inodes: layer.writable_layer_inodes,
            }),
        });
    }
    let process = || agent.cgroups.process_of(pod, &sandbox.id);
    let interfaces = if pod::host_network(pod) {
        Vec::new()
    } else {
        process().map_or_else(Vec::new, |process| machine::interfaces(Some(process)))
    };
    Some(PodFigures {
        started: pod::status(pod).start_time.as_ref().map(|time| time.0),
        measured: agent
            .cgroups
            .usage_of_pod(pod)
            .map(|usage| measured(pod::uid(pod), usage)),
        cgroup: agent.cgroups.pod_path(pod),
        pod: pod.clone(),
        containers,
        interfaces,
    })
}

/// The kernel's period, also of a cgroup without a limit.
const PERIOD: i64 = 100_000;

/// As it was asked for: both versions of cgroups, each with its own measure, were told this.
fn given(agent: &Agent, pod: &Pod, container: &str) -> Given {
    let Some((_, spec)) = pod::container(pod, container) else {
        return Given::default();
    };
    let resources = cgroups::container_resources(pod, &spec, &agent.rules);
    Given {
        shares: resources.cpu_shares,
        quota: resources.cpu_quota,
        period: Some(resources.cpu_period)
            .filter(|period| *period > 0)
            .unwrap_or(PERIOD),
    }
}

/// What the runtime tells, where the kubelet cannot find the container's cgroup.
fn told(stats: &ContainerStats) -> Usage {
    Usage {
        cpu: stats.cpu_usage_core_nanoseconds,
        memory: stats.memory_usage_bytes.max(stats.memory_working_set_bytes),
        working_set: stats.memory_working_set_bytes,
        rss: stats.memory_rss_bytes,
        ..Usage::default()
    }
}

const NODE: &str = "/";
const PODS: &str = "kubepods";

/// CPU times of the look before.
struct Known<'a> {
    at: Timestamp,
    cpu: HashMap<&'a str, u64>,
}

impl<'a> Known<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
        let mut cpu = HashMap::from([(NODE, snapshot.node.usage.cpu)]);
        cpu.extend(snapshot.pods_total.map(|total| (PODS, total.usage.cpu)));
        for pod in &snapshot.pods {
            cpu.extend(pod.measured.map(|measured| (pod::uid(&pod.pod), measured.usage.cpu)));
            let containers = pod.containers.iter();
            cpu.extend(containers.map(|container| (container.id.as_str(), container.measured.usage.cpu)));
        }
        Self { at: snapshot.at, cpu }
    }

    /// Billionths of a core since then.
    fn rate(&self, key: &str, cpu: u64, now: Timestamp) -> Option<u64> {
        let spent = cpu.checked_sub(*self.cpu.get(key)?)?;
        let passed = now.duration_since(self.at).as_nanos();
        if passed <= 0 {
            return None;
        }
        u64::try_from(i128::from(spent) * 1_000_000_000 / passed).ok()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    /// A pod with one container, at a moment and with figures that tests know.
    pub(crate) fn snapshot(second: i64, cpu: u64) -> Snapshot {
        let usage = Usage {
            cpu,
            memory: 2000,
            working_set: 1000,
            rss: 800,
            limit: Some(4000),
            processes: 2,
            cpu_parts: (cpu, 0),
            peak: Some(3000),
            refused: 4,
            kills: 1,
            ..Usage::default()
        };
        let measured = Measured {
            usage,
            nano_cores: Some(500),
        };
        let traffic = machine::Traffic {
            bytes: 10,
            ..machine::Traffic::default()
        };
        Snapshot {
            at: Timestamp::from_second(second).unwrap(),
            node: measured,
            pods_total: Some(measured),
            interfaces: Vec::new(),
            pods: vec![PodFigures {
                pod: Arc::new(pod(&json!({"containers": [{"name": "c"}]}))),
                started: Timestamp::from_second(1).ok(),
                measured: Some(measured),
                cgroup: "/kubepods/podu1".into(),
                containers: vec![ContainerFigures {
                    name: "c".into(),
                    id: "id1".into(),
                    image: "busybox:1".into(),
                    cgroup: "/kubepods/podu1/id1".into(),
                    started: Timestamp::from_second(2).unwrap(),
                    measured,
                    root: Contents { bytes: 7, inodes: 1 },
                    transfers: vec![Transfers {
                        device: "/dev/sda".into(),
                        reads: 1,
                        writes: 2,
                        read_bytes: 512,
                        written_bytes: 1024,
                    }],
                    given: Given {
                        shares: 512,
                        quota: 50_000,
                        period: 100_000,
                    },
                }],
                interfaces: vec![Interface {
                    name: "eth0".into(),
                    received: traffic,
                    sent: traffic,
                }],
            }],
        }
    }

    #[test]
    fn rates_are_between_two_looks() {
        let before = snapshot(10, 1_000_000_000);
        let known = Known::of(&before);
        let later = Timestamp::from_second(14).unwrap();
        assert_eq!(known.rate("id1", 3_000_000_000, later), Some(500_000_000));
        assert_eq!(known.rate(NODE, 1_000_000_000, later), Some(0));
        assert_eq!(known.rate("new", 5, later), None, "first seen now");
        assert_eq!(known.rate("id1", 5, later), None, "another cgroup under the same name");
        assert_eq!(known.rate("id1", 3_000_000_000, before.at), None, "no time has passed");
    }
}
