//! Making and starting one container.

use std::path::{Path, PathBuf};

use skiff_api::k8s_openapi::api::core::v1::{
    Container, Pod, PodSecurityContext, SeccompProfile, SecurityContext, VolumeMount,
};
use skiff_cri::{
    ContainerConfig, ContainerMetadata, ContainerSecurity, Image, Mount, MountPropagation, NamespaceMode,
    SecurityProfile, SelinuxOptions,
};

use super::{Context, Outcome, StartError, hooks, sandbox};
use crate::agent::Agent;
use crate::events::Severity;
use crate::images::ImageError;
use crate::memory::Doom;
use crate::observed::Sandbox;
use crate::pod::{self, Role};
use crate::volumes::make_dir;
use crate::{cgroups, env, hosts, labels};

/// Paths that the runtime's defaults hide and protect, unless procMount is Unmasked.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

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
    match starter.start().await {
        Ok(outcome) => outcome,
        Err(error) => {
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
        let ensure = agent.images.ensure(pod, (self.role, self.container), &agent.objects);
        let image = tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => return Ok(Outcome::Cancelled),
            image = ensure => image?,
        };
        let config = tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => return Ok(Outcome::Cancelled),
            config = self.config(&image) => config?,
        };
        let sandbox_config = sandbox::config(agent, pod, self.sandbox.attempt);
        let id = agent
            .runtime
            .create_container(&self.sandbox.id, &config, &sandbox_config)
            .await
            .map_err(|error| StartError::new("CreateContainerError", message(&error)))?;
        agent.ids.insert(&id, pod::uid(pod));
        self.event(
            Severity::Normal,
            "Created",
            format!("Created container: {}", self.container.name),
        );
        if self.context.cancel.is_cancelled() {
            return Ok(Outcome::Cancelled);
        }
        agent.runtime.start_container(&id).await.map_err(|error| StartError {
            ran: true,
            ..StartError::new("RunContainerError", message(&error))
        })?;
        self.event(
            Severity::Normal,
            "Started",
            format!("Started container {}", self.container.name),
        );
        let hook = self
            .container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.post_start.as_ref());
        let Some(hook) = hook else { return Ok(Outcome::Done) };
        let run = hooks::run(agent, pod, self.container, &id, self.sandbox.ips.first(), hook);
        let result = tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => return Ok(Outcome::Cancelled),
            result = run => result,
        };
        Ok(match result {
            Ok(()) => Outcome::Done,
            Err(error) => {
                let text = format!("PostStartHook failed: {error}");
                self.event(Severity::Warning, "FailedPostStartHook", text);
                let doom = Doom {
                    message: "FailedPostStartHook".into(),
                    grace: None,
                };
                Outcome::Doomed { id, doom }
            }
        })
    }

    fn event(&self, severity: Severity, reason: &'static str, message: String) {
        self.agent
            .events
            .container(self.pod, (self.role, &self.container.name), severity, reason, message);
    }

    async fn config(&self, image: &Image) -> Result<ContainerConfig, StartError> {
        let (agent, pod, container) = (self.agent, self.pod, self.container);
        let refuse = |message: String| StartError::new("CreateContainerConfigError", message);
        let facts = agent.facts(&self.sandbox.ips, pod::host_network(pod));
        let envs = env::environment(pod, container, &facts, &agent.objects, &agent.services)
            .await
            .map_err(|error| refuse(skiff_daemon::error_chain(&error)))?;
        let expand = |text: &String| {
            env::expand(text, |name| {
                envs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
            })
        };
        let command = container.command.iter().flatten().map(expand).collect();
        let args = container.args.iter().flatten().map(expand).collect();
        let mounts = self.mounts(&envs).map_err(refuse)?;
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
            annotations: labels::container_annotations(pod, container, self.attempt),
            log_path,
            stdin: container.stdin.unwrap_or(false),
            stdin_once: container.stdin_once.unwrap_or(false),
            tty: container.tty.unwrap_or(false),
            resources: cgroups::container_resources(pod, container, &agent.rules),
            security: self.security(image)?,
        })
    }

    fn mounts(&self, envs: &[(String, String)]) -> Result<Vec<Mount>, String> {
        let mut mounts = Vec::new();
        for mount in self.container.volume_mounts.iter().flatten() {
            mounts.push(self.volume_mount(mount, envs)?);
        }
        let has = |mounts: &[Mount], path: &str| mounts.iter().any(|mount| mount.container_path == path);
        if !has(&mounts, "/etc/hosts") {
            let file = self
                .hosts_file()
                .map_err(|error| format!("cannot write the pod's /etc/hosts: {error}"))?;
            mounts.push(bind("/etc/hosts", &file));
        }
        let path = self
            .container
            .termination_message_path
            .as_deref()
            .unwrap_or("/dev/termination-log");
        if !path.is_empty() && !has(&mounts, path) {
            let file = self
                .message_file()
                .map_err(|error| format!("cannot create the termination message file: {error}"))?;
            mounts.push(bind(path, &file));
        }
        Ok(mounts)
    }

    fn volume_mount(&self, mount: &VolumeMount, envs: &[(String, String)]) -> Result<Mount, String> {
        let volumes = pod::spec(self.pod).volumes.as_deref().unwrap_or_default();
        let volume = volumes.iter().find(|volume| volume.name == mount.name);
        let path = volume.and_then(|volume| self.agent.volumes.path(self.pod, volume));
        let base = path.ok_or_else(|| {
            format!(
                "cannot find volume {:?} to mount into container {:?}",
                mount.name, self.container.name
            )
        })?;
        let sub_path = match &mount.sub_path_expr {
            Some(expression) if !expression.is_empty() => Some(env::expand(expression, |name| {
                envs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
            })),
            _ => mount.sub_path.clone(),
        };
        let host_path = match sub_path.filter(|sub| !sub.is_empty()) {
            Some(sub) => resolve_below(&base, &sub)?,
            None => base,
        };
        Ok(Mount {
            container_path: absolute(&mount.mount_path),
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: mount.read_only.unwrap_or(false),
            selinux_relabel: false,
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => MountPropagation::HostToContainer,
                Some("Bidirectional") => MountPropagation::Bidirectional,
                _ => MountPropagation::Private,
            },
        })
    }

    fn hosts_file(&self) -> std::io::Result<PathBuf> {
        let path = self.agent.volumes.pod_dir(pod::uid(self.pod)).join("etc-hosts");
        let node = if pod::host_network(self.pod) {
            Some(std::fs::read_to_string("/etc/hosts")?)
        } else {
            None
        };
        let domain = &self.agent.config.kubelet.cluster_domain;
        let text = hosts::file(self.pod, &self.sandbox.ips, domain, node.as_deref());
        // Containers see the file by its inode: it is written in place.
        if std::fs::read_to_string(&path).is_ok_and(|known| known == text) {
            return Ok(path);
        }
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// A fresh file for each start, so that an old message is never taken for a new one.
    fn message_file(&self) -> std::io::Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = self
            .agent
            .volumes
            .pod_dir(pod::uid(self.pod))
            .join("containers")
            .join(&self.container.name);
        std::fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{:08x}", self.attempt));
        std::fs::write(&path, "")?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        Ok(path)
    }

    fn security(&self, image: &Image) -> Result<ContainerSecurity, StartError> {
        let empty = (PodSecurityContext::default(), SecurityContext::default());
        let of_pod = pod::spec(self.pod).security_context.as_ref().unwrap_or(&empty.0);
        let own = self.container.security_context.as_ref().unwrap_or(&empty.1);
        let privileged = own.privileged.unwrap_or(false);
        let user = own.run_as_user.or(of_pod.run_as_user);
        self.check_non_root(own.run_as_non_root.or(of_pod.run_as_non_root), user, image)?;
        let (mut run_as_user, mut username) = (user, String::new());
        if user.is_none() {
            if image.username.is_empty() {
                run_as_user = image.uid;
            } else {
                username.clone_from(&image.username);
            }
        }
        let capabilities = own.capabilities.as_ref();
        let unmasked = own.proc_mount.as_deref() == Some("Unmasked") || privileged;
        let list = |paths: &[&str]| -> Vec<String> {
            if unmasked {
                Vec::new()
            } else {
                paths.iter().map(|&path| path.to_owned()).collect()
            }
        };
        let mut namespaces = sandbox::namespaces(self.pod);
        if let Some(target) = self.target() {
            namespaces.pid = NamespaceMode::Target;
            namespaces.target = target;
        }
        let selinux = own.se_linux_options.as_ref().or(of_pod.se_linux_options.as_ref());
        Ok(ContainerSecurity {
            add_capabilities: capabilities.and_then(|c| c.add.clone()).unwrap_or_default(),
            drop_capabilities: capabilities.and_then(|c| c.drop.clone()).unwrap_or_default(),
            privileged,
            namespaces,
            selinux: selinux.map(|options| SelinuxOptions {
                user: options.user.clone().unwrap_or_default(),
                role: options.role.clone().unwrap_or_default(),
                kind: options.type_.clone().unwrap_or_default(),
                level: options.level.clone().unwrap_or_default(),
            }),
            run_as_user,
            run_as_group: own.run_as_group.or(of_pod.run_as_group),
            run_as_username: username,
            readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
            supplemental_groups: groups(of_pod),
            no_new_privs: own.allow_privilege_escalation == Some(false),
            masked_paths: list(MASKED),
            readonly_paths: list(READONLY),
            seccomp: Some(seccomp(
                self.agent,
                own.seccomp_profile.as_ref(),
                of_pod.seccomp_profile.as_ref(),
                privileged,
            )),
            apparmor: None,
        })
    }

    fn check_non_root(&self, required: Option<bool>, user: Option<i64>, image: &Image) -> Result<(), StartError> {
        if required != Some(true) {
            return Ok(());
        }
        let name = &self.container.name;
        let text = match (user, image.uid) {
            (Some(0), _) => format!(
                "container's runAsUser breaks non-root policy (pod: {:?}, container: {name})",
                pod::full_name(self.pod)
            ),
            (Some(_), _) => return Ok(()),
            (None, Some(uid)) if uid != 0 => return Ok(()),
            (None, _) if !image.username.is_empty() => format!(
                "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root (pod: {:?}, container: {name})",
                image.username,
                pod::full_name(self.pod)
            ),
            (None, _) => format!(
                "container has runAsNonRoot and image will run as root (pod: {:?}, container: {name})",
                pod::full_name(self.pod)
            ),
        };
        Err(StartError::new("CreateContainerConfigError", text))
    }

    /// The running container whose processes an ephemeral container is to see.
    fn target(&self) -> Option<String> {
        if self.role != Role::Ephemeral {
            return None;
        }
        let spec = pod::ephemeral_containers(self.pod)
            .iter()
            .find(|spec| spec.name == self.container.name)?;
        let name = spec.target_container_name.as_deref().filter(|name| !name.is_empty())?;
        self.context
            .observed
            .latest(name)
            .filter(|container| container.is_running())
            .map(|found| found.id.clone())
    }
}

