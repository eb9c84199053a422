//! Flags that say the same as a field of the configuration file, as upstream has them: a table, so that the command line need not
//! repeat the file.

use serde_json::{Map, Value, json};

/// How a flag's text becomes a field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As it is: texts, durations, quantities.
    Text,
    /// A whole number.
    Number,
    /// `true` or `false`.
    Switch,
    /// Parts between commas.
    List,
    /// `key=value` pairs between commas.
    Pairs,
    /// `signal<amount` pairs between commas.
    Thresholds,
    /// `key=value:Effect` between commas.
    Taints,
}

/// One flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Its name, without dashes.
    pub name: &'static str,
    /// The field, with its parents (`authentication.webhook.enabled`).
    pub field: &'static str,
    /// How its text is read.
    pub kind: Kind,
    /// What it says, for `--help`.
    pub help: &'static str,
}

const fn flag(name: &'static str, field: &'static str, kind: Kind, help: &'static str) -> Flag {
    Flag {
        name,
        field,
        kind,
        help,
    }
}

/// Every such flag.
pub const FLAGS: &[Flag] = &[
    flag("address", "address", Kind::Text, "The address to serve at"),
    flag(
        "anonymous-auth",
        "authentication.anonymous.enabled",
        Kind::Switch,
        "Let requests without credentials in",
    ),
    flag(
        "authentication-token-webhook",
        "authentication.webhook.enabled",
        Kind::Switch,
        "Have the API server review bearer tokens",
    ),
    flag(
        "authorization-mode",
        "authorization.mode",
        Kind::Text,
        "Webhook or AlwaysAllow",
    ),
    flag(
        "cgroup-driver",
        "cgroupDriver",
        Kind::Text,
        "cgroupfs or systemd, where the runtime does not tell",
    ),
    flag(
        "client-ca-file",
        "authentication.x509.clientCAFile",
        Kind::Text,
        "Who signs clients' certificates",
    ),
    flag(
        "cluster-dns",
        "clusterDNS",
        Kind::List,
        "Addresses of the cluster's DNS",
    ),
    flag("cluster-domain", "clusterDomain", Kind::Text, "The cluster's domain"),
    flag(
        "container-log-max-files",
        "containerLogMaxFiles",
        Kind::Number,
        "Log files kept of each container",
    ),
    flag(
        "container-log-max-size",
        "containerLogMaxSize",
        Kind::Text,
        "Size at which a log is rotated",
    ),
    flag("cpu-cfs-quota", "cpuCFSQuota", Kind::Switch, "Enforce CPU limits"),
    flag(
        "cpu-cfs-quota-period",
        "cpuCFSQuotaPeriod",
        Kind::Text,
        "The period of CPU limits",
    ),
    flag(
        "enforce-node-allocatable",
        "enforceNodeAllocatable",
        Kind::List,
        "What the reservations bind: pods, kube-reserved, system-reserved",
    ),
    flag(
        "eviction-hard",
        "evictionHard",
        Kind::Thresholds,
        "When pods are evicted at once, as memory.available<100Mi",
    ),
    flag(
        "eviction-max-pod-grace-period",
        "evictionMaxPodGracePeriod",
        Kind::Number,
        "Seconds that a pod gets at a soft threshold",
    ),
    flag(
        "eviction-minimum-reclaim",
        "evictionMinimumReclaim",
        Kind::Pairs,
        "What is freed beyond a threshold",
    ),
    flag(
        "eviction-pressure-transition-period",
        "evictionPressureTransitionPeriod",
        Kind::Text,
        "How long a pressure lasts at least",
    ),
    flag(
        "eviction-soft",
        "evictionSoft",
        Kind::Thresholds,
        "When pods are evicted after a while",
    ),
    flag(
        "eviction-soft-grace-period",
        "evictionSoftGracePeriod",
        Kind::Pairs,
        "After how long, for each signal",
    ),
    flag(
        "fail-swap-on",
        "failSwapOn",
        Kind::Switch,
        "Refuse to run on a machine with swap",
    ),
    flag(
        "healthz-bind-address",
        "healthzBindAddress",
        Kind::Text,
        "The address of health checks",
    ),
    flag(
        "healthz-port",
        "healthzPort",
        Kind::Number,
        "The port of health checks, 0 for none",
    ),
    flag(
        "image-gc-high-threshold",
        "imageGCHighThresholdPercent",
        Kind::Number,
        "Percent of the disk at which images are removed",
    ),
    flag(
        "image-gc-low-threshold",
        "imageGCLowThresholdPercent",
        Kind::Number,
        "Percent of the disk down to which they are",
    ),
    flag(
        "kube-reserved",
        "kubeReserved",
        Kind::Pairs,
        "What Kubernetes' own daemons need, as cpu=200m,memory=500Mi",
    ),
    flag("kube-reserved-cgroup", "kubeReservedCgroup", Kind::Text, "Their cgroup"),
    flag("max-pods", "maxPods", Kind::Number, "Pods on this node at most"),
    flag(
        "minimum-image-ttl-duration",
        "imageMinimumGCAge",
        Kind::Text,
        "Age at which an unused image may be removed",
    ),
    flag(
        "node-status-max-images",
        "nodeStatusMaxImages",
        Kind::Number,
        "Images shown in the node's status",
    ),
    flag(
        "node-status-update-frequency",
        "nodeStatusUpdateFrequency",
        Kind::Text,
        "How often the node's status is looked at",
    ),
    flag(
        "oom-score-adj",
        "oomScoreAdj",
        Kind::Number,
        "How the kernel rates this process when memory runs out",
    ),
    flag("pod-cidr", "podCIDR", Kind::Text, "Addresses of this node's pods"),
    flag(
        "pod-max-pids",
        "podPidsLimit",
        Kind::Number,
        "Processes of a pod at most",
    ),
    flag("port", "port", Kind::Number, "The port to serve at"),
    flag("register-node", "registerNode", Kind::Switch, "Register this node"),
    flag(
        "register-with-taints",
        "registerWithTaints",
        Kind::Taints,
        "Taints of the node when it is registered, as key=value:Effect",
    ),
    flag(
        "registry-burst",
        "registryBurst",
        Kind::Number,
        "How many pulls may begin at once while registryPullQPS is kept",
    ),
    flag(
        "registry-qps",
        "registryPullQPS",
        Kind::Number,
        "How many pulls may begin in a second; 0 for any number",
    ),
    flag(
        "resolv-conf",
        "resolvConf",
        Kind::Text,
        "Whose resolver settings pods get",
    ),
    flag(
        "rotate-certificates",
        "rotateCertificates",
        Kind::Switch,
        "Renew the client certificate before it ends",
    ),
    flag(
        "rotate-server-certificates",
        "serverTLSBootstrap",
        Kind::Switch,
        "Have the serving certificate signed by the cluster, and renew it",
    ),
    flag(
        "runtime-request-timeout",
        "runtimeRequestTimeout",
        Kind::Text,
        "How long the container runtime may take",
    ),
    flag(
        "serialize-image-pulls",
        "serializeImagePulls",
        Kind::Switch,
        "Pull one image at a time",
    ),
    flag(
        "streaming-connection-idle-timeout",
        "streamingConnectionIdleTimeout",
        Kind::Text,
        "How long a stream may be idle",
    ),
    flag(
        "sync-frequency",
        "syncFrequency",
        Kind::Text,
        "How often pods are looked at",
    ),
    flag(
        "system-reserved",
        "systemReserved",
        Kind::Pairs,
        "What the machine's other daemons need",
    ),
    flag(
        "system-reserved-cgroup",
        "systemReservedCgroup",
        Kind::Text,
        "Their cgroup",
    ),
    flag("tls-cert-file", "tlsCertFile", Kind::Text, "The server's certificate"),
    flag("tls-private-key-file", "tlsPrivateKeyFile", Kind::Text, "Its key"),
];

