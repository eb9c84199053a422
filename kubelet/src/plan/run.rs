//! Planning for a pod that shall run.

use std::time::Duration;

use jiff::Timestamp;
use skiff_api::k8s_openapi::api::core::v1::Container as Spec;

use super::stop::{self, Ending};
use super::{Action, Input, Plan, Task};
use crate::backoff;
use crate::labels;
use crate::memory::{Failure, Finish, NOT_RUN, Volumes};
use crate::observed::{Container, Exit, Sandbox, State};
use crate::pod::{self, Role};
use crate::pod_worker::counted;
use crate::restarts;

/// Dead containers kept of each name, beside the newest: `kubectl logs --previous` reads them.
const DEAD_KEPT: usize = 1;

/// How the pod has ended, if it has.
pub(super) fn verdict(input: &Input<'_>, plan: &mut Plan) -> Option<Finish> {
    let status = pod::status(input.pod);
    if pod::is_terminal(input.pod) {
        return Some(Finish::told(status));
    }
    if let Some(verdict) = &input.memory.verdict {
        return Some(verdict.clone());
    }
    let exits = exits(input);
    let Some(deadline) = deadline(input) else { return exits };
    // A pod that has ended by itself in time has not exceeded its deadline, however late that is looked at.
    if exits.is_some() && ended_by(input, deadline) {
        return exits;
    }
    if input.now < deadline {
        plan.wake_at(deadline);
        return exits;
    }
    plan.exceeded = Some(Finish::deadline());
    plan.exceeded.clone()
}

/// When the pod must have ended.
fn deadline(input: &Input<'_>) -> Option<Timestamp> {
    let seconds = pod::spec(input.pod).active_deadline_seconds?;
    let start = pod::status(input.pod)
        .start_time
        .as_ref()
        .map(|time| time.0)
        .or(input.memory.seen)?;
    Some(backoff::after(start, Duration::from_secs(seconds.unsigned_abs())))
}

/// Whether no container that decides on the pod's end has ended after `time`.
fn ended_by(input: &Input<'_>, time: Timestamp) -> bool {
    let init = pod::init_containers(input.pod).iter();
    let specs = init
        .filter(|spec| !pod::is_sidecar(spec))
        .chain(pod::main_containers(input.pod));
    let mut latest = specs.filter_map(|spec| input.observed.latest(&spec.name));
    latest.all(|container| {
        let exit = container.exit();
        exit.is_none_or(|exit| input.memory.ended(&container.id, exit.finished) <= time)
    })
}

/// Whether every container has ended and none starts again.
fn exits(input: &Input<'_>) -> Option<Finish> {
    let ended = |success: bool| Some(Finish::by_exit(success));
    if input.any_container_busy() {
        return None;
    }
    let main = pod::main_containers(input.pod);
    let latest: Vec<_> = main.iter().map(|spec| input.observed.latest(&spec.name)).collect();
    if latest.iter().all(Option::is_none) {
        let failed_init = pod::init_containers(input.pod)
            .iter()
            .filter(|spec| !pod::is_sidecar(spec))
            .any(|spec| {
                let exit = input.observed.latest(&spec.name).and_then(Container::exit);
                exit.is_some_and(|exit| exit.code != 0 && !restarts::after(input.pod, Role::Init, spec, exit.code))
            });
        return if failed_init { ended(false) } else { None };
    }
    // A sandbox that died takes the containers that never started with it: those that never start again are lost.
    let lost = input.observed.sandbox().is_none_or(|sandbox| !sandbox.ready);
    let mut success = true;
    for (spec, container) in main.iter().zip(latest) {
        match container {
            Some(container) => match container.exit() {
                Some(exit) if !starts_again(input, Role::Main, spec, container, exit) => success &= exit.code == 0,
                _ => return None,
            },
            None if lost && !restarts::ever(input.pod, spec) => success = false,
            None => return None,
        }
    }
    ended(success)
}

/// Whether a container that has ended starts anew.
fn starts_again(input: &Input<'_>, role: Role, spec: &Spec, container: &Container, exit: &Exit) -> bool {
    restarts::after(input.pod, role, spec, exit.code) || input.memory.starts_again(&container.id)
}

