//! Backups: everything in a store at one revision, in one file that either backend can be restored from.
//!
//! [`save`] reads a consistent snapshot while servers use the store. [`restore`] replaces what is in a store that no server uses; from
//! then on revisions are greater than any that clients may know, and all that came before counts as compacted: whoever watches
//! has to list anew, and nobody takes a restored object for a version that they have seen.

mod file;

use std::path::{Path, PathBuf};

use crate::etcd::{self, EtcdStore};
use crate::sqlite;
use crate::{Error, Revision};

use file::Writer;
pub(crate) use file::{Reader, Sum};

/// After a restore, revisions go on from the newest that is known plus this; etcd's advice for the same purpose.
pub(crate) const REVISION_GAP: u64 = 1_000_000_000;

/// What servers say to each other: of no use once they are gone.
const BETWEEN_SERVERS: [&str; 4] = [
    "/registry/masterleases/",
    "/registry/ranges/",
    "/registry/ages/",
    etcd::RESTORE_STATE,
];
/// They go after an hour in any case.
const EVENTS: &str = "/registry/core/events/";

/// Which store.
#[derive(Clone, Debug)]
pub enum Place {
    /// The SQLite file of a server.
    Sqlite(PathBuf),
    /// An etcd cluster.
    Etcd(etcd::Options),
}

/// What a backup holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Summary {
    /// When it was taken, in the store's count.
    pub revision: Revision,
    /// How many keys.
    pub objects: u64,
    /// The length of their values.
    pub bytes: u64,
    /// Over all keys and values, in hexadecimal digits.
    pub sha256: String,
}

/// Writes a backup to the file `to`, which appears when it is whole. It holds Secrets, so only its owner may read it.
///
/// `events` says whether Events are wanted; `progress` is told how many keys have been written.
///
/// # Errors
/// When the store cannot be read or the file not be written; a file that was there stays as it was.
pub async fn save(
    from: &Place,
    to: &Path,
    events: bool,
    mut progress: impl FnMut(u64) + Send + 'static,
) -> Result<Summary, Error> {
    let mut writer = Writer::create(to)?;
    let is_wanted = move |key: &str| {
        let between = BETWEEN_SERVERS.iter().any(|prefix| key.starts_with(prefix));
        !between && (events || !key.starts_with(EVENTS))
    };
    match from {
        Place::Sqlite(path) => {
            let path = path.clone();
            let copy = tokio::task::spawn_blocking(move || {
                let revision = sqlite::read_all(&path, |key, value| {
                    if is_wanted(key) {
                        progress(writer.add(key, value)?);
                    }
                    Ok(())
                })?;
                writer.finish(revision)
            });
            copy.await.map_err(|_| Error::Closed)?
        }
        Place::Etcd(options) => {
            let store = EtcdStore::connect_quietly(options).await?;
            let mut page = store.snapshot(None).await?;
            loop {
                for entry in page.entries.iter().filter(|entry| is_wanted(&entry.key)) {
                    progress(writer.add(&entry.key, &entry.value)?);
                }
                let Some(last) = page.entries.last().filter(|_| page.more) else {
                    return writer.finish(page.revision);
                };
                let last = last.key.clone();
                page = store.snapshot(Some((page.revision, &last))).await?;
            }
        }
    }
}

/// What a backup holds, after checking that it is whole.
///
/// # Errors
/// When the file is no backup, or damaged.
pub fn check(file: &Path) -> Result<Summary, Error> {
    Reader::open(file).map(|reader| reader.summary().clone())
}

/// Replaces everything in a store with the backup in the file `from`; the revision that it goes on from.
///
/// `force` allows to replace what is there; `progress` is told how many keys have been written.
///
/// # Errors
/// When the backup is damaged, the store is in use, or holds something and `force` is not given: then it is as it was. A restore into
/// etcd that is cut short leaves a store that servers refuse; the same restore goes on where it ended.
pub async fn restore(
    from: &Path,
    to: &Place,
    force: bool,
    mut progress: impl FnMut(u64) + Send + 'static,
) -> Result<Revision, Error> {
    let from = from.to_owned();
    match to {
        Place::Sqlite(path) => {
            let path = path.clone();
            let replace = tokio::task::spawn_blocking(move || {
                sqlite::replace(&path, &Reader::open(&from)?, force, &mut progress)
            });
            replace.await.map_err(|_| Error::Closed)?
        }
        Place::Etcd(options) => {
            let reader = tokio::task::spawn_blocking(move || Reader::open(&from));
            let reader = reader.await.map_err(|_| Error::Closed)??;
            etcd::replace(options, reader, force, &mut progress).await
        }
    }
}
