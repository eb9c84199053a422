//! Pods, as a person runs them.

use std::collections::BTreeSet;

use crate::cluster::{Cluster, LIMIT};
use crate::wait::until;

/// Takes a hundred megabytes where it may have 32.
const GREEDY: &str = "---
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: docker.io/library/busybox:1.36
    imagePullPolicy: Never
    command: [sh, -c, 'cat /sys/fs/cgroup/memory.max; exec dd if=/dev/zero of=/dev/null bs=100M count=1']
    resources: {limits: {memory: 32Mi}}
";

pub(crate) fn deployment(cluster: &mut Cluster) -> anyhow::Result<()> {
    // Each of its lines must succeed, not the last one alone.
    let typed = format!("set -e\n{}", cluster.readme.block("try it")?);
    cluster.master().run(&typed)?;
    let places = cluster.places("app=hello")?;
    anyhow::ensure!(places.len() == 2, "ready pods run on {places:?}");
    let on_tainted = !cluster.workers().is_empty() && places.contains(&"master".to_owned());
    anyhow::ensure!(!on_tainted, "a pod runs on the tainted master: {places:?}");
    Ok(())
}

/// runc keeps what it knows of a container in `state.json`, crun in `status`.
pub(crate) fn made_by_crun(cluster: &mut Cluster) -> anyhow::Result<()> {
    for machine in &cluster.lab.machines {
        let states = machine.run("find /run/containerd/runc/k8s.io -name status -o -name state.json")?;
        let alone = states.contains("/status") && !states.contains("state.json");
        anyhow::ensure!(alone, "{}: not by crun, or not all of them:\n{states}", machine.name);
    }
    Ok(())
}

pub(crate) fn spread(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.kubectl("scale deployment/hello --replicas 4")?;
    let spread = |places: &Vec<String>| places.len() == 4 && places.iter().collect::<BTreeSet<_>>().len() == 2;
    until(
        "four pods on two workers",
        LIMIT,
        || cluster.places("app=hello"),
        spread,
    )
    .map(|_| ())
}

pub(crate) fn exec_and_logs(cluster: &mut Cluster) -> anyhow::Result<()> {
    let said = cluster.kubectl("exec client -- sh -c 'echo in the pod; cat /proc/1/comm >&2; exit 0'")?;
    anyhow::ensure!(said == "in the pod", "exec printed {said:?}");
    let typed = cluster.master().run("echo typed | kubectl exec -i client -- cat")?;
    anyhow::ensure!(typed == "typed", "exec with an input printed {typed:?}");
    let refused = cluster.master().run("kubectl exec client -- sh -c 'exit 7'; echo $?")?;
    anyhow::ensure!(
        refused.lines().last() == Some("7"),
        "exec hides the exit code: {refused:?}"
    );
    let logs = cluster.kubectl("logs deployment/hello")?;
    let served = cluster.kubectl("exec deployment/hello -- sh -c 'echo to the log >/proc/1/fd/1'")?;
    anyhow::ensure!(served.is_empty(), "exec printed {served:?}");
    let more = |now: &String| now.strip_prefix(&logs).is_some_and(|more| more.trim() == "to the log");
    until(
        "the line in the log",
        LIMIT,
        || cluster.kubectl("logs deployment/hello"),
        more,
    )
    .map(drop)
}

pub(crate) fn memory_limit(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.apply(GREEDY)?;
    // containerd 1.6 sees a container's end before its cause here, and then says Error: the kubelet asks the kernel.
    let ended = "get pod greedy --output jsonpath={.status.phase}";
    until(
        "the end of who takes too much",
        LIMIT,
        || cluster.kubectl(ended),
        |phase| phase == "Failed",
    )?;
    let terminated = "{.status.containerStatuses[0].state.terminated.";
    let why = cluster.kubectl(&format!(
        "get pod greedy --output jsonpath={terminated}reason}}/{terminated}exitCode}}"
    ))?;
    anyhow::ensure!(why == "OOMKilled/137", "the end of who takes too much: {why}");
    let log = cluster.kubectl("logs greedy")?;
    anyhow::ensure!(log.starts_with("33554432"), "the container's memory.max: {log:?}");
    for machine in &cluster.lab.machines {
        let found = machine.run(
            "stat --file-system --format %T /sys/fs/cgroup; systemctl show --property ControlGroup kubepods.slice",
        )?;
        anyhow::ensure!(
            found.contains("cgroup2fs") && found.contains("=/kubepods.slice"),
            "{}: {found}",
            machine.name
        );
    }
    cluster.kubectl("delete pod greedy").map(|_| ())
}
