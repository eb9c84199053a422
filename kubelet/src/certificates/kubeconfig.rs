//! Renewing the client certificate inside of a kubeconfig, for the processes beside the kubelet: each asks for its own next one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use skiff_daemon::{Shutdown, error_chain};
use skiff_pki::{Identity, Kubeconfig, Request};

use super::Error;
use super::request::Wanted;
use super::rotate::{chance, due, is_of_former, pause, renew, sleep_until};

const SIGNER: &str = "kubernetes.io/kube-apiserver-client";
/// How often a certificate that has ended is looked at: somebody may have put another in its place.
const LOOK: Duration = Duration::from_secs(60);

/// Keeps the certificate of a kubeconfig young until shutdown, if it is `user`'s; `client` follows the file by itself.
///
/// It is asked for with the certificate itself. A kubeconfig of somebody else, or without an embedded certificate, is left alone.
pub async fn keep_kubeconfig(client: kube::Client, path: PathBuf, user: &'static str, shutdown: Shutdown) {
    let mut failures = 0;
    // Once a start: the authority that signs may not be the one that the file names first.
    let mut renewed_here = false;
    loop {
        let at = match own(&path, user) {
            Ok(None) => return,
            Ok(Some(own)) if !renewed_here && own.is_of_former => Ok((Timestamp::now(), false)),
            Ok(Some(own)) => next(&own.identity, &path),
            Err(error) => Err(error),
        };
        let (at, ended) = at.unwrap_or_else(|error| {
            tracing::warn!(
                error = error_chain(&error),
                "cannot read the client certificate of a kubeconfig"
            );
            (Timestamp::now() + LOOK, true)
        });
        if !sleep_until(at, &shutdown).await {
            return;
        }
        if ended {
            continue;
        }
        // It may have been renewed by somebody else meanwhile.
        let is_young = |own: &Own| {
            let due = due(&own.identity, since(&path), 0.0);
            (renewed_here || !own.is_of_former) && due.is_ok_and(|due| due > Timestamp::now())
        };
        if own(&path, user).ok().flatten().as_ref().is_some_and(is_young) {
            continue;
        }
        let renewed = tokio::select! {
            () = shutdown.cancelled() => return,
            renewed = renew_own(&client, &path, user) => renewed,
        };
        match renewed {
            Ok(()) => {
                tracing::info!(kubeconfig = %path.display(), user, "the client certificate was renewed");
                (failures, renewed_here) = (0, true);
            }
            Err(error) => {
                tracing::warn!(
                    kubeconfig = %path.display(),
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

/// When to renew it; or, where it has ended and is of no use for that, when to look again.
fn next(identity: &Identity, path: &Path) -> Result<(Timestamp, bool), Error> {
    let (end, now) = (identity.validity()?.not_after, Timestamp::now());
    if end > now {
        return Ok((due(identity, since(path), chance())?, false));
    }
    tracing::error!(
        "the client certificate in {} is not valid any more (it ended at {end}): skiff certs renew on a control plane; \
         elsewhere join again with a new token (skiff token create --print-join-command there, and that line here)",
        path.display()
    );
    Ok((now + LOOK, true))
}

/// What is in a kubeconfig of ours.
struct Own {
    identity: Identity,
    /// Whether the authority that signed it goes.
    is_of_former: bool,
}

/// The certificate in the file, if it names this user and nothing else.
fn own(path: &Path, user: &str) -> Result<Option<Own>, Error> {
    let kubeconfig = Kubeconfig::read(path)?;
    let embedded = |named: &skiff_pki::kubeconfig::NamedUser| {
        Some(&named.name) == kubeconfig.current_user().as_ref() && named.user.client_certificate_data.is_some()
    };
    if !kubeconfig.users.iter().any(embedded) {
        return Ok(None);
    }
    let found = Kubeconfig::load(path)?;
    let Some(identity) = found.identity else {
        return Ok(None);
    };
    let subject = Request::like(identity.certificate_pem())?;
    let is_of_former = is_of_former(&identity, &found.ca_pem);
    Ok((subject.common_name == user && subject.organizations.is_empty()).then_some(Own { identity, is_of_former }))
}

/// Since when it is here.
fn since(path: &Path) -> Timestamp {
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    modified
        .ok()
        .and_then(|time| Timestamp::try_from(time).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

async fn renew_own(client: &kube::Client, path: &Path, user: &str) -> Result<(), Error> {
    let wanted = Wanted {
        signer: SIGNER,
        usage: "client auth",
        subject: Request::client(user, &[]),
    };
    let identity = renew(client, &wanted).await?;
    // Whatever else it says stays: read again, since asking took its time.
    let mut kubeconfig = Kubeconfig::read(path)?;
    let current = kubeconfig.current_user();
    for named in kubeconfig
        .users
        .iter_mut()
        .filter(|named| Some(&named.name) == current.as_ref())
    {
        named.user.set_identity(&identity);
    }
    Ok(kubeconfig.write(path)?)
}
