//! How much of a disk is used: by a file system as a whole, by a directory.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a directory's figure is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Blocks of `st_blocks`.
const BLOCK: u64 = 512;

/// A file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileSystem {
    /// Bytes.
    pub(crate) capacity: u64,
    /// Bytes that an ordinary user may still write.
    pub(crate) available: u64,
    /// Bytes.
    pub(crate) used: u64,
    pub(crate) inodes: u64,
    pub(crate) inodes_free: u64,
}

/// What lies in a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Bytes on the disk.
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// Directories that were measured, each with the time.
#[derive(Debug, Default)]
pub(crate) struct Directories {
    known: Mutex<HashMap<PathBuf, (Instant, Contents)>>,
}

/// The device that a file system lies on, by name; none of one in memory, or of several devices.
pub(crate) fn device(path: &Path) -> Option<String> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let number = fs::metadata(existing).ok()?.dev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    Some(format!("/dev/{}", link.file_name()?.to_string_lossy()))
}

/// The file system that holds `path` (or will hold it).
pub(crate) fn file_system(path: &Path) -> Option<FileSystem> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let stat = nix::sys::statvfs::statvfs(existing).ok()?;
    let size = stat.fragment_size();
    Some(FileSystem {
        capacity: stat.blocks().saturating_mul(size),
        available: stat.blocks_available().saturating_mul(size),
        used: stat.blocks().saturating_sub(stat.blocks_free()).saturating_mul(size),
        inodes: stat.files(),
        inodes_free: stat.files_free(),
    })
}

/// What lies in a directory of one file system: links are not followed, a file with two names counts once.
pub(crate) fn contents(path: &Path) -> Contents {
    let mut contents = Contents::default();
    let Ok(top) = fs::symlink_metadata(path) else {
        return contents;
    };
    let mut linked = HashSet::new();
    let mut directories = vec![path.to_owned()];
    let mut count = |metadata: &fs::Metadata| {
        if !metadata.is_dir() && metadata.nlink() > 1 && !linked.insert(metadata.ino()) {
            return;
        }
        contents.bytes += metadata.blocks() * BLOCK;
        contents.inodes += 1;
    };
    count(&top);
    if !top.is_dir() {
        return contents;
    }
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok) {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.dev() != top.dev() {
                continue;
            }
            count(&metadata);
            if metadata.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    contents
}

impl Directories {
    /// As [`contents`], from memory where that is younger than `max_age`.
    pub(crate) fn contents(&self, path: &Path, max_age: Duration) -> Contents {
        let now = Instant::now();
        if let Some((at, known)) = self.known.lock().get(path)
            && now.duration_since(*at) < max_age
        {
            return *known;
        }
        let found = contents(path);
        let mut known = self.known.lock();
        known.retain(|_, (at, _)| now.duration_since(*at) < REMEMBERED);
        known.insert(path.to_owned(), (now, found));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_counts_each_file_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/a"), vec![1; 100_000]).unwrap();
        let once = contents(dir.path());
        assert!((100_000..130_000).contains(&once.bytes), "{once:?}");
        assert_eq!(once.inodes, 3);
        fs::hard_link(at("d/a"), at("b")).unwrap();
        std::os::unix::fs::symlink("/", at("c")).unwrap();
        let again = contents(dir.path());
        assert_eq!(again.inodes, 4, "the link, but not what it points at");
        assert!(again.bytes < once.bytes + 50_000, "{again:?}");
        assert_eq!(contents(&at("absent")), Contents::default());
    }

    #[test]
    fn file_systems() {
        let system = file_system(Path::new("/absent/below")).unwrap();
        assert!(system.capacity >= system.used && system.capacity > 0, "{system:?}");
    }
}
