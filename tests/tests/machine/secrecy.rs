//! What a machine of a cluster keeps from others: its files, and what its ports speak.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use skiff_tests::machine::TestMachine;
use skiff_tests::{modes, tls};

use super::API_PORT;

/// What a machine is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    ControlPlane,
    Worker,
}

/// Secrets that are on every machine, by a part of their path; the last is that of a pod.
const NODE: [&str; 3] = ["pki/kubelet-client-2", "etc/kubernetes/proxy.conf", "/token"];
/// Those of a control plane.
const CONTROL_PLANE: [&str; 8] = [
    "pki/ca.key",
    "pki/sa.key",
    "pki/apiserver.key",
    "pki/apiserver-kubelet-client.key",
    "pki/front-proxy-ca.key",
    "etc/kubernetes/admin.conf",
    "etc/kubernetes/super-admin.conf",
    "etc/kubernetes/ingress.conf",
];

/// Everything is root's, nobody else may write, and no secret can be read by others.
pub(crate) fn files(machine: &TestMachine, role: Role, join: &str) -> anyhow::Result<()> {
    let token = join.split_whitespace().skip_while(|word| *word != "--token").nth(1);
    let secret = token.and_then(|token| token.split('.').nth(1)).context("a token")?;
    // Programs in images name what they look for.
    let images = machine.layout.images();
    let found = modes::walk(machine.layout.root(), &[secret.to_owned()], &|path: &Path| {
        path == images
    })?;
    for file in &found {
        anyhow::ensure!(!(file.open && file.secret), "everybody can read {file:?}");
        anyhow::ensure!(file.owner == (0, 0), "somebody owns {file:?}");
        // What its containers write why they ended in is the pod's own, behind a directory that is not open.
        let pods = file.path.strip_prefix(machine.layout.kubelet().join("pods")).is_ok();
        anyhow::ensure!(
            !file.is_writable_by_others() || (pods && !file.open),
            "others may write {file:?}"
        );
    }
    let further = if role == Role::ControlPlane {
        &CONTROL_PLANE[..]
    } else {
        &[]
    };
    for name in NODE.iter().chain(further) {
        let is_there = found
            .iter()
            .any(|file| file.secret && file.path.to_string_lossy().contains(name));
        anyhow::ensure!(is_there, "no secret {name}: {found:#?}");
    }
    let database = machine.layout.server_data().join("state.db");
    let stored = found.iter().find(|file| file.path == database);
    assert_eq!(
        stored.map(|file| file.open),
        (role == Role::ControlPlane).then_some(false)
    );
    Ok(())
}

/// How a port speaks.
#[derive(Clone, Copy, Debug)]
enum Speech {
    /// TLS 1.2 or newer.
    Tls,
    /// Whatever it likes: no secret goes through it, as upstream has it.
    Plain,
    /// The same, and only with the machine itself.
    Inside,
}

/// All ports that may be open.
const PORTS: [(u16, Speech, &str); 12] = [
    (API_PORT, Speech::Tls, "the API server"),
    (10250, Speech::Tls, "the kubelet"),
    (443, Speech::Tls, "the ingress controller"),
    (80, Speech::Plain, "the ingress controller"),
    (10254, Speech::Plain, "the ingress controller's health and metrics"),
    (53, Speech::Plain, "cluster DNS"),
    (8080, Speech::Plain, "cluster DNS's health"),
    (8181, Speech::Plain, "cluster DNS's readiness"),
    (9153, Speech::Plain, "cluster DNS's metrics"),
    (10256, Speech::Plain, "the proxy's health"),
    (10248, Speech::Inside, "the kubelet's health"),
    (10249, Speech::Inside, "the proxy's metrics"),
];

/// Every port that is open is one that is known, and speaks as it should.
pub(crate) fn ports(machine: &TestMachine) -> anyhow::Result<()> {
    let output =
        machine.output(Command::new("ss").args(["--no-header", "--listening", "--tcp", "--numeric", "--processes"]))?;
    let listed = String::from_utf8(output.stdout)?;
    let mut seen = Vec::new();
    for line in listed.lines() {
        let (address, port) = listener(line).with_context(|| line.to_owned())?;
        // Streams of `kubectl exec` go through the kubelet.
        if line.contains("\"containerd\"") {
            anyhow::ensure!(address.is_loopback(), "{line}");
            continue;
        }
        let known = PORTS.iter().find(|(known, ..)| *known == port);
        let (_, speech, name) = known.with_context(|| format!("who listens there? {line}"))?;
        match speech {
            Speech::Tls => {
                let host = format!("{}:{port}", machine.node.address);
                tls::modern_only(&host, |command| machine.output(command)).context(*name)?;
            }
            Speech::Inside => anyhow::ensure!(address.is_loopback(), "{name}: {line}"),
            Speech::Plain => {}
        }
        seen.push(port);
    }
    anyhow::ensure!(seen.contains(&10250) && seen.contains(&10256), "{listed}");
    Ok(())
}

/// The address and port of a line of `ss`.
fn listener(line: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = line.split_whitespace().nth(3)?.rsplit_once(':')?;
    let address = address.trim_matches(['[', ']']);
    let address = match address.split('%').next()? {
        "*" => "::",
        address => address,
    };
    Some((address.parse().ok()?, port.parse().ok()?))
}
