//! Making and starting one container.

use skiff_api::k8s_openapi::api::core::v1::{Container, Pod};
use skiff_cri::{ContainerConfig, ContainerMetadata, Image};

use super::image_volumes::{self, ImageVolumes};
use super::{Context, Outcome, StartError, hooks, mounts, sandbox, security};
use crate::agent::Agent;
use crate::events::Severity;
use crate::hop;
use crate::images::ImageError;
use crate::memory::NOT_RUN;
use crate::observed::Sandbox;
use crate::pod::{self, Role};
use crate::volumes::make_dir;
use crate::{cgroups, env, labels};

/// Gets the image, makes the container, starts it and runs its postStart hook.
pub(super) async fn start(context: &Context, name: &str, attempt: u32) -> Outcome {
    let (agent, pod) = (&context.agent, &context.pod);
    let Some((role, container)) = pod::container(pod, name) else {
        return Outcome::Cancelled;
    };
    let Some(sandbox) = &context.sandbox else {
        return Outcome::Cancelled;
    };
    let starter = Starter {
        context,
        agent,
        pod,
        role,
        container: &container,
        sandbox,
        attempt,
    };
    let lives = &agent.measures.lives;
    lives.started(role, None);
    match starter.start().await {
        Ok(outcome) => outcome,
        Err(error) => {
            lives.started(role, Some(error.reason));
            let about_image = matches!(error.reason, "InvalidImageName" | "ImageInspectError");
            if !about_image {
                let text = if error.pull.is_some() {
                    error.reason.to_owned()
                } else {
                    error.message.clone()
                };
                let message = format!("Error: {text}");
                agent
                    .events
                    .container(pod, (role, name), Severity::Warning, "Failed", message);
            }
            Outcome::NotStarted(error)
        }
    }
}

struct Starter<'a> {
    context: &'a Context,
    agent: &'a Agent,
    pod: &'a Pod,
    role: Role,
    container: &'a Container,
    sandbox: &'a Sandbox,
    attempt: u32,
}

