//! `KubeletConfiguration` of `kubelet.config.k8s.io/v1beta1`, with upstream's names and defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Error, GoDuration};

/// The kubelet's configuration file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // the fields are upstream's, documented there under the same names
pub struct KubeletConfiguration {
    pub api_version: String,
    pub kind: String,
    pub enable_server: bool,
    pub static_pod_path: Option<PathBuf>,
    pub file_check_frequency: GoDuration,
    pub pod_logs_dir: PathBuf,
    pub address: String,
    pub port: i32,
    pub tls_cert_file: Option<PathBuf>,
    pub tls_private_key_file: Option<PathBuf>,
    pub tls_min_version: String,
    pub rotate_certificates: bool,
    #[serde(rename = "serverTLSBootstrap")]
    pub server_tls_bootstrap: bool,
    pub authentication: Authentication,
    pub authorization: Authorization,
    pub enable_debugging_handlers: bool,
    pub enable_system_log_handler: bool,
    pub healthz_port: i32,
    pub healthz_bind_address: String,
    pub cluster_domain: String,
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Vec<String>,
    pub node_status_update_frequency: GoDuration,
    pub node_status_report_frequency: GoDuration,
    pub node_lease_duration_seconds: i32,
    pub cgroup_root: String,
    pub cgroup_driver: String,
    pub runtime_request_timeout: GoDuration,
    pub allowed_unsafe_sysctls: Vec<String>,
    pub seccomp_default: bool,
    pub max_pods: i32,
    pub pods_per_core: i32,
    pub pod_pids_limit: i64,
    #[serde(rename = "resolvConf")]
    pub resolv_conf: Option<PathBuf>,
    #[serde(rename = "cpuCFSQuota")]
    pub cpu_cfs_quota: bool,
    #[serde(rename = "cpuCFSQuotaPeriod")]
    pub cpu_cfs_quota_period: GoDuration,
    pub node_status_max_images: i32,
    pub serialize_image_pulls: bool,
    pub max_parallel_image_pulls: Option<i32>,
    #[serde(rename = "singleProcessOOMKill", skip_serializing_if = "Option::is_none")]
    pub single_process_oom_kill: Option<bool>,
    #[serde(rename = "registryPullQPS")]
    pub registry_pull_qps: i32,
    pub registry_burst: i32,
    #[serde(rename = "imageMinimumGCAge")]
    pub image_minimum_gc_age: GoDuration,
    #[serde(rename = "imageMaximumGCAge")]
    pub image_maximum_gc_age: GoDuration,
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub image_gc_high_threshold_percent: i32,
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub image_gc_low_threshold_percent: i32,
    pub eviction_hard: BTreeMap<String, String>,
    pub eviction_soft: BTreeMap<String, String>,
    pub eviction_soft_grace_period: BTreeMap<String, GoDuration>,
    pub eviction_minimum_reclaim: BTreeMap<String, String>,
    pub eviction_pressure_transition_period: GoDuration,
    pub eviction_max_pod_grace_period: i32,
    pub merge_default_eviction_settings: bool,
    pub local_storage_capacity_isolation: bool,
    pub system_reserved: BTreeMap<String, String>,
    pub kube_reserved: BTreeMap<String, String>,
    pub system_reserved_cgroup: String,
    pub kube_reserved_cgroup: String,
    pub enforce_node_allocatable: Vec<String>,
    pub oom_score_adj: i32,
    pub fail_swap_on: bool,
    pub memory_swap: MemorySwap,
    pub container_log_max_size: String,
    pub container_log_max_files: i32,
    pub container_log_max_workers: i32,
    pub container_log_monitor_interval: GoDuration,
    pub register_with_taints: Vec<Taint>,
    pub register_node: bool,
    pub container_runtime_endpoint: String,
    #[serde(rename = "providerID", skip_serializing_if = "String::is_empty")]
    pub provider_id: String,
    /// Fields of upstream's that this kubelet knows by name only.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// A taint to register the node with.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Taint {
    pub key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    pub effect: String,
}

/// Who may speak to the kubelet's server.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Authentication {
    pub x509: X509,
    pub webhook: Webhook,
    pub anonymous: Anonymous,
}

/// How containers may swap on a machine that has swap.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct MemorySwap {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub swap_behavior: String,
}

/// Client certificates.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct X509 {
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: Option<PathBuf>,
}

/// Bearer tokens, asked of the API server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Webhook {
    pub enabled: bool,
    #[serde(rename = "cacheTTL")]
    pub cache_ttl: GoDuration,
}

/// Requests without credentials.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Anonymous {
    pub enabled: bool,
}

/// What those who may speak may do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Authorization {
    pub mode: String,
    pub webhook: WebhookAuthorization,
}

