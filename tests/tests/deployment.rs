//! A Deployment behind a Service, from `kubectl apply` to the last packet, on three nodes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use skiff_tests::census::Census;
use skiff_tests::traffic::{Traffic, get_in};
use skiff_tests::wait::until;
use skiff_tests::{Fixture, Kubectl, on_cluster};

const HELLO: &str = include_str!("../../examples/hello.yaml");
const LIMIT: Duration = Duration::from_secs(60);
const INGRESS: &str = "---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: hello}
spec: {ingressClassName: skiff, defaultBackend: {service: {name: hello, port: {number: 80}}}}
";

fn cluster_ip(kubectl: &Kubectl) -> anyhow::Result<SocketAddr> {
    let ip = kubectl.field(&["service", "hello"], "{.spec.clusterIP}")?;
    Ok(SocketAddr::new(ip.parse().context("the cluster IP")?, 80))
}

/// Asks until `wanted` different pods have answered: endpoints are chosen at random.
async fn distinct_answers(fixture: &Fixture, from: &str, target: SocketAddr, wanted: usize) -> anyhow::Result<()> {
    let namespace = fixture.cluster.namespace(from)?;
    let mut seen = BTreeSet::new();
    let what = format!("{wanted} pods answer through {target} from {from}");
    until(
        &what,
        LIMIT,
        async || {
            seen.insert(get_in(&namespace, target)?);
            Ok(seen.len())
        },
        |count| *count >= wanted,
    )
    .await
    .map(|_| ())
}

