//! What pods that are gone have left: directories, cgroups, logs. Dead containers and sandboxes of living pods are the
//! plan's business.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::agent::Agent;

/// What could not be removed, and why, by the UID of its pod: it is tried again with each round, and told once.
pub(crate) type Stuck = HashMap<String, String>;

/// Removes what belongs to no wanted pod.
pub(crate) async fn orphans(agent: &Arc<Agent>, wanted: &Arc<HashSet<String>>, stuck: &mut Stuck) {
    let (by, others, told) = (agent.clone(), wanted.clone(), std::mem::take(stuck));
    // A large directory takes its time: not on a thread that others wait for.
    let files = tokio::task::spawn_blocking(move || {
        logs(&by, &others);
        directories(&by, &others, &told)
    });
    *stuck = files.await.unwrap_or_default();
    for uid in agent.cgroups.pods().into_iter().filter(|uid| !wanted.contains(uid)) {
        if let Err(error) = agent.cgroups.remove_pod(&uid).await {
            tracing::warn!(
                uid,
                error = skiff_daemon::error_chain(&error),
                "cannot remove the cgroup of a pod that is gone"
            );
        }
    }
}

/// Pods' directories; what cannot be removed is told when it is news.
fn directories(agent: &Agent, wanted: &HashSet<String>, told: &Stuck) -> Stuck {
    let mut left = Stuck::new();
    for uid in agent.volumes.pods().into_iter().filter(|uid| !wanted.contains(uid)) {
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
fn logs(agent: &Agent, wanted: &HashSet<String>) {
    let entries = std::fs::read_dir(&agent.config.kubelet.pod_logs_dir)
        .into_iter()
        .flatten();
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((rest, uid)) = name.rsplit_once('_') else {
            continue;
        };
        if rest.contains('_')
            && !wanted.contains(uid)
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            tracing::warn!(%error, path = %entry.path().display(), "cannot remove the logs of a pod that is gone");
        }
    }
}
