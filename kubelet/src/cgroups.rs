//! The cgroups above pods' containers: `kubepods`, one for each QoS class but Guaranteed, one for each pod.
//!
//! Written by hand and not with cgroups-rs: that crate keeps whole controllers of a subsystem in hand, drags in a second
//! version of nix, and a second of zbus, for what here are a few small files. The systemd driver gets the names right
//! already; making its slices over D-Bus is left for later, so with it only the runtime makes cgroups.

mod reserve;
mod usage;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use skiff_api::k8s_openapi::api::core::v1::{Container, Pod};
use skiff_cri::LinuxResources;

use crate::pod::{self, Qos};

pub(crate) use usage::Usage;

/// Controllers whose files are written on cgroup v1.
const V1_CONTROLLERS: &[&str] = &["cpu", "memory", "pids"];
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
/// The kernel refuses smaller quotas.
const MIN_QUOTA: i64 = 1000;

/// Why a cgroup cannot be made or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No cgroup file system.
    #[error("no cgroup file system is mounted at {0}: mount cgroup2 or the v1 controllers there")]
    NotMounted(PathBuf),
    /// A directory cannot be made.
    #[error("cannot create the cgroup {path}")]
    Create {
        /// Directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {value} to {path}")]
    Write {
        /// File.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A cgroup that the configuration names is not there.
    #[error("there is no cgroup {0}: make it before the kubelet starts, or leave it out of enforceNodeAllocatable")]
    Absent(String),
    /// A cgroup cannot be removed.
    #[error("cannot remove the cgroup {path}: a process may still be in it")]
    Remove {
        /// Directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Limits of a pod's cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// CPU weight in v1's measure.
    pub(crate) shares: Option<i64>,
    /// CPU microseconds in each period.
    pub(crate) quota: Option<i64>,
    /// The period.
    pub(crate) period: Option<i64>,
    /// Bytes of memory.
    pub(crate) memory: Option<i64>,
    /// Processes.
    pub(crate) pids: Option<i64>,
}

/// How the node divides CPU and memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// `cpuCFSQuota`.
    pub(crate) quota: bool,
    /// `cpuCFSQuotaPeriod`.
    pub(crate) period: Duration,
    /// `podPidsLimit`, not positive for none.
    pub(crate) pids: i64,
    /// The node's memory, for `oom_score_adj`.
    pub(crate) memory_capacity: i64,
}

/// Which driver names cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// Directories.
    Cgroupfs,
    /// Slices of systemd.
    Systemd,
}

#[derive(Clone, Debug)]
enum Hierarchy {
    V1 { mounts: BTreeMap<String, PathBuf> },
    V2 { mount: PathBuf },
}

/// The node's pod cgroups.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    hierarchy: Hierarchy,
    driver: Driver,
    root: String,
    /// The weight that all burstable pods together were last given.
    burstable: Arc<Mutex<Option<i64>>>,
}

// === impl Cgroups ===

