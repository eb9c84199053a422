//! Bare machines become a cluster and bare machines again: `skiff init`, `join`, `reset`.

mod control_planes;
mod documents;
mod faults;
#[path = "../../../store/tests/conformance/member.rs"]
#[allow(dead_code, reason = "not all that a member can do is needed here")]
mod member;
mod secrecy;
mod typed;

use anyhow::Context as _;
use skiff_machine::config::{Init, InitFlags, JoinFlags};
use skiff_machine::record::Host;
use skiff_machine::reset::Wish;
use skiff_machine::{Error, check};
use skiff_tests::machine::{Beside, Machines, TestMachine};
use skiff_tests::{binary, build_images};

/// `init` is ended where it tells each of these, and run again. Where nothing runs yet that costs nothing; later every run starts the
/// server anew, and one line a phase is enough.
const INIT_LINES: [&str; 12] = [
    "[preflight] Running",
    "[certs] Generating \"ca\"",
    "[certs] Generating \"front-proxy-ca\"",
    "[certs] Generating \"apiserver\"",
    "[certs] Generating \"sa\"",
    "[kubeconfig] Writing \"admin.conf\"",
    "[kubeconfig] Writing \"kubelet.conf\"",
    "[control-plane] Writing",
    "[wait-control-plane] Waiting",
    "[kubelet-start] Starting",
    "[bootstrap-token] Configuring",
    "[mark-control-plane]",
];
/// The same of `join`.
const JOIN_LINES: [&str; 7] = [
    "[discovery] The cluster",
    "[runtime]",
    "[kubelet-start] Writing",
    "[kubelet-start] Starting",
    "[kubelet-start] Waiting",
    "[kubeconfig] Asking",
    "[kubelet-check] Waiting",
];

/// The cluster's address in a test with a load balancer.
const CLUSTER: &str = "172.30.0.1:8443";
/// Its API server's port.
const API_PORT: u16 = 7443;

fn told<T>(result: Result<T, Error>, machine: &TestMachine) -> anyhow::Result<T> {
    result.map_err(|error| anyhow::anyhow!("{}\n{}", skiff_daemon::error_chain(&error), machine.report()))
}

/// What a person is told by a command that must fail.
fn refusal<T>(result: Result<T, Error>) -> anyhow::Result<String> {
    let error = result.err().context("it should have failed")?;
    Ok(skiff_daemon::error_chain(&error))
}

