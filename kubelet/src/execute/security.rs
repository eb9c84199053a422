//! A container's user, capabilities, profiles and namespaces.

use std::path::Path;
use std::sync::LazyLock;

use skiff_api::k8s_openapi::api::core::v1::{
    Container, Pod, PodSecurityContext, SELinuxOptions, SeccompProfile, SecurityContext,
};
use skiff_cri::{ContainerSecurity, Image, NamespaceMode, SecurityProfile, SelinuxOptions};

use super::{StartError, sandbox};
use crate::admission;
use crate::agent::Agent;
use crate::observed::Observed;
use crate::pod::{self, Role};

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
/// What tells of each CPU's temperature, and so of what others do: hidden where this machine has it.
static THROTTLES: LazyLock<Vec<String>> = LazyLock::new(|| thermal_throttles(Path::new("/sys/devices/system/cpu")));
const READONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What a container's security settings come from.
pub(super) struct Subject<'a> {
    pub(super) agent: &'a Agent,
    pub(super) pod: &'a Pod,
    pub(super) role: Role,
    pub(super) container: &'a Container,
    pub(super) observed: &'a Observed,
}

impl Subject<'_> {
    /// The container's settings over the pod's.
    pub(super) fn security(&self, image: &Image) -> Result<ContainerSecurity, StartError> {
        let empty = (PodSecurityContext::default(), SecurityContext::default());
        let of_pod = pod::spec(self.pod).security_context.as_ref().unwrap_or(&empty.0);
        let own = self.container.security_context.as_ref().unwrap_or(&empty.1);
        let privileged = own.privileged.unwrap_or(false);
        let user = own.run_as_user.or(of_pod.run_as_user);
        self.check_non_root(own.run_as_non_root.or(of_pod.run_as_non_root), user, image)?;
        let (run_as_user, username) = run_as(user, image);
        let capabilities = own.capabilities.as_ref();
        let unmasked = own.proc_mount.as_deref() == Some("Unmasked") || privileged;
        let list = |paths: &[&str]| -> Vec<String> {
            let paths = paths.iter().filter(|_| !unmasked);
            paths.map(|&path| path.to_owned()).collect()
        };
        let throttles = THROTTLES.iter().filter(|_| !unmasked).cloned();
        let mut namespaces = sandbox::namespaces(self.pod);
        if let Some(target) = self.target() {
            namespaces.pid = NamespaceMode::Target;
            namespaces.target = target;
        }
        let label = own.se_linux_options.as_ref().or(of_pod.se_linux_options.as_ref());
        Ok(ContainerSecurity {
            add_capabilities: capabilities.and_then(|c| c.add.clone()).unwrap_or_default(),
            drop_capabilities: capabilities.and_then(|c| c.drop.clone()).unwrap_or_default(),
            privileged,
            namespaces,
            selinux: label.map(selinux),
            run_as_user,
            run_as_group: own.run_as_group.or(of_pod.run_as_group),
            run_as_username: username,
            readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
            supplemental_groups: groups(of_pod),
            strict_groups: admission::strict_groups(of_pod),
            no_new_privs: own.allow_privilege_escalation == Some(false),
            masked_paths: list(MASKED).into_iter().chain(throttles).collect(),
            readonly_paths: list(READONLY),
            seccomp: Some(
                seccomp(
                    self.agent,
                    own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref()),
                    privileged,
                )
                .map_err(|text| StartError::new("CreateContainerConfigError", text))?,
            ),
            // Only where the kernel has it: a pod that asks for a profile elsewhere is not admitted.
            apparmor: apparmor(self.pod, self.container, of_pod).filter(|_| self.agent.host.apparmor),
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
        self.observed
            .latest(name)
            .filter(|container| container.is_running())
            .map(|found| found.id.clone())
    }
}

/// User id or name: the pod's, or the image's. An image that names none runs as root, which is said: the runtime takes a group only
/// with a user.
fn run_as(asked: Option<i64>, image: &Image) -> (Option<i64>, String) {
    match asked {
        Some(_) => (asked, String::new()),
        None if image.username.is_empty() => (image.uid.or(Some(0)), String::new()),
        None => (None, image.username.clone()),
    }
}

/// The throttling counts below `/sys/devices/system/cpu`, of all CPUs that this machine may have.
fn thermal_throttles(cpus: &Path) -> Vec<String> {
    let possible = std::fs::read_to_string(cpus.join("possible")).unwrap_or_default();
    let ranges = possible.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?)
    });
    let paths = ranges
        .flatten()
        .map(|cpu| cpus.join(format!("cpu{cpu}/thermal_throttle")));
    paths
        .filter(|path| path.exists())
        .map(|path| path.to_string_lossy().into_owned())
        .collect()
}

/// The container's AppArmor profile, the one of its annotation as older clusters write it, or the pod's.
fn apparmor(pod: &Pod, container: &Container, of_pod: &PodSecurityContext) -> Option<SecurityProfile> {
    let own = container.security_context.as_ref();
    let profile = own.and_then(|own| own.app_armor_profile.as_ref());
    let key = format!("container.apparmor.security.beta.kubernetes.io/{}", container.name);
    if let (None, Some(value)) = (profile, pod::annotation(pod, &key)) {
        return Some(match value {
            "unconfined" => SecurityProfile::Unconfined,
            "runtime/default" => SecurityProfile::RuntimeDefault,
            name => SecurityProfile::Localhost(name.trim_start_matches("localhost/").to_owned()),
        });
    }
    let profile = profile.or(of_pod.app_armor_profile.as_ref())?;
    Some(match profile.type_.as_str() {
        "Unconfined" => SecurityProfile::Unconfined,
        "Localhost" => SecurityProfile::Localhost(profile.localhost_profile.clone().unwrap_or_default()),
        _ => SecurityProfile::RuntimeDefault,
    })
}

