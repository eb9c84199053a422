//! Planning for a pod that ends: told to go, or finished by itself.

use jiff::{SignedDuration, Timestamp};

use super::run::kill;
use super::{Action, Input, Plan, Task};
use crate::memory::Finish;
use crate::observed::Container;
use crate::pod::{self, Role};

/// Seconds that a sidecar gets at least, when the main containers have used up the pod's grace period.
const SIDECAR_MINIMUM: i64 = 2;

/// Plans for a pod that was told to go: containers, sandbox, then everything else.
pub(super) fn plan(input: &Input<'_>, plan: &mut Plan, grace: i64, since: Timestamp) {
    if input.memory.cleaned {
        return;
    }
    kill_in_order(input, plan, |container, late| {
        let spent = input
            .now
            .duration_since(since)
            .min(SignedDuration::from_secs(grace))
            .as_secs();
        let grace = if late {
            (grace - spent).max(SIDECAR_MINIMUM.min(grace))
        } else {
            grace
        };
        (grace, format!("Stopping container {}", container.name))
    });
    if input.observed.running().next().is_some() || input.any_container_busy() {
        return;
    }
    plan.finish = Some(outcome(input));
    if !input.busy.is_empty() {
        return;
    }
    match &input.memory.cleanup {
        Some(failure) if failure.retry_at() > input.now => plan.wake_at(failure.retry_at()),
        _ => plan.act(input, Action::Cleanup),
    }
}

/// How a pod that was told to go has ended: what never ran to its end has failed.
fn outcome(input: &Input<'_>) -> Finish {
    let status = pod::status(input.pod);
    if pod::is_terminal(input.pod) {
        return Finish::told(status);
    }
    let success = pod::main_containers(input.pod).iter().all(|spec| {
        let exit = input.observed.latest(&spec.name).and_then(Container::exit);
        exit.is_some_and(|exit| exit.code == 0)
    });
    Finish::by_exit(success)
}

/// Plans for a pod that has ended by itself: what still runs is stopped, what it held is given back.
pub(super) fn finish(input: &Input<'_>, plan: &mut Plan, finish: Finish) {
    kill_in_order(input, plan, |container, _| {
        (
            finish.evicted.unwrap_or_else(|| pod::grace_period(input.pod)),
            format!("Stopping container {}", container.name),
        )
    });
    if input.observed.running().next().is_some() || input.any_container_busy() {
        return;
    }
    plan.finish = Some(finish);
    if let Some(sandbox) = input.observed.ready_sandbox() {
        plan.act(input, Action::StopSandbox { id: sandbox.id.clone() });
    } else if !input.memory.released && !input.is_busy(&Task::Sandbox) && !input.is_busy(&Task::Volumes) {
        match &input.memory.cleanup {
            Some(failure) if failure.retry_at() > input.now => plan.wake_at(failure.retry_at()),
            _ => plan.act(input, Action::Release),
        }
    }
}

/// Kills the main containers at once; sidecars after them, the last started first.
fn kill_in_order(input: &Input<'_>, plan: &mut Plan, how: impl Fn(&Container, bool) -> (i64, String)) {
    let role = |container: &Container| pod::container(input.pod, &container.name).map(|(role, _)| role);
    let is_sidecar = |container: &&Container| role(container) == Some(Role::Sidecar);
    let others: Vec<_> = input
        .observed
        .running()
        .filter(|container| !is_sidecar(container))
        .collect();
    for container in &others {
        let (grace, message) = how(container, false);
        kill(input, plan, container, message, Some(grace));
    }
    if !others.is_empty() || input.any_container_busy() {
        return;
    }
    let order = |container: &&Container| {
        pod::init_containers(input.pod)
            .iter()
            .position(|spec| spec.name == container.name)
    };
    if let Some(last) = input.observed.running().filter(is_sidecar).max_by_key(order) {
        let (grace, message) = how(last, true);
        kill(input, plan, last, message, Some(grace));
    }
}
