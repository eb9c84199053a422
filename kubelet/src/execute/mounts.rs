//! What is mounted into a container: volumes, `/etc/hosts`, the termination message file.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::sys::statvfs::FsFlags;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use skiff_api::k8s_openapi::api::core::v1::{Container, Pod, Volume, VolumeMount};
use skiff_cri::{Mount, MountPropagation};
use skiff_daemon::error_chain;

use super::image_volumes::ImageVolumes;
use crate::agent::Agent;
use crate::observed::Sandbox;
use crate::{env, files, hosts, pod, volumes};

/// What a container's mounts come from.
pub(super) struct Subject<'a> {
    pub(super) agent: &'a Agent,
    pub(super) pod: &'a Pod,
    pub(super) container: &'a Container,
    pub(super) sandbox: &'a Sandbox,
    pub(super) attempt: u32,
    pub(super) envs: &'a [(String, String)],
    /// Whether the sandbox's runtime can make mounts read-only all the way down.
    pub(super) recursive: bool,
    pub(super) images: &'a ImageVolumes,
}

/// Whether a container wants mounts that are read-only all the way down, if only where that is possible.
pub(super) fn wants_recursive(container: &Container) -> bool {
    let mut mounts = container.volume_mounts.iter().flatten();
    mounts.any(|mount| matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")))
}

impl Subject<'_> {
    /// All mounts; the error is text for the container's status.
    pub(super) fn mounts(&self) -> Result<Vec<Mount>, String> {
        if self
            .container
            .volume_devices
            .as_ref()
            .is_some_and(|list| !list.is_empty())
        {
            return Err("volumeDevices: block volumes are not supported by this kubelet".into());
        }
        let mut mounts = Vec::new();
        for (index, mount) in self.container.volume_mounts.iter().flatten().enumerate() {
            mounts.push(self.volume_mount(index, mount)?);
        }
        let has = |mounts: &[Mount], path: &str| mounts.iter().any(|mount| mount.container_path == path);
        if !has(&mounts, "/etc/hosts") {
            let file = self
                .hosts_file()
                .map_err(|error| format!("cannot write the pod's /etc/hosts: {error}"))?;
            mounts.push(bind("/etc/hosts", &file));
        }
        let path = self
            .container
            .termination_message_path
            .as_deref()
            .unwrap_or("/dev/termination-log");
        if !path.is_empty() && !has(&mounts, path) {
            let file = self
                .message_file()
                .map_err(|error| format!("cannot create the termination message file: {error}"))?;
            mounts.push(bind(path, &file));
        }
        Ok(mounts)
    }

    fn volume_mount(&self, index: usize, mount: &VolumeMount) -> Result<Mount, String> {
        let volumes = pod::spec(self.pod).volumes.as_deref().unwrap_or_default();
        let volume = volumes.iter().find(|volume| volume.name == mount.name);
        let sub_path = match &mount.sub_path_expr {
            Some(expression) if !expression.is_empty() => expanded(expression, self.envs)?,
            _ => mount.sub_path.clone().unwrap_or_default(),
        };
        let inside = clean(&sub_path)?;
        let recursive_read_only = is_recursive(mount, self.recursive)?;
        if let Some(image) = self.images.get(&mount.name) {
            return Ok(Mount {
                container_path: pod::mount_path(mount),
                readonly: true,
                recursive_read_only,
                image: image.clone(),
                image_sub_path: inside.to_string_lossy().into_owned(),
                ..Mount::default()
            });
        }
        let path = volume.and_then(|volume| self.agent.volumes.path(self.pod, volume));
        let (Some(volume), Some(base)) = (volume, path) else {
            let name = &self.container.name;
            return Err(format!(
                "cannot find volume {:?} to mount into container {name:?}",
                mount.name
            ));
        };
        let host_path = if inside.as_os_str().is_empty() {
            base
        } else {
            self.sub_path(index, mount, &base, &inside)?
        };
        Ok(Mount {
            container_path: pod::mount_path(mount),
            readonly: mount.read_only.unwrap_or(false) || is_read_only(volume) || is_mounted_so(volume, &host_path),
            host_path: host_path.to_string_lossy().into_owned(),
            recursive_read_only,
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => MountPropagation::HostToContainer,
                Some("Bidirectional") => MountPropagation::Bidirectional,
                _ => MountPropagation::Private,
            },
            ..Mount::default()
        })
    }

    /// A path inside a volume, resolved beneath it and held by a bind mount of its own: what the pod's containers do to the
    /// volume afterwards cannot lead the mount elsewhere.
    fn sub_path(&self, index: usize, mount: &VolumeMount, base: &Path, sub: &Path) -> Result<PathBuf, String> {
        let found = open_below(base, sub)?;
        let dir = self.agent.volumes.sub_paths_dir(pod::uid(self.pod), &mount.name);
        let dir = dir.join(&self.container.name);
        let target = dir.join(index.to_string());
        let held = std::fs::create_dir_all(&dir)
            .map_err(|error| format!("cannot create its mount point: {error}"))
            .and_then(|()| hold(&found, &target, pod::is_bidirectional(mount)));
        match held {
            Ok(()) => Ok(target),
            Err(why) => Err(format!(
                "failed to prepare subPath {sub:?} of volume {:?}: {why}",
                mount.name
            )),
        }
    }

    fn hosts_file(&self) -> std::io::Result<PathBuf> {
        let path = self.agent.volumes.pod_dir(pod::uid(self.pod)).join("etc-hosts");
        let node = if pod::host_network(self.pod) {
            Some(String::from_utf8_lossy(&std::fs::read("/etc/hosts")?).into_owned())
        } else {
            None
        };
        let domain = &self.agent.config.kubelet.cluster_domain;
        let text = hosts::file(self.pod, &self.sandbox.ips, domain, node.as_deref());
        // Containers may write it, as much as they like.
        if files::read_head(&path, text.len() + 1).is_ok_and(|known| known == text.as_bytes()) {
            return Ok(path);
        }
        // They see it by its inode: it is written in place.
        files::write_in_place(&path, text.as_bytes())?;
        Ok(path)
    }

    /// A fresh file for each start, so that an old message is never taken for a new one.
    fn message_file(&self) -> std::io::Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = self
            .agent
            .volumes
            .messages_dir(pod::uid(self.pod))
            .join(&self.container.name);
        std::fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{:08x}", self.attempt));
        std::fs::write(&path, "")?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        Ok(path)
    }
}

