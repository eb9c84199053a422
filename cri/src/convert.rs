//! Between our types and the wire's.

use jiff::Timestamp;

use crate::protocols::runtime::v1 as wire;
use crate::types::{
    AttachRequest, Container, ContainerConfig, ContainerFilter, ContainerMetadata, ContainerSecurity, ContainerState,
    ContainerStats, ContainerStatus, ContainerUser, Device, DnsConfig, ExecRequest, FilesystemUsage, Image,
    LinuxResources, Mount, MountPropagation, NamespaceMode, NamespaceOptions, PortMapping, Protocol, PullAuth,
    RuntimeCondition, RuntimeHandler, RuntimeStatus, Sandbox, SandboxConfig, SandboxFilter, SandboxMetadata,
    SandboxSecurity, SandboxState, SandboxStatus, SecurityProfile, SelinuxOptions,
};

// === to the wire ===

impl From<NamespaceMode> for wire::NamespaceMode {
    fn from(mode: NamespaceMode) -> Self {
        match mode {
            NamespaceMode::Pod => Self::Pod,
            NamespaceMode::Container => Self::Container,
            NamespaceMode::Node => Self::Node,
            NamespaceMode::Target => Self::Target,
        }
    }
}

impl From<&NamespaceOptions> for wire::NamespaceOption {
    fn from(from: &NamespaceOptions) -> Self {
        Self {
            network: wire::NamespaceMode::from(from.network).into(),
            pid: wire::NamespaceMode::from(from.pid).into(),
            ipc: wire::NamespaceMode::from(from.ipc).into(),
            target_id: from.target.clone(),
        }
    }
}

impl From<&SecurityProfile> for wire::SecurityProfile {
    fn from(from: &SecurityProfile) -> Self {
        use wire::security_profile::ProfileType;
        let (kind, localhost_ref) = match from {
            SecurityProfile::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
            SecurityProfile::Unconfined => (ProfileType::Unconfined, String::new()),
            SecurityProfile::Localhost(name) => (ProfileType::Localhost, name.clone()),
        };
        Self {
            profile_type: kind.into(),
            localhost_ref,
        }
    }
}

impl From<&SelinuxOptions> for wire::SeLinuxOption {
    fn from(from: &SelinuxOptions) -> Self {
        Self {
            user: from.user.clone(),
            role: from.role.clone(),
            r#type: from.kind.clone(),
            level: from.level.clone(),
        }
    }
}

impl From<&SandboxMetadata> for wire::PodSandboxMetadata {
    fn from(from: &SandboxMetadata) -> Self {
        Self {
            name: from.name.clone(),
            uid: from.uid.clone(),
            namespace: from.namespace.clone(),
            attempt: from.attempt,
        }
    }
}

impl From<&SandboxSecurity> for wire::LinuxSandboxSecurityContext {
    fn from(from: &SandboxSecurity) -> Self {
        Self {
            namespace_options: Some((&from.namespaces).into()),
            selinux_options: from.selinux.as_ref().map(Into::into),
            run_as_user: from.run_as_user.map(int64),
            run_as_group: from.run_as_group.map(int64),
            readonly_rootfs: from.readonly_rootfs,
            supplemental_groups: from.supplemental_groups.clone(),
            supplemental_groups_policy: groups_policy(from.strict_groups),
            privileged: from.privileged,
            seccomp: from.seccomp.as_ref().map(Into::into),
        }
    }
}

impl From<&DnsConfig> for wire::DnsConfig {
    fn from(from: &DnsConfig) -> Self {
        Self {
            servers: from.servers.clone(),
            searches: from.searches.clone(),
            options: from.options.clone(),
        }
    }
}

impl From<&PortMapping> for wire::PortMapping {
    fn from(from: &PortMapping) -> Self {
        let protocol = match from.protocol {
            Protocol::Tcp => wire::Protocol::Tcp,
            Protocol::Udp => wire::Protocol::Udp,
            Protocol::Sctp => wire::Protocol::Sctp,
        };
        Self {
            protocol: protocol.into(),
            container_port: from.container_port.into(),
            host_port: from.host_port.into(),
            host_ip: from.host_ip.clone(),
        }
    }
}

