//! The file: a SQLite database of another kind than a store's, without history.
//!
//! `entries` holds keys and values in the order of the keys, numbered from one; `backup` says what they are, with a checksum over them. Both are written
//! under another name that is given up in the end, so a file under the right name is whole.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use sha2::{Digest as _, Sha256};

use super::Summary;
use crate::sqlite::{self, explain};
use crate::{Error, Revision};

/// Says that a database is a backup: "skib" in ASCII.
const APPLICATION_ID: i64 = 0x736b_6962;
const FORMAT: i64 = 1;

const SCHEMA: &str = "
    CREATE TABLE entries (
        number INTEGER PRIMARY KEY,
        key TEXT NOT NULL,
        value BLOB NOT NULL
    );
    CREATE TABLE backup (
        revision INTEGER NOT NULL,
        objects INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        sha256 TEXT NOT NULL
    );
";

/// A backup that is being written; dropped before it is finished, it leaves nothing.
#[derive(Debug)]
pub(crate) struct Writer {
    connection: Option<Connection>,
    temporary: PathBuf,
    path: PathBuf,
    sum: Sum,
}

/// A backup that was found whole.
#[derive(Debug)]
pub(crate) struct Reader {
    connection: Connection,
    path: PathBuf,
    summary: Summary,
}

/// Counts and sums up entries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sum {
    objects: u64,
    bytes: u64,
    digest: Sha256,
}

// === impl Sum ===

impl Sum {
    /// One more entry, in the order of the keys.
    pub(crate) fn add(&mut self, key: &str, value: &[u8]) {
        self.objects += 1;
        self.bytes += value.len() as u64;
        for part in [key.as_bytes(), value] {
            self.digest.update((part.len() as u64).to_le_bytes());
            self.digest.update(part);
        }
    }

    pub(crate) fn objects(&self) -> u64 {
        self.objects
    }

    pub(crate) fn finish(self, revision: Revision) -> Summary {
        let digest = self.digest.finalize();
        Summary {
            revision,
            objects: self.objects,
            bytes: self.bytes,
            sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

// === impl Writer ===

impl Writer {
    pub(crate) fn create(path: &Path) -> Result<Self, Error> {
        refuse_to_replace(path)?;
        let temporary = sqlite::beside(path, ".tmp");
        sqlite::remove_with_journal(&temporary)?;
        sqlite::create_new_private(&temporary)?;
        let writer = |connection| Self {
            connection: Some(connection),
            temporary: temporary.clone(),
            path: path.to_owned(),
            sum: Sum::default(),
        };
        let failed = |error| explain(&temporary, "begin the backup", error);
        let writer = writer(Connection::open(&temporary).map_err(failed)?);
        if let Some(connection) = &writer.connection {
            // Nothing of it counts before the end, which is synced.
            let begin = format!(
                "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA application_id = {APPLICATION_ID};
                 PRAGMA user_version = {FORMAT}; BEGIN; {SCHEMA}"
            );
            connection.execute_batch(&begin).map_err(failed)?;
        }
        Ok(writer)
    }

    /// One more entry, in the order of the keys; how many there are now.
    pub(crate) fn add(&mut self, key: &str, value: &[u8]) -> Result<u64, Error> {
        let connection = self.connection.as_ref().ok_or(Error::Closed)?;
        self.sum.add(key, value);
        connection
            .prepare_cached("INSERT INTO entries (key, value) VALUES (?1, ?2)")
            .and_then(|mut statement| statement.execute((key, value)))
            .map_err(|error| explain(&self.temporary, "write the backup", error))?;
        Ok(self.sum.objects())
    }

    pub(crate) fn finish(mut self, revision: Revision) -> Result<Summary, Error> {
        let connection = self.connection.take().ok_or(Error::Closed)?;
        let failed = |error| explain(&self.temporary, "write the backup", error);
        let summary = std::mem::take(&mut self.sum).finish(revision);
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let row = (
            revision,
            number(summary.objects),
            number(summary.bytes),
            &summary.sha256,
        );
        connection
            .execute("INSERT INTO backup VALUES (?1, ?2, ?3, ?4)", row)
            .map_err(failed)?;
        connection.execute_batch("COMMIT").map_err(failed)?;
        connection.close().map_err(|(_, error)| failed(error))?;
        sqlite::sync_and_rename(&self.temporary, &self.path)?;
        Ok(summary)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.connection = None;
        // Renamed, when it was finished.
        fs::remove_file(&self.temporary).ok();
    }
}

/// A file of that name may be an older backup, but nothing else: least of all the store itself.
fn refuse_to_replace(path: &Path) -> Result<(), Error> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0) && !is_backup(path).unwrap_or(false) {
        return Err(Error::File {
            step: "replace with a backup what is none:",
            path: path.to_owned(),
            source: std::io::ErrorKind::AlreadyExists.into(),
        });
    }
    Ok(())
}

fn open(path: &Path) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(path, flags).map_err(|error| explain(path, "open the backup", error))
}

