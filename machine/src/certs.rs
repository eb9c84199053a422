//! `skiff certs`: when the certificates of a control plane end, and new ones in their place.
//!
//! Files are replaced in one step, the key before its certificate; the processes that use them read them again by themselves.

mod due;

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use skiff_pki::{CertificateAuthority, Kubeconfig, Validity};

use crate::init::kubeconfig::keep_kubelet;
use crate::{Error, Layout};

pub use due::{Outcome, renew_due};

/// The certificates that `init` makes, beside kubeconfigs; and who signs them.
pub(crate) const LEAVES: [(&str, &str); 3] = [
    ("apiserver", "ca"),
    ("apiserver-kubelet-client", "ca"),
    ("front-proxy-client", "front-proxy-ca"),
];
const AUTHORITIES: [&str; 2] = ["ca", "front-proxy-ca"];
const KUBECONFIGS: [&str; 4] = ["admin", "super-admin", "proxy", "ingress"];
/// The kubelet's. It renews that by itself, as kubeadm expects of it: here it counts once it has ended, when nobody believes the kubelet.
pub(crate) const KUBELET: &str = "kubelet.conf";

/// A certificate and its end.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    /// `apiserver`, or `admin.conf`.
    pub name: String,
    /// When it ends.
    pub expires: String,
    /// Seconds until then; 0 when it has ended.
    pub residual_seconds: u64,
    /// Who signed it; empty for an authority.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub authority: String,
    /// Whether its signer's key is elsewhere, so that it cannot be renewed here.
    pub externally_managed: bool,
}

/// Why certificates cannot be renewed.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// There are none.
    #[error("there are no certificates in {}: this machine is no control plane; a worker's kubelet renews its own, and one that has ended is replaced by joining again: `skiff token create --print-join-command` on a control plane, and that line here", path.display())]
    NoControlPlane {
        /// Where they would be.
        path: PathBuf,
    },
    /// There is none of this name.
    #[error("there is no certificate {name:?} here; there are: {known}, and `all`")]
    Unknown {
        /// What was given.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// The authority's key is elsewhere.
    #[error("{name} cannot be renewed here: the key of its authority, {}, is not on this machine; sign it where that key is, and put it here", key.display())]
    ExternalAuthority {
        /// The certificate.
        name: String,
        /// Where the key would be.
        key: PathBuf,
    },
    /// It came from somewhere else.
    #[error("{name} was signed by an authority that is not in {}: who gave it renews it, or `skiff certs renew {name}` puts one of this cluster in its place", authority.display())]
    ForeignAuthority {
        /// The certificate.
        name: String,
        /// The authorities of this cluster.
        authority: PathBuf,
    },
}

/// The directories of a control plane.
struct Home {
    pki: PathBuf,
    kubeconfigs: PathBuf,
}

/// Where a certificate is.
enum Place {
    Pair,
    Kubeconfig(PathBuf),
    /// The kubelet's client certificate, a file beside its kubeconfig.
    Kubelet(Layout),
}

struct Found {
    name: String,
    authority: &'static str,
    place: Place,
    /// Without its key: a pair whose renewal was interrupted is told of and renewed like any other.
    certificate_pem: String,
}

/// All certificates, then the authorities.
///
/// # Errors
/// When there are none, or one cannot be read.
pub fn check_expiration(layout: &Layout, now: Timestamp) -> Result<(Vec<Certificate>, Vec<Certificate>), Error> {
    let pki = layout.pki();
    let mut certificates = Vec::new();
    for found in find(layout, now)? {
        let external = !pki.join(format!("{}.key", found.authority)).exists();
        certificates.push(describe(
            found.name,
            Validity::of_pem(&found.certificate_pem)?,
            now,
            found.authority,
            external,
        ));
    }
    let mut authorities = Vec::new();
    for name in AUTHORITIES {
        let path = pki.join(format!("{name}.crt"));
        if path.exists() {
            let external = !pki.join(format!("{name}.key")).exists();
            let validity = Validity::of_pem(&skiff_pki::files::read(&path)?)?;
            authorities.push(describe(name.to_owned(), validity, now, "", external));
        }
    }
    Ok((certificates, authorities))
}

