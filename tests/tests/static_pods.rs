//! Static pods, and the mirrors that show them, over a node that goes down and comes up again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use skiff_tests::home::Home;
use skiff_tests::wait::until;
use skiff_tests::{Kubectl, binary, build_images};

const LIMIT: Duration = Duration::from_secs(60);
const POD: &str = "web-node-1";

fn manifest(words: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: web, namespace: kube-system, labels: {{app: web}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: docker.io/library/busybox:1.36
    imagePullPolicy: Never
    command: [sh, -c, 'echo {words}; while true; do sleep 1; done']
"
    )
}

/// Starts the cluster; returns its `kubectl`.
fn up(home: &Home, images: &Path) -> anyhow::Result<Kubectl> {
    let name = home.names[0].as_str();
    home.ok(&["up", "--name", name, "--images", images.to_str().context("text")?])?;
    Ok(Kubectl::new(PathBuf::from(
        home.ok(&["kubeconfig", "--name", name])?.trim(),
    )))
}

async fn until_pod(kubectl: &Kubectl, what: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    let look = async || kubectl.get(&["pod", "-n", "kube-system", POD]);
    until(what, LIMIT, look, wanted).await
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_pod_runs_again_after_its_node_was_down() -> anyhow::Result<()> {
    let home = Home::new(&["static"])?;
    let images = home.path().join("archives");
    build_images(&binary()?, &images)?;
    let kubectl = up(&home, &images)?;
    let node = home.path().join("clusters").join(&home.names[0]).join("nodes/node-1");
    let file = node.join("manifests/web.yaml");
    std::fs::write(&file, manifest("first"))?;
    let first = until_pod(&kubectl, "a mirror that is ready", is_ready).await?;
    assert_eq!(first["metadata"]["ownerReferences"][0]["kind"], "Node", "{first:#}");
    assert_eq!(first["metadata"]["annotations"]["kubernetes.io/config.source"], "file");
    assert_eq!(kubectl.run(&["logs", "-n", "kube-system", POD])?, "first\n");

    // Nobody ends a static pod through the API. The next mirror may come sooner than kubectl begins to wait for the first one's end:
    // it would wait for ever.
    kubectl.run(&["delete", "pod", "-n", "kube-system", POD, "--now", "--wait=false"])?;
    let container = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    let again = until_pod(&kubectl, "another mirror", |pod| {
        is_ready(pod) && pod["metadata"]["uid"] != first["metadata"]["uid"]
    })
    .await?;
    assert_eq!(container(&again), container(&first), "the same container runs on");

    // The machine goes down and comes back: the pod runs without anybody having asked the API server for it.
    home.ok(&["down", "--name", &home.names[0]])?;
    let kubectl = up(&home, &images)?;
    let rebooted = until_pod(&kubectl, "the pod after a reboot", |pod| {
        is_ready(pod) && container(pod) != container(&first)
    })
    .await?;
    let hash = |pod: &Value| pod["metadata"]["annotations"]["kubernetes.io/config.hash"].clone();
    assert_eq!(hash(&rebooted), hash(&first), "the same manifest is the same pod");
    let mirrors = kubectl.get(&["pods", "-n", "kube-system", "-l", "app=web"])?;
    assert_eq!(mirrors["items"].as_array().map(Vec::len), Some(1), "{mirrors:#}");

    // A manifest that changed while the node was down is another pod; the old one is not started.
    home.ok(&["down", "--name", &home.names[0]])?;
    std::fs::write(&file, manifest("second"))?;
    let kubectl = up(&home, &images)?;
    let second = until_pod(&kubectl, "the changed pod", |pod| {
        is_ready(pod) && hash(pod) != hash(&first)
    })
    .await?;
    assert_eq!(
        second["status"]["containerStatuses"][0]["restartCount"], 0,
        "{second:#}"
    );
    let told = async || kubectl.run(&["logs", "-n", "kube-system", POD]);
    until("its words", LIMIT, told, |text| text == "second\n").await?;

    // One whose manifest is gone by then ends with its mirror.
    home.ok(&["down", "--name", &home.names[0]])?;
    std::fs::remove_file(&file)?;
    let kubectl = up(&home, &images)?;
    let left = async || kubectl.run(&["get", "pods", "-n", "kube-system", "-l", "app=web", "-o", "name"]);
    until("no mirror", LIMIT, left, String::is_empty).await?;
    Ok(())
}
