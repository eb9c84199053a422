//! A container runtime in memory, for the tests of those who drive one.
//!
//! Sandboxes and containers change state as a real runtime's do, at once and without processes; the test decides when a container
//! exits, which images exist, and which calls fail.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};
use tokio_stream::wrappers::BroadcastStream;

use crate::error::{Error, Result};
use crate::events::{Event, EventKind, Notice};
use crate::runtime::Runtime;
use crate::types::{
    AttachRequest, Container, ContainerConfig, ContainerFilter, ContainerState, ContainerStats, ContainerStatus,
    ExecOutput, ExecRequest, FilesystemUsage, Image, LinuxResources, PullAuth, RuntimeCondition, RuntimeHandler,
    RuntimeStatus, RuntimeVersion, Sandbox, SandboxConfig, SandboxFilter, SandboxState, SandboxStatus,
};

/// The runtime. Clones share their state, so a test keeps one and gives one away.
#[derive(Clone, Debug)]
pub struct FakeRuntime {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<Event>,
    frozen: Arc<watch::Sender<bool>>,
    /// Whether lists of everything wait, and how many do.
    stalled: Arc<watch::Sender<(bool, usize)>>,
}

#[derive(Debug, Default)]
struct State {
    steps: usize,
    freeze_at: Option<usize>,
    sandboxes: BTreeMap<String, (SandboxStatus, SandboxConfig)>,
    containers: BTreeMap<String, (ContainerStatus, String, ContainerConfig)>,
    images: Vec<Image>,
    pullable: Vec<String>,
    failures: BTreeMap<&'static str, VecDeque<Error>>,
    broken: BTreeMap<&'static str, String>,
    execs: VecDeque<ExecOutput>,
    slow: BTreeMap<String, Duration>,
    stats: BTreeMap<String, ContainerStats>,
    calls: Vec<String>,
    handlers: Vec<RuntimeHandler>,
    network_down: bool,
    ignores_term: bool,
    next_id: u32,
    next_ip: u8,
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            events: broadcast::channel(1024).0,
            frozen: Arc::new(watch::Sender::new(false)),
            stalled: Arc::default(),
        }
    }
}

impl FakeRuntime {
    /// An empty runtime, ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes an image present.
    pub fn add_image(&self, name: &str) {
        let digest = crate::oci::digest(name.as_bytes());
        let repository = name.rsplit_once(':').map_or(name, |(repository, _)| repository);
        let image = Image {
            id: digest.clone(),
            repo_tags: vec![name.to_owned()],
            repo_digests: vec![format!("{repository}@{digest}")],
            size: 1 << 20,
            ..Default::default()
        };
        self.state.lock().images.push(image);
    }

    /// Makes a pull of this image succeed.
    pub fn allow_pull(&self, name: &str) {
        self.state.lock().pullable.push(name.to_owned());
    }

    /// The next call of this method (under its CRI name, `RunPodSandbox`) fails.
    pub fn fail_next(&self, call: &'static str, message: &str) {
        let error = failed(call, message);
        self.state.lock().failures.entry(call).or_default().push_back(error);
    }

    /// Every call of this method fails, until [`Self::mend`].
    pub fn break_down(&self, call: &'static str, message: &str) {
        self.state.lock().broken.insert(call, message.to_owned());
    }

    /// Calls of this method succeed again.
    pub fn mend(&self, call: &'static str) {
        self.state.lock().broken.remove(call);
    }

    /// The next `ExecSync` gives this; without one it succeeds with no output.
    pub fn push_exec(&self, output: ExecOutput) {
        self.state.lock().execs.push_back(output);
    }

    /// Every `ExecSync` of this command takes so long, unless its caller has less time.
    pub fn delay_exec(&self, command: &str, delay: Duration) {
        self.state.lock().slow.insert(command.to_owned(), delay);
    }

