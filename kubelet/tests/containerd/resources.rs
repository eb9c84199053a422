//! What a node does when its disk or memory runs short, and with logs that grow.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use skiff_cri::{ContainerFilter, Runtime as _};
use skiff_kubelet::config::GoDuration;
use tokio::time::Instant;

use crate::kubelet::Kubelet;
use crate::node::Node;
use crate::{container, is_ready};

/// How long a thing may take on a machine that compiles beside it.
const LIMIT: Duration = Duration::from_secs(60);

/// Looks until it holds: for what is told by nothing but the thing itself.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds().await {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn logs_are_rotated_compressed_and_linked() {
    let mut node = Node::without_kubelet().await;
    let logs = node.path_of("var/pods");
    let kubelet = &mut node.config.kubelet;
    kubelet.pod_logs_dir.clone_from(&logs);
    kubelet.container_log_max_size = "20Ki".into();
    kubelet.container_log_max_files = 3;
    kubelet.container_log_monitor_interval = GoDuration::seconds(3);
    node.start_kubelet();
    let write = "i=0; while true; do i=$((i+1)); echo line $i of a log that grows; /bin/busybox usleep 1000; done";
    node.create("p", &json!({"containers": [container(write)]}));
    let status = node.until_status("p", "ready pod", is_ready).await;
    let dir = logs.join("ns_p_uid-p/c");
    until("an open log, a rotated one and a compressed one", async || {
        let names = names(&dir);
        names.len() == 3
            && names[0] == "0.log"
            && names[1].starts_with("0.log.20")
            && names[1].ends_with(".gz")
            && !names[2].ends_with(".gz")
    })
    .await;
    // The container goes on writing, into the new file.
    let size = || std::fs::metadata(dir.join("0.log")).map_or(0, |metadata| metadata.len());
    let before = size();
    until("a log that grows", async || size() != before).await;
    let id = status["containerStatuses"][0]["containerID"]
        .as_str()
        .unwrap_or_default();
    let link = format!("p_ns_c-{}.log", id.trim_start_matches("containerd://"));
    let links = node.path_of("var/containers");
    until("a link", async || {
        std::fs::read_link(links.join(&link)).is_ok_and(|to| to == dir.join("0.log"))
    })
    .await;
    node.delete("p", 1);
    node.until_gone("p").await;
    until("no link", async || names(&links).is_empty()).await;
}

#[tokio::test]
async fn images_that_nobody_uses_go_but_not_the_others() {
    let mut node = Node::without_kubelet().await;
    node.add_image("localhost/test/unused:1", "unused", false).await;
    node.add_image("localhost/test/used:1", "used", false).await;
    node.add_image("localhost/test/imported:1", "imported", true).await;
    node.start_kubelet();
    let mut used = container("/bin/busybox sleep 1000");
    used["image"] = "localhost/test/used:1".into();
    node.create("p", &json!({"containers": [used]}));
    node.until_status("p", "ready pod", is_ready).await;
    node.kill().await;
    // Whatever the disk holds is too much now, and nothing is too young.
    let kubelet = &mut node.config.kubelet;
    kubelet.image_gc_high_threshold_percent = 1;
    kubelet.image_gc_low_threshold_percent = 0;
    kubelet.image_minimum_gc_age = GoDuration::seconds(0);
    node.start_kubelet();
    let present = async |name: &str| node.runtime().image_status(name).await.expect("an answer").is_some();
    until("the unused image is gone", async || {
        !present("localhost/test/unused:1").await
    })
    .await;
    for name in [
        "localhost/test/used:1",
        "localhost/test/imported:1",
        crate::IMAGE,
        skiff_cri::pause::IMAGE,
    ] {
        assert!(present(name).await, "{name}");
    }
    let told = |event: &String| event.starts_with("FreeDiskSpaceFailed");
    until("an event", async || node.api.events().iter().any(told)).await;
}

