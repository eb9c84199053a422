//! Fields that are written and say nothing: a zero stands for the default, as upstream has it. kubeadm's files are full of them.

use serde_json::{Map, Value};

use super::GoDuration;
use super::configuration::known_elsewhere;

/// Fields whose zero is upstream's default, with their parents. Of the others (`imageMaximumGCAge`, `healthzPort`, `registryPullQPS`,
/// `oomScoreAdj`) a zero is meant.
const ZERO_IS_DEFAULT: &[&str] = &[
    "address",
    "authentication.webhook.cacheTTL",
    "authorization.mode",
    "authorization.webhook.cacheAuthorizedTTL",
    "authorization.webhook.cacheUnauthorizedTTL",
    "cgroupDriver",
    "containerLogMaxSize",
    "containerRuntimeEndpoint",
    "evictionPressureTransitionPeriod",
    "fileCheckFrequency",
    "healthzBindAddress",
    "imageMinimumGCAge",
    "maxPods",
    "nodeLeaseDurationSeconds",
    "nodeStatusReportFrequency",
    "nodeStatusUpdateFrequency",
    "podLogsDir",
    "port",
    "registryBurst",
    "runtimeRequestTimeout",
];

/// Files of which an empty name means none.
const FILES: &[&str] = &[
    "authentication.x509.clientCAFile",
    "staticPodPath",
    "tlsCertFile",
    "tlsPrivateKeyFile",
];

/// Takes away what says nothing, so that what was laid over an earlier value brings the default back.
pub(super) fn settle(fields: &mut Value) {
    take_all(fields, ZERO_IS_DEFAULT);
    without_unnamed_files(fields);
    if let Value::Object(fields) = fields {
        // Nobody is warned of a field that is not in use.
        fields.retain(|field, value| !(known_elsewhere(field) && is_zero(value)));
    }
}

/// Takes away files without a name: `--client-ca-file=` is how a flag says that there is none. Any other zero of a flag is meant.
pub(super) fn without_unnamed_files(fields: &mut Value) {
    take_all(fields, FILES);
}

fn take_all(fields: &mut Value, paths: &[&str]) {
    for path in paths {
        let (parents, field) = path.rsplit_once('.').unwrap_or(("", path));
        let pointer = parents.split('.').filter(|part| !part.is_empty());
        let pointer: String = pointer.map(|part| format!("/{part}")).collect();
        if let Some(parent) = fields.pointer_mut(&pointer).and_then(Value::as_object_mut) {
            take(parent, field);
        }
    }
}

/// What the configuration file leaves to its other fields: upstream fills it in before it comes to drop-ins and flags.
pub(super) fn fill_in(fields: &mut Value) {
    let Value::Object(fields) = fields else { return };
    // Who has the node looked at this often means it to be reported as often.
    if let Some(period) = fields.get("nodeStatusUpdateFrequency").cloned() {
        fields.entry("nodeStatusReportFrequency").or_insert(period);
    }
    let parallel = fields.get("maxParallelImagePulls").and_then(Value::as_i64);
    if parallel.is_some_and(|pulls| pulls > 1) {
        fields.entry("serializeImagePulls").or_insert(false.into());
    }
}

