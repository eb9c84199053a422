//! What can be typed after `skiff`.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use skiff_daemon::{LogFormat, LogOptions};

use crate::{
    backup, certs, check, cluster, completion, image, ingress, init, join, kubelet, package, proxy, reset, server,
    token,
};

/// Kubernetes, complete and small.
#[derive(Debug, Parser)]
#[command(name = "skiff", version, propagate_version = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) logs: LogArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "Examples:
  skiff up --nodes 3                          start a cluster of three nodes on this machine
  export KUBECONFIG=$(skiff kubeconfig)       then use kubectl from any shell
  skiff node exec node-1 -- ip route          look at a node's network from inside
  skiff down --purge                          take it down and delete its data";

/// A component to run, or a thing to do with a cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Begin a cluster: make this machine its control plane
    Init(Box<init::InitArgs>),
    /// Join a cluster: make this machine one of its workers, or a further control plane
    Join(Box<join::JoinArgs>),
    /// Undo `init` or `join`: make this machine a bare one again
    Reset(reset::ResetArgs),
    /// Work with bootstrap tokens, which machines join with
    Token(token::TokenArgs),
    /// See to the certificates of a control plane
    Certs(certs::CertsArgs),
    /// Tell how every part of this machine does, with the probable cause where one does not
    Check(check::CheckArgs),
    /// Start a cluster on this machine; each node is a network namespace with its own containerd
    Up(cluster::UpArgs),
    /// Take a cluster down; its state stays unless --purge
    Down(cluster::DownArgs),
    /// List the clusters on this machine
    Clusters(cluster::ListArgs),
    /// Print the path of a cluster's kubeconfig
    Kubeconfig(cluster::NameArgs),
    /// Work inside a node's network
    Node(cluster::NodeArgs),
    /// Import images into nodes
    Image(image::ImageArgs),
    /// Run the API server, the scheduler and the controllers
    Server(server::ServerArgs),
    /// Run the node agent
    Kubelet(kubelet::KubeletArgs),
    /// Run the service proxy and the routes between nodes
    Proxy(Box<proxy::ProxyArgs>),
    /// Run the ingress controller
    Ingress(ingress::IngressArgs),
    /// Save the cluster's state to a file, while servers run
    Backup(backup::BackupArgs),
    /// Replace the cluster's state with a backup, while no server runs
    Restore(backup::RestoreArgs),
    /// Print the version
    Version(OutputArgs),
    /// Print a completion script for a shell
    Completion(completion::CompletionArgs),
    /// Write what a package holds beside the binary
    #[command(hide = true)]
    Package(package::PackageArgs),
}

/// How a process logs.
#[derive(Args, Debug)]
pub(crate) struct LogArgs {
    /// Log verbosity: 0 information, 2 debugging, 5 everything
    #[arg(long = "v", global = true, value_name = "LEVEL", default_value_t = 0)]
    verbosity: u8,
    /// Log format
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    logging_format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl LogArgs {
    pub(crate) fn options(&self) -> LogOptions {
        let format = match self.logging_format {
            Format::Text => LogFormat::Text,
            Format::Json => LogFormat::Json,
        };
        LogOptions {
            verbosity: self.verbosity,
            format,
        }
    }
}

/// How a result is printed.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct OutputArgs {
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: Output,
}

/// Text for people, JSON for programs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

/// `skiff version`.
pub(crate) fn version(args: &OutputArgs) -> ExitCode {
    let version = env!("CARGO_PKG_VERSION");
    match args.output {
        Output::Text => println!("skiff v{version}"),
        Output::Json => println!("{}", serde_json::json!({ "skiffVersion": format!("v{version}") })),
    }
    ExitCode::SUCCESS
}