    /// What the statistics of a container say.
    pub fn set_stats(&self, stats: ContainerStats) {
        self.state.lock().stats.insert(stats.id.clone(), stats);
    }

    /// Whether the network condition holds.
    pub fn set_network_ready(&self, ready: bool) {
        self.state.lock().network_down = !ready;
    }

    /// What the runtime says of its handlers.
    pub fn set_handlers(&self, handlers: Vec<RuntimeHandler>) {
        self.state.lock().handlers = handlers;
    }

    /// Whether containers end only by SIGKILL, after their grace period.
    pub fn set_ignores_term(&self, ignores: bool) {
        self.state.lock().ignores_term = ignores;
    }

    /// Ends a running container, as if its process had exited.
    pub fn exit_container(&self, id: &str, exit_code: i32) {
        self.end(id, exit_code, if exit_code == 0 { "Completed" } else { "Error" });
    }

    /// Ends a running container as the kernel does when it exceeds its memory.
    pub fn oom_kill(&self, id: &str) {
        self.tell_out_of_memory(id);
        self.end(id, 137, "OOMKilled");
    }

    /// Tells that the kernel killed in a container for want of memory; a real runtime may do so after the container's end.
    pub fn tell_out_of_memory(&self, id: &str) {
        let kind = EventKind::OutOfMemory;
        self.events
            .send(Event {
                id: id.to_owned(),
                kind,
            })
            .ok();
    }

    /// Tells of an end that no record shows yet; [`Self::exit_container`] puts it on record.
    pub fn tell_exit(&self, id: &str, exit_code: u32) {
        let at = Timestamp::now();
        let kind = EventKind::Exited { exit_code, at };
        self.events
            .send(Event {
                id: id.to_owned(),
                kind,
            })
            .ok();
    }

    /// Ends a sandbox's pause process.
    pub fn kill_sandbox(&self, id: &str) {
        if let Some((status, _)) = self.state.lock().sandboxes.get_mut(id) {
            status.state = SandboxState::NotReady;
        }
        let kind = EventKind::Exited {
            exit_code: 137,
            at: Timestamp::now(),
        };
        self.events
            .send(Event {
                id: id.to_owned(),
                kind,
            })
            .ok();
    }

    /// Loses all sandboxes and containers at once, as a reboot does where the runtime keeps no records.
    pub fn forget_pods(&self) {
        let mut state = self.state.lock();
        state.sandboxes.clear();
        state.containers.clear();
    }

    /// Answers no call that changes something after the next `steps` steps: each call is two, one before its effect and one
    /// after. `None` answers all again; calls that hang stay so.
    pub fn freeze_after(&self, steps: Option<usize>) {
        let mut state = self.state.lock();
        state.freeze_at = steps.map(|steps| state.steps + steps);
        self.frozen.send_replace(false);
    }

