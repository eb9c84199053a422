//! Nodes on two segments with a router between them: what works on one segment works here.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use skiff_cluster::Role;
use skiff_net::netns::Namespace;
use skiff_tests::traffic::get_in;
use skiff_tests::wait::until;
use skiff_tests::{Fixture, Shape, on_shaped_cluster};

const LIMIT: Duration = Duration::from_secs(60);
const MEGABYTES: usize = 4;
/// Whether a node is ready, and what it says of it.
const READY: &str =
    "{.status.conditions[?(@.type==\"Ready\")].status} {.status.conditions[?(@.type==\"Ready\")].message}";

/// One web server on each node, behind one Service.
fn servers() -> String {
    let pod = |number: usize| {
        format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{name: server-{number}, labels: {{app: server}}}}
spec:
  nodeName: node-{number}
  containers:
  - {{name: server, image: 'skiff.local/hello:1', imagePullPolicy: Never}}
"
        )
    };
    let service = "---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  selector: {app: server}
  ports: [{port: 80, targetPort: 8080}]
";
    (1..=3).map(pod).collect::<String>() + service
}

async fn started(fixture: &Fixture) -> anyhow::Result<[IpAddr; 3]> {
    fixture.kubectl.apply(&servers())?;
    fixture.kubectl.run(&[
        "wait",
        "pod",
        "-l",
        "app=server",
        "--for=condition=Ready",
        "--timeout=60s",
    ])?;
    let address = |number: usize| -> anyhow::Result<IpAddr> {
        let ip = fixture
            .kubectl
            .field(&["pod", &format!("server-{number}")], "{.status.podIP}")?;
        ip.parse().context("a pod's address")
    };
    Ok([address(1)?, address(2)?, address(3)?])
}

/// Asks a server from inside the pod of another node; how many bytes came.
fn fetch(fixture: &Fixture, from: usize, target: SocketAddr, path: &str) -> anyhow::Result<usize> {
    let (ip, port) = (target.ip(), target.port());
    let line = format!("printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {ip} {port} | busybox wc -c");
    let text = fixture
        .kubectl
        .run(&["exec", &format!("server-{from}"), "--", "sh", "-c", &line])?;
    text.trim().parse().context("a number of bytes")
}

async fn answers(fixture: &Fixture, from: usize, target: SocketAddr) -> anyhow::Result<()> {
    let ask = async || fetch(fixture, from, target, "/");
    let what = format!("{target} answers the pod of node-{from}");
    until(&what, LIMIT, ask, |bytes| *bytes > 0).await.map(drop)
}

