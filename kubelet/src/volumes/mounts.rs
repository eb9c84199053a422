//! What is mounted: read from the kernel, never remembered.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};
use skiff_cri::containerd;

use super::Error;

pub(super) fn mount_tmpfs(path: &Path, options: &str) -> Result<(), Error> {
    nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options))
        .map_err(|errno| Error::file("mount a tmpfs on", path, errno.into()))
}

/// Asks the kernel of this one path: its table of all mounts grows with the pods.
pub(super) fn is_mounted(path: &Path) -> Result<bool, Error> {
    match rustix::fs::statx(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()) {
        Ok(about) => Ok(about.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(errno) => Err(Error::file("look at", path, errno.into())),
    }
}

/// Mounts a directory or file of the node at `target`. What is mounted in it later shows here, too; what happens here reaches the node's
/// own mounts only where containers are to mount for the node (`both_ways`): unmounting a mount of the node must not be one's own affair.
pub(crate) fn bind(source: &Path, target: &Path, both_ways: bool) -> Result<(), Error> {
    let none = None::<&str>;
    nix::mount::mount(Some(source), target, none, MsFlags::MS_BIND, none)
        .map_err(|errno| Error::file("mount", target, errno.into()))?;
    if both_ways {
        return Ok(());
    }
    let followed = follow(target).map_err(|errno| Error::file("set the propagation of", target, errno.into()));
    followed.inspect_err(|_| {
        nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW).ok();
    })
}

/// Lets a mount, and those in it, hear of what others do in theirs, and others no longer of what is done here.
fn follow(path: &Path) -> nix::Result<()> {
    let none = None::<&str>;
    nix::mount::mount(none, path, none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)
}

fn mounts_below(path: &Path) -> Result<Vec<PathBuf>, Error> {
    containerd::mounts_below(path).map_err(|source| Error::file("list the mounts below", path, source))
}

/// Unmounts everything at and below `path`, the deepest first, so that removing files never goes through a mount. What is mounted in the
/// places that these mounts show stays there.
///
/// The kernel's table also has mounts that another one covers, and no path leads to those: what covers them goes first, and they
/// show in the next round. When it lies above `path` it is not ours, and what it covers stays.
pub(crate) fn unmount_below(path: &Path) -> Result<(), Error> {
    loop {
        let mut mounts = mounts_below(path)?;
        mounts.sort();
        cut_off(&mounts)?;
        let (mut progress, mut failed, mut covered) = (false, None, None);
        for mount in mounts.into_iter().rev() {
            match nix::mount::umount2(&mount, MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => progress = true,
                // Not a mount point, as far as the path leads.
                Err(Errno::EINVAL | Errno::ENOENT) => covered = Some(mount),
                Err(errno) => {
                    failed.get_or_insert_with(|| Error::file("unmount", &mount, errno.into()));
                }
            }
        }
        match (progress, failed, covered) {
            (_, None, None) => return Ok(()),
            (true, ..) => {}
            (false, Some(error), _) => return Err(error),
            (false, None, Some(mount)) => return Err(Error::Covered { path: mount }),
        }
    }
}

/// Keeps what is done in the mounts to themselves; of the sorted ones only those that lie in no other, whose paths are the kubelet's own.
fn cut_off(mounts: &[PathBuf]) -> Result<(), Error> {
    let mut last: Option<&PathBuf> = None;
    for mount in mounts {
        if last.is_some_and(|last| mount.starts_with(last)) {
            continue;
        }
        match follow(mount) {
            // No mount point, as far as the path leads: it is not unmounted either.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => last = Some(mount),
            Err(errno) => return Err(Error::file("set the propagation of", mount, errno.into())),
        }
    }
    Ok(())
}

