//! Many lives of pods, of every kind, on one node: afterwards it holds what it held before.
//!
//! `SKIFF_SOAK=1000 cargo nextest run -p skiff-tests --test soak` is the long form; without it a few dozen pods live.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use skiff_cluster::Role;
use skiff_tests::census::{Census, Holdings};
use skiff_tests::wait::until;
use skiff_tests::{Fixture, on_cluster};
use tokio::time::Instant;

const NODE: &str = "node-1";
const LIMIT: Duration = Duration::from_secs(120);
const SHORT: usize = 30;
/// How much more memory of its own the kubelet may hold afterwards: what an allocator keeps, not what a pod leaves.
const MEMORY: usize = 6 << 20;

/// What pods need beside themselves.
const OBJECTS: &str = "---
apiVersion: v1
kind: ConfigMap
metadata: {name: soak}
data: {key: value}
---
apiVersion: v1
kind: Secret
metadata: {name: soak}
stringData: {key: hidden}
";

/// A kind of life: its name, the rest of its spec, and whether it has come as far as it will.
type Kind = (&'static str, &'static str, fn(&Value) -> bool);

const BUSYBOX: &str = "image: docker.io/library/busybox:1.36, imagePullPolicy: Never";

const KINDS: &[Kind] = &[
    (
        "plain",
        "containers: [{name: c, IMAGE, command: [sh, -c, 'trap exit TERM; while true; do sleep 0.1; done']}]",
        is_ready,
    ),
    (
        "done",
        "restartPolicy: Never, containers: [{name: c, IMAGE, command: [echo, done]}]",
        |pod| pod["status"]["phase"] == "Succeeded",
    ),
    (
        "failed",
        "restartPolicy: Never, containers: [{name: c, IMAGE, command: [sh, -c, 'exit 3']}]",
        |pod| pod["status"]["phase"] == "Failed",
    ),
    (
        "volumes",
        "initContainers: [{name: i, IMAGE, command: [touch, /m/made], volumeMounts: [{name: m, mountPath: /m}]}], \
         containers: [{name: c, IMAGE, command: [sleep, '3600'], volumeMounts: [{name: m, mountPath: /m}, {name: s, mountPath: /s}, \
         {name: k, mountPath: /k, subPath: key}, {name: d, mountPath: /d}]}], \
         volumes: [{name: m, emptyDir: {medium: Memory}}, {name: s, secret: {secretName: soak}}, {name: k, configMap: {name: soak}}, \
         {name: d, emptyDir: {}}]",
        is_ready,
    ),
    (
        "sidecar",
        "initContainers: [{name: i, IMAGE, restartPolicy: Always, command: [sleep, '3600']}], \
         containers: [{name: c, IMAGE, command: [sleep, '3600'], resources: {limits: {cpu: 100m, memory: 32Mi}}}]",
        is_ready,
    ),
    (
        "host",
        "hostNetwork: true, containers: [{name: c, IMAGE, command: [sleep, '3600'], resources: {requests: {memory: 8Mi}}}]",
        is_ready,
    ),
    (
        "crashing",
        "containers: [{name: c, IMAGE, command: [sh, -c, 'sleep 0.1; exit 1']}]",
        |pod| container(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff",
    ),
    (
        "absent",
        "containers: [{name: c, image: 'localhost/absent:1', imagePullPolicy: Never}]",
        |pod| container(pod)["state"]["waiting"]["reason"] == "ErrImageNeverPull",
    ),
    (
        "probed",
        "containers: [{name: c, IMAGE, command: [sleep, '3600'], readinessProbe: {exec: {command: ['true']}, periodSeconds: 1}, \
         livenessProbe: {tcpSocket: {port: 9}, periodSeconds: 1, failureThreshold: 1}}]",
        |pod| container(pod)["restartCount"].as_i64() >= Some(1),
    ),
    // Told to go before it has come anywhere.
    (
        "hasty",
        "containers: [{name: c, IMAGE, command: [sleep, '3600']}]",
        |_| true,
    ),
];

fn container(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

fn manifest(round: usize) -> String {
    let pod = |(name, spec, _): &Kind| {
        let spec = spec.replace("IMAGE", BUSYBOX);
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}-{round}, labels: {{round: '{round}'}}}}\n\
             spec: {{terminationGracePeriodSeconds: 1, {spec}}}\n"
        )
    };
    KINDS.iter().map(pod).collect()
}

