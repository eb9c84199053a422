//! CRI v1 in plain Rust: the messages of [`Runtime`](crate::Runtime) without protobuf's optional wrappers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;

/// Name and version of the runtime, as in `node.status.nodeInfo.containerRuntimeVersion` (`containerd://1.6.20`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeVersion {
    /// `containerd`, `cri-o` ...
    pub name: String,
    /// The runtime's own version.
    pub version: String,
    /// CRI version, `v1`.
    pub api_version: String,
}

/// Who makes the cgroups of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// systemd, as slices and scopes.
    Systemd,
    /// Whoever needs them, as directories.
    Cgroupfs,
}

/// How the runtime is set up, as far as it tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeSettings {
    /// Who makes cgroups.
    pub cgroup_driver: Option<CgroupDriver>,
    /// The image of the pause process.
    pub sandbox_image: Option<String>,
    /// Where it looks for CNI configuration.
    pub cni_config_dir: Option<PathBuf>,
    /// Where it looks for CNI plugins.
    pub cni_plugin_dir: Option<PathBuf>,
}

/// Conditions of the runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeStatus {
    /// All conditions, `RuntimeReady` and `NetworkReady` among them.
    pub conditions: Vec<RuntimeCondition>,
    /// RuntimeClass handlers, where the runtime tells them.
    pub handlers: Vec<RuntimeHandler>,
    /// Whether it knows `supplementalGroupsPolicy`, and tells of containers' users; `None` where it tells no features.
    pub supplemental_groups_policy: Option<bool>,
}

/// A handler that a RuntimeClass may name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeHandler {
    /// Its name; empty for the default one.
    pub name: String,
    /// Whether mounts can be read-only all the way down.
    pub recursive_read_only_mounts: bool,
    /// Whether pods can have user namespaces.
    pub user_namespaces: bool,
}

impl RuntimeStatus {
    /// The condition that says whether containers can run.
    #[must_use]
    pub fn runtime_ready(&self) -> Option<&RuntimeCondition> {
        self.condition("RuntimeReady")
    }

    /// The condition that says whether pods can get a network (a CNI configuration is there).
    #[must_use]
    pub fn network_ready(&self) -> Option<&RuntimeCondition> {
        self.condition("NetworkReady")
    }

    fn condition(&self, kind: &str) -> Option<&RuntimeCondition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }
}

/// One condition of the runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeCondition {
    /// `RuntimeReady`, `NetworkReady`.
    pub kind: String,
    /// Whether it holds.
    pub status: bool,
    /// CamelCase reason when it does not.
    pub reason: String,
    /// Text for people.
    pub message: String,
}

/// Which namespace a container shares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NamespaceMode {
    /// The pod's.
    #[default]
    Pod,
    /// The container's own.
    Container,
    /// The node's.
    Node,
    /// Another container's, by [`NamespaceOptions::target`].
    Target,
}

/// Namespaces of a sandbox or a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceOptions {
    /// Network: the pod's or the node's.
    pub network: NamespaceMode,
    /// Process ids: a container's own unless the pod shares one.
    pub pid: NamespaceMode,
    /// Inter-process communication.
    pub ipc: NamespaceMode,
    /// Container id for [`NamespaceMode::Target`].
    pub target: String,
}

/// A seccomp or AppArmor profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SecurityProfile {
    /// The runtime's default profile.
    #[default]
    RuntimeDefault,
    /// No confinement.
    Unconfined,
    /// A profile on the node: absolute path (seccomp) or loaded name (AppArmor).
    Localhost(String),
}

/// SELinux label parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelinuxOptions {
    /// User part.
    pub user: String,
    /// Role part.
    pub role: String,
    /// Type part.
    pub kind: String,
    /// Level part.
    pub level: String,
}

/// Security settings of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxSecurity {
    /// Namespaces that the sandbox makes or shares.
    pub namespaces: NamespaceOptions,
    /// SELinux label.
    pub selinux: Option<SelinuxOptions>,
    /// User of the pause process.
    pub run_as_user: Option<i64>,
    /// Group of the pause process.
    pub run_as_group: Option<i64>,
    /// More groups.
    pub supplemental_groups: Vec<i64>,
    /// Whether the image's own groups of the user are left out.
    pub strict_groups: bool,
    /// Read-only root file system.
    pub readonly_rootfs: bool,
    /// Whether privileged containers may run in this sandbox.
    pub privileged: bool,
    /// Seccomp profile; `None` leaves the choice to the runtime.
    pub seccomp: Option<SecurityProfile>,
}