/// Volumes that the kubelet writes and the pod may not, as upstream mounts them: a link planted in one would be followed at
/// the next update; and claims that the pod wants to read only.
fn is_read_only(volume: &Volume) -> bool {
    let claim = volume.persistent_volume_claim.as_ref();
    claim.is_some_and(|claim| claim.read_only == Some(true))
        || volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some()
}

/// Whether a claim's volume is mounted read-only on the node, as its mount options say: runc from 1.2 on would make it writable for a
/// container that does not ask for the same.
fn is_mounted_so(volume: &Volume, path: &Path) -> bool {
    let is_claim = volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some();
    is_claim && nix::sys::statvfs::statvfs(path).is_ok_and(|found| found.flags().contains(FsFlags::ST_RDONLY))
}

fn bind(container_path: &str, host_path: &Path) -> Mount {
    Mount {
        container_path: container_path.into(),
        host_path: host_path.to_string_lossy().into_owned(),
        ..Mount::default()
    }
}

/// Whether the mounts below a mount are to be read-only, too; less than what was asked for must not run. The texts are upstream's.
fn is_recursive(mount: &VolumeMount, supported: bool) -> Result<bool, String> {
    let mode = mount.recursive_read_only.as_deref().unwrap_or("Disabled");
    let refuse = |why: &str| {
        let name = &mount.name;
        Err(format!(
            "volume {name:?} requested recursive read-only mode, but it is {why}"
        ))
    };
    match (mode, mount.mount_propagation.as_deref()) {
        ("Disabled", _) => Ok(false),
        _ if mount.read_only != Some(true) => refuse("not read-only"),
        (_, Some(propagation)) if propagation != "None" => {
            refuse(&format!("not compatible with propagation {propagation:?}"))
        }
        ("IfPossible", _) => Ok(supported),
        ("Enabled", _) if supported => Ok(true),
        ("Enabled", _) => refuse("not supported by the runtime"),
        (unknown, _) => Err(format!("unknown recursive read-only mode {unknown:?}")),
    }
}

/// A subPathExpr with the variables that it names: without one of them it would be another pod's path.
fn expanded(expression: &str, envs: &[(String, String)]) -> Result<String, String> {
    let missing = RefCell::new(BTreeSet::new());
    let text = env::expand(expression, |name| {
        let known = envs.iter().find(|(key, value)| key == name && !value.is_empty());
        if known.is_none() {
            missing.borrow_mut().insert(name.to_owned());
        }
        known.map(|(_, value)| value.clone())
    });
    let missing: Vec<String> = missing.into_inner().into_iter().collect();
    if missing.is_empty() {
        Ok(text)
    } else {
        Err(format!("missing value for {}", missing.join(", ")))
    }
}

