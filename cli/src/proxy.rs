//! `skiff proxy`: the service proxy, and the routes to the other nodes' pods.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use skiff_daemon::{Context, Shutdown};
use skiff_overlay::Mode;
use skiff_proxy::KubeProxyConfiguration;

use crate::client;

/// `skiff proxy` flags, under upstream's names.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  skiff proxy --config /var/lib/kube-proxy/config.conf --hostname-override worker-1")]
pub(crate) struct ProxyArgs {
    /// The file with a KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How to reach the API server, and as whom; the file's clientConnection.kubeconfig when absent
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The node's name; the file's hostnameOverride when absent
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,
    /// How packets get to other nodes' pods: auto (directly on a shared segment, by VXLAN otherwise), direct, vxlan, or
    /// none (another CNI does it)
    #[arg(long, value_name = "MODE", default_value_t = Mode::Auto)]
    network: Mode,
    /// Where the container runtime looks for its network configuration
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Where pods' address leases are kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni/networks")]
    cni_data_dir: PathBuf,
}

/// Runs until asked to stop, or until one of the parts fails.
pub(crate) async fn run(args: ProxyArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(&args.config).with_context(|| format!("read {}", args.config.display()))?;
    let file = KubeProxyConfiguration::parse(&text).with_context(|| format!("use {}", args.config.display()))?;
    let node_name = args.hostname_override.unwrap_or_else(|| file.hostname_override.clone());
    anyhow::ensure!(
        !node_name.is_empty(),
        "the node's name is needed: give --hostname-override"
    );
    let kubeconfig = args
        .kubeconfig
        .unwrap_or_else(|| file.client_connection.kubeconfig.clone().into());
    let client = client::from_file(&kubeconfig, "kube-proxy").await?;

    let cluster_cidr = file
        .cluster_cidr
        .split(',')
        .filter(|range| !range.is_empty())
        .map(str::parse);
    let overlay = skiff_overlay::Config {
        mode: args.network,
        cluster_cidr: cluster_cidr.collect::<Result<_, _>>().context("clusterCIDR")?,
        cni_config_dir: args.cni_conf_dir,
        cni_data_dir: args.cni_data_dir,
        ..skiff_overlay::Config::new(&node_name)
    };
    let proxy = file
        .for_node(&node_name)
        .with_context(|| format!("use {}", args.config.display()))?;
    let daemon = Context {
        shutdown: shutdown.clone(),
        ..Context::default()
    };
    let services = skiff_proxy::run(proxy, client.clone(), daemon.clone());
    let routes = skiff_overlay::run(overlay, client, daemon);
    tokio::try_join!(async { services.await.context("run the service proxy") }, async {
        routes.await.context("keep the routes between nodes")
    },)?;
    Ok(())
}
