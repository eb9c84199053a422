//! The control plane's certificates, renewed while the server runs, and read anew; said when one has ended all the same.

use std::path::Path;
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
/// How often it is looked which certificates are to be renewed.
const LOOK: Duration = Duration::from_secs(6 * 3600);

/// Renews those of the machine's certificates that near their end.
pub(super) fn renew(directory: &Path) {
    for outcome in renew_due(directory, Timestamp::now()) {
        match outcome {
            Outcome::Renewed { name } => {
                tracing::info!(certificate = name, "renewed a certificate that neared its end")
            }
            Outcome::Failed { name, error } => tracing::warn!(
                certificate = name,
                error = error_chain(&error),
                "cannot renew a certificate that nears its end"
            ),
            Outcome::AuthorityEnds { name, at } => tracing::warn!(
                authority = name,
                %at,
                "an authority ends, and with it whatever it signs; put another in its place before: see \"Another authority\" in docs/certificates.md"
            ),
        }
    }
}

/// Renews certificates when it is time, and gives the API server and the controllers what the files hold, whenever they change, until
/// shutdown.
pub(super) async fn keep_current(
    server: ApiServer,
    trust: Trust,
    config: ServerConfiguration,
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
                let directory = config.pki_dir.clone();
                tokio::task::spawn_blocking(move || renew(&directory)).await.context("renew certificates")?;
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
