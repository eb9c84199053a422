//! Machines that go, and machines that come back.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, LIMIT};
use crate::machine::{BOOT, COMMAND};
use crate::steps::network::NODE_PORT;
use crate::wait::until;

/// A silent node counts as Ready for this long: upstream's node-monitor-grace-period.
const GRACE: Duration = Duration::from_secs(40);
/// What the kubelet's last lease, the controller's rounds and a loaded machine may add or take.
const SLACK: Duration = Duration::from_secs(30);

/// Pods that leave a lost node after five seconds.
const MOVER: &str = "---
apiVersion: apps/v1
kind: Deployment
metadata: {name: mover}
spec:
  replicas: 2
  selector: {matchLabels: {app: mover}}
  template:
    metadata: {labels: {app: mover}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 5}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 5}
      containers: [{name: main, image: 'docker.io/library/busybox:1.36', imagePullPolicy: Never, command: [sh, -c, 'trap exit TERM; sleep 36000 & wait']}]
";

/// Of the last machine: a worker, where there is one.
pub(crate) fn reboot(cluster: &mut Cluster) -> anyhow::Result<()> {
    let last = cluster.lab.machines.len() - 1;
    cluster.lab.machines[last].reboot()?;
    cluster.wait_until_ready()?;
    let two = |places: &Vec<String>| places.len() == 2;
    until("both pods ready again", LIMIT, || cluster.places("app=hello"), two)?;
    let url = format!("{}:{NODE_PORT}", cluster.lab.machines[last].address);
    cluster.ask(cluster.master(), &url).map(|_| ())
}

pub(crate) fn master_reboot(cluster: &mut Cluster) -> anyhow::Result<()> {
    let former = cluster.master().ask_for_reboot()?;
    let url = format!("http://{}:{NODE_PORT}/", cluster.workers()[1].address);
    let begin = Instant::now();
    let mut answered = 0;
    // As long as the master does not answer with a new start, and a while longer.
    loop {
        let asked =
            cluster.workers()[0].shell(&format!("curl --silent --show-error --max-time 10 {url}"), "", COMMAND)?;
        anyhow::ensure!(
            asked.code == 0,
            "no answer {:?} after the master went: {}",
            begin.elapsed(),
            asked.stderr
        );
        answered += 1;
        let back = cluster
            .master()
            .run("cat /proc/sys/kernel/random/boot_id")
            .is_ok_and(|now| now != former);
        if back {
            break;
        }
        anyhow::ensure!(begin.elapsed() < BOOT, "the master does not come back");
    }
    anyhow::ensure!(answered > 1, "the master was never away");
    cluster.lab.machines[0].wait_until_up()?;
    cluster.wait_until_ready()?;
    cluster
        .kubectl("create configmap after-the-restart --from-literal=a=b")
        .map(|_| ())
}

pub(crate) fn power_cut(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.apply(MOVER)?;
    let two = |places: &Vec<String>| places.len() == 2 && places[0] != places[1];
    until("a pod on each worker", LIMIT, || cluster.places("app=mover"), two)?;

    cluster.lab.machines[2].switch_off();
    let begin = Instant::now();
    let lost = |nodes: &std::collections::BTreeMap<String, bool>| nodes.get("worker-2") == Some(&false);
    until("the node NotReady", LIMIT, || cluster.nodes(), lost)?;
    let noticed = begin.elapsed();
    anyhow::ensure!(
        noticed + SLACK > GRACE && noticed < GRACE + SLACK,
        "NotReady after {noticed:?}, not about {GRACE:?}"
    );
    let moved = |places: &Vec<String>| places.len() == 2 && places.iter().all(|place| place == "worker-1");
    until(
        "both pods on what is left",
        LIMIT,
        || cluster.places("app=mover"),
        moved,
    )?;
    println!(
        "         NotReady after {:.0} s, moved after {:.0} s",
        noticed.as_secs_f64(),
        begin.elapsed().as_secs_f64()
    );

    cluster.lab.machines[2].switch_on()?;
    cluster.lab.machines[2].wait_until_up()?;
    cluster.wait_until_ready()
}
