//! What can go wrong with a cluster, told to the person who asked for it.

use std::io;
use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a cluster could not be started, used or taken down.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Namespaces, cgroups and containers need it.
    #[error("clusters need root: they are made of network namespaces, cgroups and containers")]
    NotRoot,
    /// A name that cannot be part of paths and interface names.
    #[error(
        "{name:?} is not a cluster name: use up to 20 lower case letters, digits and dashes, beginning with a letter"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// More nodes than addresses, or none.
    #[error("a cluster has 1 to {} nodes, not {nodes}", crate::layout::MAX_NODES)]
    Nodes {
        /// What was given.
        nodes: usize,
    },
    /// The cluster exists with another shape.
    #[error(
        "cluster {name} exists with {nodes} nodes; give the same number, or remove it first: skiff down --name {name} --purge"
    )]
    OtherShape {
        /// The cluster.
        name: String,
        /// Its nodes.
        nodes: usize,
    },
    /// A second `up`.
    #[error("cluster {name} is already running; use it with: export KUBECONFIG={}", kubeconfig.display())]
    AlreadyRunning {
        /// The cluster.
        name: String,
        /// Its kubeconfig.
        kubeconfig: PathBuf,
    },
    /// Another `up` or `down` is at work.
    #[error("another skiff is working on cluster {name} just now; wait for it to finish")]
    Busy {
        /// The cluster.
        name: String,
    },
    /// There is no such cluster.
    #[error("there is no cluster {name} in {}; `skiff clusters` lists those that exist", home.display())]
    NoSuchCluster {
        /// What was asked for.
        name: String,
        /// Where clusters were looked for.
        home: PathBuf,
    },
    /// There is no such node.
    #[error("there is no node {name}; the nodes are: {nodes}")]
    NoSuchNode {
        /// What was asked for.
        name: String,
        /// Those that exist.
        nodes: String,
    },
    /// A program is not installed.
    #[error("{program} is not installed; install it, on Debian with: apt-get install {package}")]
    Missing {
        /// The program.
        program: String,
        /// Debian's package.
        package: String,
    },
    /// The CNI plugins are not where `skiff` is.
    #[error(
        "{} is not there: the CNI plugins belong beside the skiff binary or, installed, in ../lib/skiff; install the package again, or build both with: cargo build --release",
        path.display()
    )]
    NoPlugins {
        /// Where they were looked for.
        path: PathBuf,
    },
    /// The path of a socket would be too long for the kernel.
    #[error("{} is too long for a socket's path (108 bytes): choose a shorter SKIFF_HOME", path.display())]
    PathTooLong {
        /// The socket.
        path: PathBuf,
    },
    /// A file or directory.
    #[error("{what} {}", path.display())]
    File {
        /// The step.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// `cluster.json` is not what this version writes.
    #[error("{} is garbled; remove the cluster with `skiff down --purge`, or delete its directory", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A namespace.
    #[error("network namespace of {node}")]
    Namespace {
        /// The node, or `the LAN`.
        node: String,
        /// The step that failed.
        source: skiff_net::netns::Error,
    },
    /// A link, address or route.
    #[error("network of {node}")]
    Network {
        /// The node, or `the LAN`.
        node: String,
        /// The step that failed.
        source: skiff_net::netlink::Error,
    },
    /// A sysctl.
    #[error("kernel settings of {node}")]
    Sysctl {
        /// The node, or `the LAN`.
        node: String,
        /// The step that failed.
        source: skiff_net::sysctl::Error,
    },
    /// Keys and certificates.
    #[error("credentials")]
    Credentials(#[from] skiff_pki::Error),
    /// No port is to be had on loopback.
    #[error("open a port on 127.0.0.1 for the API server")]
    Listen(#[source] io::Error),
    /// A program that does not start.
    #[error("start {role} of {node}")]
    Start {
        /// What it is.
        role: String,
        /// Where.
        node: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A program that ended, or is not ready in time.
    #[error("{role} of {node} {reason}; its log is {}\n{tail}", log.display())]
    NotReady {
        /// What it is.
        role: String,
        /// Where.
        node: String,
        /// What was awaited.
        reason: String,
        /// Its log file.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// A kubeconfig that was written by `up`.
    #[error("read {}; `skiff up` writes it again", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: kube::config::KubeconfigError,
    },
    /// The API server does not answer as expected.
    #[error("{what}")]
    Api {
        /// The step.
        what: String,
        /// What it answered.
        source: kube::Error,
    },
    /// The container runtime of a node.
    #[error("container runtime of {node}")]
    Runtime {
        /// The node.
        node: String,
        /// What it answered.
        source: skiff_cri::Error,
    },
    /// Building an image archive.
    #[error("image {tag}: {reason}")]
    Image {
        /// The image.
        tag: String,
        /// What went wrong.
        reason: String,
    },
    /// What `down` could not remove; all the rest is gone.
    #[error("could not remove everything: {}", what.join("; "))]
    Leftovers {
        /// One line each.
        what: Vec<String>,
    },
}

impl Error {
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    pub(crate) fn api(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Api { what, source }
    }
}