fn shell_in(namespace: &Namespace, line: &str) -> anyhow::Result<String> {
    let output = namespace
        .run(|| Command::new("sh").args(["-c", line]).output())
        .context("enter the namespace")??;
    let error = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{line}: {error}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Packets that a node had to cut, or to put together again.
fn fragments(namespace: &Namespace) -> anyhow::Result<u64> {
    let text = shell_in(namespace, "grep ^Ip: /proc/thread-self/net/snmp")?;
    let mut rows = text.lines().map(str::split_whitespace);
    let (names, counts) = rows.next().zip(rows.next()).context("two rows")?;
    let counted = names.zip(counts);
    Ok(counted
        .filter(|(name, _)| ["FragCreates", "ReasmReqds"].contains(name))
        .filter_map(|(_, count)| count.parse::<u64>().ok())
        .sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_reach_each_other_across_a_router_whatever_happens_to_a_node() -> anyhow::Result<()> {
    let shape = Shape {
        segments: 2,
        ..Shape::nodes(3)
    };
    on_shaped_cluster(&shape, async |fixture| {
        not_ready_before_its_range_is_known(fixture).await?;
        let pods = started(fixture).await?;
        assert!(pods[2].to_string().starts_with("10.244.99."), "{pods:?}");
        let [first, second, _] = ["node-1", "node-2", "node-3"].map(|node| fixture.cluster.namespace(node));
        let (first, second) = (first?, second?);
        // 1 and 3 share a segment, 2 is behind the router.
        let routes = shell_in(&first, "ip route show proto 75")?;
        assert!(
            routes.contains("dev skiff.vxlan") && routes.contains("via 172.30.0.13 dev eth0"),
            "{routes}"
        );
        let service = fixture.kubectl.field(&["service", "server"], "{.spec.clusterIP}")?;
        let service = SocketAddr::new(service.parse().context("the cluster IP")?, 80);
        for from in 1..=3 {
            for pod in pods {
                answers(fixture, from, SocketAddr::new(pod, 8080)).await?;
            }
            // As many as there are pods and more: every one of them is asked.
            for _ in 0..8 {
                answers(fixture, from, service).await?;
            }
            let namespace = fixture.cluster.namespace(&format!("node-{from}"))?;
            for target in [SocketAddr::new(pods[from % 3], 8080), service] {
                let ask = async || get_in(&namespace, target);
                until("the node's own request", LIMIT, ask, |_| true).await?;
            }
        }
        full_packets(fixture, pods, &first, &second)?;
        cut_off_and_back(fixture, pods).await?;
        another_address(fixture, pods).await
    })
    .await
}

/// Node-3 comes while nobody gives ranges to nodes: it waits for its own, and then has a CNI configuration.
async fn not_ready_before_its_range_is_known(fixture: &mut Fixture) -> anyhow::Result<()> {
    let path = fixture.cluster.layout().server_config();
    let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    config["controllers"] = serde_json::json!(["*", "-node-ipam-controller"]);
    std::fs::write(&path, config.to_string())?;
    fixture.cluster.kill(Role::Server, "node-1")?;
    fixture.cluster.restart(Role::Server, "node-1")?;
    let written = fixture.cluster.node("node-3")?.cni_config().join("10-skiff.conflist");
    for role in [Role::Kubelet, Role::Proxy] {
        fixture.cluster.kill(role, "node-3")?;
    }
    let delete = async || fixture.kubectl.run(&["delete", "node", "node-3"]);
    until("the former node is gone", LIMIT, delete, |_| true).await?;
    std::fs::remove_file(&written)?;
    for role in [Role::Kubelet, Role::Proxy] {
        fixture.cluster.restart(role, "node-3")?;
    }

    let kubectl = &fixture.kubectl;
    let said = async || kubectl.field(&["node", "node-3"], READY);
    until("the node waits for its network", LIMIT, said, |said| {
        said.starts_with("False") && said.contains("NetworkPluginNotReady")
    })
    .await?;
    assert_eq!(kubectl.field(&["node", "node-3"], "{.spec.podCIDR}")?, "");
    assert!(!written.exists());
    let range = r#"{"spec": {"podCIDR": "10.244.99.0/24", "podCIDRs": ["10.244.99.0/24"]}}"#;
    kubectl.run(&["patch", "node", "node-3", "-p", range])?;
    until("the node is ready", LIMIT, said, |said| said.starts_with("True")).await?;
    assert!(std::fs::read_to_string(&written)?.contains("10.244.99.0/24"));
    Ok(())
}

/// Segments of the largest size fit into the tunnel: no node has to cut a packet.
fn full_packets(fixture: &Fixture, pods: [IpAddr; 3], first: &Namespace, second: &Namespace) -> anyhow::Result<()> {
    // On the node the whole link is theirs, beyond it what the tunnel leaves.
    let links = fixture
        .kubectl
        .run(&["exec", "server-1", "--", "ip", "link", "show", "eth0"])?;
    assert!(links.contains("mtu 1500"), "{links}");
    let node = fixture.cluster.node("node-1")?;
    let conflist = std::fs::read_to_string(node.cni_config().join("10-skiff.conflist"))?;
    assert!(conflist.contains("\"mtu\": 1450"), "{conflist}");
    let before = (fragments(first)?, fragments(second)?);
    let fill = format!("dd if=/dev/zero of=/www/large bs=1M count={MEGABYTES}");
    for (from, to) in [(1, 2), (2, 1)] {
        let server = format!("server-{to}");
        fixture.kubectl.run(&["exec", &server, "--", "sh", "-c", &fill])?;
        let received = fetch(fixture, from, SocketAddr::new(pods[to - 1], 8080), "/large")?;
        assert!(received > MEGABYTES << 20, "{received} bytes from {server}");
    }
    assert_eq!((fragments(first)?, fragments(second)?), before);
    Ok(())
}

/// The cable of node-2 is pulled and put in again.
async fn cut_off_and_back(fixture: &Fixture, pods: [IpAddr; 3]) -> anyhow::Result<()> {
    let lan = fixture.cluster.lan()?;
    let target = SocketAddr::new(pods[1], 8080);
    shell_in(&lan, "ip link set node-2 down")?;
    assert_eq!(fetch(fixture, 1, target, "/")?, 0);
    shell_in(&lan, "ip link set node-2 up")?;
    answers(fixture, 1, target).await?;

    // Its own link goes down: with it go all routes over it, and the operator's come back with the operator.
    let second = fixture.cluster.namespace("node-2")?;
    shell_in(&second, "ip link set eth0 down")?;
    assert_eq!(fetch(fixture, 1, target, "/")?, 0);
    shell_in(
        &second,
        "ip link set eth0 up && ip route replace default via 172.30.1.1",
    )?;
    answers(fixture, 1, target).await
}

/// Node-2 comes back under another address: its pods keep theirs, and are reached.
async fn another_address(fixture: &mut Fixture, pods: [IpAddr; 3]) -> anyhow::Result<()> {
    fixture.cluster.readdress("node-2", "172.30.1.77".parse()?)?;
    let address = async || {
        fixture.kubectl.field(
            &["node", "node-2"],
            "{.status.addresses[?(@.type==\"InternalIP\")].address}",
        )
    };
    until("the node says its new address", LIMIT, address, |now| {
        now == "172.30.1.77"
    })
    .await?;
    for from in [1, 3] {
        answers(fixture, from, SocketAddr::new(pods[1], 8080)).await?;
    }
    let entries = shell_in(&fixture.cluster.namespace("node-1")?, "bridge fdb show dev skiff.vxlan")?;
    assert!(
        entries.contains("172.30.1.77") && !entries.contains("172.30.1.12"),
        "{entries}"
    );
    // And the API server reaches its kubelet there.
    answers(fixture, 2, SocketAddr::new(pods[0], 8080)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cni_may_do_it() -> anyhow::Result<()> {
    let shape = Shape {
        network: Some("none"),
        ..Shape::nodes(1)
    };
    on_shaped_cluster(&shape, async |fixture| {
        let node = fixture.cluster.node("node-1")?;
        let said = fixture.kubectl.field(&["node", "node-1"], READY)?;
        assert!(said.starts_with("False") && said.contains("NetworkPluginNotReady"), "{said}");
        let namespace = fixture.cluster.namespace("node-1")?;
        assert!(!shell_in(&namespace, "iptables-save")?.contains("SKIFF-"));
        assert_eq!(std::fs::read_dir(node.cni_config())?.count(), 0);

        let other = r#"{"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "bridge", "bridge": "other0", "isGateway": true,
            "ipam": {"type": "host-local", "dataDir": "DATA", "ranges": [[{"subnet": "10.200.0.0/24"}]]}}]}"#;
        let other = other.replace("DATA", &node.cni_data().to_string_lossy());
        std::fs::write(node.cni_config().join("10-other.conflist"), other)?;
        fixture
            .kubectl
            .run(&["wait", "node/node-1", "--for=condition=Ready", "--timeout=60s"])?;
        fixture.kubectl.run(&[
            "run",
            "pod",
            "--image=docker.io/library/busybox:1.36",
            "--image-pull-policy=Never",
            "--",
            "sleep",
            "3600",
        ])?;
        fixture
            .kubectl
            .run(&["wait", "pod/pod", "--for=condition=Ready", "--timeout=60s"])?;
        let ip = fixture.kubectl.field(&["pod", "pod"], "{.status.podIP}")?;
        assert!(ip.starts_with("10.200.0."), "{ip}");
        fixture.kubectl.run(&["delete", "pod", "pod", "--now"])?;
        Ok(())
    })
    .await
}
