//! Services of type LoadBalancer without a cloud: from outside, the nodes' addresses answer.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use skiff_tests::traffic::get_in;
use skiff_tests::wait::until;
use skiff_tests::{Fixture, on_cluster};

const LIMIT: Duration = Duration::from_secs(60);
const PORT: u16 = 8088;
const MANIFEST: &str = "---
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  nodeName: node-2
  containers:
  - {name: server, image: 'skiff.local/hello:1', imagePullPolicy: Never}
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  type: LoadBalancer
  allocateLoadBalancerNodePorts: false
  selector: {app: server}
  ports: [{port: 8088, targetPort: 8080}]
";

fn patch(fixture: &Fixture, spec: &str) -> anyhow::Result<()> {
    let patch = format!("{{\"spec\": {spec}}}");
    let arguments = ["patch", "service", "server", "--type=merge", "-p", &patch];
    fixture.kubectl.run(&arguments).map(drop)
}

async fn published(fixture: &Fixture, wanted: &str) -> anyhow::Result<()> {
    let look = async || {
        let path = "{.status.loadBalancer.ingress[*].ip}";
        fixture.kubectl.field(&["service", "server"], path)
    };
    until(&format!("{wanted:?} is published"), LIMIT, look, |ips| ips == wanted)
        .await
        .map(drop)
}

/// Whether a machine on the LAN that is no node gets an answer at the nodes' addresses.
async fn answer_outside(fixture: &Fixture, wanted: [bool; 2]) -> anyhow::Result<()> {
    let lan = fixture.cluster.lan()?;
    for (node, wanted) in fixture.cluster.nodes().iter().zip(wanted) {
        let target = SocketAddr::new(node.address, PORT);
        let ask = async || Ok(get_in(&lan, target).is_ok_and(|body| body.contains("hello from server")));
        let what = format!("{target} answers: {wanted}");
        until(&what, LIMIT, ask, |answered| *answered == wanted).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_answer_for_a_load_balancer() -> anyhow::Result<()> {
    on_cluster(2, async |fixture| {
        fixture.kubectl.apply(MANIFEST)?;
        fixture
            .kubectl
            .run(&["wait", "pod/server", "--for=condition=Ready", "--timeout=60s"])?;
        published(fixture, "172.30.0.11 172.30.0.12").await?;
        answer_outside(fixture, [true, true]).await?;
        let shown = fixture.kubectl.run(&["get", "service", "server"])?;
        assert!(shown.contains("172.30.0.11,172.30.0.12"), "{shown}");

        patch(fixture, r#"{"externalTrafficPolicy": "Local"}"#)?;
        published(fixture, "172.30.0.12").await?;
        answer_outside(fixture, [false, true]).await?;
        patch(fixture, r#"{"externalTrafficPolicy": "Cluster"}"#)?;
        published(fixture, "172.30.0.11 172.30.0.12").await?;

        patch(fixture, r#"{"loadBalancerSourceRanges": ["192.0.2.0/24"]}"#)?;
        answer_outside(fixture, [false, false]).await?;
        patch(
            fixture,
            r#"{"loadBalancerSourceRanges": ["192.0.2.0/24", "172.30.0.0/24"]}"#,
        )?;
        answer_outside(fixture, [true, true]).await?;

        // The ingress controller has port 80 of the first node.
        patch(fixture, r#"{"ports": [{"port": 80, "targetPort": 8080}]}"#)?;
        published(fixture, "172.30.0.12").await?;
        let told = async || fixture.kubectl.run(&["describe", "service", "server"]);
        let why = "port 80/TCP of 172.30.0.11 belongs to the ingress controller of IngressClass skiff";
        until("an event tells why", LIMIT, told, |text| text.contains(why)).await?;
        patch(fixture, r#"{"ports": [{"port": 8088, "targetPort": 8080}]}"#)?;
        published(fixture, "172.30.0.11 172.30.0.12").await?;
        answer_outside(fixture, [true, true]).await?;

        fixture.kubectl.run(&["delete", "service", "server", "--timeout=30s"])?;
        answer_outside(fixture, [false, false]).await?;
        by_hand(fixture).await
    })
    .await
}

/// A Service without a selector leads to the addresses that somebody wrote into an Endpoints object, for as long as they stand
/// there and no other proxy is to see to it.
async fn by_hand(fixture: &Fixture) -> anyhow::Result<()> {
    let kubectl = &fixture.kubectl;
    let pod = kubectl.field(&["pod", "server"], "{.status.podIP}")?;
    let endpoints = format!(
        "---\napiVersion: v1\nkind: Endpoints\nmetadata: {{name: manual}}\n\
         subsets: [{{addresses: [{{ip: {pod}}}], ports: [{{port: 8080}}]}}]\n"
    );
    kubectl.apply("---\napiVersion: v1\nkind: Service\nmetadata: {name: manual}\nspec: {ports: [{port: 80}]}\n")?;
    kubectl.apply(&endpoints)?;
    let ip = kubectl.field(&["service", "manual"], "{.spec.clusterIP}")?;
    let service = SocketAddr::new(ip.parse().context("the cluster IP")?, 80);
    let answers = async |wanted: bool| {
        for node in ["node-1", "node-2"] {
            let namespace = fixture.cluster.namespace(node)?;
            let ask = async || Ok(get_in(&namespace, service).is_ok_and(|body| body.contains("hello from server")));
            let what = format!("the Service by hand answers {node}: {wanted}");
            until(&what, LIMIT, ask, |answered| *answered == wanted).await?;
        }
        anyhow::Ok(())
    };
    answers(true).await?;
    kubectl.run(&["delete", "endpoints", "manual"])?;
    answers(false).await?;
    kubectl.apply(&endpoints)?;
    answers(true).await?;
    let label = "service.kubernetes.io/service-proxy-name";
    kubectl.run(&["label", "service", "manual", &format!("{label}=another")])?;
    answers(false).await?;
    kubectl.run(&["label", "service", "manual", &format!("{label}-")])?;
    answers(true).await
}
