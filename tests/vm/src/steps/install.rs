//! The README's path, word for word.

use std::time::Duration;

use anyhow::Context as _;

use crate::cluster::Cluster;
use crate::machine::{COMMAND, Machine};
use crate::readme::has_shape;
use crate::steps::reset;
use crate::wait::until;

/// A unit that has just been started may still be on its way into its sandbox.
const LIMIT: Duration = Duration::from_secs(60);

const UNITS: &str = "skiff-server skiff-kubelet skiff-proxy skiff-ingress";

pub(crate) fn package(cluster: &mut Cluster) -> anyhow::Result<()> {
    for machine in &cluster.lab.machines {
        machine.put("/root/skiff_0_amd64.deb", &cluster.lab.package)?;
    }
    Cluster::on_each(&cluster.lab.machines, cluster.readme.block("every machine")?)?;
    Cluster::on_each(&cluster.lab.machines, cluster.readme.block("images")?)?;
    for machine in &cluster.lab.machines {
        let states = machine
            .shell(&format!("systemctl is-active {UNITS}"), "", COMMAND)?
            .stdout;
        anyhow::ensure!(
            !states.contains("\nactive") && !states.starts_with("active"),
            "{}: a unit runs:\n{states}",
            machine.name
        );
        let before = reset::snapshot(machine)?;
        cluster.before.insert(machine.name.clone(), before);
    }
    Ok(())
}

/// On every machine, before anything else of it is looked at.
pub(crate) fn crun(cluster: &mut Cluster) -> anyhow::Result<()> {
    let block = cluster.block("quick-start.md", "crun")?;
    Cluster::on_each(&cluster.lab.machines, &block).map(drop)
}

pub(crate) fn init(cluster: &mut Cluster) -> anyhow::Result<()> {
    let printed = cluster.master().run(cluster.readme.block("first machine")?)?;
    // People know the line with a backslash in the middle.
    let lines = printed.replace("\\\n", " ");
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown = cluster.readme.block("further machines")?.to_owned();
    let line = lines.lines().map(words).find(|line| has_shape(line, &shown));
    cluster.join_line = line.with_context(|| format!("no line such as {shown:?} was printed:\n{printed}"))?;
    Ok(())
}

/// The line that is refused here is the one that joins afterwards.
pub(crate) fn wrong_clock(cluster: &mut Cluster) -> anyhow::Result<()> {
    let worker = &cluster.workers()[0];
    worker.run("date --set '+1 hour'")?;
    let refused = worker.shell(&cluster.join_line, "", COMMAND)?;
    worker.run("date --set '-1 hour'")?;
    anyhow::ensure!(
        refused.code != 0 && refused.stderr.contains("set the clock"),
        "skiff join ended with {}: {}",
        refused.code,
        refused.stderr
    );
    Ok(())
}

pub(crate) fn join(cluster: &mut Cluster) -> anyhow::Result<()> {
    Cluster::on_each(cluster.workers(), &cluster.join_line)?;
    cluster.wait_until_ready()?;
    let shown = cluster.master().run(cluster.readme.block("nodes")?)?;
    let ready = shown
        .lines()
        .filter(|line| line.split_whitespace().nth(1) == Some("Ready"))
        .count();
    anyhow::ensure!(ready == cluster.lab.machines.len(), "kubectl get nodes shows:\n{shown}");
    keys_are_hidden(cluster.master())
}

/// Who speaks with the world outside does not see the cluster's keys, root or not.
fn keys_are_hidden(master: &Machine) -> anyhow::Result<()> {
    for unit in ["skiff-ingress", "skiff-proxy"] {
        let inside = format!("nsenter --mount --target $(systemctl show --property MainPID --value {unit})");
        let reads = |file: &str| -> anyhow::Result<bool> {
            let seen = master.shell(&format!("{inside} head --bytes 1 /etc/kubernetes/{file}"), "", COMMAND)?;
            Ok(seen.code == 0 && !seen.stdout.is_empty())
        };
        // Its own file first: where that cannot be read, the look at the others shows nothing.
        let own = format!("{}.conf", unit.trim_start_matches("skiff-"));
        until(&format!("{unit} reads {own}"), LIMIT, || reads(&own), |reads| *reads)?;
        for file in ["pki/ca.key", "pki/sa.key", "admin.conf", "super-admin.conf"] {
            anyhow::ensure!(!reads(file)?, "{unit} can read /etc/kubernetes/{file}");
        }
    }
    Ok(())
}

pub(crate) fn untaint(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.wait_until_ready()?;
    cluster.follow("quick-start.md", "pods on the control plane").map(drop)
}
