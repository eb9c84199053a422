//! Several servers on one etcd at once: all serve, one leads, and another goes on when it dies.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use skiff_tests::Kubectl;
use skiff_tests::wait::until;
use tokio::time::Instant;

use crate::servers::{LEASES, LIMIT, Place, Server, create_nodes, endpoints, until_bound};

fn create_deployment(server: &Server, name: &str, replicas: usize) -> anyhow::Result<()> {
    let replicas = format!("--replicas={replicas}");
    let create = ["create", "deployment", name, "--image=example.local/web:1", &replicas];
    let printed = server.kubectl.attempt(&create, "")?;
    // Of an attempt whose answer was lost.
    let is_there = printed.success || printed.stderr.contains("already exists");
    anyhow::ensure!(is_there, "create deployment {name}: {}", printed.stderr);
    Ok(())
}

async fn until_endpoints(server: &Server, wanted: &str) -> anyhow::Result<()> {
    let look = async || endpoints(server);
    let both = |(legacy, slice): &(String, String)| legacy == wanted && slice == wanted;
    let reached = until("the endpoints are right", LIMIT, look, both).await;
    reached.with_context(|| server.report()).map(drop)
}

/// Each of the pods was given a node once.
fn check_scheduled_once(server: &Server, pods: &[String]) -> anyhow::Result<()> {
    let scheduled = ["events", "--field-selector", "reason=Scheduled"];
    let path = "{range .items[*]}{.involvedObject.name}{\"\\n\"}{end}";
    let names = server.kubectl.field(&scheduled, path)?;
    for pod in pods {
        let times = names.lines().filter(|name| name == pod).count();
        // The event of a pod that was bound as its scheduler died may be missing.
        anyhow::ensure!(times <= 1, "{pod} was scheduled {times} times");
    }
    Ok(())
}

/// Two servers, of which the first leads, and nodes to bind pods to.
async fn begin(place: &Place, nodes: usize) -> anyhow::Result<[Server; 2]> {
    let [first, second] = place.start_two().await?;
    for server in [&first, &second] {
        until_endpoints(server, &place.endpoints_of(&[1, 2])).await?;
    }
    create_nodes(&second.kubectl, nodes)?;
    Ok([first, second])
}