impl From<&SandboxConfig> for wire::PodSandboxConfig {
    fn from(from: &SandboxConfig) -> Self {
        Self {
            metadata: Some((&from.metadata).into()),
            hostname: from.hostname.clone(),
            log_directory: from.log_directory.clone(),
            dns_config: from.dns.as_ref().map(Into::into),
            port_mappings: from.port_mappings.iter().map(Into::into).collect(),
            labels: from.labels.clone(),
            annotations: from.annotations.clone(),
            linux: Some(wire::LinuxPodSandboxConfig {
                cgroup_parent: from.cgroup_parent.clone(),
                security_context: Some((&from.security).into()),
                sysctls: from.sysctls.clone(),
                overhead: from.overhead.as_ref().map(Into::into),
                resources: from.resources.as_ref().map(Into::into),
            }),
        }
    }
}

impl From<&SandboxFilter> for wire::PodSandboxFilter {
    fn from(from: &SandboxFilter) -> Self {
        Self {
            id: from.id.clone().unwrap_or_default(),
            state: from.state.map(|state| wire::PodSandboxStateValue {
                state: match state {
                    SandboxState::Ready => wire::PodSandboxState::SandboxReady.into(),
                    SandboxState::NotReady => wire::PodSandboxState::SandboxNotready.into(),
                },
            }),
            label_selector: from.labels.clone(),
        }
    }
}

impl From<&Mount> for wire::Mount {
    fn from(from: &Mount) -> Self {
        let propagation = match from.propagation {
            MountPropagation::Private => wire::MountPropagation::PropagationPrivate,
            MountPropagation::HostToContainer => wire::MountPropagation::PropagationHostToContainer,
            MountPropagation::Bidirectional => wire::MountPropagation::PropagationBidirectional,
        };
        Self {
            container_path: from.container_path.clone(),
            host_path: from.host_path.clone(),
            readonly: from.readonly,
            selinux_relabel: from.selinux_relabel,
            propagation: propagation.into(),
            recursive_read_only: from.recursive_read_only,
            image: (!from.image.is_empty()).then(|| image_spec(&from.image)),
            image_sub_path: from.image_sub_path.clone(),
        }
    }
}

impl From<&Device> for wire::Device {
    fn from(from: &Device) -> Self {
        Self {
            container_path: from.container_path.clone(),
            host_path: from.host_path.clone(),
            permissions: from.permissions.clone(),
        }
    }
}

impl From<&LinuxResources> for wire::LinuxContainerResources {
    fn from(from: &LinuxResources) -> Self {
        let hugepage = |(size, limit): (&String, &u64)| wire::HugepageLimit {
            page_size: size.clone(),
            limit: *limit,
        };
        Self {
            cpu_period: from.cpu_period,
            cpu_quota: from.cpu_quota,
            cpu_shares: from.cpu_shares,
            memory_limit_in_bytes: from.memory_limit,
            memory_swap_limit_in_bytes: from.memory_swap_limit,
            oom_score_adj: from.oom_score_adj,
            cpuset_cpus: from.cpuset_cpus.clone(),
            cpuset_mems: from.cpuset_mems.clone(),
            hugepage_limits: from.hugepages.iter().map(hugepage).collect(),
            unified: from.unified.clone(),
        }
    }
}

impl From<&ContainerSecurity> for wire::LinuxContainerSecurityContext {
    fn from(from: &ContainerSecurity) -> Self {
        Self {
            capabilities: Some(wire::Capability {
                add_capabilities: from.add_capabilities.clone(),
                drop_capabilities: from.drop_capabilities.clone(),
            }),
            privileged: from.privileged,
            namespace_options: Some((&from.namespaces).into()),
            selinux_options: from.selinux.as_ref().map(Into::into),
            run_as_user: from.run_as_user.map(int64),
            run_as_group: from.run_as_group.map(int64),
            run_as_username: from.run_as_username.clone(),
            readonly_rootfs: from.readonly_rootfs,
            supplemental_groups: from.supplemental_groups.clone(),
            supplemental_groups_policy: groups_policy(from.strict_groups),
            no_new_privs: from.no_new_privs,
            masked_paths: from.masked_paths.clone(),
            readonly_paths: from.readonly_paths.clone(),
            seccomp: from.seccomp.as_ref().map(Into::into),
            apparmor: from.apparmor.as_ref().map(Into::into),
        }
    }
}

