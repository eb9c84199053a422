//! Reads: consistent snapshots, beside the writer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rusqlite::{Connection, Row};
use tokio::sync::Semaphore;

use super::apply::current;
use super::connection::{meta, open_for_reading};
use super::failure::explain;
use crate::{Entry, Error, Event, Page, Prefix, Revision};

/// A few connections, opened when needed.
#[derive(Debug)]
pub(super) struct Readers {
    path: Arc<Path>,
    idle: Mutex<Vec<Connection>>,
    permits: Semaphore,
}

/// What to list.
#[derive(Debug)]
pub(super) struct ListQuery {
    pub(super) prefix: Prefix,
    pub(super) at: Option<Revision>,
    pub(super) after: Option<String>,
    pub(super) limit: usize,
}

/// A piece of history.
#[derive(Debug)]
pub(super) struct History {
    pub(super) events: Vec<Event>,
    /// Everything that concerns the prefix up to here is in `events`, or was before.
    pub(super) position: Revision,
}

// === impl Readers ===

impl Readers {
    pub(super) fn new(path: Arc<Path>, count: usize) -> Self {
        Self {
            path,
            idle: Mutex::default(),
            permits: Semaphore::new(count.max(1)),
        }
    }

    /// Runs a read on a blocking thread.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Connection, &Path) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let _permit = self.permits.acquire().await.map_err(|_| Error::Closed)?;
        let readers = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || {
            let idle = readers.idle.lock().pop();
            let connection = match idle {
                Some(connection) => connection,
                None => open_for_reading(&readers.path)?,
            };
            let result = read(&connection, &readers.path);
            readers.idle.lock().push(connection);
            result
        });
        task.await.map_err(|_| Error::Closed)?
    }
}

pub(super) fn get(connection: &Connection, path: &Path, key: &Arc<str>) -> Result<Option<Entry>, Error> {
    current(connection, key).map_err(|error| explain(path, "get a key", error))
}

pub(super) fn list(connection: &Connection, path: &Path, query: &ListQuery) -> Result<Page, Error> {
    let failed = |error| explain(path, "list keys", error);
    // One transaction: the revision and the entries belong together.
    let transaction = connection.unchecked_transaction().map_err(failed)?;
    let newest = newest_revision(&transaction).map_err(failed)?;
    match query.at {
        Some(at) if at != newest => {
            let compacted = meta(&transaction, "compacted").map_err(failed)?;
            check_revision(at, compacted, newest)?;
            list_past(&transaction, query, at).map_err(failed)
        }
        _ => list_newest(&transaction, query, newest).map_err(failed),
    }
}

/// The changes under `prefix` after `from`, at most `limit`, no further than `until`.
pub(super) fn history(
    connection: &Connection,
    path: &Path,
    prefix: &Prefix,
    from: Revision,
    until: Option<Revision>,
    limit: usize,
) -> Result<History, Error> {
    let failed = |error| explain(path, "read history", error);
    let transaction = connection.unchecked_transaction().map_err(failed)?;
    let compacted = meta(&transaction, "compacted").map_err(failed)?;
    if from < compacted {
        return Err(Error::Compacted {
            requested: from,
            compacted,
        });
    }
    let until = until
        .map_or_else(|| newest_revision(&transaction), Ok)
        .map_err(failed)?;
    let events = events(&transaction, prefix, from, until, limit).map_err(failed)?;
    let position = match events.last() {
        Some(last) if events.len() == limit => last.revision(),
        _ => until.max(from),
    };
    Ok(History { events, position })
}

fn newest_revision(connection: &Connection) -> rusqlite::Result<Revision> {
    let last = (connection.prepare_cached("SELECT max(revision) FROM log")?)
        .query_row([], |row| row.get::<_, Option<Revision>>(0))?;
    // The log forgets deletions once they are compacted.
    Ok(meta(connection, "revision")?.max(last.unwrap_or_default()))
}

fn check_revision(at: Revision, compacted: Revision, newest: Revision) -> Result<(), Error> {
    if at > newest {
        return Err(Error::FutureRevision {
            requested: at,
            current: newest,
        });
    }
    if at < compacted {
        return Err(Error::Compacted {
            requested: at,
            compacted,
        });
    }
    Ok(())
}

impl ListQuery {
    /// Keys greater than this and less than that.
    fn range(&self) -> (&str, String) {
        let start = self.prefix.start();
        let after = self.after.as_deref().unwrap_or_default();
        (start.max(after), self.prefix.end())
    }
}

