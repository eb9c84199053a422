//! What the kubelet is told: its `KubeletConfiguration` file and its flags.

mod checks;
mod configuration;
mod flags;
pub(crate) mod sources;
mod zeros;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use skiff_api::patch::json_merge;

pub use configuration::{
    Anonymous, Authentication, Authorization, KubeletConfiguration, Taint, Webhook, WebhookAuthorization, X509,
};
pub use flags::{FLAGS, Flag, Kind};
pub use skiff_api::duration::GoDuration;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the kubelet configuration {path}; check --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The directory of drop-ins cannot be read.
    #[error("cannot list the configuration directory {path}; check --config-dir")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The file is not YAML or JSON.
    #[error("the kubelet configuration {path} is not valid YAML or JSON")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file is of another kind.
    #[error("{path} holds {found}, not kubelet.config.k8s.io/v1beta1 KubeletConfiguration; check apiVersion and kind")]
    Kind {
        /// The file.
        path: PathBuf,
        /// Its apiVersion and kind.
        found: String,
    },
    /// A field is unknown.
    #[error("strict decoding error: unknown field {field:?} in {path}; remove it or correct its name")]
    UnknownField {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
    },
    /// A field has a wrong type.
    #[error("the kubelet configuration {path} has a wrong or unknown field")]
    Field {
        /// The file.
        path: PathBuf,
        /// The decoder's error.
        #[source]
        source: serde_json::Error,
    },
    /// A field has a value that cannot work.
    #[error("invalid configuration: {field}: {detail}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong and what would be right.
        detail: String,
    },
}

/// The kubelet's flags that are not in its configuration file.
#[derive(Clone, Debug)]
pub struct Flags {
    /// `--hostname-override`: the node's name when it is not the host's name.
    pub hostname_override: Option<String>,
    /// `--node-ip`: the node's addresses, the first is the primary one.
    pub node_ips: Vec<IpAddr>,
    /// `--root-dir`: where pods' directories live.
    pub root_dir: PathBuf,
    /// `--container-runtime-endpoint`: overrides the file's `containerRuntimeEndpoint`.
    pub container_runtime_endpoint: Option<String>,
    /// `--pod-manifest-path`: overrides the file's `staticPodPath`.
    pub pod_manifest_path: Option<PathBuf>,
    /// `--config-dir`: files whose fields are laid over the configuration file's, in the order of their names.
    pub config_dir: Option<PathBuf>,
    /// Flags that say the same as a field of the file: they win.
    pub overrides: Map<String, Value>,
    /// Flags of upstream's that were given and that nothing acts on.
    pub unheeded: Vec<&'static str>,
    /// `--node-labels`: labels to register the node with.
    pub node_labels: BTreeMap<String, String>,
    /// `--cgroup-root`: overrides the file's `cgroupRoot`.
    pub cgroup_root: Option<String>,
    /// `--cert-dir`: where the node's certificates are kept; `pki` in the root directory otherwise.
    pub cert_dir: Option<PathBuf>,
    /// `--local-path-dir`: where the volumes of the local-path provisioner are; `local-path` in the root directory otherwise.
    pub local_path_dir: Option<PathBuf>,
}

impl Default for Flags {
    fn default() -> Self {
        Self {
            hostname_override: None,
            node_ips: Vec::new(),
            root_dir: PathBuf::from("/var/lib/kubelet"),
            container_runtime_endpoint: None,
            pod_manifest_path: None,
            config_dir: None,
            overrides: Map::new(),
            unheeded: Vec::new(),
            node_labels: BTreeMap::new(),
            cgroup_root: None,
            cert_dir: None,
            local_path_dir: None,
        }
    }
}

/// Everything that the kubelet is told.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The configuration file, with defaults.
    pub kubelet: KubeletConfiguration,
    /// The flags.
    pub flags: Flags,
}

