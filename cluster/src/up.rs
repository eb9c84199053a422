//! Starting a cluster, and each of its processes.

use std::fs::{File, TryLockError};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use skiff_api::k8s_openapi::api::core::v1::Node;
use tokio::time::{Instant, sleep, timeout};

use crate::layout::{Layout, NodeLayout};
use crate::process::{self, Process};
use crate::progress::Progress;
use crate::{Cluster, Error, Record, Result, Role, configuration, credentials, images, network};

/// A node that is not Ready by then will not be: something is wrong, and its log says what.
const READY_WITHIN: Duration = Duration::from_secs(60);
const SOCKET_WITHIN: Duration = Duration::from_secs(20);

/// What `up` is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster's name.
    pub name: String,
    /// How many nodes; an existing cluster keeps its number when this is `None`, a new one gets one node.
    pub nodes: Option<usize>,
    /// Where clusters are kept.
    pub home: PathBuf,
    /// The `skiff` binary to run.
    pub binary: PathBuf,
    /// A directory of image archives for every node.
    pub images: Option<PathBuf>,
    /// How many segments the LAN of a new cluster has; nodes take turns, and a router joins them.
    pub segments: usize,
    /// How packets get to other nodes' pods (`skiff proxy --network`); when this is `None`, as before, or `auto`.
    pub network: Option<String>,
    /// The OCI runtime of every node, by its name in `PATH`; when this is `None`, as before, or runc.
    pub oci_runtime: Option<String>,
}

impl Cluster {
    /// Starts a cluster, new or stopped, and waits until its nodes are Ready. What already runs stays as it is.
    ///
    /// # Errors
    /// When all of it runs already, or a part cannot be started; the parts that run keep running, and calling again
    /// goes on from there.
    pub async fn up(options: &Options, progress: &dyn Progress) -> Result<Self> {
        check_machine()?;
        let cni_program = configuration::cni_program(&options.binary)?;
        let layout = Layout::new(&options.home, &options.name)?;
        let _lock = lock(&layout)?;
        let mut cluster = Self::new(layout.clone(), prepare_record(&layout, options)?);
        check_oci_runtime(&cluster.record.oci_runtime)?;
        if cluster.runs_whole() {
            let kubeconfig = cluster.layout.admin_kubeconfig();
            return Err(Error::AlreadyRunning {
                name: options.name.clone(),
                kubeconfig,
            });
        }
        progress.step("images");
        images::collect(&cluster.layout, options.images.as_deref())?;
        // Before anything outside the directory is made: from here on `down` knows what to look for.
        cluster.record.write(&cluster.layout.record())?;
        progress.step("network");
        let nodes = cluster.nodes();
        network::build(&cluster.layout, &nodes)?;
        configuration::write(&cluster.layout, &nodes, &cni_program, &cluster.record.oci_runtime)?;
        cluster.start_all(&options.binary, progress).await?;
        progress.step("waiting for the nodes to be Ready");
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    async fn start_all(&mut self, binary: &Path, progress: &dyn Progress) -> Result<()> {
        let nodes = self.nodes();
        progress.step("container runtimes");
        for node in &nodes {
            self.ensure(Role::Containerd, node, binary)?;
        }
        // Every file of it is on disk before it is used, which takes as long as a container runtime takes to start.
        progress.step("credentials");
        let listener = self.open_listener()?;
        credentials::ensure(&self.layout, &nodes, self.record.api_port)?;
        progress.step("server");
        if let Some(listener) = listener {
            self.spawn(Role::Server, &nodes[0], server_command(binary, &self.layout, listener))?;
        }
        for node in &nodes {
            self.wait_for_socket(node).await?;
        }
        progress.step("kubelets and proxies");
        for node in &nodes {
            self.ensure(Role::Kubelet, node, binary)?;
            self.ensure(Role::Proxy, node, binary)?;
        }
        self.ensure(Role::Ingress, &nodes[0], binary)?;
        Ok(())
    }

    /// Starts one process again that was killed or ended.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self, role: Role, node: &NodeLayout, binary: &Path) -> Result<()> {
        if role != Role::Server {
            return self.ensure(role, node, binary);
        }
        match self.open_listener()? {
            Some(listener) => self.spawn(role, node, server_command(binary, &self.layout, listener)),
            None => Ok(()),
        }
    }

