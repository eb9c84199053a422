//! Phase `certs`: authorities, certificates and keys under `/etc/kubernetes/pki`, under kubeadm's names. What is there is kept, if it
//! serves.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use jiff::Timestamp;
use skiff_pki::{CertificateAuthority, Identity, Request, ServiceAccountKey};

use super::Node;
use crate::config::Cluster;
use crate::{Error, Machine};

const PHASE: &str = "certs";

/// Which of an authority's two files are there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Found {
    Nothing,
    Both,
    KeyOnly,
    CertificateOnly,
}

/// What becomes of an authority.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    Make,
    Keep,
    /// A run was interrupted between the two files: nobody trusts it yet.
    MakeAgain,
    /// The other half is gone, and something may rest on it.
    Refuse,
}

/// A certificate that the API server needs, and who signs it.
struct Leaf {
    name: &'static str,
    front_proxy: bool,
    request: Request,
}

fn plan_authority(found: Found, has_issued: bool) -> Step {
    match (found, has_issued) {
        (Found::Nothing, _) => Step::Make,
        (Found::Both, _) => Step::Keep,
        (Found::KeyOnly, false) => Step::MakeAgain,
        (Found::KeyOnly, true) | (Found::CertificateOnly, _) => Step::Refuse,
    }
}

/// The certificates of the API server.
fn plan_leaves(cluster: &Cluster, node: &Node) -> [Leaf; 3] {
    let (names, addresses) = subject_alternative_names(cluster, node);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    [
        Leaf {
            name: "apiserver",
            front_proxy: false,
            request: Request::server("kube-apiserver", &names, &addresses),
        },
        Leaf {
            name: "apiserver-kubelet-client",
            front_proxy: false,
            // Without a group: what it may do at kubelets is bound to its name.
            request: Request::client("kube-apiserver-kubelet-client", &[]),
        },
        Leaf {
            name: "front-proxy-client",
            front_proxy: true,
            request: Request::client("front-proxy-client", &[]),
        },
    ]
}

/// What the API server is called by: kubeadm's names and addresses, and loopback, for clients of its own machine.
fn subject_alternative_names(cluster: &Cluster, node: &Node) -> (Vec<String>, Vec<IpAddr>) {
    let mut names = BTreeSet::from(
        [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
        ]
        .map(str::to_owned),
    );
    names.insert(format!("kubernetes.default.svc.{}", cluster.dns_domain));
    names.insert(node.name.clone());
    let mut addresses = BTreeSet::from([
        cluster.kubernetes_address(),
        node.address,
        IpAddr::V4(Ipv4Addr::LOCALHOST),
    ]);
    let further = cluster
        .endpoint
        .iter()
        .map(|endpoint| &endpoint.host)
        .chain(&cluster.cert_sans);
    for san in further {
        match san.parse() {
            Ok(address) => drop(addresses.insert(address)),
            Err(_) => drop(names.insert(san.clone())),
        }
    }
    (names.into_iter().collect(), addresses.into_iter().collect())
}

/// Makes what is missing or no longer serves. Returns the authority of clients and servers.
pub(crate) fn apply(machine: &Machine<'_>, cluster: &Cluster, node: &Node) -> Result<CertificateAuthority, Error> {
    let pki = machine.layout.pki();
    machine.say(
        PHASE,
        format!("Using certificateDir folder {:?}", pki.display().to_string()),
    );
    let own = authority(machine, &pki, "ca", "kubernetes")?;
    let front_proxy = authority(machine, &pki, "front-proxy-ca", "front-proxy-ca")?;
    for leaf in plan_leaves(cluster, node) {
        let signer = if leaf.front_proxy { &front_proxy } else { &own };
        issue(machine, signer, &pki, leaf.name, &leaf.request)?;
    }
    if !pki.join("sa.key").exists() {
        machine.say(PHASE, "Generating \"sa\" key and public key");
    }
    ServiceAccountKey::load_or_generate(&pki)?;
    Ok(own)
}

/// Takes what somebody else has put there, and makes nothing; what is missing is told before anything is begun with it.
pub(crate) fn load(machine: &Machine<'_>) -> Result<CertificateAuthority, Error> {
    let pki = machine.layout.pki();
    let authority = CertificateAuthority::load(&pki, "ca")?;
    check_time(&authority, &machine.layout.ca_certificate(), (machine.now)())?;
    skiff_pki::files::read(&pki.join("front-proxy-ca.crt"))?;
    for (name, _) in crate::certs::LEAVES {
        Identity::load(&pki, name)?;
    }
    ServiceAccountKey::load(&pki)?;
    Ok(authority)
}

