//! The API server is gone for a while: what can run runs on and starts anew by its policy, once each time, and all of it is told
//! when the server is back.
//!
//! `SKIFF_OUTAGE=600 cargo nextest run -p skiff-tests --test outage` is the long form, in seconds: by then the node's lease is long
//! over, and nodes that are silent for five minutes lose their pods.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use skiff_cluster::Role;
use skiff_tests::wait::until;
use skiff_tests::{Fixture, on_cluster};
use tokio::time::Instant;

const LIMIT: Duration = Duration::from_secs(60);
const NODE: &str = "node-1";
const SHORT: u64 = 15;
/// Of a core, what the kubelet may take while nobody answers it: five pods with probes each second are some of it.
const SHARE: f64 = 0.25;

/// Each start of a container leaves a line with the machine's uptime; who finds the file `end` ends.
const BEGIN: &str = "rm -f /ctl/end; cut -d ' ' -f 1 /proc/uptime >>/ctl/at";
const END: &str = "while [ ! -e /ctl/end ]; do usleep 50000; done";

/// In the long form this one is to be renewed while nobody can.
const TOKEN: &str =
    "  - {name: token, projected: {sources: [{serviceAccountToken: {path: token, expirationSeconds: 600}}]}}\n";

/// Name, what it does, and more of its spec.
fn pods() -> [(&'static str, String, &'static str); 4] {
    [
        (
            "steady",
            format!("{BEGIN}; touch /tmp/ok; {END}"),
            "livenessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1}, readinessProbe: {exec: {command: ['true']}, periodSeconds: 1}, ",
        ),
        ("crashing", BEGIN.to_owned(), ""),
        ("again", format!("{BEGIN}; {END}; exit 3"), ""),
        ("once", format!("{BEGIN}; {END}"), ""),
    ]
}

fn manifest() -> String {
    let pod = |(name, script, more): (&str, String, &str)| {
        let policy = if name == "once" { "Never" } else { "Always" };
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: {policy}\n  \
             terminationGracePeriodSeconds: 1\n  containers:\n  - {{name: c, image: 'docker.io/library/busybox:1.36', imagePullPolicy: \
             Never, {more}command: [sh, -c, \"{script}\"], volumeMounts: [{{name: ctl, mountPath: /ctl}}, {{name: token, mountPath: \
             /token}}]}}\n  volumes:\n  - {{name: ctl, emptyDir: {{}}}}\n{TOKEN}"
        )
    };
    pods().into_iter().map(pod).collect()
}

/// When containers of a pod began, in seconds, as they say themselves.
fn starts(ctl: &Path) -> anyhow::Result<Vec<f64>> {
    let text = std::fs::read_to_string(ctl.join("at")).context("the container's file")?;
    text.lines().map(|line| line.parse().context("a number")).collect()
}

/// The back-off of a container that ends at once: nothing, 10 s, twice as much each time up to five minutes.
fn assert_backed_off(starts: &[f64]) {
    for (index, pair) in starts.windows(2).enumerate() {
        let delay = match index {
            0 => 0.0,
            _ => 10.0 * 2_f64.powi(i32::try_from(index).unwrap_or(i32::MAX) - 1).min(30.0),
        };
        let waited = pair[1] - pair[0];
        assert!(
            waited > delay - 0.5 && waited < delay + 8.0,
            "{waited:.1} s instead of {delay} s: {starts:?}"
        );
    }
}

/// CPU that a process has used so far, in seconds.
fn cpu(fixture: &Fixture) -> anyhow::Result<f64> {
    let process = fixture
        .cluster
        .record()
        .process(Role::Kubelet, NODE)
        .context("a kubelet")?;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid))?;
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    // utime and stime, counted from the state that follows the name.
    let ticks = fields.skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
}