impl From<&ContainerConfig> for wire::ContainerConfig {
    fn from(from: &ContainerConfig) -> Self {
        let env = |(key, value): &(String, String)| wire::KeyValue {
            key: key.clone(),
            value: value.clone().into(),
        };
        Self {
            metadata: Some(wire::ContainerMetadata {
                name: from.metadata.name.clone(),
                attempt: from.metadata.attempt,
            }),
            image: Some(wire::ImageSpec {
                image: from.image.clone(),
                user_specified_image: from.user_specified_image.clone(),
                ..Default::default()
            }),
            command: from.command.clone(),
            args: from.args.clone(),
            working_dir: from.working_dir.clone(),
            envs: from.envs.iter().map(env).collect(),
            mounts: from.mounts.iter().map(Into::into).collect(),
            devices: from.devices.iter().map(Into::into).collect(),
            labels: from.labels.clone(),
            annotations: from.annotations.clone(),
            log_path: from.log_path.clone(),
            stdin: from.stdin,
            stdin_once: from.stdin_once,
            tty: from.tty,
            linux: Some(wire::LinuxContainerConfig {
                resources: Some((&from.resources).into()),
                security_context: Some((&from.security).into()),
            }),
        }
    }
}

impl From<&ContainerFilter> for wire::ContainerFilter {
    fn from(from: &ContainerFilter) -> Self {
        Self {
            id: from.id.clone().unwrap_or_default(),
            state: from.state.map(|state| wire::ContainerStateValue {
                state: match state {
                    ContainerState::Created => wire::ContainerState::ContainerCreated.into(),
                    ContainerState::Running => wire::ContainerState::ContainerRunning.into(),
                    ContainerState::Exited => wire::ContainerState::ContainerExited.into(),
                    ContainerState::Unknown => wire::ContainerState::ContainerUnknown.into(),
                },
            }),
            pod_sandbox_id: from.sandbox_id.clone().unwrap_or_default(),
            label_selector: from.labels.clone(),
        }
    }
}

impl From<&ContainerFilter> for wire::ContainerStatsFilter {
    fn from(from: &ContainerFilter) -> Self {
        Self {
            id: from.id.clone().unwrap_or_default(),
            pod_sandbox_id: from.sandbox_id.clone().unwrap_or_default(),
            label_selector: from.labels.clone(),
        }
    }
}

impl From<&ExecRequest> for wire::ExecRequest {
    fn from(from: &ExecRequest) -> Self {
        Self {
            container_id: from.container_id.clone(),
            cmd: from.command.clone(),
            tty: from.tty,
            stdin: from.stdin,
            stdout: from.stdout,
            stderr: from.stderr,
        }
    }
}

impl From<&AttachRequest> for wire::AttachRequest {
    fn from(from: &AttachRequest) -> Self {
        Self {
            container_id: from.container_id.clone(),
            tty: from.tty,
            stdin: from.stdin,
            stdout: from.stdout,
            stderr: from.stderr,
        }
    }
}

impl From<&PullAuth> for wire::AuthConfig {
    fn from(from: &PullAuth) -> Self {
        Self {
            username: from.username.clone(),
            password: from.password.clone(),
            auth: from.auth.clone(),
            server_address: from.server_address.clone(),
            identity_token: from.identity_token.clone(),
            registry_token: from.registry_token.clone(),
        }
    }
}

pub(crate) fn image_spec(image: &str) -> wire::ImageSpec {
    wire::ImageSpec {
        image: image.to_owned(),
        ..Default::default()
    }
}

fn int64(value: i64) -> wire::Int64Value {
    wire::Int64Value { value }
}

// === from the wire ===

/// Nanoseconds since 1970; what no clock shows becomes 1970.
fn timestamp(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or_default()
}

/// The wire says "not yet" with zero.
fn reached(nanoseconds: i64) -> Option<Timestamp> {
    (nanoseconds > 0).then(|| timestamp(nanoseconds))
}

