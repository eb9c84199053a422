//! A pod's volumes: made ready before its containers, kept up to date, taken away after them.
//!
//! Everything lies under `<root>/pods/<uid>/`: `volumes/kubernetes.io~<plugin>/<name>`, `etc-hosts`, `containers/<name>`.
//! Preparing is idempotent: after a restart of the kubelet, or when a named object has changed, it is simply done again.

mod atomic;
mod claim;
mod empty_dir;
mod host_path;
mod local;
mod mounts;
mod ownership;
mod projection;
mod token;

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skiff_api::k8s_openapi::api::core::v1::{Pod, Volume};

use crate::env::Facts;
use crate::events::Recorder;
use crate::objects::Objects;
use crate::{pod, tree};

#[cfg(test)]
pub(crate) use mounts::tests::share;
pub(crate) use mounts::{bind, unmount_below};
use mounts::{is_mounted, mount_tmpfs};
pub(crate) use token::Tokens;

/// Where the paths inside of volumes that containers mount are held, in the pod's directory.
const SUB_PATHS: &str = "volume-subpaths";

/// Why a volume is not ready; shown as an event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// One volume is not ready.
    // The blank before the colon that follows is upstream's.
    #[error("MountVolume.SetUp failed for volume {name:?} ")]
    Volume {
        /// The volume.
        name: String,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// A step on the file system failed.
    #[error("cannot {step} {path}")]
    File {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A mount that no path leads to.
    #[error(
        "cannot unmount {path}: another mount covers it, as a kubelet makes one that binds its directory onto itself; find it with \
         findmnt, and unmount it when no other kubelet runs here"
    )]
    Covered {
        /// Where it is mounted.
        path: PathBuf,
    },
    /// A named object, or a key of it, is not there.
    #[error("{0}")]
    Missing(String),
    /// No answer from the API server.
    #[error(transparent)]
    Unavailable(#[from] crate::objects::Unavailable),
    /// A downward reference that does not work.
    #[error(transparent)]
    Reference(#[from] crate::env::Error),
    /// No token.
    #[error("cannot get a token for service account {account}")]
    Token {
        /// Namespace and name.
        account: String,
        /// The API server's answer.
        #[source]
        source: kube::Error,
    },
    /// A path that is not what the pod says it is.
    #[error("hostPath type check failed: {0}")]
    HostPath(String),
    /// A claim's volume is not there yet.
    #[error(
        "Unable to attach or mount volumes: unmounted volumes=[{volume}], unattached volumes=[], failed to process \
         volumes=[{volume}]: error processing PVC {claim}"
    )]
    Claim {
        /// The pod's volume.
        volume: String,
        /// Namespace and name of the claim.
        claim: String,
        /// Why.
        #[source]
        source: claim::ClaimError,
    },
    /// A local volume without its directory.
    #[error("MountVolume.NewMounter initialization failed for volume {name:?} : path {path:?} does not exist")]
    NoLocalPath {
        /// The PersistentVolume.
        name: String,
        /// The directory.
        path: String,
    },
    /// A volume of other nodes.
    #[error("MountVolume.NodeAffinity check failed for volume {name:?} : {why}")]
    NodeAffinity {
        /// The PersistentVolume.
        name: String,
        /// Why.
        why: String,
    },
    /// Mount options of a kind of volume that takes none.
    #[error(
        "MountVolume.MountOptionSupport check failed for volume {name:?} : mount options are not supported for this volume \
         type"
    )]
    NoMountOptions {
        /// The PersistentVolume.
        name: String,
    },
    /// A mount option of another kind of file system.
    #[error(
        "the PersistentVolume's mount option {0:?} is none of a local volume: these are ro, noexec, nosuid, nodev, noatime, \
         nodiratime, relatime, strictatime and their opposites, and what mount(8) takes for any file system"
    )]
    MountOption(String),
    /// An emptyDir's medium that cannot be.
    #[error("{0}")]
    Medium(String),
    /// The work on its files did not come to its end.
    #[error("the work on the volume's files was cut off")]
    CutOff(#[from] tokio::task::JoinError),
    /// A kind of volume that this kubelet cannot make.
    #[error("volume type {0} is not supported by this kubelet")]
    Unsupported(&'static str),
}

impl Error {
    fn file(step: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File {
            step,
            path: path.into(),
            source,
        }
    }

    /// The reason of its event.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NoMountOptions { .. } => "UnsupportedMountOption",
            _ => "FailedMount",
        }
    }
}