    /// Whether a call hangs since [`Self::freeze_after`].
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        *self.frozen.borrow()
    }

    /// Lists of all sandboxes wait from now on, or no longer; what is asked of one pod does not.
    pub fn stall_lists(&self, stall: bool) {
        self.stalled.send_modify(|stalled| stalled.0 = stall);
    }

    /// How many lists wait.
    #[must_use]
    pub fn stalled_lists(&self) -> usize {
        self.stalled.borrow().1
    }

    /// All calls so far that change something, as `Method object`.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.state.lock().calls.clone()
    }

    /// What a container was created from.
    #[must_use]
    pub fn container_config(&self, id: &str) -> Option<ContainerConfig> {
        self.state
            .lock()
            .containers
            .get(id)
            .map(|(_, _, config)| config.clone())
    }

    /// What a sandbox was created from.
    #[must_use]
    pub fn sandbox_config(&self, id: &str) -> Option<SandboxConfig> {
        self.state.lock().sandboxes.get(id).map(|(_, config)| config.clone())
    }

    fn end(&self, id: &str, exit_code: i32, reason: &str) {
        let at = Timestamp::now();
        {
            let mut state = self.state.lock();
            let Some((status, ..)) = state.containers.get_mut(id) else {
                return;
            };
            if status.state != ContainerState::Running {
                return;
            }
            status.state = ContainerState::Exited;
            status.finished_at = Some(at);
            status.exit_code = exit_code;
            status.reason = reason.to_owned();
        }
        let kind = EventKind::Exited {
            exit_code: exit_code.unsigned_abs(),
            at,
        };
        self.events
            .send(Event {
                id: id.to_owned(),
                kind,
            })
            .ok();
    }

    /// Notes a call, and fails it where the test wants that.
    async fn enter(&self, call: &'static str, object: &str) -> Result<()> {
        self.step().await;
        let mut state = self.state.lock();
        state.calls.push(format!("{call} {object}"));
        if let Some(message) = state.broken.get(call) {
            return Err(failed(call, message));
        }
        match state.failures.get_mut(call).and_then(VecDeque::pop_front) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// A point at which whoever drives the runtime may be killed: before a call has its effect, and after.
    async fn step(&self) {
        let frozen = {
            let mut state = self.state.lock();
            state.steps += 1;
            state.freeze_at.is_some_and(|at| state.steps > at)
        };
        if frozen {
            self.frozen.send_replace(true);
            std::future::pending::<()>().await;
        }
    }
}

impl State {
    fn id(&mut self, prefix: &str) -> String {
        self.next_id += 1;
        format!("{prefix}-{}", self.next_id)
    }
}

fn failed(call: &'static str, message: &str) -> Error {
    Error::Failed {
        call,
        object: String::new(),
        code: "Unknown".into(),
        message: message.to_owned(),
    }
}

fn absent(call: &'static str, object: &str) -> Error {
    Error::NotFound {
        call,
        object: object.to_owned(),
        message: "not found".into(),
    }
}

