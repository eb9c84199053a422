//! A pod's volumes: made ready before its containers, kept up to date, taken away after them.
//!
//! Everything lies under `<root>/pods/<uid>/`: `volumes/kubernetes.io~<plugin>/<name>`, `etc-hosts`, `containers/<name>`.
//! Preparing is idempotent: after a restart of the kubelet, or when a named object has changed, it is simply done again.

mod atomic;
mod host_path;
mod projection;
mod token;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags};
use skiff_api::k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod, Volume};
use skiff_api::quantity::Quantity;

use crate::env::Facts;
use crate::objects::Objects;
use crate::pod;

pub(crate) use token::Tokens;

/// Why a volume is not ready; shown as the event FailedMount.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// One volume is not ready.
    #[error("MountVolume.SetUp failed for volume {name:?}")]
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
}

/// What volumes are made from.
#[derive(Debug)]
pub(crate) struct Volumes {
    root: PathBuf,
    objects: Arc<Objects>,
    tokens: Tokens,
}

// === impl Volumes ===

impl Volumes {
    pub(crate) fn new(root: &Path, objects: Arc<Objects>, tokens: Tokens) -> Self {
        Self {
            root: root.join("pods"),
            objects,
            tokens,
        }
    }

    /// The pod's directory.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root.join(uid)
    }

    /// Makes every volume of the pod ready, all at once; also brings changed objects up to date.
    pub(crate) async fn prepare(&self, pod: &Pod, facts: &Facts) -> Result<(), Error> {
        let dir = self.pod_dir(pod::uid(pod));
        make_dir(&dir, 0o750)?;
        for name in ["volumes", "containers", "plugins"] {
            make_dir(&dir.join(name), 0o750)?;
        }
        let volumes = pod::spec(pod).volumes.as_deref().unwrap_or_default();
        let prepare = |volume| async move {
            self.prepare_one(pod, volume, facts)
                .await
                .map_err(|source| Error::Volume {
                    name: volume.name.clone(),
                    source: Box::new(source),
                })
        };
        futures::future::try_join_all(volumes.iter().map(prepare)).await?;
        Ok(())
    }

    async fn prepare_one(&self, pod: &Pod, volume: &Volume, facts: &Facts) -> Result<(), Error> {
        if let Some(host_path) = &volume.host_path {
            return host_path::prepare(host_path);
        }
        let path = self
            .path(pod, volume)
            .ok_or_else(|| Error::Unsupported(plugin(volume)))?;
        make_dir(path.parent().unwrap_or(&path), 0o750)?;
        let group = pod::spec(pod)
            .security_context
            .as_ref()
            .and_then(|context| context.fs_group);
        if let Some(source) = &volume.empty_dir {
            return empty_dir(&path, source, group);
        }
        let files = projection::files(&self.objects, &self.tokens, pod, volume, facts).await?;
        mount_memory_for_secrets(&path, volume)?;
        atomic::write(&path, &files, group)
    }

    /// Where a volume lies; `None` for kinds that this kubelet does not know.
    pub(crate) fn path(&self, pod: &Pod, volume: &Volume) -> Option<PathBuf> {
        if let Some(host_path) = &volume.host_path {
            return Some(PathBuf::from(&host_path.path));
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

    /// When the first token of the pod should be renewed.
    pub(crate) fn refresh_at(&self, uid: &str) -> Option<jiff::Timestamp> {
        self.tokens.refresh_at(uid)
    }

    /// Unmounts and removes all volumes of a pod; what it did not make (a hostPath) is not touched.
    pub(crate) fn remove(&self, uid: &str) -> Result<(), Error> {
        self.tokens.forget(uid);
        let volumes = self.pod_dir(uid).join("volumes");
        unmount_below(&volumes)?;
        remove_dir(&volumes)
    }

    /// Removes the whole directory of a pod.
    pub(crate) fn remove_pod(&self, uid: &str) -> Result<(), Error> {
        self.remove(uid)?;
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
        v if v.image.is_some() => "image",
        _ => "unknown",
    }
}

fn empty_dir(path: &Path, source: &EmptyDirVolumeSource, group: Option<i64>) -> Result<(), Error> {
    let fresh = !path.exists();
    make_dir(path, 0o777)?;
    if source.medium.as_deref() == Some("Memory") && !is_mounted(path)? {
        let limit = source
            .size_limit
            .as_ref()
            .and_then(|limit| limit.0.parse::<Quantity>().ok());
        let size = limit.map_or(String::new(), |limit| format!("size={}", limit.value()));
        mount_tmpfs(path, &size)?;
        set_mode(path, 0o777)?;
    }
    if fresh {
        set_group(path, group)?;
        // umask must not narrow what every user of the pod may write.
        set_mode(path, if group.is_some() { 0o2777 } else { 0o777 })?;
    }
    Ok(())
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
        mount_tmpfs(path, "")?;
        set_mode(path, 0o755)?;
    }
    Ok(())
}

fn mount_tmpfs(path: &Path, options: &str) -> Result<(), Error> {
    nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options))
        .map_err(|errno| Error::file("mount a tmpfs on", path, errno.into()))
}

fn is_mounted(path: &Path) -> Result<bool, Error> {
    Ok(mounts_below(path)?.iter().any(|mount| mount == path))
}

fn mounts_below(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let table = Path::new("/proc/self/mountinfo");
    let text = std::fs::read_to_string(table).map_err(|source| Error::file("read", table, source))?;
    let mounts = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|m| m.starts_with(path));
    Ok(mounts.collect())
}

/// mountinfo writes blanks and backslashes in octal.
fn unescape(field: &str) -> PathBuf {
    let mut result = String::new();
    let mut rest = field;
    while let Some(index) = rest.find('\\') {
        result.push_str(&rest[..index]);
        match rest
            .get(index + 1..index + 4)
            .and_then(|octal| u8::from_str_radix(octal, 8).ok())
        {
            Some(byte) => {
                result.push(char::from(byte));
                rest = &rest[index + 4..];
            }
            None => {
                result.push('\\');
                rest = &rest[index + 1..];
            }
        }
    }
    result.push_str(rest);
    PathBuf::from(result)
}

/// Unmounts everything at and below `path`, the deepest first, so that removing files never goes through a mount.
fn unmount_below(path: &Path) -> Result<(), Error> {
    let mut mounts = mounts_below(path)?;
    mounts.sort();
    for mount in mounts.into_iter().rev() {
        nix::mount::umount2(&mount, MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|errno| Error::file("unmount", &mount, errno.into()))?;
    }
    Ok(())
}

fn remove_dir(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
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

fn set_group(path: &Path, group: Option<i64>) -> Result<(), Error> {
    let Some(group) = group.and_then(|group| u32::try_from(group).ok()) else {
        return Ok(());
    };
    std::os::unix::fs::lchown(path, None, Some(group)).map_err(|source| Error::file("set the group of", path, source))
}