fn unsigned(value: Option<wire::UInt64Value>) -> u64 {
    value.map_or(0, |value| value.value)
}

impl From<wire::RuntimeStatus> for RuntimeStatus {
    fn from(from: wire::RuntimeStatus) -> Self {
        let condition = |condition: wire::RuntimeCondition| RuntimeCondition {
            kind: condition.r#type,
            status: condition.status,
            reason: condition.reason,
            message: condition.message,
        };
        Self {
            conditions: from.conditions.into_iter().map(condition).collect(),
            handlers: Vec::new(),
            supplemental_groups_policy: None,
        }
    }
}

impl From<wire::RuntimeHandler> for RuntimeHandler {
    fn from(from: wire::RuntimeHandler) -> Self {
        let features = from.features.unwrap_or_default();
        Self {
            name: from.name,
            recursive_read_only_mounts: features.recursive_read_only_mounts,
            user_namespaces: features.user_namespaces,
        }
    }
}

impl From<wire::LinuxContainerUser> for ContainerUser {
    fn from(from: wire::LinuxContainerUser) -> Self {
        Self {
            uid: from.uid,
            gid: from.gid,
            supplemental_groups: from.supplemental_groups,
        }
    }
}

fn groups_policy(strict: bool) -> i32 {
    let policy = if strict {
        wire::SupplementalGroupsPolicy::Strict
    } else {
        wire::SupplementalGroupsPolicy::Merge
    };
    policy.into()
}

impl From<wire::PodSandboxMetadata> for SandboxMetadata {
    fn from(from: wire::PodSandboxMetadata) -> Self {
        Self {
            name: from.name,
            uid: from.uid,
            namespace: from.namespace,
            attempt: from.attempt,
        }
    }
}

impl From<wire::PodSandboxState> for SandboxState {
    fn from(from: wire::PodSandboxState) -> Self {
        match from {
            wire::PodSandboxState::SandboxReady => Self::Ready,
            wire::PodSandboxState::SandboxNotready => Self::NotReady,
        }
    }
}

impl From<wire::PodSandbox> for Sandbox {
    fn from(from: wire::PodSandbox) -> Self {
        Self {
            state: from.state().into(),
            id: from.id,
            metadata: from.metadata.unwrap_or_default().into(),
            created_at: timestamp(from.created_at),
            labels: from.labels,
            annotations: from.annotations,
            runtime_handler: from.runtime_handler,
        }
    }
}

impl From<wire::NamespaceOption> for NamespaceOptions {
    fn from(from: wire::NamespaceOption) -> Self {
        let mode = |mode| match mode {
            wire::NamespaceMode::Pod => NamespaceMode::Pod,
            wire::NamespaceMode::Container => NamespaceMode::Container,
            wire::NamespaceMode::Node => NamespaceMode::Node,
            wire::NamespaceMode::Target => NamespaceMode::Target,
        };
        Self {
            network: mode(from.network()),
            pid: mode(from.pid()),
            ipc: mode(from.ipc()),
            target: from.target_id,
        }
    }
}

impl From<wire::PodSandboxStatus> for SandboxStatus {
    fn from(from: wire::PodSandboxStatus) -> Self {
        let network = from.network.clone().unwrap_or_default();
        let further = network.additional_ips.into_iter().map(|further| further.ip);
        let options = from
            .linux
            .clone()
            .and_then(|linux| linux.namespaces)
            .and_then(|namespaces| namespaces.options);
        Self {
            state: from.state().into(),
            ips: std::iter::once(network.ip)
                .chain(further)
                .filter(|ip| !ip.is_empty())
                .collect(),
            namespaces: options.unwrap_or_default().into(),
            id: from.id,
            metadata: from.metadata.unwrap_or_default().into(),
            created_at: timestamp(from.created_at),
            labels: from.labels,
            annotations: from.annotations,
            runtime_handler: from.runtime_handler,
        }
    }
}

impl From<wire::ContainerMetadata> for ContainerMetadata {
    fn from(from: wire::ContainerMetadata) -> Self {
        Self {
            name: from.name,
            attempt: from.attempt,
        }
    }
}