/// How long the API server's answers about rights hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct WebhookAuthorization {
    #[serde(rename = "cacheAuthorizedTTL")]
    pub cache_authorized_ttl: GoDuration,
    #[serde(rename = "cacheUnauthorizedTTL")]
    pub cache_unauthorized_ttl: GoDuration,
}

// === impl KubeletConfiguration ===

impl Default for KubeletConfiguration {
    fn default() -> Self {
        Self {
            api_version: "kubelet.config.k8s.io/v1beta1".into(),
            kind: "KubeletConfiguration".into(),
            enable_server: true,
            static_pod_path: None,
            file_check_frequency: GoDuration::seconds(20),
            pod_logs_dir: "/var/log/pods".into(),
            address: "0.0.0.0".into(),
            port: 10250,
            tls_cert_file: None,
            tls_private_key_file: None,
            tls_min_version: String::new(),
            rotate_certificates: false,
            server_tls_bootstrap: false,
            authentication: Authentication::default(),
            authorization: Authorization::default(),
            enable_debugging_handlers: true,
            enable_system_log_handler: true,
            healthz_port: 10248,
            healthz_bind_address: "127.0.0.1".into(),
            cluster_domain: String::new(),
            cluster_dns: Vec::new(),
            node_status_update_frequency: GoDuration::seconds(10),
            node_status_report_frequency: GoDuration::seconds(300),
            node_lease_duration_seconds: 40,
            cgroup_root: String::new(),
            cgroup_driver: "cgroupfs".into(),
            runtime_request_timeout: GoDuration::seconds(120),
            allowed_unsafe_sysctls: Vec::new(),
            seccomp_default: false,
            max_pods: 110,
            pods_per_core: 0,
            pod_pids_limit: -1,
            resolv_conf: Some("/etc/resolv.conf".into()),
            cpu_cfs_quota: true,
            cpu_cfs_quota_period: GoDuration(std::time::Duration::from_millis(100)),
            node_status_max_images: 50,
            serialize_image_pulls: true,
            max_parallel_image_pulls: None,
            single_process_oom_kill: None,
            registry_pull_qps: 5,
            registry_burst: 10,
            image_minimum_gc_age: GoDuration::seconds(120),
            image_maximum_gc_age: GoDuration::seconds(0),
            image_gc_high_threshold_percent: 85,
            image_gc_low_threshold_percent: 80,
            eviction_hard: eviction_hard(),
            eviction_soft: BTreeMap::new(),
            eviction_soft_grace_period: BTreeMap::new(),
            eviction_minimum_reclaim: BTreeMap::new(),
            eviction_pressure_transition_period: GoDuration::seconds(300),
            eviction_max_pod_grace_period: 0,
            merge_default_eviction_settings: false,
            local_storage_capacity_isolation: true,
            system_reserved: BTreeMap::new(),
            kube_reserved: BTreeMap::new(),
            system_reserved_cgroup: String::new(),
            kube_reserved_cgroup: String::new(),
            oom_score_adj: -999,
            enforce_node_allocatable: vec!["pods".into()],
            fail_swap_on: true,
            memory_swap: MemorySwap::default(),
            container_log_max_size: "10Mi".into(),
            container_log_max_files: 5,
            container_log_max_workers: 1,
            container_log_monitor_interval: GoDuration::seconds(10),
            register_with_taints: Vec::new(),
            register_node: true,
            container_runtime_endpoint: "unix:///run/containerd/containerd.sock".into(),
            provider_id: String::new(),
            other: BTreeMap::new(),
        }
    }
}

impl KubeletConfiguration {
    /// Refuses values that cannot work.
    pub fn validate(&self) -> Result<(), Error> {
        let invalid = |field, detail: String| Err(Error::Invalid { field, detail });
        for (field, number) in [
            ("maxPods (--max-pods)", self.max_pods),
            ("podsPerCore (--pods-per-core)", self.pods_per_core),
        ] {
            if number < 0 {
                return invalid(field, format!("{number} must not be a negative number"));
            }
        }
        if !(1..=65535).contains(&self.port) {
            return invalid(
                "port (--port)",
                format!("{} must be between 1 and 65535, inclusive", self.port),
            );
        }
        if !matches!(self.cgroup_driver.as_str(), "cgroupfs" | "systemd") {
            return invalid(
                "cgroupDriver",
                format!("{:?} must be \"cgroupfs\" or \"systemd\"", self.cgroup_driver),
            );
        }
        if !matches!(self.authorization.mode.as_str(), "Webhook" | "AlwaysAllow") {
            return invalid(
                "authorization.mode",
                format!("{:?} must be \"Webhook\" or \"AlwaysAllow\"", self.authorization.mode),
            );
        }
        if !self.container_runtime_endpoint.starts_with("unix://") {
            return invalid(
                "containerRuntimeEndpoint",
                format!(
                    "{:?} must be a unix:// URL of the runtime's socket",
                    self.container_runtime_endpoint
                ),
            );
        }
        if self.tls_cert_file.is_some() != self.tls_private_key_file.is_some() {
            return invalid(
                "tlsCertFile",
                "tlsCertFile and tlsPrivateKeyFile go together; set both".into(),
            );
        }
        super::checks::check(self)
    }

