//! What the runtime says about one pod.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use skiff_cri::{self as cri, ContainerFilter, ContainerState, Runtime, SandboxFilter, SandboxState};

use crate::{files, labels};

/// Sandboxes and containers of one pod, newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Observed {
    /// Sandboxes, newest first.
    pub(crate) sandboxes: Vec<Sandbox>,
    /// Containers, newest first.
    pub(crate) containers: Vec<Container>,
}

/// A sandbox.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sandbox {
    /// The runtime's id.
    pub(crate) id: String,
    /// Which attempt of the pod's.
    pub(crate) attempt: u32,
    /// Whether it works.
    pub(crate) ready: bool,
    /// When it was made.
    pub(crate) created: Timestamp,
    /// Addresses; empty with the node's network.
    pub(crate) ips: Vec<String>,
}

/// A container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Container {
    /// The runtime's id.
    pub(crate) id: String,
    /// Name in the pod.
    pub(crate) name: String,
    /// How often it was restarted before.
    pub(crate) attempt: u32,
    /// Its sandbox.
    pub(crate) sandbox: String,
    /// When it was made.
    pub(crate) created: Timestamp,
    /// State.
    pub(crate) state: State,
    /// The hash of the spec that it was made from.
    pub(crate) hash: Option<String>,
    /// Image name.
    pub(crate) image: String,
    /// Image by digest.
    pub(crate) image_ref: String,
    /// Its log file.
    pub(crate) log_path: String,
    /// File on the node that is mounted at the termination message path.
    pub(crate) message_file: Option<String>,
    /// Where in the container mounts lie that are read-only all the way down.
    pub(crate) read_only_below: Vec<String>,
    /// Who it runs as, where the runtime tells (containerd 2.0 and later).
    pub(crate) user: Option<cri::ContainerUser>,
}

/// State of a container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum State {
    /// Made, not started.
    Created,
    /// Running since then.
    Running(Timestamp),
    /// Ended.
    Exited(Exit),
    /// The runtime cannot tell.
    Unknown,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Exit {
    /// Start.
    pub(crate) started: Option<Timestamp>,
    /// End.
    pub(crate) finished: Timestamp,
    /// Exit code.
    pub(crate) code: i32,
    /// `Completed`, `Error`, `OOMKilled` ...
    pub(crate) reason: String,
    /// The runtime's message, or the termination message.
    pub(crate) message: String,
    /// Whether the runtime's record says so; an event tells of an end tens of milliseconds earlier.
    pub(crate) recorded: bool,
}

// === impl Observed ===

impl Observed {
    /// Newest first, as the attempts count: the clock by which they were made may have been set between two of them.
    fn sort(&mut self) {
        self.sandboxes
            .sort_by_key(|sandbox| std::cmp::Reverse((sandbox.attempt, sandbox.created)));
        self.containers
            .sort_by_key(|container| std::cmp::Reverse((container.attempt, container.created)));
    }

    /// The newest sandbox.
    pub(crate) fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first()
    }

    /// The newest sandbox if it works.
    pub(crate) fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandbox().filter(|sandbox| sandbox.ready)
    }

    /// The newest container of a name.
    pub(crate) fn latest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// The one before it.
    pub(crate) fn previous(&self, name: &str) -> Option<&Container> {
        self.containers.iter().filter(|container| container.name == name).nth(1)
    }

    /// Whether the runtime's record of a container or sandbox says that it has ended; `None` when there is no record of it.
    pub(crate) fn has_ended(&self, id: &str) -> Option<bool> {
        let container = self.containers.iter().find(|container| container.id == id);
        let sandbox = || self.sandboxes.iter().find(|sandbox| sandbox.id == id);
        container
            .map(|container| container.exit().is_some_and(|exit| exit.recorded))
            .or_else(|| sandbox().map(|sandbox| !sandbox.ready))
    }

    /// Whether a process lives, or its end is not on record yet: its last lines may still be on their way to its log.
    pub(crate) fn goes_on(&self) -> bool {
        let unrecorded = |container: &Container| container.exit().is_some_and(|exit| !exit.recorded);
        self.containers
            .iter()
            .any(|container| container.is_running() || unrecorded(container))
    }

    /// Containers whose process lives.
    pub(crate) fn running(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|container| container.is_running())
    }
}

impl Container {
    /// Whether its process lives, or may live.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_) | State::Unknown)
    }

    /// How it ended, if it did.
    pub(crate) fn exit(&self) -> Option<&Exit> {
        match &self.state {
            State::Exited(exit) => Some(exit),
            _ => None,
        }
    }

    /// What it has left in its termination message file, so far.
    pub(crate) fn written_message(&self) -> String {
        let file = self.message_file.as_deref();
        file.map(read_message).unwrap_or_default()
    }
}

