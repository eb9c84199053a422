//! Ends of containers, known from the runtime's events before its records show them.
//!
//! containerd tells of an exit at once, but records it only when it has drained the container's output and runc has deleted what
//! is left: 20 to 100 ms later. A container that starts anew anyway need not wait for that. Everything else does: the phase of a
//! pod that has ended, a message that is the end of a log, a container whose other processes outlive its first one.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use skiff_api::k8s_openapi::api::core::v1::Pod;

use super::Worker;
use super::look::SETTLE;
use crate::observed::{Container, Exit, Observed, State};
use crate::{pod, restarts};

/// 128 and SIGKILL: what the kernel leaves of a process that it kills for want of memory.
const KILLED: i32 = 137;
const OUT_OF_MEMORY: &str = "OOMKilled";

/// What an event says of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) code: i32,
    pub(super) at: Timestamp,
}

impl Worker {
    /// Takes ends that events tell of into what is observed; false when they change nothing by themselves.
    pub(super) fn take_ends(&mut self) -> bool {
        let told = std::mem::take(&mut *self.wake.out_of_memory.lock());
        self.memory.out_of_memory.extend(told);
        if self.stop.is_some() || self.memory.verdict.is_some() {
            return false;
        }
        let ends = self.wake.ended.lock().clone();
        let due = due(&self.pod, &self.observed, self.outdated, &ends);
        let mut observed = None;
        for (index, end) in due {
            let (id, message) = {
                let container = &self.observed.containers[index];
                (container.id.clone(), container.written_message())
            };
            let Some(reason) = self.reason(&id, end.code) else {
                continue;
            };
            let observed = observed.get_or_insert_with(|| Observed::clone(&self.observed));
            let State::Running(started) = observed.containers[index].state else {
                continue;
            };
            observed.containers[index].state = State::Exited(Exit {
                started: Some(started),
                finished: end.at,
                code: end.code,
                reason: reason.into(),
                message,
                recorded: false,
            });
        }
        let Some(observed) = observed else { return false };
        self.observed = Arc::new(observed);
        self.view.send_replace(self.observed.clone());
        self.update_health();
        (self.dirty, self.settle) = (true, Some(SETTLE));
        true
    }

    /// The reason that the runtime will give for an exit; `None` when that cannot be told yet.
    fn reason(&mut self, id: &str, code: i32) -> Option<&'static str> {
        if self.memory.out_of_memory.contains(id) {
            return Some(OUT_OF_MEMORY);
        }
        match code {
            0 => Some("Completed"),
            KILLED if self.killed_for_memory(id)? => {
                self.memory.out_of_memory.insert(id.to_owned());
                Some(OUT_OF_MEMORY)
            }
            _ => Some("Error"),
        }
    }

    /// Corrects what the runtime says of ends by what its events and the kernel say: a runtime on cgroup v2 may miss why the
    /// kernel killed, when the container's cgroup is gone before it looks.
    pub(super) fn explain_kills(&mut self, observed: &mut Observed) {
        if !self.adopted {
            self.memory_kills = self.agent.cgroups.memory_kills_of_pod(&self.pod).unwrap_or(0);
        }
        for container in &mut observed.containers {
            let known = self.observed.has_ended(&container.id) == Some(true);
            let (id, State::Exited(exit)) = (&container.id, &mut container.state) else {
                continue;
            };
            if exit.reason == OUT_OF_MEMORY {
                // So that the pod's count is not taken for another container's.
                self.memory.out_of_memory.insert(id.clone());
            } else if self.adopted
                && !known
                && exit.code == KILLED
                && !self.memory.out_of_memory.contains(id)
                && self.was_killed_for_memory(id)
            {
                self.memory.out_of_memory.insert(id.clone());
            }
            if self.memory.out_of_memory.contains(id) {
                exit.reason = OUT_OF_MEMORY.into();
            }
        }
        if !self.memory.out_of_memory.is_empty() {
            self.count_kills();
        }
    }

    /// Whether the kernel killed in a container for want of memory, as the container's cgroup says, or, when that is gone,
    /// its pod's; `None` where neither tells.
    fn killed_for_memory(&mut self, id: &str) -> Option<bool> {
        let cgroups = &self.agent.cgroups;
        if let Some(kills) = cgroups.memory_kills_of_container(&self.pod, id) {
            return Some(kills > 0);
        }
        let before = self.memory_kills;
        self.count_kills().map(|kills| kills > before)
    }

    /// The same of a container that is on record as killed, at the price of a look into the kernel's log. A pod that is told to end
    /// is killed by ourselves where it does not.
    fn was_killed_for_memory(&mut self, id: &str) -> bool {
        match self.killed_for_memory(id) {
            None if self.stop.is_none() => self.agent.cgroups.logged_memory_kill(&self.pod, id),
            told => told == Some(true),
        }
    }

    fn count_kills(&mut self) -> Option<u64> {
        let kills = self.agent.cgroups.memory_kills_of_pod(&self.pod)?;
        self.memory_kills = kills;
        Some(kills)
    }
}