/// What `skiff check` says is wrong; the disk is that of the machine that runs the tests.
fn ailments(machine: &TestMachine) -> anyhow::Result<Vec<check::Part>> {
    let mut parts = told(machine.run(async |machine| check::check(machine).await)?, machine)?;
    parts.retain(|part| part.health == check::Health::Failed && part.name != "DiskSpace");
    Ok(parts)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_machine_becomes_a_control_plane_however_often_it_is_interrupted() -> anyhow::Result<()> {
    let machines = Machines::start(1).await?;
    let master = &machines.all[0];
    told_and_not_done(master)?;

    let token = "abcdef.0123456789abcdef";
    let flags = |ttl: u64| InitFlags {
        token: token.parse().ok(),
        token_ttl: Some(std::time::Duration::from_secs(ttl)),
        ..InitFlags::default()
    };
    for line in INIT_LINES {
        let ended = master.end_at(line, || master.init(flags(3600)))?;
        anyhow::ensure!(ended, "init has never told {line}");
    }
    // The last line of all counts: this token is for ever.
    let done = told(master.init(flags(0))?, master)?;
    let secret = "bootstrap-token-abcdef";
    let data = master.kubectl(&["get", "secret", secret, "-n", "kube-system", "-o", "jsonpath={.data}"])?;
    assert!(data.contains("token-secret") && !data.contains("expiration"), "{data}");
    let line = done.join_command;
    assert!(line.contains("skiff join 172.30.0.11:6443 --token "), "{line}");

    let nodes = master.kubectl(&["get", "nodes", "--no-headers"])?;
    assert!(nodes.contains("Ready") && nodes.contains("control-plane"), "{nodes}");
    let name = &master.node.name;
    let taints = master.kubectl(&["get", "node", name, "-o", "jsonpath={.spec.taints[*].key}"])?;
    assert_eq!(taints, "node-role.kubernetes.io/control-plane");
    // The administrator is who a binding says, and not system:masters, whom nothing can be taken from.
    let groups = master.kubectl(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.groups}"])?;
    assert_eq!(groups, r#"["kubeadm:cluster-admins","system:authenticated"]"#);

    let again = refusal(master.init(InitFlags::default())?)?;
    assert!(
        again.contains("control plane already") && again.contains("skiff reset"),
        "{again}"
    );
    assert_eq!(ailments(master)?, []);
    typed::tokens(master)?;
    typed::certificates(master).await?;
    typed::check(master)?;
    documents::backup(master).await?;
    documents::another_machine(master).await
}

/// What a machine holds, as far as skiff may change it.
fn host(machine: &TestMachine) -> anyhow::Result<Host> {
    let mut host = machine.run(async |machine| Host::observe(&machine.layout))?;
    // Their names are those of the machine that runs the tests, and of other tests.
    host.namespaces.clear();
    Ok(host)
}

/// `init --dry-run` tells files and objects, and leaves none.
fn told_and_not_done(master: &TestMachine) -> anyhow::Result<()> {
    let flags = InitFlags {
        node: master.flags(),
        pod_subnet: Some("10.9.0.0/16".parse()?),
        ..InitFlags::default()
    };
    let wish = Init::new(flags, Some(&master.file("InitConfiguration")))?;
    let before = host(master)?;
    let plan = master.run(async |machine| skiff_machine::init::dry_run(machine, wish).await)?;
    let plan = told(plan, master)?;
    let server = plan["files"].as_array().into_iter().flatten().find(|file| {
        let path = file["path"].as_str().unwrap_or_default();
        path.ends_with("etc/skiff/server.yaml")
    });
    let server = server.and_then(|file| file["content"].as_str()).unwrap_or_default();
    assert!(server.contains("10.9.0.0/16"), "{plan:#}");
    let objects = plan["objects"].as_array().into_iter().flatten();
    let names: Vec<_> = objects
        .filter_map(|object| object["metadata"]["name"].as_str())
        .collect();
    assert!(
        names.contains(&"kubeadm-config") && names.contains(&"cluster-info"),
        "{names:?}"
    );
    typed::dry_run(master, &["init", "--pod-network-cidr", "10.9.0.0/16"], "10.9.0.0/16")?;
    assert_eq!(host(master)?, before);
    let layout = &master.layout;
    for path in [layout.kubernetes(), layout.config(), layout.record()] {
        assert!(!path.exists(), "{}", path.display());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_joins_runs_a_pod_and_leaves_nothing() -> anyhow::Result<()> {
    let machines = Machines::start(2).await?;
    let (master, worker) = (&machines.all[0], &machines.all[1]);
    for machine in [master, worker] {
        build_images(&binary()?, &machine.layout.images())?;
    }
    // No port is the usual one, and that of the cluster is not the server's.
    let _balancer = load_balancer(master)?;
    let flags = InitFlags {
        bind_port: Some(API_PORT),
        endpoint: Some(CLUSTER.to_owned()),
        ..InitFlags::default()
    };
    let done = told(master.init(flags)?, master)?;
    assert!(done.join_command.contains(CLUSTER), "{}", done.join_command);
    let before = host(worker)?;
    let line = done.join_command.split_whitespace().filter(|word| *word != "\\");
    typed::dry_run(worker, &line.skip(1).collect::<Vec<_>>(), "/etc/kubernetes/proxy.conf")?;
    assert_eq!(host(worker)?, before);
    // A run under another name, which got its certificate.
    let other = |flags: &mut JoinFlags| flags.node.name = Some("other".to_owned());
    let ended = worker.end_at(JOIN_LINES[5], || worker.join_with(&done.join_command, other))?;
    anyhow::ensure!(ended, "join has never told {}", JOIN_LINES[5]);
    for line in JOIN_LINES {
        let ended = worker.end_at(line, || worker.join(&done.join_command))?;
        anyhow::ensure!(ended, "join has never told {line}");
    }
    // As join tells: two nodes of one address get no serving certificate.
    let told_of = "this machine was joined as \"other\" before";
    assert!(worker.told.text().contains(told_of), "{}", worker.told.text());
    master.kubectl(&["delete", "node", "other"])?;
    let joined = worker.join(&done.join_command)?;
    let joined = told(joined, worker).with_context(|| master.report())?;
    assert_eq!(joined.address, worker.node.address);
    let anew = "[kubelet-start] Removing the kubelet's certificates";
    assert_eq!(worker.told.text().matches(anew).count(), 1, "{}", worker.told.text());
    for machine in [master, worker] {
        let name = &machine.node.name;
        let node = format!("node/{name}");
        master.kubectl(&["wait", "--for=condition=Ready", &node, "--timeout=60s"])?;
        let overrides = format!(r#"{{"spec": {{"nodeName": "{name}"}}}}"#);
        master.kubectl(&["run", name, "--image=skiff.local/hello:1", "--overrides", &overrides])?;
        let pod = format!("pod/{name}");
        master.kubectl(&["wait", "--for=condition=Ready", &pod, "--timeout=60s"])?;
        assert_eq!(ailments(machine)?, []);
    }
    // What can simply be mended was.
    let mended = "[preflight] Setting net.ipv4.ip_forward = 1";
    assert!(worker.told.text().contains(mended), "{}", worker.told.text());
    let bootstrap = worker.layout.kubeconfig("bootstrap-kubelet");
    assert!(!bootstrap.exists(), "the token is still on the worker");

    let ports = master.kubectl(&[
        "get",
        "endpoints",
        "kubernetes",
        "-o",
        "jsonpath={.subsets[*].ports[*].port}",
    ])?;
    assert_eq!(ports, API_PORT.to_string());
    secrecy::files(master, secrecy::Role::ControlPlane, &done.join_command)?;
    secrecy::files(worker, secrecy::Role::Worker, &done.join_command)?;
    secrecy::ports(master)?;
    secrecy::ports(worker)?;

    documents::authority(master, worker).await?;

    // As the documents say, and as a package does that brings plugins of its own.
    let [manifest, plugin] = [
        master.layout.manifests().join("app.yaml"),
        master.layout.cni_plugins()[1].join("macvlan"),
    ];
    for file in [&manifest, &plugin] {
        std::fs::create_dir_all(file.parent().context("a directory")?)?;
        std::fs::write(file, "")?;
    }
    disks_and_data_stay(worker)?;
    for machine in [worker, master] {
        let report = machine.reset()?;
        assert!(report.left.is_empty(), "{:?}\n{}", report.left, machine.report());
        if machine.node.name == master.node.name {
            assert_eq!(report.others, [plugin.clone(), master.layout.manifests()]);
            assert!(manifest.exists() && plugin.exists());
        }
        let layout = &machine.layout;
        for path in [layout.pki(), layout.config(), layout.kubelet(), layout.record()] {
            assert!(!path.exists(), "{}", path.display());
        }
        // A bare machine can be reset, too.
        assert_eq!(machine.reset()?.left, [""; 0]);
    }
    Ok(())
}

/// Beside the machines, on the cluster's address: leads to the first one's server.
fn load_balancer(first: &TestMachine) -> anyhow::Result<Beside> {
    let (address, port) = CLUSTER.split_once(':').context("an address with a port")?;
    let server = first.node.address;
    let rules = format!(
        "set -e
        echo 1 > /proc/sys/net/ipv4/ip_forward
        # What the first machine sends to itself would be bridged to where it came from, and bridges do not do that.
        echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables
        iptables -t nat -A PREROUTING -d {address} -p tcp --dport {port} -j DNAT --to-destination {server}:{API_PORT}
        iptables -t nat -A POSTROUTING -d {server} -p tcp --dport {API_PORT} -j MASQUERADE
        exec sleep infinity"
    );
    first.beside(std::process::Command::new("sh").args(["-c", &rules]))
}

/// A disk that a person has mounted inside the kubelet's directory is told of and not touched; volumes stay until they are purged.
fn disks_and_data_stay(worker: &TestMachine) -> anyhow::Result<()> {
    let disk = worker.node.directory().join("disk");
    let place = worker.layout.kubelet().join("mine");
    let volume = worker.layout.local_volumes().join("pvc-1");
    for directory in [&disk, &place, &volume] {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(disk.join("precious"), "x")?;
    std::fs::write(volume.join("data"), "x")?;
    let mount = |program: &str, arguments: &[&std::path::Path]| {
        let status = std::process::Command::new(program).args(arguments).status()?;
        anyhow::ensure!(status.success(), "{program} {arguments:?}");
        Ok(())
    };
    // A bind mount of the same file system: its device number tells nothing.
    mount("mount", &["--bind".as_ref(), &disk, &place])?;
    let plan = worker.run(async |machine| skiff_machine::reset::dry_run(machine, Wish::default()))?;
    let plan = told(plan, worker)?.join("\n");
    assert!(
        plan.contains("stop skiff-kubelet") && plan.contains(", but not "),
        "{plan}"
    );

    let report = worker.reset();
    mount("umount", &[&place])?;
    let report = report?;
    let told = report.left.join("\n");
    assert!(
        told.contains("kubelet/mine: something is mounted there; unmount it"),
        "{told}"
    );
    assert!(disk.join("precious").exists() && volume.join("data").exists());

    let report = worker.reset()?;
    assert_eq!(report.left, [""; 0]);
    assert_eq!(report.kept, [worker.layout.local_volumes()]);
    assert!(volume.join("data").exists());
    worker.reset_with(Wish { purge_data: true })?;
    assert!(!volume.exists());
    let again = "[reset] Setting net.ipv4.ip_forward = 0 again";
    assert!(worker.told.text().contains(again), "{}", worker.told.text());
    Ok(())
}
