//! A store's file as a whole: read while it is in use, replaced while it is not.

use std::fs;
use std::path::{Path, PathBuf};

use super::connection::{beside, check_schema, meta, open_for_reading, open_for_writing, set_meta};
use super::failure::explain;
use super::lock::FileLock;
use crate::backup::{REVISION_GAP, Reader};
use crate::{Error, Revision};

/// Hands every key of the store at `path` and its value to `take`, in the order of the keys, as they are at the revision that is
/// returned. A server may be using the store.
pub(crate) fn read_all(path: &Path, mut take: impl FnMut(&str, &[u8]) -> Result<(), Error>) -> Result<Revision, Error> {
    if let Err(source) = fs::metadata(path) {
        return Err(Error::File {
            step: "read the store",
            path: path.to_owned(),
            source,
        });
    }
    let connection = open_for_reading(path)?;
    if !check_schema(&connection, path)? {
        return Err(Error::Garbled {
            path: path.to_owned(),
            source: None,
        });
    }
    let failed = |error| explain(path, "read the store", error);
    // One transaction: a snapshot, beside which the writer goes on.
    let transaction = connection.unchecked_transaction().map_err(failed)?;
    let last = transaction.query_row("SELECT max(revision) FROM log", [], |row| {
        row.get::<_, Option<Revision>>(0)
    });
    let last = last.map_err(failed)?.unwrap_or_default();
    let revision = meta(&transaction, "revision").map_err(failed)?.max(last);
    const SQL: &str =
        "SELECT current.key, log.value FROM current JOIN log ON log.revision = current.revision ORDER BY current.key";
    let mut statement = transaction.prepare(SQL).map_err(failed)?;
    let mut rows = statement.query([]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let key = row.get_ref(0).and_then(|key| Ok(key.as_str()?)).map_err(failed)?;
        let value = row.get_ref(1).and_then(|value| Ok(value.as_blob()?)).map_err(failed)?;
        take(key, value)?;
    }
    Ok(revision)
}

/// Replaces the store at `path`, which nobody has open, with a backup; on any error it is as it was.
pub(crate) fn replace(
    path: &Path,
    backup: &Reader,
    force: bool,
    progress: &mut dyn FnMut(u64),
) -> Result<Revision, Error> {
    let _lock = FileLock::take(path)?;
    let old = newest_of_old(path, force)?;
    let temporary = beside(path, ".restore");
    let mut prepare = || -> Result<Revision, Error> {
        remove_with_journal(&temporary)?;
        let base = Revision(backup.summary().revision.max(old).0 + REVISION_GAP);
        let revision = fill(&temporary, backup, base, progress)?;
        remove_if_there(&beside(path, "-wal"))?;
        remove_if_there(&beside(path, "-shm"))?;
        sync_and_rename(&temporary, path)?;
        Ok(revision)
    };
    prepare().inspect_err(|_| {
        remove_with_journal(&temporary).ok();
    })
}

/// Where the store stands that is about to be replaced. Opening it also moves its journal into the file, so that a crash
/// in the middle of a restore finds either store whole.
fn newest_of_old(path: &Path, force: bool) -> Result<Revision, Error> {
    if !path.exists() {
        return Ok(Revision(0));
    }
    match open_for_writing(path, None) {
        Ok(opened) => {
            let query = "SELECT count(*) FROM (SELECT 1 FROM current LIMIT 1)";
            let count = opened.connection.query_row(query, [], |row| row.get::<_, i64>(0));
            match count.map_err(|error| explain(path, "read the store", error))? {
                0 => Ok(opened.revision),
                _ if force => Ok(opened.revision),
                _ => Err(Error::NotEmpty {
                    place: path.display().to_string(),
                }),
            }
        }
        Err(error) if force => {
            tracing::warn!(%error, "cannot read the store that is being replaced");
            Ok(Revision(0))
        }
        Err(error) => Err(error),
    }
}

/// Makes a store of the backup, whose history begins at its end.
fn fill(path: &Path, backup: &Reader, base: Revision, progress: &mut dyn FnMut(u64)) -> Result<Revision, Error> {
    let opened = open_for_writing(path, None)?;
    let failed = |error| explain(path, "write the restored store", error);
    let transaction = opened.connection.unchecked_transaction().map_err(failed)?;
    let mut revision = base;
    backup.each(0, |key, value| {
        // A revision of its own: nobody may take it for a version that they know.
        revision = Revision(revision.0 + 1);
        let insert = || -> rusqlite::Result<()> {
            const LOG: &str = "INSERT INTO log (revision, create_revision, key, value) VALUES (?1, ?1, ?2, ?3)";
            transaction.prepare_cached(LOG)?.execute((revision, key, value))?;
            const CURRENT: &str = "INSERT INTO current (key, revision) VALUES (?1, ?2)";
            transaction.prepare_cached(CURRENT)?.execute((key, revision))?;
            Ok(())
        };
        insert().map_err(failed)?;
        progress(revision.0 - base.0);
        Ok(true)
    })?;
    for name in ["revision", "compacted", "purged"] {
        set_meta(&transaction, name, revision).map_err(failed)?;
    }
    transaction.commit().map_err(failed)?;
    // Everything in the one file that is renamed.
    let journal = opened.connection.pragma_update(None, "journal_mode", "DELETE");
    journal.map_err(failed)?;
    Ok(revision)
}

/// Makes an empty file that only its owner may read.
pub(crate) fn create_new_private(path: &Path) -> Result<(), Error> {
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

/// Removes a database and what SQLite may have left beside it.
pub(crate) fn remove_with_journal(path: &Path) -> Result<(), Error> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        remove_if_there(&beside(path, suffix))?;
    }
    Ok(())
}

/// Gives a file that is whole its name; it survives a power cut from then on.
pub(crate) fn sync_and_rename(temporary: &Path, to: &Path) -> Result<(), Error> {
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
