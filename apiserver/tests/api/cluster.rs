//! A server on loopback with its own SQLite store and certificates, and the real kubectl.

use std::process::{Output, Stdio};
use std::sync::Arc;

use skiff_apiserver::{ApiServer, Config};
use skiff_daemon::Context;
use skiff_pki::{CertificateAuthority, Request, ServiceAccountKey};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::process::Command;

pub struct Cluster {
    pub server: ApiServer,
    pub url: String,
    pub authority: CertificateAuthority,
    pub context: Context,
    directory: tempfile::TempDir,
}

impl Cluster {
    pub async fn start() -> Self {
        skiff_daemon::install_crypto();
        let directory = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        let loopback: std::net::IpAddr = [127, 0, 0, 1].into();
        let identity = authority
            .issue(&Request::server("kube-apiserver", &["localhost"], &[loopback]))
            .unwrap();
        let kubelet_client = authority
            .issue(&Request::client("kube-apiserver-kubelet-client", &["system:masters"]))
            .unwrap();
        let listener = TcpListener::bind((loopback, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let store = skiff_store::sqlite::open(
            directory.path().join("state.db"),
            skiff_store::sqlite::Options::default(),
        )
        .unwrap();
        let config = Config {
            identity,
            client_ca_pem: authority.certificate_pem().to_owned(),
            service_cluster_ip_range: "10.96.0.0/12".parse().unwrap(),
            node_port_range: 30000..=32767,
            service_account_key: ServiceAccountKey::generate().unwrap(),
            service_account_issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            advertise_address: "198.51.100.1".parse().unwrap(),
            advertise_port: port,
            kubelet_client: Some(kubelet_client),
            kubelet_ca_pem: None,
        };
        let context = Context::default();
        let server = ApiServer::start(config, Arc::new(store), context.clone())
            .await
            .unwrap();
        let serving = server.clone();
        tokio::spawn(async move { serving.serve(vec![listener]).await });
        let cluster = Self {
            server,
            url: format!("https://127.0.0.1:{port}"),
            authority,
            context,
            directory,
        };
        cluster.kubeconfig("admin", &["system:masters"]);
        cluster
    }

    /// Writes a kubeconfig for a user; returns its path.
    pub fn kubeconfig(&self, user: &str, groups: &[&str]) -> String {
        let identity = self.authority.issue(&Request::client(user, groups)).unwrap();
        let path = self.directory.path().join(format!("{user}.conf"));
        let config =
            skiff_pki::Kubeconfig::embedded("skiff", &self.url, self.authority.certificate_pem(), user, &identity);
        config.write(&path).unwrap();
        path.display().to_string()
    }

    pub async fn run(&self, user: &str, arguments: &[&str], input: &str) -> Output {
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

    pub async fn kubectl(&self, arguments: &[&str]) -> String {
        self.kubectl_with(arguments, "").await
    }

    pub async fn kubectl_with(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run("admin", arguments, input).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub async fn kubectl_fails(&self, arguments: &[&str]) -> String {
        self.kubectl_fails_with(arguments, "").await
    }

    pub async fn kubectl_fails_with(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run("admin", arguments, input).await;
        assert!(!output.status.success(), "kubectl {arguments:?} worked: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    pub async fn apply(&self, manifest: &str) -> String {
        self.kubectl_with(&["apply", "-f", "-"], manifest).await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.context.shutdown.cancel();
    }
}
