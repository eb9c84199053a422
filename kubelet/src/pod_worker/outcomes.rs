//! What a worker learns from its actions' ends and from its probes.

use std::time::Duration;

use jiff::Timestamp;
use skiff_api::k8s_openapi::api::core::v1::Pod;

use super::Worker;
use crate::backoff;
use crate::execute::{Outcome, StartError};
use crate::memory::{Doom, Failure, HOOK_FAILED, Memory, Volumes};
use crate::plan::{Action, Task};
use crate::pod::{self, Role};
use crate::probes::{self, Report};
use crate::restarts;

/// Upstream's back-off of mounting.
const FIRST_VOLUME_RETRY: Duration = Duration::from_millis(500);
const LAST_VOLUME_RETRY: Duration = Duration::from_secs(122);
/// As often as upstream's pod worker asks a runtime again.
const LAST_RUNTIME_RETRY: Duration = Duration::from_secs(10);
/// A claim is bound by others, in their time; nobody tells the node of it.
const LAST_CLAIM_RETRY: Duration = Duration::from_secs(8);
/// Upstream's `backOffPeriod`.
const START_RETRY: Duration = Duration::from_secs(10);
/// When volumes that cannot be brought up to date are tried again.
const REFRESH_RETRY: Duration = Duration::from_secs(10);

impl Worker {
    /// Takes an action's end to memory.
    pub(super) fn finished(&mut self, action: &Action, outcome: Outcome) {
        self.busy.remove(&action.task());
        if matches!(outcome, Outcome::Done) {
            self.memory.retries.remove(&action.task());
        }
        let now = Timestamp::now();
        match (action, outcome) {
            (Action::PrepareVolumes, Outcome::Done) => {
                let refresh = self.agent.volumes.refresh_at(pod::uid(&self.pod));
                self.memory.volumes = Volumes::Ready { refresh };
            }
            (Action::PrepareVolumes, Outcome::Failed { reason, message }) => {
                self.volumes_failed(reason, message, LAST_VOLUME_RETRY, now);
            }
            (Action::PrepareVolumes, Outcome::NotYet { reason, message }) => {
                self.volumes_failed(reason, message, LAST_CLAIM_RETRY, now);
            }
            (Action::CreateSandbox { .. }, Outcome::Done) => self.memory.sandbox = None,
            (Action::CreateSandbox { .. }, Outcome::Failed { reason, message }) => {
                let last = self.memory.sandbox.as_ref().map(|last| last.delay);
                let delay = last.map_or(Duration::from_secs(1), |delay| (delay * 2).min(Duration::from_secs(30)));
                self.memory.sandbox = Some(Failure::steady(reason, message, delay, now));
            }
            (Action::StartContainer { name, .. }, outcome) => start_ended(&mut self.memory, name, outcome, now),
            // A hook that was cut short is run anew in the time that is given now, as upstream does.
            (Action::PreStop { id, .. }, Outcome::Cancelled) => {
                self.memory.told_to_end.remove(id);
            }
            (Action::Release, Outcome::Done) => {
                self.memory.released = true;
                self.holds.send_replace(false);
            }
            (Action::Cleanup, Outcome::Done) => {
                self.memory.cleaned = true;
                self.holds.send_replace(false);
            }
            (_, Outcome::Failed { reason, message }) => {
                tracing::warn!(
                    reason,
                    message,
                    pod = pod::full_name(&self.pod),
                    "a step failed; it will be tried again"
                );
                self.not_taken_away(action.task(), reason, message, now);
            }
            _ => {}
        }
    }

    /// What cannot be taken away is tried again soon, then after growing delays: what stands in its way is mostly gone in a moment.
    fn not_taken_away(&mut self, task: Task, reason: &str, message: String, now: Timestamp) {
        let longest = match task {
            Task::Cleanup => LAST_VOLUME_RETRY,
            _ => LAST_RUNTIME_RETRY,
        };
        let last = self.memory.retries.get(&task).map(|failure| failure.delay);
        let delay = last.map_or(FIRST_VOLUME_RETRY, |last| (last * 2).min(longest));
        let failure = Failure::steady(reason, message, delay, now);
        self.memory.retries.insert(task, failure);
    }

    /// Volumes are tried again after half a second, then after twice that, up to `longest`.
    fn volumes_failed(&mut self, reason: &'static str, message: String, longest: Duration, now: Timestamp) {
        let last = match &self.memory.volumes {
            Volumes::Failed(failure) => Some(failure.delay),
            Volumes::Ready { .. } => {
                let tokens = self.agent.volumes.refresh_at(pod::uid(&self.pod));
                let again = !self.is_ending() || tokens.is_some();
                let refresh = again.then(|| backoff::after(now, REFRESH_RETRY));
                self.memory.volumes = Volumes::Ready { refresh };
                return;
            }
            Volumes::Pending => None,
        };
        let delay = last.map_or(FIRST_VOLUME_RETRY, |last| (last * 2).min(longest));
        self.memory.volumes = Volumes::Failed(Failure::steady(reason, message, delay, now));
    }

