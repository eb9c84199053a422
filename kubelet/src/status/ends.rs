//! What is said at the end of a pod of containers that have not ended: nothing of a pod that is over still waits.

use skiff_api::k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};

use super::containers::lost;
use crate::pod;

/// Of a pod that has ended, every container that was to run has ended too, as upstream shows it: the main ones if the pod was
/// initialized, the init containers but for those at the end of the list that were never begun.
pub(super) fn complete(pod: &Pod, init: &mut [ContainerStatus], main: &mut [ContainerStatus]) {
    if is_initialized(pod, init, main) {
        end(main);
    }
    let begun = init
        .iter()
        .rposition(|status| !waits(status))
        .map_or(1, |last| last + 1);
    let begun = begun.min(init.len());
    end(&mut init[..begun]);
}

fn end(statuses: &mut [ContainerStatus]) {
    let left = statuses.iter_mut().filter(|status| !has_ended(status));
    for status in left {
        status.state = Some(ContainerState {
            terminated: Some(lost("The container could not be located when the pod was terminated")),
            ..ContainerState::default()
        });
    }
}

fn has_ended(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.terminated.is_some())
}

fn waits(status: &ContainerStatus) -> bool {
    let state = status.state.as_ref();
    state.is_none_or(|state| state.running.is_none() && state.terminated.is_none())
}

/// Whether the main containers were due.
fn is_initialized(pod: &Pod, init: &[ContainerStatus], main: &[ContainerStatus]) -> bool {
    let ran_before = |status: &ContainerStatus| {
        let last = status.last_state.as_ref();
        last.is_some_and(|last| last.terminated.is_some())
    };
    if init.is_empty() || main.iter().any(|status| !waits(status) || ran_before(status)) {
        return true;
    }
    let last = pod::init_containers(pod).last().zip(init.last());
    last.is_some_and(|(spec, status)| {
        let exit = status.state.as_ref().and_then(|state| state.terminated.as_ref());
        // A sidecar that has ended had begun.
        exit.is_some_and(|exit| exit.exit_code == 0 || pod::is_sidecar(spec))
    })
}
