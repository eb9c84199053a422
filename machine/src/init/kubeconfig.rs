//! Phase `kubeconfig`: how this machine's own parts and its administrator reach the API server, and as whom.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use skiff_pki::kubeconfig::{Credentials, User};
use skiff_pki::{CertificateAuthority, Identity, Kubeconfig, Request};

use super::Node;
use crate::{Error, Layout, Machine, files};

const PHASE: &str = "kubeconfig";
/// kubeadm's name for every cluster.
const CLUSTER: &str = "kubernetes";

/// Whom kubeconfigs are for.
struct Wanted {
    /// `admin` is `admin.conf`.
    name: &'static str,
    request: Request,
    /// Whether it is for a part of this machine, which asks the machine's own server.
    local: bool,
}

fn plan(node: &Node) -> Vec<Wanted> {
    let person = |name, user: &str, group| Wanted {
        name,
        request: Request::client(user, &[group]),
        local: false,
    };
    let part = |name, user: &str| Wanted {
        name,
        request: Request::client(user, &[]),
        local: true,
    };
    let mut wanted = vec![
        person("admin", "kubernetes-admin", "kubeadm:cluster-admins"),
        // Works even where the bindings are damaged: not for every day.
        person("super-admin", "kubernetes-super-admin", "system:masters"),
    ];
    if node.proxy {
        wanted.push(part("proxy", "system:kube-proxy"));
    }
    if node.ingress {
        wanted.push(part("ingress", "system:skiff-ingress"));
    }
    wanted
}

/// The names of those that a control plane has: `admin` is `admin.conf`.
pub(crate) fn names(node: &Node) -> Vec<&'static str> {
    let parts = plan(node).into_iter().map(|wanted| wanted.name);
    parts.chain(["kubelet"]).collect()
}

/// Writes those that are missing or no longer serve. People come by the cluster's address, this machine's parts go to its own server.
pub(crate) fn apply(
    machine: &Machine<'_>,
    authority: &CertificateAuthority,
    cluster: &str,
    local: &str,
    node: &Node,
) -> Result<(), Error> {
    let folder = machine.layout.kubernetes();
    machine.say(
        PHASE,
        format!("Using kubeconfig folder {:?}", folder.display().to_string()),
    );
    for wanted in plan(node) {
        let path = machine.layout.kubeconfig(wanted.name);
        let ca = authority.certificate_pem();
        let server = if wanted.local { local } else { cluster };
        if serves(machine, &path, server, ca, &wanted.request.common_name) {
            machine.say(
                PHASE,
                format!("Using existing kubeconfig file: {:?}", path.display().to_string()),
            );
            continue;
        }
        machine.say(
            PHASE,
            format!("Writing {:?} kubeconfig file", format!("{}.conf", wanted.name)),
        );
        let identity = authority.issue(&wanted.request)?;
        Kubeconfig::embedded(CLUSTER, server, ca, &wanted.request.common_name, &identity).write(&path)?;
    }
    kubelet(machine, authority, local, node)
}

/// The kubelet's: its certificate is a file of its own, so that the kubelet can renew it.
fn kubelet(machine: &Machine<'_>, authority: &CertificateAuthority, server: &str, node: &Node) -> Result<(), Error> {
    let path = machine.layout.kubeconfig("kubelet");
    let ca = authority.certificate_pem();
    let user = node.user();
    if serves(machine, &path, server, ca, &user) {
        machine.say(
            PHASE,
            format!("Using existing kubeconfig file: {:?}", path.display().to_string()),
        );
        return Ok(());
    }
    machine.say(PHASE, "Writing \"kubelet.conf\" kubeconfig file");
    let identity = authority.issue(&Request::client(&user, &["system:nodes"]))?;
    let current = keep_kubelet(&machine.layout, &identity, (machine.now)())?;
    let mut kubeconfig = Kubeconfig::embedded(CLUSTER, server, ca, &user, &identity);
    for named in &mut kubeconfig.users {
        named.user = User {
            client_certificate: Some(current.clone()),
            client_key: Some(current.clone()),
            ..User::default()
        };
    }
    Ok(kubeconfig.write(&path)?)
}