impl Cgroups {
    /// Finds the hierarchy below `mount` (`/sys/fs/cgroup`) and makes the tree of QoS classes.
    pub(crate) fn open(mount: &Path, root: &str, driver: Driver) -> Result<Self, Error> {
        let hierarchy = if mount.join("cgroup.controllers").exists() {
            Hierarchy::V2 { mount: mount.into() }
        } else {
            let mounts: BTreeMap<_, _> = std::fs::read_dir(mount)
                .map_err(|_| Error::NotMounted(mount.into()))?
                .filter_map(Result::ok)
                .filter(|entry| entry.path().join("cgroup.procs").exists())
                .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
                .collect();
            if !mounts.contains_key("memory") {
                return Err(Error::NotMounted(mount.into()));
            }
            Hierarchy::V1 { mounts }
        };
        let root = format!("/{}", root.trim_matches('/'));
        let cgroups = Self {
            hierarchy,
            driver,
            root: if root == "/" { String::new() } else { root },
            burstable: Arc::default(),
        };
        if driver == Driver::Cgroupfs {
            for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
                let shares = (qos == Qos::BestEffort).then_some(MIN_SHARES);
                cgroups.create(
                    &cgroups.class_path(qos),
                    Limits {
                        shares,
                        ..Limits::default()
                    },
                )?;
            }
        }
        Ok(cgroups)
    }

    fn class_path(&self, qos: Qos) -> String {
        let class = match qos {
            Qos::Guaranteed => "",
            Qos::Burstable => "/burstable",
            Qos::BestEffort => "/besteffort",
        };
        format!("{}/kubepods{class}", self.root)
    }

    /// The parent cgroup to name to the runtime.
    pub(crate) fn parent(&self, pod: &Pod) -> String {
        let qos = pod::qos(pod);
        match self.driver {
            Driver::Cgroupfs => format!("{}/pod{}", self.class_path(qos), pod::uid(pod)),
            Driver::Systemd => {
                let class = match qos {
                    Qos::Guaranteed => "kubepods",
                    Qos::Burstable => "kubepods-burstable",
                    Qos::BestEffort => "kubepods-besteffort",
                };
                format!("{class}-pod{}.slice", pod::uid(pod).replace('-', "_"))
            }
        }
    }

    /// Makes the pod's cgroup with its limits.
    pub(crate) fn create_pod(&self, pod: &Pod, rules: &Rules) -> Result<(), Error> {
        if self.driver == Driver::Systemd {
            return Ok(());
        }
        self.create(&self.parent(pod), pod_limits(pod, rules))
    }

    /// Removes a pod's cgroup, whatever class it was in; succeeds when there is none.
    pub(crate) fn remove_pod(&self, uid: &str) -> Result<(), Error> {
        if self.driver == Driver::Systemd {
            return Ok(());
        }
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            for base in self.mounts() {
                remove_tree(&below(base, &format!("{}/pod{uid}", self.class_path(qos))))?;
            }
        }
        Ok(())
    }

    /// UIDs of all pods that have a cgroup.
    pub(crate) fn pods(&self) -> Vec<String> {
        let mut uids = std::collections::BTreeSet::new();
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            for base in self.mounts() {
                let entries = std::fs::read_dir(below(base, &self.class_path(qos)))
                    .into_iter()
                    .flatten();
                uids.extend(
                    entries
                        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("pod").map(str::to_owned)),
                );
            }
        }
        uids.into_iter().collect()
    }

    fn mounts(&self) -> Vec<&Path> {
        match &self.hierarchy {
            Hierarchy::V1 { mounts } => mounts.values().map(PathBuf::as_path).collect(),
            Hierarchy::V2 { mount } => vec![mount],
        }
    }

    fn create(&self, path: &str, limits: Limits) -> Result<(), Error> {
        match &self.hierarchy {
            Hierarchy::V1 { mounts } => {
                for controller in V1_CONTROLLERS {
                    let Some(base) = mounts.get(*controller) else { continue };
                    let dir = below(base, path);
                    make(&dir)?;
                    for (file, value) in v1_files(controller, limits) {
                        write(&dir.join(file), &value)?;
                    }
                }
            }
            Hierarchy::V2 { mount } => {
                let dir = below(mount, path);
                make(&dir)?;
                delegate(mount, path)?;
                for (file, value) in v2_files(limits) {
                    write(&dir.join(file), &value)?;
                }
            }
        }
        Ok(())
    }
}

fn v1_files(controller: &str, limits: Limits) -> Vec<(&'static str, String)> {
    let files = match controller {
        "cpu" => vec![
            ("cpu.shares", limits.shares),
            ("cpu.cfs_period_us", limits.period),
            ("cpu.cfs_quota_us", limits.quota),
        ],
        "memory" => vec![("memory.limit_in_bytes", limits.memory)],
        "pids" => vec![("pids.max", limits.pids)],
        _ => Vec::new(),
    };
    files
        .into_iter()
        .filter_map(|(file, value)| Some((file, value?.to_string())))
        .collect()
}

fn v2_files(limits: Limits) -> Vec<(&'static str, String)> {
    let mut files = Vec::new();
    if let Some(shares) = limits.shares {
        files.push(("cpu.weight", weight(shares).to_string()));
    }
    if let (Some(quota), Some(period)) = (limits.quota, limits.period) {
        files.push(("cpu.max", format!("{quota} {period}")));
    }
    files.extend(limits.memory.map(|memory| ("memory.max", memory.to_string())));
    files.extend(limits.pids.map(|pids| ("pids.max", pids.to_string())));
    files
}

