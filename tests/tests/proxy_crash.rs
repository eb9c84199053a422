//! The proxy's own process is killed while iptables is writing for it: what leads somewhere goes on, and the next one ends
//! with the rules that one alone would have made.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use skiff_cluster::Role;
use skiff_tests::traffic::Traffic;
use skiff_tests::wait::until;
use skiff_tests::{Fixture, binary, on_cluster};
use tokio::time::Instant;

const LIMIT: Duration = Duration::from_secs(60);
const NODE: &str = "node-1";
const HELLO: &str = include_str!("../../examples/hello.yaml");
const SERVICES: usize = 150;

fn services() -> String {
    let mut manifest = String::new();
    for number in 0..SERVICES {
        write!(
            manifest,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number}}}\n\
             spec: {{selector: {{app: hello}}, ports: [{{port: 80, targetPort: 8080}}]}}\n"
        )
        .ok();
    }
    manifest
}

fn in_node(fixture: &Fixture, command: &mut Command) -> anyhow::Result<String> {
    let output = fixture.cluster.namespace(NODE)?.run(|| command.output())??;
    let complaint = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{command:?}: {complaint}");
    Ok(String::from_utf8(output.stdout)?)
}

/// The rules in an order of their own, when every Service leads to so many pods.
async fn rules(fixture: &Fixture, pods: usize) -> anyhow::Result<Vec<String>> {
    let look = async || {
        let saved = in_node(fixture, &mut Command::new("iptables-save"))?;
        let kept = saved
            .lines()
            .filter(|line| line.starts_with("-A") || line.starts_with(":KUBE"));
        let mut kept: Vec<String> = kept.map(str::to_owned).collect();
        kept.sort();
        Ok(kept)
    };
    let complete = |rules: &Vec<String>| {
        let leads =
            |rule: &&String| rule.starts_with("-A KUBE-SVC-") && rule.contains("default/s") && rule.contains(" -> ");
        rules.iter().filter(leads).count() == SERVICES * pods
    };
    until(
        &format!("{SERVICES} Services lead to {pods} pods each"),
        LIMIT,
        look,
        complete,
    )
    .await
}

/// Waits until iptables writes for the process.
fn wait_until_it_writes(pid: i32) -> anyhow::Result<()> {
    let began = Instant::now();
    while began.elapsed() < LIMIT {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).context("the proxy ended by itself")?;
        for thread in threads.flatten() {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace() {
                let line = std::fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default();
                if line.contains("-restore\0") {
                    return Ok(());
                }
            }
        }
        std::thread::yield_now();
    }
    anyhow::bail!("the proxy writes no rules")
}

async fn scale(fixture: &Fixture, pods: usize) -> anyhow::Result<()> {
    let kubectl = &fixture.kubectl;
    kubectl.run(&["scale", "deployment/hello", &format!("--replicas={pods}")])?;
    kubectl.run(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
    // Their slices follow; the last Service's are among the last.
    let last = format!("kubernetes.io/service-name=s{}", SERVICES - 1);
    let look = async || {
        kubectl.field(
            &["endpointslices", "-l", &last],
            "{.items[*].endpoints[*].addresses[0]}",
        )
    };
    until("the slices follow", LIMIT, look, |ips| {
        ips.split_whitespace().count() == pods
    })
    .await
    .map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_rules_are_written_the_next_proxy_ends_with_the_same() -> anyhow::Result<()> {
    on_cluster(1, async |fixture| {
        fixture.kubectl.apply(HELLO)?;
        let created = fixture.kubectl.attempt(&["create", "-f", "-"], &services())?;
        anyhow::ensure!(created.success, "{created:?}");
        scale(fixture, 2).await?;
        rules(fixture, 2).await?;
        let ip = fixture.kubectl.field(&["service", "hello"], "{.spec.clusterIP}")?;
        let service = SocketAddr::new(ip.parse().context("the cluster IP")?, 80);
        let traffic = Traffic::start(fixture.cluster.namespace(NODE)?, service)?;

        let mut pods = 2;
        for pause in [0, 2, 5, 15, 40] {
            fixture.cluster.kill(Role::Proxy, NODE)?;
            pods += 1;
            scale(fixture, pods).await?;
            fixture.cluster.restart(Role::Proxy, NODE)?;
            let process = fixture.cluster.record().process(Role::Proxy, NODE);
            wait_until_it_writes(process.context("the proxy runs")?.pid)?;
            // The moment within the writing is what is tried here, not waited for.
            std::thread::sleep(Duration::from_millis(pause));
            fixture.cluster.kill(Role::Proxy, NODE)?;
        }
        fixture.cluster.restart(Role::Proxy, NODE)?;
        let left = rules(fixture, pods).await?;
        let outcome = traffic.stop()?;
        assert_eq!(outcome.failures, Vec::<String>::new(), "requests lost");

        fixture.cluster.kill(Role::Proxy, NODE)?;
        in_node(fixture, Command::new(binary()?).args(["proxy", "--cleanup"]))?;
        fixture.cluster.restart(Role::Proxy, NODE)?;
        let fresh = rules(fixture, pods).await?;
        assert_eq!(left, fresh);
        Ok(())
    })
    .await
}
