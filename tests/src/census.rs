//! What a node holds for its pods, counted: equal before and after, nothing has leaked.

use std::fs;
use std::process::Command;

use anyhow::Context as _;
use skiff_cluster::testing::TestCluster;
use skiff_cluster::{NodeLayout, Role};
use skiff_cri::{Client, ContainerFilter, Runtime as _, SandboxFilter};
use skiff_net::netlink::Netlink;

/// The counts of one node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Census {
    /// Containers in the runtime, running or not.
    pub containers: usize,
    /// Sandboxes in the runtime, ready or not.
    pub sandboxes: usize,
    /// Cgroups of pods and containers.
    pub cgroups: usize,
    /// Links in the node's network namespace.
    pub links: usize,
    /// IP leases.
    pub leases: usize,
    /// Lines that `iptables-save` prints for services.
    pub rules: usize,
    /// Mounts below the node's directory.
    pub mounts: usize,
    /// Directories of pods.
    pub pod_directories: usize,
    /// Directories of logs.
    pub log_directories: usize,
    /// Log files of containers.
    pub log_files: usize,
    /// Bundles of the runtime's containers.
    pub bundles: usize,
}

impl Census {
    /// Counts what `node` holds now.
    ///
    /// # Errors
    /// When the node, its runtime or its network cannot be asked.
    pub async fn of(cluster: &TestCluster, node: &str) -> anyhow::Result<Self> {
        let layout = cluster.node(node)?;
        let namespace = cluster.namespace(node)?;
        let runtime = Client::new(&format!("unix://{}", layout.containerd_socket().display()));
        let saved = namespace
            .run(|| Command::new("iptables-save").output())?
            .context("run iptables-save")?;
        let rules = String::from_utf8_lossy(&saved.stdout);
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
        let directory = layout.directory().to_str().context("a path that is text")?;
        Ok(Self {
            containers: runtime.list_containers(&ContainerFilter::default()).await?.len(),
            sandboxes: runtime.list_sandboxes(&SandboxFilter::default()).await?.len(),
            cgroups: cluster.count_cgroups(node)?,
            links: Netlink::open_in(&namespace)?.links()?.len(),
            leases: leases(&layout),
            rules: rules
                .lines()
                .filter(|line| line.contains("KUBE-SVC-") || line.contains("KUBE-SEP-"))
                .count(),
            mounts: mounts.lines().filter(|line| line.contains(directory)).count(),
            pod_directories: entries(&layout.kubelet_root().join("pods")),
            log_directories: entries(&layout.pod_logs()),
            log_files: files(&layout.pod_logs()),
            bundles: entries(&layout.containerd_state().join("io.containerd.runtime.v2.task/k8s.io")),
        })
    }
}

/// Lease files are named by their address; the others are the plugin's own.
fn leases(node: &NodeLayout) -> usize {
    let networks = fs::read_dir(node.cni_data()).into_iter().flatten().flatten();
    let files = networks.flat_map(|network| fs::read_dir(network.path()).into_iter().flatten().flatten());
    files
        .filter(|file| {
            file.file_name()
                .to_str()
                .is_some_and(|name| name.parse::<std::net::IpAddr>().is_ok())
        })
        .count()
}

fn entries(directory: &std::path::Path) -> usize {
    fs::read_dir(directory).map_or(0, Iterator::count)
}

fn files(directory: &std::path::Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let count = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files(&entry.path()),
        _ => 1,
    };
    entries.map(count).sum()
}

/// What one process holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Holdings {
    /// Resident memory in bytes.
    pub memory: usize,
    /// Of it, memory of its own: neither code nor files.
    pub private: usize,
    /// Open files.
    pub files: usize,
    /// Threads.
    pub threads: usize,
}

impl Holdings {
    /// What a process of a node holds now.
    ///
    /// # Errors
    /// When it does not run.
    pub fn of(cluster: &TestCluster, role: Role, node: &str) -> anyhow::Result<Self> {
        let process = cluster
            .record()
            .process(role, node)
            .context("a process that was started")?;
        let proc = std::path::PathBuf::from(format!("/proc/{}", process.pid));
        let status = fs::read_to_string(proc.join("status")).context("a process that runs")?;
        let number = |name: &str| -> anyhow::Result<usize> {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let word = line.and_then(|rest| rest.split_whitespace().next());
            word.and_then(|word| word.parse().ok()).context(name.to_owned())
        };
        Ok(Self {
            memory: number("VmRSS")? << 10,
            private: number("RssAnon")? << 10,
            files: entries(&proc.join("fd")),
            threads: number("Threads")?,
        })
    }
}
