//! Local volumes: a directory of the node, mounted for each pod that uses it, as the volume's mount options say.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::MsFlags;
use nix::sys::statvfs::FsFlags;
use parking_lot::Mutex;
use skiff_api::k8s_openapi::api::core::v1::Pod;

use super::mounts::{self, is_mounted, unmount_below};
use super::{Error, fs_group, make_dir, ownership};
use crate::pod;

/// Upstream's name of the plugin, as it stands in paths.
const PLUGIN: &str = "volumes/kubernetes.io~local-volume";

/// A PersistentVolume's directory, as one pod is to have it.
#[derive(Debug)]
pub(super) struct Local {
    /// The PersistentVolume.
    pub(super) name: String,
    /// Its directory.
    pub(super) path: PathBuf,
    /// What its author wants of the mount.
    pub(super) options: Vec<String>,
    /// Whether the pod wants to read only; another of its volumes may be the same claim's, to write to.
    pub(super) read_only: bool,
}

/// Who mounts which directory now: of two pods that come at once, the second must see the first.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>);

impl Turns {
    pub(super) async fn take(&self, path: &Path) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock();
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(path.to_owned()).or_default().clone()
        };
        turn.lock_owned().await
    }
}

/// Mounts the directory below the pod's and gives it to the pod's group, unless it is not the pod's alone: where it lies then, and what
/// is to be told.
pub(super) fn mount(pod: &Pod, pod_dir: &Path, local: &Local) -> Result<(PathBuf, Option<String>), Error> {
    if !local.path.is_dir() {
        return Err(Error::NoLocalPath {
            name: local.name.clone(),
            path: local.path.to_string_lossy().into_owned(),
        });
    }
    let shared = is_shared(&local.path, pod_dir)?;
    let told = fs_group(pod).filter(|_| shared).map(|group| warning(local, group));
    let target = pod_dir.join(PLUGIN).join(&local.name);
    make_dir(&target, 0o750)?;
    let prepared = bind(local, &target, pod::mounts_for_the_node(pod)).and_then(|()| {
        let read_only = local.read_only || found(&target)?.contains(FsFlags::ST_RDONLY);
        // Whose it is is said once, by the first pod that may write to it.
        if read_only || shared {
            return Ok(());
        }
        ownership::apply(pod, &target)
    });
    // With less than was asked for nobody is to find it, and no other pod is to take it for one that is owned already.
    prepared.inspect_err(|_| {
        unmount_below(&target).ok();
    })?;
    Ok((target, told.transpose()?.flatten()))
}

/// That the pod's group is not the one that the volume already has; the text is upstream's.
fn warning(local: &Local, wanted: u32) -> Result<Option<String>, Error> {
    let found = std::fs::metadata(&local.path).map_err(|source| Error::file("look at", &local.path, source))?;
    let (name, group) = (&local.name, found.gid());
    Ok((group != wanted).then(|| {
        format!(
            "The requested fsGroup is {wanted}, but the volume {name} has GID {group}. The volume may not be shareable."
        )
    }))
}

/// Whether another pod has the directory mounted, whatever its volume is called.
fn is_shared(path: &Path, pod_dir: &Path) -> Result<bool, Error> {
    let id = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let own = id(path).map_err(|source| Error::file("look at", path, source))?;
    let entries = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.path()))
    };
    let others = entries(pod_dir.parent().unwrap_or(pod_dir)).filter(|other| other != pod_dir);
    let mut mounted = others.flat_map(|other| entries(&other.join(PLUGIN)));
    Ok(mounted.any(|other| id(&other).is_ok_and(|other| other == own)))
}

fn bind(local: &Local, target: &Path, both_ways: bool) -> Result<(), Error> {
    if !is_mounted(target)? {
        mounts::bind(&local.path, target, both_ways)?;
    }
    let Some(flags) = options(target, local)? else {
        return Ok(());
    };
    let (none, flags) = (None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags);
    nix::mount::mount(none, target, none, flags, none)
        .map_err(|errno| Error::file("set the mount options of", target, errno.into()))
}

