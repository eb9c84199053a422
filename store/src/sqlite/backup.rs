//! Copies of a store: taken while it is in use, put back while it is not.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::backup::Backup;

use super::connection::{beside, check_schema, open_for_reading, open_for_writing, set_meta};
use super::failure::explain;
use super::lock::FileLock;
use crate::{Error, Revision};

/// After a restore, revisions go on from the newest ever seen plus this: clients that know more than the backup does
/// must not take a new change for one that they have.
const REVISION_GAP: u64 = 1_000_000;

/// Copies the database that `connection` reads to a new file. It holds secrets, so it is private.
pub(super) fn backup(connection: &Connection, path: &Path, to: &Path) -> Result<(), Error> {
    let temporary = beside(to, ".tmp");
    let copy = || -> Result<(), Error> {
        remove_if_there(&temporary)?;
        create_private(&temporary)?;
        let failed = |error| explain(&temporary, "write the backup", error);
        let mut target = Connection::open(&temporary).map_err(failed)?;
        let copying = Backup::new(connection, &mut target).map_err(|error| explain(path, "begin a backup", error))?;
        // All in one go: a reader's snapshot does not hold up the writer, and a pause would begin anew at each change.
        copying.step(-1).map_err(failed)?;
        drop(copying);
        // The copy stands alone, without a journal beside it.
        target.pragma_update(None, "journal_mode", "DELETE").map_err(failed)?;
        drop(target);
        sync_and_rename(&temporary, to)
    };
    copy().inspect_err(|_| {
        fs::remove_file(&temporary).ok();
    })
}

/// Replaces the store at `path` (which nobody has open) with the backup at `from`, and says the revision it begins at.
///
/// Every older revision counts as compacted, so that each watcher lists again. The backup is checked first; on any error
/// the store is as it was.
pub fn restore(from: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<Revision, Error> {
    let (from, path) = (from.as_ref(), path.as_ref());
    let _lock = FileLock::take(path)?;
    let temporary = beside(path, ".restore");
    let prepare = || -> Result<Revision, Error> {
        check_backup(from)?;
        remove_with_journal(&temporary)?;
        create_private(&temporary)?;
        fs::copy(from, &temporary).map_err(|source| Error::File {
            step: "copy the backup to",
            path: temporary.clone(),
            source,
        })?;
        let revision = advance_revision(&temporary, newest_of_old(path))?;
        remove_if_there(&beside(path, "-wal"))?;
        remove_if_there(&beside(path, "-shm"))?;
        sync_and_rename(&temporary, path)?;
        Ok(revision)
    };
    prepare().inspect_err(|_| {
        remove_with_journal(&temporary).ok();
    })
}

fn check_backup(from: &Path) -> Result<(), Error> {
    let garbled = |source| Error::Garbled {
        path: from.to_owned(),
        source,
    };
    if !from.exists() {
        return Err(Error::File {
            step: "read the backup",
            path: from.to_owned(),
            source: std::io::ErrorKind::NotFound.into(),
        });
    }
    let connection = open_for_reading(from)?;
    if !check_schema(&connection, from)? {
        return Err(garbled(None));
    }
    let verdict = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0));
    match verdict {
        Ok(text) if text == "ok" => Ok(()),
        Ok(_) => Err(garbled(None)),
        Err(error) => Err(explain(from, "check the backup", error)),
    }
}

/// Where the store stood that is about to be replaced. Opening it also moves its journal into the file, so that a crash
/// in the middle of a restore finds either store whole.
fn newest_of_old(path: &Path) -> Revision {
    if !path.exists() {
        return Revision(0);
    }
    match open_for_writing(path, None) {
        Ok(opened) => opened.revision,
        Err(error) => {
            tracing::warn!(%error, "cannot read the store that is being replaced");
            Revision(0)
        }
    }
}

fn advance_revision(path: &Path, old: Revision) -> Result<Revision, Error> {
    let opened = open_for_writing(path, None)?;
    let revision = Revision(opened.revision.max(old).0 + REVISION_GAP);
    let failed = |error| explain(path, "advance the revision", error);
    let transaction = opened.connection.unchecked_transaction().map_err(failed)?;
    set_meta(&transaction, "revision", revision).map_err(failed)?;
    set_meta(&transaction, "compacted", revision).map_err(failed)?;
    transaction.commit().map_err(failed)?;
    // Everything in the one file that is renamed.
    opened
        .connection
        .pragma_update(None, "journal_mode", "DELETE")
        .map_err(failed)?;
    Ok(revision)
}

fn create_private(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::OpenOptionsExt as _;
    (fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path))
    .map(drop)
    .map_err(|source| Error::File {
        step: "create",
        path: path.to_owned(),
        source,
    })
}

fn remove_if_there(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::File {
            step: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn remove_with_journal(path: &Path) -> Result<(), Error> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        remove_if_there(&beside(path, suffix))?;
    }
    Ok(())
}

fn sync_and_rename(temporary: &Path, to: &Path) -> Result<(), Error> {
    let directory: PathBuf = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let replace = || {
        fs::File::open(temporary)?.sync_all()?;
        fs::rename(temporary, to)?;
        fs::File::open(&directory)?.sync_all()
    };
    replace().map_err(|source| Error::File {
        step: "replace",
        path: to.to_owned(),
        source,
    })
}