fn sleeper(requests: &Value) -> Value {
    let mut spec = container("/bin/busybox sleep 1000");
    spec["resources"] = json!({"requests": requests});
    spec
}

fn condition(status: &Value, kind: &str) -> Value {
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    conditions
        .into_iter()
        .find(|condition| condition["type"] == kind)
        .unwrap_or_default()
}

#[tokio::test]
async fn pods_are_evicted_when_memory_runs_short_but_not_critical_ones() {
    let mut node = Node::start().await;
    node.create("greedy", &json!({"containers": [sleeper(&json!({}))]}));
    node.create("modest", &json!({"containers": [sleeper(&json!({"memory": "8Mi"}))]}));
    node.create(
        "critical",
        &json!({"priority": 2_000_001_000, "containers": [sleeper(&json!({}))]}),
    );
    for name in ["greedy", "modest", "critical"] {
        node.until_status(name, "ready pod", is_ready).await;
    }
    node.kill().await;
    node.config.kubelet.eviction_hard = [more_than_is_left()].into();
    node.start_kubelet();
    let evicted = |status: &Value| status["reason"] == "Evicted" && status["phase"] == "Failed";
    let greedy = node.until_status("greedy", "eviction", evicted).await;
    let message = greedy["message"].as_str().unwrap_or_default();
    assert!(
        message.starts_with("The node was low on resource: memory. Threshold quantity: ")
            && message.contains("Container c was using ")
            && message.contains(", request is 0, has larger consumption of memory. "),
        "{message}"
    );
    let target = condition(&greedy, "DisruptionTarget");
    assert_eq!(
        (&target["status"], &target["reason"]),
        (&json!("True"), &json!("TerminationByKubelet")),
        "{greedy}"
    );
    // The one within its request goes after it.
    let modest = node.until_status("modest", "eviction", evicted).await;
    let ended = |status: &Value| {
        let state = &status["containerStatuses"][0]["state"]["terminated"]["finishedAt"];
        state.as_str().unwrap_or_default().to_owned()
    };
    assert!(ended(&greedy) <= ended(&modest), "{greedy} {modest}");
    assert!(
        !modest["message"]
            .as_str()
            .unwrap_or_default()
            .contains("Container c was using"),
        "{modest}"
    );
    let critical = node.api.get(&Kubelet::path("critical")).expect("the pod");
    assert!(is_ready(&critical["status"]), "{critical}");
    let conditions = node.api.get("/api/v1/nodes/node-1").expect("the node")["status"].clone();
    assert_eq!(
        condition(&conditions, "MemoryPressure")["status"],
        "True",
        "{conditions}"
    );
    // New pods are turned away, as upstream does it.
    node.create("late", &json!({"containers": [sleeper(&json!({}))]}));
    let late = node.until_status("late", "refusal", evicted).await;
    assert_eq!(
        late["message"],
        "Pod was rejected: The node had condition: [MemoryPressure]. "
    );
    node.until_event("EvictionThresholdMet: Attempting to reclaim memory")
        .await;
}

/// A threshold that the machine is below, whatever runs on it.
fn more_than_is_left() -> (String, String) {
    ("memory.available".to_owned(), all_but(16)["memory"].clone())
}

/// All but this much of the machine's memory, as a reservation.
fn all_but(mebibytes: u64) -> std::collections::BTreeMap<String, String> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").expect("the machine's memory");
    let total = meminfo
        .split_whitespace()
        .nth(1)
        .and_then(|total| total.parse::<u64>().ok());
    let reserved = total.expect("a number") - (mebibytes << 10);
    [("memory".to_owned(), format!("{reserved}Ki"))].into()
}