    /// Takes a probe's verdict to memory.
    pub(super) fn probed(&mut self, report: &Report) {
        let Some(health) = self.memory.health.get_mut(&report.id) else {
            return;
        };
        let doom = |word: &str| Doom {
            message: failed_probe(&self.pod, &report.name, word),
            grace: report.grace,
        };
        match (report.kind, report.success) {
            (probes::Kind::Readiness, success) => health.ready = success,
            (probes::Kind::Startup, true) => health.started = true,
            (probes::Kind::Startup, false) => {
                self.memory.doomed.insert(report.id.clone(), doom("startup"));
            }
            (probes::Kind::Liveness, false) => {
                self.memory.doomed.insert(report.id.clone(), doom("liveness"));
            }
            (probes::Kind::Liveness, true) => {}
        }
    }
}

/// Takes to memory how a start has ended.
fn start_ended(memory: &mut Memory, name: &str, outcome: Outcome, now: Timestamp) {
    let failure = match outcome {
        // It is shown until the next start; when that comes is for the restart back-off to say.
        Outcome::HookFailed => {
            let failure = Failure::steady(HOOK_FAILED, "PostStartHook failed".into(), Duration::ZERO, now);
            memory.starts.insert(name.to_owned(), failure);
            return;
        }
        Outcome::NotStarted(error) => Some(failed_start(memory.starts.get(name), error, now)),
        Outcome::Done => {
            memory.starts.remove(name);
            None
        }
        _ => None,
    };
    memory.starts.extend(failure.map(|failure| (name.to_owned(), failure)));
    // No hook will run any more: a container that runs although its start seemed to fail is like any other.
    memory.hooks.remove(name);
}

/// When to try again what could not be started: pulls after growing delays, all else as often as upstream looks at such a pod again.
fn failed_start(last: Option<&Failure>, error: StartError, now: Timestamp) -> Failure {
    match error.pull {
        Some(_) => Failure {
            pull: error.pull,
            ..Failure::growing(last, error.reason, error.message, now)
        },
        None => Failure::steady(error.reason, error.message, START_RETRY, now),
    }
}

/// What is said of a container that a probe ends, in upstream's words.
fn failed_probe(pod: &Pod, name: &str, word: &str) -> String {
    match pod::container(pod, name) {
        Some((Role::Sidecar, _)) => format!("Init container {name} failed {word} probe"),
        Some((_, spec)) if restarts::ever(pod, &spec) => {
            format!("Container {name} failed {word} probe, will be restarted")
        }
        _ => format!("Container {name} failed {word} probe"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::memory::NOT_RUN;
    use crate::pod::tests::pod;

    #[test]
    fn only_pulls_are_tried_at_a_slowing_pace() {
        let now = Timestamp::UNIX_EPOCH;
        let delays = |reason: &'static str, pull: Option<&str>| -> Vec<u64> {
            let mut last = None;
            let mut again = || {
                let error = StartError {
                    reason,
                    message: String::new(),
                    pull: pull.map(Into::into),
                };
                let failure = failed_start(last.as_ref(), error, now);
                last.insert(failure).delay.as_secs()
            };
            (0..4).map(|_| again()).collect()
        };
        assert_eq!(delays("ErrImagePull", Some("i")), [10, 20, 40, 80]);
        for reason in [
            "InvalidImageName",
            "ErrImageNeverPull",
            "ImageInspectError",
            "CreateContainerConfigError",
            "CreateContainerError",
            NOT_RUN,
        ] {
            assert_eq!(delays(reason, None), [10; 4], "{reason}");
        }
    }

    /// What the runtime could not answer for may run all the same.
    #[test]
    fn only_a_hook_that_failed_is_waited_for_after_a_start() {
        let error = StartError {
            reason: NOT_RUN,
            message: String::new(),
            pull: None,
        };
        let cases = [
            (Outcome::Done, false, None),
            (Outcome::Cancelled, false, Some("before")),
            (Outcome::NotStarted(error), false, Some(NOT_RUN)),
            (Outcome::HookFailed, true, Some(HOOK_FAILED)),
        ];
        for (outcome, awaited, reason) in cases {
            let what = format!("{outcome:?}");
            let now = Timestamp::UNIX_EPOCH;
            let mut memory = Memory::default();
            memory.hooks.insert("c".into());
            let before = Failure::steady("before", String::new(), Duration::ZERO, now);
            memory.starts.insert("c".into(), before);
            start_ended(&mut memory, "c", outcome, now);
            assert_eq!(memory.hooks.contains("c"), awaited, "{what}");
            let shown = memory.starts.get("c").map(|failure| failure.reason.as_str());
            assert_eq!(shown, reason, "{what}");
        }
    }

    #[test]
    fn only_what_is_restarted_is_said_to_be() {
        let of = |policy: &str, name: &str| {
            let sidecar = json!([{"name": "s", "restartPolicy": "Always"}]);
            let pod = pod(&json!({"restartPolicy": policy, "initContainers": sidecar}));
            failed_probe(&pod, name, "liveness")
        };
        let restarted = "Container c failed liveness probe, will be restarted";
        assert_eq!(
            (of("Always", "c"), of("OnFailure", "c")),
            (restarted.into(), restarted.into())
        );
        assert_eq!(of("Never", "c"), "Container c failed liveness probe");
        assert_eq!(of("Never", "s"), "Init container s failed liveness probe");
    }
}