/// What must be as it was: the pods with their containers, and since when the node is Ready.
fn lasting(fixture: &Fixture) -> anyhow::Result<String> {
    let kubectl = &fixture.kubectl;
    let uids = kubectl.field(
        &["pods"],
        "{.items[*].metadata.uid}{.items[*].metadata.deletionTimestamp}",
    )?;
    let steady = kubectl.field(&["pod", "steady"], "{.status.containerStatuses[0].containerID}")?;
    let ready = "{.status.conditions[?(@.type==\"Ready\")].lastTransitionTime}{.spec.taints}";
    Ok(format!("{uids} {steady} {}", kubectl.field(&["node", NODE], ready)?))
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_go_on_without_the_api_server_and_nothing_is_done_twice() -> anyhow::Result<()> {
    let outage = match std::env::var("SKIFF_OUTAGE") {
        Ok(seconds) => seconds.parse().context("SKIFF_OUTAGE is a number of seconds")?,
        Err(_) => SHORT,
    };
    let outage = Duration::from_secs(outage);
    on_cluster(1, async |fixture| {
        fixture.kubectl.apply(&manifest())?;
        let restarts = "{.status.containerStatuses[0].restartCount}";
        let kubectl = fixture.kubectl.clone();
        let waits = async || kubectl.field(&["pod", "crashing"], restarts);
        until("the first restart of what crashes", LIMIT, waits, |count| count == "1").await?;
        for name in ["steady", "again", "once"] {
            kubectl.run(&["wait", &format!("pod/{name}"), "--for=condition=Ready", "--timeout=40s"])?;
        }
        let node = fixture.cluster.node(NODE)?;
        let ctl = |name: &str| -> anyhow::Result<PathBuf> {
            let uid = kubectl.field(&["pod", name], "{.metadata.uid}")?;
            Ok(node
                .kubelet_root()
                .join("pods")
                .join(uid)
                .join("volumes/kubernetes.io~empty-dir/ctl"))
        };
        let [steady, crashing, again, once] = [ctl("steady")?, ctl("crashing")?, ctl("again")?, ctl("once")?];
        let before = lasting(fixture)?;

        fixture.cluster.kill(Role::Server, NODE)?;
        let (begin, used) = (Instant::now(), cpu(fixture)?);
        for ctl in [&again, &once] {
            std::fs::write(ctl.join("end"), "")?;
        }
        let ran = async || starts(&again);
        until("a restart that nobody can be told of", LIMIT, ran, |starts| {
            starts.len() == 2
        })
        .await?;
        tokio::time::sleep_until(begin + outage).await;
        let share = (cpu(fixture)? - used) / begin.elapsed().as_secs_f64();
        println!(
            "without its API server for {:.0?}, the kubelet took {:.1} % of a core",
            begin.elapsed(),
            share * 100.0
        );
        assert!(share < SHARE, "{share}");

        let back = Instant::now();
        fixture.cluster.restart(Role::Server, NODE)?;
        let told = async || {
            let each =
                "{range .items[*]}{.metadata.name} {.status.phase} {.status.containerStatuses[0].restartCount}\n{end}";
            let runs = starts(&crashing)?.len() - 1;
            Ok((
                kubectl.field(&["pods"], each)?,
                format!("again Running 1\ncrashing Running {runs}\nonce Succeeded 0\nsteady Running 0\n"),
            ))
        };
        until("the status of all pods", LIMIT, told, |(seen, wanted)| seen == wanted).await?;
        println!(
            "{:.1?} after its start the API server knows all; what crashes began at {:?}",
            back.elapsed(),
            starts(&crashing)?
        );
        fixture.cluster.wait_until_ready().await?;
        assert_eq!(
            lasting(fixture)?,
            before,
            "no pod is another, and the node was never lost"
        );
        assert_backed_off(&starts(&crashing)?);
        // What has ended has given its volume back: that it ran once stands in its status.
        let counts = [&steady, &again].map(|ctl| starts(ctl).map_or(0, |starts| starts.len()));
        assert_eq!(counts, [1, 2], "starts of steady and again");
        Ok(())
    })
    .await
}