/// What volumes are made from.
#[derive(Debug)]
pub(crate) struct Volumes {
    root: PathBuf,
    claims: claim::Claims,
    objects: Arc<Objects>,
    tokens: Tokens,
}

/// A volume that stands for a claim.
#[derive(Debug)]
pub(crate) struct Claimed {
    /// Its name in the pod.
    pub(crate) volume: String,
    pub(crate) claim: String,
    pub(crate) path: PathBuf,
}

// === impl Volumes ===

impl Volumes {
    pub(crate) fn new(
        root: &Path,
        (client, node): (kube::Client, &str),
        events: Recorder,
        objects: Arc<Objects>,
        tokens: Tokens,
    ) -> Self {
        Self {
            root: root.join("pods"),
            claims: claim::Claims::new(client, node, events),
            objects,
            tokens,
        }
    }

    /// The pod's directory.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root.join(uid)
    }

    /// Where the containers of a pod leave their termination messages.
    pub(crate) fn messages_dir(&self, uid: &str) -> PathBuf {
        self.pod_dir(uid).join("containers")
    }

    /// Where the paths inside of one volume are held.
    pub(crate) fn sub_paths_dir(&self, uid: &str, volume: &str) -> PathBuf {
        self.pod_dir(uid).join(SUB_PATHS).join(volume)
    }

    /// Makes every volume of the pod ready, all at once; also brings changed objects up to date. One that fails holds up no other.
    pub(crate) async fn prepare(&self, pod: &Pod, facts: &Facts) -> Result<(), Vec<Error>> {
        self.make_pod_dir(pod).map_err(|error| vec![error])?;
        let volumes = pod::spec(pod).volumes.as_deref().unwrap_or_default();
        let prepare = |volume| async move {
            let prepared = self.prepare_one(pod, volume, facts).await;
            prepared.map_err(|source| named(volume, source))
        };
        let prepared = futures::future::join_all(volumes.iter().map(prepare)).await;
        let errors: Vec<Error> = prepared.into_iter().filter_map(Result::err).collect();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn make_pod_dir(&self, pod: &Pod) -> Result<(), Error> {
        let dir = self.pod_dir(pod::uid(pod));
        make_dir(&dir, 0o750)?;
        for name in ["volumes", "containers", "plugins"] {
            make_dir(&dir.join(name), 0o750)?;
        }
        Ok(())
    }

    async fn prepare_one(&self, pod: &Pod, volume: &Volume, facts: &Facts) -> Result<(), Error> {
        if let Some(host_path) = &volume.host_path {
            return host_path::prepare(host_path);
        }
        // The runtime mounts it; it is pulled when a container that wants it starts.
        if volume.image.is_some() {
            return Ok(());
        }
        if claim::name(pod, volume).is_some() {
            let dir = self.pod_dir(pod::uid(pod));
            return self.claims.prepare(pod, &dir, volume).await;
        }
        let path = self
            .path(pod, volume)
            .ok_or_else(|| Error::Unsupported(plugin(volume)))?;
        make_dir(path.parent().unwrap_or(&path), 0o750)?;
        if let Some(source) = &volume.empty_dir {
            return empty_dir::prepare(pod, &path, source, facts);
        }
        let files = projection::files(&self.objects, &self.tokens, pod, volume, facts).await?;
        mount_memory_for_secrets(&path, volume)?;
        atomic::write(&path, &files, fs_group(pod))
    }

    /// Where a volume lies; `None` for kinds that this kubelet does not know.
    pub(crate) fn path(&self, pod: &Pod, volume: &Volume) -> Option<PathBuf> {
        if let Some(host_path) = &volume.host_path {
            return Some(PathBuf::from(&host_path.path));
        }
        if claim::name(pod, volume).is_some() {
            return std::fs::read_link(claim::link(&self.pod_dir(pod::uid(pod)), volume)).ok();
        }
        let known = volume.empty_dir.is_some()
            || volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.projected.is_some()
            || volume.downward_api.is_some();
        let dir = self
            .pod_dir(pod::uid(pod))
            .join("volumes")
            .join(format!("kubernetes.io~{}", plugin(volume)));
        known.then(|| dir.join(&volume.name))
    }

    /// The claims' volumes that are mounted in the pod's directory; a hostPath's disk is nobody's claim.
    pub(crate) fn claimed(&self, pod: &Pod) -> Vec<Claimed> {
        let dir = self.pod_dir(pod::uid(pod));
        let volumes = pod::spec(pod).volumes.iter().flatten();
        let claimed = volumes.filter_map(|volume| {
            let claim = claim::name(pod, volume)?;
            let path = self.path(pod, volume).filter(|path| path.starts_with(&dir))?;
            let volume = volume.name.clone();
            Some(Claimed { volume, claim, path })
        });
        claimed.collect()
    }

    /// When the first token of the pod should be renewed.
    pub(crate) fn refresh_at(&self, uid: &str) -> Option<jiff::Timestamp> {
        self.tokens.refresh_at(uid)
    }

    /// Unmounts and removes all volumes of a pod; what it did not make (a hostPath) is not touched.
    pub(crate) fn remove(&self, uid: &str) -> Result<(), Error> {
        self.tokens.forget(uid);
        let dir = self.pod_dir(uid);
        // The first hold what is mounted in the second.
        for mounted in [dir.join(SUB_PATHS), dir.join("volumes")] {
            unmount_below(&mounted)?;
            remove_dir(&mounted)?;
        }
        remove_dir(&dir.join("claims"))
    }

    /// Removes the whole directory of a pod.
    pub(crate) fn remove_pod(&self, uid: &str) -> Result<(), Error> {
        self.tokens.forget(uid);
        let dir = self.pod_dir(uid);
        unmount_below(&dir)?;
        remove_dir(&dir)
    }

    /// UIDs of all pods that have a directory.
    pub(crate) fn pods(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.root).into_iter().flatten();
        entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect()
    }
}

