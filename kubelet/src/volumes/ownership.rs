//! fsGroup: what a volume holds is given to the pod's group, once, or only where the root shows that it is not.

use std::io;
use std::path::Path;

use rustix::fd::{AsRawFd as _, BorrowedFd};
use rustix::fs::{AtFlags, FileType, Mode};
use skiff_api::k8s_openapi::api::core::v1::Pod;

use super::Error;
use crate::{pod, tree};

/// What the group gets: to read and write everything, and that new files are its own.
const DIRECTORY: u32 = 0o2770;
const FILE: u32 = 0o660;

/// Gives the volume at `root` to the pod's fsGroup, if it has one.
pub(super) fn apply(pod: &Pod, root: &Path) -> Result<(), Error> {
    let Some(context) = pod::spec(pod).security_context.as_ref() else {
        return Ok(());
    };
    let Some(group) = context.fs_group.and_then(|group| u32::try_from(group).ok()) else {
        return Ok(());
    };
    let failed = |source| Error::file("set the group of", root, source);
    let directory = tree::open_directory(rustix::fs::CWD, root).map_err(|errno| failed(errno.into()))?;
    let found = rustix::fs::fstat(&directory).map_err(|errno| failed(errno.into()))?;
    let matches = found.st_gid == group && found.st_mode & DIRECTORY == DIRECTORY;
    if context.fs_group_change_policy.as_deref() == Some("OnRootMismatch") && matches {
        return Ok(());
    }
    // The root comes last: while it does not match, the work is not done.
    tree::visit(directory, &mut |file| give(file, group)).map_err(failed)
}

/// Another pod may write the volume at the same time: what is given is what was opened, whatever stands under its name by now.
fn give(file: BorrowedFd<'_>, group: u32) -> io::Result<()> {
    let to = Some(rustix::fs::Gid::from_raw(group));
    rustix::fs::chownat(file, c"", None, to, AtFlags::EMPTY_PATH)?;
    let mode = rustix::fs::fstat(file)?.st_mode;
    let more = match FileType::from_raw_mode(mode) {
        FileType::Symlink => return Ok(()),
        FileType::Directory => DIRECTORY,
        _ => FILE,
    };
    // The kernel's own name of the descriptor: fchmod takes none of a path.
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::chmod(name, Mode::from_raw_mode(mode | more))?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::sync::atomic::{AtomicBool, Ordering};

    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn all_of_it_once_or_when_the_root_does_not_match() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("d/f");
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("l")).unwrap();
        let passwd = std::fs::metadata("/etc/passwd").unwrap();
        let group = |path: &Path| std::fs::metadata(path).unwrap().gid();
        let with = |group: i64, policy: &str| {
            pod(&json!({"securityContext": {"fsGroup": group, "fsGroupChangePolicy": policy}}))
        };
        apply(&with(4321, "Always"), dir.path()).unwrap();
        assert_eq!((group(dir.path()), group(&file)), (4321, 4321));
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o664);
        assert_eq!(std::fs::metadata(dir.path()).unwrap().mode() & DIRECTORY, DIRECTORY);
        let after = std::fs::metadata("/etc/passwd").unwrap();
        assert_eq!(
            (after.gid(), after.mode()),
            (passwd.gid(), passwd.mode()),
            "links are not followed"
        );

        std::os::unix::fs::lchown(&file, None, Some(1)).unwrap();
        apply(&with(4321, "OnRootMismatch"), dir.path()).unwrap();
        assert_eq!(group(&file), 1, "the root matches");
        apply(&with(4322, "OnRootMismatch"), dir.path()).unwrap();
        assert_eq!(group(&file), 4322);
    }
    /// A pod that writes the volume puts a link to a directory of the node in a directory's place, and a link to a file in a file's.
    #[test]
    fn what_is_swapped_meanwhile_leads_nowhere() {
        let place = tempfile::tempdir().unwrap();
        let (volume, outside) = (place.path().join("volume"), place.path().join("outside"));
        for dir in [&outside, &volume.join("directory")] {
            std::fs::create_dir_all(dir).unwrap();
            std::fs::write(dir.join("precious"), "").unwrap();
        }
        std::fs::write(volume.join("file"), "").unwrap();
        let before = std::fs::metadata(outside.join("precious")).unwrap();
        std::os::unix::fs::symlink(&outside, volume.join("directory-link")).unwrap();
        std::os::unix::fs::symlink(outside.join("precious"), volume.join("file-link")).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for name in ["directory", "file"] {
                        let (real, link) = (volume.join(name), volume.join(format!("{name}-link")));
                        let cwd = rustix::fs::CWD;
                        rustix::fs::renameat_with(cwd, &real, cwd, &link, rustix::fs::RenameFlags::EXCHANGE).unwrap();
                    }
                }
            });
            let pod = pod(&json!({"securityContext": {"fsGroup": 4321}}));
            for _ in 0..2000 {
                apply(&pod, &volume).ok();
            }
            done.store(true, Ordering::Relaxed);
        });
        let after = std::fs::metadata(outside.join("precious")).unwrap();
        assert_eq!((after.gid(), after.mode()), (before.gid(), before.mode()));
        apply(&pod(&json!({"securityContext": {"fsGroup": 4322}})), &volume).unwrap();
        assert_eq!(std::fs::metadata(&volume).unwrap().gid(), 4322);
    }
}