/// Who a sandbox is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SandboxMetadata {
    /// Pod name.
    pub name: String,
    /// Pod UID.
    pub uid: String,
    /// Pod namespace.
    pub namespace: String,
    /// Counts the sandboxes of one pod.
    pub attempt: u32,
}

/// Resolver settings of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsConfig {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// `search` domains.
    pub searches: Vec<String>,
    /// `options`.
    pub options: Vec<String>,
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A host port of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortMapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port in the pod.
    pub container_port: u16,
    /// Port on the node.
    pub host_port: u16,
    /// Address on the node, empty for all.
    pub host_ip: String,
}

/// All that a sandbox is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxConfig {
    /// Identity.
    pub metadata: SandboxMetadata,
    /// Host name inside; empty with the node's network.
    pub hostname: String,
    /// Directory on the node that holds the containers' logs.
    pub log_directory: String,
    /// Resolver settings; `None` keeps the node's.
    pub dns: Option<DnsConfig>,
    /// Host ports, given to the CNI plugins.
    pub port_mappings: Vec<PortMapping>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Parent cgroup of the pod: a path (cgroupfs) or a slice (systemd).
    pub cgroup_parent: String,
    /// Security settings.
    pub security: SandboxSecurity,
    /// Namespaced sysctls.
    pub sysctls: BTreeMap<String, String>,
    /// What the pod costs beside its containers, as its RuntimeClass says: runtimes with machines of their own size these by it.
    pub overhead: Option<LinuxResources>,
    /// What the containers get together.
    pub resources: Option<LinuxResources>,
}

/// Whether a sandbox works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SandboxState {
    /// Its pause process and network are up.
    Ready,
    /// It is gone or being taken down.
    #[default]
    NotReady,
}

/// One line of the list of sandboxes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// The runtime's id.
    pub id: String,
    /// Identity.
    pub metadata: SandboxMetadata,
    /// State.
    pub state: SandboxState,
    /// When it was made.
    pub created_at: Timestamp,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// RuntimeClass handler.
    pub runtime_handler: String,
}

/// State, addresses and namespaces of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxStatus {
    /// The runtime's id.
    pub id: String,
    /// Identity.
    pub metadata: SandboxMetadata,
    /// State.
    pub state: SandboxState,
    /// When it was made.
    pub created_at: Timestamp,
    /// Pod addresses, the primary first; empty with the node's network.
    pub ips: Vec<String>,
    /// Network namespace mode.
    pub namespaces: NamespaceOptions,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// RuntimeClass handler.
    pub runtime_handler: String,
}

/// Which sandboxes to list; empty fields match everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxFilter {
    /// Exact id, or a unique prefix of it.
    pub id: Option<String>,
    /// State.
    pub state: Option<SandboxState>,
    /// Labels that must all be there.
    pub labels: BTreeMap<String, String>,
}

/// Who a container is within its sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ContainerMetadata {
    /// Container name.
    pub name: String,
    /// Counts its restarts.
    pub attempt: u32,
}

/// How mounts made later travel between node and container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountPropagation {
    /// Not at all.
    #[default]
    Private,
    /// From the node to the container.
    HostToContainer,
    /// Both ways; needs privilege.
    Bidirectional,
}

/// A mount into a container: of a path on the node, or of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// Path inside.
    pub container_path: String,
    /// Path on the node; empty for an image.
    pub host_path: String,
    /// Read-only.
    pub readonly: bool,
    /// Whether the mounts below it are read-only, too.
    pub recursive_read_only: bool,
    /// Relabel for SELinux.
    pub selinux_relabel: bool,
    /// Propagation.
    pub propagation: MountPropagation,
    /// The image whose files are mounted, as the runtime knows it; empty for a path.
    pub image: String,
    /// A path inside the image.
    pub image_sub_path: String,
}

