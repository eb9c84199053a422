//! A pod's `hostPort`: from the pod's spec over the container runtime to the `portmap` plugin, and away with the pod.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use skiff_tests::traffic::get_in;
use skiff_tests::wait::until;
use skiff_tests::{Fixture, on_cluster};

const LIMIT: Duration = Duration::from_secs(45);

/// A web server that says its name.
fn pod(name: &str, place: &str, ports: &str) -> String {
    format!(
        r#"---
{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{{place}, terminationGracePeriodSeconds: 1, containers: [
  {{name: main, image: "docker.io/library/busybox:1.36", imagePullPolicy: Never,
    command: [sh, -c, "mkdir /tmp/www; echo {name} > /tmp/www/index.html; exec httpd -f -p 80 -h /tmp/www"],
    ports: [{ports}], readinessProbe: {{tcpSocket: {{port: 80}}, periodSeconds: 1}}}}]}}}}"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_port_answers_on_its_node_and_goes_with_the_pod() -> anyhow::Result<()> {
    on_cluster(2, async |fixture| {
        let (cluster, kubectl) = (&fixture.cluster, &fixture.kubectl);
        let ports = "{containerPort: 80, hostPort: 8088}, {containerPort: 53, hostPort: 8053, protocol: UDP}";
        kubectl.apply(&pod("web", "nodeName: node-1", ports))?;
        kubectl.run(&["wait", "pod/web", "--for=condition=Ready", "--timeout=30s"])?;

        let node = cluster.namespace("node-1")?;
        let address = cluster.node("node-1")?.address;
        // From the node itself, by both of its names, and from its neighbour.
        for (from, ip) in [
            ("node-1", address),
            ("node-1", "127.0.0.1".parse()?),
            ("node-2", address),
        ] {
            let target = SocketAddr::new(ip, 8088);
            let body = get_in(&cluster.namespace(from)?, target).with_context(|| format!("{target} from {from}"))?;
            assert_eq!(body, "web");
        }
        let rules = || -> anyhow::Result<String> {
            let saved = node.run(|| Command::new("iptables-save").args(["-t", "nat"]).output())??;
            Ok(String::from_utf8(saved.stdout)?)
        };
        assert!(rules()?.contains("-p udp -m udp --dport 8053 -j DNAT"), "{}", rules()?);

        kubectl.run(&["delete", "pod", "web"])?;
        let gone = |rules: &String| !rules.contains("CNI-DN-");
        until("the forwarding is gone", LIMIT, async || rules(), gone).await?;

        one_number_is_several_ports(fixture).await
    })
    .await
}

/// At two addresses and by two protocols one number is three ports, and each can be had once.
async fn one_number_is_several_ports(fixture: &Fixture) -> anyhow::Result<()> {
    let (cluster, kubectl) = (&fixture.cluster, &fixture.kubectl);
    let (node, address) = (cluster.namespace("node-1")?, cluster.node("node-1")?.address);
    let outer = address.to_string();
    let owner = |name: &str, ip: &str, protocol: &str| {
        let port = format!("{{containerPort: 80, hostPort: 8088, hostIP: {ip}, protocol: {protocol}}}");
        kubectl.apply(&pod(name, "nodeSelector: {kubernetes.io/hostname: node-1}", &port))
    };
    owner("inner", "127.0.0.1", "TCP")?;
    owner("outer", &outer, "TCP")?;
    owner("datagrams", &outer, "UDP")?;
    for name in ["inner", "outer", "datagrams"] {
        let pod = format!("pod/{name}");
        kubectl.run(&["wait", &pod, "--for=condition=Ready", "--timeout=30s"])?;
    }
    for (ip, wanted) in [("127.0.0.1", "inner"), (&outer, "outer")] {
        assert_eq!(get_in(&node, SocketAddr::new(ip.parse()?, 8088))?, wanted);
    }
    let saved = node.run(|| Command::new("iptables-save").args(["-t", "nat"]).output())??;
    let saved = String::from_utf8(saved.stdout)?;
    let by_udp = format!("-d {outer}/32 -p udp -m udp --dport 8088 -j DNAT");
    assert!(saved.contains(&by_udp), "{saved}");
    owner("late", &outer, "TCP")?;
    let message = "{.status.conditions[?(@.type==\"PodScheduled\")].message}";
    let said = async || kubectl.field(&["pod", "late"], message);
    until("the second owner is refused", LIMIT, said, |text| {
        text.contains("1 node(s) didn't have free ports for the requested pod ports")
    })
    .await
    .map(drop)
}
