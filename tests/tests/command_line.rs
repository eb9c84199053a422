//! `skiff up` and its companions, as a person types them.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use serde_json::json;
use skiff_tests::home::Home;
use skiff_tests::{Kubectl, binary, build_images};

#[test]
fn who_is_not_root_is_told_to_use_sudo() -> anyhow::Result<()> {
    let pin = format!("sha256:{}", "0".repeat(64));
    let join = "join 192.0.2.1:6443 --token abcdef.0123456789abcdef --discovery-token-ca-cert-hash";
    let mut join: Vec<&str> = join.split(' ').collect();
    join.push(&pin);
    for typed in [vec!["init"], join, vec!["reset", "--force"]] {
        // Another user, wherever the program lies: a namespace in which nobody is anybody.
        let output = Command::new("unshare")
            .arg("--user")
            .arg(binary()?)
            .args(&typed)
            .output()?;
        let told = String::from_utf8_lossy(&output.stderr);
        let wanted = "user is not running as root; run the command with sudo";
        assert!(!output.status.success() && told.contains(wanted), "{typed:?}: {told}");
    }
    Ok(())
}

#[test]
fn a_cluster_comes_up_stays_and_goes() -> anyhow::Result<()> {
    let home = Home::new(&["one", "two"])?;
    let [one, two] = [home.names[0].as_str(), home.names[1].as_str()];
    let images = home.path().join("archives");
    build_images(&binary()?, &images)?;
    let images = images.to_str().context("a path that is text")?;

    let printed = home.ok(&["up", "--name", one, "--images", images])?;
    let kubeconfig = PathBuf::from(home.ok(&["kubeconfig", "--name", one])?.trim());
    assert_eq!(printed, format!("export KUBECONFIG={}\n", kubeconfig.display()));
    let again = home.refused(&["up", "--name", one])?;
    assert!(
        again.contains("is already running") && again.contains("export KUBECONFIG="),
        "{again}"
    );
    let other = home.refused(&["up", "--name", one, "--nodes", "3"])?;
    assert!(other.contains("exists with 1 nodes"), "{other}");

    // Another one beside it, with the same addresses inside.
    home.ok(&["up", "--name", two])?;
    let listed: serde_json::Value = serde_json::from_str(&home.ok(&["clusters", "--output", "json"])?)?;
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
    assert!(
        listed
            .as_array()
            .into_iter()
            .flatten()
            .all(|cluster| cluster["running"] == true),
        "{listed}"
    );
    home.ok(&["down", "--name", two, "--purge"])?;

    // `up --apply` asks for a state, on a running cluster too; twice in a row.
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hello.yaml");
    for _ in 0..2 {
        let shown = home.ok(&["up", "--name", one, "--apply", manifest])?;
        assert!(
            shown.contains("through its ClusterIP") && shown.contains("through its NodePort"),
            "{shown}"
        );
    }

    let address = home.ok(&["node", "address", "--name", one, "node-1"])?;
    let inside = home.ok(&[
        "node", "exec", "--name", one, "node-1", "--", "ip", "-4", "addr", "show", "eth0",
    ])?;
    assert!(inside.contains(address.trim()), "{inside}");

    // State survives `down` and `up`.
    Kubectl::new(kubeconfig.clone()).run(&["create", "configmap", "kept", "--from-literal=a=b"])?;
    home.ok(&["down", "--name", one])?;
    assert!(
        Kubectl::new(kubeconfig.clone())
            .run(&["get", "--request-timeout=2s", "nodes"])
            .is_err(),
        "it still answers"
    );
    home.ok(&["up", "--name", one])?;
    assert_eq!(
        Kubectl::new(kubeconfig.clone()).field(&["configmap", "kept"], "{.data.a}")?,
        "b"
    );

    home.ok(&["down", "--name", one, "--purge"])?;
    assert!(!home.path().join("clusters").join(one).exists(), "purged, yet there");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    assert!(
        !mounts.contains(home.path().to_str().context("a path that is text")?),
        "mounts are left"
    );
    assert!(!mounts.contains(&format!("skiff-{one}")), "namespaces are left");
    home.ok(&["down", "--name", one])?;
    Ok(())
}

