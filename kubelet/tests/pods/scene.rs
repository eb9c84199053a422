//! A kubelet of its own for each test.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use skiff_cri::fake::FakeRuntime;
use skiff_cri::{ContainerFilter, ContainerState, Runtime as _};
use skiff_daemon::{Context, Shutdown};
use skiff_kubelet::{Config, Flags};

use crate::api::Api;

/// A kubelet that runs, its API and its runtime.
pub(crate) struct Scene {
    pub(crate) api: Api,
    pub(crate) runtime: FakeRuntime,
    pub(crate) dir: tempfile::TempDir,
    /// Whose clients the server trusts.
    pub(crate) authority: skiff_pki::CertificateAuthority,
    pub(crate) port: u16,
    config: Config,
    shutdown: Shutdown,
    kubelet: Option<tokio::task::JoinHandle<()>>,
    cgroup: String,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::make(false)
    }

    /// One whose server listens on a port of its own.
    pub(crate) fn with_server() -> Self {
        Self::make(true)
    }

    fn make(server: bool) -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        skiff_daemon::install_crypto();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let runtime = FakeRuntime::new();
        runtime.add_image("busybox:1");
        let cgroup = format!("/skiff-kubelet-test-{}-{serial}", std::process::id());
        let mut config = Config {
            flags: Flags {
                hostname_override: Some("node-1".into()),
                node_ips: vec![std::net::Ipv4Addr::LOCALHOST.into()],
                root_dir: dir.path().join("kubelet"),
                ..Flags::default()
            },
            ..Config::default()
        };
        config.kubelet.pod_logs_dir = dir.path().join("logs");
        config.kubelet.cgroup_root.clone_from(&cgroup);
        let authority = skiff_pki::CertificateAuthority::generate("test").expect("an authority");
        let ca_file = dir.path().join("clients.crt");
        std::fs::write(&ca_file, authority.certificate_pem()).expect("a file");
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.expect("a free port").port();
        config.kubelet.enable_server = server;
        config.kubelet.address = "127.0.0.1".into();
        config.kubelet.port = port.into();
        config.kubelet.authentication.x509.client_ca_file = Some(ca_file);
        config.kubelet.healthz_port = 0;
        config.kubelet.cluster_domain = "cluster.local".into();
        let mut scene = Self {
            api: Api::new(),
            runtime,
            dir,
            authority,
            port,
            config,
            shutdown: Shutdown::new(),
            kubelet: None,
            cgroup,
        };
        scene.start();
        scene
    }

    pub(crate) fn start(&mut self) {
        self.shutdown = Shutdown::new();
        let daemon = Context {
            shutdown: self.shutdown.clone(),
            ..Context::default()
        };
        let runtime = Arc::new(self.runtime.clone());
        let kubelet = skiff_kubelet::run_with(self.config.clone(), self.api.client(), runtime, daemon);
        self.kubelet = Some(tokio::spawn(async move { kubelet.await.expect("a kubelet that runs") }));
    }

    /// Ends the kubelet as SIGKILL does: nothing is tidied.
    pub(crate) async fn kill(&mut self) {
        self.shutdown.cancel();
        if let Some(kubelet) = self.kubelet.take() {
            kubelet.await.ok();
        }
    }

    pub(crate) fn path(name: &str) -> String {
        format!("/api/v1/namespaces/ns/pods/{name}")
    }

    /// Creates a pod bound to this node.
    pub(crate) fn create(&self, name: &str, spec: &Value) {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}"), "generation": 1,
                         "labels": {"app": name}},
            "spec": {
                "nodeName": "node-1",
                "containers": [{"name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent"}],
            },
            "status": {"phase": "Pending"},
        });
        for (key, value) in spec.as_object().into_iter().flatten() {
            pod["spec"][key] = value.clone();
        }
        self.api.put(&Self::path(name), pod);
    }

    /// What `kubectl delete` does.
    pub(crate) fn delete(&self, name: &str, grace: i64) {
        self.api.edit(&Self::path(name), |pod| {
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            pod["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        });
    }

    pub(crate) async fn until_status(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let find = |api: &Api| {
            api.get(&Self::path(name))
                .map(|pod| pod["status"].clone())
                .filter(|status| holds(status))
        };
        self.api.until(what, find).await
    }

    pub(crate) async fn until_ready(&self, name: &str) -> Value {
        self.until_status(name, "Ready pod", is_ready).await
    }

    pub(crate) async fn until_gone(&self, name: &str) {
        self.api
            .until("end of the pod", |api| {
                api.get(&Self::path(name)).is_none().then_some(())
            })
            .await;
    }

    pub(crate) async fn until_event(&self, text: &str) {
        self.api
            .until(&format!("event {text:?}"), |api| {
                api.events().contains(&text.to_owned()).then_some(())
            })
            .await;
    }

    /// Ids of the running containers of a name.
    pub(crate) async fn running(&self, name: &str) -> Vec<String> {
        let filter = ContainerFilter {
            state: Some(ContainerState::Running),
            ..ContainerFilter::default()
        };
        let all = self.runtime.list_containers(&filter).await.expect("a list");
        all.into_iter()
            .filter(|container| container.metadata.name == name)
            .map(|container| container.id)
            .collect()
    }

    pub(crate) fn pod_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join("kubelet/pods").join(format!("uid-{name}"))
    }

    pub(crate) fn cgroup(&self, controller: &str) -> PathBuf {
        PathBuf::from(format!("/sys/fs/cgroup/{controller}{}", self.cgroup))
    }
}

pub(crate) fn is_ready(status: &Value) -> bool {
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    conditions
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(kubelet) = &self.kubelet {
            kubelet.abort();
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = |line: &&str| {
            line.split(' ')
                .nth(4)
                .is_some_and(|mount| mount.starts_with(&*self.dir.path().to_string_lossy()))
        };
        for line in mounts.lines().filter(own) {
            nix::mount::umount(line.split(' ').nth(4).unwrap_or_default()).ok();
        }
        for controller in ["cpu", "memory", "pids"] {
            remove(&self.cgroup(controller));
        }
    }
}

fn remove(dir: &std::path::Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        if entry.path().is_dir() {
            remove(&entry.path());
        }
    }
    std::fs::remove_dir(dir).ok();
}
