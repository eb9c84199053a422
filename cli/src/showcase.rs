//! What `skiff up --apply` shows: nodes, pods, and the answers of the Services in the manifests.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use kube::Api;
use skiff_api::k8s_openapi::api::core::v1::Service;
use skiff_cluster::layout::NAMESPACES;
use skiff_cluster::{Cluster, Progress};
use skiff_net::netns::Namespace;

const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Applies the manifests with `kubectl`, waits for their workloads, and tells what came of it.
pub(crate) async fn apply_and_show(
    cluster: &Cluster,
    manifests: &Path,
    progress: &dyn Progress,
) -> anyhow::Result<String> {
    let kubectl = |arguments: &[&str]| {
        let mut command = Command::new("kubectl");
        command
            .arg("--kubeconfig")
            .arg(cluster.layout().admin_kubeconfig())
            .args(arguments);
        run(command)
    };
    let file = manifests.to_str().context("the path of the manifests is not text")?;
    let applied = kubectl(&["apply", "-o", "name", "-f", file])?;
    for workload in applied.lines().filter(|name| name.starts_with("deployment.apps/")) {
        progress.step(&format!("waiting for {workload}"));
        kubectl(&["rollout", "status", "--timeout=60s", workload])?;
    }
    let mut shown = kubectl(&["get", "nodes", "-o", "wide"])?;
    shown += &format!("\n{}", kubectl(&["get", "pods", "-o", "wide"])?);
    let services: Vec<&str> = applied
        .lines()
        .filter_map(|name| name.strip_prefix("service/"))
        .collect();
    for name in services {
        shown += &format!("\n{}", ask(cluster, name).await?);
    }
    Ok(shown)
}

/// What a Service answers through its cluster IP, and through its node port on the last node.
async fn ask(cluster: &Cluster, name: &str) -> anyhow::Result<String> {
    let services: Api<Service> = Api::default_namespaced(cluster.client().await?);
    let spec = services
        .get(name)
        .await
        .with_context(|| format!("read service {name}"))?
        .spec
        .unwrap_or_default();
    let nodes = cluster.nodes();
    let namespace = Namespace::open_named(Path::new(NAMESPACES), nodes[0].namespace())?;
    let last = nodes.last().map_or(nodes[0].address, |node| node.address);
    let cluster_ip: Option<IpAddr> = spec.cluster_ip.as_deref().and_then(|ip| ip.parse().ok());
    let mut shown = String::new();
    for port in spec.ports.unwrap_or_default() {
        let through = [
            cluster_ip.map(|ip| ("ClusterIP", ip, port.port)),
            port.node_port.map(|node_port| ("NodePort", last, node_port)),
        ];
        for (way, ip, number) in through.into_iter().flatten() {
            let target = SocketAddr::new(ip, u16::try_from(number).context("a port")?);
            let answer = namespace.run(|| http_get(target))?;
            let answer = answer.with_context(|| format!("ask service {name} through its {way} {target}"))?;
            shown += &format!("service/{name} through its {way} {target}: {}\n", answer.trim());
        }
    }
    Ok(shown)
}

fn http_get(target: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&target, ANSWER_WITHIN)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    write!(stream, "GET / HTTP/1.0\r\nHost: {target}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("it answered no HTTP")?;
    Ok(body.to_owned())
}

fn run(mut command: Command) -> anyhow::Result<String> {
    let output = command.output().context("run kubectl: is it installed?")?;
    anyhow::ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