/// Plans for a pod that goes on.
pub(super) fn plan(input: &Input<'_>, plan: &mut Plan) {
    prune(input, plan);
    let volumes = volumes(input, plan);
    let Some(sandbox) = sandbox(input, plan) else {
        return show_failed_starts(input, plan);
    };
    kill_strays(input, plan, sandbox);
    if !volumes {
        return show_failed_starts(input, plan);
    }
    let mut starter = Starter {
        input,
        plan,
        sandbox,
        hook_pending: false,
    };
    if starter.init_containers() {
        for spec in pod::main_containers(input.pod) {
            starter.main_container(spec);
        }
    }
    starter.ephemeral_containers();
}

/// Keeps volumes up to date that are ready.
pub(super) fn keep(input: &Input<'_>, plan: &mut Plan, refresh: Option<Timestamp>) {
    match refresh {
        Some(at) if at > input.now => plan.wake_at(at),
        Some(_) => plan.act(input, Action::PrepareVolumes),
        None => {}
    }
}

/// Whether the volumes are ready; asks for them when they are not.
fn volumes(input: &Input<'_>, plan: &mut Plan) -> bool {
    match &input.memory.volumes {
        Volumes::Ready { refresh } => {
            keep(input, plan, *refresh);
            return true;
        }
        Volumes::Failed(failure) if failure.retry_at() > input.now => plan.wake_at(failure.retry_at()),
        Volumes::Pending | Volumes::Failed(_) => plan.act(input, Action::PrepareVolumes),
    }
    false
}

/// The sandbox to start containers in; asks for one when there is none.
fn sandbox<'a>(input: &Input<'a>, plan: &mut Plan) -> Option<&'a Sandbox> {
    if let Some(sandbox) = input.observed.ready_sandbox() {
        return Some(sandbox);
    }
    // Nothing may outlive its sandbox: the processes of a dead one lost their network.
    for container in input.observed.running() {
        kill(
            input,
            plan,
            container,
            "Pod sandbox changed, it will be killed and re-created.".into(),
        );
    }
    if input.is_busy(&Task::Sandbox) || input.any_container_busy() || input.observed.running().next().is_some() {
        return None;
    }
    if let Some(failure) = &input.memory.sandbox
        && failure.retry_at() > input.now
    {
        plan.wake_at(failure.retry_at());
        return None;
    }
    let attempt = input.observed.sandbox().map_or(0, |sandbox| sandbox.attempt + 1);
    plan.act(input, Action::CreateSandbox { attempt });
    None
}

/// Of what is yet to start: a container that has ended for good does not wait, whatever became of its start.
fn show_failed_starts(input: &Input<'_>, plan: &mut Plan) {
    for (name, failure) in &input.memory.starts {
        if !has_ended_for_good(input, name) {
            show(input, plan, name, failure);
        }
    }
}

fn has_ended_for_good(input: &Input<'_>, name: &str) -> bool {
    let latest = input.observed.latest(name);
    let exit = latest.and_then(|container| Some((container, container.exit()?)));
    exit.zip(pod::container(input.pod, name))
        .is_some_and(|((container, exit), (role, spec))| !starts_again(input, role, &spec, container, exit))
}

fn show(input: &Input<'_>, plan: &mut Plan, name: &str, failure: &Failure) {
    let (reason, message, flip) = failure.shown(input.now);
    plan.waiting.insert(name.to_owned(), (reason, message));
    if let Some(flip) = flip {
        plan.wake_at(flip);
    }
}

/// Containers that run in an older sandbox, or that the pod no longer names.
fn kill_strays(input: &Input<'_>, plan: &mut Plan, sandbox: &Sandbox) {
    for container in input.observed.running() {
        if container.sandbox != sandbox.id || pod::container(input.pod, &container.name).is_none() {
            kill(input, plan, container, format!("Stopping container {}", container.name));
        }
    }
}

