//! What a pod gets of its machine, where only a real one can show it: slices of cgroup v2, huge pages, project quotas.

use anyhow::Context as _;

use crate::cluster::{Cluster, LIMIT};
use crate::machine::Machine;
use crate::wait::until;

/// Four pages of 2 MiB, of which the pod may have two.
const HUGE_PAGES: &str = "---
apiVersion: v1
kind: Pod
metadata: {name: bounded}
spec:
  terminationGracePeriodSeconds: 0
  resources: {limits: {cpu: 500m, memory: 64Mi}}
  containers:
  - name: main
    image: docker.io/library/busybox:1.36
    imagePullPolicy: Never
    command: [sh, -c, 'fallocate -l 4M /huge/a && echo two fit; fallocate -l 2M /huge/b || echo no third; exec sleep 36000']
    resources: {limits: {memory: 32Mi, hugepages-2Mi: 4Mi}}
    volumeMounts: [{name: huge, mountPath: /huge}]
  volumes: [{name: huge, emptyDir: {medium: HugePages}}]
";

/// Writes twice as much as it asked for.
const GREEDY: &str = "---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: NAME}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 16Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: MACHINE}
  containers:
  - name: main
    image: docker.io/library/busybox:1.36
    imagePullPolicy: Never
    command: [sh, -c, 'dd if=/dev/zero of=/data/large bs=1M count=32 && echo all of it; stat -c %s /data/large; exec sleep 36000']
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: NAME}}]
";

/// Where the volumes of the last machine are, and the files that stand for disks with project quotas.
const VOLUMES: &str = "/var/lib/kubelet/local-path";
const DISK: &str = "/root/disk-with-quotas";

/// The machine whose pods are looked at: a worker, where there is one.
fn last(cluster: &Cluster) -> anyhow::Result<&Machine> {
    cluster.lab.machines.last().context("a machine")
}

/// Limits of a pod as a whole are in the files of its slice, those of a container in its scope's; huge pages are counted.
pub(crate) fn pod_limits(cluster: &mut Cluster) -> anyhow::Result<()> {
    let machine = last(cluster)?;
    // Pages are counted when the kubelet starts, as upstream's does.
    machine.run("echo 4 >/proc/sys/vm/nr_hugepages; systemctl restart skiff-kubelet")?;
    let name = &machine.name;
    let capacity = format!("get node {name} --output jsonpath={{.status.allocatable.hugepages-2Mi}}");
    until(
        "the node's huge pages",
        LIMIT,
        || cluster.kubectl(&capacity),
        |pages| pages == "8Mi",
    )?;
    cluster.apply(HUGE_PAGES)?;
    until(
        "the pod has taken its pages, and no more",
        LIMIT,
        || cluster.kubectl("logs bounded"),
        |log| log.contains("two fit") && log.contains("no third"),
    )?;
    let uid = cluster.kubectl("get pod bounded --output jsonpath={.metadata.uid}")?;
    let files = machine.run(&format!(
        "cd $(find /sys/fs/cgroup/kubepods.slice -type d -name '*-pod{}.slice')\n\
         head --verbose --lines 1 memory.max cpu.max hugetlb.2MB.max cri-containerd-*.scope/memory.max",
        uid.replace('-', "_")
    ))?;
    for (file, value) in [
        ("memory.max", "67108864"),
        ("cpu.max", "50000 100000"),
        ("hugetlb.2MB.max", "4194304"),
        (".scope/memory.max", "33554432"),
    ] {
        let wanted = format!("{file} <==\n{value}\n");
        anyhow::ensure!(
            format!("{files}\n").contains(&wanted),
            "{file} is not {value}:\n{files}"
        );
    }
    cluster.kubectl("delete pod bounded")?;
    machine
        .run("echo 0 >/proc/sys/vm/nr_hugepages; systemctl restart skiff-kubelet")
        .map(drop)
}

/// The size that a pod tells, wherever among what `dd` tells on the other stream.
fn written(log: &str) -> Option<u64> {
    log.lines().find_map(|line| line.parse().ok())
}

/// A volume holds as much as its claim asked for where the file system counts, and the claim is told where it does not.
pub(crate) fn volume_size(cluster: &mut Cluster) -> anyhow::Result<()> {
    let machine = last(cluster)?;
    // A file system that counts holds nobody to a limit without the mount option. A disk for each: what is mounted anywhere still keeps
    // its options.
    for (name, options, kept) in [("kept", "loop,prjquota", true), ("counted", "loop", false)] {
        let disk = format!("{DISK}-{name}");
        machine.run(&format!(
            "set -e; truncate --size 256M {disk}; mkfs.ext4 -q -O quota,project {disk}; mkdir --parents {VOLUMES}\n\
             mount --options {options} {disk} {VOLUMES}"
        ))?;
        cluster.apply(&GREEDY.replace("NAME", name).replace("MACHINE", &machine.name))?;
        let log = until(
            "the pod has written",
            LIMIT,
            || cluster.kubectl(&format!("logs {name}")),
            |log| written(log).is_some(),
        )?;
        let size = written(&log);
        anyhow::ensure!(
            (size <= Some(16 << 20)) == kept && log.contains("all of it") != kept,
            "{name}: {log}"
        );
        let refused = log.contains("No space left on device") || log.contains("uota exceeded");
        anyhow::ensure!(refused == kept, "{name}: {log}");
        let events =
            format!("get events --field-selector involvedObject.kind=PersistentVolumeClaim,involvedObject.name={name}");
        until(
            "the claim's events",
            LIMIT,
            || cluster.kubectl(&events),
            |text| text.contains("ProvisioningSucceeded") && text.contains("SizeNotEnforced") != kept,
        )?;
        let state = cluster.kubectl(&format!(
            "get pod {name} --output jsonpath={{.status.phase}}/{{.status.containerStatuses[0].restartCount}}"
        ))?;
        anyhow::ensure!(state == "Running/0", "{name} is {state}");
        cluster.kubectl(&format!("delete pod/{name} pvc/{name}"))?;
        until(
            "the volume is gone",
            LIMIT,
            || cluster.kubectl("get pv --output name"),
            String::is_empty,
        )?;
        machine.run(&format!("umount {VOLUMES}; rm {disk}"))?;
    }
    Ok(())
}
