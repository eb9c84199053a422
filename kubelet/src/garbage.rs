//! What pods that are gone have left: directories, cgroups, logs. Dead containers and sandboxes of living pods are the
//! plan's business.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::agent::Agent;

/// Whose remains may be taken away, while pods come and go: nobody's who is here; and who comes back waits for the end of it.
#[derive(Debug, Default)]
pub(crate) struct Claims(Mutex<Claimed>);

#[derive(Debug, Default)]
struct Claimed {
    here: HashSet<String>,
    /// Whose remains are being taken away. The sender ends with it.
    taken: Option<(String, watch::Sender<()>)>,
}

/// That a pod's remains are being taken away, until it is dropped.
#[derive(Debug)]
struct Taken<'a>(&'a Claims);

/// Ends when nothing of a pod is being taken away.
#[derive(Debug)]
pub(crate) struct Remains(watch::Receiver<()>);

// === impl Claims ===

impl Claims {
    /// A pod is here; what an earlier one of that UID has left may be on its way out.
    pub(crate) fn claim(&self, uid: &str) -> Option<Remains> {
        let mut claimed = self.0.lock();
        claimed.here.insert(uid.to_owned());
        let taken = claimed.taken.as_ref().filter(|(taken, _)| taken == uid);
        taken.map(|(_, sender)| Remains(sender.subscribe()))
    }

    /// Nothing is left of a pod.
    pub(crate) fn release(&self, uid: &str) {
        self.0.lock().here.remove(uid);
    }

    /// Begins to take away what a pod has left, unless that pod is here.
    fn take(&self, uid: &str) -> Option<Taken<'_>> {
        let mut claimed = self.0.lock();
        if claimed.here.contains(uid) {
            return None;
        }
        claimed.taken = Some((uid.to_owned(), watch::Sender::new(())));
        Some(Taken(self))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.0.lock().taken = None;
    }
}

impl Remains {
    /// Waits for the end.
    pub(crate) async fn gone(mut self) {
        while self.0.changed().await.is_ok() {}
    }
}

/// What could not be removed, and why, by the UID of its pod: it is tried again with each round, and told once.
pub(crate) type Stuck = HashMap<String, String>;

/// Removes what belongs to no pod that is here; one round at a time.
pub(crate) async fn orphans(agent: Arc<Agent>, claims: Arc<Claims>, told: Stuck) -> Stuck {
    let (by, others) = (agent.clone(), claims.clone());
    // A large directory takes its time: not on a thread that others wait for.
    let files = tokio::task::spawn_blocking(move || {
        logs(&by, &others);
        directories(&by, &others, &told)
    });
    let stuck = files.await.unwrap_or_default();
    for uid in agent.cgroups.pods() {
        let Some(_taken) = claims.take(&uid) else { continue };
        if let Err(error) = agent.cgroups.remove_pod(&uid).await {
            tracing::warn!(
                uid,
                error = skiff_daemon::error_chain(&error),
                "cannot remove the cgroup of a pod that is gone"
            );
        }
    }
    stuck
}

/// Pods' directories; what cannot be removed is told when it is news.
fn directories(agent: &Agent, claims: &Claims, told: &Stuck) -> Stuck {
    let mut left = Stuck::new();
    for uid in agent.volumes.pods() {
        let Some(_taken) = claims.take(&uid) else { continue };
        match agent.volumes.remove_pod(&uid) {
            Ok(()) => tracing::info!(uid, "removed the directory of a pod that is gone"),
            Err(error) => {
                let error = skiff_daemon::error_chain(&error);
                if told.get(&uid) != Some(&error) {
                    tracing::warn!(uid, error, "cannot remove the directory of a pod that is gone");
                }
                left.insert(uid, error);
            }
        }
    }
    left
}

/// Log directories are named `<namespace>_<name>_<uid>`; others are not ours.
fn logs(agent: &Agent, claims: &Claims) {
    let entries = std::fs::read_dir(&agent.config.kubelet.pod_logs_dir)
        .into_iter()
        .flatten();
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((rest, uid)) = name.rsplit_once('_') else {
            continue;
        };
        if rest.contains('_')
            && let Some(_taken) = claims.take(uid)
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            tracing::warn!(%error, path = %entry.path().display(), "cannot remove the logs of a pod that is gone");
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn nothing_is_taken_from_a_pod_that_is_here_and_who_comes_back_waits() {
        let claims = Claims::default();
        assert!(claims.claim("a").is_none());
        assert!(claims.take("a").is_none(), "it is here");
        claims.release("a");
        let taken = claims.take("a").unwrap();
        assert!(claims.claim("b").is_none(), "another pod does not wait");
        let mut waiting = Box::pin(claims.claim("a").unwrap().gone());
        assert!((&mut waiting).now_or_never().is_none());
        drop(taken);
        assert!(waiting.now_or_never().is_some());
        assert!(claims.take("a").is_none(), "it is here again");
        assert!(claims.claim("a").is_none());
    }
}
