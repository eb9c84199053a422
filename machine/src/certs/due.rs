//! What is renewed without anybody asking: by a server, of the certificates that lie on its machine.
//!
//! One rule for all: a certificate is due when less than a fifth of its life is left, or when it does not belong to its key. It is
//! issued by the code of `skiff certs renew`.

use std::path::Path;

use jiff::Timestamp;
use skiff_pki::{CertificateAuthority, Identity, LEAF_LIFETIME, Validity};

use super::{AUTHORITIES, CertsError, Found, Home, Place, issue_anew, signer};
use crate::Error;
use crate::init::certs::check_time;

/// What is to be told of one look.
#[derive(Debug)]
pub enum Outcome {
    /// It was due, and there is another in its place.
    Renewed {
        /// `apiserver`, or `admin.conf`.
        name: String,
    },
    /// Nobody knows whether it is due: its files cannot be read.
    Unreadable {
        /// `apiserver`, or `admin.conf`.
        name: String,
        /// Why not.
        error: Error,
    },
    /// It is due.
    Failed {
        /// `apiserver`, or `admin.conf`.
        name: String,
        /// Why it stays as it is.
        error: Error,
    },
    /// What an authority signs now would outlive it.
    AuthorityEnds {
        /// `ca` or `front-proxy-ca`.
        name: &'static str,
        /// Its last second.
        at: Timestamp,
    },
}

/// Renews what is due of the certificates in `pki` and of the kubeconfigs beside that directory, each for itself; tells what is news.
pub fn renew_due(pki: &Path, now: Timestamp) -> Vec<Outcome> {
    let home = Home {
        pki: pki.to_owned(),
        kubeconfigs: pki.parent().unwrap_or(pki).to_owned(),
    };
    let mut outcomes = Vec::new();
    for (name, found) in home.look() {
        let due = found.and_then(|found| Ok(is_due(&home, &found, now)?.then_some(found)));
        match due.map(|due| due.map(|found| renew(&home, &found, now))) {
            Ok(None) => {}
            Ok(Some(Ok(()))) => outcomes.push(Outcome::Renewed { name }),
            Ok(Some(Err(error))) => outcomes.push(Outcome::Failed { name, error }),
            Err(error) => outcomes.push(Outcome::Unreadable { name, error }),
        }
    }
    let ends = AUTHORITIES.into_iter().filter_map(|name| {
        let pem = skiff_pki::files::read(&home.pki.join(format!("{name}.crt"))).ok()?;
        let validity = Validity::of_pem(&pem).ok()?;
        let at = validity.not_after;
        (validity.remaining(now) < LEAF_LIFETIME).then_some(Outcome::AuthorityEnds { name, at })
    });
    outcomes.extend(ends);
    outcomes
}

fn is_due(home: &Home, found: &Found, now: Timestamp) -> Result<bool, Error> {
    let is_whole = match found.place {
        Place::Pair => Identity::load_if_whole(&home.pki, &found.name)?.is_some(),
        Place::Kubeconfig(_) | Place::Kubelet(_) => true,
    };
    Ok(!is_whole || Validity::of_pem(&found.certificate_pem)?.should_renew(now))
}

fn renew(home: &Home, found: &Found, now: Timestamp) -> Result<(), Error> {
    let authority = signer(home, found)?;
    check(home, found, &authority, now)?;
    issue_anew(home, found, &authority)
}

