//! A containerd and a kubelet of the test's own.

use std::fs::{self, File};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use skiff_cri::archive::Builder;
use skiff_cri::containerd::{self, Config as Containerd};
use skiff_cri::images::{self, Options};
use skiff_cri::{Client, Runtime as _, pause};

use crate::kubelet::Kubelet;

pub(crate) const IMAGE: &str = "localhost/test/busybox:1";

/// Dropping it takes everything down that it or its containers made.
pub(crate) struct Node {
    kubelet: Kubelet,
    directory: tempfile::TempDir,
    containerd: Containerd,
    process: Child,
    client: Client,
    cgroup: String,
}

impl Deref for Node {
    type Target = Kubelet;

    fn deref(&self) -> &Kubelet {
        &self.kubelet
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Kubelet {
        &mut self.kubelet
    }
}

impl Node {
    pub(crate) async fn start() -> Self {
        let mut node = Self::without_kubelet().await;
        node.start_kubelet();
        node
    }

    /// A containerd with its images; the kubelet may be configured before it starts.
    pub(crate) async fn without_kubelet() -> Self {
        Self::build(None).await
    }

    /// One whose images and containers lie on a file system of this size (`64m`).
    pub(crate) async fn with_image_disk(size: &str) -> Self {
        Self::build(Some(size)).await
    }

    async fn build(image_disk: Option<&str>) -> Self {
        skiff_daemon::install_crypto();
        let directory = tempfile::Builder::new()
            .prefix("skiff-kubelet-")
            .tempdir()
            .expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let containerd = Containerd {
            root: at("root"),
            state: at("state"),
            socket: at("containerd.sock"),
            cni_conf_dir: at("cni/net.d"),
            cni_bin_dir: at("cni/bin"),
            registry_dir: at("certs.d"),
            sandbox_image: pause::IMAGE.into(),
            oci_runtime: containerd::RUNC.into(),
            restrict_oom_score: containerd::must_restrict_oom_score(),
        };
        fs::create_dir_all(&containerd.cni_conf_dir).expect("a directory");
        // Never used, since pods share the node's network; but without one the runtime's network is not ready.
        let network = json!({"cniVersion": "0.4.0", "name": "test", "plugins": [{"type": "loopback"}]});
        fs::write(containerd.cni_conf_dir.join("10-test.conflist"), network.to_string()).expect("a file");
        if let Some(size) = image_disk {
            fs::create_dir_all(&containerd.root).expect("a directory");
            let (flags, options) = (nix::mount::MsFlags::empty(), format!("size={size}"));
            let options = Some(options.as_str());
            nix::mount::mount(Some("tmpfs"), &containerd.root, Some("tmpfs"), flags, options).expect("a tmpfs");
        }
        let process = spawn(directory.path(), &containerd);
        let socket = containerd.socket.to_string_lossy().into_owned();
        let client = Client::new(&socket);
        let cgroup = format!(
            "/{}",
            directory.path().file_name().unwrap_or_default().to_string_lossy()
        );
        // Pods on the node's network need no CNI plugin.
        let base = json!({"hostNetwork": true, "terminationGracePeriodSeconds": 1});
        let node = Self {
            kubelet: Kubelet::new(directory.path(), &cgroup, base),
            directory,
            containerd,
            process,
            client,
            cgroup,
        };
        if let Err(error) = node.client.wait_until_ready(Duration::from_secs(30)).await {
            panic!(
                "{error}: {}",
                fs::read_to_string(node.directory.path().join("log")).unwrap_or_default()
            );
        }
        node.import().await;
        node
    }

    async fn import(&self) {
        let path = self.directory.path().join("pause.tar");
        pause::write_archive(File::create(&path).expect("a file")).expect("an archive");
        self.import_archive(&path, true).await;
        self.add_image(IMAGE, "", true).await;
    }

    async fn import_archive(&self, path: &Path, pinned: bool) -> String {
        let file = File::open(path).expect("a file");
        let imported = images::import(&self.client, file, Options { pinned }).await;
        let mut imported = imported.expect("an import");
        imported.pop().expect("one image").digest
    }

    /// Imports an image with busybox in it; another `content` makes it another image. Returns its digest.
    pub(crate) async fn add_image(&self, name: &str, content: &str, pinned: bool) -> String {
        let path = self.directory.path().join("image.tar");
        Builder::new(name)
            .file("/bin/busybox", 0o755, "/bin/busybox")
            .directory("/tmp", 0o777)
            .link("/bin/sh", "busybox")
            .bytes("/content", 0o644, content.as_bytes())
            .write(File::create(&path).expect("a file"))
            .expect("an archive; is busybox-static installed?");
        self.import_archive(&path, pinned).await
    }

