//! `skiff reset`: the machine is as it was before it became a node.

use crate::cluster::Cluster;
use crate::machine::Machine;

/// What a node leaves traces in. Counters and what changes by itself are left out.
const SNAPSHOT: &str = r"
echo '# packet rules'; iptables-save | grep -E '^-A|^:[A-Z]+-' | sed 's/ \[.*//' | sort
echo '# links'; ip -o link show | awk -F': ' '{ print $2 }' | sort
echo '# routes'; ip route show | sort
echo '# mounts'; awk '{ print $2 }' /proc/mounts | grep -E 'kubelet|containerd|netns|cni|skiff' | sort
echo '# files'; find /etc/kubernetes /etc/skiff /etc/cni /var/lib/kubelet /var/lib/cni /var/lib/skiff /var/log/pods /var/log/containers /opt/cni/bin /usr/lib/cni -type f -o -type l 2>/dev/null | sort
echo '# containerd'; sha256sum /etc/containerd/config.toml
echo '# processes'; ps -e -o comm= | grep -E 'skiff|shim|pause' | sort
echo '# enabled'; systemctl list-unit-files --state enabled --no-legend 'skiff-*' | awk '{ print $1 }'
echo '# slices'; ls -d /sys/fs/cgroup/kubepods* 2>/dev/null
true
";

/// What a machine holds.
pub(crate) fn snapshot(machine: &Machine) -> anyhow::Result<String> {
    machine.run(SNAPSHOT)
}

pub(crate) fn clean(cluster: &mut Cluster) -> anyhow::Result<()> {
    let reset = cluster.readme.block("reset")?;
    Cluster::on_each(cluster.workers(), reset)?;
    cluster.master().run(reset)?;
    for machine in &cluster.lab.machines {
        let (before, after) = (&cluster.before[&machine.name], snapshot(machine)?);
        let more: Vec<&str> = after
            .lines()
            .filter(|line| !before.lines().any(|known| known == *line))
            .collect();
        let less: Vec<&str> = before
            .lines()
            .filter(|line| !after.lines().any(|known| known == *line))
            .collect();
        anyhow::ensure!(
            more.is_empty() && less.is_empty(),
            "{}: left: {more:#?}, gone: {less:#?}",
            machine.name
        );
    }
    Ok(())
}
