//! Opening the file: pragmas, schema, and what the last run left.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::{FromSql, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

use super::failure::explain;
use crate::{Error, Revision};

/// Says that a database is ours: "skif" in ASCII.
const APPLICATION_ID: i64 = 0x736b_6966;
const SCHEMA_VERSION: i64 = 1;
const PAGE_BYTES: u64 = 4096;
/// How long the writer waits for a lock.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// `previous` is the revision of the version that a change replaced; a NULL value is a deletion.
/// The short columns come first, so that walking history does not touch the pages that long values spill into.
const SCHEMA: &str = "
    CREATE TABLE log (
        revision INTEGER PRIMARY KEY,
        previous INTEGER,
        create_revision INTEGER NOT NULL,
        key TEXT NOT NULL,
        value BLOB
    );
    CREATE TABLE current (
        key TEXT PRIMARY KEY,
        revision INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE meta (
        name TEXT PRIMARY KEY,
        value INTEGER NOT NULL
    ) WITHOUT ROWID;
    -- An empty store is at revision 1: Kubernetes gives 0 a meaning of its own.
    INSERT INTO meta VALUES ('revision', 1), ('compacted', 0), ('purged', 0);
";

/// A writing connection, and where the store stands.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) revision: Revision,
    pub(super) compacted: Revision,
    /// Up to where superseded versions have been deleted; less than `compacted` when that was interrupted.
    pub(super) purged: Revision,
}

/// A file named after the database.
pub(crate) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

pub(super) fn open_for_writing(path: &Path, max_bytes: Option<u64>) -> Result<Opened, Error> {
    create_private(path)?;
    let connection = Connection::open(path).map_err(|error| explain(path, "open the database", error))?;
    prepare(&connection, path, max_bytes)?;
    let read = |step: &'static str| move |error| explain(path, step, error);
    let last = (connection.query_row("SELECT max(revision) FROM log", [], |row| {
        row.get::<_, Option<Revision>>(0)
    }))
    .map_err(read("read the newest revision"))?;
    let revision = meta(&connection, "revision").map_err(read("read the newest revision"))?;
    let compacted = meta(&connection, "compacted").map_err(read("read the compacted revision"))?;
    let purged = meta(&connection, "purged").map_err(read("read the compacted revision"))?;
    Ok(Opened {
        revision: revision.max(last.unwrap_or_default()),
        compacted,
        purged,
        connection,
    })
}

pub(super) fn open_for_reading(path: &Path) -> Result<Connection, Error> {
    let failed = |error| explain(path, "open the database for reading", error);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection
        .execute_batch("PRAGMA cache_size = -512; PRAGMA query_only = ON;")
        .map_err(failed)?;
    Ok(connection)
}

pub(super) fn meta(connection: &Connection, name: &str) -> rusqlite::Result<Revision> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
}

pub(super) fn set_meta(connection: &Connection, name: &str, value: Revision) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE meta SET value = ?2 WHERE name = ?1")?
        .execute((name, value))
        .map(|_| ())
}

/// Checks that a database is one of ours, of a schema that we know; `false` when it is empty.
pub(super) fn check_schema(connection: &Connection, path: &Path) -> Result<bool, Error> {
    let pragma = |name: &str| -> Result<i64, Error> {
        connection
            .pragma_query_value(None, name, |row| row.get(0))
            .map_err(|error| explain(path, "read the schema", error))
    };
    let tables = (connection.query_row("SELECT 1 FROM sqlite_schema LIMIT 1", [], |_| Ok(())))
        .optional()
        .map_err(|error| explain(path, "read the schema", error))?;
    let application = pragma("application_id")?;
    if tables.is_none() && application == 0 {
        return Ok(false);
    }
    if application != APPLICATION_ID {
        return Err(Error::Garbled {
            path: path.to_owned(),
            source: None,
        });
    }
    match pragma("user_version")? {
        found if found > SCHEMA_VERSION => Err(Error::NewerSchema {
            path: path.to_owned(),
            found,
            known: SCHEMA_VERSION,
        }),
        _ => Ok(true),
    }
}

/// SQLite gives its journal files the mode of the database: make that private before it exists.
fn create_private(path: &Path) -> Result<(), Error> {
    (OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path))
    .map(drop)
    .map_err(|source| Error::File {
        step: "create the database",
        path: path.to_owned(),
        source,
    })
}

fn prepare(connection: &Connection, path: &Path, max_bytes: Option<u64>) -> Result<(), Error> {
    let failed = |error| explain(path, "set up the database", error);
    // Both must come before the first table; on an existing database they change nothing.
    let layout = format!("PRAGMA page_size = {PAGE_BYTES}; PRAGMA auto_vacuum = INCREMENTAL;");
    connection.execute_batch(&layout).map_err(failed)?;
    let exists = check_schema(connection, path)?;
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA cache_size = -4096;
             PRAGMA wal_autocheckpoint = 2000;
             PRAGMA journal_size_limit = 16777216;
             PRAGMA temp_store = MEMORY;",
        )
        .map_err(failed)?;
    // Nobody else writes, but a reader that finds the journal's header half written takes the write lock for a moment.
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(64);
    if let Some(bytes) = max_bytes {
        let pages = i64::try_from(bytes.div_ceil(PAGE_BYTES)).unwrap_or(i64::MAX);
        connection
            .pragma_update(None, "max_page_count", pages)
            .map_err(failed)?;
    }
    if !exists {
        let create = format!(
            "BEGIN; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        );
        connection.execute_batch(&create).map_err(failed)?;
    }
    Ok(())
}

// === impl Revision: SQLite's integers are signed; 2^63 revisions last for longer than disks. ===

impl ToSql for Revision {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let signed = i64::try_from(self.0).unwrap_or(i64::MAX);
        Ok(ToSqlOutput::from(signed))
    }
}

impl FromSql for Revision {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        i64::column_result(value).map(|signed| Self(u64::try_from(signed).unwrap_or_default()))
    }
}
