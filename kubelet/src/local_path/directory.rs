//! The directory of a volume on the disk.
//!
//! The directory of all volumes is closed to everybody but root; a volume's own is open to every user of its pods, as a fresh
//! disk would be after `chmod 777`: the kubelet narrows it by `fsGroup` where a pod asks for that.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, Mode};

use super::quota;
use crate::tree::{self, open_directory};

const CLOSED: Mode = Mode::from_raw_mode(0o700);
const OPEN: Mode = Mode::from_raw_mode(0o777);

/// A step on the file system that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {path}")]
pub(super) struct Error {
    step: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
    let path = path.to_owned();
    move |source| Error {
        step,
        path,
        source: source.into(),
    }
}

/// Makes the directory `name` under `root` with room for so many bytes, or finds it from an earlier attempt.
pub(super) fn create(root: &Path, name: &str, bytes: u64) -> Result<quota::Sized, Error> {
    let path = root.join(name);
    let parent = open_root(root).map_err(failed("open", root))?;
    match rustix::fs::mkdirat(&parent, name, CLOSED) {
        Err(rustix::io::Errno::EXIST) | Ok(()) => {}
        Err(errno) => return Err(failed("create", &path)(errno)),
    }
    let own = open_directory(&parent, name).map_err(failed("open", &path))?;
    let sized = quota::limit(&own, name, bytes).map_err(failed("limit the size of", &path))?;
    // Only now may anybody write: what was written before would not count.
    rustix::fs::fchmod(&own, OPEN).map_err(failed("set the mode of", &path))?;
    rustix::fs::fsync(&parent).map_err(failed("write", root))?;
    Ok(sized)
}

/// Removes the directory `name` under `root` with all that is in it. What is not there is removed already.
pub(super) fn remove(root: &Path, name: &str) -> Result<(), Error> {
    let path = root.join(name);
    let parent = match open_directory(rustix::fs::CWD, root) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        other => other.map_err(failed("open", root))?,
    };
    let found = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        other => other.map_err(failed("look at", &path))?,
    };
    if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
        let source = io::Error::new(io::ErrorKind::NotADirectory, "somebody put something else in its place");
        return Err(failed("remove", &path)(source));
    }
    let project = open_directory(&parent, name).ok().and_then(|own| quota::project(&own));
    tree::remove(&parent, name).map_err(failed("remove", &path))?;
    if let Some(project) = project {
        quota::lift(&parent, project).map_err(failed("lift the limit of", &path))?;
    }
    Ok(())
}

fn open_root(root: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root)?;
    Ok(open_directory(rustix::fs::CWD, root)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_directory_is_open_and_its_parent_is_not() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("local-path");
        create(&root, "pvc-1", 1 << 20).unwrap();
        assert_eq!((mode(&root), mode(&root.join("pvc-1"))), (0o700, 0o777));
        std::fs::write(root.join("pvc-1/data"), "kept").unwrap();
        create(&root, "pvc-1", 1 << 20).unwrap();
        assert_eq!(std::fs::read_to_string(root.join("pvc-1/data")).unwrap(), "kept");
        remove(&root, "pvc-1").unwrap();
        assert!(!root.join("pvc-1").exists());
        remove(&root, "pvc-1").unwrap();
        remove(&place.path().join("never-made"), "pvc-1").unwrap();
    }

    #[test]
    fn links_are_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let (root, outside) = (place.path().join("local-path"), place.path().join("outside"));
        std::fs::create_dir_all(&root).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("precious"), "x").unwrap();
        symlink(&outside, root.join("pvc-1")).unwrap();
        assert!(create(&root, "pvc-1", 1 << 20).is_err());
        assert!(remove(&root, "pvc-1").is_err());
        create(&root, "pvc-2", 1 << 20).unwrap();
        symlink(&outside, root.join("pvc-2/link")).unwrap();
        remove(&root, "pvc-2").unwrap();
        assert!(outside.join("precious").exists());
    }
}
