//! A server on loopback with its own SQLite store and certificates, and the real kubectl.

use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use skiff_apiserver::{ApiServer, Config};
use skiff_daemon::Context;
use skiff_pki::{CertificateAuthority, Identity, Request, ServiceAccountKey};
use skiff_store::sqlite::Options;
use skiff_store::{SqliteStore, Store};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Everything that a program said.
pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

pub(crate) struct Cluster {
    pub(crate) server: ApiServer,
    pub(crate) url: String,
    pub(crate) authority: CertificateAuthority,
    pub(crate) context: Context,
    /// What service accounts' tokens are signed with.
    pub(crate) tokens_pem: String,
    directory: tempfile::TempDir,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory.path().join("state.db")).await;
        Self::launch(directory, Arc::new(store), &[]).await
    }

    /// A server over a store of another kind.
    pub(crate) async fn over(store: impl Store) -> Self {
        Self::launch(tempfile::tempdir().unwrap(), Arc::new(store), &[]).await
    }

    /// A server with admission plugins that are off by default.
    pub(crate) async fn with_plugins(plugins: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory.path().join("state.db")).await;
        Self::launch(directory, Arc::new(store), plugins).await
    }

    /// A server over the store in `place`, which may have been another's before.
    pub(crate) async fn start_in(place: &Path) -> Self {
        Self::over(open(&place.join("state.db")).await).await
    }

    async fn launch(directory: tempfile::TempDir, store: Arc<dyn Store>, plugins: &[&str]) -> Self {
        skiff_daemon::install_crypto();
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        let loopback: std::net::IpAddr = [127, 0, 0, 1].into();
        let identity = authority
            .issue(&Request::server("kube-apiserver", &["localhost"], &[loopback]))
            .unwrap();
        let kubelet_client = authority
            .issue(&Request::client("kube-apiserver-kubelet-client", &[]))
            .unwrap();
        let listener = TcpListener::bind((loopback, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let service_account_key = ServiceAccountKey::generate().unwrap();
        let tokens_pem = service_account_key.private_pem();
        let advertise = ("198.51.100.1".parse().unwrap(), port);
        let config = Config {
            kubelet_client: Some(kubelet_client),
            enable_admission_plugins: plugins.iter().map(|&name| name.to_owned()).collect(),
            ..Config::new(identity, authority.certificate_pem(), service_account_key, advertise)
        };
        let context = Context::default();
        let server = ApiServer::start(config, store, context.clone()).await.unwrap();
        let serving = server.clone();
        tokio::spawn(async move { serving.serve(vec![listener]).await });
        let cluster = Self {
            server,
            url: format!("https://127.0.0.1:{port}"),
            authority,
            context,
            tokens_pem,
            directory,
        };
        cluster.kubeconfig("admin", &["system:masters"]);
        cluster
    }

    /// Writes a kubeconfig for a user; returns its path.
    pub(crate) fn kubeconfig(&self, user: &str, groups: &[&str]) -> String {
        let identity = self.authority.issue(&Request::client(user, groups)).unwrap();
        let path = self.directory.path().join(format!("{user}.conf"));
        let config =
            skiff_pki::Kubeconfig::embedded("skiff", &self.url, self.authority.certificate_pem(), user, &identity);
        config.write(&path).unwrap();
        path.display().to_string()
    }

    /// Writes a kubeconfig for nobody, `anonymous.conf`.
    pub(crate) fn anonymous(&self) {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {
                "server": self.url,
                "certificate-authority": self.directory.path().join("ca.crt"),
            }}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
        });
        std::fs::write(self.directory.path().join("ca.crt"), self.authority.certificate_pem()).unwrap();
        std::fs::write(self.directory.path().join("anonymous.conf"), config.to_string()).unwrap();
    }

    /// A bare TLS connection to the server, as the administrator.
    pub(crate) async fn connect(&self) -> TlsStream<TcpStream> {
        let identity = self
            .authority
            .issue(&Request::client("admin", &["system:masters"]))
            .unwrap();
        self.connect_as(Some(&identity)).await
    }

    /// A bare TLS connection that is to speak HTTP/2, as nobody.
    pub(crate) async fn connect_http2(&self) -> TlsStream<TcpStream> {
        self.connect_with(None, b"h2").await
    }

    /// A bare TLS connection that speaks HTTP/1.1, as whom the certificate names.
    pub(crate) async fn connect_as(&self, identity: Option<&Identity>) -> TlsStream<TcpStream> {
        self.connect_with(identity, b"http/1.1").await
    }

    async fn connect_with(&self, identity: Option<&Identity>, protocol: &[u8]) -> TlsStream<TcpStream> {
        let mut config = skiff_pki::client_config(identity, self.authority.certificate_pem()).unwrap();
        config.alpn_protocols = vec![protocol.to_vec()];
        let stream = TcpStream::connect(self.url.trim_start_matches("https://"))
            .await
            .unwrap();
        let name = "127.0.0.1".try_into().unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .unwrap()
    }

    /// What nobody in particular gets at a path: the whole response.
    pub(crate) async fn get_as_nobody(&self, path: &str) -> String {
        self.exchange(
            None,
            &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"),
        )
        .await
    }

    /// What a user gets for a merge patch: the whole response.
    pub(crate) async fn patch_as(&self, user: &str, path: &str, patch: &str) -> String {
        let identity = self.authority.issue(&Request::client(user, &[])).unwrap();
        let request = format!(
            "PATCH {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/merge-patch+json\r\n\
             content-length: {}\r\n\r\n{patch}",
            patch.len()
        );
        self.exchange(Some(&identity), &request).await
    }

    /// The answer to the bytes of one request that closes its connection; the server may have enough before it has them all.
    pub(crate) async fn exchange(&self, identity: Option<&Identity>, request: &str) -> String {
        let mut stream = self.connect_as(identity).await;
        stream.write_all(request.as_bytes()).await.ok();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await.ok();
        String::from_utf8(response).unwrap()
    }

    pub(crate) async fn run(&self, user: &str, arguments: &[&str], input: &str) -> Output {
        let config = self.directory.path().join(format!("{user}.conf"));
        let mut child = Command::new("kubectl")
            .env("HOME", self.directory.path())
            .arg("--kubeconfig")
            .arg(config)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
        child.wait_with_output().await.unwrap()
    }

    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> String {
        self.kubectl_with(arguments, "").await
    }

    pub(crate) async fn kubectl_with(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run("admin", arguments, input).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) async fn kubectl_fails(&self, arguments: &[&str]) -> String {
        self.kubectl_fails_with(arguments, "").await
    }

    pub(crate) async fn kubectl_fails_with(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run("admin", arguments, input).await;
        assert!(!output.status.success(), "kubectl {arguments:?} worked: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    pub(crate) async fn apply(&self, manifest: &str) -> String {
        self.kubectl_with(&["apply", "-f", "-"], manifest).await
    }
}

/// Opens a store; one that was open in a server that has just stopped becomes free in a moment.
async fn open(path: &Path) -> SqliteStore {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match skiff_store::sqlite::open(path, Options::default()) {
            Err(skiff_store::Error::Locked { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            opened => return opened.unwrap(),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.context.shutdown.cancel();
    }
}
