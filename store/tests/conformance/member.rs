//! Real etcd servers on loopback, each with a directory of its own, ended with the test. The end-to-end suites use them too.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rand::RngExt as _;

/// Below the range that the kernel gives outgoing connections from.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// One of loopback's that nobody listens on.
pub(crate) fn free_port() -> u16 {
    loop {
        let port = rand::rng().random_range(PORTS);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// One member.
#[derive(Debug)]
pub(crate) struct Member {
    name: String,
    data: PathBuf,
    scheme: &'static str,
    host: IpAddr,
    client: u16,
    peer: u16,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Member {
    pub(crate) fn new(directory: &Path, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            data: directory.join(name),
            scheme: "http",
            host: Ipv4Addr::LOCALHOST.into(),
            client: free_port(),
            peer: free_port(),
            arguments: Vec::new(),
            process: None,
        }
    }

    /// Serves clients by TLS, and only those that have a certificate of the authority.
    pub(crate) fn with_tls(mut self, ca: &Path, certificate: &Path, key: &Path) -> Self {
        self.scheme = "https";
        self.arguments = [("trusted-ca-file", ca), ("cert-file", certificate), ("key-file", key)]
            .map(|(flag, path)| format!("--{flag}={}", path.display()))
            .to_vec();
        self.arguments.push("--client-cert-auth".to_owned());
        self
    }

    /// Listens at another address than loopback's.
    pub(crate) fn at(mut self, host: IpAddr) -> Self {
        self.host = host;
        self
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}:{}", self.scheme, self.host, self.client)
    }

    /// Where clients come to.
    pub(crate) fn clients(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.client)
    }

    fn peer_url(&self) -> String {
        format!("http://{}:{}", self.host, self.peer)
    }

    /// `NAME=PEER_URL`, by which members know each other.
    pub(crate) fn introduction(&self) -> String {
        format!("{}={}", self.name, self.peer_url())
    }

    /// What runs it, in a cluster of these.
    pub(crate) fn command(&self, cluster: &[String]) -> Command {
        let flag = |name: &str, value: &str| format!("--{name}={value}");
        let mut command = Command::new("etcd");
        command
            .arg(flag("name", &self.name))
            .arg(flag("data-dir", &self.data.display().to_string()))
            .arg(flag("listen-client-urls", &self.url()))
            .arg(flag("advertise-client-urls", &self.url()))
            .arg(flag("listen-peer-urls", &self.peer_url()))
            .arg(flag("initial-advertise-peer-urls", &self.peer_url()))
            .arg(flag("initial-cluster", &cluster.join(",")))
            .args(["--logger=zap", "--log-level=error"])
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    pub(crate) fn start(&mut self, cluster: &[String]) {
        let process = self.command(cluster).spawn();
        self.process = Some(process.expect("etcd is installed (packaging/deps.sh test)"));
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}
