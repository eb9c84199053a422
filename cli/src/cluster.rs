//! `skiff up`, `down`, `clusters`, `kubeconfig` and `node`: clusters on this machine.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use skiff_cluster::layout::NAMESPACES;
use skiff_cluster::{Cluster, Error, Options, Progress};
use skiff_daemon::Shutdown;
use skiff_net::netns::Namespace;
use skiff_overlay::Mode;
use tokio::time::Instant;

use crate::args::{Output, OutputArgs};
use crate::showcase;

/// Which cluster.
#[derive(Args, Clone, Debug)]
pub(crate) struct NameArgs {
    /// The cluster's name
    #[arg(long, default_value = "skiff", value_name = "NAME")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) home: HomeArgs,
    /// The kubeconfig for use inside the cluster's network (`skiff node exec`)
    #[arg(long)]
    in_cluster_network: bool,
}

/// Where clusters are kept.
#[derive(Args, Clone, Debug)]
pub(crate) struct HomeArgs {
    /// The directory that holds all clusters
    #[arg(long, env = "SKIFF_HOME", default_value = "/var/lib/skiff", value_name = "DIR")]
    pub(crate) home: PathBuf,
}

/// `skiff up` flags.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  skiff up
  skiff up --name dev --nodes 3 --images ./archives
  skiff up --apply examples/hello.yaml")]
pub(crate) struct UpArgs {
    /// The cluster's name
    #[arg(long, default_value = "skiff", value_name = "NAME")]
    name: String,
    /// How many nodes; the first one also runs the server [default: 1, or what the cluster has]
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// A directory of image archives that every node imports
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// How packets get to other nodes' pods: auto, direct, vxlan, or none to install another CNI [default: auto, or what
    /// the cluster had]
    #[arg(long, value_name = "MODE")]
    network: Option<Mode>,
    /// The program that containerd makes containers with, found in PATH: runc, or one that takes its place, like crun
    /// [default: runc, or what the cluster had]
    #[arg(long, value_name = "NAME")]
    oci_runtime: Option<String>,
    /// Manifests to apply; waits until their workloads are ready and shows what answers
    #[arg(long, value_name = "FILE")]
    apply: Option<PathBuf>,
    #[command(flatten)]
    home: HomeArgs,
}

/// `skiff down` flags.
#[derive(Args, Debug)]
pub(crate) struct DownArgs {
    /// The cluster's name
    #[arg(long, default_value = "skiff", value_name = "NAME")]
    name: String,
    /// Delete the cluster's data too
    #[arg(long)]
    purge: bool,
    #[command(flatten)]
    home: HomeArgs,
}

