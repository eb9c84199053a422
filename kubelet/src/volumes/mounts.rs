//! What is mounted: read from the kernel, never remembered.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};

use super::Error;

pub(super) fn mount_tmpfs(path: &Path, options: &str) -> Result<(), Error> {
    nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options))
        .map_err(|errno| Error::file("mount a tmpfs on", path, errno.into()))
}

pub(super) fn is_mounted(path: &Path) -> Result<bool, Error> {
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
pub(super) fn unmount_below(path: &Path) -> Result<(), Error> {
    let mut mounts = mounts_below(path)?;
    mounts.sort();
    for mount in mounts.into_iter().rev() {
        nix::mount::umount2(&mount, MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|errno| Error::file("unmount", &mount, errno.into()))?;
    }
    Ok(())
}

/// A file system of huge pages, of the size that `medium` names.
pub(super) fn mount_huge_pages(path: &Path, size: &str) -> Result<(), Error> {
    let options = format!("pagesize={size}");
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
mod tests {
    use super::*;

    #[test]
    fn names_in_mountinfo() {
        for (field, path) in [("/a/b", "/a/b"), (r"/a\040b\134c", r"/a b\c"), (r"/a\", r"/a\")] {
            assert_eq!(unescape(field), Path::new(path), "{field}");
        }
    }
}
