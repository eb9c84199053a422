//! Ending: containers, what they leave, whole pods.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Context, Outcome, hooks};
use crate::agent::Agent;
use crate::events::Severity;
use crate::pod;
use crate::volumes::{self, Volumes};

/// What a container gets to end after its preStop hook has used up the grace period.
const MINIMUM: Duration = Duration::from_secs(2);

/// Runs the preStop hook within the grace period, then stops the container with what is left of it.
pub(super) async fn kill(context: &Context, id: &str, name: &str, grace: i64, message: &str) -> Outcome {
    let (agent, pod) = (&context.agent, &context.pod);
    let found = pod::container(pod, name);
    let role = found.as_ref().map_or(pod::Role::Main, |(role, _)| *role);
    agent
        .events
        .container(pod, (role, name), Severity::Normal, "Killing", message.to_owned());
    let mut left = Duration::from_secs(grace.max(0).unsigned_abs());
    let hook = found
        .as_ref()
        .and_then(|(_, container)| container.lifecycle.as_ref()?.pre_stop.clone());
    if let (Some(hook), Some((_, container)), true) = (hook, &found, context.hook) {
        let begun = Instant::now();
        let ip = context.sandbox.as_ref().and_then(|sandbox| sandbox.ips.first());
        let run = hooks::run(agent, pod, container, id, ip, &hook);
        match tokio::time::timeout(left, run).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let text = format!("PreStopHook failed: {error}");
                agent
                    .events
                    .container(pod, (role, name), Severity::Warning, "FailedPreStopHook", text);
            }
            Err(_) => tracing::info!(
                pod = pod::full_name(pod),
                name,
                "preStop hook took the whole grace period"
            ),
        }
        left = left.saturating_sub(begun.elapsed()).max(MINIMUM.min(left));
    }
    match agent.runtime.stop_container(id, left).await {
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
        if let Some(container) = known {
            std::fs::remove_file(&container.log_path).ok();
            if let Some(file) = &container.message_file {
                std::fs::remove_file(file).ok();
            }
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
        match context.agent.cgroups.remove_pod(uid).await {
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