#[tokio::test]
async fn pods_get_no_more_than_what_is_not_reserved() {
    let mut node = Node::without_kubelet().await;
    node.config.kubelet.kube_reserved = all_but(64);
    node.start_kubelet();
    node.until_event("NodeAllocatableEnforced: Updated Node Allocatable limit across pods")
        .await;
    let greedy = container("exec /bin/busybox dd if=/dev/zero of=/dev/null bs=256M count=1");
    node.create("greedy", &json!({"restartPolicy": "Never", "containers": [greedy]}));
    let failed = |status: &Value| status["phase"] == "Failed";
    let status = node.until_status("greedy", "end", failed).await;
    let terminated = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(terminated["exitCode"], 137, "{status}");
}

/// A soft threshold waits, and its pods get their grace period, up to the node's maximum.
#[tokio::test]
async fn a_soft_eviction_waits_and_lets_pods_tidy_up() {
    let mut node = Node::start().await;
    let tidies = "trap '/bin/busybox sleep 2; echo tidy > /dev/termination-log; exit 0' TERM; \
                  while true; do /bin/busybox sleep 0.1; done";
    node.create(
        "p",
        &json!({"terminationGracePeriodSeconds": 30, "containers": [container(tidies)]}),
    );
    node.until_ready("p").await;
    node.kill().await;
    let kubelet = &mut node.config.kubelet;
    let (signal, threshold) = more_than_is_left();
    kubelet.eviction_soft = [(signal.clone(), threshold)].into();
    kubelet.eviction_soft_grace_period = [(signal, GoDuration::seconds(4))].into();
    kubelet.eviction_max_pod_grace_period = 10;
    let begun = Instant::now();
    node.start_kubelet();
    let evicted = |status: &Value| status["reason"] == "Evicted" && status["phase"] == "Failed";
    let status = node.until_status("p", "eviction", evicted).await;
    assert!(begun.elapsed() >= Duration::from_secs(6), "{:?}", begun.elapsed());
    let terminated = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&terminated["message"], &terminated["exitCode"]),
        (&json!("tidy\n"), &json!(0)),
        "{status}"
    );
}

#[tokio::test]
async fn who_fills_the_disk_with_files_is_evicted() {
    let mut node = Node::without_kubelet().await;
    let root = node.path_of("kubelet");
    std::fs::create_dir(&root).expect("a directory");
    let flags = nix::mount::MsFlags::empty();
    let options = Some("size=32m,nr_inodes=2000");
    nix::mount::mount(Some("tmpfs"), &root, Some("tmpfs"), flags, options).expect("a tmpfs");
    node.config.kubelet.eviction_hard = [("nodefs.inodesFree".to_owned(), "50%".to_owned())].into();
    node.start_kubelet();
    let writer = |files: u32| {
        let mut spec = container(&format!(
            "for i in $(/bin/busybox seq {files}); do echo > /v/$i; done; /bin/busybox sleep 1000"
        ));
        spec["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        json!({"containers": [spec], "volumes": [{"name": "v", "emptyDir": {}}]})
    };
    node.create("modest", &writer(10));
    node.until_ready("modest").await;
    node.create("greedy", &writer(1500));
    let evicted = |status: &Value| status["reason"] == "Evicted";
    let greedy = node.until_status("greedy", "eviction", evicted).await;
    let message = greedy["message"].as_str().unwrap_or_default();
    assert!(
        message.starts_with("The node was low on resource: inodes. Threshold quantity: 1"),
        "{message}"
    );
    let modest = node.api.get(&Kubelet::path("modest")).expect("the pod");
    assert!(is_ready(&modest["status"]), "{modest}");
}

/// Pages of a tmpfs hold the memory: there is no swap that they could go to. With version 1 of cgroups no limit can go below that.
#[tokio::test]
async fn a_limit_that_pods_are_above_already_stops_no_kubelet() {
    let mut node = Node::without_kubelet().await;
    let pods = node.cgroup("memory").join("kubepods");
    if !Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists() {
        return;
    }
    std::fs::create_dir_all(&pods).expect("a cgroup");
    let disk = node.path_of("held");
    std::fs::create_dir(&disk).expect("a directory");
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &disk, Some("tmpfs"), flags, Some("size=64m")).expect("a tmpfs");
    let script = format!(
        "echo $$ > {}/cgroup.procs && exec dd if=/dev/zero of={}/file bs=1M count=48",
        pods.display(),
        disk.display()
    );
    let written = std::process::Command::new("sh").args(["-c", &script]).output();
    assert!(written.expect("a shell").status.success());
    node.config.kubelet.kube_reserved = all_but(16);
    node.start_kubelet();
    let told = |api: &crate::api::Api| {
        let events = api.events();
        events.into_iter().find(|event| {
            event.starts_with("FailedNodeAllocatableEnforcement: Failed to update Node Allocatable Limits")
        })
    };
    node.api.until("an event", told).await;
    node.create("p", &json!({"containers": [sleeper(&json!({}))]}));
    node.until_ready("p").await;
}

