//! What can be wrong with a machine or with what was typed: told with its remedy, and the same command can be run again.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use skiff_machine::config::{InitFlags, JoinFlags};
use skiff_machine::{Service, ServiceManager as _, api, certs, token};
use skiff_pki::{CertificateAuthority, Request};
use skiff_tests::clock::Clock;
use skiff_tests::machine::{Machines, TestMachine};
use skiff_tests::wait::until;

use super::{ailments, refusal, told};

const LIMIT: Duration = Duration::from_secs(20);

/// Joins with flags that are changed so, which must fail; returns what is told.
type Refused<'a> = dyn Fn(&dyn Fn(&mut JoinFlags)) -> anyhow::Result<String> + 'a;

/// Nobody waits long for what will not come.
fn short(flags: &mut JoinFlags) {
    flags.discovery_timeout = Some(Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_machine_from_joining_is_told() -> anyhow::Result<()> {
    let mut machines = Machines::start(2).await?;
    let clock = Clock::new(&machines.all[0].node.directory().join("clock"))?;
    clock.program().clone_into(&mut machines.all[0].services.server_program);
    let (master, worker) = (&machines.all[0], &machines.all[1]);
    let line = told(master.init(InitFlags::default())?, master)?.join_command;
    a_clock_that_is_an_hour_off(&clock, worker, &line)?;
    let refused = |change: &dyn Fn(&mut JoinFlags)| {
        let joined = worker.join_with(&line, |flags| change(flags));
        refusal(joined?)
    };

    let secret = refused(&|flags| {
        let id = flags.token.as_ref().map(|token| token.id().to_owned());
        flags.token = format!("{}.0000000000000000", id.unwrap_or_default()).parse().ok();
    })?;
    assert!(
        secret.contains("slip of the finger") && secret.contains("--print-join-command"),
        "{secret}"
    );
    let unknown = refused(&|flags| {
        short(flags);
        flags.token = "ffffff.0123456789abcdef".parse().ok();
    })?;
    assert!(
        unknown.contains("\"ffffff\"") && unknown.contains("get a new one"),
        "{unknown}"
    );
    let hash = refused(&|flags| flags.pins = vec![format!("sha256:{}", "0".repeat(64))])?;
    assert!(hash.contains("take the hash from the control plane"), "{hash}");
    let name = refused(&|flags| flags.node.name = Some(master.node.name.clone()))?;
    assert!(name.contains("--node-name") && name.contains("172.30.0.11"), "{name}");
    let alone = refused(&|flags| flags.control_plane = true)?;
    assert!(alone.contains("SQLite") && alone.contains("--etcd-servers"), "{alone}");
    let dead = refused(&|flags| {
        short(flags);
        flags.endpoint = Some("172.30.0.99:6443".to_owned());
    })?;
    assert!(
        dead.contains("no API server answers at 172.30.0.99:6443 within 2 s") && dead.contains("skiff check"),
        "{dead}"
    );
    an_address_that_another_has(master, &refused)?;
    a_token_that_has_expired(master, worker, &line).await?;
    assert!(!worker.layout.record().exists(), "something was changed");
    a_certificate_that_has_expired(master, &refused).await?;

    // And the line that was refused so often works.
    let joined = told(worker.join(&line)?, worker)?;
    assert!(!joined.control_plane);
    assert_eq!(ailments(worker)?, []);
    let again = refusal(worker.join(&line)?)?;
    assert!(again.contains("a worker of a cluster already"), "{again}");
    kubelets_whose_certificate_has_ended(master, worker, &line).await
}

/// As after a year without power: `skiff check` says what helps, and that does.
async fn kubelets_whose_certificate_has_ended(
    master: &TestMachine,
    worker: &TestMachine,
    line: &str,
) -> anyhow::Result<()> {
    let uid = || master.kubectl(&["get", "node", &worker.node.name, "-o", "jsonpath={.metadata.uid}"]);
    let before = uid()?;
    let authority = CertificateAuthority::load(&master.layout.pki(), "ca")?;
    for (machine, remedy) in [(worker, "--print-join-command"), (master, "skiff certs renew all")] {
        machine.services.stop(Service::Kubelet)?;
        let current = machine.layout.kubelet_certificate();
        let request = Request::like(&std::fs::read_to_string(&current)?)?;
        let ended = authority.issue(&request.lifetime(Duration::ZERO))?;
        std::fs::write(current, format!("{}{}", ended.certificate_pem(), ended.key_pem()))?;
        machine.services.start(Service::Kubelet)?;
        let ailments = ailments(machine)?;
        let told = ailments.iter().find(|part| part.name == "certificate kubelet.conf");
        let told = told.context("skiff check does not tell")?;
        assert!(told.text.contains(remedy), "{}", told.text);
    }
    // The record knows the name; and what a person has set since stays.
    let settings = worker.layout.config_file("kubelet");
    let own = format!("# Mine.\nmaxPods: 42\n{}", std::fs::read_to_string(&settings)?);
    std::fs::write(&settings, &own)?;
    let other = refusal(worker.join_with(line, |flags| flags.node.name = Some("other".to_owned()))?)?;
    assert!(
        other.contains("--node-name other") && other.contains("skiff reset"),
        "{other}"
    );
    told(worker.join_with(line, |flags| flags.node.name = None)?, worker)?;
    assert_eq!(std::fs::read_to_string(settings)?, own);
    assert_eq!(
        certs::renew(&master.layout, &["kubelet.conf".to_owned()])?,
        ["kubelet.conf"]
    );
    // systemd does so by itself.
    master.services.start(Service::Kubelet)?;
    for machine in [worker, master] {
        let look = async || ailments(machine);
        let well = until("everything is well", LIMIT, look, Vec::is_empty).await;
        well.with_context(|| machine.report())?;
    }
    assert_eq!(uid()?, before);
    Ok(())
}

/// The server's, or this machine's; forward and back.
fn a_clock_that_is_an_hour_off(servers: &Clock, worker: &TestMachine, line: &str) -> anyhow::Result<()> {
    let own = Clock::new(&worker.node.directory().join("clock"))?;
    let flags = worker.typed_flags();
    let words = line.split_whitespace().filter(|word| *word != "\\").skip(1);
    let typed: Vec<&str> = words.chain(flags.iter().map(String::as_str)).collect();
    for clock in [servers, &own] {
        for offset in ["+1h", "-1h"] {
            clock.set(offset)?;
            let output = worker.skiff_as(own.program(), &typed)?;
            let told = String::from_utf8_lossy(&output.stderr);
            let remedy = "set the clock (timedatectl set-ntp true), then run the same command again";
            anyhow::ensure!(!output.status.success() && told.contains(remedy), "{offset}: {told}");
        }
        clock.set("+0")?;
    }
    // And now it would go on.
    let output = worker.skiff_as(own.program(), &[&typed[..], &["--dry-run"]].concat())?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Every virtual machine behind a NAT of its own has the same address.
fn an_address_that_another_has(master: &TestMachine, refused: &Refused<'_>) -> anyhow::Result<()> {
    let twin = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "twin"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "172.30.0.12"}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "played"}],
        },
    });
    let api = |machine: &TestMachine, create: bool| {
        let done = machine.run(async |machine| {
            let api = api::Client::from_file(&machine.layout.kubeconfig("admin")).await?;
            if create {
                api.create("/api/v1/nodes", &twin).await.map(drop)
            } else {
                api.delete("/api/v1/nodes/twin").await.map(drop)
            }
        });
        told(done?, machine)
    };
    api(master, true)?;
    let taken = refused(&|_| {})?;
    api(master, false)?;
    assert!(
        taken.contains("\"twin\"") && taken.contains("--node-ip") && taken.contains("172.30.0.12"),
        "{taken}"
    );
    Ok(())
}

