//! What `skiff init`, `join`, `reset`, `token`, `certs` and `check` share: this machine, and how progress is told.

use std::net::IpAddr;

use anyhow::Context as _;
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use skiff_machine::config::NodeFlags;
use skiff_machine::{Layout, Machine, Say, Systemd};

use crate::args::Output;

/// Flags that `init` and `join` share, under kubeadm's names.
#[derive(Args, Debug)]
pub(crate) struct NodeArgs {
    /// The node's name; the host's name in small letters when absent
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// The address that other machines know this one by, for every component
    #[arg(long, value_name = "IP")]
    node_ip: Option<IpAddr>,
    /// The container runtime's socket [default: unix:///run/containerd/containerd.sock]
    #[arg(long, value_name = "URL")]
    cri_socket: Option<String>,
    /// Preflight checks whose failure is only told, or `all`
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    ignore_preflight_errors: Vec<String>,
}

impl From<NodeArgs> for NodeFlags {
    fn from(args: NodeArgs) -> Self {
        Self {
            name: args.node_name,
            ip: args.node_ip,
            runtime_endpoint: args.cri_socket,
            ignore: args.ignore_preflight_errors,
        }
    }
}

/// Lines as kubeadm writes them. Where the result is JSON they go to standard error.
#[derive(Debug)]
pub(crate) struct Lines(pub(crate) Output);

impl Say for Lines {
    fn say(&self, phase: &str, text: &str) {
        match self.0 {
            Output::Text => println!("[{phase}] {text}"),
            Output::Json => eprintln!("[{phase}] {text}"),
        }
    }
}

/// This machine, under systemd.
pub(crate) fn this_machine(say: &Lines) -> anyhow::Result<Machine<'_>> {
    let binary = std::env::current_exe().context("find the skiff program")?;
    Ok(Machine {
        layout: Layout::default(),
        services: &Systemd,
        plugin_program: skiff_cluster::cni_program(&binary)?,
        binary,
        say,
        now: Timestamp::now,
    })
}

/// Prints a result for a program.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Reads the file of `--config`.
pub(crate) fn read_config(path: Option<&std::path::Path>) -> anyhow::Result<Option<String>> {
    let read =
        |path: &std::path::Path| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    path.map(read).transpose()
}
