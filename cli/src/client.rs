//! Clients of the API server, from kubeconfig files.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use kube::client::retry::RetryPolicy;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

/// After this long without a packet a connection asks whether the other end is there; after [`ASK`] questions without an
/// answer it is broken. Together no longer than client-go takes for it (45 s).
const SILENCE: Duration = Duration::from_secs(15);
const ASK_EVERY: Duration = Duration::from_secs(5);
const ASK: u32 = 3;

/// A client that reaches the API server as `path` says; `component` goes into its user agent.
pub(crate) async fn from_file(path: &Path, component: &str) -> anyhow::Result<kube::Client> {
    let read = || format!("read the kubeconfig {}", path.display());
    let kubeconfig = Kubeconfig::read_from(path).with_context(read)?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .with_context(read)?;
    config.headers.push((
        http::header::USER_AGENT,
        http::HeaderValue::from_str(&format!("{component}/v{} (skiff)", env!("CARGO_PKG_VERSION")))
            .context("make the user agent")?,
    ));
    build(&config).with_context(|| format!("make a client from {}", path.display()))
}

/// kube's usual client, but for its connections: they ask by themselves whether the other end is there. A watch only
/// listens: without that it would wait for ever after this node changed its address, or the server lost its own.
fn build(config: &kube::Config) -> Result<kube::Client, kube::Error> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_keepalive(Some(SILENCE));
    connector.set_keepalive_interval(Some(ASK_EVERY));
    connector.set_keepalive_retries(Some(ASK));
    // The same for what was sent and is not acknowledged.
    connector.set_tcp_user_timeout(Some(SILENCE + ASK_EVERY * ASK));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(legacy::Client::builder(TokioExecutor::new()).build(connector));
    Ok(kube::Client::new(service, config.default_namespace.clone()))
}