fn is_backup(path: &Path) -> Result<bool, Error> {
    let id = open(path)?.pragma_query_value(None, "application_id", |row| row.get::<_, i64>(0));
    Ok(id.map_err(|error| explain(path, "read the backup", error))? == APPLICATION_ID)
}

// === impl Reader ===

impl Reader {
    /// Opens a backup, and checks all of it.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        if let Err(source) = fs::metadata(path) {
            return Err(Error::File {
                step: "read the backup",
                path: path.to_owned(),
                source,
            });
        }
        let broken = |why: &'static str| Error::Backup {
            path: path.to_owned(),
            why,
        };
        if !is_backup(path).map_err(|error| match error {
            Error::Garbled { .. } => broken("it is not a database"),
            other => other,
        })? {
            return Err(broken("it was not made by `skiff backup`"));
        }
        let connection = open(path)?;
        let failed = |error| explain(path, "read the backup", error);
        let format: i64 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(failed)?;
        if format > FORMAT {
            return Err(Error::NewerSchema {
                path: path.to_owned(),
                found: format,
                known: FORMAT,
            });
        }
        const SQL: &str = "SELECT revision, objects, bytes, sha256 FROM backup";
        let header = connection.query_row(SQL, [], |row| {
            let number = |column| {
                row.get::<_, i64>(column)
                    .map(|value| u64::try_from(value).unwrap_or_default())
            };
            Ok(Summary {
                revision: row.get(0)?,
                objects: number(1)?,
                bytes: number(2)?,
                sha256: row.get(3)?,
            })
        });
        let summary = header
            .optional()
            .map_err(|_| broken("it cannot be read"))?
            .ok_or_else(|| broken("it was never finished"))?;
        let reader = Self {
            connection,
            path: path.to_owned(),
            summary,
        };
        let mut sum = Sum::default();
        reader.each(0, |key, value| {
            sum.add(key, value);
            Ok(true)
        })?;
        if sum.finish(reader.summary.revision) != reader.summary {
            return Err(broken("its checksum is wrong"));
        }
        Ok(reader)
    }

    /// What it holds.
    pub(crate) fn summary(&self) -> &Summary {
        &self.summary
    }

    /// How many entries there are up to `key`, and with it; none when it is not there.
    pub(crate) fn up_to(&self, key: &str) -> Result<u64, Error> {
        const SQL: &str = "SELECT number FROM entries WHERE key = ?1";
        let number = self.connection.query_row(SQL, [key], |row| row.get::<_, i64>(0));
        let number = number.optional().map_err(|_| self.unreadable())?;
        Ok(number.and_then(|number| u64::try_from(number).ok()).unwrap_or_default())
    }

    /// Its entries in the order of their keys, but for the first `skip`, for as long as `take` wants more.
    pub(crate) fn each(
        &self,
        skip: u64,
        mut take: impl FnMut(&str, &[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let failed = |_| self.unreadable();
        const SQL: &str = "SELECT key, value FROM entries WHERE number > ?1 ORDER BY number";
        let skip = i64::try_from(skip).unwrap_or(i64::MAX);
        let mut statement = self.connection.prepare_cached(SQL).map_err(failed)?;
        let mut rows = statement.query([skip]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let key = row.get_ref(0).and_then(|key| Ok(key.as_str()?)).map_err(failed)?;
            let value = row.get_ref(1).and_then(|value| Ok(value.as_blob()?)).map_err(failed)?;
            if !take(key, value)? {
                break;
            }
        }
        Ok(())
    }
    fn unreadable(&self) -> Error {
        Error::Backup {
            path: self.path.clone(),
            why: "it cannot be read",
        }
    }
}