/// The flags of the mount at `target`, where they are to be others than its source's.
fn options(target: &Path, local: &Local) -> Result<Option<MsFlags>, Error> {
    let options: Vec<&str> = local.options.iter().map(String::as_str).collect();
    if options.is_empty() {
        return Ok(None);
    }
    flags(inherited(found(target)?), &options).map(Some)
}

fn found(target: &Path) -> Result<FsFlags, Error> {
    let found = nix::sys::statvfs::statvfs(target).map_err(|errno| Error::file("look at", target, errno.into()))?;
    Ok(found.flags())
}

/// What a bind mount has from its source: setting other flags must not take these away.
fn inherited(found: FsFlags) -> MsFlags {
    let known = [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    let set = known.into_iter().filter(|(flag, _)| found.contains(*flag));
    set.map(|(_, flag)| flag).collect()
}

/// Options that say nothing of a bind mount: they are the whole file system's, or for those who read a table of mounts. mount(8) takes
/// them, and the kernel leaves the file system as it is.
const WITHOUT_EFFECT: [&str; 24] = [
    "defaults",
    "bind",
    "rbind",
    "sync",
    "async",
    "dirsync",
    "lazytime",
    "nolazytime",
    "discard",
    "nodiscard",
    "iversion",
    "noiversion",
    "mand",
    "nomand",
    "silent",
    "loud",
    "nofail",
    "_netdev",
    "auto",
    "noauto",
    "nouser",
    "nousers",
    "noowner",
    "nogroup",
];

fn is_without_effect(option: &str) -> bool {
    let begins = ["x-", "X-", "comment="];
    WITHOUT_EFFECT.contains(&option) || begins.iter().any(|begin| option.starts_with(begin))
}

/// Flags with these options, the last of which wins.
fn flags(mut flags: MsFlags, options: &[&str]) -> Result<MsFlags, Error> {
    let times = MsFlags::MS_NOATIME | MsFlags::MS_RELATIME | MsFlags::MS_STRICTATIME;
    let untrusted = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    for &option in options {
        let (clear, set) = match option {
            option if is_without_effect(option) => continue,
            // As mount(8) has it, also for root.
            "user" | "users" => (MsFlags::empty(), untrusted | MsFlags::MS_NOEXEC),
            "owner" | "group" => (MsFlags::empty(), untrusted),
            "ro" => (MsFlags::empty(), MsFlags::MS_RDONLY),
            "rw" => (MsFlags::MS_RDONLY, MsFlags::empty()),
            "nosuid" => (MsFlags::empty(), MsFlags::MS_NOSUID),
            "suid" => (MsFlags::MS_NOSUID, MsFlags::empty()),
            "nodev" => (MsFlags::empty(), MsFlags::MS_NODEV),
            "dev" => (MsFlags::MS_NODEV, MsFlags::empty()),
            "noexec" => (MsFlags::empty(), MsFlags::MS_NOEXEC),
            "exec" => (MsFlags::MS_NOEXEC, MsFlags::empty()),
            "nodiratime" => (MsFlags::empty(), MsFlags::MS_NODIRATIME),
            "diratime" => (MsFlags::MS_NODIRATIME, MsFlags::empty()),
            "noatime" => (times, MsFlags::MS_NOATIME),
            "strictatime" => (times, MsFlags::MS_STRICTATIME),
            "relatime" | "atime" => (times, MsFlags::MS_RELATIME),
            unknown => return Err(Error::MountOption(unknown.to_owned())),
        };
        flags = (flags - clear) | set;
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;
    use crate::volumes::mounts::mount_tmpfs;
    use crate::volumes::share;
    use skiff_cri::containerd;

    #[test]
    fn options_as_flags() {
        let source = MsFlags::MS_NOSUID | MsFlags::MS_RELATIME;
        let cases: [(&[&str], Option<MsFlags>); 10] = [
            (
                &["ro", "noexec", "nodev"],
                Some(source | MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV),
            ),
            (&["defaults", "ro", "rw"], Some(source)),
            (&["suid"], Some(MsFlags::MS_RELATIME)),
            (
                &["noatime", "nodiratime"],
                Some(MsFlags::MS_NOSUID | MsFlags::MS_NOATIME | MsFlags::MS_NODIRATIME),
            ),
            (
                &["noatime", "strictatime"],
                Some(MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME),
            ),
            (
                &[
                    "sync",
                    "lazytime",
                    "discard",
                    "nofail",
                    "_netdev",
                    "x-systemd.automount",
                    "nouser",
                    "noauto",
                ],
                Some(source),
            ),
            (&["users", "exec"], Some(source | MsFlags::MS_NODEV)),
            (&["group"], Some(source | MsFlags::MS_NODEV)),
            (&["ro", "vers=4"], None),
            (&["RO"], None),
        ];
        for (options, wanted) in cases {
            assert_eq!(flags(source, options).ok(), wanted, "{options:?}");
        }
        let error = flags(source, &["ro", "vers=4"]).unwrap_err().to_string();
        assert!(error.contains("\"vers=4\""), "{error}");
    }

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            std::fs::create_dir(place.at("data")).unwrap();
            std::fs::write(place.at("data/file"), "").unwrap();
            place
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// The group of the volume's file once a pod has it mounted, and what was told.
        fn mount(&self, uid: &str, group: u32, local: &Local) -> (u32, Option<String>) {
            let p = pod(&json!({"securityContext": {"fsGroup": group}}));
            let told = mount(&p, &self.at("pods").join(uid), local).unwrap().1;
            (std::fs::metadata(self.at("data/file")).unwrap().gid(), told)
        }

        fn local(&self, name: &str, options: &[&str], read_only: bool) -> Local {
            Local {
                name: name.into(),
                path: self.at("data"),
                options: options.iter().map(|&option| option.to_owned()).collect(),
                read_only,
            }
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            unmount_below(self.0.path()).unwrap();
        }
    }

    #[test]
    fn a_volume_is_given_to_the_group_of_its_first_pod_that_writes() {
        let place = Place::new();
        let (one, other) = (place.local("pv", &[], false), place.local("pv-2", &[], false));
        let reader = place.local("pv", &[], true);
        assert_eq!(place.mount("reader", 7, &reader), (0, None), "it may not write");
        unmount_below(&place.at("pods/reader")).unwrap();
        assert_eq!(place.mount("a", 1, &one), (1, None));
        assert_eq!(place.mount("a", 1, &one), (1, None), "again, after a restart");
        let told = "The requested fsGroup is 2, but the volume pv has GID 1. The volume may not be shareable.";
        assert_eq!(place.mount("b", 2, &one), (1, Some(told.into())));
        assert_eq!(
            place.mount("c", 1, &other),
            (1, None),
            "the same directory by another name"
        );
        for uid in ["a", "b", "c"] {
            unmount_below(&place.at("pods").join(uid)).unwrap();
        }
        assert_eq!(place.mount("d", 2, &one), (2, None), "nobody has it any more");
    }

    #[test]
    fn a_claim_that_a_pod_reads_by_one_volume_and_writes_by_another() {
        let place = Place::new();
        let (reader, writer) = (place.local("pv", &[], true), place.local("pv", &[], false));
        for (uid, order) in [("a", [&reader, &writer]), ("b", [&writer, &reader])] {
            for local in order {
                place.mount(uid, 1, local);
            }
            std::fs::write(place.at("pods").join(uid).join(PLUGIN).join("pv/file"), "written").unwrap();
            assert_eq!(std::fs::metadata(place.at("data/file")).unwrap().gid(), 1, "{uid}");
            unmount_below(&place.at("pods").join(uid)).unwrap();
        }
    }

    /// Another pod, which sees a directory that is mounted already, would leave the rest of it to whom it was.
    #[test]
    fn what_could_not_be_given_to_a_group_is_given_to_it_by_the_next_pod() {
        let place = Place::new();
        let local = place.local("pv", &[], false);
        let immutable = |is: bool| {
            let file = std::fs::File::open(place.at("data/file")).unwrap();
            let flags = rustix::fs::ioctl_getflags(&file).unwrap();
            let immutable = rustix::fs::IFlags::IMMUTABLE;
            let flags = if is { flags | immutable } else { flags - immutable };
            rustix::fs::ioctl_setflags(&file, flags).unwrap();
        };
        immutable(true);
        let p = pod(&json!({"securityContext": {"fsGroup": 1}}));
        let failed = mount(&p, &place.at("pods/a"), &local);
        immutable(false);
        assert!(failed.is_err(), "{failed:?}");
        assert_eq!(place.mount("b", 1, &local), (1, None));
    }

    /// What the administrator mounts in a volume's directory, or on it, while a pod has it, is still there after the pod.
    #[test]
    fn the_nodes_mounts_in_a_volume_outlive_its_pod() {
        for both_ways in [false, true] {
            let place = Place::new();
            share(&place.at("data"));
            std::fs::create_dir_all(place.at("data/pv/nested")).unwrap();
            let local = Local {
                path: place.at("data/pv"),
                ..place.local("pv", &[], false)
            };
            let propagation = if both_ways { "Bidirectional" } else { "HostToContainer" };
            let mounts = json!([{"name": "v", "mountPath": "/v", "mountPropagation": propagation}]);
            let p = pod(&json!({"containers": [{"name": "c", "volumeMounts": mounts}]}));
            let target = mount(&p, &place.at("pods/a"), &local).unwrap().0;
            let (nested, shown) = (place.at("data/pv/nested"), target.join("nested"));
            mount_tmpfs(&nested, "").unwrap();
            assert!(is_mounted(&shown).unwrap(), "{propagation}");
            std::fs::create_dir(shown.join("inner")).unwrap();
            mount_tmpfs(&shown.join("inner"), "").unwrap();
            assert_eq!(is_mounted(&nested.join("inner")).unwrap(), both_ways);
            if !both_ways {
                mount_tmpfs(&place.at("data/pv"), "").unwrap();
            }
            let before = containerd::mounts_below(&place.at("data")).unwrap();
            unmount_below(&place.at("pods/a")).unwrap();
            assert_eq!(
                containerd::mounts_below(&place.at("pods")).unwrap(),
                Vec::<PathBuf>::new()
            );
            assert_eq!(
                containerd::mounts_below(&place.at("data")).unwrap(),
                before,
                "{propagation}"
            );
        }
    }

    #[test]
    fn mount_options_are_in_force() {
        let place = Place::new();
        let flags = |uid: &str, local: &Local| {
            place.mount(uid, 0, local);
            let found = nix::sys::statvfs::statvfs(&place.at("pods").join(uid).join(PLUGIN).join(&local.name));
            let flags = found.unwrap().flags();
            (flags.contains(FsFlags::ST_RDONLY), flags.contains(FsFlags::ST_NOEXEC))
        };
        assert_eq!(flags("a", &place.local("pv", &["ro", "noexec"], false)), (true, true));
        assert_eq!(
            flags("b", &place.local("pv", &[], true)),
            (false, false),
            "a container's mount is read-only, not the node's"
        );
        assert_eq!(flags("c", &place.local("pv", &[], false)), (false, false));
        let unknown = place.local("pv", &["ro", "data=journal"], false);
        assert!(mount(&pod(&json!({})), &place.at("pods/d"), &unknown).is_err());
        assert!(!is_mounted(&place.at("pods/d").join(PLUGIN).join("pv")).unwrap());
    }
}