/// A label as the runtime takes it.
pub(super) fn selinux(label: &SELinuxOptions) -> SelinuxOptions {
    SelinuxOptions {
        user: label.user.clone().unwrap_or_default(),
        role: label.role.clone().unwrap_or_default(),
        kind: label.type_.clone().unwrap_or_default(),
        level: label.level.clone().unwrap_or_default(),
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

/// The profile that was asked for; without one, the node's default. What cannot be kept is an error, never less protection.
fn seccomp(agent: &Agent, profile: Option<&SeccompProfile>, privileged: bool) -> Result<SecurityProfile, String> {
    let default = &agent.config.kubelet.seccomp_default;
    match profile.map(|profile| profile.type_.as_str()) {
        // A privileged container has none, as upstream.
        _ if privileged => Ok(SecurityProfile::Unconfined),
        None if *default => Ok(SecurityProfile::RuntimeDefault),
        None | Some("Unconfined") => Ok(SecurityProfile::Unconfined),
        Some("RuntimeDefault") => Ok(SecurityProfile::RuntimeDefault),
        Some("Localhost") => {
            let name = profile.and_then(|profile| profile.localhost_profile.as_deref());
            let Some(name) = name.filter(|name| !name.is_empty()) else {
                return Err("localhostProfile must be set if seccompProfile type is Localhost.".into());
            };
            let inside = Path::new(name)
                .components()
                .all(|part| matches!(part, std::path::Component::Normal(_)));
            if !inside {
                return Err(format!(
                    "seccomp profile {name:?} must be a path below the kubelet's seccomp directory"
                ));
            }
            let path = agent.config.flags.root_dir.join("seccomp").join(name);
            Ok(SecurityProfile::Localhost(path.to_string_lossy().into_owned()))
        }
        Some(other) => Err(format!("unknown seccomp profile type {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn who_a_container_runs_as() {
        let image = |uid: Option<i64>, username: &str| Image {
            uid,
            username: username.into(),
            ..Image::default()
        };
        let cases = [
            (Some(5), image(Some(7), "nginx"), (Some(5), "")),
            (None, image(Some(7), ""), (Some(7), "")),
            (None, image(None, "nginx"), (None, "nginx")),
            (None, image(None, ""), (Some(0), "")),
        ];
        for (asked, image, (uid, name)) in cases {
            assert_eq!(run_as(asked, &image), (uid, name.to_owned()), "{asked:?} {image:?}");
        }
    }

    #[test]
    fn throttling_is_hidden_where_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert!(thermal_throttles(dir.path()).is_empty());
        for cpu in ["cpu0", "cpu2", "cpu3", "cpu5"] {
            std::fs::create_dir_all(dir.path().join(cpu).join("thermal_throttle")).unwrap();
        }
        let told = |possible: &str| {
            std::fs::write(dir.path().join("possible"), possible).unwrap();
            let paths = thermal_throttles(dir.path()).into_iter();
            let cpus = paths.map(|path| path.strip_prefix(dir.path().to_str().unwrap()).unwrap().to_owned());
            cpus.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            told("0-1,3,5-7\n"),
            "/cpu0/thermal_throttle /cpu3/thermal_throttle /cpu5/thermal_throttle"
        );
        assert_eq!(told("0\n"), "/cpu0/thermal_throttle");
    }

    #[test]
    fn apparmor_profiles() {
        let localhost = || SecurityProfile::Localhost("mine".into());
        let profile = |kind: &str| json!({"appArmorProfile": {"type": kind, "localhostProfile": "mine"}});
        let cases = [
            (Value::Null, Value::Null, None, None),
            (
                profile("Unconfined"),
                Value::Null,
                None,
                Some(SecurityProfile::Unconfined),
            ),
            (
                Value::Null,
                profile("RuntimeDefault"),
                None,
                Some(SecurityProfile::RuntimeDefault),
            ),
            (Value::Null, profile("Localhost"), None, Some(localhost())),
            (profile("Unconfined"), profile("Localhost"), None, Some(localhost())),
            (Value::Null, Value::Null, Some("localhost/mine"), Some(localhost())),
            (
                Value::Null,
                Value::Null,
                Some("runtime/default"),
                Some(SecurityProfile::RuntimeDefault),
            ),
            (
                profile("Localhost"),
                Value::Null,
                Some("unconfined"),
                Some(SecurityProfile::Unconfined),
            ),
            (
                Value::Null,
                profile("RuntimeDefault"),
                Some("unconfined"),
                Some(SecurityProfile::RuntimeDefault),
            ),
        ];
        for (of_pod, own, annotation, wanted) in cases {
            let mut p = crate::pod::tests::pod(&json!({"containers": [{"name": "c", "securityContext": own}]}));
            p.metadata.annotations = annotation.map(|value| {
                [(
                    "container.apparmor.security.beta.kubernetes.io/c".to_owned(),
                    value.to_owned(),
                )]
                .into()
            });
            let context: PodSecurityContext = serde_json::from_value(of_pod.clone()).unwrap_or_default();
            let container = &p.spec.as_ref().unwrap().containers[0];
            assert_eq!(
                apparmor(&p, container, &context),
                wanted,
                "{of_pod} {own} {annotation:?}"
            );
        }
    }
}