fn named(volume: &Volume, source: Error) -> Error {
    match source {
        // These name the volume themselves.
        Error::Claim { .. } | Error::NoLocalPath { .. } | Error::NodeAffinity { .. } | Error::NoMountOptions { .. } => {
            source
        }
        source => Error::Volume {
            name: volume.name.clone(),
            source: Box::new(source),
        },
    }
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod::spec(pod).security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// Upstream's plugin names, as they stand in paths.
fn plugin(volume: &Volume) -> &'static str {
    match volume {
        v if v.empty_dir.is_some() => "empty-dir",
        v if v.config_map.is_some() => "configmap",
        v if v.secret.is_some() => "secret",
        v if v.projected.is_some() => "projected",
        v if v.downward_api.is_some() => "downward-api",
        v if v.host_path.is_some() => "host-path",
        v if v.persistent_volume_claim.is_some() => "persistentVolumeClaim",
        v if v.csi.is_some() => "csi",
        v if v.nfs.is_some() => "nfs",
        v if v.ephemeral.is_some() => "ephemeral",
        _ => "unknown",
    }
}

/// Secrets and tokens never touch a disk.
fn mount_memory_for_secrets(path: &Path, volume: &Volume) -> Result<(), Error> {
    let secret = volume.secret.is_some()
        || volume
            .projected
            .iter()
            .flat_map(|projected| projected.sources.iter().flatten())
            .any(|source| source.secret.is_some() || source.service_account_token.is_some());
    make_dir(path, 0o755)?;
    if secret && !is_mounted(path)? {
        mount_tmpfs(path, "mode=755")?;
    }
    Ok(())
}

/// Removes what is the kubelet's own: a mount that was not found is an error, never a way to what is somebody else's.
fn remove_dir(path: &Path) -> Result<(), Error> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
        return Ok(());
    };
    let removed = std::fs::File::open(parent).and_then(|parent| tree::remove(&parent.into(), name));
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", path, error)),
        _ => Ok(()),
    }
}

pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(|source| Error::file("create", path, source))?;
    set_mode(path, mode)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|source| Error::file("set the mode of", path, source))
}

fn set_group(path: &Path, group: Option<u32>) -> Result<(), Error> {
    std::os::unix::fs::lchown(path, None, group).map_err(|source| Error::file("set the group of", path, source))
}
