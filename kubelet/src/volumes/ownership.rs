//! fsGroup: what a volume holds is given to the pod's group, once, or only where the root shows that it is not.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use skiff_api::k8s_openapi::api::core::v1::Pod;

use super::Error;
use crate::pod;

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
    let metadata = std::fs::metadata(root).map_err(|source| Error::file("look at", root, source))?;
    let matches = metadata.gid() == group && metadata.mode() & DIRECTORY == DIRECTORY;
    if context.fs_group_change_policy.as_deref() == Some("OnRootMismatch") && matches {
        return Ok(());
    }
    below(root, group)?;
    // The root comes last: while it does not match, the work is not done.
    give(root, group)
}

fn below(directory: &Path, group: u32) -> Result<(), Error> {
    let entries = std::fs::read_dir(directory).map_err(|source| Error::file("read", directory, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| Error::file("read", directory, source))?;
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below(&path, group)?;
        }
        give(&path, group)?;
    }
    Ok(())
}

fn give(path: &Path, group: u32) -> Result<(), Error> {
    let failed = |source| Error::file("set the group of", path, source);
    std::os::unix::fs::lchown(path, None, Some(group)).map_err(failed)?;
    let metadata = std::fs::symlink_metadata(path).map_err(failed)?;
    if metadata.is_symlink() {
        return Ok(());
    }
    let more = if metadata.is_dir() { DIRECTORY } else { FILE };
    let mode = metadata.permissions().mode() | more;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)
}

#[cfg(test)]
mod tests {
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
}