async fn a_token_that_has_expired(master: &TestMachine, worker: &TestMachine, line: &str) -> anyhow::Result<()> {
    let expiring = token::Token::generate()?;
    let made = master.run(async |machine| {
        let api = api::Client::from_file(&machine.layout.kubeconfig("admin")).await?;
        let wish = token::Wish {
            ttl: Some(Duration::from_secs(1)),
            ..token::Wish::default()
        };
        token::create(&api, &expiring, &wish).await
    })?;
    told(made, master)?;
    let secret = expiring.secret_name();
    let find = [
        "get",
        "secret",
        &secret,
        "-n",
        "kube-system",
        "--ignore-not-found",
        "-o",
        "name",
    ];
    let look = async || master.kubectl(&find);
    until("the token has expired", LIMIT, look, String::is_empty).await?;
    let joined = worker.join_with(line, |flags| {
        short(flags);
        flags.token = Some(expiring.clone());
    })?;
    let expired = refusal(joined)?;
    assert!(
        expired.contains("has expired") && expired.contains("skiff token create --print-join-command"),
        "{expired}"
    );
    Ok(())
}

/// The API server's certificate ends: clients, `skiff join` and `skiff check` say so, and `skiff certs renew` helps while it runs.
async fn a_certificate_that_has_expired(master: &TestMachine, refused: &Refused<'_>) -> anyhow::Result<()> {
    let pki = master.layout.pki();
    let former = std::fs::read_to_string(pki.join("apiserver.crt"))?;
    let request = Request::like(&former)?.lifetime(Duration::from_secs(1));
    let authority = CertificateAuthority::load(&pki, "ca")?;
    authority.issue(&request)?.save(&pki, "apiserver")?;
    master.services.reload(Service::Server)?;
    let ask = async || {
        Ok(master
            .kubectl(&["get", "--raw", "/readyz"])
            .err()
            .map(|error| error.to_string()))
    };
    let expired = |told: &Option<String>| told.as_ref().is_some_and(|told| told.contains("expired"));
    until("the certificate has expired", LIMIT, ask, expired).await?;

    let told = refused(&|_| {})?;
    assert!(
        told.contains("expired") && told.contains("run on the control plane: skiff certs renew all"),
        "{told}"
    );
    let ailments = ailments(master)?;
    let told = ailments.iter().find(|part| part.name == "certificate apiserver");
    let told = told.context("skiff check does not tell")?;
    assert!(told.text.contains("skiff certs renew all"), "{}", told.text);

    certs::renew(&master.layout, &["all".to_owned()])?;
    master.services.reload(Service::Server)?;
    until("the renewed certificate is used", LIMIT, ask, Option::is_none).await?;
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
    assert!(!master.layout.record().exists(), "something was changed");

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

    // What others' guides type where they replace the proxy; and nobody makes certificates where none are to be made.
    let skipping = |phase: &str| InitFlags {
        skip_phases: vec![phase.to_owned()],
        ..InitFlags::default()
    };
    std::fs::remove_dir_all(master.layout.pki()).ok();
    let without = refusal(master.init(skipping("certs"))?)?;
    assert!(without.contains("read") && without.contains("pki/ca.crt"), "{without}");
    assert!(!master.layout.pki().exists(), "certificates were made");
    let others = master.listen(80)?;
    told(master.init(skipping("addon/kube-proxy"))?, master)?;
    drop(others);
    let lines = master.told.text();
    assert!(
        lines.contains("[preflight] [WARNING Port-80]: Port 80 is in use"),
        "{lines}"
    );
    assert!(
        lines.contains("[addon] WARNING: the ingress controller does not run yet"),
        "{lines}"
    );
    assert!(!lines.contains("Applied addon: ingress"), "{lines}");
    let node = master.kubectl(&["get", "node", &master.node.name, "-o", "name"])?;
    assert!(node.contains(&master.node.name), "{node}");
    assert_eq!(master.services.process(Service::Proxy).map(|process| process.pid), None);
    assert!(!master.layout.config_file("proxy").exists() && !master.layout.kubeconfig("proxy").exists());
    assert_eq!(
        master.kubectl(&[
            "get",
            "configmap",
            "kube-proxy",
            "-n",
            "kube-system",
            "--ignore-not-found"
        ])?,
        ""
    );
    Ok(())
}