impl From<wire::ContainerState> for ContainerState {
    fn from(from: wire::ContainerState) -> Self {
        match from {
            wire::ContainerState::ContainerCreated => Self::Created,
            wire::ContainerState::ContainerRunning => Self::Running,
            wire::ContainerState::ContainerExited => Self::Exited,
            wire::ContainerState::ContainerUnknown => Self::Unknown,
        }
    }
}

impl From<wire::Container> for Container {
    fn from(from: wire::Container) -> Self {
        Self {
            state: from.state().into(),
            id: from.id,
            sandbox_id: from.pod_sandbox_id,
            metadata: from.metadata.unwrap_or_default().into(),
            image: from.image.unwrap_or_default().image,
            image_ref: from.image_ref,
            created_at: timestamp(from.created_at),
            labels: from.labels,
            annotations: from.annotations,
        }
    }
}

impl From<wire::Mount> for Mount {
    fn from(from: wire::Mount) -> Self {
        let propagation = match from.propagation() {
            wire::MountPropagation::PropagationPrivate => MountPropagation::Private,
            wire::MountPropagation::PropagationHostToContainer => MountPropagation::HostToContainer,
            wire::MountPropagation::PropagationBidirectional => MountPropagation::Bidirectional,
        };
        Self {
            container_path: from.container_path,
            host_path: from.host_path,
            readonly: from.readonly,
            selinux_relabel: from.selinux_relabel,
            propagation,
            recursive_read_only: from.recursive_read_only,
            image: from.image.unwrap_or_default().image,
            image_sub_path: from.image_sub_path,
        }
    }
}

impl From<wire::LinuxContainerResources> for LinuxResources {
    fn from(from: wire::LinuxContainerResources) -> Self {
        Self {
            cpu_period: from.cpu_period,
            cpu_quota: from.cpu_quota,
            cpu_shares: from.cpu_shares,
            memory_limit: from.memory_limit_in_bytes,
            memory_swap_limit: from.memory_swap_limit_in_bytes,
            oom_score_adj: from.oom_score_adj,
            cpuset_cpus: from.cpuset_cpus,
            cpuset_mems: from.cpuset_mems,
            hugepages: from
                .hugepage_limits
                .into_iter()
                .map(|page| (page.page_size, page.limit))
                .collect(),
            unified: from.unified,
        }
    }
}

impl From<wire::ContainerStatus> for ContainerStatus {
    fn from(from: wire::ContainerStatus) -> Self {
        Self {
            state: from.state().into(),
            id: from.id,
            metadata: from.metadata.unwrap_or_default().into(),
            created_at: timestamp(from.created_at),
            started_at: reached(from.started_at),
            finished_at: reached(from.finished_at),
            exit_code: from.exit_code,
            image: from.image.unwrap_or_default().image,
            image_ref: from.image_ref,
            reason: from.reason,
            message: from.message,
            labels: from.labels,
            annotations: from.annotations,
            mounts: from.mounts.into_iter().map(Into::into).collect(),
            log_path: from.log_path,
            resources: from.resources.and_then(|resources| resources.linux).map(Into::into),
            user: from.user.and_then(|user| user.linux).map(Into::into),
        }
    }
}

impl From<wire::ContainerStats> for ContainerStats {
    fn from(from: wire::ContainerStats) -> Self {
        let attributes = from.attributes.unwrap_or_default();
        let cpu = from.cpu.unwrap_or_default();
        let memory = from.memory.unwrap_or_default();
        let layer = from.writable_layer.unwrap_or_default();
        Self {
            id: attributes.id,
            metadata: attributes.metadata.unwrap_or_default().into(),
            labels: attributes.labels,
            timestamp: timestamp(cpu.timestamp),
            cpu_usage_core_nanoseconds: unsigned(cpu.usage_core_nano_seconds),
            memory_working_set_bytes: unsigned(memory.working_set_bytes),
            memory_usage_bytes: unsigned(memory.usage_bytes),
            memory_rss_bytes: unsigned(memory.rss_bytes),
            writable_layer_bytes: unsigned(layer.used_bytes),
            writable_layer_inodes: unsigned(layer.inodes_used),
        }
    }
}

