//! `skiff ingress`: the bundled ingress controller.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use skiff_daemon::{Context, Shutdown};
use skiff_ingress::IngressConfiguration;

use crate::client;

/// `skiff ingress` flags; each goes before what the file says.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  skiff ingress --kubeconfig /etc/kubernetes/ingress.conf --publish-address 192.168.1.10"
)]
pub(crate) struct IngressArgs {
    /// How to reach the API server, and as whom
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
    /// The file with an IngressConfiguration (config.skiff/v1alpha1)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The address to listen on
    #[arg(long, value_name = "IP")]
    bind_address: Option<IpAddr>,
    /// The port for plain connections, 0 for none
    #[arg(long, value_name = "PORT")]
    http_port: Option<u16>,
    /// The port for TLS connections, 0 for none
    #[arg(long, value_name = "PORT")]
    https_port: Option<u16>,
    /// An address that the status of Ingresses shows; may be given several times
    #[arg(long = "publish-address", value_name = "IP")]
    publish_addresses: Vec<IpAddr>,
    /// The IngressClass to make and serve
    #[arg(long, value_name = "NAME")]
    ingress_class: Option<String>,
    /// Where to serve health and metrics, empty for nowhere
    #[arg(long, value_name = "IP:PORT")]
    healthz_bind_address: Option<String>,
}

/// Runs until asked to stop, and until open requests have ended.
pub(crate) async fn run(args: IngressArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let mut config = match &args.config {
        None => IngressConfiguration::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            IngressConfiguration::parse(&text).with_context(|| format!("use {}", path.display()))?
        }
    };
    config.bind_address = args.bind_address.unwrap_or(config.bind_address);
    config.http_port = args.http_port.unwrap_or(config.http_port);
    config.https_port = args.https_port.unwrap_or(config.https_port);
    config.ingress_class = args.ingress_class.unwrap_or(config.ingress_class);
    config.healthz_bind_address = args.healthz_bind_address.unwrap_or(config.healthz_bind_address);
    if !args.publish_addresses.is_empty() {
        config.publish_addresses = args.publish_addresses;
    }
    let client = client::from_file(&args.kubeconfig, "skiff-ingress").await?;
    tokio::spawn(skiff_kubelet::certificates::keep_kubeconfig(
        client.clone(),
        args.kubeconfig,
        "system:skiff-ingress",
        shutdown.clone(),
    ));
    let daemon = Context {
        shutdown,
        ..Context::default()
    };
    skiff_ingress::run(config, client, daemon)
        .await
        .context("run the ingress controller")
}
