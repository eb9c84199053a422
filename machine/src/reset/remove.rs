//! Removing a directory with all that is in it, but never through a mount point or a symbolic link.
//!
//! The kernel itself refuses to step over a mount (`openat2` with `RESOLVE_NO_XDEV`), bind mounts of the same file system included, so
//! that one that appears in the meantime is safe, too.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat, openat2, renameat, statat, unlinkat,
};
use rustix::io::Errno;

/// How many directories are open at once; deeper ones are moved up first.
const DEPTH: usize = 100;

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Removed {
    /// What was to be kept, and is there.
    pub(super) kept: Vec<PathBuf>,
    /// Where something is mounted.
    pub(super) mounts: Vec<PathBuf>,
    /// What could not be removed, with the reason.
    pub(super) failed: Vec<String>,
}

/// Removes `path`, but for what is in `kept`. What is not there is no failure.
pub(super) fn remove_tree(path: &Path, kept: &BTreeSet<PathBuf>) -> Removed {
    let mut removal = Removal {
        kept,
        result: Removed::default(),
        moved: 0,
    };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return removal.result;
    };
    match openat(
        CWD,
        parent,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(parent) => drop(removal.entry(&parent, name, path, None)),
        Err(Errno::NOENT) => {}
        Err(error) => removal.fail(parent, error),
    }
    removal.result
}

struct Removal<'a> {
    kept: &'a BTreeSet<PathBuf>,
    result: Removed,
    moved: usize,
}

/// The directory that is being removed, for moving up into it what lies too deep.
struct Top<'a> {
    fd: &'a OwnedFd,
    path: &'a Path,
    depth: usize,
}

impl Removal<'_> {
    fn fail(&mut self, path: &Path, error: Errno) {
        self.result
            .failed
            .push(format!("{}: {}", path.display(), io::Error::from(error)));
    }

    /// Removes one entry; returns whether it is gone.
    fn entry(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path, top: Option<&Top<'_>>) -> bool {
        if self.kept.contains(path) {
            if statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                self.result.kept.push(path.to_owned());
                return false;
            }
            return true;
        }
        let found = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::NOENT) => return true,
            Err(error) => {
                self.fail(path, error);
                return false;
            }
        };
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            self.directory(parent, name, path, top)
        } else {
            self.unlink(parent, name, path, AtFlags::empty())
        }
    }

    fn directory(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path, top: Option<&Top<'_>>) -> bool {
        if let Some(top) = top.filter(|top| top.depth >= DEPTH) {
            return self.move_up(parent, name, path, top);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
        let directory = match openat2(parent, name, flags, Mode::empty(), resolve) {
            Ok(directory) => directory,
            Err(Errno::XDEV) => {
                self.result.mounts.push(path.to_owned());
                return false;
            }
            Err(Errno::NOENT) => return true,
            Err(error) => {
                self.fail(path, error);
                return false;
            }
        };
        let whole = self.children(&directory, path, top);
        whole && self.unlink(parent, name, path, AtFlags::REMOVEDIR)
    }

    /// Removes what is in a directory; returns whether it is empty now.
    fn children(&mut self, directory: &OwnedFd, path: &Path, top: Option<&Top<'_>>) -> bool {
        let fresh = Top {
            fd: directory,
            path,
            depth: 0,
        };
        let below = match top {
            None => fresh,
            Some(top) => Top {
                fd: top.fd,
                path: top.path,
                depth: top.depth + 1,
            },
        };
        loop {
            let moved = self.moved;
            let names = match names(directory) {
                Ok(names) => names,
                Err(error) => {
                    self.fail(path, error);
                    return false;
                }
            };
            let mut whole = true;
            for name in names {
                whole &= self.entry(directory, &name, &path.join(&name), Some(&below));
            }
            // What was too deep lies in the topmost directory now: once more.
            if top.is_some() || self.moved == moved {
                return whole;
            }
        }
    }

    fn move_up(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path, top: &Top<'_>) -> bool {
        let number = self.moved;
        let new = OsString::from(format!(".skiff-deep-{number}"));
        match renameat(parent, name, top.fd.as_fd(), &new) {
            Ok(()) => {
                self.moved += 1;
                true
            }
            Err(Errno::XDEV | Errno::BUSY) => {
                self.result.mounts.push(path.to_owned());
                false
            }
            Err(error) => {
                self.fail(&top.path.join(new), error);
                false
            }
        }
    }

    fn unlink(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path, flags: AtFlags) -> bool {
        match unlinkat(parent, name, flags) {
            Ok(()) | Err(Errno::NOENT) => true,
            // A file or an empty directory over which something is mounted.
            Err(Errno::BUSY) => {
                self.result.mounts.push(path.to_owned());
                false
            }
            Err(error) => {
                self.fail(path, error);
                false
            }
        }
    }
}

fn names(directory: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    use super::*;

    #[test]
    fn a_tree_goes_and_what_links_lead_to_stays() {
        let home = tempfile::tempdir().unwrap();
        let (tree, outside) = (home.path().join("tree"), home.path().join("outside"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("data"), "x").unwrap();
        fs::write(tree.join("a/file"), "x").unwrap();
        symlink(&outside, tree.join("a/link")).unwrap();
        let removed = remove_tree(&tree, &BTreeSet::new());
        assert!(removed.failed.is_empty() && removed.mounts.is_empty(), "{removed:?}");
        assert!(!tree.exists() && outside.join("data").exists());
        assert!(remove_tree(&tree, &BTreeSet::new()).failed.is_empty());
    }

    #[test]
    fn what_is_kept_is_told() {
        let home = tempfile::tempdir().unwrap();
        let tree = home.path().join("tree");
        fs::create_dir_all(tree.join("local-path/v1")).unwrap();
        fs::create_dir_all(tree.join("pods")).unwrap();
        let kept = BTreeSet::from([tree.join("local-path")]);
        let removed = remove_tree(&tree, &kept);
        assert_eq!(removed.kept, [tree.join("local-path")]);
        assert!(tree.join("local-path/v1").exists() && !tree.join("pods").exists());
    }

    #[test]
    fn nothing_is_deleted_through_a_mount() {
        let home = tempfile::tempdir().unwrap();
        let (tree, disk) = (home.path().join("tree"), home.path().join("disk"));
        fs::create_dir_all(tree.join("a/data")).unwrap();
        fs::create_dir(&disk).unwrap();
        fs::write(disk.join("precious"), "x").unwrap();
        // A bind mount of the same file system: its device number tells nothing.
        mount(
            Some(&disk),
            &tree.join("a/data"),
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .unwrap();
        let removed = remove_tree(&tree, &BTreeSet::new());
        umount2(&tree.join("a/data"), MntFlags::empty()).unwrap();
        assert_eq!(removed.mounts, [tree.join("a/data")]);
        assert!(disk.join("precious").exists());
    }

    #[test]
    fn a_tree_may_be_deep() {
        let home = tempfile::tempdir().unwrap();
        let tree = home.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut inner = openat(CWD, &tree, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..1000 {
            rustix::fs::mkdirat(&inner, "d", Mode::from_raw_mode(0o755)).unwrap();
            inner = openat(&inner, "d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        drop(inner);
        let removed = remove_tree(&tree, &BTreeSet::new());
        assert!(removed.failed.is_empty() && !tree.exists(), "{removed:?}");
    }
}
