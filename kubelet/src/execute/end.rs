//! Ending: containers, what they leave, whole pods.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Context, Outcome, hooks, seconds};
use crate::agent::Agent;
use crate::events::Severity;
use crate::observed::Container;
use crate::volumes::{self, Volumes};
use crate::{log_rotation, pod};

/// Tells of a container's end and runs its preStop hook, for as long as its grace period allows.
pub(super) async fn pre_stop(context: &Context, (id, name): (&str, &str), grace: i64, message: &str) -> Outcome {
    let (agent, pod) = (&context.agent, &context.pod);
    tell(context, name, Severity::Normal, "Killing", message.to_owned());
    let Some((_, container)) = pod::container(pod, name) else {
        return Outcome::Done;
    };
    let hook = container.lifecycle.as_ref().and_then(|hooks| hooks.pre_stop.as_ref());
    let Some(hook) = hook else { return Outcome::Done };
    let ip = context.sandbox.as_ref().and_then(|sandbox| sandbox.ips.first());
    let run = hooks::run(agent, pod, &container, id, ip, hook);
    match tokio::time::timeout(seconds(grace), run).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(error, pod = pod::full_name(pod), name, "a preStop hook failed");
            // What a hook prints may be secret, and an event is read by many.
            let text = "PreStopHook failed".into();
            tell(context, name, Severity::Warning, "FailedPreStopHook", text);
        }
        Err(_) => tracing::info!(
            pod = pod::full_name(pod),
            name,
            "preStop hook took the whole grace period"
        ),
    }
    Outcome::Done
}

/// Stops a container: its processes get `grace` seconds.
pub(super) async fn kill(context: &Context, (id, name): (&str, &str), grace: i64, message: Option<&str>) -> Outcome {
    let (agent, pod) = (&context.agent, &context.pod);
    if let Some(message) = message {
        tell(context, name, Severity::Normal, "Killing", message.to_owned());
    }
    match agent.runtime.stop_container(id, seconds(grace)).await {
        Ok(()) => Outcome::Done,
        Err(error) => {
            let message = format!(
                "error killing pod: failed to \"KillContainer\" for {name:?}: {}",
                error.rpc_text()
            );
            agent
                .events
                .pod(pod, Severity::Warning, "FailedKillPod", message.clone());
            Outcome::Failed {
                reason: "FailedKillPod",
                message,
            }
        }
    }
}

/// An event about a container, also about one that the pod no longer names.
fn tell(context: &Context, name: &str, severity: Severity, reason: &'static str, message: String) {
    let role = pod::container(&context.pod, name).map_or(pod::Role::Main, |(role, _)| role);
    let events = &context.agent.events;
    events.container(&context.pod, (role, name), severity, reason, message);
}

/// Removes dead containers with their logs, and old sandboxes.
pub(super) async fn prune(context: &Context, containers: &[String], sandboxes: &[String]) -> Outcome {
    let runtime = &context.agent.runtime;
    for id in containers {
        let known = context.observed.containers.iter().find(|container| container.id == *id);
        if let Err(error) = runtime.remove_container(id).await {
            return Outcome::Failed {
                reason: "FailedPrune",
                message: error.rpc_text(),
            };
        }
        let messages = context.agent.volumes.messages_dir(pod::uid(&context.pod));
        for file in known
            .map(|container| leavings(container, &messages))
            .unwrap_or_default()
        {
            std::fs::remove_file(file).ok();
        }
    }
    for id in sandboxes {
        let stopped = runtime.stop_sandbox(id).await;
        if let Err(error) = match stopped {
            Ok(()) => runtime.remove_sandbox(id).await,
            failed => failed,
        } {
            return Outcome::Failed {
                reason: "FailedPrune",
                message: error.rpc_text(),
            };
        }
    }
    Outcome::Done
}

/// The files that a container leaves: its log, what that was rotated into, and its termination message. Where a volume is mounted
/// over the message's path, that file is not ours.
fn leavings(container: &Container, messages: &Path) -> Vec<PathBuf> {
    let log = PathBuf::from(&container.log_path);
    let rotated = log_rotation::rotated(&log).unwrap_or_default();
    let message = container.message_file.as_ref().map(PathBuf::from);
    let message = message.filter(|file| file.starts_with(messages));
    rotated.into_iter().chain([log]).chain(message).collect()
}