/// v1's shares (2 to 262144) as v2's weight (1 to 10000).
fn weight(shares: i64) -> i64 {
    1 + (shares - MIN_SHARES) * 9999 / (MAX_SHARES - MIN_SHARES)
}

/// v2: a cgroup has only the controllers that all its ancestors pass on.
fn delegate(mount: &Path, path: &str) -> Result<(), Error> {
    let available = std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    let wanted: Vec<_> = ["cpu", "cpuset", "memory", "pids", "hugetlb", "io"]
        .into_iter()
        .filter(|controller| available.split_whitespace().any(|word| word == *controller))
        .collect();
    let mut dir = mount.to_path_buf();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    for part in std::iter::once("").chain(parts) {
        if !part.is_empty() {
            dir.push(part);
        }
        let file = dir.join("cgroup.subtree_control");
        let enabled = std::fs::read_to_string(&file).unwrap_or_default();
        for controller in &wanted {
            if !enabled.split_whitespace().any(|word| word == *controller) {
                // The leaf with processes refuses; so does a controller that an ancestor keeps. Limits then fail loudly.
                if let Err(error) = std::fs::write(&file, format!("+{controller}")) {
                    tracing::debug!(%error, file = %file.display(), controller, "cannot pass on a controller");
                }
            }
        }
    }
    Ok(())
}

fn below(base: &Path, path: &str) -> PathBuf {
    base.join(path.trim_start_matches('/'))
}

fn make(dir: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(dir).map_err(|source| Error::Create {
        path: dir.into(),
        source,
    })
}

fn write(path: &Path, value: &str) -> Result<(), Error> {
    std::fs::write(path, value).map_err(|source| Error::Write {
        path: path.into(),
        value: value.into(),
        source,
    })
}

/// Removes a cgroup and what is below it; the kernel may need a moment until a dead process has left it.
fn remove_tree(dir: &Path) -> Result<(), Error> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::Remove {
            path: dir.into(),
            source: error,
        }),
        _ => Ok(()),
    }
}

// === what pods and containers get ===

