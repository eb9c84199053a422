//! A pod's `hostPort`: from the pod's spec over the container runtime to the `portmap` plugin, and away with the pod.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use skiff_tests::on_cluster;
use skiff_tests::traffic::get_in;
use skiff_tests::wait::until;

const LIMIT: Duration = Duration::from_secs(45);
const POD: &str = r#"---
{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {nodeName: node-1, terminationGracePeriodSeconds: 1, containers: [
  {name: main, image: "docker.io/library/busybox:1.36", imagePullPolicy: Never,
   command: [sh, -c, "mkdir /tmp/www; echo by port > /tmp/www/index.html; exec httpd -f -p 80 -h /tmp/www"],
   ports: [{containerPort: 80, hostPort: 8088}, {containerPort: 53, hostPort: 8053, protocol: UDP}],
   readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}}]}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_host_port_answers_on_its_node_and_goes_with_the_pod() -> anyhow::Result<()> {
    on_cluster(2, async |fixture| {
        let (cluster, kubectl) = (&fixture.cluster, &fixture.kubectl);
        kubectl.apply(POD)?;
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
            assert_eq!(body, "by port");
        }
        let rules = || -> anyhow::Result<String> {
            let saved = node.run(|| Command::new("iptables-save").args(["-t", "nat"]).output())??;
            Ok(String::from_utf8(saved.stdout)?)
        };
        assert!(rules()?.contains("-p udp -m udp --dport 8053 -j DNAT"), "{}", rules()?);

        kubectl.run(&["delete", "pod", "web"])?;
        let gone = |rules: &String| !rules.contains("CNI-DN-");
        until("the forwarding is gone", LIMIT, async || rules(), gone).await?;
        Ok(())
    })
    .await
}
