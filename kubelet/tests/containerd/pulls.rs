//! Pulls from a real registry (Debian's docker-registry) on loopback: by tag and by digest, with and without credentials, several at
//! once, through a registry name that only `hosts.toml` knows.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use skiff_cri::Runtime as _;
use tokio::time::Instant;

use crate::kubelet::Kubelet;
use crate::node::Node;
use crate::{container, is_ready};

/// `user` with the password `secret`, as `htpasswd -B` writes it.
const USERS: &str = "user:$2b$04$eUUsA7TKPB1qV0qfPPA5L.kdvUS/ftXjWSQ5NVmLUKClMmAKbZIIe\n";
/// A name that no resolver knows.
const REGISTRY: &str = "registry.test:5000";

/// A registry of the test's own; it ends with the test.
struct Registry {
    process: Child,
    port: u16,
}

impl Registry {
    fn start(directory: &Path, with_users: bool) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.expect("a free port").port();
        std::fs::create_dir_all(directory).expect("a directory");
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n",
            directory.join("data").display()
        );
        if with_users {
            let users = directory.join("users");
            std::fs::write(&users, USERS).expect("a file");
            config.push_str(&format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                users.display()
            ));
        }
        let file = directory.join("config.yml");
        std::fs::write(&file, config).expect("a file");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { process, port }
    }

    /// Lets containerd reach it as [`REGISTRY`].
    fn name_for(&self, node: &Node) {
        let dir = node.path_of("certs.d").join(REGISTRY);
        std::fs::create_dir_all(&dir).expect("a directory");
        let server = format!("http://127.0.0.1:{}", self.port);
        let hosts = format!("server = \"{server}\"\n\n[host.\"{server}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
        std::fs::write(dir.join("hosts.toml"), hosts).expect("a file");
    }

    /// Puts an image of the node into it; returns its digest. The node keeps nothing of it.
    async fn push(&self, node: &Node, name: &str, credentials: Option<&str>) -> String {
        let tag = format!("127.0.0.1:{}/{name}", self.port);
        let digest = node.add_image(&tag, name, false).await;
        let mut push = ctr(node);
        push.args(["images", "push", "--plain-http"]);
        push.args(credentials.into_iter().flat_map(|user| ["--user", user]));
        let output = push.arg(&tag).output().expect("ctr is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let image = node
            .runtime()
            .image_status(&tag)
            .await
            .expect("an answer")
            .expect("the image");
        node.runtime().remove_image(&image.id).await.expect("a removal");
        digest
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn ctr(node: &Node) -> Command {
    let mut command = Command::new("ctr");
    command
        .arg("--address")
        .arg(node.socket())
        .args(["--namespace", "k8s.io"]);
    command
}

fn pod(image: &str, policy: &str) -> Value {
    let mut spec = container("/bin/busybox sleep 1000");
    spec["image"] = image.into();
    spec["imagePullPolicy"] = policy.into();
    json!({"containers": [spec]})
}

#[tokio::test]
async fn images_are_pulled_by_tag_and_digest_several_at_once() {
    let mut node = Node::without_kubelet().await;
    node.config.kubelet.serialize_image_pulls = false;
    node.config.kubelet.max_parallel_image_pulls = Some(2);
    let registry = Registry::start(&node.path_of("registry"), false);
    registry.name_for(&node);
    let digest = registry.push(&node, "test/a:1", None).await;
    registry.push(&node, "test/b:1", None).await;
    registry.push(&node, "test/c:1", None).await;
    node.start_kubelet();
    let tag = |name: &str| format!("{REGISTRY}/test/{name}");
    node.create("by-tag", &pod(&tag("a:1"), "IfNotPresent"));
    node.create(
        "by-digest",
        &pod(&format!("{REGISTRY}/test/a@{digest}"), "IfNotPresent"),
    );
    node.create("other", &pod(&tag("b:1"), "Always"));
    node.create("third", &pod(&tag("c:1"), "IfNotPresent"));
    node.create("absent", &pod(&tag("absent:1"), "IfNotPresent"));
    for name in ["by-tag", "by-digest", "other", "third"] {
        let status = node.until_status(name, "ready pod", is_ready).await;
        let id = status["containerStatuses"][0]["imageID"].as_str().unwrap_or_default();
        assert!(id.contains("@sha256:"), "{name}: {status}");
    }
    let waits = |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"] == "ImagePullBackOff";
    let status = node.until_status("absent", "back-off", waits).await;
    let message = status["containerStatuses"][0]["state"]["waiting"]["message"].clone();
    assert!(
        message
            .as_str()
            .is_some_and(|text| text.starts_with("Back-off pulling image") && text.contains("not found")),
        "{message}"
    );
    let events = node.api.events();
    let pulled = events
        .iter()
        .find(|event| event.starts_with(&format!("Pulled: Successfully pulled image \"{}\" in ", tag("b:1"))));
    let pulled = pulled.unwrap_or_else(|| panic!("no word of the pull in {events:?}"));
    assert!(
        pulled.contains(" including waiting). Image size: ") && pulled.ends_with(" bytes."),
        "{pulled}"
    );
}

#[tokio::test]
async fn a_registry_that_asks_for_credentials_gets_those_of_the_pod() {
    let mut node = Node::without_kubelet().await;
    let registry = Registry::start(&node.path_of("registry"), true);
    registry.name_for(&node);
    registry.push(&node, "private/a:1", Some("user:secret")).await;
    node.start_kubelet();
    let secret = |password: &str| {
        let config = json!({"auths": {REGISTRY: {"username": "user", "password": password}}});
        let data = base64_of(config.to_string().as_bytes());
        json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": data}})
    };
    for (name, password) in [("good", "secret"), ("bad", "wrong")] {
        let mut object = secret(password);
        object["metadata"] = json!({"name": name, "namespace": "ns"});
        node.api.put(&format!("/api/v1/namespaces/ns/secrets/{name}"), object);
    }
    let image = format!("{REGISTRY}/private/a:1");
    let with = |names: &[&str]| {
        let mut spec = pod(&image, "Always");
        let secrets: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        spec["imagePullSecrets"] = secrets.into();
        spec
    };
    node.create("without", &with(&[]));
    node.create("wrong", &with(&["bad"]));
    let refused = |status: &Value| {
        let reason = &status["containerStatuses"][0]["state"]["waiting"]["reason"];
        reason == "ErrImagePull" || reason == "ImagePullBackOff"
    };
    for name in ["without", "wrong"] {
        let status = node.until_status(name, "refusal", refused).await;
        assert!(
            !status.to_string().contains("wrong\""),
            "no password is shown: {status}"
        );
    }
    // Each of the pod's secrets is tried until one lets it in.
    node.create("right", &with(&["bad", "good"]));
    node.until_status("right", "ready pod", is_ready).await;
    // After the pod's own, those that the node has for everybody.
    let auth = base64_of(b"user:secret");
    let config = json!({"auths": {REGISTRY: {"auth": auth.trim_end_matches('=')}}});
    std::fs::write(node.config.flags.root_dir.join("config.json"), config.to_string()).expect("a file");
    node.create("by-node", &with(&["bad"]));
    node.until_status("by-node", "ready pod", is_ready).await;
}

/// Writes until nothing more fits but this much.
fn fill(path: &Path, free: u64) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).expect("a file");
    let mut written = 0;
    for block in [1 << 20, 4 << 10] {
        let zeros = vec![0; block];
        while file.write_all(&zeros).is_ok() {
            written += u64::try_from(block).expect("a length");
        }
    }
    file.set_len(written.saturating_sub(free)).expect("a shorter file");
}

/// What runs goes on, what must be pulled says why it does not come, and comes when there is room.
#[tokio::test]
async fn a_full_image_disk_is_told_and_outlived() {
    let mut node = Node::with_image_disk("64m").await;
    let registry = Registry::start(&node.path_of("registry"), false);
    registry.name_for(&node);
    registry.push(&node, "test/late:1", None).await;
    node.start_kubelet();
    node.create("early", &json!({"containers": [container("/bin/busybox sleep 1000")]}));
    node.until_ready("early").await;
    let filler = node.path_of("root/filler");
    fill(&filler, 1 << 20);
    node.create("late", &pod(&format!("{REGISTRY}/test/late:1"), "IfNotPresent"));
    node.api
        .until("word of the full disk", |api| {
            let full = |event: &String| event.contains("no space left on device");
            api.events().iter().any(full).then_some(())
        })
        .await;
    let status = |name: &str| node.api.get(&Kubelet::path(name)).expect("the pod")["status"].clone();
    assert_eq!(status("late")["phase"], "Pending");
    assert!(is_ready(&status("early")) && status("early")["containerStatuses"][0]["restartCount"] == 0);
    std::fs::remove_file(&filler).expect("a removal");
    node.until_ready("late").await;
    for name in ["early", "late"] {
        node.delete(name, 1);
        node.until_gone(name).await;
    }
    assert_eq!(node.leftovers().await, Vec::<String>::new());
}

fn base64_of(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