/// A device node in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Path inside.
    pub container_path: String,
    /// Path on the node.
    pub host_path: String,
    /// Letters of `rwm`.
    pub permissions: String,
}

/// cgroup limits; zero or empty means unset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinuxResources {
    /// CFS period in microseconds.
    pub cpu_period: i64,
    /// CFS quota in microseconds.
    pub cpu_quota: i64,
    /// Relative weight.
    pub cpu_shares: i64,
    /// Memory limit in bytes.
    pub memory_limit: i64,
    /// Memory and swap together, in bytes.
    pub memory_swap_limit: i64,
    /// `oom_score_adj` of the first process.
    pub oom_score_adj: i64,
    /// CPUs, such as `0-3`.
    pub cpuset_cpus: String,
    /// Memory nodes.
    pub cpuset_mems: String,
    /// Limits for each huge page size (`2MB`), in bytes.
    pub hugepages: BTreeMap<String, u64>,
    /// Further cgroup v2 files.
    pub unified: BTreeMap<String, String>,
}

/// Security settings of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerSecurity {
    /// Capabilities to add (`NET_ADMIN`, `ALL`).
    pub add_capabilities: Vec<String>,
    /// Capabilities to drop.
    pub drop_capabilities: Vec<String>,
    /// All devices, all capabilities, no confinement.
    pub privileged: bool,
    /// Namespaces to make or share.
    pub namespaces: NamespaceOptions,
    /// SELinux label.
    pub selinux: Option<SelinuxOptions>,
    /// User id; `None` takes the image's.
    pub run_as_user: Option<i64>,
    /// Group id; only with a user.
    pub run_as_group: Option<i64>,
    /// User name, where the image gives one and the pod gives none.
    pub run_as_username: String,
    /// Read-only root file system.
    pub readonly_rootfs: bool,
    /// More groups.
    pub supplemental_groups: Vec<i64>,
    /// Whether the image's own groups of the user are left out.
    pub strict_groups: bool,
    /// Forbid gaining privileges.
    pub no_new_privs: bool,
    /// Paths to hide.
    pub masked_paths: Vec<String>,
    /// Paths to make read-only.
    pub readonly_paths: Vec<String>,
    /// Seccomp profile; `None` leaves the choice to the runtime.
    pub seccomp: Option<SecurityProfile>,
    /// AppArmor profile.
    pub apparmor: Option<SecurityProfile>,
}

/// All that a container is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerConfig {
    /// Identity.
    pub metadata: ContainerMetadata,
    /// Image reference as the runtime knows it (what `image_status` or `pull_image` returned).
    pub image: String,
    /// Image as the pod's author wrote it.
    pub user_specified_image: String,
    /// Replaces the image's entry point when not empty.
    pub command: Vec<String>,
    /// Replaces the image's arguments when not empty.
    pub args: Vec<String>,
    /// Replaces the image's working directory when not empty.
    pub working_dir: String,
    /// Environment, in order.
    pub envs: Vec<(String, String)>,
    /// Bind mounts.
    pub mounts: Vec<Mount>,
    /// Device nodes.
    pub devices: Vec<Device>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Log file, relative to the sandbox's log directory.
    pub log_path: String,
    /// Keep standard input open.
    pub stdin: bool,
    /// Close standard input after the first attach ends.
    pub stdin_once: bool,
    /// Allocate a terminal.
    pub tty: bool,
    /// cgroup limits.
    pub resources: LinuxResources,
    /// Security settings.
    pub security: ContainerSecurity,
}

/// State of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Running.
    Running,
    /// Ended.
    Exited,
    /// The runtime cannot tell.
    #[default]
    Unknown,
}

