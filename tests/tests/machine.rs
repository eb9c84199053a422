//! Bare machines become a cluster and bare machines again: `skiff init`, `join`, `reset`.

use std::time::Duration;

use anyhow::Context as _;
use skiff_machine::config::InitFlags;
use skiff_machine::{Error, token};
use skiff_tests::machine::{Machines, TestMachine};
use skiff_tests::{binary, build_images};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_joins_runs_a_pod_and_leaves_nothing() -> anyhow::Result<()> {
    let machines = Machines::start(2).await?;
    let (master, worker) = (&machines.all[0], &machines.all[1]);
    for machine in [master, worker] {
        build_images(&binary()?, &machine.layout.images())?;
    }
    let done = told(master.init(InitFlags::default())?, master)?;
    let joined = worker.join(&done.join_command)?;
    let joined = told(joined, worker).with_context(|| master.report())?;
    assert_eq!(joined.address, worker.node.address);
    for machine in [master, worker] {
        let name = &machine.node.name;
        let node = format!("node/{name}");
        master.kubectl(&["wait", "--for=condition=Ready", &node, "--timeout=60s"])?;
        let overrides = format!(r#"{{"spec": {{"nodeName": "{name}"}}}}"#);
        master.kubectl(&["run", name, "--image=skiff.local/hello:1", "--overrides", &overrides])?;
        let pod = format!("pod/{name}");
        master.kubectl(&["wait", "--for=condition=Ready", &pod, "--timeout=60s"])?;
    }
    let bootstrap = worker.layout.kubeconfig("bootstrap-kubelet");
    assert!(!bootstrap.exists(), "the token is still on the worker");

    for machine in [worker, master] {
        let report = machine.reset()?;
        assert!(report.left.is_empty(), "{:?}\n{}", report.left, machine.report());
        let layout = &machine.layout;
        for path in [layout.pki(), layout.config(), layout.kubelet(), layout.record()] {
            assert!(!path.exists(), "{}", path.display());
        }
        // A bare machine can be reset, too.
        assert_eq!(machine.reset()?.left, [""; 0]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_machine_from_joining_is_told() -> anyhow::Result<()> {
    let mut machines = Machines::start(2).await?;
    let line = told(machines.all[0].init(InitFlags::default())?, &machines.all[0])?.join_command;

    machines.all[1].clock = || jiff::Timestamp::now() + Duration::from_secs(3600);
    let ahead = refusal(machines.all[1].join(&line)?)?;
    assert!(ahead.contains("timedatectl set-ntp true"), "{ahead}");
    machines.all[1].clock = jiff::Timestamp::now;

    let (master, worker) = (&machines.all[0], &machines.all[1]);

    let secret = worker.join_with(&line, |flags| {
        let id = flags.token.as_ref().map(|token| token.id().to_owned());
        flags.token = format!("{}.0000000000000000", id.unwrap_or_default()).parse().ok();
    })?;
    let secret = refusal(secret)?;
    assert!(
        secret.contains("slip of the finger") && secret.contains("--print-join-command"),
        "{secret}"
    );
    let wrong = format!("sha256:{}", "0".repeat(64));
    let hash = refusal(worker.join_with(&line, |flags| flags.pins = vec![wrong])?)?;
    assert!(hash.contains("take the hash from the control plane"), "{hash}");
    let taken = Some(master.node.name.clone());
    let name = refusal(worker.join_with(&line, |flags| flags.node.name = taken)?)?;
    assert!(name.contains("--node-name") && name.contains("172.30.0.11"), "{name}");

    // The token goes, as one does that has expired: the cluster signs with it no more.
    let id = line.split("--token ").nth(1).and_then(|rest| rest.get(..6));
    let id = id.context("a token in the line")?.to_owned();
    let deleted = master.run(async |machine| {
        let api = skiff_machine::api::Client::from_file(&machine.layout.kubeconfig("admin")).await?;
        token::delete(&api, &id).await
    })?;
    assert!(told(deleted, master)?);
    let gone = refusal(worker.join(&line)?)?;
    assert!(gone.contains("has expired; get a new one"), "{gone}");

    let nowhere = Some("172.30.0.99:6443".to_owned());
    let dead = refusal(worker.join_with(&line, |flags| flags.endpoint = nowhere)?)?;
    assert!(
        dead.contains("no API server answers at 172.30.0.99:6443 within 30 s"),
        "{dead}"
    );
    assert!(!worker.layout.record().exists(), "something was changed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_machine_from_beginning_is_told_and_mended() -> anyhow::Result<()> {
    let machines = Machines::start(1).await?;
    let master = &machines.all[0];
    let init = || refusal(master.init(InitFlags::default())?);

    let listener = master.listen(6443)?;
    let taken = init()?;
    assert!(taken.contains("[ERROR Port-6443]: Port 6443 is in use"), "{taken}");
    drop(listener);

    master.stop_runtime()?;
    let absent = init()?;
    assert!(absent.contains("systemctl enable --now containerd"), "{absent}");
    let disabled = "disabled_plugins = [\n  \"io.containerd.grpc.v1.cri\",";
    let runtime = master
        .start_runtime(|text| text.replace("disabled_plugins = [", disabled))
        .await?;
    let without = init()?;
    assert!(without.contains("remove \"cri\" from disabled_plugins"), "{without}");
    runtime.kill()?;
    master.start_runtime(|text| text).await?;

    // The disk is full in the middle.
    let root = master.layout.root();
    std::fs::create_dir_all(root)?;
    let mount = |options: &str| {
        let mut command = std::process::Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(root);
        anyhow::ensure!(command.status()?.success(), "mount -o {options}");
        Ok(())
    };
    mount("size=48k")?;
    let full = init()?;
    assert!(full.contains("the disk is full; make room there"), "{full}");
    mount("remount,size=1g")?;
    told(master.init(InitFlags::default())?, master)?;
    Ok(())
}
