//! The steps, in their order. Each builds on those before it.

mod documents;
mod failures;
mod install;
mod network;
mod pods;
mod reset;
mod resources;
mod vlan;

use std::time::Instant;

use anyhow::Context as _;

use crate::Form;
use crate::cluster::Cluster;

type Step = (&'static str, fn(&mut Cluster) -> anyhow::Result<()>);

const PACKAGE: Step = ("the package installs, and nothing runs yet", install::package);
const INIT: Step = ("skiff init makes the first machine a cluster", install::init);
const DEPLOYMENT: Step = ("a Deployment runs", pods::deployment);
const CLUSTER_IP: Step = ("its ClusterIP answers on every machine", network::cluster_ip);
const DNS: Step = ("pods find it by name", network::dns);
const EXEC: Step = ("kubectl exec and logs", pods::exec_and_logs);
const MEMORY: Step = ("a memory limit holds, under cgroup v2 and systemd", pods::memory_limit);
const POD_LIMITS: Step = (
    "a pod's own limits and its huge pages are in its slice",
    resources::pod_limits,
);
const VOLUME_SIZE: Step = (
    "a volume's size is kept by project quotas, or told not to be",
    resources::volume_size,
);
const DOCUMENTS: Step = (
    "what the user's guide tells people to type works: looking around, a backup",
    documents::typed,
);
const REBOOT: Step = ("a machine restarts and takes its pods up again", failures::reboot);
const RESET: Step = ("skiff reset leaves the machines clean", reset::clean);
const VLAN: Step = (
    "the bridge plugin keeps VLANs apart, as upstream's does",
    vlan::segments,
);

/// One machine that is everything.
const ALONE: &[Step] = &[
    PACKAGE,
    INIT,
    ("the master takes pods when it is told to", install::untaint),
    DEPLOYMENT,
    CLUSTER_IP,
    DNS,
    EXEC,
    MEMORY,
    POD_LIMITS,
    VOLUME_SIZE,
    DOCUMENTS,
    REBOOT,
    RESET,
    VLAN,
];

/// What every change is tested with.
const SHORT: &[Step] = &[
    PACKAGE,
    INIT,
    ("a worker whose clock is an hour off is told so", install::wrong_clock),
    ("the printed line joins the others", install::join),
    DEPLOYMENT,
    CLUSTER_IP,
    ("its NodePort answers from another machine", network::node_port),
    DNS,
    EXEC,
    MEMORY,
    REBOOT,
];

/// What more the full form does.
const FULL: &[Step] = &[
    ("pods are spread over the workers", pods::spread),
    ("the master restarts, pods serve meanwhile", failures::master_reboot),
    ("a worker loses its power, its pods move", failures::power_cut),
    POD_LIMITS,
    VOLUME_SIZE,
    DOCUMENTS,
    RESET,
    VLAN,
];

/// Runs them until one fails.
///
/// # Errors
/// What the step says that failed.
pub(crate) fn run(cluster: &mut Cluster, form: Form, crun: bool) -> anyhow::Result<()> {
    let mut steps = match form {
        Form::Alone => ALONE.to_vec(),
        Form::Short => SHORT.to_vec(),
        Form::Full => [SHORT, FULL].concat(),
    };
    if crun {
        steps.insert(0, ("crun takes runc's place", install::crun));
        let deployed = steps.iter().position(|(name, _)| *name == DEPLOYMENT.0);
        let after = deployed.context("a step that deploys")? + 1;
        steps.insert(after, ("its containers are crun's", pods::made_by_crun));
    }
    for (name, step) in steps {
        let begin = Instant::now();
        step(cluster).context(name)?;
        println!("{:5.0} s  {name}", begin.elapsed().as_secs_f64());
    }
    Ok(())
}