fn authority(machine: &Machine<'_>, pki: &Path, name: &str, common_name: &str) -> Result<CertificateAuthority, Error> {
    let (certificate, key) = (pki.join(format!("{name}.crt")), pki.join(format!("{name}.key")));
    let found = match (certificate.exists(), key.exists()) {
        (false, false) => Found::Nothing,
        (true, true) => Found::Both,
        (false, true) => Found::KeyOnly,
        (true, false) => Found::CertificateOnly,
    };
    // The first certificate that is issued after the authorities.
    let has_issued = pki.join("apiserver.crt").exists();
    match plan_authority(found, has_issued) {
        Step::Keep => {
            machine.say(PHASE, format!("Using existing {name} certificate authority"));
            let authority = CertificateAuthority::load(pki, name)?;
            check_time(&authority, &certificate, (machine.now)())?;
            return Ok(authority);
        }
        Step::Make => machine.say(PHASE, format!("Generating {name:?} certificate and key")),
        Step::MakeAgain => {
            machine.say(
                PHASE,
                format!("Generating {name:?} certificate and key anew: a former run was interrupted"),
            );
        }
        Step::Refuse => {
            let path = if found == Found::KeyOnly { certificate } else { key };
            return Err(skiff_pki::Error::HalfMissing { path }.into());
        }
    }
    let authority = CertificateAuthority::generate(common_name)?;
    authority.save(pki, name)?;
    Ok(authority)
}

/// Whether what an authority signs now is of use: a clock that has not been set yet is told as such.
pub(crate) fn check_time(authority: &CertificateAuthority, path: &Path, now: Timestamp) -> Result<(), Error> {
    let (validity, path) = (authority.validity()?, path.to_owned());
    if now > validity.not_after {
        let until = validity.not_after.to_string();
        return Err(Error::AuthorityExpired { path, until });
    }
    if now < validity.not_before {
        let from = validity.not_before.to_string();
        return Err(Error::AuthorityNotYetValid { path, from });
    }
    Ok(())
}

/// Loads a certificate, or issues it where it is missing, near its end, or says something else than `request`.
pub(crate) fn issue(
    machine: &Machine<'_>,
    authority: &CertificateAuthority,
    pki: &Path,
    name: &str,
    request: &Request,
) -> Result<Identity, Error> {
    let former = Identity::load_if_whole(pki, name)?;
    let identity = authority.load_or_issue(pki, name, request)?;
    let text = match former {
        None => format!("Generating {name:?} certificate and key"),
        Some(former) if former == identity => format!("Using existing {name} certificate and key on disk"),
        Some(_) => format!("Generating {name:?} certificate and key anew: the former one no longer serves"),
    };
    machine.say(PHASE, text);
    if !request.dns_names.is_empty() && name == "apiserver" {
        let addresses: Vec<_> = request.ip_addresses.iter().map(ToString::to_string).collect();
        let names = request.dns_names.join(" ");
        machine.say(
            PHASE,
            format!(
                "{name} serving cert is signed for DNS names [{names}] and IPs [{}]",
                addresses.join(" ")
            ),
        );
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Init, InitFlags};

    #[test]
    fn an_authority_is_never_replaced_where_something_may_rest_on_it() {
        let cases = [
            (Found::Nothing, false, Step::Make),
            (Found::Both, true, Step::Keep),
            (Found::Both, false, Step::Keep),
            (Found::KeyOnly, false, Step::MakeAgain),
            (Found::KeyOnly, true, Step::Refuse),
            (Found::CertificateOnly, false, Step::Refuse),
        ];
        for (found, has_issued, wanted) in cases {
            assert_eq!(plan_authority(found, has_issued), wanted, "{found:?} {has_issued}");
        }
    }

    #[test]
    fn the_server_is_known_by_all_its_names() {
        let flags = InitFlags {
            endpoint: Some("api.example:443".to_owned()),
            cert_sans: vec!["203.0.113.5".to_owned(), "other.example".to_owned()],
            dns_domain: Some("k.local".to_owned()),
            ..InitFlags::default()
        };
        let cluster = Init::new(flags, None).unwrap().cluster;
        let node = Node::for_test("master", "192.168.56.10");
        let (names, addresses) = subject_alternative_names(&cluster, &node);
        for name in [
            "api.example",
            "other.example",
            "kubernetes.default.svc.k.local",
            "master",
            "localhost",
        ] {
            assert!(names.iter().any(|found| found == name), "{name}");
        }
        let wanted = ["10.96.0.1", "127.0.0.1", "192.168.56.10", "203.0.113.5"];
        assert_eq!(addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), wanted);
    }
}