/// Waits until a server leads, which must be so within that time of the other's end.
async fn until_takes_over(server: &Server, end: Instant, limit: Duration) -> anyhow::Result<()> {
    for lease in LEASES {
        server.until_leads(lease).await?;
    }
    let took = end.elapsed();
    println!("took over within {took:?}");
    anyhow::ensure!(took < limit, "took over after {took:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_leads_when_the_leader_is_killed() -> anyhow::Result<()> {
    let place = Place::new(1)?;
    let [mut first, second] = begin(&place, 2).await?;
    create_deployment(&second, "web", 10)?;
    until_bound(&second, "web", 10).await?;
    for lease in LEASES {
        anyhow::ensure!(!second.leads(lease)?, "two lead {lease}");
    }

    // In the middle of work.
    create_deployment(&second, "more", 40)?;
    first.kill()?;
    let end = Instant::now();
    // The Lease's duration, and a little for a machine that does other things too.
    until_takes_over(&second, end, Duration::from_secs(8)).await?;
    let mut pods = until_bound(&second, "more", 40).await?;
    pods.extend(until_bound(&second, "web", 10).await?);
    check_scheduled_once(&second, &pods)?;
    second.kubectl.run(&["scale", "deployment", "web", "--replicas=14"])?;
    until_bound(&second, "web", 14).await?;
    until_endpoints(&second, &place.endpoints_of(&[2])).await?;
    let transitions = ["leases", "-n", "kube-system", "kube-scheduler"];
    assert_eq!(second.kubectl.field(&transitions, "{.spec.leaseTransitions}")?, "1");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_hands_over_at_once() -> anyhow::Result<()> {
    let place = Place::new(1)?.with_two_ports()?;
    let [mut first, second] = begin(&place, 1).await?;
    let end = Instant::now();
    let status = first.stop()?;
    anyhow::ensure!(status.success(), "{status}: {}", first.report());
    let (legacy, slices) = endpoints(&second)?;
    let left = place.endpoints_of(&[2]);
    assert_eq!(
        (&legacy, &slices),
        (&left, &left),
        "it has left the endpoints by its end"
    );
    until_takes_over(&second, end, Duration::from_secs(3)).await?;
    create_deployment(&second, "web", 3)?;
    until_bound(&second, "web", 3).await.map(drop)
}

/// Starts to create that many Services of type NodePort, one after the other.
fn begin_services(kubectl: &Kubectl, name: &str, count: usize) -> anyhow::Result<Child> {
    let services: Vec<_> = (0..count)
        .map(|number| {
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("{name}-{number}")},
                "spec": {"type": "NodePort", "ports": [{"port": 80}]},
            })
        })
        .collect();
    let mut command = kubectl.command();
    let mut child = command
        .args(["create", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let list = json!({"apiVersion": "v1", "kind": "List", "items": services}).to_string();
    let mut input = child.stdin.take().context("kubectl's input")?;
    std::io::Write::write_all(&mut input, list.as_bytes())?;
    Ok(child)
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_start_and_work_at_the_same_time_do_not_clash() -> anyhow::Result<()> {
    let mut place = Place::new(1)?;
    // Little room: whoever does not look takes what another has.
    place.more = json!({"serviceClusterIPRange": "10.96.0.0/25", "serviceNodePortRange": "30000-30110"});
    let servers = [place.start(1)?, place.start(2)?];
    for server in &servers {
        server.ready().await?;
    }
    until_endpoints(&servers[0], &place.endpoints_of(&[1, 2])).await?;
    for round in 0..2 {
        let mut running = Vec::new();
        for (number, server) in servers.iter().enumerate() {
            for part in 0..3 {
                running.push(begin_services(&server.kubectl, &format!("s{number}-{part}"), 16)?);
            }
        }
        for mut child in running {
            let status = child.wait()?;
            anyhow::ensure!(
                status.success(),
                "{status}: {} {}",
                servers[0].report(),
                servers[1].report()
            );
        }
        for server in &servers {
            let list = ["services", "-l", "component!=apiserver"];
            let text = server.kubectl.field(
                &list,
                "{range .items[*]}{.spec.clusterIP} {.spec.ports[0].nodePort}{\"\\n\"}{end}",
            )?;
            let pairs: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(' ')).collect();
            let ips: BTreeSet<&str> = pairs.iter().map(|(ip, _)| *ip).collect();
            let ports: BTreeSet<&str> = pairs.iter().map(|(_, port)| *port).collect();
            assert_eq!(
                (pairs.len(), ips.len(), ports.len()),
                (96, 96, 96),
                "round {round}: {pairs:?}"
            );
        }
        let delete = ["delete", "services", "-l", "component!=apiserver"];
        servers[round].kubectl.run(&delete)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_etcd_dies_and_two_servers_go_on() -> anyhow::Result<()> {
    let mut place = Place::new(3)?;
    let servers = [place.start(1)?, place.start(2)?];
    for server in &servers {
        server.ready().await?;
    }
    create_nodes(&servers[0].kubectl, 2)?;
    create_deployment(&servers[0], "before", 5)?;
    until_bound(&servers[1], "before", 5).await?;
    for (number, server) in servers.iter().enumerate() {
        // The member that each was likely to ask first.
        let name = format!("after-{number}");
        place.members[number].kill();
        let create = async || create_deployment(server, &name, 5);
        until("the API writes", LIMIT, create, |()| true)
            .await
            .with_context(|| server.report())?;
        until_bound(server, &name, 5).await?;
        let cluster: Vec<String> = place.members.iter().map(crate::member::Member::introduction).collect();
        place.members[number].start(&cluster);
    }
    let pods = until_bound(&servers[0], "before", 5).await?;
    check_scheduled_once(&servers[0], &pods)
}