/// The kubelet's disk is a small one of the test's own, which one pod fills.
#[tokio::test]
async fn who_fills_the_nodes_disk_is_evicted() {
    let mut node = Node::without_kubelet().await;
    let root = node.path_of("kubelet");
    std::fs::create_dir(&root).expect("a directory");
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &root, Some("tmpfs"), flags, Some("size=32m")).expect("a tmpfs");
    node.config.kubelet.eviction_hard = [("nodefs.available".to_owned(), "50%".to_owned())].into();
    node.start_kubelet();
    let writer = |megabytes: u32| {
        let mut spec = container(&format!(
            "/bin/busybox dd if=/dev/zero of=/v/file bs=1M count={megabytes}; /bin/busybox sleep 1000"
        ));
        spec["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        json!({"containers": [spec], "volumes": [{"name": "v", "emptyDir": {}}]})
    };
    node.create("modest", &writer(2));
    node.until_status("modest", "ready pod", is_ready).await;
    node.create("greedy", &writer(20));
    let evicted = |status: &Value| status["reason"] == "Evicted" && status["phase"] == "Failed";
    let greedy = node.until_status("greedy", "eviction", evicted).await;
    let message = greedy["message"].as_str().unwrap_or_default();
    assert!(
        message.starts_with("The node was low on resource: ephemeral-storage. Threshold quantity: "),
        "{message}"
    );
    // Its volume goes with it, and that is enough.
    let volume = root.join("pods/uid-greedy/volumes");
    until("the volume's end", async || !volume.exists()).await;
    let status = node.api.get("/api/v1/nodes/node-1").expect("the node")["status"].clone();
    assert_eq!(condition(&status, "DiskPressure")["status"], "True", "{status}");
    let modest = node.api.get(&Kubelet::path("modest")).expect("the pod");
    assert!(is_ready(&modest["status"]), "{modest}");
    node.create("late", &writer(1));
    let late = node.until_status("late", "refusal", evicted).await;
    assert_eq!(
        late["message"],
        "Pod was rejected: The node had condition: [DiskPressure]. "
    );
}

/// What a container of this pod has in its writable layer, in megabytes.
fn layer(megabytes: u32, then: &str) -> Value {
    container(&format!(
        "/bin/busybox dd if=/dev/zero of=/tmp/file bs=1M count={megabytes}; {then}"
    ))
}

/// How many containers of a pod the runtime has.
async fn containers_of(node: &Node, pod: &str) -> usize {
    let labels = [("io.kubernetes.pod.name".to_owned(), pod.to_owned())].into();
    let filter = ContainerFilter {
        labels,
        ..ContainerFilter::default()
    };
    node.runtime().list_containers(&filter).await.expect("a list").len()
}

