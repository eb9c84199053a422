//! The embedded backend: one SQLite file in WAL mode, `synchronous=FULL`.
//!
//! Threads and who owns what:
//! - One **writer** thread owns the only writing connection. It drains its queue into one transaction, commits once (one
//!   fsync), publishes the changes to the [`hub::Hub`], and only then answers the callers. It compacts between batches.
//! - A few **reader** connections, each used on a blocking thread, read consistent snapshots beside it.
//! - The **hub** hands committed changes to live watchers. A watcher that is behind is not waited for: it is dropped from
//!   the hub, reads history until it is level, and joins again ([`watch`]).
//!
//! The file holds two tables: `log`, each change under its revision, and `current`, the newest revision of each key.
//! A row of `log` points at the one that it replaced, so compaction and reads of the past need no further index.

mod apply;
mod compaction;
mod connection;
mod failure;
mod hub;
mod lock;
mod reader;
mod restore;
mod watch;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;

use crate::{Entry, Error, Page, Prefix, Revision, Store, Watch, Write};
use hub::Hub;
use lock::FileLock;
use reader::Readers;
use writer::{Command, Writer};

pub(crate) use connection::beside;
pub(crate) use failure::explain;
pub(crate) use restore::{create_new_private, read_all, remove_with_journal, replace, sync_and_rename};

/// How a SQLite store behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often history is compacted by itself; never when `None`. What is younger than this is kept.
    pub compaction_interval: Option<Duration>,
    /// How many of the newest revisions are kept in any case.
    pub keep_revisions: u64,
    /// The file may not grow beyond this.
    pub max_bytes: Option<u64>,
    /// How many changes may wait for a watcher before it has to catch up from history.
    pub watch_buffer: usize,
    /// How many reads run at the same time.
    pub readers: usize,
}

/// The size and age of a store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stats {
    /// Bytes of the database file and its journal.
    pub bytes: u64,
    /// The newest revision.
    pub revision: Revision,
    /// The oldest revision that can be read.
    pub compacted: Revision,
    /// Live watchers, those not catching up.
    pub watchers: usize,
}

/// A store in one SQLite file. It closes when it is dropped, or sooner with [`SqliteStore::close`].
#[derive(Debug)]
pub struct SqliteStore {
    path: Arc<Path>,
    writer: Writer,
    readers: Arc<Readers>,
    hub: Arc<Hub>,
    options: Options,
    // Released last, after the writer has finished.
    _lock: FileLock,
}

/// Opens the store at `path`, or makes an empty one (mode 0600, in a directory that is made when missing).
///
/// No other process may have it open.
pub fn open(path: impl AsRef<Path>, options: Options) -> Result<SqliteStore, Error> {
    let path: Arc<Path> = Arc::from(path.as_ref());
    let lock = FileLock::take(&path)?;
    let opened = connection::open_for_writing(&path, options.max_bytes)?;
    let hub = Arc::new(Hub::new(opened.revision, opened.compacted));
    let writer = Writer::start(opened, Arc::clone(&path), Arc::clone(&hub), &options)?;
    let readers = Arc::new(Readers::new(Arc::clone(&path), options.readers));
    Ok(SqliteStore {
        path,
        writer,
        readers,
        hub,
        options,
        _lock: lock,
    })
}

impl Default for Options {
    fn default() -> Self {
        Self {
            compaction_interval: Some(Duration::from_secs(5 * 60)),
            keep_revisions: 1000,
            max_bytes: None,
            watch_buffer: 10_000,
            readers: 4,
        }
    }
}

// === impl SqliteStore ===

impl SqliteStore {
    /// Finishes what was accepted, and closes the file. Watchers end with [`Error::Closed`].
    pub async fn close(self) {
        // Joining the writer waits for its last commit.
        tokio::task::spawn_blocking(move || drop(self)).await.ok();
    }

    /// Its size and age.
    pub fn stats(&self) -> Stats {
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        Stats {
            bytes: size(&self.path) + size(&connection::beside(&self.path, "-wal")),
            revision: self.hub.published(),
            compacted: self.hub.compacted(),
            watchers: self.hub.watchers(),
        }
    }

    async fn command<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.writer.send(command(reply))?;
        answer.await.map_err(|_| Error::Closed)
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let key: Arc<str> = Arc::from(key);
        self.readers
            .run(move |connection, path| reader::get(connection, path, &key))
            .await
    }

    async fn list(&self, prefix: &str, at: Option<Revision>, after: Option<&str>, limit: usize) -> Result<Page, Error> {
        let query = reader::ListQuery {
            prefix: Prefix::new(prefix),
            at,
            after: after.map(str::to_owned),
            limit,
        };
        self.readers
            .run(move |connection, path| reader::list(connection, path, &query))
            .await
    }

    async fn write(&self, write: Write) -> Result<Revision, Error> {
        write.check()?;
        self.command(|reply| Command::Write { write, reply }).await?
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        let compacted = self.hub.compacted();
        if from < compacted {
            return Err(Error::Compacted {
                requested: from,
                compacted,
            });
        }
        Ok(watch::start(
            Arc::clone(&self.hub),
            Arc::clone(&self.readers),
            Prefix::new(prefix),
            from,
            self.options.watch_buffer,
        ))
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.command(|reply| Command::Compact { revision, reply }).await?
    }

    async fn revision(&self) -> Result<Revision, Error> {
        Ok(self.hub.published())
    }

    fn is_shared(&self) -> bool {
        false
    }
}
