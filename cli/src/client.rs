//! Clients of the API server, from kubeconfig files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use parking_lot::Mutex;
use skiff_daemon::Files;
use tower::retry::RetryLayer;
use tower::util::{BoxCloneService, Oneshot};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt as _};

/// After this long without a packet a connection asks whether the other end is there; after [`ASK`] questions without an
/// answer it is broken. Together no longer than client-go takes for it (45 s).
const SILENCE: Duration = Duration::from_secs(15);
const ASK_EVERY: Duration = Duration::from_secs(5);
const ASK: u32 = 3;

/// The way to the API server, with whom it is trusted by and who we are.
type Way = BoxCloneService<Request<Body>, Response<Incoming>, BoxError>;

/// What a kubeconfig says, ready for use.
struct Loaded {
    way: Way,
    namespace: String,
    /// The kubeconfig, and the files that it names.
    files: Vec<PathBuf>,
}

/// A service that requests go through as it is when they begin.
#[derive(Clone)]
struct Current(Arc<Mutex<Way>>);

/// A client that reaches the API server as `path` says; `component` goes into its user agent.
///
/// When the file changes, or a certificate, key or token that it names, requests from then on use what is new. What is open (a watch)
/// goes on.
pub(crate) async fn from_file(path: &Path, component: &'static str) -> anyhow::Result<kube::Client> {
    let loaded = load(path, component).await?;
    let current = Current(Arc::new(Mutex::new(loaded.way)));
    tokio::spawn(keep_current(
        Arc::downgrade(&current.0),
        Files::new(loaded.files),
        path.to_owned(),
        component,
    ));
    Ok(kube::Client::new(current, loaded.namespace))
}

/// Until the client is gone.
async fn keep_current(current: Weak<Mutex<Way>>, mut files: Files, path: PathBuf, component: &'static str) {
    loop {
        files.changed().await;
        let Some(current) = current.upgrade() else { return };
        match load(&path, component).await {
            Ok(loaded) => {
                *current.lock() = loaded.way;
                files.follow(loaded.files);
                tracing::info!(kubeconfig = %path.display(), "credentials read anew");
            }
            Err(error) => {
                tracing::warn!(error = %skiff_daemon::error_chain(error.as_ref()), "still using the former credentials");
                files.retry();
            }
        }
    }
}

async fn load(path: &Path, component: &str) -> anyhow::Result<Loaded> {
    let read = || format!("read the kubeconfig {}", path.display());
    let kubeconfig = Kubeconfig::read_from(path).with_context(read)?;
    let files = [path.to_owned()].into_iter().chain(named(&kubeconfig)).collect();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .with_context(read)?;
    config.headers.push((
        http::header::USER_AGENT,
        http::HeaderValue::from_str(&format!("{component}/v{} (skiff)", env!("CARGO_PKG_VERSION")))
            .context("make the user agent")?,
    ));
    let way = build(&config).with_context(|| format!("make a client from {}", path.display()))?;
    Ok(Loaded {
        way,
        namespace: config.default_namespace,
        files,
    })
}

/// The files that a kubeconfig names, already relative to where we are.
fn named(kubeconfig: &Kubeconfig) -> Vec<PathBuf> {
    let users = kubeconfig
        .auth_infos
        .iter()
        .filter_map(|named| named.auth_info.as_ref());
    let own = users.flat_map(|user| [&user.client_certificate, &user.client_key, &user.token_file]);
    let clusters = kubeconfig.clusters.iter().filter_map(|named| named.cluster.as_ref());
    let authorities = clusters.map(|cluster| &cluster.certificate_authority);
    own.chain(authorities).flatten().map(PathBuf::from).collect()
}

/// kube's usual client, but for its connections: they ask by themselves whether the other end is there. A watch only
/// listens: without that it would wait for ever after this node changed its address, or the server lost its own.
fn build(config: &kube::Config) -> Result<Way, kube::Error> {
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
    Ok(service.map_err(BoxError::from).boxed_clone())
}

impl Service<Request<Body>> for Current {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Oneshot<Way, Request<Body>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0.lock().clone().oneshot(request)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use serde_json::Value;
    use skiff_apiserver::ApiServer;
    use skiff_daemon::Context;
    use skiff_pki::{CertificateAuthority, Kubeconfig, Request, ServiceAccountKey};
    use skiff_store::sqlite;

    use super::*;

    async fn who_am_i(client: &kube::Client) -> String {
        let review = r#"{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}"#;
        let request = http::Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(review.as_bytes().to_vec());
        let answer: Value = client.request(request.unwrap()).await.unwrap();
        answer["status"]["userInfo"]["username"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_replaced_kubeconfig_makes_the_client_somebody_else() {
        skiff_daemon::install_crypto();
        let directory = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        let loopback: std::net::IpAddr = [127, 0, 0, 1].into();
        let listener = tokio::net::TcpListener::bind((loopback, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let store = sqlite::open(directory.path().join("state.db"), sqlite::Options::default()).unwrap();
        let identity = authority
            .issue(&Request::server("s", &["localhost"], &[loopback]))
            .unwrap();
        let config = skiff_apiserver::Config::new(
            identity,
            authority.certificate_pem(),
            ServiceAccountKey::generate().unwrap(),
            ("192.0.2.1".parse().unwrap(), port),
        );
        let server = ApiServer::start(config, Arc::new(store), Context::default())
            .await
            .unwrap();
        tokio::spawn(async move { server.serve(vec![listener]).await });
        let path = directory.path().join("kubeconfig");
        let write = |user: &str| {
            let identity = authority.issue(&Request::client(user, &[])).unwrap();
            let url = format!("https://127.0.0.1:{port}");
            let kubeconfig = Kubeconfig::embedded("test", &url, authority.certificate_pem(), user, &identity);
            kubeconfig.write(&path).unwrap();
        };
        write("first");
        let client = from_file(&path, "test").await.unwrap();
        assert_eq!(who_am_i(&client).await, "first");
        std::fs::write(&path, "no kubeconfig").unwrap();
        let hang_up = || {
            Command::new("kill")
                .args(["-HUP", &std::process::id().to_string()])
                .status()
        };
        assert!(hang_up().unwrap().success());
        assert_eq!(who_am_i(&client).await, "first", "half a file is not used");
        write("second");
        assert!(hang_up().unwrap().success());
        let changed = async {
            while who_am_i(&client).await != "second" {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), changed)
            .await
            .expect("the new credentials are used");
    }
}