impl Config {
    /// Reads the configuration file (when there is one), lays the drop-ins over it, and the flags over both.
    pub fn load(path: Option<&Path>, flags: Flags) -> Result<Self, Error> {
        let mut value = Value::Object(Map::new());
        let drop_ins = flags
            .config_dir
            .as_deref()
            .map(drop_ins)
            .transpose()?
            .unwrap_or_default();
        let files: Vec<&Path> = path.into_iter().chain(drop_ins.iter().map(PathBuf::as_path)).collect();
        for file in &files {
            let text = std::fs::read_to_string(file).map_err(|source| Error::Read {
                path: (*file).into(),
                source,
            })?;
            lay(&mut value, file, &text)?;
            if Some(*file) == path {
                zeros::fill_in(&mut value);
            }
        }
        json_merge(&mut value, &Value::Object(flags.overrides.clone()));
        zeros::without_unnamed_files(&mut value);
        let whole = files.last().copied().unwrap_or(Path::new("the command line"));
        let mut kubelet = decode(whole, value)?;
        for field in kubelet.other.keys() {
            tracing::warn!(
                field,
                "this kubelet does not act on this field of its configuration yet"
            );
        }
        for flag in &flags.unheeded {
            tracing::warn!(flag, "this kubelet does not act on this flag");
        }
        kubelet.complete();
        if let Some(endpoint) = &flags.container_runtime_endpoint {
            kubelet.container_runtime_endpoint.clone_from(endpoint);
        }
        if let Some(path) = &flags.pod_manifest_path {
            kubelet.static_pod_path = Some(path.clone()).filter(|path| !path.as_os_str().is_empty());
        }
        if let Some(root) = &flags.cgroup_root {
            kubelet.cgroup_root.clone_from(root);
        }
        kubelet.validate()?;
        Ok(Self { kubelet, flags })
    }

    /// Where the volumes of the local-path provisioner are.
    pub fn local_path_dir(&self) -> PathBuf {
        let dir = self.flags.local_path_dir.clone();
        let dir = dir.unwrap_or_else(|| self.flags.root_dir.join("local-path"));
        // Volumes name it for good: it must not depend on where this process was started.
        std::path::absolute(&dir).unwrap_or(dir)
    }

    /// Where the node's certificates are kept.
    pub fn cert_dir(&self) -> PathBuf {
        let dir = self.flags.cert_dir.clone();
        dir.unwrap_or_else(|| self.flags.root_dir.join("pki"))
    }

    /// The node's name: the override, or the host's name in lower case.
    pub fn node_name(&self) -> String {
        let name = self.flags.hostname_override.clone().unwrap_or_else(|| {
            nix::unistd::gethostname()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default()
        });
        name.trim().to_lowercase()
    }
}

/// The files below a directory of drop-ins that end in `.conf`, each directory's in the order of their names.
fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Directory {
        path: dir.into(),
        source,
    };
    let entries: Result<Vec<_>, _> = std::fs::read_dir(dir).map_err(failed)?.collect();
    let mut entries = entries.map_err(failed)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.path();
        // A link to a directory is not entered, so that none leads back.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files.extend(drop_ins(&path)?);
        } else if path.is_file() && path.extension().is_some_and(|extension| extension == "conf") {
            files.push(path);
        }
    }
    Ok(files)
}

/// Lays a file's fields over those of the files before it.
fn lay(fields: &mut Value, path: &Path, text: &str) -> Result<(), Error> {
    let part = parse(path, text)?;
    // Each file is strict by itself, so that an error names the right one. What is null says nothing.
    let mut alone = Value::Object(Map::new());
    json_merge(&mut alone, &part);
    decode(path, alone)?;
    json_merge(fields, &part);
    zeros::settle(fields);
    Ok(())
}

/// A file's content, once it is known to be of the right kind.
fn parse(path: &Path, text: &str) -> Result<Value, Error> {
    let value: Value = serde_saphyr::from_str(text).map_err(|source| Error::Syntax {
        path: path.into(),
        source: Box::new(source),
    })?;
    let found = format!(
        "{} {}",
        value["apiVersion"].as_str().unwrap_or("no apiVersion"),
        value["kind"].as_str().unwrap_or("no kind")
    );
    if found != "kubelet.config.k8s.io/v1beta1 KubeletConfiguration" {
        return Err(Error::Kind {
            path: path.into(),
            found,
        });
    }
    Ok(value)
}

fn decode(path: &Path, value: Value) -> Result<KubeletConfiguration, Error> {
    let configuration: KubeletConfiguration = serde_json::from_value(value).map_err(|source| Error::Field {
        path: path.into(),
        source,
    })?;
    let unknown = configuration
        .other
        .keys()
        .find(|field| !configuration::known_elsewhere(field));
    match unknown {
        Some(field) => Err(Error::UnknownField {
            path: path.into(),
            field: field.clone(),
        }),
        None => Ok(configuration),
    }
}

