//! Files that appear whole or not at all, and are never readable by others for a moment.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;

/// Writes a secret: mode 0600 from its creation, replaced atomically, on disk when this returns.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), Error> {
    write(path, content, 0o600)
}

/// Writes something that everybody may read: mode 0644, replaced atomically, on disk when this returns.
pub fn write_public(path: &Path, content: &[u8]) -> Result<(), Error> {
    write(path, content, 0o644)
}

/// Reads a text file.
pub fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let failed = |source| Error::Write {
        path: path.to_owned(),
        source,
    };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(directory).map_err(failed)?;
    let temporary = temporary_name(directory, path);
    write_then_rename(&temporary, path, directory, content, mode).map_err(|error| {
        // Nothing half-written stays behind; the first error is the one to tell.
        fs::remove_file(&temporary).ok();
        failed(error)
    })
}

fn write_then_rename(temporary: &Path, path: &Path, directory: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(temporary, path)?;
    // The rename itself is durable only once the directory is.
    File::open(directory)?.sync_all()
}

fn temporary_name(directory: &Path, path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    directory.join(format!(".{name}.{}-{number}.tmp", std::process::id()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_private_file_is_private_and_replaces_a_public_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/down/secret");
        write_public(&path, b"old").unwrap();
        write_private(&path, b"new").unwrap();
        assert_eq!(read(&path).unwrap(), "new");
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn a_failed_write_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taken");
        fs::create_dir(&path).unwrap();
        assert!(matches!(write_private(&path, b"x"), Err(Error::Write { .. })));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