/// Issues `names` (or, with `all`, every one) anew; returns those that were. The kubelet's is among them once it has ended.
///
/// # Errors
/// When a name is unknown, before anything is changed; or when one cannot be written.
pub fn renew(layout: &Layout, names: &[String]) -> Result<Vec<String>, Error> {
    let home = Home::of(layout);
    let found = find(layout, Timestamp::now())?;
    let all = names.iter().any(|name| name == "all");
    if let Some(name) = names
        .iter()
        .find(|name| *name != "all" && !found.iter().any(|found| found.name == **name))
    {
        let known: Vec<_> = found.iter().map(|found| found.name.as_str()).collect();
        return Err(CertsError::Unknown {
            name: name.clone(),
            known: known.join(", "),
        }
        .into());
    }
    let mut renewed = Vec::new();
    for found in found.into_iter().filter(|found| all || names.contains(&found.name)) {
        issue_anew(&home, &found, &signer(&home, &found)?)?;
        renewed.push(found.name);
    }
    Ok(renewed)
}

/// The authority that signs it.
fn signer(home: &Home, found: &Found) -> Result<CertificateAuthority, Error> {
    let key = home.pki.join(format!("{}.key", found.authority));
    if !key.exists() {
        return Err(CertsError::ExternalAuthority {
            name: found.name.clone(),
            key,
        }
        .into());
    }
    Ok(CertificateAuthority::load(&home.pki, found.authority)?)
}

fn issue_anew(home: &Home, found: &Found, authority: &CertificateAuthority) -> Result<(), Error> {
    let identity = authority.renew(&found.certificate_pem)?;
    match &found.place {
        Place::Pair => identity.save(&home.pki, &found.name)?,
        Place::Kubeconfig(path) => {
            // As kubeadm: the authority may be another by now.
            let mut kubeconfig = Kubeconfig::read(path)?;
            kubeconfig.set_current(&identity, authority.certificate_pem());
            kubeconfig.write(path)?;
        }
        Place::Kubelet(layout) => drop(keep_kubelet(layout, &identity, Timestamp::now())?),
    }
    Ok(())
}

fn find(layout: &Layout, now: Timestamp) -> Result<Vec<Found>, Error> {
    let home = Home::of(layout);
    let all = home.look().into_iter().map(|(_, found)| found);
    let mut all: Vec<Found> = all.collect::<Result<_, _>>()?;
    all.extend(ended_kubelet(layout, now));
    // A worker has a kubeconfig of its proxy, but nothing to sign another with.
    if all.iter().any(|found| matches!(found.place, Place::Pair)) {
        return Ok(all);
    }
    Err(CertsError::NoControlPlane { path: home.pki.clone() }.into())
}

impl Home {
    fn of(layout: &Layout) -> Self {
        Self {
            pki: layout.pki(),
            kubeconfigs: layout.kubernetes(),
        }
    }

    /// All certificates that are there, by their names.
    fn look(&self) -> Vec<(String, Result<Found, Error>)> {
        let mut all = Vec::new();
        for name in KUBECONFIGS {
            let name = format!("{name}.conf");
            let path = self.kubeconfigs.join(&name);
            if path.exists()
                && let Some(found) = in_kubeconfig(&name, &path).transpose()
            {
                all.push((name, found));
            }
        }
        for (name, authority) in LEAVES {
            let path = self.pki.join(format!("{name}.crt"));
            if path.exists() {
                let read = skiff_pki::files::read(&path).map_err(Error::from);
                let found = read.map(|certificate_pem| Found {
                    name: name.to_owned(),
                    authority,
                    place: Place::Pair,
                    certificate_pem,
                });
                all.push((name.to_owned(), found));
            }
        }
        all
    }
}

/// The certificate in a kubeconfig, unless that holds something else.
fn in_kubeconfig(name: &str, path: &Path) -> Result<Option<Found>, Error> {
    let identity = Kubeconfig::load(path)?.identity;
    Ok(identity.map(|identity| Found {
        name: name.to_owned(),
        authority: "ca",
        place: Place::Kubeconfig(path.to_owned()),
        certificate_pem: identity.certificate_pem().to_owned(),
    }))
}