#[test]
fn another_oci_runtime_makes_the_containers_when_it_is_told_to() -> anyhow::Result<()> {
    let home = Home::new(&["oci"])?;
    let name = home.names[0].as_str();
    let images = home.path().join("archives");
    build_images(&binary()?, &images)?;
    let told = home.refused(&["up", "--name", name, "--oci-runtime", "runc-of-nobody"])?;
    assert!(told.contains("apt-get install runc-of-nobody"), "{told}");

    // runc itself, and a note of all that it is asked for.
    let (programs, notes) = (home.path().join("bin"), home.path().join("notes"));
    std::fs::create_dir(&programs)?;
    let script = format!("#!/bin/sh\necho \"$@\" >>{}\nexec runc \"$@\"\n", notes.display());
    std::fs::write(programs.join("noting"), script)?;
    std::fs::set_permissions(programs.join("noting"), Permissions::from_mode(0o755))?;
    let path = format!("{}:{}", programs.display(), std::env::var("PATH")?);
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hello.yaml");
    let output = Command::new(binary()?)
        .env("SKIFF_HOME", home.path())
        .env("PATH", path)
        .args([
            "up",
            "--name",
            name,
            "--oci-runtime",
            "noting",
            "--apply",
            manifest,
            "--images",
        ])
        .arg(&images)
        .output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let notes = std::fs::read_to_string(notes)?;
    let made = notes.lines().filter(|line| line.contains(" create ")).count();
    assert!(made >= 2, "a pause process and a container at least: {notes}");
    Ok(())
}

#[test]
fn a_garbled_database_is_told_and_nothing_hangs() -> anyhow::Result<()> {
    let home = Home::new(&["torn"])?;
    let name = home.names[0].as_str();
    home.ok(&["up", "--name", name])?;
    home.ok(&["down", "--name", name])?;
    let data = home.path().join("clusters").join(name).join("server");
    // Without its write-ahead log: an intact one would heal it.
    for file in std::fs::read_dir(&data)? {
        std::fs::remove_file(file?.path())?;
    }
    std::fs::write(data.join("state.db"), vec![b'x'; 8192])?;
    let told = home.refused(&["up", "--name", name])?;
    assert!(
        told.contains("server of node-1 has ended") && told.contains("state.db"),
        "{told}"
    );
    Ok(())
}

#[test]
fn a_full_disk_is_told_and_nothing_that_was_stored_is_lost() -> anyhow::Result<()> {
    let home = Home::new(&["full"])?;
    let name = home.names[0].as_str();
    let data = home.path().join("clusters").join(name).join("server");
    std::fs::create_dir_all(&data)?;
    mount_tmpfs(&data, "size=6M")?;
    home.ok(&["up", "--name", name])?;
    let kubectl = Kubectl::new(PathBuf::from(home.ok(&["kubeconfig", "--name", name])?.trim()));
    let big = home.path().join("big");
    std::fs::write(&big, vec![b'x'; 400 * 1024])?;
    let from = format!("--from-file={}", big.display());

    let mut stored = Vec::new();
    let told = loop {
        let configmap = format!("big-{}", stored.len());
        let printed = kubectl.attempt(&["create", "configmap", &configmap, &from], "")?;
        if !printed.success {
            break printed.stderr;
        }
        stored.push(configmap);
        anyhow::ensure!(stored.len() < 100, "the disk never fills");
    };
    assert!(told.contains("no space left"), "{told}");
    assert!(!stored.is_empty());
    for configmap in &stored {
        kubectl.run(&["get", "configmap", configmap])?;
    }
    mount_tmpfs(&data, "remount,size=64M")?;
    kubectl.run(&["create", "configmap", "afterwards", &from])?;
    Ok(())
}

fn mount_tmpfs(on: &Path, options: &str) -> anyhow::Result<()> {
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "-o", options, "tmpfs"])
        .arg(on)
        .status()?;
    anyhow::ensure!(status.success(), "mount a tmpfs on {}", on.display());
    Ok(())
}

#[test]
fn a_port_in_use_is_told() -> anyhow::Result<()> {
    let home = Home::new(&["busy"])?;
    let name = home.names[0].as_str();
    home.ok(&["up", "--name", name])?;
    let config = home.path().join("clusters").join(name).join("server.yaml");
    let skiff = binary()?;
    let server = [
        skiff.to_str().context("a path that is text")?,
        "server",
        "--config",
        config.to_str().context("text")?,
    ];
    let told = home.refused(&[&["node", "exec", "--name", name, "node-1", "--"], &server[..]].concat())?;
    assert!(
        told.contains("listen on 0.0.0.0:6443: is another API server running there?"),
        "{told}"
    );
    Ok(())
}