    pub(crate) fn runtime(&self) -> &Client {
        &self.client
    }

    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What containerd names its socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.containerd.socket
    }

    /// SIGSTOP, SIGCONT and the like for containerd.
    pub(crate) fn signal_containerd(&self, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.process.id()).expect("a process id");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("a process of ours");
    }

    /// Ends containerd with SIGKILL; its shims and their containers go on.
    pub(crate) fn stop_containerd(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }

    pub(crate) fn start_containerd(&mut self) {
        self.process = spawn(self.directory.path(), &self.containerd);
    }

    pub(crate) fn start_kubelet(&mut self) {
        let runtime = Arc::new(self.client.clone());
        self.kubelet.start_on(runtime);
    }

    pub(crate) fn cgroup(&self, controller: &str) -> PathBuf {
        PathBuf::from(format!("/sys/fs/cgroup/{controller}{}", self.cgroup))
    }

    /// Takes all sandboxes with their containers away, as a reboot does where the runtime keeps no records.
    pub(crate) async fn forget_pods(&self) {
        let sandboxes = self
            .client
            .list_sandboxes(&skiff_cri::SandboxFilter::default())
            .await
            .expect("a list");
        for sandbox in sandboxes {
            self.client.stop_sandbox(&sandbox.id).await.expect("a stop");
            self.client.remove_sandbox(&sandbox.id).await.expect("a removal");
        }
    }

    /// SIGKILL for the processes of one container.
    pub(crate) fn kill_container(&self, pod: &str, id: &str) {
        kill_all(&self.cgroup("memory").join(pod).join(id));
    }

    /// What pods have left behind on this node.
    pub(crate) async fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        let sandboxes = self
            .client
            .list_sandboxes(&skiff_cri::SandboxFilter::default())
            .await
            .expect("a list");
        left.extend(
            sandboxes
                .into_iter()
                .map(|sandbox| format!("sandbox {}", sandbox.metadata.name)),
        );
        for dir in [
            self.config.flags.root_dir.join("pods"),
            self.config.kubelet.pod_logs_dir.clone(),
        ] {
            let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
            left.extend(entries.map(|entry| entry.path().display().to_string()));
        }
        for root in hierarchies(&self.cgroup) {
            for class in ["kubepods", "kubepods/burstable", "kubepods/besteffort"] {
                let entries = fs::read_dir(root.join(class))
                    .into_iter()
                    .flatten()
                    .filter_map(Result::ok);
                let pods = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("pod"));
                left.extend(pods.map(|entry| entry.path().display().to_string()));
            }
        }
        left
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        // The shims go, and with the first process of each pid namespace all that runs in it.
        containerd::kill_shims(&self.containerd.socket).ok();
        containerd::remove_shim_sockets(&self.containerd.state);
        for cgroup in hierarchies(&self.cgroup) {
            kill_all(&cgroup);
        }
        containerd::unmount_below(self.directory.path()).ok();
        for cgroup in hierarchies(&self.cgroup) {
            remove_cgroup(&cgroup);
        }
    }
}

fn spawn(directory: &Path, config: &Containerd) -> Child {
    let file = directory.join("config.toml");
    fs::write(&file, config.render()).expect("a file");
    let log = File::options()
        .create(true)
        .append(true)
        .open(directory.join("log"))
        .expect("a file");
    Command::new("containerd")
        .arg("--config")
        .arg(file)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a file"))
        .stderr(log)
        .spawn()
        .expect("containerd is installed")
}

/// The test's cgroup in every hierarchy.
fn hierarchies(name: &str) -> Vec<PathBuf> {
    let mounts = fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path());
    mounts
        .map(|mount| mount.join(name.trim_matches('/')))
        .filter(|path| path.is_dir())
        .collect()
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path());
    entries.filter(|path| path.is_dir()).collect()
}

fn kill_all(cgroup: &Path) {
    children(cgroup).iter().for_each(|child| kill_all(child));
    for pid in fs::read_to_string(cgroup.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
    {
        if let Ok(pid) = pid.parse() {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).ok();
        }
    }
}

fn remove_cgroup(cgroup: &Path) {
    children(cgroup).iter().for_each(|child| remove_cgroup(child));
    for _ in 0..100 {
        match fs::remove_dir(cgroup) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                std::thread::sleep(Duration::from_millis(10))
            }
            _ => return,
        }
    }
}