fn ended_kubelet(layout: &Layout, now: Timestamp) -> Option<Found> {
    let certificate_pem = skiff_pki::files::read(&layout.kubelet_certificate()).ok()?;
    let validity = Validity::of_pem(&certificate_pem).ok()?;
    (validity.not_after <= now).then(|| Found {
        name: KUBELET.to_owned(),
        authority: "ca",
        place: Place::Kubelet(layout.clone()),
        certificate_pem,
    })
}

fn describe(
    name: String,
    validity: Validity,
    now: Timestamp,
    authority: &str,
    externally_managed: bool,
) -> Certificate {
    Certificate {
        name,
        expires: validity.not_after.to_string(),
        residual_seconds: validity.remaining(now).as_secs(),
        authority: authority.to_owned(),
        externally_managed,
    }
}

impl Certificate {
    /// How long it is valid yet.
    pub fn residual(&self) -> Duration {
        Duration::from_secs(self.residual_seconds)
    }
}

#[cfg(test)]
mod tests {
    use skiff_pki::{Identity, Request};

    use super::*;

    /// A control plane whose certificates are about to end.
    fn control_plane() -> (tempfile::TempDir, Layout) {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let pki = layout.pki();
        let ca = CertificateAuthority::load_or_generate(&pki, "ca", "kubernetes").unwrap();
        CertificateAuthority::load_or_generate(&pki, "front-proxy-ca", "front-proxy-ca").unwrap();
        let soon = Duration::from_secs(1);
        let server = Request::server("kube-apiserver", &["kubernetes"], &["10.0.0.1".parse().unwrap()]);
        ca.issue(&server.lifetime(soon))
            .unwrap()
            .save(&pki, "apiserver")
            .unwrap();
        let admin = Request::client("kubernetes-admin", &["kubeadm:cluster-admins"]);
        let admin = ca.issue(&admin.lifetime(soon)).unwrap();
        let kubeconfig = Kubeconfig::embedded(
            "kubernetes",
            "https://10.0.0.1:6443",
            ca.certificate_pem(),
            "kubernetes-admin",
            &admin,
        );
        kubeconfig.write(&layout.kubeconfig("admin")).unwrap();
        (root, layout)
    }

    #[test]
    fn what_has_expired_is_told_and_renewed() {
        let (_root, layout) = control_plane();
        let later = Timestamp::now() + Duration::from_secs(60);
        let (before, authorities) = check_expiration(&layout, later).unwrap();
        let names: Vec<_> = before
            .iter()
            .map(|found| (found.name.as_str(), found.residual_seconds))
            .collect();
        assert_eq!(names, [("admin.conf", 0), ("apiserver", 0)]);
        assert!(
            authorities
                .iter()
                .all(|authority| authority.residual_seconds > 0 && !authority.externally_managed)
        );

        assert_eq!(renew(&layout, &["apiserver".to_owned()]).unwrap(), ["apiserver"]);
        let (after, _) = check_expiration(&layout, later).unwrap();
        assert!(after[0].residual_seconds == 0 && after[1].residual_seconds > 0);
        assert_eq!(
            renew(&layout, &["all".to_owned()]).unwrap(),
            ["admin.conf", "apiserver"]
        );
        let admin = Kubeconfig::load(&layout.kubeconfig("admin")).unwrap();
        assert_eq!(admin.server, "https://10.0.0.1:6443");
        let ca = std::fs::read_to_string(layout.ca_certificate()).unwrap();
        assert_eq!(admin.ca_pem, ca);
        assert!(admin.identity.unwrap().validity().unwrap().remaining(later) > Duration::from_secs(3600));
    }

