//! Clients of the API server, from kubeconfig files.

use std::path::Path;

use anyhow::Context as _;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// A client that reaches the API server as `path` says; `component` goes into its user agent.
pub(crate) async fn from_file(path: &Path, component: &str) -> anyhow::Result<kube::Client> {
    let read = || format!("read the kubeconfig {}", path.display());
    let kubeconfig = Kubeconfig::read_from(path).with_context(read)?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .with_context(read)?;
    // Watches are long; a dead connection is noticed by the server's bookmarks and TCP, not by a short read timeout.
    config.read_timeout = None;
    config.headers.push((
        http::header::USER_AGENT,
        http::HeaderValue::from_str(&format!("{component}/v{} (skiff)", env!("CARGO_PKG_VERSION")))
            .context("make the user agent")?,
    ));
    kube::Client::try_from(config).with_context(|| format!("make a client from {}", path.display()))
}