fn rollout(kubectl: &Kubectl) -> anyhow::Result<String> {
    kubectl.run(&["rollout", "status", "deployment/hello", "--timeout=60s"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_runs_behind_a_service() -> anyhow::Result<()> {
    on_cluster(3, async |fixture| {
        let kubectl = &fixture.kubectl;
        let mut before = Vec::new();
        for node in fixture.cluster.nodes() {
            before.push(Census::of(&fixture.cluster, &node.name).await?);
        }

        kubectl.apply(HELLO)?;
        rollout(kubectl)?;
        let nodes = kubectl.field(
            &["pods", "-l", "app=hello"],
            "{range .items[*]}{.spec.nodeName}{\"\\n\"}{end}",
        )?;
        assert_eq!(
            nodes.lines().collect::<BTreeSet<_>>().len(),
            2,
            "two replicas on two nodes, not on {nodes:?}"
        );

        let service = cluster_ip(kubectl)?;
        for node in fixture.cluster.nodes() {
            distinct_answers(fixture, &node.name, service, 2).await?;
        }
        let node_port = SocketAddr::new(fixture.cluster.node("node-3")?.address, 30080);
        distinct_answers(fixture, "node-1", node_port, 2).await?;
        from_a_pod(fixture, service, 2).await?;

        scale(fixture, service).await?;
        roll_without_losing_a_request(fixture, service, node_port).await?;
        kubectl.run(&["rollout", "undo", "deployment/hello"])?;
        rollout(kubectl)?;
        let namespace = fixture.cluster.namespace("node-1")?;
        until(
            "the first version answers again",
            LIMIT,
            async || get_in(&namespace, service),
            |body| body.contains("version 1"),
        )
        .await?;

        kubectl.run(&[
            "delete",
            "deployment/hello",
            "service/hello",
            "ingress/hello",
            "pod/client",
            "--wait=true",
            "--now",
        ])?;
        for (node, before) in fixture.cluster.nodes().iter().zip(before) {
            until(
                &format!("{} holds what it held before", node.name),
                LIMIT,
                async || Census::of(&fixture.cluster, &node.name).await,
                |now| {
                    // A node keeps the bridge of its first pod.
                    Census {
                        links: now.links.min(before.links),
                        cgroups: now.cgroups.min(before.cgroups),
                        ..now.clone()
                    } == before
                        && now.links <= before.links + 1
                },
            )
            .await?;
        }
        Ok(())
    })
    .await
}

/// Asks from within a pod until `wanted` different pods have answered.
async fn from_a_pod(fixture: &Fixture, service: SocketAddr, wanted: usize) -> anyhow::Result<()> {
    let kubectl = &fixture.kubectl;
    kubectl.run(&[
        "run",
        "client",
        "--image=docker.io/library/busybox:1.36",
        "--image-pull-policy=Never",
        "--restart=Never",
        "--",
        "sleep",
        "3600",
    ])?;
    kubectl.run(&["wait", "pod/client", "--for=condition=Ready", "--timeout=30s"])?;
    let ask = format!(
        "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc {} {}",
        service.ip(),
        service.port()
    );
    let mut seen = BTreeSet::new();
    let what = format!("{wanted} pods answer through {service} from a pod");
    until(
        &what,
        LIMIT,
        async || {
            let answer = kubectl.run(&["exec", "client", "--", "sh", "-c", &ask])?;
            let greeting = answer.lines().find(|line| line.starts_with("hello from hello-"));
            seen.insert(greeting.context(answer.clone())?.to_owned());
            Ok(seen.len())
        },
        |count| *count >= wanted,
    )
    .await
    .map(|_| ())
}

async fn scale(fixture: &Fixture, service: SocketAddr) -> anyhow::Result<()> {
    let kubectl = &fixture.kubectl;
    kubectl.run(&["scale", "deployment/hello", "--replicas=5"])?;
    rollout(kubectl)?;
    distinct_answers(fixture, "node-2", service, 5).await?;
    kubectl.run(&["scale", "deployment/hello", "--replicas=2"])?;
    two_are_left(kubectl).await
}

async fn two_are_left(kubectl: &Kubectl) -> anyhow::Result<()> {
    let pods = async || kubectl.field(&["pods", "-l", "app=hello"], "{.items[*].metadata.name}");
    until("two pods are left", LIMIT, pods, |names| {
        names.split_whitespace().count() == 2
    })
    .await?;
    Ok(())
}

/// Under traffic to the ClusterIP from one node, to the NodePort of another node from a third, and from outside through an Ingress.
async fn roll_without_losing_a_request(
    fixture: &Fixture,
    service: SocketAddr,
    node_port: SocketAddr,
) -> anyhow::Result<()> {
    let kubectl = &fixture.kubectl;
    // A pod goes on serving until every proxy has taken it out of the Service: the usual preStop pause.
    let patience = r#"{"spec":{"template":{"spec":{"containers":[{"name":"web","lifecycle":{"preStop":{"sleep":{"seconds":2}}}}]}}}}"#;
    kubectl.run(&["patch", "deployment/hello", "-p", patience])?;
    rollout(kubectl)?;
    // Those without the pause must be gone: they may be asked until every proxy knows of their end.
    two_are_left(kubectl).await?;
    kubectl.apply(INGRESS)?;
    let (lan, ingress) = (
        fixture.cluster.lan()?,
        SocketAddr::new(fixture.cluster.node("node-1")?.address, 80),
    );
    let greets = |body: &String| body.contains("version 1");
    until("the Ingress answers", LIMIT, async || get_in(&lan, ingress), greets).await?;

    let traffic = [
        (
            "the ClusterIP",
            Traffic::start(fixture.cluster.namespace("node-1")?, service)?,
        ),
        (
            "a NodePort",
            Traffic::start(fixture.cluster.namespace("node-2")?, node_port)?,
        ),
        ("an Ingress", Traffic::start(lan, ingress)?),
    ];
    kubectl.run(&["set", "image", "deployment/hello", "web=skiff.local/hello:2"])?;
    rollout(kubectl)?;
    let namespace = fixture.cluster.namespace("node-1")?;
    until(
        "only the second version answers",
        LIMIT,
        async || Ok(kubectl.field(&["pods", "-l", "app=hello"], "{.items[*].spec.containers[0].image}")?),
        |images| !images.contains("hello:1"),
    )
    .await?;
    assert!(get_in(&namespace, service)?.contains("version 2"));
    for (through, traffic) in traffic {
        traffic.stop()?.check_rolled_over(through);
    }

    let history = kubectl.run(&["rollout", "history", "deployment/hello"])?;
    assert!(
        history
            .lines()
            .filter(|line| line.starts_with(|first: char| first.is_ascii_digit()))
            .count()
            >= 2,
        "{history}"
    );
    Ok(())
}
