//! Planning for a pod that ends: told to go, or finished by itself.

use super::{Action, Input, Plan, Task, run};
use crate::memory::{Finish, Volumes};
use crate::observed::Container;
use crate::pod;

/// Seconds that a container gets at least, whatever was asked for and however much of it hooks or other containers have used up.
pub(crate) const LEAST_GRACE: i64 = 2;

/// Plans for a pod that was told to go: containers, sandbox, then everything else.
pub(super) fn plan(input: &Input<'_>, plan: &mut Plan, grace: i64) {
    if input.memory.cleaned || !containers(input, plan, grace) {
        return;
    }
    plan.finish = Some(outcome(input));
    if input.busy.is_empty() {
        plan.act(input, Action::Cleanup);
    }
}

/// How a pod that was told to go has ended: what never ran to its end has failed.
fn outcome(input: &Input<'_>) -> Finish {
    let status = pod::status(input.pod);
    if pod::is_terminal(input.pod) {
        return Finish::told(status);
    }
    if let Some(verdict) = &input.memory.verdict {
        return verdict.clone();
    }
    let success = pod::main_containers(input.pod).iter().all(|spec| {
        let exit = input.observed.latest(&spec.name).and_then(Container::exit);
        exit.is_some_and(|exit| exit.code == 0)
    });
    Finish::by_exit(success)
}

/// Plans for a pod that has ended by itself: what still runs is stopped, what it held is given back.
pub(super) fn finish(input: &Input<'_>, plan: &mut Plan, finish: Finish) {
    let grace = finish.grace(input.pod);
    if !containers(input, plan, grace) {
        return;
    }
    plan.finish = Some(finish);
    if let Some(sandbox) = input.observed.ready_sandbox() {
        plan.act(input, Action::StopSandbox { id: sandbox.id.clone() });
        return;
    }
    if !input.memory.released && !input.is_busy(&Task::Sandbox) && !input.is_busy(&Task::Volumes) {
        plan.act(input, Action::Release);
    }
    // Without its containers, only the API's word keeps a finished pod from running again.
    if input.memory.bare && pod::is_terminal(input.pod) {
        clear(input, plan);
    }
}

/// Takes away what is kept of a finished pod for its logs.
fn clear(input: &Input<'_>, plan: &mut Plan) {
    let observed = input.observed;
    let containers: Vec<_> = observed
        .containers
        .iter()
        .map(|container| container.id.clone())
        .collect();
    let sandboxes: Vec<_> = observed.sandboxes.iter().map(|sandbox| sandbox.id.clone()).collect();
    if !(containers.is_empty() && sandboxes.is_empty()) {
        plan.act(input, Action::Prune { containers, sandboxes });
    }
}

/// How a container is to end.
pub(super) struct Ending {
    /// Text for the event.
    pub(super) message: String,
    /// Seconds that it gets.
    pub(super) grace: i64,
    /// Whether its signal waits for others.
    pub(super) waits: bool,
    /// Whether it starts anew, whatever the restart policy says.
    pub(super) again: bool,
}

/// Ends all containers; true when none is left.
fn containers(input: &Input<'_>, plan: &mut Plan, grace: i64) -> bool {
    for container in input.observed.running() {
        let ending = Ending {
            message: format!("Stopping container {}", container.name),
            grace,
            waits: !has_turn(input, &container.name),
            again: false,
        };
        end(input, plan, container, ending);
    }
    let ended = input.observed.running().next().is_none() && !input.any_container_busy();
    // Until then it may need its token: a grace period may be longer than one lives.
    match &input.memory.volumes {
        Volumes::Ready { refresh } if !ended => run::keep(input, plan, *refresh),
        // Whoever is asked for a token may take long to answer.
        Volumes::Ready { .. } if input.is_busy(&Task::Volumes) => {
            plan.given_up.insert(Task::Volumes);
        }
        _ => {}
    }
    ended
}

/// Whether a container of a pod that ends is to be stopped now: sidecars end after all others, the last one first.
fn has_turn(input: &Input<'_>, name: &str) -> bool {
    let sidecar = |name: &str| {
        let mut init = pod::init_containers(input.pod).iter();
        init.position(|spec| spec.name == name && pod::is_sidecar(spec))
    };
    let Some(own) = sidecar(name) else { return true };
    let goes_first = |other: &str| sidecar(other).is_none_or(|other| other > own);
    let busy = input.busy.iter().any(|task| match task {
        Task::Container(other) => goes_first(other),
        _ => false,
    });
    !busy && !input.observed.running().any(|other| goes_first(&other.name))
}

/// Ends a container: its preStop hook runs at once (KEP-753), what is left of the grace period is for its processes, when it is
/// their turn.
pub(super) fn end(input: &Input<'_>, plan: &mut Plan, container: &Container, ending: Ending) {
    let Ending {
        message,
        grace,
        waits,
        again,
    } = ending;
    let (id, name) = (container.id.clone(), container.name.clone());
    let told = input.memory.told_to_end.get(&id);
    let hook = pod::container(input.pod, &name)
        .is_some_and(|(_, spec)| spec.lifecycle.as_ref().is_some_and(|hooks| hooks.pre_stop.is_some()));
    let action = match told {
        None if waits || (hook && grace > 0) => Action::PreStop {
            id,
            name,
            grace,
            message,
            again,
        },
        _ if waits => return,
        told => {
            let spent = told.map_or(0, |told| input.now.duration_since(told.since).as_secs().max(0));
            Action::KillContainer {
                id,
                name,
                grace: (grace - spent).max(LEAST_GRACE),
                message: told.is_none().then_some(message),
                again,
            }
        }
    };
    plan.act(input, action);
}