/// A file system of huge pages of this size.
pub(super) fn mount_huge_pages(path: &Path, size: &str, options: &str) -> Result<(), Error> {
    let options = format!("pagesize={size},{options}");
    nix::mount::mount(
        Some("nodev"),
        path,
        Some("hugetlbfs"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .map_err(|errno| Error::file("mount a hugetlbfs on", path, errno.into()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Makes a directory, and a file system in it whose mounts show wherever it is mounted, as those of a host with systemd do.
    pub(crate) fn share(path: &Path) {
        std::fs::create_dir_all(path).unwrap();
        mount_tmpfs(path, "").unwrap();
        let none = None::<&str>;
        nix::mount::mount(none, path, none, MsFlags::MS_SHARED, none).unwrap();
    }

    fn bind(from: &Path, to: &Path) {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        nix::mount::mount(Some(from), to, None::<&str>, flags, None::<&str>).unwrap();
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        nix::mount::mount(None::<&str>, to, None::<&str>, private, None::<&str>).unwrap();
    }

    /// What other kubelets leave: mounts on mounts, mounts in mounts that another hides, names with blanks; and, where one has
    /// bound the whole directory onto itself, mounts that no path leads to.
    #[test]
    fn mounts_that_cover_each_other_go_and_what_is_covered_from_above_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let volume = root.join("pods/u/volumes/kubernetes.io~secret/a token");
        std::fs::create_dir_all(&volume).unwrap();
        mount_tmpfs(&volume, "").unwrap();
        std::fs::create_dir(volume.join("inner")).unwrap();
        mount_tmpfs(&volume.join("inner"), "").unwrap();
        mount_tmpfs(&volume, "").unwrap();
        assert_eq!(mounts_below(&root).unwrap().len(), 3);
        unmount_below(&root.join("pods/u")).unwrap();
        assert_eq!(mounts_below(&root).unwrap(), Vec::<PathBuf>::new());

        mount_tmpfs(&volume, "").unwrap();
        bind(&root, &root);
        // The same volume twice, of which only the upper one is to be seen, and the bind mount itself.
        assert_eq!(mounts_below(&root).unwrap().len(), 3);
        let error = unmount_below(&root.join("pods/u")).unwrap_err().to_string();
        assert!(
            error.contains(&*volume.to_string_lossy()) && error.contains("covers"),
            "{error}"
        );
        assert_eq!(
            mounts_below(&root.join("pods/u")).unwrap().len(),
            1,
            "what can be seen is gone"
        );
        nix::mount::umount2(&root, MntFlags::UMOUNT_NOFOLLOW).unwrap();
        unmount_below(&root.join("pods/u")).unwrap();
        assert_eq!(mounts_below(&root).unwrap(), Vec::<PathBuf>::new());
    }

    /// `/var/lib/kubelet` may be a link to a larger disk, and the kernel knows mounts by their real paths.
    #[test]
    fn what_is_mounted_is_found_through_a_link_and_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (real, linked, users) = (
            dir.path().join("real"),
            dir.path().join("linked"),
            dir.path().join("users"),
        );
        let volumes = real.join("pods/u/volumes");
        std::fs::create_dir_all(volumes.join("local/pv")).unwrap();
        std::fs::create_dir(&users).unwrap();
        std::fs::write(users.join("data"), "precious").unwrap();
        std::os::unix::fs::symlink(&real, &linked).unwrap();
        bind(&users, &volumes.join("local/pv"));
        let seen = linked.join("pods/u/volumes");
        let error = super::super::remove_dir(&seen).unwrap_err();
        let text = skiff_daemon::error_chain(&error);
        assert!(text.contains("something is mounted in it"), "{text}");
        unmount_below(&seen).unwrap();
        assert_eq!(mounts_below(&real).unwrap(), Vec::<PathBuf>::new());
        super::super::remove_dir(&seen).unwrap();
        assert!(!volumes.exists());
        assert_eq!(std::fs::read_to_string(users.join("data")).unwrap(), "precious");
    }

    #[test]
    fn a_mount_that_is_used_is_told_and_what_is_beside_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (used, free) = (dir.path().join("used"), dir.path().join("a-free"));
        for path in [&used, &free] {
            std::fs::create_dir(path).unwrap();
            mount_tmpfs(path, "").unwrap();
        }
        let held = std::fs::File::create(used.join("file")).unwrap();
        let error = unmount_below(dir.path()).unwrap_err();
        let text = skiff_daemon::error_chain(&error);
        assert!(text.starts_with("cannot unmount ") && text.contains("busy"), "{text}");
        assert_eq!(mounts_below(dir.path()).unwrap(), [used]);
        drop(held);
        unmount_below(dir.path()).unwrap();
    }
}
