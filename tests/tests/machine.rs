//! Bare machines become a cluster and bare machines again: `skiff init`, `join`, `reset`.

use anyhow::Context as _;
use skiff_machine::config::InitFlags;
use skiff_tests::machine::Machines;

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_machine_becomes_a_control_plane() -> anyhow::Result<()> {
    let machines = Machines::start(1).await?;
    let [master] = &machines.all[..] else {
        unreachable!("one was asked for")
    };
    let done = master.init(InitFlags::default())?;
    let done = done.map_err(|error| anyhow::anyhow!("{}\n{}", skiff_daemon::error_chain(&error), master.report()))?;
    assert!(
        done.join_command.contains("skiff join 172.30.0.11:6443 --token "),
        "{}",
        done.join_command
    );

    let nodes = master.kubectl(&["get", "nodes", "--no-headers"])?;
    assert!(nodes.contains("Ready") && nodes.contains("control-plane"), "{nodes}");
    let taints = master.kubectl(&["get", "node", &master.node.name, "-o", "jsonpath={.spec.taints[*].key}"])?;
    assert_eq!(taints, "node-role.kubernetes.io/control-plane");

    let again = master.init(InitFlags::default())?;
    let again = again.err().context("a second init must be refused")?.to_string();
    assert!(
        again.contains("control plane already") && again.contains("skiff reset"),
        "{again}"
    );
    Ok(())
}