/// A subPath without what means nothing in it (`./a//b/` is `a/b`); empty where it is the volume itself. The texts are upstream's.
fn clean(sub: &str) -> Result<PathBuf, String> {
    let mut clean = PathBuf::new();
    for part in Path::new(sub).components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::CurDir => {}
            Component::ParentDir => return Err(format!("unable to provision SubPath `{sub}`: must not contain '..'")),
            Component::RootDir | Component::Prefix(_) => {
                return Err(format!("error SubPath `{sub}` must not be an absolute path"));
            }
        }
    }
    Ok(clean)
}

/// Opens a path inside a volume that no symbolic link leads out of; directories that are missing are made, as open to
/// others as the volume is.
fn open_below(base: &Path, sub: &Path) -> Result<OwnedFd, String> {
    let failed = |error: rustix::io::Errno| format!("failed to prepare subPath {sub:?} of {}: {error}", base.display());
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(base, flags | OFlags::DIRECTORY, Mode::empty()).map_err(failed)?;
    let open = |path: &Path, flags| rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::BENEATH);
    if open(sub, flags).is_err() {
        let mode = Mode::from_raw_mode(rustix::fs::fstat(&root).map_err(failed)?.st_mode & 0o7777);
        let mut made = PathBuf::from(".");
        for part in sub.components() {
            let parent = open(&made, flags).map_err(failed)?;
            made.push(part);
            match rustix::fs::mkdirat(&parent, part.as_os_str(), mode) {
                Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(failed(error)),
                Ok(()) => {
                    // What umask took away is given back.
                    let dir = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    rustix::fs::fchmod(open(&made, dir).map_err(failed)?, mode).map_err(failed)?;
                }
            }
        }
    }
    open(sub, flags).map_err(failed)
}