    pub(crate) fn ensure(&mut self, role: Role, node: &NodeLayout, binary: &Path) -> Result<()> {
        if self
            .record
            .process(role, &node.name)
            .is_some_and(|process| process.is_alive())
        {
            return Ok(());
        }
        let command = match role {
            Role::Containerd => containerd_command(node),
            Role::Kubelet => kubelet_command(binary, &self.layout, node),
            Role::Ingress => ingress_command(binary, &self.layout, node),
            Role::Proxy | Role::Server => proxy_command(binary, node, &self.record.network),
        };
        self.spawn(role, node, command)
    }

    fn spawn(&mut self, role: Role, node: &NodeLayout, mut command: Command) -> Result<()> {
        let namespace = network::open(node)?;
        let process = process::spawn(&namespace, &mut command, &node.log(role)).map_err(|source| Error::Start {
            role: role.to_string(),
            node: node.name.clone(),
            source,
        })?;
        self.record.set(role, &node.name, process);
        // Written at once: what runs must never be unknown to `down`.
        self.record.write(&self.layout.record())
    }

    /// The API server's port on the machine's loopback; `None` when the server runs and holds it.
    fn open_listener(&mut self) -> Result<Option<TcpListener>> {
        if self.is_running() {
            return Ok(None);
        }
        let former = self.record.api_port;
        let open = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        // Somebody else may have taken the former port meanwhile.
        let listener = open(former).or_else(|_| open(0)).map_err(Error::Listen)?;
        self.record.api_port = listener.local_addr().map_err(Error::Listen)?.port();
        Ok(Some(listener))
    }

    fn runs_whole(&self) -> bool {
        let alive = |role, node: &String| {
            self.record
                .process(role, node)
                .is_some_and(|process| process.is_alive())
        };
        self.is_running()
            && self.record.nodes.first().is_some_and(|node| alive(Role::Ingress, node))
            && self.record.nodes.iter().all(|node| {
                [Role::Containerd, Role::Kubelet, Role::Proxy]
                    .into_iter()
                    .all(|role| alive(role, node))
            })
    }

