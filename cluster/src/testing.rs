//! A real cluster for one test: started in about two seconds, taken down when the test ends, and telling what went wrong
//! when it fails.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use skiff_net::netns::Namespace;

mod bare;

pub use bare::BareMachines;

use crate::{Cluster, NodeLayout, Options, Result, Role, Silent, credentials, leftovers, network};

static COUNTER: AtomicU32 = AtomicU32::new(0);
const LOG_LINES: usize = 60;

/// What a test's cluster looks like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How many nodes.
    pub nodes: usize,
    /// How many segments the nodes are spread over, in turns; a router joins them.
    pub segments: usize,
    /// How packets get to other nodes' pods (`skiff proxy --network`).
    pub network: Option<&'static str>,
    /// The OCI runtime of every node.
    pub oci_runtime: Option<&'static str>,
}

impl Shape {
    /// So many nodes on one segment.
    pub fn nodes(nodes: usize) -> Self {
        Self {
            nodes,
            segments: 1,
            network: None,
            oci_runtime: None,
        }
    }
}

/// A cluster that goes when this is dropped.
#[derive(Debug)]
pub struct TestCluster {
    cluster: Cluster,
    binary: PathBuf,
    home: tempfile::TempDir,
}

// === impl TestCluster ===

impl TestCluster {
    /// Starts a cluster of this shape whose nodes have the images of the archives in `images`.
    ///
    /// # Errors
    /// When it does not come up; the error has the tail of the log of what failed.
    pub async fn start(binary: &Path, shape: &Shape, images: &Path) -> Result<Self> {
        let home = tempfile::Builder::new()
            .prefix("skiff-")
            .tempdir()
            .map_err(crate::Error::file("create a directory in", std::env::temp_dir()))?;
        // Namespaces and cgroups are the machine's: names must differ between test processes.
        let name = format!("t{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let options = Options {
            name: name.clone(),
            nodes: Some(shape.nodes),
            segments: shape.segments,
            network: shape.network.map(str::to_owned),
            oci_runtime: shape.oci_runtime.map(str::to_owned),
            home: home.path().to_owned(),
            binary: binary.to_owned(),
            images: Some(images.to_owned()),
        };
        match Cluster::up(&options, &Silent).await {
            Ok(cluster) => Ok(Self {
                cluster,
                binary: binary.to_owned(),
                home,
            }),
            Err(error) => {
                // The first error is the one to tell.
                Cluster::down(home.path(), &name, true, &Silent).await.ok();
                Err(error)
            }
        }
    }

    /// The directory that holds the cluster; `SKIFF_HOME` for the command line.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The namespace of a node's network.
    ///
    /// # Errors
    /// When the node or its namespace does not exist.
    pub fn namespace(&self, node: &str) -> Result<Namespace> {
        network::open(&self.cluster.node(node)?)
    }

    /// The namespace of the LAN: the router between the segments, and what is outside of the cluster.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn lan(&self) -> Result<Namespace> {
        network::open_lan(self.cluster.layout())
    }

    /// Gives a node another address of its segment, and starts its kubelet anew with it.
    ///
    /// # Errors
    /// When the node does not exist or the system refuses.
    pub fn readdress(&mut self, node: &str, address: IpAddr) -> Result<()> {
        self.kill(Role::Kubelet, node)?;
        let cluster = &mut self.cluster;
        cluster.record.moved.insert(node.to_owned(), address);
        cluster.record.write(&cluster.layout.record())?;
        let nodes = cluster.nodes();
        network::build(&cluster.layout, &nodes)?;
        credentials::ensure(&cluster.layout, &nodes, cluster.record.api_port)?;
        self.restart(Role::Kubelet, node)
    }

    /// Kills a process without a chance to clean up.
    ///
    /// # Errors
    /// When the node does not exist or the system refuses.
    pub fn kill(&self, role: Role, node: &str) -> Result<()> {
        let layout = self.cluster.node(node)?;
        match self.cluster.record().process(role, node) {
            Some(process) => process
                .kill()
                .map_err(crate::Error::file("kill the process that logs to", layout.log(role))),
            None => Ok(()),
        }
    }

    /// Starts a process again.
    ///
    /// # Errors
    /// When the node does not exist or the process cannot be started.
    pub fn restart(&mut self, role: Role, node: &str) -> Result<()> {
        let binary = self.binary.clone();
        self.restart_as(role, node, &binary)
    }

    /// Starts a process again from another program, which wraps the binary.
    ///
    /// # Errors
    /// When the node does not exist or the process cannot be started.
    pub fn restart_as(&mut self, role: Role, node: &str, program: &Path) -> Result<()> {
        let layout = self.cluster.node(node)?;
        self.cluster.start(role, &layout, program)
    }

    /// How many cgroups the pods of a node have, over all hierarchies.
    ///
    /// # Errors
    /// When the node does not exist.
    pub fn count_cgroups(&self, node: &str) -> Result<usize> {
        Ok(leftovers::count_cgroups(self.cluster.node(node)?.cgroup()))
    }

    /// What a person would look at after a failure.
    pub fn report(&self) -> String {
        let mut report = String::new();
        let views: [&[&str]; 4] = [
            &[
                "get",
                "nodes,pods,services,endpointslices,deployments,replicasets",
                "-A",
                "-o",
                "wide",
            ],
            &["get", "events", "-A"],
            &["describe", "nodes"],
            &["describe", "pods", "-A"],
        ];
        for view in views {
            let output = Command::new("kubectl")
                .arg("--kubeconfig")
                .arg(self.cluster.layout().admin_kubeconfig())
                .arg("--request-timeout=5s")
                .args(view)
                .output();
            let text = output
                .map(|output| [output.stdout, output.stderr].concat())
                .unwrap_or_default();
            report.push_str(&format!(
                "---- kubectl {}\n{}\n",
                view.join(" "),
                String::from_utf8_lossy(&text)
            ));
        }
        for node in self.cluster.nodes() {
            for role in [
                Role::Server,
                Role::Kubelet,
                Role::Proxy,
                Role::Ingress,
                Role::Containerd,
            ] {
                report.push_str(&tail(&node, role));
            }
        }
        report
    }
}

impl std::ops::Deref for TestCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.report());
        }
        take_down(self.home.path(), self.cluster.layout().name());
    }
}

/// Takes a test's cluster down, whatever runs in it; a test that passed otherwise fails when something stays.
fn take_down(home: &Path, name: &str) {
    let (home, name) = (home.to_owned(), name.to_owned());
    // Drop is not async, and the test's runtime may be shutting down: a thread with a runtime of its own does it.
    let taken_down = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| e.to_string())?;
        let down =
            async { tokio::time::timeout(Duration::from_secs(60), Cluster::down(&home, &name, true, &Silent)).await };
        match runtime.block_on(down) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(skiff_daemon::error_chain(&error)),
            Err(_) => Err("taking the cluster down takes too long".to_owned()),
        }
    })
    .join();
    match taken_down {
        Ok(Ok(())) => {}
        Ok(Err(error)) if std::thread::panicking() => eprintln!("{error}"),
        Ok(Err(error)) => panic!("the cluster left something behind: {error}"),
        Err(_) => eprintln!("taking the cluster down panicked"),
    }
}

fn tail(node: &NodeLayout, role: Role) -> String {
    let Ok(text) = std::fs::read(node.log(role)) else {
        return String::new();
    };
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
    format!("---- {role} of {}\n{last}\n", node.name)
}
