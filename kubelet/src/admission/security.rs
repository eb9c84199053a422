//! What a pod may not ask of this host: sysctls that are not allowed, AppArmor where the kernel has none, what the runtime
//! cannot do. Left out silently, each would run a pod with less protection than it asked for.

use skiff_api::k8s_openapi::api::core::v1::{Pod, PodSecurityContext};

use super::Refusal;
use crate::pod;

/// Sysctls that are a pod's own and harm no other.
const SAFE: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// The beginnings of sysctls that a pod has its own of: of its network, and of its IPC.
const NAMESPACED: &[&str] = &["fs.mqueue.", "kernel.msg", "kernel.sem", "kernel.shm", "net."];

/// Whether a pod has its own of the sysctls that a pattern of `allowedUnsafeSysctls` stands for: others would be the whole node's.
pub(crate) fn is_namespaced(pattern: &str) -> bool {
    let pattern = dotted(pattern);
    let pattern = pattern.trim_end_matches('*');
    NAMESPACED.iter().any(|beginning| pattern.starts_with(beginning))
}

/// Both ways of writing a sysctl's name mean the same.
fn dotted(name: &str) -> String {
    name.replace('/', ".")
}

/// What this host offers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    /// Whether the kernel has AppArmor.
    pub(crate) apparmor: bool,
    /// `allowedUnsafeSysctls`: names, or beginnings with a `*`.
    pub(crate) unsafe_sysctls: Vec<String>,
    /// Whether the runtime knows `supplementalGroupsPolicy`.
    pub(crate) strict_groups: bool,
}

impl Host {
    /// Asks the kernel; what the runtime can do is given.
    pub(crate) fn read(unsafe_sysctls: Vec<String>, strict_groups: bool) -> Self {
        let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        Self {
            apparmor: enabled.is_ok_and(|text| text.trim() == "Y"),
            unsafe_sysctls: unsafe_sysctls.iter().map(|pattern| dotted(pattern)).collect(),
            strict_groups,
        }
    }

    fn allows(&self, sysctl: &str) -> bool {
        let named = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => sysctl.starts_with(beginning),
            None => pattern == sysctl,
        };
        SAFE.contains(&sysctl) || self.unsafe_sysctls.iter().any(named)
    }
}

pub(super) fn check(pod: &Pod, host: &Host) -> Result<(), Refusal> {
    sysctls(pod, host)?;
    if wants_apparmor(pod) && !host.apparmor {
        let why = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
        return Err(Refusal::new("AppArmor", why));
    }
    if pod::spec(pod).security_context.as_ref().is_some_and(strict_groups) && !host.strict_groups {
        return Err(Refusal::new(
            "SupplementalGroupsPolicyNotSupported",
            "SupplementalGroupsPolicy=Strict is not supported in this node",
        ));
    }
    if pod::spec(pod).host_users == Some(false) {
        return Err(Refusal::new(
            "UnexpectedAdmissionError",
            "user namespaces (hostUsers: false) are not supported by this node",
        ));
    }
    Ok(())
}

/// Whether a pod wants no groups but those that it names.
pub(crate) fn strict_groups(context: &PodSecurityContext) -> bool {
    context.supplemental_groups_policy.as_deref() == Some("Strict")
}

fn sysctls(pod: &Pod, host: &Host) -> Result<(), Refusal> {
    let spec = pod::spec(pod);
    let list = spec
        .security_context
        .iter()
        .flat_map(|context| context.sysctls.iter().flatten());
    for sysctl in list {
        let name = dotted(&sysctl.name);
        let forbid = |why: &str| {
            Err(Refusal::new(
                "SysctlForbidden",
                format!("forbidden sysctl: {name:?} {why}"),
            ))
        };
        if !host.allows(&name) {
            return forbid("not allowlisted");
        }
        let network = name.starts_with("net.");
        if network && spec.host_network == Some(true) {
            return forbid("not allowed with host net enabled");
        }
        if !network && spec.host_ipc == Some(true) {
            return forbid("not allowed with host ipc enabled");
        }
    }
    Ok(())
}

fn wants_apparmor(pod: &Pod) -> bool {
    let wanted = |kind: &str| kind != "Unconfined";
    let of_pod = pod::spec(pod).security_context.as_ref();
    let of_pod = of_pod.and_then(|context| context.app_armor_profile.as_ref());
    let annotations = pod.metadata.annotations.iter().flatten();
    of_pod.is_some_and(|profile| wanted(&profile.type_))
        || pod::containers(pod).any(|(_, container)| {
            let context = container.security_context.as_ref();
            let profile = context.and_then(|context| context.app_armor_profile.as_ref());
            profile.is_some_and(|profile| wanted(&profile.type_))
        })
        || annotations
            .filter(|(key, _)| key.starts_with("container.apparmor.security.beta.kubernetes.io/"))
            .any(|(_, value)| value != "unconfined")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn what_this_host_cannot_keep() {
        let host = Host {
            apparmor: false,
            unsafe_sysctls: vec!["net.core.*".into()],
            strict_groups: false,
        };
        let sysctl = |name: &str| json!({"securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        let with = |mut spec: Value, key: &str| {
            spec[key] = true.into();
            spec
        };
        let profile = |kind: &str| json!({"securityContext": {"appArmorProfile": {"type": kind}}});
        let cases = [
            (sysctl("net.ipv4.tcp_syncookies"), None),
            (sysctl("net/ipv4/tcp_syncookies"), None),
            (sysctl("net.core.somaxconn"), None),
            (
                sysctl("kernel.msgmax"),
                Some("forbidden sysctl: \"kernel.msgmax\" not allowlisted"),
            ),
            (
                with(sysctl("net.core.somaxconn"), "hostNetwork"),
                Some("forbidden sysctl: \"net.core.somaxconn\" not allowed with host net enabled"),
            ),
            (
                with(sysctl("kernel.shm_rmid_forced"), "hostIPC"),
                Some("forbidden sysctl: \"kernel.shm_rmid_forced\" not allowed with host ipc enabled"),
            ),
            (profile("Unconfined"), None),
            (
                profile("RuntimeDefault"),
                Some("Cannot enforce AppArmor: AppArmor is not enabled on the host"),
            ),
            (
                json!({"containers": [{"name": "c", "securityContext": {"appArmorProfile": {"type": "Localhost", "localhostProfile": "p"}}}]}),
                Some("Cannot enforce AppArmor: AppArmor is not enabled on the host"),
            ),
            (
                json!({"securityContext": {"supplementalGroupsPolicy": "Strict"}}),
                Some("SupplementalGroupsPolicy=Strict is not supported in this node"),
            ),
            (
                json!({"hostUsers": false}),
                Some("user namespaces (hostUsers: false) are not supported by this node"),
            ),
            (json!({"hostUsers": true}), None),
        ];
        for (spec, message) in cases {
            let found = check(&pod(&spec), &host).err().map(|refusal| refusal.message);
            assert_eq!(found.as_deref(), message, "{spec}");
        }
        let strict = pod(&json!({"securityContext": {"supplementalGroupsPolicy": "Strict"}}));
        let able = Host {
            strict_groups: true,
            ..host
        };
        assert_eq!(check(&strict, &able), Ok(()), "where the runtime can");
    }
}