/// One line of the list of containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// The runtime's id.
    pub id: String,
    /// Id of its sandbox.
    pub sandbox_id: String,
    /// Identity.
    pub metadata: ContainerMetadata,
    /// Image it was created with.
    pub image: String,
    /// Image by digest, where known.
    pub image_ref: String,
    /// State.
    pub state: ContainerState,
    /// When it was made.
    pub created_at: Timestamp,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// State and history of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerStatus {
    /// The runtime's id.
    pub id: String,
    /// Identity.
    pub metadata: ContainerMetadata,
    /// State.
    pub state: ContainerState,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it started, if it did.
    pub started_at: Option<Timestamp>,
    /// When it ended, if it did.
    pub finished_at: Option<Timestamp>,
    /// Exit code, once it has ended (128 + signal for a signal).
    pub exit_code: i32,
    /// Image it was created with.
    pub image: String,
    /// Image by digest, where known.
    pub image_ref: String,
    /// `OOMKilled`, `Completed`, `Error`, `StartError` ...
    pub reason: String,
    /// Text for people.
    pub message: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Bind mounts.
    pub mounts: Vec<Mount>,
    /// Absolute path of the log file.
    pub log_path: String,
    /// cgroup limits in force, where the runtime tells them.
    pub resources: Option<LinuxResources>,
    /// Who its first process was started as, where the runtime tells.
    pub user: Option<ContainerUser>,
}

/// User and groups of a container's first process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerUser {
    /// User id.
    pub uid: i64,
    /// Primary group id.
    pub gid: i64,
    /// All its groups.
    pub supplemental_groups: Vec<i64>,
}

/// Which containers to list; empty fields match everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerFilter {
    /// Exact id, or a unique prefix of it.
    pub id: Option<String>,
    /// State.
    pub state: Option<ContainerState>,
    /// Sandbox.
    pub sandbox_id: Option<String>,
    /// Labels that must all be there.
    pub labels: BTreeMap<String, String>,
}

/// What a finished command left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Exit code.
    pub exit_code: i32,
}

/// A streaming exec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Container id.
    pub container_id: String,
    /// Command and arguments.
    pub command: Vec<String>,
    /// Allocate a terminal; excludes `stderr`.
    pub tty: bool,
    /// Stream standard input.
    pub stdin: bool,
    /// Stream standard output.
    pub stdout: bool,
    /// Stream standard error.
    pub stderr: bool,
}

/// A streaming attach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachRequest {
    /// Container id.
    pub container_id: String,
    /// Whether the container has a terminal; excludes `stderr`.
    pub tty: bool,
    /// Stream standard input.
    pub stdin: bool,
    /// Stream standard output.
    pub stdout: bool,
    /// Stream standard error.
    pub stderr: bool,
}

/// Resource usage of a container at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerStats {
    /// Container id.
    pub id: String,
    /// Identity.
    pub metadata: ContainerMetadata,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When it was measured.
    pub timestamp: Timestamp,
    /// CPU time since start, in nanoseconds.
    pub cpu_usage_core_nanoseconds: u64,
    /// Memory that cannot be reclaimed, in bytes.
    pub memory_working_set_bytes: u64,
    /// All memory charged, in bytes; zero where the runtime does not tell.
    pub memory_usage_bytes: u64,
    /// Resident anonymous memory, in bytes; zero where the runtime does not tell.
    pub memory_rss_bytes: u64,
    /// Bytes in the writable layer.
    pub writable_layer_bytes: u64,
    /// Inodes in the writable layer.
    pub writable_layer_inodes: u64,
}

/// An image that the runtime has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Digest of its configuration.
    pub id: String,
    /// Names with tags.
    pub repo_tags: Vec<String>,
    /// Names with digests.
    pub repo_digests: Vec<String>,
    /// Size in bytes.
    pub size: u64,
    /// Numeric user that the image runs as.
    pub uid: Option<i64>,
    /// User name that the image runs as, when not numeric.
    pub username: String,
    /// Never to be collected.
    pub pinned: bool,
}

/// Credentials for a pull.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PullAuth {
    /// User.
    pub username: String,
    /// Password.
    pub password: String,
    /// Base64 of `user:password`, as in a Docker config.
    pub auth: String,
    /// Registry that they are for.
    pub server_address: String,
    /// OAuth refresh token.
    pub identity_token: String,
    /// Bearer token.
    pub registry_token: String,
}

/// Credentials must not reach logs at any verbosity.
impl std::fmt::Debug for PullAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullAuth")
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

/// Usage of one file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilesystemUsage {
    /// Where it is mounted.
    pub mountpoint: String,
    /// When it was measured.
    pub timestamp: Timestamp,
    /// Bytes used.
    pub used_bytes: u64,
    /// Inodes used.
    pub inodes_used: u64,
}
