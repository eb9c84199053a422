//! The steps, in their order. Each builds on those before it.

mod failures;
mod install;
mod network;
mod pods;
mod reset;

use std::time::Instant;

use anyhow::Context as _;

use crate::cluster::Cluster;

type Step = (&'static str, fn(&mut Cluster) -> anyhow::Result<()>);

/// What every change is tested with.
const SHORT: [Step; 10] = [
    ("the package installs, and nothing runs yet", install::package),
    ("skiff init makes the first machine a cluster", install::init),
    ("the printed line joins the others", install::join),
    ("a Deployment runs", pods::deployment),
    ("its ClusterIP answers on every machine", network::cluster_ip),
    ("its NodePort answers from another machine", network::node_port),
    ("pods find it by name", network::dns),
    ("kubectl exec and logs", pods::exec_and_logs),
    ("a memory limit holds, under cgroup v2 and systemd", pods::memory_limit),
    ("a worker restarts and takes its pods up again", failures::worker_reboot),
];

/// What more the full form does.
const FULL: [Step; 4] = [
    ("pods are spread over the workers", pods::spread),
    ("the master restarts, pods serve meanwhile", failures::master_reboot),
    ("a worker loses its power, its pods move", failures::power_cut),
    ("skiff reset leaves the machines clean", reset::clean),
];

/// Runs them until one fails.
///
/// # Errors
/// What the step says that failed.
pub(crate) fn run(cluster: &mut Cluster, full: bool) -> anyhow::Result<()> {
    let further = if full { &FULL[..] } else { &[] };
    for (name, step) in SHORT.iter().chain(further) {
        let begin = Instant::now();
        step(cluster).context(*name)?;
        println!("{:5.0} s  {name}", begin.elapsed().as_secs_f64());
    }
    Ok(())
}
