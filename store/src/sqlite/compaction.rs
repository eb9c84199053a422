//! Forgetting history in small steps between batches, so that no writer waits for it.
//!
//! A compaction first moves the boundary (`compacted`), from which moment nothing older can be read, then deletes what
//! cannot be read any more (`purged` remembers how far, so that a crash only pauses it), then gives pages back to the disk.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Options;
use super::connection::{BUSY_TIMEOUT, set_meta};
use super::failure::explain;
use super::hub::Hub;
use crate::{Error, Revision};

/// Changes walked in one transaction.
const STEP_CHANGES: u32 = 500;
/// Pages given back in one transaction.
const STEP_PAGES: u32 = 200;
const RETRY: Duration = Duration::from_secs(10);

type Reply = oneshot::Sender<Result<(), Error>>;

/// Where compaction stands, owned by the writer thread.
#[derive(Debug)]
pub(super) struct Compaction {
    compacted: Revision,
    purged: Revision,
    /// Pages may be waiting to be given back.
    vacuum: bool,
    requested: VecDeque<(Revision, Reply)>,
    /// Those whose boundary is set, until the deleting is done.
    waiting: Vec<Reply>,
    interval: Option<Duration>,
    keep: u64,
    /// The newest revision when the last interval began: everything up to it is old enough once the interval ends.
    mark: Revision,
    next_interval: Option<Instant>,
    /// Not before this, after a failure.
    retry_at: Option<Instant>,
}

impl Compaction {
    pub(super) fn new(compacted: Revision, purged: Revision, newest: Revision, options: &Options) -> Self {
        Self {
            compacted,
            purged,
            vacuum: false,
            requested: VecDeque::new(),
            waiting: Vec::new(),
            interval: options.compaction_interval,
            keep: options.keep_revisions,
            mark: newest,
            next_interval: options.compaction_interval.map(|interval| Instant::now() + interval),
            retry_at: None,
        }
    }

    pub(super) fn request(&mut self, revision: Revision, reply: Reply) {
        self.requested.push_back((revision, reply));
    }

    /// When there is something to do next.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let busy = !self.requested.is_empty() || self.purged < self.compacted || self.vacuum;
        match (busy, self.retry_at) {
            (true, None) => Some(Instant::now()),
            (true, Some(at)) => Some(self.next_interval.map_or(at, |next| next.min(at))),
            (false, _) => self.next_interval,
        }
    }

    /// Does one small step, if one is due.
    pub(super) fn tick(&mut self, connection: &Connection, path: &Path, hub: &Hub, newest: Revision) {
        let now = Instant::now();
        self.begin_interval(now, newest, connection, path, hub);
        while let Some((revision, reply)) = self.requested.pop_front() {
            match self.advance(connection, path, hub, revision, newest) {
                Ok(()) => self.waiting.push(reply),
                Err(error) => {
                    reply.send(Err(error)).ok();
                }
            }
        }
        if self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = None;
        if let Err(error) = self.step(connection) {
            tracing::warn!(%error, "cannot compact the store; trying again in {RETRY:?}");
            self.retry_at = Some(now + RETRY);
            for reply in self.waiting.drain(..) {
                reply
                    .send(Err(explain(path, "compact", super::failure::copy(&error))))
                    .ok();
            }
        }
    }

    /// Answers those who wait; the deleting goes on at the next start.
    pub(super) fn finish(&mut self) {
        for reply in self.waiting.drain(..) {
            reply.send(Ok(())).ok();
        }
    }

    fn begin_interval(&mut self, now: Instant, newest: Revision, connection: &Connection, path: &Path, hub: &Hub) {
        let (Some(interval), Some(at)) = (self.interval, self.next_interval) else {
            return;
        };
        if now < at {
            return;
        }
        self.next_interval = Some(now + interval);
        let target = Revision(self.mark.0.min(newest.0.saturating_sub(self.keep)));
        self.mark = newest;
        if target > self.compacted
            && let Err(error) = self.advance(connection, path, hub, target, newest)
        {
            tracing::warn!(%error, "cannot compact the store; trying again in {RETRY:?}");
            self.next_interval = Some(now + RETRY);
        }
    }

    /// Moves the boundary.
    fn advance(
        &mut self,
        connection: &Connection,
        path: &Path,
        hub: &Hub,
        target: Revision,
        newest: Revision,
    ) -> Result<(), Error> {
        if target > newest {
            return Err(Error::FutureRevision {
                requested: target,
                current: newest,
            });
        }
        if target <= self.compacted {
            return Ok(());
        }
        let set = || -> rusqlite::Result<()> {
            let transaction = connection.unchecked_transaction()?;
            set_meta(&transaction, "compacted", target)?;
            // The newest change may be a deletion, which leaves no trace once it is purged.
            set_meta(&transaction, "revision", newest)?;
            transaction.commit()
        };
        set().map_err(|error| explain(path, "move the compacted revision", error))?;
        self.compacted = target;
        hub.set_compacted(target);
        Ok(())
    }

    fn step(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if self.purged < self.compacted {
            let to = step_end(connection, self.purged, self.compacted)?;
            purge(connection, self.purged, to)?;
            self.purged = to;
            self.vacuum = true;
            return Ok(());
        }
        for reply in self.waiting.drain(..) {
            reply.send(Ok(())).ok();
        }
        if self.vacuum {
            self.vacuum = give_back(connection)?;
        }
        Ok(())
    }
}

/// The last of the next few changes after `from`, or `to` when fewer are left: revisions may have wide gaps.
fn step_end(connection: &Connection, from: Revision, to: Revision) -> rusqlite::Result<Revision> {
    const SQL: &str =
        "SELECT revision FROM log WHERE revision > ?1 AND revision <= ?2 ORDER BY revision LIMIT 1 OFFSET ?3";
    let end = connection
        .prepare_cached(SQL)?
        .query_row((from, to, STEP_CHANGES), |row| row.get(0))
        .optional()?;
    Ok(end.unwrap_or(to))
}

/// Deletes what the changes after `from`, up to `to`, replaced, and the deletions among them.
fn purge(connection: &Connection, from: Revision, to: Revision) -> rusqlite::Result<()> {
    const REPLACED: &str = "DELETE FROM log WHERE revision IN
        (SELECT previous FROM log WHERE revision > ?1 AND revision <= ?2 AND previous IS NOT NULL)";
    const DELETIONS: &str = "DELETE FROM log WHERE revision > ?1 AND revision <= ?2 AND value IS NULL";
    let transaction = connection.unchecked_transaction()?;
    transaction.prepare_cached(REPLACED)?.execute((from, to))?;
    transaction.prepare_cached(DELETIONS)?.execute((from, to))?;
    set_meta(&transaction, "purged", to)?;
    transaction.commit()
}

/// Gives some free pages back; whether there are more.
fn give_back(connection: &Connection) -> rusqlite::Result<bool> {
    let free = || connection.query_row("PRAGMA freelist_count", [], |row| row.get::<_, u32>(0));
    // A few free pages are taken again at once by the next writes.
    if free()? > STEP_PAGES {
        // The pragma works while it is stepped, a page at a time.
        let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({STEP_PAGES})"))?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        return Ok(true);
    }
    // The journal would stay as large as it ever was. A reader in the way is not waited for: the next time will do.
    connection.busy_timeout(Duration::ZERO)?;
    let truncated = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    connection.busy_timeout(BUSY_TIMEOUT)?;
    truncated?;
    connection.release_memory()?;
    Ok(false)
}