/// Binds an open file or directory to a path, in the place of what an earlier start has bound there.
fn hold(found: &OwnedFd, target: &Path, both_ways: bool) -> Result<(), String> {
    volumes::unmount_below(target).map_err(|error| error_chain(&error))?;
    let kind = rustix::fs::fstat(found).map_err(|error| format!("cannot look at it: {error}"))?;
    let made = if rustix::fs::FileType::from_raw_mode(kind.st_mode).is_dir() {
        std::fs::create_dir_all(target)
    } else {
        std::fs::File::create(target).map(drop)
    };
    made.map_err(|error| format!("cannot create its mount point: {error}"))?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    volumes::bind(&source, target, both_ways).map_err(|error| error_chain(&error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn sub_paths_stay_in_their_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        std::fs::set_permissions(&volume, std::fs::Permissions::from_mode(0o777)).unwrap();
        std::fs::write(volume.join("file"), "").unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("file", volume.join("in")).unwrap();
        let found = |sub: &str| {
            let fd = open_below(&volume, Path::new(sub)).unwrap();
            std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
        };
        assert_eq!(found("file"), volume.join("file"));
        assert_eq!(found("new/dir"), volume.join("new/dir"));
        let mode = std::fs::metadata(volume.join("new/dir")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o777, "as open as the volume");
        assert_eq!(found("in"), volume.join("file"));
        for bad in ["out", "out/passwd", "../volume", "/etc"] {
            assert!(open_below(&volume, Path::new(bad)).is_err(), "{bad}");
        }
    }

    /// A pod that writes the volume puts a link to a directory of the node in a directory's place while another container starts.
    #[test]
    fn a_sub_path_that_is_swapped_meanwhile_leads_nowhere() {
        let place = tempfile::tempdir().unwrap();
        let (volume, outside) = (place.path().join("volume"), place.path().join("outside"));
        for dir in [&outside, &volume.join("directory")] {
            std::fs::create_dir_all(dir).unwrap();
            std::fs::write(dir.join("file"), "").unwrap();
        }
        std::os::unix::fs::symlink(&outside, volume.join("link")).unwrap();
        let own = std::fs::metadata(volume.join("directory/file")).unwrap().ino();
        let done = AtomicBool::new(false);
        let found = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (real, link) = (volume.join("directory"), volume.join("link"));
                while !done.load(Ordering::Relaxed) {
                    let cwd = rustix::fs::CWD;
                    rustix::fs::renameat_with(cwd, &real, cwd, &link, rustix::fs::RenameFlags::EXCHANGE).unwrap();
                }
            });
            let mut found = 0;
            for attempt in 0..5000 {
                if let Ok(file) = open_below(&volume, Path::new("directory/file")) {
                    found += 1;
                    assert_eq!(rustix::fs::fstat(&file).unwrap().st_ino, own);
                }
                open_below(&volume, &Path::new("directory").join(format!("new/{attempt}"))).ok();
            }
            done.store(true, Ordering::Relaxed);
            found
        });
        assert!(found > 0 && found < 5000, "it was never swapped: {found}");
        let names: Vec<_> = std::fs::read_dir(&outside)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["file"], "nothing is made outside");
    }

    /// A disk of the node in a hostPath's directory, which containers that start again and again mount by a subPath.
    #[test]
    fn the_nodes_mounts_in_a_sub_path_outlive_its_containers() {
        let place = tempfile::tempdir().unwrap();
        let (volume, target) = (place.path().join("volume"), place.path().join("target"));
        let mounts = || skiff_cri::containerd::mounts_below(place.path()).unwrap();
        let (nested, later) = (volume.join("disks/nested"), volume.join("disks/later"));
        for both_ways in [false, true] {
            volumes::share(&volume);
            volumes::share(&nested);
            let found = open_below(&volume, Path::new("disks")).unwrap();
            hold(&found, &target, both_ways).unwrap();
            volumes::share(&later);
            assert_eq!(
                mounts(),
                [&volume, &nested, &target, &later, &target.join("later")].map(Clone::clone),
                "what is mounted later shows"
            );
            hold(&found, &target, both_ways).unwrap();
            assert_eq!(
                mounts(),
                [&volume, &nested, &later, &target].map(Clone::clone),
                "started again"
            );
            let mut kept = vec![volume.clone(), nested.clone(), later.clone()];
            // What a container mounts for the node, and a disk that is mounted on the directory itself.
            let (over, seen) = if both_ways {
                (target.join("later/inner"), later.join("inner"))
            } else {
                (volume.join("disks"), volume.join("disks"))
            };
            volumes::share(&over);
            kept.push(seen);
            volumes::unmount_below(&target).unwrap();
            assert_eq!(mounts(), kept);
            drop(found);
            volumes::unmount_below(place.path()).unwrap();
        }
    }

    #[test]
    fn expressions_need_their_variables() {
        let envs = [("A".to_owned(), "x".to_owned()), ("EMPTY".to_owned(), String::new())];
        let of = |expression: &str| expanded(expression, &envs);
        assert_eq!(of("a/$(A)/$$(A)").as_deref(), Ok("a/x/$(A)"));
        assert_eq!(
            of("$(B)/$(EMPTY)/$(A)/$(B)"),
            Err("missing value for B, EMPTY".to_owned())
        );
    }

    #[test]
    fn read_only_all_the_way_down() {
        let mount = |mode: Option<&str>, read_only: bool, propagation: Option<&str>| VolumeMount {
            name: "v".into(),
            read_only: Some(read_only),
            recursive_read_only: mode.map(Into::into),
            mount_propagation: propagation.map(Into::into),
            ..VolumeMount::default()
        };
        let cases = [
            (mount(None, true, None), Ok(false), Ok(false)),
            (mount(Some("Disabled"), false, None), Ok(false), Ok(false)),
            (mount(Some("IfPossible"), true, None), Ok(false), Ok(true)),
            (
                mount(Some("Enabled"), true, Some("None")),
                Err("not supported by the runtime"),
                Ok(true),
            ),
            (
                mount(Some("Enabled"), false, None),
                Err("not read-only"),
                Err("not read-only"),
            ),
            (
                mount(Some("IfPossible"), true, Some("Bidirectional")),
                Err("not compatible with propagation \"Bidirectional\""),
                Err("not compatible with propagation \"Bidirectional\""),
            ),
        ];
        for (mount, without, with) in cases {
            for (supported, wanted) in [(false, without), (true, with)] {
                let found = is_recursive(&mount, supported);
                let begins = "volume \"v\" requested recursive read-only mode, but it is ";
                let wanted = wanted.map_err(|why| format!("{begins}{why}"));
                assert_eq!(found, wanted, "{mount:?} {supported}");
            }
        }
    }

    #[test]
    fn sub_paths_that_say_more_than_they_mean() {
        let cases = [
            ("a", Some("a")),
            ("./a", Some("a")),
            ("a/", Some("a")),
            ("a//b", Some("a/b")),
            ("./a/./b/.", Some("a/b")),
            ("..a/b..", Some("..a/b..")),
            (".", Some("")),
            ("./", Some("")),
            ("", Some("")),
            ("..", None),
            ("a/../b", None),
            ("./..", None),
            ("/a", None),
        ];
        for (sub, inside) in cases {
            assert_eq!(clean(sub).ok(), inside.map(PathBuf::from), "{sub}");
        }
    }
}
