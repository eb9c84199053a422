//! The real runtime: CRI v1 over a unix socket.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use tonic::transport::Channel;

use crate::channel::{Caller, MAX_MESSAGE, absent_is_fine, connect, socket_path};
use crate::containerd;
use crate::convert::image_spec;
use crate::error::{Error, Result};
use crate::events::{self, Notice};
use crate::protocols::runtime::v1 as wire;
use crate::protocols::runtime::v1::image_service_client::ImageServiceClient;
use crate::protocols::runtime::v1::runtime_service_client::RuntimeServiceClient;
use crate::runtime::Runtime;
use crate::settings;
use crate::types::{
    AttachRequest, CgroupDriver, Container, ContainerConfig, ContainerFilter, ContainerStats, ContainerStatus,
    ExecOutput, ExecRequest, FilesystemUsage, Image, LinuxResources, PullAuth, RuntimeSettings, RuntimeStatus,
    RuntimeVersion, Sandbox, SandboxConfig, SandboxFilter, SandboxStatus,
};

/// Upstream's `runtimeRequestTimeout`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// A client of the runtime behind one socket. Cloning shares the connection, which is made at the first call and again
/// whenever it is lost.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    channel: Channel,
    caller: Caller,
    timeout: Duration,
}

impl Client {
    /// A client for `unix:///run/containerd/containerd.sock` or a bare path. Does not connect yet; needs a tokio runtime.
    #[must_use]
    pub fn new(endpoint: &str) -> Self {
        let socket = socket_path(endpoint);
        let caller = Caller {
            endpoint: format!("unix://{}", socket.display()),
        };
        Self {
            channel: connect(&socket),
            socket,
            caller,
            timeout: REQUEST_TIMEOUT,
        }
    }

    /// Replaces the two minutes that an ordinary call may take.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Waits until the runtime answers and says that it can run containers (its network may come later), as after its start.
    ///
    /// # Errors
    /// The last failure, when `limit` is over.
    pub async fn wait_until_ready(&self, limit: Duration) -> Result<RuntimeStatus> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let status = self.status().await;
            let ready = |status: &RuntimeStatus| status.runtime_ready().is_some_and(|condition| condition.status);
            if status.as_ref().is_ok_and(ready) || tokio::time::Instant::now() >= deadline {
                return status;
            }
            // A socket that nobody serves yet gives nothing to wait on.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }
}

/// What to call a sandbox before it has an id.
fn pod_name(config: &SandboxConfig) -> String {
    format!("{}/{}", config.metadata.namespace, config.metadata.name)
}

/// CRI counts whole seconds; a fraction must not become "at once".
fn whole_seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).unwrap_or(i64::MAX)
}

// === impl Runtime for Client ===

#[async_trait]
impl Runtime for Client {
    async fn version(&self) -> Result<RuntimeVersion> {
        let request = wire::VersionRequest {
            version: "0.1.0".into(),
        };
        let mut runtime = self.runtime();
        let answer = self
            .caller
            .call("Version", "", Some(self.timeout), runtime.version(request))
            .await?;
        Ok(RuntimeVersion {
            name: answer.runtime_name,
            version: answer.runtime_version,
            api_version: answer.runtime_api_version,
        })
    }

    async fn status(&self) -> Result<RuntimeStatus> {
        let request = wire::StatusRequest::default();
        let mut runtime = self.runtime();
        let answer = self
            .caller
            .call("Status", "", Some(self.timeout), runtime.status(request))
            .await?;
        let mut status = RuntimeStatus::from(answer.status.unwrap_or_default());
        status.handlers = answer.runtime_handlers.into_iter().map(Into::into).collect();
        status.supplemental_groups_policy = answer.features.map(|features| features.supplemental_groups_policy);
        Ok(status)
    }

