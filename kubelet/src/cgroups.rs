//! The cgroups above pods' containers: `kubepods`, one for each QoS class but Guaranteed, one for each pod.
//!
//! Written by hand and not with cgroups-rs: that crate keeps whole controllers of a subsystem in hand, drags in a second
//! version of nix, and a second of zbus, for what here are a few small files. With the systemd driver the same tree is made of
//! slices, by [`systemd`] over D-Bus.

mod files;
mod kernel_log;
mod limits;
mod pressure;
mod reserve;
mod systemd;
mod transfers;
mod usage;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use skiff_api::k8s_openapi::api::core::v1::Pod;

use crate::pod::{self, Qos};

pub(crate) use limits::{Rules, Swap, container_resources, containers_resources, overhead};
use limits::{pod_limits, shares};
pub(crate) use pressure::{Pressure, Stalls};
use systemd::Systemd;
pub(crate) use transfers::Transfers;
pub(crate) use usage::Usage;

/// Controllers whose files are written on cgroup v1. Memory comes last: a limit below what is used is refused.
const V1_CONTROLLERS: &[&str] = &["cpu", "pids", "memory"];
/// Controllers of version 2 that pods' cgroups need, as far as the machine has them.
const V2_CONTROLLERS: &[&str] = &["cpu", "cpuset", "memory", "pids", "hugetlb", "io"];

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
    /// systemd does not do what it is asked.
    #[error("cannot keep the slices of pods")]
    Systemd(#[from] systemd::Error),
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

/// Who makes cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// This process: directories.
    Cgroupfs,
    /// systemd, as slices.
    Systemd {
        /// Its bus; the system's when there is none.
        bus: Option<String>,
    },
}

/// The driver at work.
#[derive(Clone, Debug)]
enum Maker {
    Directories,
    Slices(Systemd),
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
    maker: Maker,
    /// The parts of `cgroupRoot`.
    root: Vec<String>,
    /// The weight that all burstable pods together were last given.
    burstable: Arc<Mutex<Option<i64>>>,
    /// Held while systemd is told that weight.
    weighing: Arc<tokio::sync::Mutex<()>>,
}

// === impl Cgroups ===

