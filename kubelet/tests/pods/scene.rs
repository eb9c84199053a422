//! A kubelet of its own for each test.

use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;
use skiff_cri::fake::FakeRuntime;
use skiff_cri::{ContainerFilter, ContainerState, Runtime as _};

use crate::kubelet::Kubelet;

/// A kubelet that runs, its API and its runtime.
pub(crate) struct Scene {
    kubelet: Kubelet,
    pub(crate) runtime: FakeRuntime,
    pub(crate) dir: tempfile::TempDir,
    /// Whose clients the server trusts.
    pub(crate) authority: skiff_pki::CertificateAuthority,
    pub(crate) port: u16,
    cgroup: String,
}

impl Deref for Scene {
    type Target = Kubelet;

    fn deref(&self) -> &Kubelet {
        &self.kubelet
    }
}

impl DerefMut for Scene {
    fn deref_mut(&mut self) -> &mut Kubelet {
        &mut self.kubelet
    }
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::started(false)
    }

    /// One whose server listens on a port of its own.
    pub(crate) fn with_server() -> Self {
        Self::started(true)
    }

    fn started(server: bool) -> Self {
        let mut scene = Self::idle();
        scene.config.kubelet.enable_server = server;
        scene.start();
        scene
    }

    /// One that is not started yet, to be configured before.
    pub(crate) fn idle() -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        skiff_daemon::install_crypto();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let runtime = FakeRuntime::new();
        runtime.add_image("busybox:1");
        let cgroup = format!("/skiff-kubelet-test-{}-{serial}", std::process::id());
        let base = json!({"containers": [{"name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent"}]});
        let mut kubelet = Kubelet::new(dir.path(), &cgroup, base);
        let authority = skiff_pki::CertificateAuthority::generate("test").expect("an authority");
        let ca_file = dir.path().join("clients.crt");
        std::fs::write(&ca_file, authority.certificate_pem()).expect("a file");
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.expect("a free port").port();
        let config = &mut kubelet.config.kubelet;
        config.address = "127.0.0.1".into();
        config.port = port.into();
        config.authentication.x509.client_ca_file = Some(ca_file);
        config.cluster_domain = "cluster.local".into();
        Self {
            kubelet,
            runtime,
            dir,
            authority,
            port,
            cgroup,
        }
    }

    pub(crate) fn start(&mut self) {
        let runtime = Arc::new(self.runtime.clone());
        self.kubelet.start_on(runtime);
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

    /// Gives the node these taints and no others; makes it where there is none.
    pub(crate) fn taint(&self, taints: &serde_json::Value) {
        let path = "/api/v1/nodes/node-1";
        let bare = || json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}});
        let mut node = self.api.get(path).unwrap_or_else(bare);
        node["spec"] = json!({"taints": taints});
        self.api.put(path, node);
    }

    pub(crate) fn pod_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join("kubelet/pods").join(format!("uid-{name}"))
    }

    pub(crate) fn cgroup(&self, controller: &str) -> PathBuf {
        PathBuf::from(format!("/sys/fs/cgroup/{controller}{}", self.cgroup))
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
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