    async fn settings(&self) -> Result<RuntimeSettings> {
        let mut runtime = self.runtime();
        let request = wire::StatusRequest { verbose: true };
        let call = self
            .caller
            .call("Status", "", Some(self.timeout), runtime.status(request));
        let told = call.await?.info;
        let mut settings = told
            .get("config")
            .map_or_else(RuntimeSettings::default, |text| settings::read(text));
        let request = wire::RuntimeConfigRequest {};
        let call = runtime.runtime_config(request);
        match self.caller.call("RuntimeConfig", "", Some(self.timeout), call).await {
            Ok(answer) => {
                if let Some(linux) = answer.linux {
                    settings.cgroup_driver = Some(match linux.cgroup_driver() {
                        wire::CgroupDriver::Systemd => CgroupDriver::Systemd,
                        wire::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
                    });
                }
            }
            // containerd before 2.0: what its configuration says stands.
            Err(Error::Unimplemented { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(settings)
    }

    async fn run_sandbox(&self, config: &SandboxConfig, handler: &str) -> Result<String> {
        let request = wire::RunPodSandboxRequest {
            config: Some(config.into()),
            runtime_handler: handler.to_owned(),
        };
        // It may pull the pause image and run CNI plugins: upstream gives it twice the time, too.
        let limit = Some(self.timeout * 2);
        let mut runtime = self.runtime();
        let call = runtime.run_pod_sandbox(request);
        Ok(self
            .caller
            .call("RunPodSandbox", &pod_name(config), limit, call)
            .await?
            .pod_sandbox_id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let stop = async || {
            let request = wire::StopPodSandboxRequest {
                pod_sandbox_id: id.to_owned(),
            };
            let mut runtime = self.runtime();
            let stopped = runtime.stop_pod_sandbox(request);
            let call = self.caller.call("StopPodSandbox", id, Some(self.timeout), stopped);
            absent_is_fine(call.await.map(drop))
        };
        match stop().await {
            Err(_) if containerd::remove_garbled_cni_results(id) > 0 => stop().await,
            stopped => stopped,
        }
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let request = wire::RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let mut runtime = self.runtime();
        let call = self.caller.call(
            "RemovePodSandbox",
            id,
            Some(self.timeout),
            runtime.remove_pod_sandbox(request),
        );
        absent_is_fine(call.await.map(drop))
    }

    async fn sandbox_status(&self, id: &str) -> Result<SandboxStatus> {
        let request = wire::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: false,
        };
        let mut runtime = self.runtime();
        let call = self.caller.call(
            "PodSandboxStatus",
            id,
            Some(self.timeout),
            runtime.pod_sandbox_status(request),
        );
        Ok(call.await?.status.unwrap_or_default().into())
    }

    async fn list_sandboxes(&self, filter: &SandboxFilter) -> Result<Vec<Sandbox>> {
        let request = wire::ListPodSandboxRequest {
            filter: Some(filter.into()),
        };
        let mut runtime = self.runtime();
        let call = self.caller.call(
            "ListPodSandbox",
            "",
            Some(self.timeout),
            runtime.list_pod_sandbox(request),
        );
        Ok(call.await?.items.into_iter().map(Into::into).collect())
    }

    async fn create_container(
        &self,
        sandbox: &str,
        config: &ContainerConfig,
        sandbox_config: &SandboxConfig,
    ) -> Result<String> {
        let request = wire::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config.into()),
            sandbox_config: Some(sandbox_config.into()),
        };
        let object = format!("{}/{}", pod_name(sandbox_config), config.metadata.name);
        let mut runtime = self.runtime();
        let call = self.caller.call(
            "CreateContainer",
            &object,
            Some(self.timeout),
            runtime.create_container(request),
        );
        Ok(call.await?.container_id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let request = wire::StartContainerRequest {
            container_id: id.to_owned(),
        };
        let mut runtime = self.runtime();
        let call = self.caller.call(
            "StartContainer",
            id,
            Some(self.timeout),
            runtime.start_container(request),
        );
        call.await.map(drop)
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let request = wire::StopContainerRequest {
            container_id: id.to_owned(),
            timeout: whole_seconds(grace),
        };
        let limit = Some(self.timeout + grace);
        let mut runtime = self.runtime();
        let call = self
            .caller
            .call("StopContainer", id, limit, runtime.stop_container(request));
        absent_is_fine(call.await.map(drop))
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        let request = wire::RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        let mut runtime = self.runtime();
        let call = self.caller.call(
            "RemoveContainer",
            id,
            Some(self.timeout),
            runtime.remove_container(request),
        );
        absent_is_fine(call.await.map(drop))
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        let request = wire::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let mut runtime = self.runtime();
        let call = self.caller.call(
            "ContainerStatus",
            id,
            Some(self.timeout),
            runtime.container_status(request),
        );
        Ok(call.await?.status.unwrap_or_default().into())
    }

    async fn list_containers(&self, filter: &ContainerFilter) -> Result<Vec<Container>> {
        let request = wire::ListContainersRequest {
            filter: Some(filter.into()),
        };
        let mut runtime = self.runtime();
        let call = self.caller.call(
            "ListContainers",
            "",
            Some(self.timeout),
            runtime.list_containers(request),
        );
        Ok(call.await?.containers.into_iter().map(Into::into).collect())
    }

    async fn update_container_resources(&self, id: &str, resources: &LinuxResources) -> Result<()> {
        let request = wire::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(resources.into()),
        };
        let mut runtime = self.runtime();
        let call = runtime.update_container_resources(request);
        self.caller
            .call("UpdateContainerResources", id, Some(self.timeout), call)
            .await
            .map(drop)
    }

    async fn reopen_container_log(&self, id: &str) -> Result<()> {
        let request = wire::ReopenContainerLogRequest {
            container_id: id.to_owned(),
        };
        let mut runtime = self.runtime();
        let call = runtime.reopen_container_log(request);
        self.caller
            .call("ReopenContainerLog", id, Some(self.timeout), call)
            .await
            .map(drop)
    }

    async fn exec_sync(&self, container: &str, command: &[String], timeout: Duration) -> Result<ExecOutput> {
        let request = wire::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.to_vec(),
            timeout: whole_seconds(timeout),
        };
        let limit = (!timeout.is_zero()).then(|| timeout + self.timeout);
        let mut runtime = self.runtime();
        let answer = self
            .caller
            .call("ExecSync", container, limit, runtime.exec_sync(request))
            .await?;
        Ok(ExecOutput {
            stdout: answer.stdout,
            stderr: answer.stderr,
            exit_code: answer.exit_code,
        })
    }