fn take(parent: &mut Map<String, Value>, field: &str) {
    if parent.get(field).is_some_and(is_zero) {
        parent.remove(field);
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        // A switch that is off may be a wish.
        Value::Bool(_) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || text.parse::<GoDuration>().is_ok_and(|it| it.0.is_zero()),
        Value::Array(parts) => parts.is_empty(),
        Value::Object(fields) => fields.values().all(is_zero),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{Config, Flags, KubeletConfiguration};

    /// As kubeadm writes it.
    const KUBEADM: &str = include_str!("kubeadm.yaml");
    const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

    fn load(file: &str, drop_in: Option<&str>) -> Result<KubeletConfiguration, crate::config::Error> {
        let dir = tempfile::tempdir().unwrap();
        let (path, drop_ins) = (dir.path().join("config.yaml"), dir.path().join("conf.d"));
        std::fs::write(&path, file).unwrap();
        std::fs::create_dir(&drop_ins).unwrap();
        if let Some(text) = drop_in {
            std::fs::write(drop_ins.join("10.conf"), text).unwrap();
        }
        let flags = Flags {
            config_dir: Some(drop_ins),
            ..Flags::default()
        };
        Config::load(Some(&path), flags).map(|config| config.kubelet)
    }

    fn as_kubeadm_means_it() -> Value {
        let mut wanted = KubeletConfiguration::default();
        wanted.authentication.x509.client_ca_file = Some("/pki/ca.crt".into());
        wanted.cgroup_driver = "systemd".into();
        wanted.cluster_dns = vec!["10.96.0.10".into()];
        wanted.cluster_domain = "cluster.local".into();
        wanted.rotate_certificates = true;
        wanted.static_pod_path = Some("/manifests".into());
        serde_json::to_value(wanted).unwrap()
    }

    #[test]
    fn what_kubeadm_writes_means_the_defaults() {
        let whole = load(KUBEADM, None).unwrap();
        assert!(whole.other.is_empty(), "nobody is warned of {:?}", whole.other);
        assert_eq!(serde_json::to_value(whole).unwrap(), as_kubeadm_means_it());
        let former = "runtimeRequestTimeout: 5s\nnodeStatusUpdateFrequency: 5s\nnodeStatusReportFrequency: 7s\nport: 1\n\
                      containerRuntimeEndpoint: unix:///other.sock\nsyncFrequency: 5s\nimageMaximumGCAge: 5m\n";
        let over = load(&format!("{HEAD}{former}"), Some(KUBEADM)).unwrap();
        let mut over = serde_json::to_value(over).unwrap();
        let mut wanted = as_kubeadm_means_it();
        // Only the port is left as it was: kubeadm does not write it.
        assert_eq!(over["port"].take(), 1);
        wanted["port"].take();
        assert_eq!(over, wanted);
    }

    #[test]
    fn what_is_null_or_empty_is_not_there() {
        for path in ZERO_IS_DEFAULT.iter().chain(FILES) {
            for nothing in [json!(null), json!(""), json!(0), json!("0s")] {
                let name = path.rsplit('.').next().unwrap();
                let mut fields = path.rsplit('.').fold(nothing, |value, part| json!({ part: value }));
                settle(&mut fields);
                assert!(!fields.to_string().contains(name), "{fields}");
            }
        }
        let kept = json!({"imageMaximumGCAge": "0s", "healthzPort": 0, "registryPullQPS": 0, "oomScoreAdj": 0, "podPidsLimit": 0,
                          "maxPods": 1, "clusterDNS": [], "failSwapOn": false, "featureGates": {"A": false}});
        let mut fields = kept.clone();
        settle(&mut fields);
        assert_eq!(fields, kept);
        let nulls =
            "clusterDNS: null\nmaxPods: null\nevictionHard: null\nfeatureGates: null\nauthentication: {x509: null}\n";
        let read = load(&format!("{HEAD}{nulls}"), None).unwrap();
        let default = KubeletConfiguration::default();
        assert_eq!(
            serde_json::to_value(read).unwrap(),
            serde_json::to_value(default).unwrap()
        );
    }

    #[test]
    fn every_such_field_is_one_of_the_configuration() {
        let default = serde_json::to_value(KubeletConfiguration::default()).unwrap();
        for path in ZERO_IS_DEFAULT.iter().chain(FILES) {
            let pointer = format!("/{}", path.replace('.', "/"));
            assert!(default.pointer(&pointer).is_some(), "{path}");
        }
    }

    #[test]
    fn who_says_how_many_pulls_wants_several_at_once() {
        let serialize = |body: &str| load(&format!("{HEAD}{body}"), None).map(|config| config.serialize_image_pulls);
        for (body, wanted) in [
            ("", true),
            ("maxParallelImagePulls: 1\n", true),
            ("maxParallelImagePulls: 3\n", false),
        ] {
            assert_eq!(serialize(body).unwrap(), wanted, "{body}");
        }
        assert!(serialize("serializeImagePulls: true\nmaxParallelImagePulls: 3\n").is_err());
    }

    #[test]
    fn the_file_that_is_looked_at_more_often_reports_as_often() {
        let frequencies = |body: &str, drop_in: Option<&str>| {
            let config = load(
                &format!("{HEAD}{body}"),
                drop_in.map(|text| format!("{HEAD}{text}")).as_deref(),
            )
            .unwrap();
            let seconds = |duration: GoDuration| duration.0.as_secs();
            (
                seconds(config.node_status_update_frequency),
                seconds(config.node_status_report_frequency),
            )
        };
        assert_eq!(frequencies("", None), (10, 300));
        assert_eq!(frequencies("nodeStatusUpdateFrequency: 20s\n", None), (20, 20));
        let zero = "nodeStatusUpdateFrequency: 20s\nnodeStatusReportFrequency: 0s\n";
        assert_eq!(frequencies(zero, None), (20, 20));
        let both = "nodeStatusUpdateFrequency: 20s\nnodeStatusReportFrequency: 60s\n";
        assert_eq!(frequencies(both, None), (20, 60));
        // Upstream has filled in the file before it comes to the drop-ins.
        let drop_in = Some("nodeStatusUpdateFrequency: 20s\n");
        assert_eq!(frequencies("", drop_in), (20, 300));
    }
}