    #[test]
    fn the_kubelets_is_renewed_once_it_has_ended() {
        let (_root, layout) = control_plane();
        let ca = CertificateAuthority::load(&layout.pki(), "ca").unwrap();
        let kubelet = Request::client("system:node:master", &["system:nodes"]);
        let all = ["all".to_owned()];
        let names = |now| {
            let (told, _) = check_expiration(&layout, now).unwrap();
            told.into_iter().map(|told| told.name).collect::<Vec<_>>()
        };
        let young = ca.issue(&kubelet).unwrap();
        let earlier = Timestamp::UNIX_EPOCH;
        keep_kubelet(&layout, &young, earlier).unwrap();
        assert_eq!(names(Timestamp::now()), ["admin.conf", "apiserver"]);
        assert_eq!(renew(&layout, &all).unwrap(), ["admin.conf", "apiserver"]);

        let ended = ca.issue(&kubelet.lifetime(Duration::ZERO)).unwrap();
        keep_kubelet(&layout, &ended, earlier).unwrap();
        assert_eq!(names(Timestamp::now()), ["admin.conf", "apiserver", KUBELET]);
        assert_eq!(renew(&layout, &[KUBELET.to_owned()]).unwrap(), [KUBELET]);
        let pem = std::fs::read_to_string(layout.kubelet_certificate()).unwrap();
        let renewed = Identity::from_combined_pem(&pem).unwrap();
        assert!(renewed.validity().unwrap().remaining(Timestamp::now()) > Duration::from_secs(3600));
        let subject = Request::like(renewed.certificate_pem()).unwrap();
        assert_eq!(
            (subject.common_name.as_str(), subject.organizations),
            ("system:node:master", vec!["system:nodes".to_owned()])
        );
        assert_eq!(names(Timestamp::now()), ["admin.conf", "apiserver"]);
    }

    #[test]
    fn a_renewal_that_was_interrupted_is_made_good() {
        let (_root, layout) = control_plane();
        let (pki, names) = (layout.pki(), ["apiserver".to_owned()]);
        let former = Identity::load(&pki, "apiserver").unwrap().names().unwrap();
        let key = pki.join("apiserver.key");
        // The key is written first.
        let other = CertificateAuthority::generate("x").unwrap();
        let other = other.issue(&Request::client("x", &[])).unwrap();
        for spoil in [&|| std::fs::write(&key, other.key_pem()).unwrap(), &|| {
            std::fs::remove_file(&key).unwrap()
        }] as [&dyn Fn(); 2]
        {
            spoil();
            Identity::load(&pki, "apiserver").unwrap_err();
            let (told, _) = check_expiration(&layout, Timestamp::now()).unwrap();
            assert!(told.iter().any(|told| told.name == "apiserver"), "{told:?}");
            assert_eq!(renew(&layout, &names).unwrap(), names);
            let renewed = Identity::load(&pki, "apiserver").unwrap();
            assert_eq!(renewed.names().unwrap(), former);
        }
    }

    #[test]
    fn an_authority_that_takes_over_signs_and_both_are_trusted() {
        let (_root, layout) = control_plane();
        let (pki, bundle) = (layout.pki(), layout.ca_certificate());
        let former = std::fs::read_to_string(&bundle).unwrap();
        let next = CertificateAuthority::generate("kubernetes").unwrap();
        next.save(&pki, "ca").unwrap();
        let both = format!("{}{former}", next.certificate_pem());
        std::fs::write(&bundle, &both).unwrap();
        renew(&layout, &["all".to_owned()]).unwrap();
        let admin = Kubeconfig::load(&layout.kubeconfig("admin")).unwrap();
        assert_eq!(admin.ca_pem, both);
        admin.identity.unwrap().save(&pki, "admin").unwrap();
        for name in ["apiserver", "admin"] {
            let renewed = Identity::load(&pki, name).unwrap();
            let same = Request::like(renewed.certificate_pem()).unwrap();
            // It would be issued anew, had another signed it.
            assert_eq!(next.load_or_issue(&pki, name, &same).unwrap(), renewed, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_renewed_says_why() {
        let (_root, layout) = control_plane();
        let error = renew(&layout, &["apisever".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("admin.conf, apiserver"), "{error}");
        std::fs::remove_file(layout.pki().join("ca.key")).unwrap();
        let error = renew(&layout, &["apiserver".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("is not on this machine"), "{error}");
        let empty = Layout::new(tempfile::tempdir().unwrap().path());
        assert!(
            check_expiration(&empty, Timestamp::now())
                .unwrap_err()
                .to_string()
                .contains("no control plane")
        );
    }
}