/// One file with a drop-in over it, as [`Config::load`] reads them.
#[cfg(test)]
fn read(path: &Path, text: &str, drop_in: &str) -> Result<KubeletConfiguration, Error> {
    let mut value = Value::Object(Map::new());
    lay(&mut value, path, text)?;
    if !drop_in.is_empty() {
        lay(&mut value, path, drop_in)?;
    }
    decode(path, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

    fn read(body: &str) -> Result<KubeletConfiguration, Error> {
        super::read(Path::new("config.yaml"), &format!("{HEAD}{body}"), "")
    }

    #[test]
    fn drop_ins_and_flags_are_laid_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, body: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("{HEAD}{body}")).unwrap();
            path
        };
        let config = file(
            "config.yaml",
            "maxPods: 1\nport: 1\nclusterDNS: [10.0.0.1]\nevictionHard: {memory.available: 1Gi}\n",
        );
        let drop_in_dir = dir.path().join("conf.d");
        std::fs::create_dir(&drop_in_dir).unwrap();
        file("conf.d/20-b.conf", "maxPods: 3\nclusterDNS: [10.0.0.3]\n");
        file(
            "conf.d/10-a.conf",
            "maxPods: 2\nport: 2\nmergeDefaultEvictionSettings: true\n",
        );
        file("conf.d/30-ignored.yaml", "maxPods: 99\n");
        std::fs::create_dir(drop_in_dir.join("15-more")).unwrap();
        file("conf.d/15-more/99.conf", "maxPods: 99\nregistryBurst: 15\n");
        let flags = |overrides: Value| Flags {
            config_dir: Some(drop_in_dir.clone()),
            overrides: overrides.as_object().cloned().unwrap_or_default(),
            ..Flags::default()
        };
        let read = |overrides| Config::load(Some(&config), flags(overrides)).map(|config| config.kubelet);
        let plain = read(serde_json::json!({})).unwrap();
        assert_eq!((plain.max_pods, plain.port), (3, 2));
        assert_eq!(plain.registry_burst, 15, "directories are entered");
        assert_eq!(plain.cluster_dns, ["10.0.0.3"], "lists are replaced");
        assert_eq!(plain.eviction_hard["memory.available"], "1Gi");
        assert_eq!(plain.eviction_hard["nodefs.available"], "10%");
        assert_eq!(read(serde_json::json!({"maxPods": 7})).unwrap().max_pods, 7);
        file("conf.d/40-c.conf", "maxPodz: 3\n");
        let error = read(serde_json::json!({})).unwrap_err().to_string();
        assert!(error.contains("maxPodz") && error.contains("40-c.conf"), "{error}");
    }

    #[test]
    fn defaults_are_upstreams() {
        let config = read("").unwrap();
        assert_eq!(config.max_pods, 110);
        assert_eq!(config.port, 10250);
        assert_eq!(config.node_status_update_frequency.0.as_secs(), 10);
        assert_eq!(config.eviction_hard["memory.available"], "100Mi");
        assert!(config.serialize_image_pulls);
        assert_eq!(config.cgroup_driver, "cgroupfs");
        assert!(!config.authentication.anonymous.enabled);
        assert_eq!(config.authorization.mode, "Webhook");
    }

    #[test]
    fn values_are_read() {
        let config = read(
            "maxPods: 7\ncpuCFSQuotaPeriod: 10ms\nclusterDNS: [10.96.0.10]\nregisterWithTaints:\n- key: a\n  value: b\n  effect: NoSchedule\n\
             authentication:\n  x509:\n    clientCAFile: /ca.crt\n",
        )
        .unwrap();
        assert_eq!(config.max_pods, 7);
        assert_eq!(config.cpu_cfs_quota_period.0.as_millis(), 10);
        assert_eq!(config.register_with_taints[0].key, "a");
        assert_eq!(
            config.authentication.x509.client_ca_file,
            Some(PathBuf::from("/ca.crt"))
        );
        assert!(config.authentication.webhook.enabled);
    }

    #[test]
    fn unknown_fields_are_refused_and_upstreams_others_pass() {
        assert!(matches!(read("maxPodz: 7\n"), Err(Error::UnknownField { field, .. }) if field == "maxPodz"));
        assert!(matches!(read("authentication: {x: 1}\n"), Err(Error::Field { .. })));
        assert!(read("volumeStatsAggPeriod: 1m\n").is_ok());
    }

    #[test]
    fn other_kinds_are_refused() {
        let other = parse(Path::new("c"), "apiVersion: v1\nkind: Config\n");
        assert!(matches!(other, Err(Error::Kind { found, .. }) if found == "v1 Config"));
    }

    #[test]
    fn impossible_values_are_refused() {
        for body in [
            "maxPods: -1\n",
            "cgroupDriver: x\n",
            "port: -1\n",
            "evictionHard: {memory.available: lots}\n",
        ] {
            let result = read(body).and_then(|config| config.validate());
            assert!(matches!(result, Err(Error::Invalid { .. })), "{body}");
        }
    }
}
