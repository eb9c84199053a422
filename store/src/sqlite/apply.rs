//! One conditional write inside the writer's transaction.

use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _};

use crate::{Entry, Event, Revision, Write};

/// What became of a write.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It took the revision offered.
    Applied(Event),
    /// Its condition does not hold; this is there instead.
    Conflict(Option<Entry>),
}

/// Applies `write` as revision `revision`, or changes nothing.
pub(super) fn apply(connection: &Connection, write: Write, revision: Revision) -> rusqlite::Result<Outcome> {
    match write {
        Write::Create { key, value } => create(connection, key, value, revision),
        Write::Update { key, value, expected } => update(connection, key, value, expected, revision),
        Write::Delete { key, expected } => delete(connection, key, expected, revision),
    }
}

/// The newest version of a key.
pub(super) fn current(connection: &Connection, key: &Arc<str>) -> rusqlite::Result<Option<Entry>> {
    const SQL: &str = "SELECT log.value, log.create_revision, log.revision FROM current
         JOIN log ON log.revision = current.revision WHERE current.key = ?1";
    (connection.prepare_cached(SQL)?)
        .query_row([&**key], |row| {
            Ok(Entry {
                key: Arc::clone(key),
                value: Bytes::copy_from_slice(row.get_ref(0)?.as_blob()?),
                create_revision: row.get(1)?,
                mod_revision: row.get(2)?,
            })
        })
        .optional()
}

fn create(connection: &Connection, key: Arc<str>, value: Bytes, revision: Revision) -> rusqlite::Result<Outcome> {
    const SQL: &str = "INSERT INTO current (key, revision) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
    if connection.prepare_cached(SQL)?.execute((&*key, revision))? == 0 {
        return current(connection, &key).map(Outcome::Conflict);
    }
    append(connection, &key, Some(&value), revision, None, revision)?;
    Ok(Outcome::Applied(Event::Put {
        entry: Entry {
            key,
            value,
            create_revision: revision,
            mod_revision: revision,
        },
        previous: None,
    }))
}

fn update(
    connection: &Connection,
    key: Arc<str>,
    value: Bytes,
    expected: Revision,
    revision: Revision,
) -> rusqlite::Result<Outcome> {
    let previous = match current(connection, &key)? {
        Some(entry) if entry.mod_revision == expected => entry,
        other => return Ok(Outcome::Conflict(other)),
    };
    (connection.prepare_cached("UPDATE current SET revision = ?2 WHERE key = ?1")?).execute((&*key, revision))?;
    let created = previous.create_revision;
    append(connection, &key, Some(&value), revision, Some(expected), created)?;
    Ok(Outcome::Applied(Event::Put {
        entry: Entry {
            key,
            value,
            create_revision: created,
            mod_revision: revision,
        },
        previous: Some(previous),
    }))
}

fn delete(
    connection: &Connection,
    key: Arc<str>,
    expected: Option<Revision>,
    revision: Revision,
) -> rusqlite::Result<Outcome> {
    let previous = match current(connection, &key)? {
        Some(entry) if expected.is_none_or(|wanted| entry.mod_revision == wanted) => entry,
        other => return Ok(Outcome::Conflict(other)),
    };
    (connection.prepare_cached("DELETE FROM current WHERE key = ?1")?).execute([&*key])?;
    append(
        connection,
        &key,
        None,
        revision,
        Some(previous.mod_revision),
        previous.create_revision,
    )?;
    Ok(Outcome::Applied(Event::Delete { revision, previous }))
}

fn append(
    connection: &Connection,
    key: &str,
    value: Option<&[u8]>,
    revision: Revision,
    previous: Option<Revision>,
    created: Revision,
) -> rusqlite::Result<()> {
    const SQL: &str = "INSERT INTO log (revision, previous, create_revision, key, value) VALUES (?1, ?2, ?3, ?4, ?5)";
    connection
        .prepare_cached(SQL)?
        .execute((revision, previous, created, key, value))
        .map(|_| ())
}