/// Makes a client certificate the kubelet's current one; returns the link that leads to it.
pub(crate) fn keep_kubelet(layout: &Layout, identity: &Identity, now: Timestamp) -> Result<PathBuf, Error> {
    let stamp = now.strftime("%Y-%m-%d-%H-%M-%S");
    let file = layout.kubelet_pki().join(format!("kubelet-client-{stamp}.pem"));
    let pem = format!("{}{}", identity.certificate_pem(), identity.key_pem());
    skiff_pki::files::write_private(&file, pem.as_bytes())?;
    let current = layout.kubelet_certificate();
    files::link(&file, &current)?;
    Ok(current)
}

/// Whether a kubeconfig shows no certificate that the cluster believes at this time, or cannot be read at all.
pub(crate) fn has_ended(path: &Path, now: Timestamp) -> bool {
    let found = Kubeconfig::load(path).ok().and_then(|found| found.identity);
    let validity = found.and_then(|identity| identity.validity().ok());
    validity.is_none_or(|validity| validity.not_after <= now)
}

/// Whether a kubeconfig leads to this server, trusts this authority, and shows a certificate of this user that is not near its end:
/// a former run may have been for another cluster, or under another name.
pub(crate) fn serves(machine: &Machine<'_>, path: &Path, server: &str, ca: &str, user: &str) -> bool {
    Kubeconfig::load(path).is_ok_and(|found| is_good(&found, server, ca, user, (machine.now)()))
}

fn is_good(found: &Credentials, server: &str, ca: &str, user: &str, now: Timestamp) -> bool {
    let shows = |identity: &Identity| {
        let subject = Request::like(identity.certificate_pem())?.common_name;
        Ok::<_, skiff_pki::Error>(subject == user && !identity.validity()?.should_renew(now))
    };
    let shown = found.identity.as_ref().is_some_and(|it| shows(it).unwrap_or(false));
    shown && found.server == server && found.ca_pem == ca
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_kubeconfig_is_kept_while_it_serves() {
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        let identity = authority.issue(&Request::client("u", &[])).unwrap();
        let credentials = Credentials {
            server: "https://a:6443".to_owned(),
            ca_pem: authority.certificate_pem().to_owned(),
            identity: Some(identity),
            token: None,
        };
        let now = Timestamp::now();
        let ca = authority.certificate_pem();
        let late = now + Duration::from_secs(360 * 24 * 3600);
        for (server, ca, user, now, wanted) in [
            ("https://a:6443", ca, "u", now, true),
            ("https://b:6443", ca, "u", now, false),
            ("https://a:6443", "another", "u", now, false),
            ("https://a:6443", ca, "another", now, false),
            ("https://a:6443", ca, "u", late, false),
        ] {
            let good = is_good(&credentials, server, ca, user, now);
            assert_eq!(good, wanted, "{server} {user} {now}");
        }
        let without = Credentials {
            identity: None,
            ..credentials
        };
        assert!(!is_good(&without, "https://a:6443", ca, "u", now));
    }

    #[test]
    fn each_part_has_an_identity_of_its_own() {
        let node = Node::for_test("n", "10.0.0.1");
        let users: Vec<_> = plan(&node)
            .into_iter()
            .map(|wanted| wanted.request.common_name)
            .collect();
        assert_eq!(
            users,
            [
                "kubernetes-admin",
                "kubernetes-super-admin",
                "system:kube-proxy",
                "system:skiff-ingress"
            ]
        );
        // Those of people lead to the cluster's address, which stays when this machine goes.
        let people: Vec<_> = (plan(&node).into_iter())
            .filter(|wanted| !wanted.local)
            .map(|wanted| (wanted.name, wanted.request.organizations))
            .collect();
        let group = |name: &str| vec![name.to_owned()];
        let wanted = [
            ("admin", group("kubeadm:cluster-admins")),
            ("super-admin", group("system:masters")),
        ];
        assert_eq!(people, wanted);
    }
}