/// `skiff clusters` flags.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    home: HomeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// `skiff node` arguments.
#[derive(Args, Debug)]
pub(crate) struct NodeArgs {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Run a command in a node's network
    #[command(after_help = "Example:\n  skiff node exec node-1 -- curl -s http://10.96.0.20/")]
    Exec {
        #[command(flatten)]
        node: NodeName,
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Print a node's address
    Address(NodeName),
    /// Print the path of a node's network namespace
    Netns(NodeName),
}

#[derive(Args, Debug)]
struct NodeName {
    /// The cluster's name
    #[arg(long, default_value = "skiff", value_name = "NAME")]
    name: String,
    #[command(flatten)]
    home: HomeArgs,
    /// The node's name
    node: String,
}

/// `skiff up`.
pub(crate) async fn up(args: UpArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let begin = Instant::now();
    let options = Options {
        name: args.name,
        nodes: args.nodes,
        home: args.home.home,
        binary: std::env::current_exe().context("find the skiff binary")?,
        images: args.images,
        segments: 1,
        network: args.network.map(|mode| mode.to_string()),
        oci_runtime: args.oci_runtime,
    };
    let bar = Bar::new();
    let cluster = tokio::select! {
        cluster = Cluster::up(&options, &bar) => match cluster {
            // With manifests to apply, what is wanted is their state: on the cluster that runs, too.
            Err(error @ Error::AlreadyRunning { .. }) if args.apply.is_some() => {
                eprintln!("{error}");
                Cluster::open(&options.home, &options.name)?
            }
            cluster => cluster?,
        },
        () = shutdown.cancelled() => anyhow::bail!("interrupted; `skiff up` goes on from here, `skiff down` takes it down"),
    };
    if let Some(manifests) = &args.apply {
        bar.step("waiting for the workloads");
        let shown = tokio::select! {
            shown = showcase::apply_and_show(&cluster, manifests, &bar) => shown?,
            () = shutdown.cancelled() => anyhow::bail!("interrupted; the cluster is running"),
        };
        bar.finish();
        println!("{shown}");
    }
    bar.finish();
    let kubeconfig = cluster.layout().admin_kubeconfig();
    eprintln!(
        "cluster {} is ready after {:.1} s; use it with:",
        options.name,
        begin.elapsed().as_secs_f64()
    );
    println!("export KUBECONFIG={}", kubeconfig.display());
    Ok(())
}

/// `skiff down`.
pub(crate) async fn down(args: DownArgs) -> anyhow::Result<()> {
    let bar = Bar::new();
    let result = Cluster::down(&args.home.home, &args.name, args.purge, &bar).await;
    bar.finish();
    result?;
    eprintln!(
        "cluster {} is down{}",
        args.name,
        if args.purge { " and its data deleted" } else { "" }
    );
    Ok(())
}

/// `skiff clusters`.
pub(crate) async fn list(args: ListArgs) -> anyhow::Result<()> {
    let mut clusters = Vec::new();
    for name in Cluster::list(&args.home.home)? {
        clusters.push((Cluster::open(&args.home.home, &name)?, name));
    }
    if args.output.output == Output::Json {
        let items: Vec<_> = clusters
            .iter()
            .map(|(cluster, name)| {
                serde_json::json!({
                    "name": name,
                    "nodes": cluster.record().nodes,
                    "running": cluster.is_running(),
                    "kubeconfig": cluster.layout().admin_kubeconfig(),
                })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&items)?);
        return Ok(());
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["NAME", "NODES", "STATUS", "KUBECONFIG"]);
    for (cluster, name) in &clusters {
        let status = if cluster.is_running() { "Running" } else { "Stopped" };
        let kubeconfig = cluster.layout().admin_kubeconfig().display().to_string();
        table.add_row([
            name.as_str(),
            &cluster.record().nodes.len().to_string(),
            status,
            &kubeconfig,
        ]);
    }
    println!("{table}");
    Ok(())
}

/// `skiff kubeconfig`.
pub(crate) async fn kubeconfig(args: NameArgs) -> anyhow::Result<()> {
    let cluster = Cluster::open(&args.home.home, &args.name)?;
    let layout = cluster.layout();
    let path = if args.in_cluster_network {
        layout.cluster_kubeconfig()
    } else {
        layout.admin_kubeconfig()
    };
    println!("{}", path.display());
    Ok(())
}

/// `skiff node`; its exit code is that of the command that was run.
pub(crate) fn node(args: NodeArgs) -> ExitCode {
    match run_node(args.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("skiff: {}", skiff_daemon::error_chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run_node(command: NodeCommand) -> anyhow::Result<ExitCode> {
    let find = |node: &NodeName| Cluster::open(&node.home.home, &node.name)?.node(&node.node);
    match command {
        NodeCommand::Address(name) => println!("{}", find(&name)?.address),
        NodeCommand::Netns(name) => println!("{}", Path::new(NAMESPACES).join(find(&name)?.namespace()).display()),
        NodeCommand::Exec { node, command } => {
            let namespace = Namespace::open_named(Path::new(NAMESPACES), find(&node)?.namespace())
                .with_context(|| format!("is cluster {} running?", node.name))?;
            let mut process = Command::new(&command[0]);
            process.args(&command[1..]);
            let status = namespace
                .run(|| process.status())?
                .with_context(|| format!("run {}", command[0]))?;
            return Ok(exit_code(status));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn exit_code(status: ExitStatus) -> ExitCode {
    // A command that a signal ended has no code; shells show 128 and up, 1 will do here.
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// The steps of `up` and `down`: a line that moves on a terminal, one line each elsewhere.
#[derive(Debug)]
pub(crate) struct Bar(Option<ProgressBar>);

impl Bar {
    fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4}  {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(Some(bar))
    }

    fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bar {
    fn step(&self, what: &str) {
        match &self.0 {
            Some(bar) => bar.set_message(what.to_owned()),
            None => eprintln!("{what}"),
        }
    }
}