/// Which containers' ends need no record to be acted on, by their place in `observed`.
fn due(pod: &Pod, observed: &Observed, outdated: bool, ends: &HashMap<String, End>) -> Vec<(usize, End)> {
    // Planned on what lacks a container that was just started, it would be started twice.
    if outdated {
        return Vec::new();
    }
    let spec = pod::spec(pod);
    // Where its first process is not the first of the namespace, others of the container may live on.
    if spec.host_pid == Some(true) || spec.share_process_namespace == Some(true) || ends.is_empty() {
        return Vec::new();
    }
    let containers = observed.containers.iter().enumerate();
    containers
        .filter(|(_, container)| matches!(container.state, State::Running(_)))
        .filter_map(|(index, container)| Some((index, container, *ends.get(&container.id)?)))
        .filter(|(_, container, end)| starts_anew(pod, container, end.code))
        .map(|(index, _, end)| (index, end))
        .collect()
}

fn starts_anew(pod: &Pod, container: &Container, code: i32) -> bool {
    let Some((role, spec)) = pod::container(pod, &container.name) else {
        return false;
    };
    let failed = code != 0;
    let reads_log = spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if failed && reads_log && container.written_message().is_empty() {
        return false;
    }
    restarts::after(pod, role, &spec, code)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::tests::pod;

    fn running(name: &str) -> Container {
        Container {
            id: format!("{name}-id"),
            name: name.into(),
            attempt: 0,
            sandbox: "s".into(),
            created: Timestamp::UNIX_EPOCH,
            state: State::Running(Timestamp::UNIX_EPOCH),
            hash: None,
            image: String::new(),
            image_ref: String::new(),
            log_path: String::new(),
            message_file: None,
            read_only_below: Vec::new(),
            user: None,
        }
    }

    #[test]
    fn only_what_starts_anew_is_not_waited_for() {
        let log = json!({"containers": [{"name": "c", "terminationMessagePolicy": "FallbackToLogsOnError"}]});
        let sidecar = json!({"initContainers": [{"name": "c", "restartPolicy": "Always"}], "containers": []});
        let init = json!({"initContainers": [{"name": "c"}], "containers": []});
        let never = json!({"containers": [{"name": "c", "restartPolicy": "Never"}]});
        let with = |spec: &Value, key: &str, value: Value| {
            let mut spec = spec.clone();
            spec[key] = value;
            spec
        };
        let plain = json!({});
        let cases = [
            (plain.clone(), 0, true),
            (plain.clone(), 1, true),
            (with(&plain, "restartPolicy", "OnFailure".into()), 1, true),
            (with(&plain, "restartPolicy", "OnFailure".into()), 0, false),
            (with(&plain, "restartPolicy", "Never".into()), 1, false),
            (with(&plain, "shareProcessNamespace", true.into()), 1, false),
            (with(&plain, "hostPID", true.into()), 1, false),
            (log.clone(), 1, false),
            (log, 0, true),
            (sidecar.clone(), 0, true),
            (with(&sidecar, "restartPolicy", "Never".into()), 1, true),
            (init.clone(), 1, true),
            (init.clone(), 0, false),
            (with(&init, "restartPolicy", "Never".into()), 1, false),
            (never.clone(), 1, false),
            (with(&never, "restartPolicy", "OnFailure".into()), 1, false),
        ];
        for (spec, code, taken) in cases {
            let observed = Observed {
                sandboxes: Vec::new(),
                containers: vec![running("c")],
            };
            let at = Timestamp::UNIX_EPOCH;
            let ends = HashMap::from([("c-id".to_owned(), End { code, at })]);
            let due = |outdated: bool| due(&pod(&spec), &observed, outdated, &ends);
            assert_eq!(due(false).len() == 1, taken, "{spec} {code}");
            assert!(due(true).is_empty(), "{spec} {code}: an action has ended since");
        }
    }
}