#[tokio::test]
async fn before_a_pod_is_evicted_what_ended_pods_left_goes() {
    let mut node = Node::with_image_disk("128m").await;
    node.start_kubelet();
    node.create(
        "job",
        &json!({"restartPolicy": "Never", "containers": [layer(80, "exit 0")]}),
    );
    let succeeded = |status: &Value| status["phase"] == "Succeeded";
    node.until_status("job", "end", succeeded).await;
    node.create("modest", &json!({"containers": [layer(1, "/bin/busybox sleep 1000")]}));
    node.until_ready("modest").await;
    node.kill().await;
    node.config.kubelet.eviction_hard = [("imagefs.available".to_owned(), "50%".to_owned())].into();
    node.start_kubelet();
    let disk = node.path_of("root");
    let has_room = || nix::sys::statvfs::statvfs(&disk).is_ok_and(|disk| disk.blocks_available() * 2 > disk.blocks());
    until("room on the disk", async || has_room()).await;
    assert_eq!(containers_of(&node, "job").await, 0);
    // What starts under another kubelet shows that the pressure is gone, and that nobody runs the job again.
    node.kill().await;
    node.start_kubelet();
    node.create("late", &json!({"containers": [layer(1, "/bin/busybox sleep 1000")]}));
    node.until_ready("late").await;
    assert_eq!(containers_of(&node, "job").await, 0);
    let job = node.api.get(&Kubelet::path("job")).expect("the pod")["status"].clone();
    assert!(succeeded(&job), "{job}");
    assert_eq!(
        job["containerStatuses"][0]["state"]["terminated"]["reason"], "Completed",
        "{job}"
    );
    let modest = node.api.get(&Kubelet::path("modest")).expect("the pod");
    assert!(is_ready(&modest["status"]), "{modest}");
}

/// The pod with the larger sum has it on the images' disk, which has room.
#[tokio::test]
async fn with_two_disks_who_fills_the_short_one_is_evicted() {
    let mut node = Node::with_image_disk("128m").await;
    let root = node.path_of("kubelet");
    std::fs::create_dir(&root).expect("a directory");
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &root, Some("tmpfs"), flags, Some("size=16m")).expect("a tmpfs");
    node.start_kubelet();
    node.create("layer", &json!({"containers": [layer(40, "/bin/busybox sleep 1000")]}));
    let mut writer = container("/bin/busybox dd if=/dev/zero of=/v/file bs=1M count=10; /bin/busybox sleep 1000");
    writer["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    node.create(
        "volume",
        &json!({"containers": [writer], "volumes": [{"name": "v", "emptyDir": {}}]}),
    );
    for name in ["layer", "volume"] {
        node.until_ready(name).await;
    }
    let file = root.join("pods/uid-volume/volumes/kubernetes.io~empty-dir/v/file");
    until("the written file", async || {
        std::fs::metadata(&file).is_ok_and(|file| file.len() == 10 << 20)
    })
    .await;
    // The runtime looks at layers every ten seconds.
    until("the layer's size", async || {
        let stats = node.runtime().list_container_stats(&ContainerFilter::default()).await;
        let mut stats = stats.expect("figures").into_iter();
        stats.any(|stats| stats.writable_layer_bytes >= 40 << 20)
    })
    .await;
    node.kill().await;
    node.config.kubelet.eviction_hard = [("nodefs.available".to_owned(), "50%".to_owned())].into();
    node.start_kubelet();
    let evicted = |status: &Value| status["reason"] == "Evicted";
    node.until_status("volume", "eviction", evicted).await;
    let layer = node.api.get(&Kubelet::path("layer")).expect("the pod");
    assert!(is_ready(&layer["status"]), "{layer}");
}

/// Its container has died by the time that anybody looks, and waits to be started again.
#[tokio::test]
async fn a_pod_that_fills_its_volume_beyond_the_limit_is_evicted_while_it_backs_off() {
    let node = Node::start().await;
    let mut spec = container("/bin/busybox dd if=/dev/zero of=/v/file bs=1M count=3; exit 1");
    spec["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    let volumes = json!([{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]);
    node.create("p", &json!({"containers": [spec], "volumes": volumes}));
    let evicted = |status: &Value| status["reason"] == "Evicted";
    let status = node.until_status("p", "eviction", evicted).await;
    assert_eq!(
        status["message"],
        "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". "
    );
}