impl From<ImageError> for StartError {
    fn from(error: ImageError) -> Self {
        Self {
            reason: error.reason,
            message: error.message,
            pull: error.pull,
            ran: false,
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

fn bind(container_path: &str, host_path: &Path) -> Mount {
    Mount {
        container_path: container_path.into(),
        host_path: host_path.to_string_lossy().into_owned(),
        ..Mount::default()
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}

/// A path inside a volume that no symbolic link leads out of; directories that are missing are made.
fn resolve_below(base: &Path, sub: &str) -> Result<PathBuf, String> {
    use rustix::fs::{Mode, OFlags, ResolveFlags};
    let sub = Path::new(sub);
    if !sub
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_)))
    {
        return Err(format!("invalid subPath {sub:?}: must be relative and without \"..\""));
    }
    let failed = |error: rustix::io::Errno| format!("failed to prepare subPath {sub:?} of volume {base:?}: {error}");
    let root =
        rustix::fs::open(base, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let open = |path: &Path| {
        rustix::fs::openat2(
            &root,
            path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH,
        )
    };
    if open(sub).is_err() {
        let mut made = PathBuf::new();
        for part in sub.components() {
            let parent = if made.as_os_str().is_empty() {
                open(Path::new("."))
            } else {
                open(&made)
            }
            .map_err(failed)?;
            match rustix::fs::mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(0o750)) {
                Err(error) if error != rustix::io::Errno::EXIST => return Err(failed(error)),
                _ => made.push(part),
            }
        }
    }
    open(sub).map_err(failed)?;
    // The resolved path is handed over as a path: containerd takes nothing else. What a container of the pod may swap in
    // the moment between is confined by resolving links here first.
    let resolved = base
        .join(sub)
        .canonicalize()
        .map_err(|error| format!("failed to resolve subPath {sub:?}: {error}"))?;
    let root = base
        .canonicalize()
        .map_err(|error| format!("failed to resolve volume {base:?}: {error}"))?;
    if resolved.starts_with(root) {
        Ok(resolved)
    } else {
        Err(format!("subPath {sub:?} leads out of its volume"))
    }
}

/// fsGroup and supplementalGroups.
pub(super) fn groups(context: &PodSecurityContext) -> Vec<i64> {
    context
        .fs_group
        .into_iter()
        .chain(context.supplemental_groups.iter().flatten().copied())
        .collect()
}

/// The container's profile, the pod's, or none.
pub(super) fn seccomp(
    agent: &Agent,
    own: Option<&SeccompProfile>,
    of_pod: Option<&SeccompProfile>,
    privileged: bool,
) -> SecurityProfile {
    let Some(profile) = own.or(of_pod).filter(|_| !privileged) else {
        return SecurityProfile::Unconfined;
    };
    match profile.type_.as_str() {
        "RuntimeDefault" => SecurityProfile::RuntimeDefault,
        "Localhost" => {
            let name = profile.localhost_profile.as_deref().unwrap_or_default();
            let path = agent.config.flags.root_dir.join("seccomp").join(name);
            SecurityProfile::Localhost(path.to_string_lossy().into_owned())
        }
        _ => SecurityProfile::Unconfined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_paths_stay_in_their_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(volume.join("file"), "").unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("file", volume.join("in")).unwrap();
        assert_eq!(resolve_below(&volume, "file").unwrap(), volume.join("file"));
        assert_eq!(resolve_below(&volume, "new/dir").unwrap(), volume.join("new/dir"));
        assert!(volume.join("new/dir").is_dir());
        assert_eq!(resolve_below(&volume, "in").unwrap(), volume.join("file"));
        for bad in ["out", "out/passwd", "../volume", "/etc", "a/../b"] {
            assert!(resolve_below(&volume, bad).is_err(), "{bad}");
        }
    }
}