fn has_labels(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

// === impl Runtime for FakeRuntime ===

#[async_trait]
impl Runtime for FakeRuntime {
    async fn version(&self) -> Result<RuntimeVersion> {
        Ok(RuntimeVersion {
            name: "fake".into(),
            version: "1.0.0".into(),
            api_version: "v1".into(),
        })
    }

    async fn status(&self) -> Result<RuntimeStatus> {
        let network = !self.state.lock().network_down;
        let condition = |kind: &str, status| RuntimeCondition {
            kind: kind.into(),
            status,
            ..Default::default()
        };
        Ok(RuntimeStatus {
            conditions: vec![condition("RuntimeReady", true), condition("NetworkReady", network)],
            handlers: self.state.lock().handlers.clone(),
            supplemental_groups_policy: None,
        })
    }

    async fn run_sandbox(&self, config: &SandboxConfig, handler: &str) -> Result<String> {
        self.enter("RunPodSandbox", &config.metadata.name).await?;
        let id = {
            let mut state = self.state.lock();
            let id = state.id("sandbox");
            state.next_ip += 1;
            let on_node = config.security.namespaces.network == crate::types::NamespaceMode::Node;
            let status = SandboxStatus {
                id: id.clone(),
                metadata: config.metadata.clone(),
                state: SandboxState::Ready,
                created_at: Timestamp::now(),
                ips: if on_node {
                    vec![]
                } else {
                    vec![format!("10.244.0.{}", state.next_ip)]
                },
                namespaces: config.security.namespaces.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
                runtime_handler: handler.to_owned(),
            };
            state.sandboxes.insert(id.clone(), (status, config.clone()));
            id
        };
        self.step().await;
        Ok(id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        self.enter("StopPodSandbox", id).await?;
        let running: Vec<_> = {
            let mut state = self.state.lock();
            if let Some((status, _)) = state.sandboxes.get_mut(id) {
                status.state = SandboxState::NotReady;
            }
            state
                .containers
                .iter()
                .filter(|(_, (_, sandbox, _))| sandbox == id)
                .map(|(id, _)| id.clone())
                .collect()
        };
        running.iter().for_each(|container| self.end(container, 137, "Error"));
        self.step().await;
        Ok(())
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.enter("RemovePodSandbox", id).await?;
        {
            let mut state = self.state.lock();
            state.sandboxes.remove(id);
            state.containers.retain(|_, (_, sandbox, _)| sandbox != id);
        }
        self.step().await;
        Ok(())
    }

    async fn sandbox_status(&self, id: &str) -> Result<SandboxStatus> {
        let state = self.state.lock();
        state
            .sandboxes
            .get(id)
            .map(|(status, _)| status.clone())
            .ok_or_else(|| absent("PodSandboxStatus", id))
    }

    async fn list_sandboxes(&self, filter: &SandboxFilter) -> Result<Vec<Sandbox>> {
        if *filter == SandboxFilter::default() && self.stalled.borrow().0 {
            self.stalled.send_modify(|stalled| stalled.1 += 1);
            self.stalled.subscribe().wait_for(|stalled| !stalled.0).await.ok();
            self.stalled.send_modify(|stalled| stalled.1 -= 1);
        }
        let state = self.state.lock();
        let matching = state.sandboxes.values().map(|(status, _)| status).filter(|status| {
            filter.id.as_ref().is_none_or(|id| *id == status.id)
                && filter.state.is_none_or(|state| state == status.state)
                && has_labels(&status.labels, &filter.labels)
        });
        let line = |status: &SandboxStatus| Sandbox {
            id: status.id.clone(),
            metadata: status.metadata.clone(),
            state: status.state,
            created_at: status.created_at,
            labels: status.labels.clone(),
            annotations: status.annotations.clone(),
            runtime_handler: status.runtime_handler.clone(),
        };
        Ok(matching.map(line).collect())
    }

    async fn create_container(
        &self,
        sandbox: &str,
        config: &ContainerConfig,
        sandbox_config: &SandboxConfig,
    ) -> Result<String> {
        self.enter("CreateContainer", &config.metadata.name).await?;
        let id = {
            let mut state = self.state.lock();
            if !state.sandboxes.contains_key(sandbox) {
                return Err(absent("CreateContainer", sandbox));
            }
            let known = |image: &&Image| image.id == config.image || image.repo_tags.contains(&config.image);
            let Some(image) = state.images.iter().find(known) else {
                return Err(absent("CreateContainer", &config.image));
            };
            let security = &config.security;
            if let Some(group) = security.run_as_group
                && security.run_as_user.is_none()
                && security.run_as_username.is_empty()
            {
                let text = format!("user group \"{group}\" is specified without user");
                return Err(failed("CreateContainer", &text));
            }
            let image_ref = image.repo_digests.first().cloned().unwrap_or_default();
            let id = state.id("container");
            let status = ContainerStatus {
                id: id.clone(),
                metadata: config.metadata.clone(),
                state: ContainerState::Created,
                created_at: Timestamp::now(),
                image: config.image.clone(),
                image_ref,
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
                mounts: config.mounts.clone(),
                log_path: format!("{}/{}", sandbox_config.log_directory, config.log_path),
                resources: Some(config.resources.clone()),
                ..Default::default()
            };
            state
                .containers
                .insert(id.clone(), (status, sandbox.to_owned(), config.clone()));
            id
        };
        self.step().await;
        Ok(id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        self.enter("StartContainer", id).await?;
        {
            let mut state = self.state.lock();
            let (status, ..) = state
                .containers
                .get_mut(id)
                .ok_or_else(|| absent("StartContainer", id))?;
            status.state = ContainerState::Running;
            status.started_at = Some(Timestamp::now());
        }
        self.events
            .send(Event {
                id: id.to_owned(),
                kind: EventKind::Started { pid: 1 },
            })
            .ok();
        self.step().await;
        Ok(())
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        self.enter("StopContainer", id).await?;
        let ignores_term = self.state.lock().ignores_term;
        if ignores_term {
            tokio::time::sleep(grace).await;
            self.end(id, 137, "Error");
        } else {
            self.end(id, 0, "Completed");
        }
        self.step().await;
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.enter("RemoveContainer", id).await?;
        self.state.lock().containers.remove(id);
        self.events
            .send(Event {
                id: id.to_owned(),
                kind: EventKind::Deleted,
            })
            .ok();
        self.step().await;
        Ok(())
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        let state = self.state.lock();
        state
            .containers
            .get(id)
            .map(|(status, ..)| status.clone())
            .ok_or_else(|| absent("ContainerStatus", id))
    }

    async fn list_containers(&self, filter: &ContainerFilter) -> Result<Vec<Container>> {
        let state = self.state.lock();
        let matching = state.containers.values().filter(|(status, sandbox, _)| {
            filter.id.as_ref().is_none_or(|id| *id == status.id)
                && filter.state.is_none_or(|state| state == status.state)
                && filter.sandbox_id.as_ref().is_none_or(|id| id == sandbox)
                && has_labels(&status.labels, &filter.labels)
        });
        let line = |(status, sandbox, _): &(ContainerStatus, String, ContainerConfig)| Container {
            id: status.id.clone(),
            sandbox_id: sandbox.clone(),
            metadata: status.metadata.clone(),
            image: status.image.clone(),
            image_ref: status.image_ref.clone(),
            state: status.state,
            created_at: status.created_at,
            labels: status.labels.clone(),
            annotations: status.annotations.clone(),
        };
        Ok(matching.map(line).collect())
    }

    async fn update_container_resources(&self, id: &str, resources: &LinuxResources) -> Result<()> {
        self.enter("UpdateContainerResources", id).await?;
        let mut state = self.state.lock();
        let (status, ..) = state
            .containers
            .get_mut(id)
            .ok_or_else(|| absent("UpdateContainerResources", id))?;
        status.resources = Some(resources.clone());
        Ok(())
    }

    async fn reopen_container_log(&self, id: &str) -> Result<()> {
        self.enter("ReopenContainerLog", id).await
    }

    async fn exec_sync(&self, container: &str, command: &[String], timeout: Duration) -> Result<ExecOutput> {
        let command = command.join(" ");
        self.enter("ExecSync", &format!("{container} {command}")).await?;
        let delay = self.state.lock().slow.get(&command).copied();
        if let Some(delay) = delay {
            // No time means all the time.
            let late = !timeout.is_zero() && delay > timeout;
            tokio::time::sleep(if late { timeout } else { delay }).await;
            if late {
                return Err(Error::DeadlineExceeded {
                    call: "ExecSync",
                    object: container.to_owned(),
                    message: "timeout exceeded".into(),
                });
            }
        }
        let mut state = self.state.lock();
        if !state.containers.contains_key(container) {
            return Err(absent("ExecSync", container));
        }
        Ok(state.execs.pop_front().unwrap_or_default())
    }

    async fn exec(&self, request: &ExecRequest) -> Result<String> {
        self.enter("Exec", &request.container_id).await?;
        Ok(format!("http://127.0.0.1:1/exec/{}", request.container_id))
    }

    async fn attach(&self, request: &AttachRequest) -> Result<String> {
        self.enter("Attach", &request.container_id).await?;
        Ok(format!("http://127.0.0.1:1/attach/{}", request.container_id))
    }

    async fn port_forward(&self, sandbox: &str, _: &[u16]) -> Result<String> {
        self.enter("PortForward", sandbox).await?;
        Ok(format!("http://127.0.0.1:1/portforward/{sandbox}"))
    }

    async fn container_stats(&self, id: &str) -> Result<ContainerStats> {
        self.state
            .lock()
            .stats
            .get(id)
            .cloned()
            .ok_or_else(|| absent("ContainerStats", id))
    }

    async fn list_container_stats(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStats>> {
        let state = self.state.lock();
        let matching = state
            .stats
            .values()
            .filter(|stats| filter.id.as_ref().is_none_or(|id| *id == stats.id));
        Ok(matching.cloned().collect())
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        Ok(self.state.lock().images.clone())
    }

    async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        let state = self.state.lock();
        let full = crate::oci::full_name(image);
        let known = |candidate: &&Image| {
            candidate.id == image
                || candidate.repo_digests.iter().any(|name| name == image)
                || candidate
                    .repo_tags
                    .iter()
                    .any(|name| name == image || crate::oci::full_name(name) == full)
        };
        Ok(state.images.iter().find(known).cloned())
    }

    async fn pull_image(&self, image: &str, _: Option<&PullAuth>, _: Option<&SandboxConfig>) -> Result<String> {
        self.enter("PullImage", image).await?;
        if !self.state.lock().pullable.iter().any(|name| name == image) {
            return Err(absent("PullImage", image));
        }
        if self.image_status(image).await?.is_none() {
            self.add_image(image);
        }
        Ok(crate::oci::digest(image.as_bytes()))
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        self.enter("RemoveImage", image).await?;
        self.state
            .lock()
            .images
            .retain(|present| present.id != image && !present.repo_tags.iter().any(|tag| tag == image));
        Ok(())
    }

    async fn free_removed(&self) -> Result<()> {
        self.enter("FreeRemoved", "").await
    }

    async fn image_fs_info(&self) -> Result<Vec<FilesystemUsage>> {
        Ok(vec![FilesystemUsage {
            mountpoint: "/".into(),
            timestamp: Timestamp::now(),
            ..Default::default()
        }])
    }

    fn events(&self) -> BoxStream<'static, Notice> {
        let events = BroadcastStream::new(self.events.subscribe()).map(|event| match event {
            Ok(event) => Notice::Event(event),
            // Events were lost, so the consumer must look for itself: as after a reconnection.
            Err(_) => Notice::Connected,
        });
        futures::stream::iter([Notice::Connected]).chain(events).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_container_lives_and_dies() {
        let runtime = FakeRuntime::new();
        runtime.add_image("busybox:1");
        let mut events = runtime.events();
        assert_eq!(events.next().await, Some(Notice::Connected));
        let sandbox_config = SandboxConfig::default();
        let sandbox = runtime.run_sandbox(&sandbox_config, "").await.unwrap();
        let config = ContainerConfig {
            image: "busybox:1".into(),
            ..Default::default()
        };
        let id = runtime
            .create_container(&sandbox, &config, &sandbox_config)
            .await
            .unwrap();
        runtime.start_container(&id).await.unwrap();
        runtime.exit_container(&id, 3);
        let status = runtime.container_status(&id).await.unwrap();
        assert_eq!((status.state, status.exit_code), (ContainerState::Exited, 3));
        assert!(matches!(
            events.next().await,
            Some(Notice::Event(Event {
                kind: EventKind::Started { .. },
                ..
            }))
        ));
        assert!(matches!(
            events.next().await,
            Some(Notice::Event(Event {
                kind: EventKind::Exited { .. },
                ..
            }))
        ));
        runtime.remove_sandbox(&sandbox).await.unwrap();
        assert!(runtime.container_status(&id).await.unwrap_err().is_not_found());
    }

    #[tokio::test]
    async fn failures_are_scripted() {
        let runtime = FakeRuntime::new();
        runtime.fail_next("RunPodSandbox", "no network");
        let error = runtime.run_sandbox(&SandboxConfig::default(), "").await.unwrap_err();
        assert!(error.to_string().contains("no network"));
        runtime.run_sandbox(&SandboxConfig::default(), "").await.unwrap();
    }
}
