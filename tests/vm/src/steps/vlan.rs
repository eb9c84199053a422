//! `vlan` of the bridge plugin, on a kernel that has it: Debian's has, that of a build machine may not.

use std::path::Path;

use anyhow::Context as _;

use crate::cluster::Cluster;

/// Upstream's plugins, from Debian's package containernetworking-plugins on the machine that runs the suite.
const UPSTREAM: &str = "/usr/lib/cni";
const SCRIPT: &str = include_str!("vlan/script.sh");
/// Containers a and b are in VLAN 100 with the node's gateway, c is in 200, d in none; all addresses are of one subnet.
const REACHES: [&str; 7] = [
    "a reaches 10.50.0.20",
    "a reaches 10.50.0.1",
    "a does not reach 10.50.0.30",
    "a does not reach 10.50.0.40",
    "c does not reach 10.50.0.20",
    "d does not reach 10.50.0.20",
    "d does not reach 10.50.0.1",
];

/// Containers of one VLAN reach each other and their gateway and nobody else, and all is as upstream's plugin makes it.
pub(crate) fn segments(cluster: &mut Cluster) -> anyhow::Result<()> {
    let machine = cluster.master();
    machine.run("mkdir -p /root/vlan/ours /root/vlan/theirs")?;
    for plugin in ["bridge", "host-local"] {
        let file = Path::new(UPSTREAM).join(plugin);
        let program = std::fs::read(&file)
            .with_context(|| format!("read {}: is containernetworking-plugins installed?", file.display()))?;
        let there = format!("/root/vlan/theirs/{plugin}");
        machine.put(&there, &program)?;
        machine.run(&format!(
            "chmod 755 {there}; ln -sf /usr/lib/skiff/skiff-cni /root/vlan/ours/{plugin}"
        ))?;
    }
    machine.put("/root/vlan/script.sh", SCRIPT.as_bytes())?;
    let ours = machine.run("sh /root/vlan/script.sh /root/vlan/ours")?;
    for wanted in REACHES {
        anyhow::ensure!(ours.lines().any(|line| line == wanted), "not so: {wanted}\n{ours}");
    }
    let theirs = machine.run("sh /root/vlan/script.sh /root/vlan/theirs")?;
    anyhow::ensure!(ours == theirs, "ours:\n{ours}\nupstream's:\n{theirs}");
    machine.run("rm -r /root/vlan").map(drop)
}
