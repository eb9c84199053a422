//! Renewing a certificate before it ends.

use std::time::Duration;

use jiff::Timestamp;
use skiff_daemon::{Shutdown, error_chain};
use skiff_pki::{Identity, Kubeconfig, SigningRequest};

use super::client::Replaceable;
use super::figures;
use super::request::{self, Wanted};
use super::serving::Serving;
use super::store::{Kept, Store};
use super::{Connect, Error, Options, first, make};

/// Renewal begins somewhere in this share of the life, as upstream's: not all nodes of a cluster ask at once.
const EARLIEST: f64 = 0.7;
const SPREAD: f64 = 0.2;
/// Sleeps are no longer, so that a clock that was set is noticed.
const NAP: Duration = Duration::from_secs(3600);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(300);

/// How long to wait after so many failures in a row.
pub(super) fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << failures.min(16)).min(LAST_PAUSE)
}

/// When a certificate that is here since `since` is to be renewed; `chance` is between 0 and 1.
pub(super) fn due(identity: &Identity, since: Timestamp, chance: f64) -> Result<Timestamp, Error> {
    let validity = identity.validity()?;
    // Signers date back for clocks that are behind: its life begins where it came here.
    let begin = since.clamp(validity.not_before, validity.not_after);
    let life = Duration::try_from(validity.not_after.duration_since(begin)).unwrap_or_default();
    let share = EARLIEST + SPREAD * chance.clamp(0.0, 1.0);
    Ok(begin.checked_add(life.mul_f64(share)).unwrap_or(validity.not_after))
}

/// Whether the authority that signed a certificate goes; what cannot be read is renewed in its own time.
pub(super) fn is_of_former(identity: &Identity, authorities_pem: &str) -> bool {
    identity.is_of_former(authorities_pem).unwrap_or(false)
}

/// A number between 0 and 1 that differs between nodes and times.
pub(super) fn chance() -> f64 {
    f64::from(Timestamp::now().subsec_nanosecond() % 1_000_000) / 1_000_000.0
}

/// Sleeps until a moment of the calendar; `false` when the process ends.
pub(super) async fn sleep_until(at: Timestamp, shutdown: &Shutdown) -> bool {
    loop {
        let left = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
        if left.is_zero() {
            return true;
        }
        tokio::select! {
            () = shutdown.cancelled() => return false,
            () = tokio::time::sleep(left.min(NAP)) => {}
        }
    }
}

/// Keeps the client's certificate young until shutdown.
pub(super) async fn client(options: Options, connect: Connect, place: Replaceable, shutdown: Shutdown) {
    let store = options.store();
    let mut failures = 0;
    // Once a start: the authority that signs may not be the one that the file names first.
    let mut renewed_here = false;
    loop {
        let due = match store.load() {
            Ok(Some(Kept { identity, since })) => {
                let former =
                    || Kubeconfig::load(&options.kubeconfig).is_ok_and(|found| is_of_former(&identity, &found.ca_pem));
                if !renewed_here && former() {
                    Ok(Timestamp::now())
                } else {
                    due(&identity, since, chance())
                }
            }
            // The kubeconfig is somebody else's work and its certificate theirs to renew.
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let at = due.unwrap_or_else(|error| {
            tracing::warn!(error = error_chain(&error), "cannot read the client certificate");
            Timestamp::now()
        });
        if !sleep_until(at, &shutdown).await {
            return;
        }
        let renewed = tokio::select! {
            () = shutdown.cancelled() => return,
            renewed = renew_client(&options, &connect, &place, &store) => renewed,
        };
        match renewed {
            Ok(()) => {
                tracing::info!("the node's client certificate was renewed");
                (failures, renewed_here) = (0, true);
            }
            Err(error) => {
                figures::renew_failed();
                tracing::warn!(
                    error = error_chain(&error),
                    "cannot renew the client certificate; trying again"
                );
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(pause(failures)) => failures += 1,
                }
            }
        }
    }
}

