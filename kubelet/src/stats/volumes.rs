//! What pods' volumes hold: the kubelet's own by what lies in them, those of claims by their file systems.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use skiff_api::k8s_openapi::api::core::v1::{Pod, Volume};

use super::disk::{self, Contents, Directories, FileSystem};
use super::exposition::float;
use crate::agent::Agent;
use crate::pod;
use crate::pods::Directory;
use crate::volumes::Volumes;

/// A volume, measured.
#[derive(Clone, Debug)]
pub(crate) struct VolumeDisk {
    pub(crate) name: String,
    pub(crate) used: Contents,
    /// Where it lies.
    pub(crate) system: Option<FileSystem>,
    /// Whether it is the pod's own and no memory.
    pub(crate) ephemeral: bool,
    /// The claim that it stands for.
    pub(crate) claim: Option<String>,
}

/// All volumes of a pod that upstream measures, too.
pub(super) fn measure(volumes: &Volumes, pod: &Pod, directories: &Directories, max_age: Duration) -> Vec<VolumeDisk> {
    let all = pod::spec(pod).volumes.iter().flatten();
    let kept = all.filter(|volume| kept(volume)).filter_map(|volume| {
        let path = volumes.path(pod, volume)?;
        Some(VolumeDisk {
            name: volume.name.clone(),
            used: directories.contents(&path, max_age),
            system: disk::file_system(&path),
            ephemeral: !in_memory(volume),
            claim: None,
        })
    });
    let claimed = volumes.claimed(pod).into_iter().filter_map(|claimed| {
        let system = mounted(&claimed.path)?;
        Some(VolumeDisk {
            name: claimed.volume,
            used: Contents {
                bytes: system.used,
                inodes: system.inodes.saturating_sub(system.inodes_free),
            },
            system: Some(system),
            ephemeral: false,
            claim: Some(claimed.claim),
        })
    });
    kept.chain(claimed).collect()
}

/// The file system of a volume; none while it is not there, when another would answer for it.
fn mounted(path: &Path) -> Option<FileSystem> {
    path.exists().then(|| disk::file_system(path))?
}

/// Volumes that lie in the pod's directory.
fn kept(volume: &Volume) -> bool {
    volume.empty_dir.is_some()
        || volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

fn in_memory(volume: &Volume) -> bool {
    let medium = volume.empty_dir.as_ref().and_then(|source| source.medium.as_deref());
    medium.is_some_and(|medium| medium.starts_with("Memory") || medium.starts_with("HugePages"))
        || volume.secret.is_some()
}

/// `kubelet_volume_stats_*`, of the claims that pods of this node have mounted: looked at when somebody asks.
#[derive(Debug)]
pub(crate) struct VolumeStats {
    pub(crate) agent: Arc<Agent>,
    pub(crate) directory: Directory,
}

impl VolumeStats {
    /// Namespaces and names of claims, each once, however many pods have it.
    fn claims(&self) -> Vec<(String, String, FileSystem)> {
        let mut claims = Vec::new();
        for entry in self.directory.all() {
            let namespace = pod::namespace(&entry.pod);
            for claimed in self.agent.volumes.claimed(&entry.pod) {
                let system = mounted(&claimed.path);
                claims.extend(system.map(|system| (namespace.to_owned(), claimed.claim, system)));
            }
        }
        claims.sort_by(|(a, b, _), (c, d, _)| (a, b).cmp(&(c, d)));
        claims.dedup_by(|(a, b, _), (c, d, _)| (a, b) == (c, d));
        claims
    }
}

impl VolumeStats {
    /// How many volumes pods want, and how many of them are there, by plugin.
    fn counts(&self) -> BTreeMap<String, (u32, u32)> {
        let mut counts: BTreeMap<String, (u32, u32)> = BTreeMap::new();
        let entries = self.directory.all();
        let living = entries.iter().filter(|entry| !pod::is_terminal(&entry.pod));
        for pod in living.map(|entry| &entry.pod) {
            for volume in pod::spec(pod).volumes.iter().flatten() {
                let Some(path) = self.agent.volumes.path(pod, volume) else {
                    continue;
                };
                let (wanted, there) = counts.entry(plugin(&path)).or_default();
                *wanted += 1;
                *there += u32::from(path.exists());
            }
        }
        counts
    }
}

/// The plugin that keeps a volume there, as its directory is named; what lies elsewhere is the host's.
fn plugin(path: &Path) -> String {
    let mut parts = path
        .iter()
        .filter_map(|part| part.to_str()?.strip_prefix("kubernetes.io~"));
    format!("kubernetes.io/{}", parts.next().unwrap_or("host-path"))
}

type Figure = (&'static str, &'static str, fn(&FileSystem) -> u64);

const FIGURES: [Figure; 6] = [
    ("capacity_bytes", "Capacity in bytes of the volume", |system| {
        system.capacity
    }),
    ("available_bytes", "Number of available bytes in the volume", |system| {
        system.available
    }),
    ("used_bytes", "Number of used bytes in the volume", |system| system.used),
    ("inodes", "Maximum number of inodes in the volume", |system| {
        system.inodes
    }),
    ("inodes_free", "Number of free inodes in the volume", |system| {
        system.inodes_free
    }),
    ("inodes_used", "Number of used inodes in the volume", |system| {
        system.inodes.saturating_sub(system.inodes_free)
    }),
];

impl Collector for VolumeStats {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (name, help) = ("volume_manager_total_volumes", "Number of volumes in Volume Manager");
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (plugin, (wanted, there)) in self.counts() {
            for (state, count) in [("desired_state_of_world", wanted), ("actual_state_of_world", there)] {
                let labels = [("plugin_name", plugin.as_str()), ("state", state)];
                ConstGauge::new(f64::from(count)).encode(metric.encode_family(&labels)?)?;
            }
        }
        let claims = self.claims();
        for (figure, help, value) in FIGURES {
            let name = format!("kubelet_volume_stats_{figure}");
            let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            for (namespace, claim, system) in &claims {
                let labels = [
                    ("namespace", namespace.as_str()),
                    ("persistentvolumeclaim", claim.as_str()),
                ];
                ConstGauge::new(float(value(system))).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_named_by_their_directories() {
        for (path, name) in [
            (
                "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/v",
                "kubernetes.io/empty-dir",
            ),
            (
                "/var/lib/kubelet/pods/u/volumes/kubernetes.io~local-volume/pv",
                "kubernetes.io/local-volume",
            ),
            ("/srv/data", "kubernetes.io/host-path"),
        ] {
            assert_eq!(plugin(Path::new(path)), name);
        }
    }
}
