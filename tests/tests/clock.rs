//! A wall clock that somebody sets: the kubelet's own, an hour forward and back.

use std::time::Duration;

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use skiff_cluster::Role;
use skiff_tests::clock::Clock;
use skiff_tests::wait::until;
use skiff_tests::{Fixture, Kubectl, on_cluster};

const LIMIT: Duration = Duration::from_secs(60);
const NODE: &str = "node-1";

const PODS: &str = r#"---
apiVersion: v1
kind: Pod
metadata: {name: steady}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: docker.io/library/busybox:1.36
    imagePullPolicy: Never
    command: [sh, -c, 'trap exit TERM; touch /tmp/ok; while true; do sleep 0.1; done']
    livenessProbe: {exec: {command: ["true"]}, periodSeconds: 1}
    readinessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1, failureThreshold: 1}
    volumeMounts: [{name: token, mountPath: /token}]
  volumes:
  - {name: token, projected: {sources: [{serviceAccountToken: {path: token, expirationSeconds: 600}}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: crashing}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: 'docker.io/library/busybox:1.36', imagePullPolicy: Never, command: ["false"]}]
"#;

/// How far ahead of the test the kubelet's lease says that it is.
fn ahead(kubectl: &Kubectl) -> anyhow::Result<SignedDuration> {
    let renewed = kubectl.field(&["lease", "-n", "kube-node-lease", NODE], "{.spec.renewTime}")?;
    let renewed: Timestamp = renewed.parse().with_context(|| renewed.clone())?;
    Ok(renewed.duration_since(Timestamp::now()))
}

/// Restarts of the crashing container so far, and when its last run ended, by containerd's clock.
fn runs(kubectl: &Kubectl) -> anyhow::Result<(u32, Option<Timestamp>)> {
    let pod = kubectl.get(&["pod", "crashing"])?;
    let status = &pod["status"]["containerStatuses"][0];
    let count = status["restartCount"]
        .as_u64()
        .and_then(|count| u32::try_from(count).ok());
    // While one runs, the last end is that of the run before.
    let ended = [&status["state"], &status["lastState"]]
        .into_iter()
        .filter(|_| status["state"]["running"].is_null())
        .find_map(|state| state["terminated"]["finishedAt"].as_str()?.parse().ok());
    Ok((count.unwrap_or(0), ended))
}

/// Waits for run `count` of the crashing container; returns how long after the end of the one before it ended.
async fn until_run(kubectl: &Kubectl, count: u32, before: Timestamp) -> anyhow::Result<(Duration, Timestamp)> {
    let what = format!("end of run {count}");
    let look = async || runs(kubectl);
    let is_over = |(seen, ended): &(u32, Option<Timestamp>)| *seen >= count && ended.is_some_and(|at| at > before);
    let (seen, ended) = until(&what, LIMIT, look, is_over).await?;
    anyhow::ensure!(seen == count, "run {seen} instead of {count}: no back-off");
    let ended = ended.context("an end")?;
    Ok((
        Duration::try_from(ended.duration_since(before)).unwrap_or_default(),
        ended,
    ))
}

/// The pod runs on, and its probes still say when it is well.
async fn probes_work(fixture: &Fixture, container: &str) -> anyhow::Result<()> {
    let kubectl = &fixture.kubectl;
    let ready = async || {
        kubectl.field(
            &["pod", "steady"],
            "{.status.conditions[?(@.type==\"Ready\")].status} {.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].containerID}",
        )
    };
    for (act, status) in [("rm", "False"), ("touch", "True")] {
        kubectl.run(&["exec", "steady", "--", act, "/tmp/ok"])?;
        let wanted = format!("{status} 0 {container}");
        until(&format!("the pod is {wanted}"), LIMIT, ready, |seen| *seen == wanted).await?;
    }
    let node = kubectl.field(&["node", NODE], "{.status.conditions[?(@.type==\"Ready\")].status}")?;
    anyhow::ensure!(node == "True", "the node is Ready: {node}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_disturbs_nothing() -> anyhow::Result<()> {
    on_cluster(1, async |fixture| {
        let clock = Clock::new(fixture.cluster.home())?;
        fixture.cluster.kill(Role::Kubelet, NODE)?;
        fixture.cluster.restart_as(Role::Kubelet, NODE, clock.program())?;
        fixture.cluster.wait_until_ready().await?;
        let kubectl = fixture.kubectl.clone();
        kubectl.apply(PODS)?;
        kubectl.run(&["wait", "pod/steady", "--for=condition=Ready", "--timeout=30s"])?;
        let container = kubectl.field(&["pod", "steady"], "{.status.containerStatuses[0].containerID}")?;
        let token = || kubectl.run(&["exec", "steady", "--", "cat", "/token/token"]);
        let first = token()?;

        // The first restart comes at once, the second after 10 s, the third after 20 s: a step in each wait.
        let (_, ended) = until_run(&kubectl, 1, Timestamp::UNIX_EPOCH).await?;
        clock.set("+1h")?;
        let (waited, ended) = until_run(&kubectl, 2, ended).await?;
        println!("an hour forward: a restart after {waited:.1?}");
        anyhow::ensure!((9..17).contains(&waited.as_secs()), "10 s: {waited:?}");
        let hour = SignedDuration::from_mins(58);
        until(
            "a lease an hour ahead",
            LIMIT,
            async || ahead(&kubectl),
            |ahead| *ahead > hour,
        )
        .await?;
        probes_work(fixture, &container).await?;

        clock.set("+0")?;
        let (waited, _) = until_run(&kubectl, 3, ended).await?;
        println!("an hour back: a restart after {waited:.1?}");
        anyhow::ensure!((19..29).contains(&waited.as_secs()), "20 s: {waited:?}");
        let minute = SignedDuration::from_mins(1);
        until(
            "a lease of now",
            LIMIT,
            async || ahead(&kubectl),
            |ahead| *ahead < minute,
        )
        .await?;
        probes_work(fixture, &container).await?;
        anyhow::ensure!(first == token()?, "a token that is good is kept");
        Ok(())
    })
    .await
}