#[test]
fn a_missing_containerd_is_told_with_its_remedy() -> anyhow::Result<()> {
    let home = Home::new(&["bare"])?;
    let output = Command::new(binary()?)
        .env("SKIFF_HOME", home.path())
        .env("PATH", "/nonexistent")
        .args(["up", "--name", &home.names[0]])
        .output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && told.contains("apt-get install containerd"),
        "{told}"
    );
    Ok(())
}

/// What `make install` and the package bring.
const INSTALLED: [&str; 17] = [
    "etc/default/skiff-ingress",
    "etc/default/skiff-kubelet",
    "etc/default/skiff-proxy",
    "etc/default/skiff-server",
    "usr/bin/skiff",
    "usr/lib/modules-load.d/skiff.conf",
    "usr/lib/skiff/skiff-cni",
    "usr/lib/sysctl.d/60-skiff.conf",
    "usr/lib/systemd/system/skiff-ingress.service",
    "usr/lib/systemd/system/skiff-kubelet.service",
    "usr/lib/systemd/system/skiff-proxy.service",
    "usr/lib/systemd/system/skiff-server.service",
    "usr/share/bash-completion/completions/skiff",
    "usr/share/man/man1/skiff-init.1",
    "usr/share/skiff/examples/hello.yaml",
    "usr/share/skiff/examples/images.sh",
    "usr/share/skiff/images/pause.tar",
];
/// systemd's measure of what a unit could do, times ten, at most: the kubelet mounts for everybody.
const EXPOSURE: [(&str, &str); 4] = [("server", "25"), ("proxy", "30"), ("ingress", "25"), ("kubelet", "75")];

#[test]
fn what_is_installed_is_whole_and_systemd_finds_no_fault_in_its_units() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let root = directory.path();
    let built = binary()?;
    let built = built.parent().context("a directory")?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/install.sh");
    let output = Command::new(script).arg(built).arg(root).output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(output.status.success(), "packaging/install.sh: {told}");
    for path in INSTALLED {
        anyhow::ensure!(root.join(path).is_file(), "{path} is not installed");
    }

    // Another root has none of the units of systemd itself: the programs' paths are led there instead.
    let units = root.join("usr/lib/systemd/system");
    for (name, exposure) in EXPOSURE {
        let unit = units.join(format!("skiff-{name}.service"));
        let text = std::fs::read_to_string(&unit)?;
        let program = root.join("usr/bin/skiff");
        anyhow::ensure!(text.contains("\nExecStart=/usr/bin/skiff "), "{text}");
        std::fs::write(&unit, text.replace("/usr/bin/skiff", &program.display().to_string()))?;
        let verify = ["verify", "--man=no", "--recursive-errors=no"];
        let security = ["security", "--offline=yes", "--no-pager", "--threshold", exposure];
        for arguments in [&verify[..], &security[..]] {
            let output = Command::new("systemd-analyze").args(arguments).arg(&unit).output();
            let output = output.context("systemd is installed (packaging/deps.sh test)")?;
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            anyhow::ensure!(
                output.status.success() && told.trim().is_empty(),
                "systemd-analyze {}: {told}{}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stdout)
            );
        }
    }
    Ok(())
}

