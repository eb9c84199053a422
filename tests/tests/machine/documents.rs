//! What the documents tell people to type, typed on a control plane and a worker.

use std::time::Duration;

use anyhow::Context as _;
use skiff_machine::config::InitFlags;
use skiff_pki::Kubeconfig;
use skiff_tests::machine::TestMachine;
use skiff_tests::wait::until;

use super::{ailments, told};

const LIMIT: Duration = Duration::from_secs(40);

/// `docs/backup.md`: the keys are lost, and what was done since the backup is undone.
pub(crate) async fn backup(master: &TestMachine) -> anyhow::Result<()> {
    let names = async || master.kubectl(&["get", "configmaps", "--output", "name"]);
    master.kubectl(&["create", "configmap", "before"])?;
    master.follow("backup.md", "save")?;
    master.kubectl(&["create", "configmap", "after"])?;
    master.follow("backup.md", "come back")?;
    let restored = |names: &String| names.contains("/before") && !names.contains("/after");
    until("the state of the backup", LIMIT, names, restored)
        .await
        .with_context(|| master.report())
        .map(drop)
}

/// `docs/backup.md`: the machine is bare again, and has the files that [`backup`] left alone.
pub(crate) async fn another_machine(master: &TestMachine) -> anyhow::Result<()> {
    let authority = || std::fs::read(master.layout.ca_certificate()).context("read the authority");
    let former = authority()?;
    assert_eq!(master.reset()?.left, [""; 0]);
    assert!(!master.layout.pki().exists() && !master.layout.server_data().exists());
    master.follow("backup.md", "on another machine")?;
    told(master.init(InitFlags::default())?, master)?;
    assert_eq!(authority()?, former);
    let names = master.kubectl(&["get", "configmaps", "--output", "name"])?;
    assert!(names.contains("/before") && !names.contains("/after"), "{names}");
    let look = async || ailments(master);
    let well = until("everything is well", LIMIT, look, Vec::is_empty).await;
    well.with_context(|| master.report()).map(drop)
}

/// `docs/certificates.md`, "Another authority": a pod on the worker goes on, and in the end nothing of the former one counts.
pub(crate) async fn authority(master: &TestMachine, worker: &TestMachine) -> anyhow::Result<()> {
    const DOCUMENT: &str = "certificates.md";
    let pki = master.layout.pki();
    let pod = &worker.node.name;
    let started = || {
        let path = "jsonpath={.status.containerStatuses[0].state.running.startedAt}";
        master.kubectl(&["get", "pod", pod, "--output", path])
    };
    let before = started()?;
    let trust = || {
        std::fs::copy(pki.join("ca.crt"), worker.layout.ca_certificate())?;
        for machine in [master, worker] {
            machine.follow(DOCUMENT, "trust")?;
        }
        master.follow(DOCUMENT, "trust on a control plane")?;
        master.follow(DOCUMENT, "tell those who join")
    };
    master.follow(DOCUMENT, "next")?;
    trust().context("both are trusted")?;
    master.follow(DOCUMENT, "sign")?;
    trust().context("the next one signs")?;
    for machine in [master, worker] {
        let look = async || machine.follow(DOCUMENT, "look");
        let both = |told: &String| told.lines().filter(|line| line.ends_with(": OK")).count() == 2;
        let reached = until("a kubelet's certificates are the next one's", LIMIT, look, both).await;
        reached.with_context(|| machine.report())?;
        let proxy = async || {
            let found = Kubeconfig::load(&machine.layout.kubeconfig("proxy"))?;
            Ok(found.identity.context("a certificate")?.is_of_former(&found.ca_pem)?)
        };
        let reached = until("the proxy's is, too", LIMIT, proxy, |former| !former).await;
        reached.with_context(|| machine.report())?;
    }
    std::fs::copy(pki.join("next.crt"), pki.join("ca.crt"))?;
    trust().context("the former one goes")?;

    let logs = async || master.kubectl(&["logs", pod]);
    until("a kubelet answers", LIMIT, logs, |_| true)
        .await
        .with_context(|| worker.report())?;
    assert_eq!(started()?, before, "the pod was started anew");
    for machine in [master, worker] {
        let look = async || ailments(machine);
        let well = until("everything is well", LIMIT, look, Vec::is_empty).await;
        well.with_context(|| machine.report())?;
    }
    // The worker still does what it is told.
    let deleted = master.kubectl(&["delete", "pod", pod, "--timeout=40s"]);
    deleted.with_context(|| worker.report()).map(drop)
}