impl Starter<'_> {
    async fn start(&self) -> Result<Outcome, StartError> {
        let (agent, pod) = (self.agent, self.pod);
        let (image, volumes) = tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => return Ok(Outcome::Cancelled),
            images = self.images() => images?,
        };
        hop::container(pod, &self.container.name, "image there");
        let config = tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => return Ok(Outcome::Cancelled),
            config = self.config(&image, &volumes) => config?,
        };
        let sandbox_config = sandbox::config(agent, pod, self.sandbox.attempt)
            .map_err(|error| StartError::new("CreateContainerConfigError", error))?;
        let id = agent
            .runtime
            .create_container(&self.sandbox.id, &config, &sandbox_config)
            .await
            .map_err(|error| StartError::new("CreateContainerError", message(&error)))?;
        agent.ids.insert(&id, pod::uid(pod));
        hop::container(pod, &self.container.name, "container created");
        self.event(Severity::Normal, "Created", "Container created".into());
        if self.context.cancel.is_cancelled() {
            return Ok(Outcome::Cancelled);
        }
        let started = agent.runtime.start_container(&id).await;
        started.map_err(|error| StartError::new(NOT_RUN, message(&error)))?;
        hop::container(pod, &self.container.name, "container started");
        self.event(Severity::Normal, "Started", "Container started".into());
        let hook = self
            .container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.post_start.as_ref());
        let Some(hook) = hook else { return Ok(Outcome::Done) };
        let run = hooks::run(agent, pod, self.container, &id, self.sandbox.ips.first(), hook);
        let result = tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => None,
            result = run => Some(result),
        };
        Ok(match result {
            Some(Ok(())) => Outcome::Done,
            None => Outcome::HookFailed,
            Some(Err(error)) => {
                let name = &self.container.name;
                tracing::warn!(error, pod = pod::full_name(pod), name, "a postStart hook failed");
                // What a hook prints may be secret, and an event is read by many.
                let text = "PostStartHook failed".into();
                self.event(Severity::Warning, "FailedPostStartHook", text);
                Outcome::HookFailed
            }
        })
    }

    fn event(&self, severity: Severity, reason: &'static str, message: String) {
        self.agent
            .events
            .container(self.pod, (self.role, &self.container.name), severity, reason, message);
    }

    /// Its image, and those of the image volumes that it mounts.
    async fn images(&self) -> Result<(Image, ImageVolumes), StartError> {
        let (agent, who) = (self.agent, (self.role, self.container));
        let image = agent.images.ensure(self.pod, who, &agent.objects).await?;
        let volumes = image_volumes::ensure(agent, self.pod, who).await?;
        Ok((image, volumes))
    }

    /// Whether the sandbox's runtime can make mounts read-only all the way down.
    async fn has_recursive_mounts(&self) -> Result<bool, StartError> {
        let runtime = &self.agent.runtime;
        let answers = tokio::try_join!(runtime.status(), runtime.sandbox_status(&self.sandbox.id));
        let (status, sandbox) =
            answers.map_err(|error| StartError::new("CreateContainerConfigError", error.rpc_text()))?;
        let mut handlers = status.handlers.iter();
        let own = handlers.find(|handler| handler.name == sandbox.runtime_handler);
        Ok(own.is_some_and(|handler| handler.recursive_read_only_mounts))
    }

    async fn config(&self, image: &Image, volumes: &ImageVolumes) -> Result<ContainerConfig, StartError> {
        let (agent, pod, container) = (self.agent, self.pod, self.container);
        let refuse = |message: String| StartError::new("CreateContainerConfigError", message);
        let facts = agent.facts(&self.sandbox.ips, pod::host_network(pod));
        let envs = env::environment(
            pod,
            container,
            &facts,
            &agent.volumes,
            (&agent.objects, &agent.services),
        )
        .await
        .map_err(|error| refuse(skiff_daemon::error_chain(&error)))?;
        let expand = |text: &String| {
            env::expand(text, |name| {
                envs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
            })
        };
        let command = container.command.iter().flatten().map(expand).collect();
        let args = container.args.iter().flatten().map(expand).collect();
        let recursive = mounts::wants_recursive(container) && self.has_recursive_mounts().await?;
        let mounts = mounts::Subject {
            agent,
            pod,
            container,
            sandbox: self.sandbox,
            attempt: self.attempt,
            envs: &envs,
            recursive,
            images: volumes,
        };
        let mounts = mounts.mounts().map_err(refuse)?;
        let security = security::Subject {
            agent,
            pod,
            role: self.role,
            container,
            observed: &self.context.observed,
        };
        let mut annotations = labels::container_annotations(pod, container, self.attempt);
        if !volumes.is_empty() {
            let images: Vec<&str> = volumes.values().map(String::as_str).collect();
            annotations.insert(labels::IMAGE_VOLUMES.into(), images.join(","));
        }
        let log_path = format!("{}/{}.log", container.name, self.attempt);
        let log_dir = agent.log_dir(pod).join(&container.name);
        make_dir(&log_dir, 0o755).map_err(|error| refuse(skiff_daemon::error_chain(&error)))?;
        Ok(ContainerConfig {
            metadata: ContainerMetadata {
                name: container.name.clone(),
                attempt: self.attempt,
            },
            image: image.id.clone(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            command,
            args,
            working_dir: container.working_dir.clone().unwrap_or_default(),
            envs,
            mounts,
            devices: Vec::new(),
            labels: labels::container(pod, container),
            annotations,
            log_path,
            stdin: container.stdin.unwrap_or(false),
            stdin_once: container.stdin_once.unwrap_or(false),
            tty: container.tty.unwrap_or(false),
            resources: cgroups::container_resources(pod, container, &agent.rules),
            security: security.security(image)?,
        })
    }
}

impl From<ImageError> for StartError {
    fn from(error: ImageError) -> Self {
        Self {
            reason: error.reason,
            message: error.message,
            pull: error.pull,
        }
    }
}

/// The runtime's own words: upstream shows the gRPC message alone for create and start.
fn message(error: &skiff_cri::Error) -> String {
    match error {
        skiff_cri::Error::Failed { message, .. }
        | skiff_cri::Error::NotFound { message, .. }
        | skiff_cri::Error::AlreadyExists { message, .. } => message.clone(),
        other => other.rpc_text(),
    }
}