/// What kubeadm writes, drop-ins, and flags of upstream's command lines, as the program itself takes them.
#[test]
fn a_kubelet_takes_its_configuration_as_upstreams_does() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let file =
        |name: &str, text: &str| -> anyhow::Result<()> { Ok(std::fs::write(directory.path().join(name), text)?) };
    let kubeadm = include_str!("../../kubelet/src/config/kubeadm.yaml");
    let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    file("config.yaml", kubeadm)?;
    std::fs::create_dir(directory.path().join("conf.d"))?;
    let run = |flags: &[&str]| -> anyhow::Result<String> {
        let mut kubelet = Command::new(binary()?);
        let base = [
            "kubelet",
            "--config",
            "config.yaml",
            "--config-dir",
            "conf.d",
            "--kubeconfig",
            "none.conf",
            "--root-dir",
            "root",
        ];
        let output = kubelet.current_dir(directory.path()).args(base).args(flags).output()?;
        assert!(!output.status.success(), "there is no API server to reach");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
    };
    // Whoever comes as far as this could use the whole configuration.
    let accepted = "none.conf does not exist";
    let told = run(&[])?;
    assert!(told.contains(accepted) && !told.contains("does not act on"), "{told}");
    file("conf.d/10.conf", &format!("{head}maxPods: -1\n"))?;
    let told = run(&[])?;
    assert!(told.contains("maxPods (--max-pods): -1"), "{told}");
    let told = run(&["--max-pods=7", "--maximum-dead-containers=3", "--event-qps=5"])?;
    for words in [accepted, "maximum-dead-containers", "eventRecordQPS"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    file("conf.d/20.conf", &format!("{head}maxPodz: 1\n"))?;
    let told = run(&["--max-pods=7"])?;
    assert!(told.contains("maxPodz") && told.contains("20.conf"), "{told}");
    Ok(())
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_done() -> anyhow::Result<()> {
    let home = Home::new(&[])?;
    let key = "0".repeat(64);
    let pin = format!("sha256:{key}");
    let token = "abcdef.0123456789abcdef";
    let joining = ["join", "10.0.0.1", "--token", token, "--discovery-token-ca-cert-hash"];
    let cases: [(Vec<&str>, &str); 9] = [
        (vec!["join"], "skiff token create --print-join-command"),
        ([&joining[..], &["sha256:00"]].concat(), "64 hexadecimal digits"),
        (
            [&joining[..], &[&pin, "--certificate-key", &key]].concat(),
            "together with --control-plane",
        ),
        (
            vec!["join", "10.0.0.1", "--token", "abcdef"],
            "as `skiff token create` prints it",
        ),
        (vec!["init", "--upload-certs"], "give --etcd-servers"),
        (
            vec!["init", "--upload-certs", "--etcd-servers", "http://10.0.0.5:2379"],
            "give --control-plane-endpoint",
        ),
        (vec!["init", "--certificate-key", "00"], "64 hexadecimal digits"),
        (
            vec!["init", "--pod-network-cidr", "10.96.0.0/16"],
            "overlap; choose others",
        ),
        (vec!["init", "phase", "upload-certs"], "say so with --upload-certs"),
    ];
    for (arguments, wanted) in cases {
        let told = home.refused(&arguments)?;
        assert!(told.contains(wanted), "{arguments:?}: {told}");
        assert!(
            !told.contains(token) && !told.contains(&key),
            "a secret is told: {told}"
        );
    }
    Ok(())
}

#[test]
fn results_are_json_where_a_program_asks() -> anyhow::Result<()> {
    let home = Home::new(&[])?;
    for (arguments, field, length) in [
        (&["token", "generate"][..], "token", 23),
        (&["certs", "certificate-key"], "certificateKey", 64),
    ] {
        let printed = home.ok(&[arguments, &["--output", "json"]].concat())?;
        let result: serde_json::Value = serde_json::from_str(&printed)?;
        assert_eq!(result[field].as_str().map(str::len), Some(length), "{printed}");
        assert!(home.ok(arguments)?.trim_end().len() >= length, "{arguments:?}");
    }
    Ok(())
}

#[test]
fn a_name_that_cannot_be_one_is_refused() -> anyhow::Result<()> {
    let home = Home::new(&[])?;
    let told = home.refused(&["up", "--name", "../etc"])?;
    assert!(told.contains("is not a cluster name"), "{told}");
    let told = home.refused(&["kubeconfig", "--name", "nobody"])?;
    assert!(told.contains("there is no cluster nobody"), "{told}");
    Ok(())
}

/// A command has nothing to drain: Ctrl-C ends it wherever it waits, here for a server that does not answer.
#[test]
fn a_command_that_waits_is_ended_by_its_interruption() -> anyhow::Result<()> {
    let home = Home::new(&[])?;
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let kubeconfig = home.path().join("kubeconfig");
    let server = json!({"server": format!("https://{}", silent.local_addr()?), "insecure-skip-tls-verify": true});
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": server}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    std::fs::write(&kubeconfig, config.to_string())?;
    let mut command = Command::new(binary()?)
        .args(["token", "list", "--kubeconfig"])
        .arg(&kubeconfig)
        .spawn()?;
    // It waits for an answer from now on.
    let connection = silent.accept()?;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(command.id())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
    assert_eq!(command.wait()?.signal(), Some(2));
    drop(connection);
    Ok(())
}
