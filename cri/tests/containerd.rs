//! The client against a real containerd, started in a directory of the test's own. Containers share the node's network, so that
//! no CNI plugin is needed; each pod has a cgroup below one of the test's own.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures::StreamExt;
use skiff_cri::archive::Builder;
use skiff_cri::containerd::{self, Config};
use skiff_cri::events::{EventKind, Notice};
use skiff_cri::images::{self, Options};
use skiff_cri::{
    Client, ContainerConfig, ContainerFilter, ContainerMetadata, ContainerState, LinuxResources, NamespaceMode,
    Runtime, SandboxConfig, SandboxFilter, SandboxMetadata, SandboxState, logs, pause,
};

const IMAGE: &str = "localhost/test/busybox:1";

/// A running containerd. Dropping it takes everything down that it or its containers made.
struct Node {
    directory: tempfile::TempDir,
    config: Config,
    process: Child,
    cgroup: String,
    client: Client,
}

impl Node {
    async fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("skiff-cri-").tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let config = Config {
            root: at("root"),
            state: at("state"),
            socket: at("containerd.sock"),
            cni_conf_dir: at("cni/net.d"),
            cni_bin_dir: at("cni/bin"),
            registry_dir: at("certs.d"),
            sandbox_image: pause::IMAGE.into(),
            oci_runtime: skiff_cri::containerd::RUNC.to_owned(),
            restrict_oom_score: containerd::must_restrict_oom_score(),
        };
        fs::create_dir_all(&config.cni_conf_dir).unwrap();
        let process = spawn(directory.path(), &config);
        let client = Client::new(config.socket.to_str().unwrap());
        let cgroup = format!("/{}", directory.path().file_name().unwrap().to_str().unwrap());
        let node = Self {
            directory,
            config,
            process,
            cgroup,
            client,
        };
        if let Err(error) = node.client.wait_until_ready(Duration::from_secs(20)).await {
            panic!(
                "{error}: {}",
                fs::read_to_string(node.directory.path().join("log")).unwrap_or_default()
            );
        }
        node
    }

    async fn import(&self, archive: Vec<u8>) -> Vec<images::Imported> {
        let path = self.directory.path().join("image.tar");
        fs::write(&path, archive).unwrap();
        images::import(&self.client, File::open(path).unwrap(), Options { pinned: true })
            .await
            .unwrap()
    }

    async fn import_all(&self) {
        let mut archive = Vec::new();
        pause::write_archive(&mut archive).unwrap();
        self.import(archive).await;
        self.import(busybox("1")).await;
    }

    fn sandbox(&self, name: &str) -> SandboxConfig {
        let mut config = SandboxConfig {
            metadata: SandboxMetadata {
                name: name.into(),
                uid: format!("{name}-uid"),
                namespace: "default".into(),
                attempt: 0,
            },
            log_directory: self.directory.path().join("logs").join(name).to_str().unwrap().into(),
            labels: [("app".to_owned(), name.to_owned())].into(),
            cgroup_parent: self.cgroup.clone(),
            ..Default::default()
        };
        config.security.namespaces.network = NamespaceMode::Node;
        config
    }

    fn container(&self, name: &str, script: &str) -> ContainerConfig {
        let mut config = ContainerConfig {
            metadata: ContainerMetadata {
                name: name.into(),
                attempt: 0,
            },
            image: IMAGE.into(),
            command: vec!["/bin/busybox".into(), "sh".into(), "-c".into(), script.into()],
            envs: vec![("GREETING".into(), "hello".into())],
            log_path: format!("{name}/0.log"),
            ..Default::default()
        };
        config.security.namespaces = self.sandbox(name).security.namespaces;
        config.security.namespaces.pid = NamespaceMode::Container;
        config
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        // The shims go, and with the first process of each pid namespace all that runs in it.
        containerd::kill_shims(&self.config.socket).ok();
        containerd::remove_shim_sockets(&self.config.state);
        for cgroup in cgroups(&self.cgroup) {
            kill_all(&cgroup);
        }
        containerd::unmount_below(self.directory.path()).ok();
        for cgroup in cgroups(&self.cgroup) {
            remove_cgroup(&cgroup);
        }
    }
}

fn spawn(directory: &Path, config: &Config) -> Child {
    let file = directory.join("config.toml");
    fs::write(&file, config.render()).unwrap();
    let log = File::options()
        .create(true)
        .append(true)
        .open(directory.join("log"))
        .unwrap();
    Command::new("containerd")
        .arg("--config")
        .arg(file)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("containerd is installed")
}