/// Asks the runtime about one pod; what `known` already tells of ended containers and sandboxes is not asked again.
pub(crate) async fn observe(runtime: &Arc<dyn Runtime>, uid: &str, known: &Observed) -> cri::Result<Observed> {
    let labels = BTreeMap::from([(labels::POD_UID.to_owned(), uid.to_owned())]);
    let sandbox_filter = SandboxFilter {
        labels: labels.clone(),
        ..SandboxFilter::default()
    };
    let container_filter = ContainerFilter {
        labels,
        ..ContainerFilter::default()
    };
    let (sandboxes, containers) = tokio::try_join!(
        runtime.list_sandboxes(&sandbox_filter),
        runtime.list_containers(&container_filter)
    )?;
    let mut observed = Observed::default();
    for sandbox in sandboxes {
        observed
            .sandboxes
            .extend(observe_sandbox(runtime, sandbox, known).await?);
    }
    for container in containers {
        observed
            .containers
            .extend(observe_container(runtime, container, known).await?);
    }
    observed.sort();
    Ok(observed)
}

async fn observe_sandbox(
    runtime: &Arc<dyn Runtime>,
    listed: cri::Sandbox,
    known: &Observed,
) -> cri::Result<Option<Sandbox>> {
    let ready = listed.state == SandboxState::Ready;
    if let Some(same) = known
        .sandboxes
        .iter()
        .find(|sandbox| sandbox.id == listed.id && sandbox.ready == ready)
    {
        return Ok(Some(same.clone()));
    }
    match runtime.sandbox_status(&listed.id).await {
        Ok(status) => Ok(Some(Sandbox {
            id: listed.id,
            attempt: listed.metadata.attempt,
            ready: status.state == SandboxState::Ready,
            created: listed.created_at,
            ips: status.ips,
        })),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

async fn observe_container(
    runtime: &Arc<dyn Runtime>,
    listed: cri::Container,
    known: &Observed,
) -> cri::Result<Option<Container>> {
    if let Some(same) = known.containers.iter().find(|container| container.id == listed.id) {
        let unchanged = match same.state {
            State::Created => listed.state == ContainerState::Created,
            State::Running(_) => listed.state == ContainerState::Running,
            State::Exited(ref exit) => exit.recorded || listed.state != ContainerState::Exited,
            State::Unknown => false,
        };
        if unchanged {
            return Ok(Some(same.clone()));
        }
    }
    match runtime.container_status(&listed.id).await {
        Ok(status) => Ok(Some(from_status(listed.sandbox_id, status))),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn from_status(sandbox: String, status: cri::ContainerStatus) -> Container {
    let message_path = status.annotations.get(labels::TERMINATION_MESSAGE_PATH);
    let message_file = message_path
        .and_then(|path| status.mounts.iter().find(|mount| mount.container_path == *path))
        .map(|mount| mount.host_path.clone());
    let state = match status.state {
        ContainerState::Created => State::Created,
        ContainerState::Running => State::Running(status.started_at.unwrap_or(status.created_at)),
        ContainerState::Unknown => State::Unknown,
        ContainerState::Exited => State::Exited(Exit {
            started: status.started_at,
            finished: status.finished_at.unwrap_or_else(Timestamp::now),
            code: status.exit_code,
            reason: status.reason.clone(),
            message: termination_message(&status, message_file.as_deref()),
            recorded: true,
        }),
    };
    Container {
        id: status.id,
        name: status
            .labels
            .get(labels::CONTAINER_NAME)
            .cloned()
            .unwrap_or(status.metadata.name),
        attempt: status.metadata.attempt,
        sandbox,
        created: status.created_at,
        state,
        hash: status.annotations.get(labels::CONTAINER_HASH).cloned(),
        image: status.image,
        image_ref: status.image_ref,
        log_path: status.log_path,
        message_file,
        read_only_below: status
            .mounts
            .into_iter()
            .filter(|mount| mount.recursive_read_only)
            .map(|mount| mount.container_path)
            .collect(),
        user: status.user,
    }
}

/// Of a termination message, in bytes.
const MESSAGE_LIMIT: usize = 4096;

/// What the runtime says, and what the container left in its termination message file (the last 4 KiB of it), or at the end of its
/// log where the pod asks for that and the container failed.
fn termination_message(status: &cri::ContainerStatus, file: Option<&str>) -> String {
    let policy = status.annotations.get(labels::TERMINATION_MESSAGE_POLICY);
    let failed = status.exit_code != 0 || status.reason == "OOMKilled";
    let falls_back = failed && policy.is_some_and(|policy| policy == "FallbackToLogsOnError");
    let mut left = file.map(read_message).unwrap_or_default();
    if left.is_empty() && falls_back {
        left = log_tail(&status.log_path).unwrap_or_default();
    }
    let told = [status.message.as_str(), &left];
    told.into_iter()
        .filter(|text| !text.is_empty())
        .collect::<Vec<_>>()
        .join(": ")
}

/// Where a volume is mounted at the message's path, the pod chooses what lies there.
fn read_message(path: &str) -> String {
    let bytes = files::read_tail(Path::new(path), MESSAGE_LIMIT).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The last 80 lines, 2 KiB at most, of a CRI log file, without its time stamps.
fn log_tail(path: &str) -> Option<String> {
    const LIMIT: usize = 2048;
    /// Room for all lines, with what the runtime writes before each.
    const READ: usize = 64 * 1024;
    let bytes = files::read_tail(Path::new(path), READ).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    let joined = lines[lines.len().saturating_sub(80)..]
        .iter()
        .map(|line| format!("{line}\n"))
        .collect::<String>();
    let mut start = joined.len().saturating_sub(LIMIT);
    while !joined.is_char_boundary(start) {
        start += 1;
    }
    Some(joined[start..].to_owned())
}

/// Everything that the runtime holds, grouped by pod UID, as far as it matters to find pods that nobody wants.
pub(crate) async fn pods(runtime: &Arc<dyn Runtime>) -> cri::Result<HashMap<String, PodIds>> {
    let (sandbox_filter, container_filter) = (SandboxFilter::default(), ContainerFilter::default());
    let (sandboxes, containers) = tokio::try_join!(
        runtime.list_sandboxes(&sandbox_filter),
        runtime.list_containers(&container_filter)
    )?;
    let mut pods: HashMap<String, PodIds> = HashMap::new();
    for sandbox in sandboxes {
        let Some(uid) = sandbox.labels.get(labels::POD_UID) else {
            continue;
        };
        let pod = pods.entry(uid.clone()).or_default();
        pod.name.clone_from(&sandbox.metadata.name);
        pod.namespace.clone_from(&sandbox.metadata.namespace);
        pod.ids.push((sandbox.id, sandbox.state == SandboxState::Ready));
    }
    for container in containers {
        let Some(uid) = container.labels.get(labels::POD_UID) else {
            continue;
        };
        let pod = pods.entry(uid.clone()).or_default();
        let label = |key: &str| container.labels.get(key).cloned().unwrap_or_default();
        pod.name = label(labels::POD_NAME);
        pod.namespace = label(labels::POD_NAMESPACE);
        pod.ids
            .push((container.id.clone(), container.state == ContainerState::Running));
    }
    for pod in pods.values_mut() {
        pod.ids.sort();
    }
    Ok(pods)
}

/// A pod as the runtime knows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PodIds {
    pub(crate) name: String,
    pub(crate) namespace: String,
    /// Ids of sandboxes and containers, each with whether it runs.
    pub(crate) ids: Vec<(String, bool)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attempt_tells_which_container_is_the_newest() {
        let made = |attempt: u32, second: i64| {
            let status = cri::ContainerStatus {
                id: format!("c{attempt}-{second}"),
                metadata: cri::ContainerMetadata {
                    name: "c".into(),
                    attempt,
                },
                created_at: Timestamp::from_second(second).unwrap(),
                ..cri::ContainerStatus::default()
            };
            from_status("s".into(), status)
        };
        // The clock was set back an hour before the last two.
        let mut observed = Observed {
            containers: vec![made(0, 4000), made(2, 500), made(1, 4100), made(2, 501)],
            ..Observed::default()
        };
        observed.sort();
        let ids: Vec<&str> = observed
            .containers
            .iter()
            .map(|container| container.id.as_str())
            .collect();
        assert_eq!(ids, ["c2-501", "c2-500", "c1-4100", "c0-4000"]);
        assert_eq!(observed.latest("c").map(|container| container.attempt), Some(2));
    }

    #[test]
    fn termination_messages() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("message");
        std::fs::write(&file, "why").unwrap();
        let log = dir.path().join("0.log");
        std::fs::write(
            &log,
            "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stderr F two\n",
        )
        .unwrap();
        let mut status = cri::ContainerStatus {
            exit_code: 1,
            log_path: log.to_string_lossy().into_owned(),
            ..cri::ContainerStatus::default()
        };
        assert_eq!(termination_message(&status, file.to_str()), "why");
        std::fs::write(&file, format!("{}end", "x".repeat(MESSAGE_LIMIT))).unwrap();
        let long = termination_message(&status, file.to_str());
        assert_eq!((long.len(), &long[long.len() - 4..]), (MESSAGE_LIMIT, "xend"));
        // Nobody ever writes into it.
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(termination_message(&status, pipe.to_str()), "");
        assert_eq!(termination_message(&status, None), "");
        status.annotations.insert(
            labels::TERMINATION_MESSAGE_POLICY.into(),
            "FallbackToLogsOnError".into(),
        );
        assert_eq!(termination_message(&status, None), "one\ntwo\n");
        status.message = "m".into();
        assert_eq!(termination_message(&status, None), "m: one\ntwo\n");
        std::fs::write(&log, "").unwrap();
        assert_eq!(termination_message(&status, None), "m", "it never ran");
        status.log_path = "/absent".into();
        assert_eq!(termination_message(&status, None), "m");
        (status.exit_code, status.message) = (0, String::new());
        assert_eq!(termination_message(&status, None), "");
    }
}