async fn renew_client(options: &Options, connect: &Connect, place: &Replaceable, store: &Store) -> Result<(), Error> {
    let expired = match store.load()? {
        Some(kept) => kept.identity.validity()?.not_after <= Timestamp::now(),
        None => true,
    };
    match options
        .bootstrap_kubeconfig
        .as_deref()
        .filter(|path| expired && path.exists())
    {
        // Nobody believes what has ended: as at the first time.
        Some(bootstrap) => first(options, connect, bootstrap).await?,
        None => {
            let wanted = options.wanted();
            let identity = renew(&place.now(), &wanted).await?;
            store.keep(&identity)?;
        }
    }
    place.replace(make(connect, &options.kubeconfig).await?);
    Ok(())
}

pub(super) async fn renew(client: &kube::Client, wanted: &Wanted) -> Result<Identity, Error> {
    let key = SigningRequest::generate_key()?;
    let asked = request::ask(client, wanted, &key, None).await;
    let certificate = asked.map_err(|error| wanted.failed(error))?;
    Ok(Identity::from_pem(certificate, key)?)
}

/// Keeps a serving certificate that names `wanted`'s names and addresses, and keeps it young, until shutdown.
pub(super) async fn serving(serving: Serving, client: kube::Client, wanted: Wanted, store: Store, shutdown: Shutdown) {
    let mut failures = 0;
    let mut renewed_here = false;
    loop {
        let next = match store.load() {
            Ok(Some(kept)) if serving.uses(&kept.identity, &wanted.subject) => {
                if !renewed_here && is_of_former(&kept.identity, &serving.authorities()) {
                    Timestamp::now()
                } else {
                    due(&kept.identity, kept.since, chance()).unwrap_or_else(|_| Timestamp::now())
                }
            }
            Ok(_) => Timestamp::now(),
            Err(error) => {
                tracing::warn!(
                    error = error_chain(&error),
                    "cannot read the serving certificate; asking for another"
                );
                Timestamp::now()
            }
        };
        if !sleep_until(next, &shutdown).await {
            return;
        }
        let renewed = tokio::select! {
            () = shutdown.cancelled() => return,
            renewed = renew(&client, &wanted) => renewed.and_then(|identity| {
                store.keep(&identity)?;
                serving.show(&identity)?;
                Ok(())
            }),
        };
        match renewed {
            Ok(()) => {
                tracing::info!("the kubelet serves with a new certificate");
                (failures, renewed_here) = (0, true);
            }
            Err(error) => {
                figures::serving_failed();
                tracing::warn!(error = error_chain(&error), "no serving certificate; asking again");
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(pause(failures)) => failures += 1,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use skiff_pki::{CertificateAuthority, Request};

    use super::*;

    #[test]
    fn renewal_is_due_between_70_and_90_percent_of_the_life_here() {
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        let hour = Request::client("u", &[]).lifetime(Duration::from_secs(1000));
        let identity = authority.issue(&hour).unwrap();
        let end = identity.validity().unwrap().not_after;
        let since = end.checked_sub(Duration::from_secs(1000)).unwrap();
        let left = |chance| Duration::try_from(end.duration_since(due(&identity, since, chance).unwrap())).unwrap();
        assert_eq!(left(0.0).as_secs(), 300);
        assert_eq!(left(1.0).as_secs(), 100);
        // A file that was copied yesterday, or tomorrow.
        assert!(due(&identity, Timestamp::UNIX_EPOCH, 0.5).unwrap() < end);
        assert_eq!(due(&identity, Timestamp::MAX, 0.5).unwrap(), end);
        assert!((0.0..1.0).contains(&chance()));
    }

    #[test]
    fn failures_wait_longer_each_time() {
        let pauses: Vec<u64> = [0, 1, 2, 8, 9, 100].map(|failures| pause(failures).as_secs()).into();
        assert_eq!(pauses, [1, 2, 4, 256, 300, 300]);
    }
}
