//! The statuses of a pod's containers.

use jiff::Timestamp;
use skiff_api::k8s_openapi::api::core::v1::{
    Container as Spec, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, LinuxContainerUser, VolumeMount, VolumeMountStatus,
};
use skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Input, ends};
use crate::observed::{Container, State};
use crate::pod::{self, Role};

/// Statuses of the init, the main and the ephemeral containers, in the spec's order.
pub(super) fn statuses(input: &Input<'_>) -> (Vec<ContainerStatus>, Vec<ContainerStatus>, Vec<ContainerStatus>) {
    let (mut init, mut main, mut ephemeral) = (Vec::new(), Vec::new(), Vec::new());
    for (role, spec) in pod::containers(input.pod) {
        let status = status(input, role, &spec);
        match role {
            Role::Init | Role::Sidecar => init.push(status),
            Role::Main => main.push(status),
            Role::Ephemeral => ephemeral.push(status),
        }
    }
    // What the API has as the status of an end stays as it is, and of a pod that was refused nothing was ever begun.
    if input.plan.finish.is_some() && !pod::is_terminal(input.pod) && !input.memory.refused {
        ends::complete(input.pod, &mut init, &mut main);
    }
    (init, main, ephemeral)
}

fn status(input: &Input<'_>, role: Role, spec: &Spec) -> ContainerStatus {
    let waiting = input.plan.waiting.get(&spec.name);
    match input.observed.latest(&spec.name) {
        // The API takes back no end that it was told of.
        Some(container) if !has_run(container) && input.plan.finish.is_some() => {
            let told = told_end(known(input, role, spec), role);
            told.unwrap_or_else(|| of_container(input, role, spec, container, waiting))
        }
        Some(container) if input.memory.awaits_hook(container) => before_hook(input, role, spec, container),
        Some(container) => of_container(input, role, spec, container, waiting),
        None => without_container(input, role, spec, waiting),
    }
}

fn has_run(container: &Container) -> bool {
    matches!(container.state, State::Running(_) | State::Exited(_))
}

/// What the API has of a container that it knows to have ended.
fn told_end(known: Option<&ContainerStatus>, role: Role) -> Option<ContainerStatus> {
    let known = known.filter(|known| known.state.as_ref().is_some_and(|state| state.terminated.is_some()))?;
    Some(ContainerStatus {
        ready: role == Role::Init && known.ready,
        started: Some(false),
        ..known.clone()
    })
}

/// Until a postStart hook has succeeded, what was before its container is shown, as upstream does.
fn before_hook(input: &Input<'_>, role: Role, spec: &Spec, container: &Container) -> ContainerStatus {
    let failed = input.memory.starts.get(&spec.name).map(|failure| {
        let (reason, message, _) = failure.shown(input.now);
        (reason, message)
    });
    match before(input, container) {
        Some(previous) => of_container(input, role, spec, previous, failed.as_ref()),
        None => without_container(input, role, spec, failed.as_ref()),
    }
}

/// The run of a container before this one.
fn before<'a>(input: &Input<'a>, container: &Container) -> Option<&'a Container> {
    let runs = input.observed.containers.iter();
    let mut runs = runs.filter(|run| run.name == container.name);
    runs.find(|run| run.id == container.id)?;
    runs.next()
}

fn of_container(
    input: &Input<'_>,
    role: Role,
    spec: &Spec,
    container: &Container,
    waiting: Option<&(String, String)>,
) -> ContainerStatus {
    let health = input.memory.health.get(&container.id).copied().unwrap_or_default();
    let previous = before(input, container)
        .and_then(|previous| terminated(input, previous))
        .or_else(|| told_before(input, role, spec, container));
    let (mut state, mut last) = (ContainerState::default(), previous);
    let mut started = false;
    let mut ready = false;
    let mut resources = None;
    match &container.state {
        State::Running(since) => {
            resources.clone_from(&spec.resources);
            state.running = Some(ContainerStateRunning {
                started_at: Some(Time(*since)),
            });
            started = health.started;
            ready = health.started && health.ready && matches!(role, Role::Main | Role::Sidecar);
        }
        State::Exited(exit) => match waiting {
            Some(waiting) => {
                state.waiting = Some(wait(waiting));
                last = terminated(input, container);
            }
            None => {
                state.terminated = terminated(input, container);
                ready = role == Role::Init && exit.code == 0;
            }
        },
        State::Created | State::Unknown => {
            state.waiting = Some(waiting.map_or_else(|| default_wait(input, role, spec), wait));
        }
    }
    ContainerStatus {
        name: spec.name.clone(),
        container_id: Some(format!("{}://{}", input.runtime, container.id)),
        image: if container.image.is_empty() {
            spec.image.clone().unwrap_or_default()
        } else {
            container.image.clone()
        },
        image_id: container.image_ref.clone(),
        ready,
        started: Some(started),
        restart_count: i32::try_from(container.attempt).unwrap_or(i32::MAX),
        allocated_resources: resources.as_ref().and_then(|resources| resources.requests.clone()),
        resources,
        state: Some(state),
        last_state: Some(ContainerState {
            terminated: last,
            ..ContainerState::default()
        }),
        volume_mounts: volume_mounts(spec, container),
        user: container.user.as_ref().map(user),
        ..ContainerStatus::default()
    }
}

/// Who the container's first process was started as.
fn user(user: &skiff_cri::ContainerUser) -> ContainerUser {
    ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid,
            gid: user.gid,
            supplemental_groups: Some(user.supplemental_groups.clone()).filter(|groups| !groups.is_empty()),
        }),
    }
}

