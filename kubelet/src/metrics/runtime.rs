//! The container runtime with a stopwatch: every call is counted and timed under upstream's name for it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use skiff_cri::events::Notice;
use skiff_cri::{
    AttachRequest, Container, ContainerConfig, ContainerFilter, ContainerStats, ContainerStatus, ExecOutput,
    ExecRequest, FilesystemUsage, Image, LinuxResources, PullAuth, Result, Runtime, RuntimeSettings, RuntimeStatus,
    RuntimeVersion, Sandbox, SandboxConfig, SandboxFilter, SandboxStatus,
};
use tokio::time::Instant;

use super::Measures;

/// A runtime whose calls are measured.
pub(crate) struct Measured {
    inner: Arc<dyn Runtime>,
    measures: Arc<Measures>,
}

impl Measured {
    pub(crate) fn new(inner: Arc<dyn Runtime>, measures: Arc<Measures>) -> Self {
        Self { inner, measures }
    }

    async fn time<T>(&self, operation: &'static str, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let begun = Instant::now();
        let answer = call.await;
        self.measures.operated(operation, begun.elapsed(), answer.is_err());
        answer
    }
}

#[async_trait]
impl Runtime for Measured {
    async fn version(&self) -> Result<RuntimeVersion> {
        self.time("version", self.inner.version()).await
    }

    async fn status(&self) -> Result<RuntimeStatus> {
        self.time("status", self.inner.status()).await
    }

    async fn settings(&self) -> Result<RuntimeSettings> {
        self.time("runtime_config", self.inner.settings()).await
    }

    async fn run_sandbox(&self, config: &SandboxConfig, handler: &str) -> Result<String> {
        let begun = Instant::now();
        let answer = self
            .time("run_podsandbox", self.inner.run_sandbox(config, handler))
            .await;
        self.measures.sandbox_run(handler, begun.elapsed(), answer.is_err());
        answer
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        self.time("stop_podsandbox", self.inner.stop_sandbox(id)).await
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.time("remove_podsandbox", self.inner.remove_sandbox(id)).await
    }

    async fn sandbox_status(&self, id: &str) -> Result<SandboxStatus> {
        self.time("podsandbox_status", self.inner.sandbox_status(id)).await
    }

    async fn list_sandboxes(&self, filter: &SandboxFilter) -> Result<Vec<Sandbox>> {
        self.time("list_podsandbox", self.inner.list_sandboxes(filter)).await
    }

    async fn create_container(
        &self,
        sandbox: &str,
        config: &ContainerConfig,
        sandbox_config: &SandboxConfig,
    ) -> Result<String> {
        let call = self.inner.create_container(sandbox, config, sandbox_config);
        self.time("create_container", call).await
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        self.time("start_container", self.inner.start_container(id)).await
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        self.time("stop_container", self.inner.stop_container(id, grace)).await
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.time("remove_container", self.inner.remove_container(id)).await
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        self.time("container_status", self.inner.container_status(id)).await
    }

    async fn list_containers(&self, filter: &ContainerFilter) -> Result<Vec<Container>> {
        self.time("list_containers", self.inner.list_containers(filter)).await
    }

    async fn update_container_resources(&self, id: &str, resources: &LinuxResources) -> Result<()> {
        let call = self.inner.update_container_resources(id, resources);
        self.time("update_container", call).await
    }

    async fn reopen_container_log(&self, id: &str) -> Result<()> {
        self.time("reopen_container_log", self.inner.reopen_container_log(id))
            .await
    }

    async fn exec_sync(&self, container: &str, command: &[String], timeout: Duration) -> Result<ExecOutput> {
        let call = self.inner.exec_sync(container, command, timeout);
        self.time("exec_sync", call).await
    }

    async fn exec(&self, request: &ExecRequest) -> Result<String> {
        self.time("exec", self.inner.exec(request)).await
    }

    async fn attach(&self, request: &AttachRequest) -> Result<String> {
        self.time("attach", self.inner.attach(request)).await
    }

    async fn port_forward(&self, sandbox: &str, ports: &[u16]) -> Result<String> {
        self.time("port_forward", self.inner.port_forward(sandbox, ports)).await
    }

    async fn container_stats(&self, id: &str) -> Result<ContainerStats> {
        self.time("container_stats", self.inner.container_stats(id)).await
    }

    async fn list_container_stats(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStats>> {
        self.time("list_container_stats", self.inner.list_container_stats(filter))
            .await
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        self.time("list_images", self.inner.list_images()).await
    }

    async fn pinned_images(&self) -> Result<Vec<String>> {
        self.inner.pinned_images().await
    }

    async fn free_removed(&self) -> Result<()> {
        self.inner.free_removed().await
    }

    async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        self.time("image_status", self.inner.image_status(image)).await
    }

    async fn pull_image(
        &self,
        image: &str,
        auth: Option<&PullAuth>,
        sandbox: Option<&SandboxConfig>,
    ) -> Result<String> {
        self.time("pull_image", self.inner.pull_image(image, auth, sandbox))
            .await
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        self.time("remove_image", self.inner.remove_image(image)).await
    }

    async fn image_fs_info(&self) -> Result<Vec<FilesystemUsage>> {
        self.time("image_fs_info", self.inner.image_fs_info()).await
    }

    fn events(&self) -> BoxStream<'static, Notice> {
        self.inner.events()
    }
}
