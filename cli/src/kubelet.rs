//! `skiff kubelet`: the node agent.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use futures::FutureExt as _;
use skiff_cri::Client;
use skiff_daemon::{Context, Shutdown};
use skiff_kubelet::certificates;
use skiff_kubelet::config::{Config, FLAGS, Flags, Kind};

use crate::{client, image};

/// `skiff kubelet` flags, under upstream's names.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  skiff kubelet --config /var/lib/kubelet/config.yaml --kubeconfig /etc/kubernetes/kubelet.conf --node-ip 192.168.56.11")]
pub(crate) struct KubeletArgs {
    /// The file with a KubeletConfiguration (kubelet.config.k8s.io/v1beta1)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How to reach the API server, and as whom; written when it is got with --bootstrap-kubeconfig
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
    /// How to get a first certificate, where --kubeconfig does not exist or its certificate has ended
    #[arg(long, value_name = "FILE")]
    bootstrap_kubeconfig: Option<PathBuf>,
    /// Where the node's certificates are kept; the root directory's pki otherwise
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,
    /// The node's name, where it is not the host's
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,
    /// The node's address
    #[arg(long = "node-ip", value_name = "IP", value_delimiter = ',')]
    node_ips: Vec<IpAddr>,
    /// Where pods' directories live
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    root_dir: PathBuf,
    /// The container runtime's socket
    #[arg(long, value_name = "URL")]
    container_runtime_endpoint: Option<String>,
    /// A directory of manifests, or one file: pods that run whatever the API server says
    #[arg(long, value_name = "PATH")]
    pod_manifest_path: Option<PathBuf>,
    /// Labels to register the node with, as key=value
    #[arg(long, value_name = "LABELS", value_delimiter = ',', value_parser = key_value)]
    node_labels: Vec<(String, String)>,
    /// A directory of image archives to import at the start
    #[arg(long, value_name = "DIR")]
    image_dir: Option<PathBuf>,
    /// The cgroup under which pods' cgroups are made
    #[arg(long, value_name = "CGROUP")]
    cgroup_root: Option<String>,
    /// Where the local-path provisioner makes volumes; the root directory's local-path otherwise
    #[arg(long, value_name = "DIR")]
    local_path_dir: Option<PathBuf>,
    /// A directory of drop-ins (*.conf) that are laid over the file, in the order of their names
    #[arg(long, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Instead of a field of the file")]
    overrides: Overrides,
}

/// Flags that say the same as a field of the file, made from the kubelet's own table of them.
#[derive(Debug, Default)]
struct Overrides(serde_json::Map<String, serde_json::Value>);

impl clap::FromArgMatches for Overrides {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let mut overrides = Self::default();
        overrides.update_from_arg_matches(matches)?;
        Ok(overrides)
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        for flag in FLAGS {
            if let Some(text) = matches.get_one::<String>(flag.name) {
                let refuse = |error: String| {
                    let text = format!("invalid value for '--{}': {error}\n", flag.name);
                    clap::Error::raw(clap::error::ErrorKind::ValueValidation, text)
                };
                flag.set(text, &mut self.0).map_err(refuse)?;
            }
        }
        Ok(())
    }
}

impl Args for Overrides {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.args(FLAGS.iter().map(|flag| {
            let arg = clap::Arg::new(flag.name).long(flag.name).help(flag.help);
            match flag.kind {
                Kind::Switch => arg
                    .value_name("BOOL")
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true"),
                Kind::Number => arg.value_name("N").allow_negative_numbers(true),
                Kind::Text => arg.value_name("VALUE"),
                _ => arg.value_name("LIST"),
            }
        }))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

/// Runs until asked to stop.
pub(crate) async fn run(args: KubeletArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let flags = Flags {
        hostname_override: args.hostname_override,
        node_ips: args.node_ips,
        root_dir: args.root_dir,
        container_runtime_endpoint: args.container_runtime_endpoint,
        pod_manifest_path: args.pod_manifest_path,
        node_labels: args.node_labels.into_iter().collect(),
        cgroup_root: args.cgroup_root,
        config_dir: args.config_dir,
        overrides: args.overrides.0,
        local_path_dir: args.local_path_dir,
        cert_dir: args.cert_dir,
    };
    let config = Config::load(args.config.as_deref(), flags).context("configure the kubelet")?;
    if let Some(directory) = &args.image_dir {
        let runtime = Client::new(&config.kubelet.container_runtime_endpoint);
        image::import_directory(&runtime, directory).await?;
    }
    let credentials = certificates::Options {
        kubeconfig: args.kubeconfig,
        bootstrap_kubeconfig: args.bootstrap_kubeconfig,
        cert_dir: config.cert_dir(),
        node: config.node_name(),
        rotate: config.kubelet.rotate_certificates,
    };
    let make: certificates::Connect =
        Arc::new(|path| async move { client::from_file(&path, "kubelet").await.map_err(Into::into) }.boxed());
    let client = match certificates::connect(credentials, make, shutdown.clone()).await {
        Err(certificates::Error::Stopped) => return Ok(()),
        connected => connected.context("reach the API server")?,
    };
    let daemon = Context {
        shutdown,
        ..Context::default()
    };
    skiff_kubelet::run(config, client, daemon)
        .await
        .context("run the kubelet")
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} is not of the form key=value"))?;
    Ok((key.to_owned(), value.to_owned()))
}