/// Of a container that may run or not: it is killed first, so that there are never two.
fn unknown(what: &str) -> String {
    format!("{what} is in \"unknown\" state, try killing it before restart")
}

fn kill(input: &Input<'_>, plan: &mut Plan, container: &Container, message: String) {
    let ending = Ending {
        message,
        grace: pod::grace_period(input.pod),
        waits: false,
        again: false,
    };
    stop::end(input, plan, container, ending);
}

fn prune(input: &Input<'_>, plan: &mut Plan) {
    let mut containers = Vec::new();
    let mut seen: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for container in &input.observed.containers {
        let newer = seen.entry(&container.name).or_default();
        if *newer > DEAD_KEPT && !container.is_running() {
            containers.push(container.id.clone());
        }
        *newer += 1;
    }
    let kept = |sandbox: &Sandbox| {
        input
            .observed
            .containers
            .iter()
            .any(|c| c.sandbox == sandbox.id && !containers.contains(&c.id))
    };
    let old = input.observed.sandboxes.iter().skip(1);
    let sandboxes: Vec<_> = old
        .filter(|sandbox| !kept(sandbox))
        .map(|sandbox| sandbox.id.clone())
        .collect();
    if !(containers.is_empty() && sandboxes.is_empty()) {
        plan.act(input, Action::Prune { containers, sandboxes });
    }
}

/// Walks a pod's containers in order and starts what is due.
struct Starter<'a, 'b> {
    input: &'a Input<'a>,
    plan: &'b mut Plan,
    sandbox: &'a Sandbox,
    /// A container with a postStart hook is starting: upstream starts the next only after it.
    hook_pending: bool,
}

impl Starter<'_, '_> {
    fn in_sandbox(&self, name: &str) -> Option<&Container> {
        self.input
            .observed
            .latest(name)
            .filter(|container| container.sandbox == self.sandbox.id)
    }

    /// Starts the init containers in order; true when the main ones may start.
    fn init_containers(&mut self) -> bool {
        let main_exists = pod::main_containers(self.input.pod)
            .iter()
            .any(|spec| self.in_sandbox(&spec.name).is_some());
        let init = pod::init_containers(self.input.pod);
        for (index, spec) in init.iter().enumerate() {
            let later_exists = main_exists
                || init[index + 1..]
                    .iter()
                    .any(|later| self.in_sandbox(&later.name).is_some());
            let done = if pod::is_sidecar(spec) {
                self.sidecar(spec) || main_exists
            } else {
                later_exists || self.init_container(spec)
            };
            if !done {
                return false;
            }
        }
        true
    }

    fn init_container(&mut self, spec: &Spec) -> bool {
        let Some(container) = self.in_sandbox(&spec.name).cloned() else {
            self.start(spec, None);
            return false;
        };
        match &container.state {
            State::Exited(exit) if exit.code == 0 => return true,
            State::Exited(exit) => {
                if restarts::after(self.input.pod, Role::Init, spec, exit.code) {
                    self.start(spec, Some(exit));
                }
            }
            State::Unknown => kill(self.input, self.plan, &container, unknown("Init container")),
            State::Running(_) => {}
            State::Created => self.start(spec, None),
        }
        false
    }

    /// True once the sidecar has started, so that what comes after it may start.
    fn sidecar(&mut self, spec: &Spec) -> bool {
        match self.in_sandbox(&spec.name).cloned() {
            Some(container) if container.is_running() => {
                self.replace(spec, &container, "Init container");
                let health = self.input.memory.health.get(&container.id);
                health.is_some_and(|health| health.started)
                    && !self.input.memory.awaits_hook(&container)
                    && !self.input.container_busy(&spec.name)
            }
            Some(Container {
                state: State::Exited(exit),
                ..
            }) => {
                self.start(spec, Some(&exit));
                false
            }
            _ => {
                self.start(spec, None);
                false
            }
        }
    }

