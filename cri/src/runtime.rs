//! What the kubelet asks of a container runtime: one narrow trait, with the real client and a fake behind it.

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::error::Result;
use crate::events::Notice;
use crate::types::{
    AttachRequest, Container, ContainerConfig, ContainerFilter, ContainerStats, ContainerStatus, ExecOutput,
    ExecRequest, FilesystemUsage, Image, LinuxResources, PullAuth, RuntimeSettings, RuntimeStatus, RuntimeVersion,
    Sandbox, SandboxConfig, SandboxFilter, SandboxStatus,
};

/// A container runtime that speaks CRI v1.
///
/// Stopping or removing what is absent succeeds; every other call on an absent object is [`Error::NotFound`](crate::Error).
/// Every method may be retried. Dropping a future abandons the wait, not the work: the runtime may still finish it.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Name and version of the runtime.
    async fn version(&self) -> Result<RuntimeVersion>;
    /// Whether the runtime and its network are ready.
    async fn status(&self) -> Result<RuntimeStatus>;

    /// How the runtime is set up; a runtime that does not tell leaves everything open.
    async fn settings(&self) -> Result<RuntimeSettings> {
        Ok(RuntimeSettings::default())
    }

    /// Creates and starts a sandbox; returns its id. `handler` is the RuntimeClass handler, empty for the default.
    async fn run_sandbox(&self, config: &SandboxConfig, handler: &str) -> Result<String>;
    /// Stops a sandbox with its containers and takes its network down.
    async fn stop_sandbox(&self, id: &str) -> Result<()>;
    /// Removes a sandbox with its containers.
    async fn remove_sandbox(&self, id: &str) -> Result<()>;
    /// State, addresses and namespaces of one sandbox.
    async fn sandbox_status(&self, id: &str) -> Result<SandboxStatus>;
    /// Sandboxes that match `filter`, in no particular order.
    async fn list_sandboxes(&self, filter: &SandboxFilter) -> Result<Vec<Sandbox>>;

    /// Creates a container in a running sandbox; returns its id. `sandbox_config` is the one that made the sandbox.
    async fn create_container(
        &self,
        sandbox: &str,
        config: &ContainerConfig,
        sandbox_config: &SandboxConfig,
    ) -> Result<String>;
    /// Starts a created container.
    async fn start_container(&self, id: &str) -> Result<()>;
    /// Sends the stop signal, and SIGKILL after `grace`; returns when the container has exited.
    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()>;
    /// Removes a container, killing it if it still runs.
    async fn remove_container(&self, id: &str) -> Result<()>;
    /// State, exit code, mounts and log path of one container.
    async fn container_status(&self, id: &str) -> Result<ContainerStatus>;
    /// Containers that match `filter`, in no particular order.
    async fn list_containers(&self, filter: &ContainerFilter) -> Result<Vec<Container>>;
    /// Changes the cgroup limits of a container in place.
    async fn update_container_resources(&self, id: &str, resources: &LinuxResources) -> Result<()>;
    /// Tells the runtime that the container's log file was rotated away, so that it opens a new one.
    async fn reopen_container_log(&self, id: &str) -> Result<()>;

    /// Runs a command in a container and waits; [`Error::DeadlineExceeded`](crate::Error) when it takes longer than `timeout`
    /// (zero: no limit).
    async fn exec_sync(&self, container: &str, command: &[String], timeout: Duration) -> Result<ExecOutput>;
    /// Prepares a streaming exec; returns the URL of the runtime's streaming server.
    async fn exec(&self, request: &ExecRequest) -> Result<String>;
    /// Prepares a streaming attach; returns the URL of the runtime's streaming server.
    async fn attach(&self, request: &AttachRequest) -> Result<String>;
    /// Prepares port forwarding into a sandbox; returns the URL of the runtime's streaming server.
    async fn port_forward(&self, sandbox: &str, ports: &[u16]) -> Result<String>;

    /// Resource usage of one container.
    async fn container_stats(&self, id: &str) -> Result<ContainerStats>;
    /// Resource usage of the containers that match `filter` (its state is ignored).
    async fn list_container_stats(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStats>>;

    /// All images that the runtime knows.
    async fn list_images(&self) -> Result<Vec<Image>>;
    /// Names (with tag, with digest) and ids of images that are never to be removed, beside those whose [`Image::pinned`] says so:
    /// containerd 1.6 keeps the mark, but does not show it through CRI.
    async fn pinned_images(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
    /// One image by name, digest or id; `None` when it is not present.
    async fn image_status(&self, image: &str) -> Result<Option<Image>>;
    /// Pulls an image; returns the reference to use when creating a container.
    async fn pull_image(&self, image: &str, auth: Option<&PullAuth>, sandbox: Option<&SandboxConfig>)
    -> Result<String>;
    /// Removes an image with all its names.
    async fn remove_image(&self, image: &str) -> Result<()>;
    /// Gives the disk back what removed containers and images have held: containerd leaves it where it is until enough has been removed,
    /// or somebody waits for it.
    async fn free_removed(&self) -> Result<()> {
        Ok(())
    }
    /// Usage of the file systems that hold images.
    async fn image_fs_info(&self) -> Result<Vec<FilesystemUsage>>;

    /// What happens to containers, from now on, for as long as the stream is polled. It never ends: a lost connection is
    /// made again, and each (re)connection is reported as [`Notice::Connected`], which asks the consumer to relist.
    fn events(&self) -> BoxStream<'static, Notice>;
}
