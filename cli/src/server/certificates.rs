//! The control plane's certificates, renewed while the server runs, and read anew; said when one has ended all the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use skiff_api::config::ServerConfiguration;
use skiff_apiserver::ApiServer;
use skiff_daemon::{Files, Shutdown, error_chain};
use skiff_machine::certs::{Outcome, renew_due};
use skiff_pki::{CertificateAuthority, Identity, Validity};
use tokio::time::Instant;

use super::config::Trust;

/// What is looked at: the names of kubeadm.
const NAMES: [&str; 6] = [
    "apiserver.crt",
    "apiserver.key",
    "ca.crt",
    "ca.key",
    "apiserver-kubelet-client.crt",
    "apiserver-kubelet-client.key",
];
/// How often it is said what has ended, or will soon.
const REMIND: Duration = Duration::from_secs(24 * 3600);
/// How often it is looked which certificates are to be renewed. What was issued while the clock was ahead serves nobody once that is set
/// right: not for long.
const LOOK: Duration = Duration::from_secs(600);

/// Renews those of the machine's certificates that near their end.
pub(super) struct Renewals {
    directory: PathBuf,
    said: Said,
}

impl Renewals {
    pub(super) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            said: Said::default(),
        }
    }

    /// Renews what is due now.
    pub(super) fn look(&mut self) {
        let outcomes = renew_due(&self.directory, Timestamp::now());
        let news = self.said.news(outcomes, text, Instant::now());
        news.iter().for_each(tell);
    }
}

/// What the last look found wrong, and when it was said: again after a day, not at each look.
#[derive(Default)]
struct Said(BTreeMap<String, Instant>);

impl Said {
    /// Leaves out what was said already; what has no text is always news.
    fn news<T>(&mut self, found: Vec<T>, text: impl Fn(&T) -> Option<String>, now: Instant) -> Vec<T> {
        let former = std::mem::take(&mut self.0);
        let is_news = |found: &T| {
            let Some(text) = text(found) else { return true };
            let said = former.get(&text).filter(|said| now.duration_since(**said) < REMIND);
            self.0.insert(text, said.copied().unwrap_or(now));
            said.is_none()
        };
        found.into_iter().filter(is_news).collect()
    }
}

/// By what it is known that it was said already.
fn text(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Renewed { .. } => None,
        Outcome::Unreadable { name, error } | Outcome::Failed { name, error } => {
            Some(format!("{name}: {}", error_chain(error)))
        }
        Outcome::AuthorityEnds { name, at } => Some(format!("{name} ends at {at}")),
    }
}

fn tell(outcome: &Outcome) {
    match outcome {
        Outcome::Renewed { name } => tracing::info!(certificate = name, "renewed a certificate that neared its end"),
        Outcome::Unreadable { name, error } => tracing::warn!(
            certificate = name,
            error = error_chain(error),
            "cannot read a certificate and see when it ends: its files must be whole, and root's own"
        ),
        Outcome::Failed { name, error } => tracing::warn!(
            certificate = name,
            error = error_chain(error),
            "cannot renew a certificate that nears its end"
        ),
        Outcome::AuthorityEnds { name, at } => tracing::warn!(
            authority = name,
            %at,
            "an authority ends, and with it whatever it signs; put another in its place before: see \"Another authority\" in docs/certificates.md"
        ),
    }
}

/// Renews certificates when it is time, and gives the API server and the controllers what the files hold, whenever they change, until
/// shutdown.
pub(super) async fn keep_current(
    server: ApiServer,
    trust: Trust,
    config: ServerConfiguration,
    mut renewals: Renewals,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let paths = NAMES.map(|name| config.pki_dir.join(name)).to_vec();
    let mut files = Files::new(paths);
    let mut remind = tokio::time::interval(REMIND);
    // The first look was before the server read them.
    let mut look = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = look.tick() => {
                let looking = tokio::task::spawn_blocking(move || {
                    renewals.look();
                    renewals
                });
                renewals = looking.await.context("renew certificates")?;
            }
            _ = remind.tick() => remind_of_ends(&config.pki_dir, Timestamp::now()),
            () = files.changed() => match read(&server, &trust, &config) {
                Ok(()) => {
                    tracing::info!("the API server's certificates are read anew");
                    remind.reset_immediately();
                }
                Err(error) => {
                    tracing::warn!(
                        error = error_chain(error.as_ref()),
                        "still using the former certificates"
                    );
                    files.retry();
                }
            },
        }
    }
}