/// CPU requests as shares.
pub(crate) fn shares(milli: i64) -> i64 {
    if milli == 0 {
        MIN_SHARES
    } else {
        (milli * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
    }
}

/// A CPU limit as quota in a period; none for no limit.
pub(crate) fn quota(milli: i64, period: Duration) -> Option<i64> {
    let period = i64::try_from(period.as_micros()).ok()?;
    (milli > 0).then(|| (milli * period / 1000).max(MIN_QUOTA))
}

fn milli(
    container: &Container,
    resource: &str,
    of: fn(&Container, &str) -> Option<skiff_api::quantity::Quantity>,
) -> i64 {
    of(container, resource).map_or(0, |quantity| clamp(quantity.as_milli()))
}

fn bytes(container: &Container, of: fn(&Container, &str) -> Option<skiff_api::quantity::Quantity>) -> i64 {
    of(container, "memory").map_or(0, |quantity| clamp(quantity.value()))
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A pod's limits: sums over its containers, where every container has one.
fn pod_limits(pod: &Pod, rules: &Rules) -> Limits {
    let main = pod::main_containers(pod);
    let init = pod::init_containers(pod);
    let sidecars = || init.iter().filter(|container| pod::is_sidecar(container));
    let total = |value: &dyn Fn(&Container) -> i64| -> i64 {
        let lasting: i64 = main.iter().chain(sidecars()).map(value).sum();
        let once = init
            .iter()
            .filter(|container| !pod::is_sidecar(container))
            .map(value)
            .max();
        lasting.max(once.unwrap_or(0))
    };
    let all = |value: &dyn Fn(&Container) -> i64| main.iter().chain(init).all(|container| value(container) > 0);
    let cpu_limit = |container: &Container| milli(container, "cpu", pod::limit);
    let memory_limit = |container: &Container| bytes(container, pod::limit);
    let mut limits = Limits {
        shares: Some(shares(total(&|container| milli(container, "cpu", pod::request)))),
        pids: (rules.pids > 0).then_some(rules.pids),
        ..Limits::default()
    };
    if rules.quota && all(&cpu_limit) {
        limits.quota = quota(total(&cpu_limit), rules.period);
        limits.period = limits.quota.and_then(|_| i64::try_from(rules.period.as_micros()).ok());
    }
    if all(&memory_limit) {
        limits.memory = Some(total(&memory_limit));
    }
    limits
}

/// What a container's cgroup gets.
pub(crate) fn container_resources(pod: &Pod, container: &Container, rules: &Rules) -> LinuxResources {
    let quota = if rules.quota {
        quota(milli(container, "cpu", pod::limit), rules.period)
    } else {
        None
    };
    LinuxResources {
        cpu_shares: shares(milli(container, "cpu", pod::request)),
        cpu_quota: quota.unwrap_or(0),
        cpu_period: quota
            .and_then(|_| i64::try_from(rules.period.as_micros()).ok())
            .unwrap_or(0),
        memory_limit: bytes(container, pod::limit),
        oom_score_adj: oom_score(pod, container, rules.memory_capacity),
        ..LinuxResources::default()
    }
}

/// Who dies first when memory is short: the more a burstable container asked for, the later.
fn oom_score(pod: &Pod, container: &Container, capacity: i64) -> i64 {
    match pod::qos(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let request = i128::from(bytes(container, pod::request));
            let score = 1000 - i64::try_from(1000 * request / i128::from(capacity.max(1))).unwrap_or(1000);
            score.clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::tests::pod;

    const RULES: Rules = Rules {
        quota: true,
        period: Duration::from_millis(100),
        pids: 64,
        memory_capacity: 1 << 30,
    };

    fn with(resources: &[Value]) -> Pod {
        let containers: Vec<_> = resources
            .iter()
            .enumerate()
            .map(|(index, resources)| json!({"name": format!("c{index}"), "resources": resources}))
            .collect();
        pod(&json!({"containers": containers}))
    }

    #[test]
    fn limits_of_a_pod() {
        let full = json!({"limits": {"cpu": "500m", "memory": "64Mi"}});
        let limits = pod_limits(&with(&[full.clone(), full.clone()]), &RULES);
        assert_eq!(
            limits,
            Limits {
                shares: Some(1024),
                quota: Some(100_000),
                period: Some(100_000),
                memory: Some(128 << 20),
                pids: Some(64)
            }
        );
        let partly = pod_limits(&with(&[full, json!({})]), &RULES);
        assert_eq!((partly.shares, partly.quota, partly.memory), (Some(512), None, None));
    }

    #[test]
    fn resources_of_a_container() {
        let p = with(&[json!({"limits": {"cpu": "10m", "memory": "128Mi"}, "requests": {"memory": "512Mi"}})]);
        let resources = container_resources(&p, &p.spec.as_ref().unwrap().containers[0], &RULES);
        assert_eq!(
            (resources.cpu_shares, resources.cpu_quota, resources.cpu_period),
            (10, 1000, 100_000)
        );
        assert_eq!(resources.memory_limit, 128 << 20);
        assert_eq!(resources.oom_score_adj, 500);
    }

    #[test]
    fn weights_of_v2() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 39, 10_000]);
    }

    #[test]
    fn a_tree_of_v1_files() {
        let dir = tempfile::tempdir().unwrap();
        for controller in ["cpu", "memory", "pids", "freezer"] {
            std::fs::create_dir(dir.path().join(controller)).unwrap();
            std::fs::write(dir.path().join(controller).join("cgroup.procs"), "").unwrap();
        }
        let cgroups = Cgroups::open(dir.path(), "/skiff/a", Driver::Cgroupfs).unwrap();
        let p = with(&[json!({"requests": {"cpu": "1"}})]);
        cgroups.create_pod(&p, &RULES).unwrap();
        assert_eq!(cgroups.parent(&p), "/skiff/a/kubepods/burstable/podu1");
        let cpu = dir.path().join("cpu/skiff/a/kubepods/burstable/podu1/cpu.shares");
        assert_eq!(std::fs::read_to_string(&cpu).unwrap(), "1024");
        assert_eq!(cgroups.pods(), ["u1"]);
    }

    #[test]
    fn names_for_systemd() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cgroup.controllers"), "cpu memory pids").unwrap();
        let cgroups = Cgroups::open(dir.path(), "", Driver::Systemd).unwrap();
        let mut p = with(&[json!({})]);
        p.metadata.uid = Some("a-b".into());
        assert_eq!(cgroups.parent(&p), "kubepods-besteffort-poda_b.slice");
    }
}
