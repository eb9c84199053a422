//! Writing a volume's files so that a reader sees all of the old or all of the new: `..data` is a link to a directory
//! named after the time, and what the pod sees are links through `..data`, as upstream's.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use super::{Error, make_dir};
use crate::files;

const DATA: &str = "..data";
const NEXT: &str = "..data_tmp";

/// A file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
    /// Whose it is when it is not root's.
    pub(super) owner: Option<u32>,
}

impl File {
    /// With fsGroup the group reads too, as upstream's ownership change does.
    fn mode(&self, group: Option<u32>) -> u32 {
        group.map_or(self.mode, |_| self.mode | 0o440) & 0o777
    }
}

/// Files by their path in the volume.
pub(super) type Files = BTreeMap<PathBuf, File>;

/// Makes the volume at `dir` hold exactly `files`.
pub(super) fn write(dir: &Path, files: &Files, group: Option<u32>) -> Result<(), Error> {
    for path in files.keys() {
        check(path)?;
    }
    let current = std::fs::read_link(dir.join(DATA))
        .ok()
        .filter(|link| link.components().count() == 1);
    if current
        .as_ref()
        .is_some_and(|current| same(&dir.join(current), files, group))
    {
        return link_all(dir, files);
    }
    let stamp = format!("..{}", jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%9f"));
    let fresh = dir.join(&stamp);
    make_dir(&fresh, 0o755)?;
    for (path, file) in files {
        write_file(&fresh, path, file, group)?;
    }
    let next = dir.join(NEXT);
    std::fs::remove_file(&next).ok();
    symlink(&stamp, &next).map_err(|source| Error::file("link", &next, source))?;
    std::fs::rename(&next, dir.join(DATA)).map_err(|source| Error::file("replace", &dir.join(DATA), source))?;
    link_all(dir, files)?;
    clean(dir, &stamp, files)
}

/// A path from an object must stay in the volume, and out of the way of `..data`.
fn check(path: &Path) -> Result<(), Error> {
    let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    if !inside || path.as_os_str().is_empty() || path.to_string_lossy().starts_with("..") {
        return Err(Error::Missing(format!(
            "invalid path in a volume: {:?} must be relative and without \"..\"",
            path
        )));
    }
    Ok(())
}

fn same(dir: &Path, files: &Files, group: Option<u32>) -> bool {
    let mut present = BTreeSet::new();
    if list(dir, Path::new(""), &mut present).is_err() || present.len() != files.len() {
        return false;
    }
    files.iter().all(|(path, file)| {
        let path = dir.join(path);
        let is_given = |found: std::fs::Metadata| {
            found.mode() & 0o777 == file.mode(group)
                && file.owner.is_none_or(|owner| owner == found.uid())
                && group.is_none_or(|group| group == found.gid())
        };
        std::fs::metadata(&path).is_ok_and(is_given)
            && files::read_head(&path, file.content.len() + 1).is_ok_and(|content| content == file.content)
    })
}

fn list(dir: &Path, below: &Path, found: &mut BTreeSet<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(dir, &path, found)?;
        } else {
            found.insert(path);
        }
    }
    Ok(())
}

fn write_file(dir: &Path, path: &Path, file: &File, group: Option<u32>) -> Result<(), Error> {
    let target = dir.join(path);
    if let Some(parent) = target.parent() {
        make_dir(parent, 0o755)?;
    }
    let failed = |source| Error::file("write", &target, source);
    // Nobody else reads it before it is whose it will be.
    let mut options = std::fs::OpenOptions::new();
    let mut made = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&target)
        .map_err(failed)?;
    made.write_all(&file.content).map_err(failed)?;
    std::os::unix::fs::fchown(&made, file.owner, group).map_err(failed)?;
    let mode = std::fs::Permissions::from_mode(file.mode(group));
    made.set_permissions(mode).map_err(failed)
}

/// The first part of each path is a link through `..data`.
fn link_all(dir: &Path, files: &Files) -> Result<(), Error> {
    for first in firsts(files) {
        let link = dir.join(&first);
        let target = Path::new(DATA).join(&first);
        if std::fs::read_link(&link).is_ok_and(|known| known == target) {
            continue;
        }
        std::fs::remove_file(&link).ok();
        symlink(&target, &link).map_err(|source| Error::file("link", &link, source))?;
    }
    Ok(())
}

fn firsts(files: &Files) -> BTreeSet<PathBuf> {
    files
        .keys()
        .filter_map(|path| path.components().next())
        .map(|part| PathBuf::from(part.as_os_str()))
        .collect()
}

/// Removes links and directories of earlier writes.
fn clean(dir: &Path, stamp: &str, files: &Files) -> Result<(), Error> {
    let wanted = firsts(files);
    for entry in std::fs::read_dir(dir)
        .map_err(|source| Error::file("read", dir, source))?
        .filter_map(Result::ok)
    {
        let name = PathBuf::from(entry.file_name());
        let text = name.to_string_lossy().into_owned();
        if text == DATA || text == stamp || wanted.contains(&name) {
            continue;
        }
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_dir {
            std::fs::remove_dir_all(entry.path())
        } else {
            std::fs::remove_file(entry.path())
        };
        removed.map_err(|source| Error::file("remove", &entry.path(), source))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        let file = |content: &str| File {
            content: content.into(),
            mode: 0o640,
            owner: None,
        };
        list.iter()
            .map(|(path, content)| (PathBuf::from(path), file(content)))
            .collect()
    }

    #[test]
    fn replaces_all_files_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| std::fs::read_to_string(dir.path().join(path)).ok();
        write(dir.path(), &files(&[("a", "1"), ("d/b", "2")]), None).unwrap();
        assert_eq!((at("a").as_deref(), at("d/b").as_deref()), (Some("1"), Some("2")));
        assert_eq!(std::fs::read_link(dir.path().join("a")).unwrap(), Path::new("..data/a"));
        let mode = std::fs::metadata(dir.path().join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let first = std::fs::read_link(dir.path().join(DATA)).unwrap();
        write(dir.path(), &files(&[("a", "1"), ("d/b", "2")]), None).unwrap();
        assert_eq!(
            std::fs::read_link(dir.path().join(DATA)).unwrap(),
            first,
            "unchanged files are not written again"
        );
        write(dir.path(), &files(&[("a", "3")]), None).unwrap();
        assert_eq!((at("a").as_deref(), at("d/b")), (Some("3"), None));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn files_are_whose_they_are_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let mut list = files(&[("token", "t")]);
        let found = |list: &Files, group| {
            write(dir.path(), list, group).unwrap();
            let found = std::fs::metadata(dir.path().join("token")).unwrap();
            (found.mode() & 0o777, found.uid(), found.gid())
        };
        assert_eq!(found(&list, None), (0o640, 0, 0));
        for file in list.values_mut() {
            (file.mode, file.owner) = (0o600, Some(1000));
        }
        assert_eq!(found(&list, None), (0o600, 1000, 0));
        assert_eq!(found(&list, Some(2000)), (0o640, 1000, 2000));
    }

    #[test]
    fn paths_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../a", "/a", "a/../b", "..a", ""] {
            assert!(write(dir.path(), &files(&[(path, "x")]), None).is_err(), "{path}");
        }
    }
}
