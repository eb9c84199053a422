//! Bare machines become a cluster and bare machines again: `skiff init`, `join`, `reset`.

use anyhow::Context as _;
use skiff_machine::config::InitFlags;
use skiff_machine::Error;
use skiff_tests::machine::{Machines, TestMachine};

fn told<T>(result: Result<T, Error>, machine: &TestMachine) -> anyhow::Result<T> {
    result.map_err(|error| anyhow::anyhow!("{}\n{}", skiff_daemon::error_chain(&error), machine.report()))
}

/// What a person is told by a command that must fail.
fn refusal<T>(result: Result<T, Error>) -> anyhow::Result<String> {
    let error = result.err().context("it should have failed")?;
    Ok(skiff_daemon::error_chain(&error))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_machine_becomes_a_control_plane() -> anyhow::Result<()> {
    let machines = Machines::start(1).await?;
    let master = &machines.all[0];
    let done = told(master.init(InitFlags::default())?, master)?;
    let line = done.join_command;
    assert!(line.contains("skiff join 172.30.0.11:6443 --token "), "{line}");

    let nodes = master.kubectl(&["get", "nodes", "--no-headers"])?;
    assert!(nodes.contains("Ready") && nodes.contains("control-plane"), "{nodes}");
    let name = &master.node.name;
    let taints = master.kubectl(&["get", "node", name, "-o", "jsonpath={.spec.taints[*].key}"])?;
    assert_eq!(taints, "node-role.kubernetes.io/control-plane");

    let again = refusal(master.init(InitFlags::default())?)?;
    assert!(
        again.contains("control plane already") && again.contains("skiff reset"),
        "{again}"
    );
    Ok(())
}