impl Cgroups {
    /// Finds the hierarchy below `mount` (`/sys/fs/cgroup`) and makes the tree of QoS classes.
    pub(crate) async fn open(mount: &Path, root: &str, driver: Driver) -> Result<Self, Error> {
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
        let cgroups = Self {
            hierarchy,
            maker: match driver {
                Driver::Cgroupfs => Maker::Directories,
                Driver::Systemd { bus } => Maker::Slices(Systemd::new(bus)),
            },
            root: parts(root).map(str::to_owned).collect(),
            burstable: Arc::default(),
            weighing: Arc::default(),
        };
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let limits = Limits {
                shares: (qos == Qos::BestEffort).then_some(limits::MIN_SHARES),
                ..Limits::default()
            };
            cgroups.create(&cgroups.class_path(qos), limits).await?;
        }
        Ok(cgroups)
    }

    /// Whether this machine has version 2 alone.
    pub(crate) fn is_unified(&self) -> bool {
        matches!(self.hierarchy, Hierarchy::V2 { .. })
    }

    /// How containers are kept from swapping here, where the kernel counts it; `LimitedSwap` shares out so many bytes.
    pub(crate) fn swap(&self, shared: Option<i64>) -> Option<Swap> {
        match &self.hierarchy {
            Hierarchy::V1 { mounts } => {
                let counted = mounts.get("memory")?.join("memory.memsw.limit_in_bytes");
                counted.exists().then_some(Swap::Together)
            }
            // The root has no limits; any cgroup below it shows what the kernel can.
            Hierarchy::V2 { mount } => {
                let mut below = std::fs::read_dir(mount).ok()?.filter_map(Result::ok);
                let counted = below.any(|entry| entry.path().join("memory.swap.max").exists());
                counted.then_some(Swap::Apart(shared))
            }
        }
    }

    /// Where a cgroup is whose name has these parts, as the driver writes it: `/a/b`, or `/a.slice/a-b.slice`.
    fn path_of<'a>(&self, parts: impl Iterator<Item = &'a str>) -> String {
        match self.maker {
            Maker::Directories => parts.flat_map(|part| ["/", part]).collect(),
            Maker::Slices(_) => {
                let (mut path, mut name) = (String::new(), String::new());
                for part in parts {
                    if !name.is_empty() {
                        name.push('-');
                    }
                    // A dash tells parent from child.
                    name.push_str(&part.replace('-', "_"));
                    path.push_str(&format!("/{name}.slice"));
                }
                path
            }
        }
    }

    fn class_path(&self, qos: Qos) -> String {
        self.path_in_class(qos, None)
    }

    fn path_in_class(&self, qos: Qos, pod: Option<&str>) -> String {
        let class = match qos {
            Qos::Guaranteed => None,
            Qos::Burstable => Some("burstable"),
            Qos::BestEffort => Some("besteffort"),
        };
        let root = self.root.iter().map(String::as_str);
        self.path_of(root.chain(["kubepods"]).chain(class).chain(pod))
    }

    /// Where a pod's cgroup is in the file system.
    pub(crate) fn pod_path(&self, pod: &Pod) -> String {
        self.path_in_class(pod::qos(pod), Some(&format!("pod{}", pod::uid(pod))))
    }

    /// The parent cgroup to name to the runtime: a path, or the name of a slice.
    pub(crate) fn parent(&self, pod: &Pod) -> String {
        let path = self.pod_path(pod);
        match self.maker {
            Maker::Directories => path,
            Maker::Slices(_) => unit(&path).to_owned(),
        }
    }

    /// Makes the pod's cgroup with its limits.
    pub(crate) async fn create_pod(&self, pod: &Pod, rules: &Rules) -> Result<(), Error> {
        let path = self.pod_path(pod);
        self.create(&path, pod_limits(pod, rules)).await?;
        self.limit_huge_pages(&path, &limits::huge_pages_of_pod(pod, rules))
    }

    /// Written by hand with either driver: systemd has no word for it, and does not pass the controller on. Where the kernel keeps
    /// no count, nothing is limited.
    fn limit_huge_pages(&self, path: &str, limits: &BTreeMap<String, u64>) -> Result<(), Error> {
        if limits.is_empty() {
            return Ok(());
        }
        let (base, file) = match &self.hierarchy {
            Hierarchy::V1 { mounts } => match mounts.get("hugetlb") {
                Some(mount) => (mount, "limit_in_bytes"),
                None => return Ok(()),
            },
            Hierarchy::V2 { mount } => {
                if matches!(self.maker, Maker::Slices(_)) {
                    delegate(mount, path, &["hugetlb"]);
                }
                (mount, "max")
            }
        };
        let dir = below(base, path);
        make(&dir)?;
        for (size, bytes) in limits {
            let file = dir.join(format!("hugetlb.{size}.{file}"));
            if file.exists() {
                write(&file, &bytes.to_string())?;
            }
        }
        Ok(())
    }

    /// Removes a pod's cgroup, whatever class it was in; succeeds when there is none.
    pub(crate) async fn remove_pod(&self, uid: &str) -> Result<(), Error> {
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let path = self.path_in_class(qos, Some(&format!("pod{uid}")));
            if let Maker::Slices(systemd) = &self.maker
                && self.mounts().iter().any(|base| below(base, &path).is_dir())
            {
                systemd.stop(unit(&path)).await?;
            }
            for base in self.mounts() {
                remove_tree(&below(base, &path))?;
            }
        }
        Ok(())
    }

    /// UIDs of all pods that have a cgroup.
    pub(crate) fn pods(&self) -> Vec<String> {
        let mut uids = std::collections::BTreeSet::new();
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let class = self.class_path(qos);
            for base in self.mounts() {
                let entries = std::fs::read_dir(below(base, &class)).into_iter().flatten();
                let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
                uids.extend(names.filter_map(|name| self.uid_of(&class, &name)));
            }
        }
        uids.into_iter().collect()
    }

    /// The pod whose cgroup has this name in its class.
    fn uid_of(&self, class: &str, name: &str) -> Option<String> {
        match self.maker {
            Maker::Directories => name.strip_prefix("pod").map(str::to_owned),
            Maker::Slices(_) => {
                let class = unit(class).strip_suffix(".slice")?;
                let rest = name.strip_suffix(".slice")?.strip_prefix(class)?;
                Some(rest.strip_prefix("-pod")?.replace('_', "-"))
            }
        }
    }

    fn mounts(&self) -> Vec<&Path> {
        match &self.hierarchy {
            Hierarchy::V1 { mounts } => mounts.values().map(PathBuf::as_path).collect(),
            Hierarchy::V2 { mount } => vec![mount],
        }
    }

    async fn create(&self, path: &str, limits: Limits) -> Result<(), Error> {
        match &self.maker {
            Maker::Directories => self.write_apart(path, limits).await,
            Maker::Slices(systemd) => {
                let properties = systemd::limits(limits, self.is_unified());
                Ok(systemd.start(unit(path), &properties).await?)
            }
        }
    }

    /// On a thread of its own: before it refuses a memory limit, the kernel takes its time to give memory back.
    async fn write_apart(&self, path: &str, limits: Limits) -> Result<(), Error> {
        let (cgroups, path) = (self.clone(), path.to_owned());
        match tokio::task::spawn_blocking(move || cgroups.write(&path, limits)).await {
            Ok(written) => written,
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        }
    }

    fn write(&self, path: &str, limits: Limits) -> Result<(), Error> {
        match &self.hierarchy {
            Hierarchy::V1 { mounts } => {
                for controller in V1_CONTROLLERS {
                    let Some(base) = mounts.get(*controller) else { continue };
                    let dir = below(base, path);
                    make(&dir)?;
                    for (file, value) in files::v1(controller, limits) {
                        write(&dir.join(file), &value)?;
                    }
                }
            }
            Hierarchy::V2 { mount } => {
                let dir = below(mount, path);
                make(&dir)?;
                delegate(mount, path, V2_CONTROLLERS);
                for (file, value) in files::v2(limits) {
                    write(&dir.join(file), &value)?;
                }
            }
        }
        Ok(())
    }
}