    fn main_container(&mut self, spec: &Spec) {
        match self.input.observed.latest(&spec.name).cloned() {
            Some(container) if container.is_running() => {
                if container.sandbox == self.sandbox.id {
                    self.replace(spec, &container, "Container");
                }
            }
            Some(container) => match container.exit() {
                Some(exit) if starts_again(self.input, Role::Main, spec, &container, exit) => {
                    self.start(spec, Some(exit));
                }
                Some(_) => {}
                None => self.start(spec, None),
            },
            None => self.start(spec, None),
        }
        let starting = self
            .plan
            .actions
            .iter()
            .any(|action| action.task() == Task::Container(spec.name.clone()));
        self.hook_pending |= pod::has_post_start(spec) && (starting || self.input.container_busy(&spec.name));
    }

    fn ephemeral_containers(&mut self) {
        for (role, spec) in pod::containers(self.input.pod) {
            if role == Role::Ephemeral && self.input.observed.latest(&spec.name).is_none() {
                self.start(&spec, None);
            }
        }
    }

    /// Kills a container whose probe or hook failed, whose image was changed or of which the runtime cannot tell whether it runs; it
    /// starts again once it is dead, by its restart policy where a probe failed.
    fn replace(&mut self, spec: &Spec, container: &Container, what: &str) {
        let (id, hash) = (&container.id, container.hash.as_ref());
        let changed = hash.is_some_and(|hash| *hash != labels::container_hash(spec));
        let (message, grace, again) = if container.state == State::Unknown {
            (unknown(what), None, true)
        } else if changed || self.input.memory.starts_again(id) {
            let message = format!("Container {} definition changed, will be restarted", spec.name);
            (message, None, true)
        } else if let Some(doom) = self.input.memory.doomed.get(id) {
            (doom.message.clone(), doom.grace, false)
        } else if self.input.memory.awaits_hook(container) && !self.input.container_busy(&spec.name) {
            // The start has ended, and its hook has failed.
            ("FailedPostStartHook".into(), None, false)
        } else {
            return;
        };
        let ending = Ending {
            message,
            grace: grace.unwrap_or_else(|| pod::grace_period(self.input.pod)),
            waits: false,
            again,
        };
        stop::end(self.input, self.plan, container, ending);
    }

    fn start(&mut self, spec: &Spec, exit: Option<&Exit>) {
        // Of one that was started in vain and has ended by that, the restart back-off governs.
        let failed = self.input.memory.starts.get(&spec.name);
        if let Some(failure) = failed.filter(|failure| exit.is_none() || failure.reason != NOT_RUN) {
            show(self.input, self.plan, &spec.name, failure);
            if failure.retry_at() > self.input.now {
                self.plan.wake_at(failure.retry_at());
                return;
            }
        }
        // What is being started, or still being ended, does not wait.
        if self.input.container_busy(&spec.name) {
            return;
        }
        let ended = exit.map(|exit| {
            let id = self
                .input
                .observed
                .latest(&spec.name)
                .map_or("", |container| container.id.as_str());
            self.input.memory.ended(id, exit.finished)
        });
        if let (Some(ended), Some(backoff)) = (ended, self.input.memory.restarts.get(&spec.name)) {
            let until = backoff.until(ended);
            if until > self.input.now {
                let message = format!(
                    "back-off {} restarting failed container={} pod={}",
                    backoff::text(backoff.delay()),
                    spec.name,
                    pod::full_name(self.input.pod)
                );
                self.plan
                    .waiting
                    .insert(spec.name.clone(), ("CrashLoopBackOff".into(), message));
                self.plan.wake_at(until);
                return;
            }
        }
        if self.hook_pending {
            return;
        }
        let attempt = self.next_attempt(&spec.name);
        let action = Action::StartContainer {
            name: spec.name.clone(),
            attempt,
            ended,
        };
        self.plan.act(self.input, action);
    }

    /// One more than the runtime or, where its records are gone, the API and the log files remember.
    fn next_attempt(&self, name: &str) -> u32 {
        if let Some(container) = self.input.observed.latest(name) {
            return container.attempt + 1;
        }
        let told = pod::container_status(self.input.pod, name).map_or(0, counted);
        let earlier = self.input.memory.earlier.get(name).copied().unwrap_or(0);
        told.max(earlier)
    }
}