    pub(crate) async fn wait_for_socket(&self, node: &NodeLayout) -> Result<()> {
        let begin = Instant::now();
        while tokio::net::UnixStream::connect(node.containerd_socket()).await.is_err() {
            self.check_alive(Role::Containerd, node)?;
            if begin.elapsed() > SOCKET_WITHIN {
                return Err(not_ready(Role::Containerd, node, "does not answer"));
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Waits until every node is Ready.
    ///
    /// # Errors
    /// When a process ends meanwhile, or a node is not Ready in a minute.
    pub async fn wait_until_ready(&self) -> Result<()> {
        let ready = async {
            let client = self.wait_for_server().await?;
            let mut ready = std::collections::BTreeSet::new();
            let mut nodes = watcher(Api::<Node>::all(client), watcher::Config::default())
                .default_backoff()
                .applied_objects()
                .boxed();
            while ready.len() < self.record.nodes.len() {
                // An error is the server going away for a moment: the watcher connects again.
                let Ok(Some(node)) = nodes.try_next().await else {
                    continue;
                };
                if self.is_ready(&node) {
                    ready.insert(node.metadata.name.unwrap_or_default());
                }
            }
            Ok(())
        };
        tokio::select! {
            waited = timeout(READY_WITHIN, ready) => match waited {
                Ok(result) => result,
                Err(_) => Err(self.first_unready().await),
            },
            ended = self.first_to_end() => Err(ended),
        }
    }

    async fn wait_for_server(&self) -> Result<Client> {
        loop {
            let client = self.client().await?;
            match client.apiserver_version().await {
                Ok(_) => return Ok(client),
                Err(error) => tracing::debug!(%error, "the server does not answer yet"),
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// A client of the API server as administrator, through loopback.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn client(&self) -> Result<Client> {
        let path = self.layout.admin_kubeconfig();
        let failed = |source| Error::Kubeconfig {
            path: path.clone(),
            source,
        };
        let kubeconfig = kube::config::Kubeconfig::read_from(&path).map_err(failed)?;
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default())
            .await
            .map_err(failed)?;
        config.read_timeout = None;
        Client::try_from(config).map_err(Error::api("make a client of the API server"))
    }

    /// Waits until one of the cluster's processes ends.
    async fn first_to_end(&self) -> Error {
        loop {
            for started in &self.record.processes {
                if !started.process.is_alive() {
                    return match self.node(&started.node) {
                        Ok(node) => not_ready(started.role, &node, "has ended"),
                        Err(error) => error,
                    };
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn first_unready(&self) -> Error {
        let listed = async {
            Api::<Node>::all(self.client().await.ok()?)
                .list(&Default::default())
                .await
                .ok()
        }
        .await;
        let Some(listed) = listed else {
            return not_ready(Role::Server, &self.layout.node(0), "does not answer");
        };
        let ready = |name: &str| {
            listed
                .items
                .iter()
                .any(|node| node.metadata.name.as_deref() == Some(name) && self.is_ready(node))
        };
        let unready = self.nodes().into_iter().find(|node| !ready(&node.name));
        not_ready(
            Role::Kubelet,
            &unready.unwrap_or_else(|| self.layout.node(0)),
            "has not made its node Ready",
        )
    }

    fn is_ready(&self, node: &Node) -> bool {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let kubelet = self.record.process(Role::Kubelet, name);
        let age = kubelet.and_then(|kubelet| kubelet.age()).unwrap_or_default();
        is_ready(node, Timestamp::now() - age, self.record.network != "none")
    }

    fn check_alive(&self, role: Role, node: &NodeLayout) -> Result<()> {
        let alive = self
            .record
            .process(role, &node.name)
            .as_ref()
            .is_some_and(Process::is_alive);
        if alive {
            Ok(())
        } else {
            Err(not_ready(role, node, "has ended"))
        }
    }
}

/// Held while a cluster is changed.
pub(crate) fn lock(layout: &Layout) -> Result<File> {
    let path = layout.lock();
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(Error::file("create", directory))?;
    }
    let file = File::create(&path).map_err(Error::file("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Busy {
            name: layout.name().to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(Error::File {
            what: "lock",
            path,
            source,
        }),
    }
}

fn prepare_record(layout: &Layout, options: &Options) -> Result<Record> {
    let nodes = options.nodes;
    if let Some(mut record) = Record::read(&layout.record())? {
        record.network = options.network.clone().unwrap_or(record.network);
        record.oci_runtime = options.oci_runtime.clone().unwrap_or(record.oci_runtime);
        return match nodes {
            Some(nodes) if nodes != record.nodes.len() => Err(Error::OtherShape {
                name: layout.name().to_owned(),
                nodes: record.nodes.len(),
            }),
            _ => Ok(record),
        };
    }
    let nodes = nodes.unwrap_or(1);
    if !(1..=crate::layout::MAX_NODES).contains(&nodes) {
        return Err(Error::Nodes { nodes });
    }
    let record = Record {
        nodes: (0..nodes).map(|index| layout.node(index).name).collect(),
        segments: options.segments.max(1),
        ..Record::default()
    };
    Ok(Record {
        network: options.network.clone().unwrap_or(record.network),
        oci_runtime: options.oci_runtime.clone().unwrap_or(record.oci_runtime),
        ..record
    })
}

pub(crate) fn check_machine() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    check_program("containerd", "containerd")?;
    check_program("iptables-restore", "iptables")
}

/// An OCI runtime's package has its name.
pub(crate) fn check_oci_runtime(name: &str) -> Result<()> {
    check_program(name, name)
}

fn check_program(program: &str, package: &str) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|directory| directory.join(program).is_file()) {
        return Ok(());
    }
    Err(Error::Missing {
        program: program.to_owned(),
        package: package.to_owned(),
    })
}

/// Whether the node said so itself since `since`: a store that was stopped still holds what was true before. Without a
/// network of ours it is enough that it speaks: it is not Ready until another CNI is installed.
fn is_ready(node: &Node, since: Timestamp, with_network: bool) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| {
        // Heartbeats are whole seconds.
        let heard = condition.last_heartbeat_time.as_ref().map(|time| time.0.as_second());
        let ready = condition.status == "True" || !with_network;
        condition.type_ == "Ready" && ready && heard >= Some(since.as_second())
    })
}

fn not_ready(role: Role, node: &NodeLayout, reason: &str) -> Error {
    const LINES: usize = 20;
    let log = node.log(role);
    let text = std::fs::read(&log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(LINES)..].join("\n");
    Error::NotReady {
        role: role.to_string(),
        node: node.name.clone(),
        reason: reason.to_owned(),
        log,
        tail,
    }
}

fn containerd_command(node: &NodeLayout) -> Command {
    let mut command = process::command("containerd");
    command
        .arg("--config")
        .arg(node.containerd_config())
        .args(["--log-level", "warn"]);
    // The CNI plugins that it executes take this lock.
    command.env("XTABLES_LOCKFILE", node.iptables_lock());
    command
}

fn server_command(binary: &Path, layout: &Layout, listener: TcpListener) -> Command {
    let mut command = process::command(binary);
    command
        .arg("server")
        .arg("--config")
        .arg(layout.server_config())
        .arg("--listen-stdin");
    command.stdin(Stdio::from(OwnedFd::from(listener)));
    command
}

fn kubelet_command(binary: &Path, layout: &Layout, node: &NodeLayout) -> Command {
    let mut command = process::command(binary);
    command.arg("kubelet").arg("--config").arg(node.kubelet_config());
    command.arg("--kubeconfig").arg(node.kubelet_kubeconfig());
    command.arg("--hostname-override").arg(&node.name);
    command.arg("--node-ip").arg(node.address.to_string());
    command.arg("--root-dir").arg(node.kubelet_root());
    command.arg("--image-dir").arg(layout.images());
    command
}

fn proxy_command(binary: &Path, node: &NodeLayout, network: &str) -> Command {
    let mut command = process::command(binary);
    command.arg("proxy").arg("--config").arg(node.proxy_config());
    command.arg("--network").arg(network);
    command.arg("--cni-conf-dir").arg(node.cni_config());
    command.arg("--cni-data-dir").arg(node.cni_data());
    command.env("XTABLES_LOCKFILE", node.iptables_lock());
    command
}

/// At the node's own ports 80 and 443: each node has a network namespace of its own.
fn ingress_command(binary: &Path, layout: &Layout, node: &NodeLayout) -> Command {
    let mut command = process::command(binary);
    command
        .arg("ingress")
        .arg("--kubeconfig")
        .arg(layout.ingress_kubeconfig());
    command.arg("--publish-address").arg(node.address.to_string());
    command
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_the_node_said_since_its_start_counts() {
        let node = |status: &str| -> Node {
            let ready = json!({"type": "Ready", "status": status, "lastHeartbeatTime": "2026-01-01T00:00:10Z"});
            serde_json::from_value(json!({"metadata": {"name": "node-1"}, "status": {"conditions": [ready]}})).unwrap()
        };
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert!(is_ready(&node("True"), at("2026-01-01T00:00:10.9Z"), true));
        assert!(!is_ready(&node("True"), at("2026-01-01T00:00:11Z"), true));
        assert!(!is_ready(&node("Unknown"), at("2026-01-01T00:00:09Z"), true));
        assert!(!is_ready(&Node::default(), Timestamp::UNIX_EPOCH, true));
        assert!(is_ready(&node("False"), at("2026-01-01T00:00:09Z"), false));
        assert!(!is_ready(&Node::default(), Timestamp::UNIX_EPOCH, false));
    }
}