/// The parts of a name as people write it: `/a/b`, or `a.slice`.
fn parts(name: &str) -> impl Iterator<Item = &str> {
    name.trim_end_matches(".slice")
        .split('/')
        .filter(|part| !part.is_empty())
}

/// The unit at the end of a path of slices.
fn unit(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// v2: a cgroup has only the controllers that all its ancestors pass on.
fn delegate(mount: &Path, path: &str, controllers: &[&str]) {
    let available = std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    let wanted: Vec<_> = controllers
        .iter()
        .filter(|controller| available.split_whitespace().any(|word| word == **controller))
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
            if !enabled.split_whitespace().any(|word| word == **controller) {
                // The leaf with processes refuses; so does a controller that an ancestor keeps. Limits then fail loudly.
                if let Err(error) = std::fs::write(&file, format!("+{controller}")) {
                    tracing::debug!(%error, file = %file.display(), controller, "cannot pass on a controller");
                }
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::limits::tests::RULES;
    use super::*;
    use crate::pod::tests::pod;

    fn with(resources: &Value) -> Pod {
        pod(&json!({"containers": [{"name": "c0", "resources": resources}]}))
    }

    #[tokio::test]
    async fn a_tree_of_v1_files() {
        let dir = tempfile::tempdir().unwrap();
        for controller in ["cpu", "memory", "pids", "freezer"] {
            std::fs::create_dir(dir.path().join(controller)).unwrap();
            std::fs::write(dir.path().join(controller).join("cgroup.procs"), "").unwrap();
        }
        let cgroups = Cgroups::open(dir.path(), "/skiff/a", Driver::Cgroupfs).await.unwrap();
        assert!(!cgroups.is_unified());
        let p = with(&json!({"requests": {"cpu": "1"}}));
        cgroups.create_pod(&p, &RULES).await.unwrap();
        assert_eq!(cgroups.parent(&p), "/skiff/a/kubepods/burstable/podu1");
        let cpu = dir.path().join("cpu/skiff/a/kubepods/burstable/podu1/cpu.shares");
        assert_eq!(std::fs::read_to_string(&cpu).unwrap(), "1024");
        assert_eq!(cgroups.pods(), ["u1"]);
        assert_eq!(cgroups.swap(None), None, "the kernel does not count it");
        let counted = dir.path().join("memory/memory.memsw.limit_in_bytes");
        std::fs::write(counted, "").unwrap();
        assert_eq!(cgroups.swap(Some(1)), Some(Swap::Together));
    }

    #[tokio::test]
    async fn a_tree_of_v2_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cgroup.controllers"), "cpu memory pids").unwrap();
        let cgroups = Cgroups::open(dir.path(), "", Driver::Cgroupfs).await.unwrap();
        assert!(cgroups.is_unified());
        assert_eq!(cgroups.swap(None), None, "the kernel does not count it");
        std::fs::write(dir.path().join("kubepods/memory.swap.max"), "max").unwrap();
        assert_eq!(cgroups.swap(Some(1)), Some(Swap::Apart(Some(1))));
        let p = with(&json!({"limits": {"cpu": "500m", "memory": "64Mi"}}));
        cgroups.create_pod(&p, &RULES).await.unwrap();
        assert_eq!(cgroups.parent(&p), "/kubepods/burstable/podu1");
        // Where the kernel counts huge pages, who asks for none gets none.
        let pages = "kubepods/burstable/podu1/hugetlb.2MB.max";
        std::fs::write(dir.path().join(pages), "max").unwrap();
        let rules = Rules {
            page_sizes: vec!["1Gi".into(), "2Mi".into()],
            ..RULES
        };
        cgroups.create_pod(&p, &rules).await.unwrap();
        let read = |file: &str| std::fs::read_to_string(dir.path().join(file)).unwrap_or_default();
        assert_eq!(read("kubepods/besteffort/cpu.weight"), "1");
        assert_eq!(read("kubepods/burstable/podu1/cpu.weight"), "59");
        assert_eq!(read("kubepods/burstable/podu1/cpu.max"), "50000 100000");
        assert_eq!(read("kubepods/burstable/podu1/memory.max"), (64 << 20).to_string());
        assert_eq!(read("kubepods/burstable/podu1/pids.max"), "64");
        assert_eq!(read(pages), "0");
        // What was written last to a plain file; the kernel takes them one by one.
        assert_eq!(read("kubepods/cgroup.subtree_control"), "+pids");
        assert_eq!(cgroups.pods(), ["u1"]);
    }
}