/// Which volumes are mounted, and whether the mounts below those that are read-only are so, too.
fn volume_mounts(spec: &Spec, container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = spec.volume_mounts.as_ref().filter(|mounts| !mounts.is_empty())?;
    let recursive = |mount: &VolumeMount| match container.read_only_below.contains(&pod::mount_path(mount)) {
        true => "Enabled".to_owned(),
        false => "Disabled".to_owned(),
    };
    let shown = mounts.iter().map(|mount| {
        let read_only = mount.read_only.filter(|read_only| *read_only);
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only,
            recursive_read_only: read_only.map(|_| recursive(mount)),
            volume_status: None,
        }
    });
    Some(shown.collect())
}

/// How the run before ended, as the API remembers it: the runtime may have lost its records.
fn told_before(input: &Input<'_>, role: Role, spec: &Spec, container: &Container) -> Option<ContainerStateTerminated> {
    let known = known(input, role, spec).filter(|_| container.attempt > 0)?;
    known.last_state.as_ref()?.terminated.clone()
}

/// What the API has of a container.
fn known<'a>(input: &Input<'a>, role: Role, spec: &Spec) -> Option<&'a ContainerStatus> {
    let list = match role {
        Role::Init | Role::Sidecar => &input.last.init_container_statuses,
        Role::Main => &input.last.container_statuses,
        Role::Ephemeral => &input.last.ephemeral_container_statuses,
    };
    list.iter().flatten().find(|known| known.name == spec.name)
}

/// Of a container that the runtime does not have: what the API remembers of it, and why it is not there.
fn without_container(
    input: &Input<'_>,
    role: Role,
    spec: &Spec,
    waiting: Option<&(String, String)>,
) -> ContainerStatus {
    let known = known(input, role, spec);
    if let Some(told) = told_end(known, role)
        && (input.plan.finish.is_some() || waiting.is_none())
    {
        return told;
    }
    let ended = known
        .and_then(|known| known.state.as_ref())
        .filter(|state| state.terminated.is_some());
    let default = waiting.is_none();
    let waiting = waiting.map_or_else(|| default_wait(input, role, spec), wait);
    let counted = known.map_or(0, |known| known.restart_count);
    let earlier = input.memory.earlier.get(&spec.name).copied().unwrap_or(0);
    let ran = known.and_then(|known| known.state.as_ref()?.running.as_ref());
    let mut last_state = ended
        .or(known.and_then(|known| known.last_state.as_ref()))
        .cloned()
        .unwrap_or_default();
    if ran.is_some() && default && last_state.terminated.is_none() {
        let message = "The container could not be located when the pod was deleted.  The container used to be Running";
        last_state.terminated = Some(lost(message));
    }
    ContainerStatus {
        name: spec.name.clone(),
        image: spec.image.clone().unwrap_or_default(),
        started: Some(false),
        restart_count: counted.max(i32::try_from(earlier).unwrap_or(i32::MAX)),
        state: Some(ContainerState {
            waiting: Some(waiting),
            ..ContainerState::default()
        }),
        last_state: Some(last_state),
        ..ContainerStatus::default()
    }
}

/// The end of a container of which the runtime knows nothing.
pub(super) fn lost(message: &str) -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".into()),
        message: Some(message.into()),
        ..ContainerStateTerminated::default()
    }
}

fn wait((reason, message): &(String, String)) -> ContainerStateWaiting {
    ContainerStateWaiting {
        reason: Some(reason.clone()),
        message: (!message.is_empty()).then(|| message.clone()),
    }
}

/// `PodInitializing` while init containers are due, `ContainerCreating` otherwise.
fn default_wait(input: &Input<'_>, role: Role, spec: &Spec) -> ContainerStateWaiting {
    if let Some(failure) = input.memory.starts.get(&spec.name) {
        let (reason, message, _) = failure.shown(input.now);
        return wait(&(reason, message));
    }
    let initializing = role != Role::Ephemeral && !pod::init_containers(input.pod).is_empty();
    let reason = if initializing {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    ContainerStateWaiting {
        reason: Some(reason.into()),
        message: None,
    }
}

fn terminated(input: &Input<'_>, container: &Container) -> Option<ContainerStateTerminated> {
    let exit = container.exit()?;
    let reason = match (exit.reason.as_str(), exit.code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    Some(ContainerStateTerminated {
        container_id: Some(format!("{}://{}", input.runtime, container.id)),
        exit_code: exit.code,
        finished_at: Some(Time(exit.finished)),
        message: (!exit.message.is_empty()).then(|| share(&exit.message, pod::containers(input.pod).count())),
        reason: Some(reason.into()),
        signal: None,
        started_at: Some(Time(exit.started.unwrap_or(Timestamp::UNIX_EPOCH))),
    })
}

/// As much of a message as one of so many containers may tell: each has an equal share of the pod's, as upstream.
fn share(message: &str, containers: usize) -> String {
    /// Bytes of all messages of a pod.
    const LIMIT: usize = 12 << 10;
    let end = message.floor_char_boundary(LIMIT / containers.max(1));
    message[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_containers_share_the_room_for_messages() {
        let long = "ä".repeat(8192);
        for (containers, length) in [(0, 12288), (1, 12288), (3, 4096), (5, 2456), (100, 122)] {
            assert_eq!(share(&long, containers).len(), length, "{containers}");
        }
        assert_eq!(share("short", 100), "short");
    }
}