    /// What follows from other fields.
    pub(super) fn complete(&mut self) {
        if self.merge_default_eviction_settings {
            for (signal, threshold) in eviction_hard() {
                self.eviction_hard.entry(signal).or_insert(threshold);
            }
        }
    }
}

/// Upstream's hard thresholds.
fn eviction_hard() -> BTreeMap<String, String> {
    [
        ("memory.available", "100Mi"),
        ("nodefs.available", "10%"),
        ("nodefs.inodesFree", "5%"),
        ("imagefs.available", "15%"),
        ("imagefs.inodesFree", "5%"),
    ]
    .map(|(signal, threshold)| (signal.to_owned(), threshold.to_owned()))
    .into()
}

impl Default for Webhook {
    fn default() -> Self {
        Self {
            enabled: true,
            cache_ttl: GoDuration::seconds(120),
        }
    }
}

impl Default for Authorization {
    fn default() -> Self {
        Self {
            mode: "Webhook".into(),
            webhook: WebhookAuthorization::default(),
        }
    }
}

impl Default for WebhookAuthorization {
    fn default() -> Self {
        Self {
            cache_authorized_ttl: GoDuration::seconds(300),
            cache_unauthorized_ttl: GoDuration::seconds(30),
        }
    }
}

/// Fields that upstream's kubelet has and this one does not act on yet: they are accepted with a warning, so that a
/// configuration written for upstream is usable, while a misspelt name is still refused.
pub(super) fn known_elsewhere(field: &str) -> bool {
    const KNOWN: &[&str] = &[
        "cgroupsPerQOS",
        "configMapAndSecretChangeDetectionStrategy",
        "contentType",
        "cpuManagerPolicy",
        "cpuManagerPolicyOptions",
        "cpuManagerReconcilePeriod",
        "crashLoopBackOff",
        "enableContentionProfiling",
        "enableControllerAttachDetach",
        "enableDebugFlagsHandler",
        "enableProfilingHandler",
        "enableSystemLogQuery",
        "eventBurst",
        "eventRecordQPS",
        "featureGates",
        "failCgroupV1",
        "hairpinMode",
        "httpCheckFrequency",
        "imagePullCredentialsVerificationPolicy",
        "imageServiceEndpoint",
        "iptablesDropBit",
        "iptablesMasqueradeBit",
        "kernelMemcgNotification",
        "kubeAPIBurst",
        "kubeAPIQPS",
        "kubeletCgroups",
        "logging",
        "makeIPTablesUtilChains",
        "maxOpenFiles",
        "memoryManagerPolicy",
        "memoryThrottlingFactor",
        "podCIDR",
        "preloadedImagesVerificationAllowlist",
        "protectKernelDefaults",
        "qosReserved",
        "readOnlyPort",
        "reservedMemory",
        "reservedSystemCPUs",
        "runOnce",
        "showHiddenMetricsForVersion",
        "shutdownGracePeriod",
        "shutdownGracePeriodByPodPriority",
        "shutdownGracePeriodCriticalPods",
        "staticPodURL",
        "staticPodURLHeader",
        "streamingConnectionIdleTimeout",
        "syncFrequency",
        "systemCgroups",
        "tlsCipherSuites",
        "topologyManagerPolicy",
        "topologyManagerPolicyOptions",
        "topologyManagerScope",
        "tracing",
        "userNamespaces",
        "volumePluginDir",
        "volumeStatsAggPeriod",
    ];
    KNOWN.contains(&field)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn sources(directory: &Path, text: &mut String) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, text);
            } else if !path.ends_with("config/configuration.rs") && !path.ends_with("config/checks.rs") {
                text.extend(std::fs::read_to_string(path).unwrap().split_whitespace());
            }
        }
    }

    /// A field that nothing acts on belongs to those that are warned of.
    #[test]
    fn every_field_has_a_reader() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut code = String::new();
        sources(&here.join("src"), &mut code);
        sources(&here.join("../cli/src"), &mut code);
        let own = include_str!("configuration.rs");
        let fields = own.split("pub struct KubeletConfiguration {").nth(1).unwrap();
        let fields = fields.split("\n}").next().unwrap().lines();
        let fields = fields.filter_map(|line| line.trim().strip_prefix("pub ")?.split(':').next());
        // What the file is, and what only decides on another field here.
        let known = ["api_version", "kind", "merge_default_eviction_settings"];
        let unread: Vec<_> = fields
            .filter(|field| !known.contains(field) && !code.contains(&format!(".{field}")))
            .collect();
        assert_eq!(unread, Vec::<&str>::new());
    }
}