impl Flag {
    /// Lays the flag's text over `fields`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn set(&self, text: &str, fields: &mut Map<String, Value>) -> Result<(), String> {
        let mut value = self.kind.read(text)?;
        let mut path: Vec<&str> = self.field.split('.').collect();
        let top = path.remove(0);
        for part in path.iter().rev() {
            value = json!({ *part: value });
        }
        let mut whole = Value::Object(std::mem::take(fields));
        skiff_api::patch::json_merge(&mut whole, &json!({ top: value }));
        if let Value::Object(map) = whole {
            *fields = map;
        }
        Ok(())
    }
}

impl Kind {
    fn read(self, text: &str) -> Result<Value, String> {
        let parts = || text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let pairs = |separator: char| -> Result<Value, String> {
            let pair = |part: &str| {
                let (key, value) = part
                    .split_once(separator)
                    .ok_or_else(|| format!("{part:?} is not of the form key{separator}value"))?;
                Ok((key.trim().to_owned(), Value::from(value.trim())))
            };
            parts()
                .map(pair)
                .collect::<Result<Map<_, _>, String>>()
                .map(Value::Object)
        };
        match self {
            Self::Text => Ok(text.into()),
            Self::Number => text
                .parse::<i64>()
                .map(Value::from)
                .map_err(|_| format!("{text:?} is not a whole number")),
            Self::Switch => text
                .parse::<bool>()
                .map(Value::from)
                .map_err(|_| format!("{text:?} is neither true nor false")),
            Self::List => Ok(parts().collect()),
            Self::Pairs => pairs('='),
            Self::Thresholds => pairs('<'),
            Self::Taints => parts().map(taint).collect(),
        }
    }
}

