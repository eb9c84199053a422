//! `skiff server` on etcd instead of SQLite: the same cluster, also for a server that comes after a killed one.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use skiff_pki::{CertificateAuthority, Kubeconfig, Request, ServiceAccountKey};
use skiff_tests::wait::until;
use skiff_tests::{Kubectl, binary};

const LIMIT: Duration = Duration::from_secs(30);
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((LOCALHOST, 0))?.local_addr()?.port())
}

fn start_etcd(directory: &Path) -> anyhow::Result<(Process, String)> {
    let [client, peer] = [free_port()?, free_port()?].map(|port| format!("http://127.0.0.1:{port}"));
    let process = Command::new("etcd")
        .arg(format!("--data-dir={}", directory.join("etcd").display()))
        .args([
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
        ])
        .args([
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
        ])
        .arg(format!("--initial-cluster=default={peer}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start etcd (packaging/deps.sh test installs it)")?;
    Ok((Process(process), client))
}

/// Certificates, a kubeconfig and the server's file.
fn prepare(directory: &Path, port: u16) -> anyhow::Result<Kubectl> {
    let pki = directory.join("pki");
    let authority = CertificateAuthority::generate("kubernetes")?;
    authority.save(&pki, "ca")?;
    ServiceAccountKey::load_or_generate(&pki)?;
    let server = Request::server("kube-apiserver", &["kubernetes", "localhost"], &[LOCALHOST]);
    authority.load_or_issue(&pki, "apiserver", &server)?;
    let admin = Request::client("kubernetes-admin", &["system:masters"]);
    let identity = authority.load_or_issue(&pki, "admin", &admin)?;
    let kubeconfig = directory.join("admin.conf");
    let url = format!("https://127.0.0.1:{port}");
    Kubeconfig::embedded("etcd", &url, authority.certificate_pem(), "admin", &identity).write(&kubeconfig)?;
    let config = serde_json::json!({
        "apiVersion": "config.skiff/v1alpha1", "kind": "ServerConfiguration",
        "dataDir": directory.join("data"), "pkiDir": pki,
        "bindAddress": "127.0.0.1", "advertiseAddress": "192.0.2.1", "securePort": port,
        "dns": {"enabled": false},
    });
    std::fs::write(directory.join("server.yaml"), config.to_string())?;
    Ok(Kubectl::new(kubeconfig))
}

fn start_server(directory: &Path, etcd: &str) -> anyhow::Result<Process> {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(directory.join("server.log"))?;
    let process = Command::new(binary()?)
        .arg("server")
        .arg("--config")
        .arg(directory.join("server.yaml"))
        .arg(format!("--etcd-servers={etcd}"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    Ok(Process(process))
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_in_etcd_and_outlives_the_server() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let (_etcd, url) = start_etcd(directory.path())?;
    let kubectl = prepare(directory.path(), free_port()?)?;
    let server = start_server(directory.path(), &url)?;
    let ready = async || kubectl.run(&["get", "--raw", "/readyz"]);
    let explain = || std::fs::read_to_string(directory.path().join("server.log")).unwrap_or_default();
    until("the server is ready", LIMIT, ready, |text| text == "ok")
        .await
        .with_context(explain)?;

    kubectl.run(&[
        "create",
        "deployment",
        "web",
        "--image=example.local/web:1",
        "--replicas=3",
    ])?;
    let pods = async || kubectl.field(&["pods", "-l", "app=web"], "{.items[*].metadata.name}");
    let three = |names: &String| names.split_whitespace().count() == 3;
    let before = until("the controllers work", LIMIT, pods, three)
        .await
        .with_context(explain)?;

    drop(server);
    let _server = start_server(directory.path(), &url)?;
    until("the next server is ready", LIMIT, ready, |text| text == "ok")
        .await
        .with_context(explain)?;
    assert_eq!(pods().await?, before);
    kubectl.run(&["delete", "deployment", "web"])?;
    until("the controllers work on", LIMIT, pods, String::is_empty)
        .await
        .with_context(explain)?;
    assert!(
        !directory.path().join("data/state.db").exists(),
        "nothing is kept in SQLite"
    );
    Ok(())
}
