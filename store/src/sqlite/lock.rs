//! One process at a time: two writers would each believe to know the newest revision.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::connection::beside;
use crate::Error;

/// Holds `<database>.lock` until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub(super) struct FileLock {
    _file: File,
}

impl FileLock {
    pub(super) fn take(database: &Path) -> Result<Self, Error> {
        let path = beside(database, ".lock");
        let failed = |step, path: &Path| {
            let path: PathBuf = path.to_owned();
            move |source| Error::File { step, path, source }
        };
        if let Some(directory) = database.parent() {
            std::fs::create_dir_all(directory).map_err(failed("create the directory", directory))?;
        }
        let mut file = (OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600))
        .open(&path)
        .map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // Only to tell who it is; the answer stands without it.
                file.read_to_string(&mut text).ok();
                return Err(Error::Locked {
                    path: database.to_owned(),
                    holder: text.trim().parse().ok(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(failed("write", &path))?;
        Ok(Self { _file: file })
    }
}