    async fn exec(&self, request: &ExecRequest) -> Result<String> {
        let id = &request.container_id;
        let mut runtime = self.runtime();
        let call = runtime.exec(wire::ExecRequest::from(request));
        Ok(self.caller.call("Exec", id, Some(self.timeout), call).await?.url)
    }

    async fn attach(&self, request: &AttachRequest) -> Result<String> {
        let id = &request.container_id;
        let mut runtime = self.runtime();
        let call = runtime.attach(wire::AttachRequest::from(request));
        Ok(self.caller.call("Attach", id, Some(self.timeout), call).await?.url)
    }

    async fn port_forward(&self, sandbox: &str, ports: &[u16]) -> Result<String> {
        let port = ports.iter().copied().map(i32::from).collect();
        let request = wire::PortForwardRequest {
            pod_sandbox_id: sandbox.to_owned(),
            port,
        };
        let mut runtime = self.runtime();
        let call = self.caller.call(
            "PortForward",
            sandbox,
            Some(self.timeout),
            runtime.port_forward(request),
        );
        Ok(call.await?.url)
    }

    async fn container_stats(&self, id: &str) -> Result<ContainerStats> {
        let request = wire::ContainerStatsRequest {
            container_id: id.to_owned(),
        };
        let mut runtime = self.runtime();
        let call = self.caller.call(
            "ContainerStats",
            id,
            Some(self.timeout),
            runtime.container_stats(request),
        );
        Ok(call.await?.stats.unwrap_or_default().into())
    }

    async fn list_container_stats(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStats>> {
        let request = wire::ListContainerStatsRequest {
            filter: Some(filter.into()),
        };
        let mut runtime = self.runtime();
        let call = runtime.list_container_stats(request);
        let answer = self
            .caller
            .call("ListContainerStats", "", Some(self.timeout), call)
            .await?;
        Ok(answer.stats.into_iter().map(Into::into).collect())
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        let request = wire::ListImagesRequest::default();
        let mut images = self.images();
        let answer = self
            .caller
            .call("ListImages", "", Some(self.timeout), images.list_images(request))
            .await?;
        Ok(answer.images.into_iter().map(Into::into).collect())
    }

    async fn pinned_images(&self) -> Result<Vec<String>> {
        crate::images::pinned(self).await
    }

    async fn free_removed(&self) -> Result<()> {
        crate::images::free_removed(self).await
    }

    async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        let request = wire::ImageStatusRequest {
            image: Some(image_spec(image)),
            verbose: false,
        };
        let mut images = self.images();
        let call = self
            .caller
            .call("ImageStatus", image, Some(self.timeout), images.image_status(request));
        match call.await {
            Ok(answer) => Ok(answer.image.map(Into::into)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn pull_image(
        &self,
        image: &str,
        auth: Option<&PullAuth>,
        sandbox: Option<&SandboxConfig>,
    ) -> Result<String> {
        let request = wire::PullImageRequest {
            image: Some(image_spec(image)),
            auth: auth.map(Into::into),
            sandbox_config: sandbox.map(Into::into),
        };
        // No limit: the runtime itself gives up when a pull makes no progress.
        let mut images = self.images();
        Ok(self
            .caller
            .call("PullImage", image, None, images.pull_image(request))
            .await?
            .image_ref)
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        let request = wire::RemoveImageRequest {
            image: Some(image_spec(image)),
        };
        let mut images = self.images();
        let call = self
            .caller
            .call("RemoveImage", image, Some(self.timeout), images.remove_image(request));
        absent_is_fine(call.await.map(drop))
    }

    async fn image_fs_info(&self) -> Result<Vec<FilesystemUsage>> {
        let request = wire::ImageFsInfoRequest {};
        let mut images = self.images();
        let call = self
            .caller
            .call("ImageFsInfo", "", Some(self.timeout), images.image_fs_info(request));
        Ok(call.await?.image_filesystems.into_iter().map(Into::into).collect())
    }

    fn events(&self) -> BoxStream<'static, Notice> {
        // A connection of its own: a stream that stalls must not hold calls back, nor the other way round.
        events::subscribe(connect(&self.socket), self.caller.clone()).boxed()
    }
}