/// Whether what the authority signs now is of use. A machine whose clock has not been set yet must not replace what is good.
fn check(home: &Home, found: &Found, authority: &CertificateAuthority, now: Timestamp) -> Result<(), Error> {
    let path = home.pki.join(format!("{}.crt", found.authority));
    check_time(authority, &path, now)?;
    if !authority.has_signed(&found.certificate_pem)? {
        let (name, authority) = (found.name.clone(), path);
        return Err(CertsError::ForeignAuthority { name, authority }.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;
    use std::time::Duration;

    use jiff::SignedDuration;
    use skiff_pki::{CA_LIFETIME, Kubeconfig, Request};

    use super::*;

    const NAMES: [&str; 4] = [
        "admin.conf",
        "apiserver",
        "apiserver-kubelet-client",
        "front-proxy-client",
    ];

    /// A control plane whose certificates live for a year.
    fn control_plane() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let pki = root.path().join("pki");
        let ca = CertificateAuthority::load_or_generate(&pki, "ca", "kubernetes").unwrap();
        let front = CertificateAuthority::load_or_generate(&pki, "front-proxy-ca", "front-proxy-ca").unwrap();
        let server = Request::server("kube-apiserver", &["kubernetes"], &["10.0.0.1".parse().unwrap()]);
        ca.load_or_issue(&pki, "apiserver", &server).unwrap();
        let client = Request::client("kube-apiserver-kubelet-client", &[]);
        ca.load_or_issue(&pki, "apiserver-kubelet-client", &client).unwrap();
        let client = Request::client("front-proxy-client", &[]);
        front.load_or_issue(&pki, "front-proxy-client", &client).unwrap();
        let admin = ca
            .issue(&Request::client("kubernetes-admin", &["kubeadm:cluster-admins"]))
            .unwrap();
        let (user, url) = ("kubernetes-admin", "https://10.0.0.1:6443");
        let kubeconfig = Kubeconfig::embedded("kubernetes", url, ca.certificate_pem(), user, &admin);
        kubeconfig.write(&root.path().join("admin.conf")).unwrap();
        (root, pki)
    }

    fn days(days: i64) -> Timestamp {
        Timestamp::now() + SignedDuration::from_hours(24 * days)
    }

    /// One line an outcome, without what differs from run to run.
    fn look(pki: &Path, now: Timestamp) -> Vec<String> {
        let told = renew_due(pki, now).into_iter().map(|outcome| match outcome {
            Outcome::Renewed { name } => name,
            Outcome::Unreadable { name, error } => format!("{name} unread: {}", skiff_daemon::error_chain(&error)),
            Outcome::Failed { name, error } => format!("{name}: {}", skiff_daemon::error_chain(&error)),
            Outcome::AuthorityEnds { name, .. } => format!("{name} ends"),
        });
        told.collect()
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_in_its_last_fifth_is_renewed_as_it_was() {
        let (root, pki) = control_plane();
        assert_eq!(look(&pki, days(1)), [""; 0]);
        assert_eq!(look(&pki, days(290)), [""; 0]);
        let former = Identity::load(&pki, "apiserver").unwrap();
        assert_eq!(look(&pki, days(300)), NAMES);
        let renewed = Identity::load(&pki, "apiserver").unwrap();
        assert_ne!(renewed.key_pem(), former.key_pem());
        let [old, new] = [&former, &renewed].map(|it| Request::like(it.certificate_pem()).unwrap());
        assert_eq!(
            (&new.common_name, &new.organizations),
            (&old.common_name, &old.organizations)
        );
        assert_eq!((&new.dns_names, &new.ip_addresses), (&old.dns_names, &old.ip_addresses));
        assert_eq!(new.usage, old.usage);
        let conf = root.path().join("admin.conf");
        let admin = Kubeconfig::load(&conf).unwrap().identity.unwrap();
        let admin = Request::like(admin.certificate_pem()).unwrap();
        assert_eq!(admin.organizations, ["kubeadm:cluster-admins"]);
        for (path, wanted) in [
            (conf, 0o600),
            (pki.join("apiserver.key"), 0o600),
            (pki.join("apiserver.crt"), 0o644),
        ] {
            assert_eq!(mode(&path), wanted, "{}", path.display());
        }
        // Issued now, whatever the look's own time: they are good.
        assert_eq!(look(&pki, Timestamp::now()), [""; 0]);
    }

    #[test]
    fn a_renewal_that_was_interrupted_is_completed() {
        let (_root, pki) = control_plane();
        std::fs::copy(pki.join("front-proxy-client.key"), pki.join("apiserver.key")).unwrap();
        assert_eq!(look(&pki, Timestamp::now()), ["apiserver"]);
        Identity::load(&pki, "apiserver").unwrap();
    }

    #[test]
    fn what_cannot_be_read_is_not_called_due() {
        let (_root, pki) = control_plane();
        let key = pki.join("apiserver.key");
        std::fs::remove_file(&key).unwrap();
        // Nobody can read it as a file, root included.
        std::fs::create_dir(&key).unwrap();
        let told = look(&pki, Timestamp::now());
        assert!(
            matches!(told.as_slice(), [only] if only.starts_with("apiserver unread: ") && only.contains("apiserver.key")),
            "{told:?}"
        );
    }

    #[test]
    fn what_cannot_be_renewed_keeps_no_other_from_it() {
        let (root, pki) = control_plane();
        std::fs::remove_file(pki.join("front-proxy-ca.key")).unwrap();
        std::fs::write(root.path().join("admin.conf"), "nonsense: [").unwrap();
        let foreign = CertificateAuthority::generate("kubernetes").unwrap();
        let server = Request::server("kube-apiserver", &["kubernetes"], &[]).lifetime(Duration::from_secs(1));
        foreign.issue(&server).unwrap().save(&pki, "apiserver").unwrap();
        let told = look(&pki, days(300));
        for (told, wanted) in told.iter().zip([
            "admin.conf unread: ",
            "apiserver: apiserver was signed by an authority that is not in ",
            "apiserver-kubelet-client",
            "front-proxy-client: front-proxy-client cannot be renewed here: the key of its authority, ",
        ]) {
            assert!(told.starts_with(wanted), "{told}");
        }
        assert_eq!(told.len(), NAMES.len(), "{told:?}");
    }

    #[test]
    fn an_authority_that_ends_is_told_and_one_that_is_not_valid_signs_nothing() {
        let (_root, pki) = control_plane();
        let former = Identity::load(&pki, "apiserver").unwrap();
        let whole = i64::try_from(CA_LIFETIME.as_secs()).unwrap() / (24 * 3600);
        // A clock that stands at the beginning of its time.
        for (now, why, count) in [
            (days(whole + 1), "has expired", 6),
            (Timestamp::UNIX_EPOCH, "is valid from", 4),
        ] {
            let told = look(&pki, now);
            assert_eq!(told.len(), count, "{told:?}");
            assert!(told[..4].iter().all(|told| told.contains(why)), "{told:?}");
        }
        assert_eq!(Identity::load(&pki, "apiserver").unwrap(), former);
        let told = look(&pki, days(whole - 100));
        assert_eq!(told[4..], ["ca ends", "front-proxy-ca ends"], "{told:?}");
    }
}