fn read(server: &ApiServer, trust: &Trust, config: &ServerConfiguration) -> anyhow::Result<()> {
    let identity = Identity::load(&config.pki_dir, "apiserver")?;
    let kubelet_client = Identity::load_if_there(&config.pki_dir, "apiserver-kubelet-client")?;
    let authority = CertificateAuthority::load(&config.pki_dir, "ca")?;
    let names = identity.names()?;
    let set = server.set_certificates(&identity, authority.certificate_pem(), kubelet_client.as_ref());
    set.context("use the renewed certificates")?;
    trust.renew(authority, names);
    Ok(())
}

/// A server with a certificate that has ended runs and can be reached by nobody: its log must say why.
fn remind_of_ends(directory: &Path, now: Timestamp) {
    for name in ["apiserver", "apiserver-kubelet-client"] {
        let validity =
            Identity::load_if_there(directory, name).and_then(|found| found.map(|it| it.validity()).transpose());
        if let Ok(Some(validity)) = validity
            && let Some(said) = end_of(name, &validity, now)
        {
            tracing::error!(directory = %directory.display(), "{said}");
        }
    }
}

/// What is to be said of a certificate that is not valid now, or not for long.
fn end_of(name: &str, validity: &Validity, now: Timestamp) -> Option<String> {
    let (begin, end) = (validity.not_before, validity.not_after);
    if now < begin {
        return Some(format!(
            "the certificate {name} is valid from {begin} on, and now is {now}: clients refuse it; is this machine's clock right?"
        ));
    }
    if now >= end {
        return Some(format!(
            "the certificate {name} is not valid any more (it ended at {end}): clients refuse it; renew it with: skiff certs renew {name}"
        ));
    }
    validity
        .should_renew(now)
        .then(|| format!("the certificate {name} ends at {end}; renew it with: skiff certs renew {name}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use skiff_pki::{CertificateAuthority, Request};

    use super::*;

    #[test]
    fn what_a_look_finds_again_is_said_once_a_day() {
        let mut said = Said::default();
        let begin = Instant::now();
        let mut look = |minutes: u64, found: &[&'static str]| {
            let now = begin + Duration::from_secs(60 * minutes);
            let text = |found: &&str| (*found != "renewed").then(|| (*found).to_owned());
            said.news(found.to_vec(), text, now)
        };
        assert_eq!(look(0, &["ca ends", "admin.conf"]), ["ca ends", "admin.conf"]);
        assert_eq!(look(10, &["renewed", "ca ends", "admin.conf"]), ["renewed"]);
        // Each renewal is news, and so is what was well in between.
        assert_eq!(look(20, &["renewed", "ca ends"]), ["renewed"]);
        assert_eq!(look(30, &["ca ends", "admin.conf"]), ["admin.conf"]);
        assert_eq!(look(24 * 60 - 1, &["ca ends", "admin.conf"]), [""; 0]);
        assert_eq!(look(24 * 60, &["ca ends", "admin.conf"]), ["ca ends"]);
        assert_eq!(look(24 * 60 + 10, &["ca ends"]), [""; 0]);
    }

    #[test]
    fn what_ends_is_told_with_its_remedy() {
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        let day = Duration::from_secs(24 * 3600);
        let wanted = Request::server("kube-apiserver", &["localhost"], &[]).lifetime(day * 100);
        let validity = authority.issue(&wanted).unwrap().validity().unwrap();
        let now = Timestamp::now();
        let said = |after: i64| {
            end_of(
                "apiserver",
                &validity,
                now + jiff::SignedDuration::from_hours(24 * after),
            )
        };
        assert_eq!(said(1), None);
        // An hour off is forgiven by the backdating or told: a whole day never goes unsaid.
        assert!(said(-1).unwrap().contains("clock"));
        assert!(said(99).unwrap().contains("ends at"));
        assert!(said(101).unwrap().ends_with("skiff certs renew apiserver"));
    }
}