/// Gives back the volumes and the cgroup of a finished pod.
pub(super) async fn release(context: &Context) -> Outcome {
    let uid = pod::uid(&context.pod);
    let agent = &context.agent;
    if let Err(error) = off_loop(agent, uid, Volumes::remove).await {
        return not_unmounted(context, error.as_ref());
    }
    agent.objects.release(uid);
    remove_cgroup(context).await
}

/// Removes everything of the pod: sandboxes with containers, volumes, cgroup, directory, logs.
pub(super) async fn cleanup(context: &Context) -> Outcome {
    let (agent, uid) = (&context.agent, pod::uid(&context.pod));
    for sandbox in &context.observed.sandboxes {
        let stopped = agent.runtime.stop_sandbox(&sandbox.id).await;
        if let Err(error) = match stopped {
            Ok(()) => agent.runtime.remove_sandbox(&sandbox.id).await,
            failed => failed,
        } {
            let message = format!("error killing pod: failed to \"KillPodSandbox\": {}", error.rpc_text());
            agent
                .events
                .pod(&context.pod, Severity::Warning, "FailedKillPod", message.clone());
            return Outcome::Failed {
                reason: "FailedKillPod",
                message,
            };
        }
    }
    for container in &context.observed.containers {
        if let Err(error) = agent.runtime.remove_container(&container.id).await {
            return Outcome::Failed {
                reason: "FailedKillPod",
                message: error.rpc_text(),
            };
        }
    }
    if let Err(error) = off_loop(agent, uid, Volumes::remove_pod).await {
        return not_unmounted(context, error.as_ref());
    }
    agent.objects.release(uid);
    if let Err(error) = std::fs::remove_dir_all(agent.log_dir(&context.pod))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, pod = pod::full_name(&context.pod), "cannot remove the pod's logs");
    }
    remove_cgroup(context).await
}

/// A volume that somebody holds: the pod stays until it can be unmounted, and says why.
fn not_unmounted(context: &Context, error: &(dyn std::error::Error + 'static)) -> Outcome {
    const REASON: &str = "FailedUnMount";
    let message = skiff_daemon::error_chain(error);
    let events = &context.agent.events;
    events.pod(&context.pod, Severity::Warning, REASON, message.clone());
    let reason = REASON;
    Outcome::Failed { reason, message }
}

/// Removing a large emptyDir takes its time: not on a thread that others wait for.
async fn off_loop(
    agent: &Arc<Agent>,
    uid: &str,
    remove: fn(&Volumes, &str) -> Result<(), volumes::Error>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (agent, uid) = (agent.clone(), uid.to_owned());
    tokio::task::spawn_blocking(move || remove(&agent.volumes, &uid))
        .await?
        .map_err(Into::into)
}

/// A process that was just killed may hold its cgroup for a moment.
async fn remove_cgroup(context: &Context) -> Outcome {
    const TRIES: u64 = 8;
    let uid = pod::uid(&context.pod);
    let mut last = String::new();
    for attempt in 0..TRIES {
        let begun = Instant::now();
        let removed = context.agent.cgroups.remove_pod(uid).await;
        context.agent.measures.changed_cgroup("destroy", begun);
        match removed {
            Ok(()) => return Outcome::Done,
            Err(error) => last = skiff_daemon::error_chain(&error),
        }
        tokio::time::sleep(Duration::from_millis(1 << attempt)).await;
    }
    Outcome::Failed {
        reason: "FailedToRemoveCgroup",
        message: last,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::observed::State;

    #[test]
    fn a_container_leaves_its_logs_and_its_own_message() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in [
            "1.log",
            "1.log.20260101-000000.gz",
            "1.log.20260102-000000",
            "11.log",
            "2.log",
        ] {
            std::fs::write(at(name), "").unwrap();
        }
        let messages = at("pods/u/containers");
        let left = |message: PathBuf| {
            let container = Container {
                id: "id".into(),
                name: "c".into(),
                attempt: 1,
                sandbox: "s".into(),
                created: Timestamp::UNIX_EPOCH,
                state: State::Created,
                hash: None,
                image: String::new(),
                image_ref: String::new(),
                log_path: at("1.log").to_string_lossy().into_owned(),
                message_file: Some(message.to_string_lossy().into_owned()),
                read_only_below: Vec::new(),
                user: None,
            };
            leavings(&container, &messages)
        };
        let logs = [at("1.log.20260101-000000.gz"), at("1.log.20260102-000000"), at("1.log")];
        let own = messages.join("c/00000001");
        assert_eq!(left(own.clone()), [&logs[..], &[own]].concat());
        assert_eq!(left(at("users/message")), logs, "a hostPath is its user's");
    }
}
