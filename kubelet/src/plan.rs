//! What to do next for one pod: a pure function of its spec, of what the runtime says and of what is remembered.
//!
//! The worker calls [`plan`] after every change and hands each [`Action`] to `execute`, unless the same [`Task`] is busy.
//! Nothing here waits: what must wait names the time to look again in [`Plan::wake`].

mod run;
mod stop;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use skiff_api::k8s_openapi::api::core::v1::Pod;

use crate::memory::{Finish, Memory};
use crate::observed::Observed;
pub(crate) use stop::LEAST_GRACE;

/// All that a plan depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a> {
    /// The pod as the API has it.
    pub(crate) pod: &'a Pod,
    /// Whether it shall run.
    pub(crate) goal: Goal,
    /// What the runtime says.
    pub(crate) observed: &'a Observed,
    /// What the worker remembers.
    pub(crate) memory: &'a Memory,
    /// What is being done already.
    pub(crate) busy: &'a BTreeSet<Task>,
    /// The time.
    pub(crate) now: Timestamp,
}

/// What a pod shall become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Run, as its restart policy says.
    Run,
    /// End and leave nothing behind.
    Stop {
        /// Seconds that its processes get.
        grace: i64,
    },
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make all volumes ready.
    PrepareVolumes,
    /// Make a sandbox.
    CreateSandbox {
        /// Counts the pod's sandboxes.
        attempt: u32,
    },
    /// Get the image, make and start a container, run its postStart hook.
    StartContainer {
        /// Name.
        name: String,
        /// Counts its starts.
        attempt: u32,
        /// When the run before ended, if there was one: the restart back-off grows.
        ended: Option<Timestamp>,
    },
    /// Tell of a container's end and run its preStop hook; its grace period begins.
    PreStop {
        /// The runtime's id.
        id: String,
        /// Name.
        name: String,
        /// Seconds that the hook gets at most.
        grace: i64,
        /// Text for the event.
        message: String,
        /// Whether it starts anew, whatever the restart policy says.
        again: bool,
    },
    /// Stop a container.
    KillContainer {
        /// The runtime's id.
        id: String,
        /// Name.
        name: String,
        /// Seconds it gets.
        grace: i64,
        /// Text for the event, unless its end was told before.
        message: Option<String>,
        /// Whether it starts anew, whatever the restart policy says.
        again: bool,
    },
    /// Stop a sandbox, with its network.
    StopSandbox {
        /// The runtime's id.
        id: String,
    },
    /// Remove dead containers and sandboxes that nobody will ask for.
    Prune {
        /// Containers, then sandboxes.
        containers: Vec<String>,
        /// Sandboxes.
        sandboxes: Vec<String>,
    },
    /// Give back volumes, network and cgroup of a finished pod; its containers stay for their logs.
    Release,
    /// Remove everything of a pod from the node.
    Cleanup,
}

/// What an action occupies: two actions on one task never run at once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Task {
    /// The pod's volumes.
    Volumes,
    /// The pod's sandbox.
    Sandbox,
    /// A container, by name.
    Container(String),
    /// Dead containers.
    Prune,
    /// The end.
    Cleanup,
}

/// What to do, what to show, when to look again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Steps, all of which may run at once.
    pub(crate) actions: Vec<Action>,
    /// Containers that wait: reason and message, by name.
    pub(crate) waiting: BTreeMap<String, (String, String)>,
    /// When time alone changes the plan.
    pub(crate) wake: Option<Timestamp>,
    /// The pod's end, once nothing of it runs.
    pub(crate) finish: Option<Finish>,
    /// That the pod is past its deadline: to be told, and not to be taken back.
    pub(crate) exceeded: Option<Finish>,
    /// What is under way and no longer wanted.
    pub(crate) given_up: BTreeSet<Task>,
}

/// Plans the next steps for a pod.
pub(crate) fn plan(input: &Input<'_>) -> Plan {
    let mut plan = Plan::default();
    match input.goal {
        Goal::Stop { grace } => stop::plan(input, &mut plan, grace),
        Goal::Run => match run::verdict(input, &mut plan) {
            Some(finish) => stop::finish(input, &mut plan, finish),
            None => run::plan(input, &mut plan),
        },
    }
    plan
}

impl Action {
    /// What the action occupies.
    pub(crate) fn task(&self) -> Task {
        match self {
            Self::PrepareVolumes => Task::Volumes,
            Self::CreateSandbox { .. } | Self::StopSandbox { .. } => Task::Sandbox,
            Self::StartContainer { name, .. } | Self::PreStop { name, .. } | Self::KillContainer { name, .. } => {
                Task::Container(name.clone())
            }
            Self::Prune { .. } => Task::Prune,
            Self::Release | Self::Cleanup => Task::Cleanup,
        }
    }

    /// Whether the action takes something away. What makes something has a back-off of its own, which the status shows.
    fn takes_away(&self) -> bool {
        !matches!(
            self,
            Self::PrepareVolumes | Self::CreateSandbox { .. } | Self::StartContainer { .. }
        )
    }

    /// Where the action ends a container: the seconds after which it is done with at the latest.
    pub(crate) fn grace(&self) -> Option<i64> {
        match self {
            Self::PreStop { grace, .. } | Self::KillContainer { grace, .. } => Some(*grace),
            _ => None,
        }
    }
}

impl Input<'_> {
    fn is_busy(&self, task: &Task) -> bool {
        self.busy.contains(task)
    }

    fn container_busy(&self, name: &str) -> bool {
        self.is_busy(&Task::Container(name.to_owned()))
    }

    fn any_container_busy(&self) -> bool {
        self.busy.iter().any(|task| matches!(task, Task::Container(_)))
    }
}

impl Plan {
    fn act(&mut self, input: &Input<'_>, action: Action) {
        let task = action.task();
        let planned = self.actions.iter().any(|other| other.task() == task);
        if planned || input.is_busy(&task) {
            return;
        }
        match input.memory.retries.get(&task).filter(|_| action.takes_away()) {
            Some(failure) if failure.retry_at() > input.now => self.wake_at(failure.retry_at()),
            _ => self.actions.push(action),
        }
    }

    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

#[cfg(test)]
mod tests;