impl From<wire::Image> for Image {
    fn from(from: wire::Image) -> Self {
        Self {
            id: from.id,
            repo_tags: from.repo_tags,
            repo_digests: from.repo_digests,
            size: from.size,
            uid: from.uid.map(|uid| uid.value),
            username: from.username,
            pinned: from.pinned,
        }
    }
}

impl From<wire::FilesystemUsage> for FilesystemUsage {
    fn from(from: wire::FilesystemUsage) -> Self {
        Self {
            mountpoint: from.fs_id.unwrap_or_default().mountpoint,
            timestamp: timestamp(from.timestamp),
            used_bytes: unsigned(from.used_bytes),
            inodes_used: unsigned(from.inodes_used),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_features_are_told_where_the_runtime_tells_them() {
        let user = |user| {
            ContainerStatus::from(wire::ContainerStatus {
                user,
                ..Default::default()
            })
            .user
        };
        assert_eq!(user(None), None);
        let linux = wire::LinuxContainerUser {
            uid: 1000,
            gid: 2000,
            supplemental_groups: vec![2000, 3000],
        };
        let told = user(Some(wire::ContainerUser { linux: Some(linux) })).unwrap();
        assert_eq!(
            (told.uid, told.gid, told.supplemental_groups),
            (1000, 2000, vec![2000, 3000])
        );
        let handler = RuntimeHandler::from(wire::RuntimeHandler {
            name: "runc".into(),
            features: Some(wire::RuntimeHandlerFeatures {
                recursive_read_only_mounts: true,
                user_namespaces: false,
            }),
        });
        assert!(handler.recursive_read_only_mounts && !handler.user_namespaces);
        for strict in [false, true] {
            let (container, sandbox) = (
                ContainerSecurity {
                    strict_groups: strict,
                    ..Default::default()
                },
                SandboxSecurity {
                    strict_groups: strict,
                    ..Default::default()
                },
            );
            assert_eq!(
                wire::LinuxContainerSecurityContext::from(&container).supplemental_groups_policy,
                i32::from(strict)
            );
            assert_eq!(
                wire::LinuxSandboxSecurityContext::from(&sandbox).supplemental_groups_policy,
                i32::from(strict)
            );
        }
    }

    #[test]
    fn mounts_there_and_back() {
        let path = Mount {
            container_path: "/c".into(),
            host_path: "/h".into(),
            readonly: true,
            recursive_read_only: true,
            ..Mount::default()
        };
        let image = Mount {
            container_path: "/c".into(),
            readonly: true,
            image: "sha256:1".into(),
            image_sub_path: "a/b".into(),
            ..Mount::default()
        };
        assert_eq!(wire::Mount::from(&path).image, None);
        for mount in [path, image] {
            assert_eq!(Mount::from(wire::Mount::from(&mount)), mount);
        }
    }

    #[test]
    fn zero_times_mean_not_yet() {
        let status = ContainerStatus::from(wire::ContainerStatus {
            started_at: 1_500_000_000,
            ..Default::default()
        });
        assert_eq!(status.started_at.unwrap().as_millisecond(), 1_500);
        assert_eq!(status.finished_at, None);
    }

    #[test]
    fn primary_address_comes_first_and_empty_ones_vanish() {
        let status = |ip: &str, more: &[&str]| {
            let more = more.iter().map(|ip| wire::PodIp { ip: (*ip).to_owned() }).collect();
            let network = wire::PodSandboxNetworkStatus {
                ip: ip.to_owned(),
                additional_ips: more,
            };
            SandboxStatus::from(wire::PodSandboxStatus {
                network: Some(network),
                ..Default::default()
            })
            .ips
        };
        assert_eq!(status("10.0.0.2", &["fd00::2"]), ["10.0.0.2", "fd00::2"]);
        assert!(status("", &[]).is_empty());
    }

    #[test]
    fn credentials_are_not_printed() {
        let auth = PullAuth {
            password: "hunter2".into(),
            server_address: "localhost:5000".into(),
            ..Default::default()
        };
        assert!(!format!("{auth:?}").contains("hunter2"));
    }
}