fn list_newest(connection: &Connection, query: &ListQuery, newest: Revision) -> rusqlite::Result<Page> {
    const ENTRIES: &str = "SELECT log.value, log.create_revision, log.revision, current.key FROM current
         JOIN log ON log.revision = current.revision
         WHERE current.key > ?1 AND current.key < ?2 ORDER BY current.key LIMIT ?3";
    const COUNT: &str = "SELECT count(*) FROM current WHERE key > ?1 AND key < ?2";
    let (start, end) = query.range();
    // SQLite reads a negative limit as none; one more than asked for tells whether there is more.
    let limit = if query.limit == 0 {
        -1
    } else {
        i64::try_from(query.limit).unwrap_or(i64::MAX - 1) + 1
    };
    let mut statement = connection.prepare_cached(ENTRIES)?;
    let mut entries = statement
        .query_map((start, &end, limit), |row| entry(row, 0))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let more = query.limit > 0 && entries.len() > query.limit;
    let mut remaining = 0;
    if more {
        entries.truncate(query.limit);
        let last = entries.last().map_or("", |entry| &entry.key);
        let count: i64 = connection
            .prepare_cached(COUNT)?
            .query_row((last, &end), |row| row.get(0))?;
        remaining = u64::try_from(count).unwrap_or_default();
    }
    Ok(Page {
        entries,
        revision: newest,
        more,
        remaining,
    })
}

/// Undoes what happened to each key since `at`: the first change after it names the version that was there.
fn list_past(connection: &Connection, query: &ListQuery, at: Revision) -> rusqlite::Result<Page> {
    const UNCHANGED: &str =
        "SELECT key, revision FROM current WHERE key > ?1 AND key < ?2 AND revision <= ?3 ORDER BY key";
    const CHANGED: &str =
        "SELECT key, previous FROM log WHERE revision > ?1 AND key > ?2 AND key < ?3 ORDER BY revision";
    let (start, end) = query.range();
    let pair = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, Option<Revision>>(1)?));
    let mut versions: BTreeMap<String, Option<Revision>> = (connection.prepare_cached(UNCHANGED)?)
        .query_map((start, &end, at), pair)?
        .collect::<rusqlite::Result<_>>()?;
    for row in connection.prepare_cached(CHANGED)?.query_map((at, start, &end), pair)? {
        let (key, previous) = row?;
        versions.entry(key).or_insert(previous);
    }
    let mut revisions: Vec<Revision> = versions.into_values().flatten().collect();
    let total = revisions.len();
    if query.limit > 0 {
        revisions.truncate(query.limit);
    }
    let mut statement =
        connection.prepare_cached("SELECT value, create_revision, revision, key FROM log WHERE revision = ?1")?;
    let entries = revisions
        .iter()
        .map(|revision| statement.query_row([revision], |row| entry(row, 0)))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Page {
        more: entries.len() < total,
        remaining: (total - entries.len()) as u64,
        entries,
        revision: at,
    })
}

fn events(
    connection: &Connection,
    prefix: &Prefix,
    from: Revision,
    until: Revision,
    limit: usize,
) -> rusqlite::Result<Vec<Event>> {
    // A version is kept for as long as a change that replaced it can be read, so the join always finds it.
    const SQL: &str = "SELECT log.value, log.create_revision, log.revision, log.key,
             before.value, before.create_revision, before.revision, before.key
         FROM log LEFT JOIN log AS before ON before.revision = log.previous
         WHERE log.revision > ?1 AND log.revision <= ?2 AND log.key > ?3 AND log.key < ?4
         ORDER BY log.revision LIMIT ?5";
    let mut statement = connection.prepare_cached(SQL)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = statement.query_map((from, until, prefix.start(), prefix.end(), limit), |row| {
        let previous = if row.get_ref(4)?.as_blob_or_null()?.is_some() {
            Some(entry(row, 4)?)
        } else {
            None
        };
        match (row.get_ref(0)?.as_blob_or_null()?, previous) {
            (None, Some(previous)) => Ok(Event::Delete {
                revision: row.get(2)?,
                previous,
            }),
            (_, previous) => Ok(Event::Put {
                entry: entry(row, 0)?,
                previous,
            }),
        }
    })?;
    rows.collect()
}

/// Reads value, create_revision, revision and key from column `first` on.
fn entry(row: &Row<'_>, first: usize) -> rusqlite::Result<Entry> {
    Ok(Entry {
        value: Bytes::copy_from_slice(row.get_ref(first)?.as_blob()?),
        create_revision: row.get(first + 1)?,
        mod_revision: row.get(first + 2)?,
        key: Arc::from(row.get_ref(first + 3)?.as_str()?),
    })
}