/// The test's cgroup in every hierarchy.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .filter_map(Result::ok)
        .map(|entry| entry.path());
    let roots = hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]);
    roots
        .map(|root| root.join(name.trim_matches('/')))
        .filter(|path| path.is_dir())
        .collect()
}

fn kill_all(cgroup: &Path) {
    for child in fs::read_dir(cgroup)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|e| e.path().is_dir())
    {
        kill_all(&child.path());
    }
    for pid in fs::read_to_string(cgroup.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
    {
        let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
    }
}

fn remove_cgroup(cgroup: &Path) {
    for child in fs::read_dir(cgroup)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|e| e.path().is_dir())
    {
        remove_cgroup(&child.path());
    }
    // A killed process leaves its cgroup a moment after it dies.
    for _ in 0..100 {
        if fs::remove_dir(cgroup).is_ok() || !cgroup.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn busybox(version: &str) -> Vec<u8> {
    let mut archive = Vec::new();
    let image = Builder::new(IMAGE)
        .file("/bin/busybox", 0o755, "/bin/busybox")
        .directory("/tmp", 0o1777);
    image.bytes("/version", 0o644, version).write(&mut archive).unwrap();
    archive
}

async fn exit_of(events: &mut (impl StreamExt<Item = Notice> + Unpin), wanted: &str) -> u32 {
    let waiting = async {
        loop {
            match events.next().await.expect("the stream never ends") {
                Notice::Event(event) if event.id == wanted => {
                    if let EventKind::Exited { exit_code, .. } = event.kind {
                        return exit_code;
                    }
                }
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .expect("an exit event")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_writes_and_exits() {
    let node = Node::start().await;
    node.import_all().await;
    let client = &node.client;
    assert_eq!(client.version().await.unwrap().name, "containerd");
    let mut events = client.events();
    assert_eq!(events.next().await, Some(Notice::Connected));

    let sandbox_config = node.sandbox("writer");
    let sandbox = client.run_sandbox(&sandbox_config, "").await.unwrap();
    assert_eq!(
        client.sandbox_status(&sandbox).await.unwrap().state,
        SandboxState::Ready
    );

    let config = node.container("writer", "echo $GREETING; echo oops >&2; exit 3");
    let id = client
        .create_container(&sandbox, &config, &sandbox_config)
        .await
        .unwrap();
    client.start_container(&id).await.unwrap();
    assert_eq!(exit_of(&mut events, &id).await, 3);
    // The record follows the event, when the output is drained and runc has cleaned up.
    let mut status = client.container_status(&id).await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while status.state == ContainerState::Running && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
        status = client.container_status(&id).await.unwrap();
    }
    assert_eq!(
        (status.state, status.exit_code, status.reason.as_str()),
        (ContainerState::Exited, 3, "Error")
    );
    // In no particular order: containerd notes the start after it has happened.
    assert!(status.started_at.is_some() && status.finished_at.is_some());

    let log = PathBuf::from(&status.log_path);
    let chunks: Vec<_> = logs::read(log, logs::Options::default(), std::future::pending())
        .collect()
        .await;
    let text: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.unwrap()).collect();
    let mut lines: Vec<_> = std::str::from_utf8(&text).unwrap().lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["hello", "oops"]);

    let filter = SandboxFilter {
        labels: [("app".to_owned(), "writer".to_owned())].into(),
        ..Default::default()
    };
    assert_eq!(client.list_sandboxes(&filter).await.unwrap().len(), 1);
    client.stop_sandbox(&sandbox).await.unwrap();
    client.remove_sandbox(&sandbox).await.unwrap();
    assert!(
        client
            .list_sandboxes(&SandboxFilter::default())
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        client
            .list_containers(&ContainerFilter::default())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_stop_and_absence() {
    let node = Node::start().await;
    node.import_all().await;
    let client = &node.client;
    let sandbox_config = node.sandbox("sleeper");
    let sandbox = client.run_sandbox(&sandbox_config, "").await.unwrap();
    let mut config = node.container("sleeper", "trap 'exit 7' TERM; while :; do sleep 0.1; done");
    config.resources = LinuxResources {
        memory_limit: 64 << 20,
        cpu_shares: 128,
        ..Default::default()
    };
    let id = client
        .create_container(&sandbox, &config, &sandbox_config)
        .await
        .unwrap();
    client.start_container(&id).await.unwrap();

    let run = async |script: &str, timeout| {
        let command = ["/bin/busybox", "sh", "-c", script].map(str::to_owned);
        client.exec_sync(&id, &command, timeout).await
    };
    let output = run("echo out; echo err >&2; exit 4", Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice(), output.exit_code),
        (b"out\n".as_slice(), b"err\n".as_slice(), 4)
    );
    let late = run("sleep 60", Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(late, skiff_cri::Error::DeadlineExceeded { .. }), "{late:?}");

    let larger = LinuxResources {
        memory_limit: 96 << 20,
        ..Default::default()
    };
    client.update_container_resources(&id, &larger).await.unwrap();
    let stats = client.container_stats(&id).await.unwrap();
    assert!(stats.memory_working_set_bytes > 0 && stats.id == id);
    let exec = skiff_cri::ExecRequest {
        container_id: id.clone(),
        command: vec!["/bin/busybox".into(), "true".into()],
        stdout: true,
        ..Default::default()
    };
    assert!(client.exec(&exec).await.unwrap().starts_with("http://127.0.0.1:"));

    client.stop_container(&id, Duration::from_secs(10)).await.unwrap();
    assert_eq!(client.container_status(&id).await.unwrap().exit_code, 7);
    client.stop_container(&id, Duration::ZERO).await.unwrap();
    client.remove_container(&id).await.unwrap();
    client.remove_container(&id).await.unwrap();
    client.stop_container(&id, Duration::ZERO).await.unwrap();
    assert!(client.container_status(&id).await.unwrap_err().is_not_found());
    client.stop_sandbox("no-such-sandbox").await.unwrap();
    client.remove_sandbox("no-such-sandbox").await.unwrap();
    assert!(client.image_status("localhost/no/such:1").await.unwrap().is_none());
    client.stop_sandbox(&sandbox).await.unwrap();
    client.remove_sandbox(&sandbox).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn images_come_in_once_and_move_their_names() {
    let node = Node::start().await;
    let first = node.import(busybox("1")).await;
    assert_eq!(first[0].name, IMAGE);
    let again = node.import(busybox("1")).await;
    assert_eq!(first, again);
    let image = node.client.image_status(IMAGE).await.unwrap().unwrap();
    assert_eq!(image.repo_tags, [IMAGE]);
    // By id, too: the kubelet creates containers with it.
    assert!(node.client.image_status(&image.id).await.unwrap().is_some());

    node.import(busybox("2")).await;
    let moved = async {
        // The CRI plugin hears of it by an event.
        while node.client.image_status(IMAGE).await.unwrap().unwrap().id == image.id {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), moved).await.unwrap();
    node.client.remove_image(IMAGE).await.unwrap();
    node.client.remove_image(IMAGE).await.unwrap();
    let fs = node.client.image_fs_info().await.unwrap();
    assert!(fs[0].mountpoint.starts_with(node.directory.path().to_str().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_containerd_keeps_containers_and_is_told() {
    let mut node = Node::start().await;
    node.import_all().await;
    let client = node.client.clone();
    let mut events = client.events();
    assert_eq!(events.next().await, Some(Notice::Connected));
    let sandbox_config = node.sandbox("survivor");
    let sandbox = client.run_sandbox(&sandbox_config, "").await.unwrap();
    let config = node.container("survivor", "while :; do sleep 1; done");
    let id = client
        .create_container(&sandbox, &config, &sandbox_config)
        .await
        .unwrap();
    client.start_container(&id).await.unwrap();

    node.process.kill().unwrap();
    node.process.wait().unwrap();
    assert!(client.status().await.unwrap_err().is_unreachable());
    while !matches!(events.next().await.unwrap(), Notice::Lost { .. }) {}
    node.process = spawn(node.directory.path(), &node.config);
    client.wait_until_ready(Duration::from_secs(20)).await.unwrap();
    while events.next().await.unwrap() != Notice::Connected {}
    assert_eq!(
        client.container_status(&id).await.unwrap().state,
        ContainerState::Running
    );

    client.stop_sandbox(&sandbox).await.unwrap();
    assert_eq!(exit_of(&mut events, &id).await, 137);
    client.remove_sandbox(&sandbox).await.unwrap();
}
