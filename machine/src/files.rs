//! Files of a node, written only where they differ from what is there.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::Error;

/// A file that should be there.
#[derive(Clone, Eq, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) path: PathBuf,
    pub(crate) content: String,
    /// Whether it is for its owner alone.
    pub(crate) private: bool,
}

impl std::fmt::Debug for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The content may be a secret.
        f.debug_struct("Wanted")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Wanted {
    pub(crate) fn public(path: PathBuf, content: impl Into<String>) -> Self {
        Self {
            path,
            content: content.into(),
            private: false,
        }
    }

    /// Writes it, unless it is there as it should be. Returns whether it was written.
    pub(crate) fn write(&self) -> Result<bool, Error> {
        if fs::read_to_string(&self.path).is_ok_and(|found| found == self.content) {
            return Ok(false);
        }
        if self.private {
            skiff_pki::files::write_private(&self.path, self.content.as_bytes())?;
        } else {
            skiff_pki::files::write_public(&self.path, self.content.as_bytes())?;
        }
        Ok(true)
    }
}

/// Makes a directory with its parents.
pub(crate) fn directory(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(Error::file("create", path))
}

/// Removes a file or a link, if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Makes `path` a symbolic link to `target`, in one step where there is another.
pub(crate) fn link(target: &Path, path: &Path) -> Result<(), Error> {
    if fs::read_link(path).is_ok_and(|found| found == target) {
        return Ok(());
    }
    let new = path.with_extension("new");
    remove(&new)?;
    symlink(target, &new).map_err(Error::file("create", &new))?;
    fs::rename(&new, path).map_err(Error::file("replace", path))
}