/// `key=value:Effect` or `key:Effect`.
fn taint(text: &str) -> Result<Value, String> {
    let (what, effect) = text
        .rsplit_once(':')
        .ok_or_else(|| format!("{text:?} is not of the form key=value:Effect"))?;
    let (key, value) = what.split_once('=').unwrap_or((what, ""));
    Ok(json!({"key": key, "value": value, "effect": effect}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KubeletConfiguration;

    fn read(words: &[(&str, &str)]) -> Result<KubeletConfiguration, String> {
        let mut fields = Map::new();
        for (name, text) in words {
            let flag = FLAGS.iter().find(|flag| flag.name == *name).ok_or("no such flag")?;
            flag.set(text, &mut fields)?;
        }
        let config = crate::config::Flags {
            overrides: fields,
            ..Default::default()
        };
        crate::config::Config::load(None, config)
            .map(|config| config.kubelet)
            .map_err(|error| skiff_daemon::error_chain(&error))
    }

    #[test]
    fn flags_become_fields() {
        let config = read(&[
            ("max-pods", "7"),
            ("cluster-dns", "10.0.0.1,10.0.0.2"),
            ("kube-reserved", "cpu=200m,memory=1Gi"),
            ("eviction-hard", "memory.available<1Gi,nodefs.available<10%"),
            ("authentication-token-webhook", "false"),
            ("anonymous-auth", "true"),
            ("register-with-taints", "a=b:NoSchedule,c:NoExecute"),
            ("cpu-cfs-quota-period", "10ms"),
        ])
        .unwrap();
        assert_eq!((config.max_pods, config.cluster_dns.len()), (7, 2));
        assert_eq!(config.kube_reserved["memory"], "1Gi");
        assert_eq!(config.eviction_hard.len(), 2);
        assert!(!config.authentication.webhook.enabled && config.authentication.anonymous.enabled);
        assert_eq!(
            (
                config.register_with_taints[1].key.as_str(),
                config.register_with_taints.len()
            ),
            ("c", 2)
        );
        assert_eq!(config.cpu_cfs_quota_period.0.as_millis(), 10);
    }

    #[test]
    fn every_flag_names_a_field() {
        for flag in FLAGS {
            let text = match flag.kind {
                Kind::Text => continue,
                Kind::Number => "5",
                Kind::Switch => "true",
                Kind::List => "pods",
                Kind::Pairs | Kind::Thresholds => "",
                Kind::Taints => "a:NoSchedule",
            };
            let mut fields = Map::new();
            flag.set(text, &mut fields).unwrap();
            let config: Result<KubeletConfiguration, _> = serde_json::from_value(Value::Object(fields));
            let config = config.unwrap_or_else(|error| panic!("--{}: {error}", flag.name));
            assert!(config.other.is_empty(), "--{} names no field", flag.name);
        }
        assert!(FLAGS.is_sorted_by_key(|flag| flag.name));
    }

    #[test]
    fn bad_texts_are_refused() {
        for (name, text) in [
            ("max-pods", "x"),
            ("fail-swap-on", "maybe"),
            ("kube-reserved", "cpu"),
            ("register-with-taints", "a=b"),
        ] {
            assert!(read(&[(name, text)]).is_err(), "--{name}={text}");
        }
    }
}