/// One pod of each kind lives and goes.
async fn lives(fixture: &Fixture, round: usize) -> anyhow::Result<()> {
    let kubectl = &fixture.kubectl;
    kubectl.apply(&manifest(round))?;
    kubectl.run(&[
        "delete",
        "pod",
        &format!("hasty-{round}"),
        "--grace-period=0",
        "--force",
        "--wait=false",
    ])?;
    let selector = format!("round={round}");
    let behind = async || -> anyhow::Result<Vec<String>> {
        let pods = kubectl.get(&["pods", "-l", &selector])?;
        let pods = pods["items"].as_array().context("a list")?;
        let behind = KINDS.iter().filter(|(name, _, is_far)| {
            let full = format!("{name}-{round}");
            let found = pods.iter().find(|pod| pod["metadata"]["name"] == full.as_str());
            // The hasty one may be gone by now.
            found.map_or(*name != "hasty", |pod| !is_far(pod))
        });
        Ok(behind.map(|(name, ..)| (*name).to_owned()).collect())
    };
    until(
        &format!("each pod of round {round} as far as it comes"),
        LIMIT,
        behind,
        Vec::is_empty,
    )
    .await?;
    kubectl.run(&["delete", "pods", "-l", &selector, "--now", "--wait=true"])?;
    Ok(())
}

async fn is_as_before(fixture: &Fixture, before: &Census) -> anyhow::Result<()> {
    let now = async || Census::of(&fixture.cluster, NODE).await;
    until("the node holds what it held before", LIMIT, now, |now| now == before).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_lives_of_pods_leave_nothing() -> anyhow::Result<()> {
    let lifetimes = match std::env::var("SKIFF_SOAK") {
        Ok(count) => count.parse().context("SKIFF_SOAK is a number of pods")?,
        Err(_) => SHORT,
    };
    on_cluster(1, async |fixture| {
        fixture.kubectl.apply(OBJECTS)?;
        // The first round makes what a node keeps: its bridge, the classes' cgroups, caches.
        lives(fixture, 0).await?;
        let empty = async || Census::of(&fixture.cluster, NODE).await;
        let before = until("a node without containers", LIMIT, empty, |now| {
            (now.sandboxes, now.pod_directories, now.log_directories, now.leases) == (0, 0, 0, 0)
        })
        .await?;
        let held = Holdings::of(&fixture.cluster, Role::Kubelet, NODE)?;
        let begun = Instant::now();
        let rounds = lifetimes.div_ceil(KINDS.len());
        for round in 1..=rounds {
            lives(fixture, round).await?;
            if round % 10 == 0 {
                let now = Holdings::of(&fixture.cluster, Role::Kubelet, NODE)?;
                println!("{} lives: {now:?}", round * KINDS.len());
            }
        }
        let took = begun.elapsed();
        is_as_before(fixture, &before).await?;
        // Connections that are kept for the next request end after a while.
        let look = async || Holdings::of(&fixture.cluster, Role::Kubelet, NODE);
        let after = until(
            "the kubelet's files and threads are what they were",
            LIMIT,
            look,
            |now| now.files <= held.files + 4 && now.threads <= held.threads + 4,
        )
        .await?;
        println!(
            "{} lives in {took:.1?}: {before:?}; the kubelet held {held:?}, holds {after:?}",
            rounds * KINDS.len()
        );
        assert!(after.private <= held.private + MEMORY, "memory: {held:?} to {after:?}");
        Ok(())
    })
    .await
}
