//! A revisioned key-value store behind one trait: SQLite (embedded), or etcd for several servers.
//!
//! What every backend promises, and `tests/conformance` checks:
//! - One global [`Revision`] that only grows, through restarts and compactions; every write has its own.
//! - A write is durable when [`Store::write`] returns, and visible to every read that begins after.
//! - A [`Watch`] delivers each change once, in order, from any revision that is not compacted, or fails with
//!   [`Error::Compacted`]. A slow watcher costs no one else anything: it falls back on history and catches up.
//! - A key and its value have at most [`MAX_SIZE`] bytes.
//! - A prefix means a directory: `/registry/core/pods` never reaches `/registry/core/podsx/…`.

mod error;
mod prefix;
mod types;

pub mod backup;
pub mod etcd;
pub mod sqlite;

use async_trait::async_trait;

pub use error::Error;
pub use etcd::EtcdStore;
pub use prefix::Prefix;
pub use sqlite::SqliteStore;
pub use types::{Entry, Event, MAX_SIZE, Page, Revision, Watch, Write};

/// A revisioned key-value store. Keys are paths (`/registry/apps/deployments/default/web`), values are opaque bytes.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest version of a key.
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error>;

    /// The entries under `prefix` in key order, as they were at revision `at` (now when `None`), beginning after the
    /// key `after`; at most `limit` of them (0: all).
    ///
    /// The answer's revision is the one that it is consistent at: watching from it misses nothing and repeats nothing.
    async fn list(&self, prefix: &str, at: Option<Revision>, after: Option<&str>, limit: usize) -> Result<Page, Error>;

    /// Applies one change if its condition holds, and says at which revision.
    ///
    /// [`Error::Conflict`] carries what is there instead. Any other error leaves the store unchanged, but for
    /// [`Error::Closed`] and [`Error::Etcd`], after which the change may or may not have happened.
    async fn write(&self, write: Write) -> Result<Revision, Error>;

    /// Every change under `prefix` after revision `from`, in batches.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error>;

    /// Forgets history up to `revision`: reads and watches from before it fail with [`Error::Compacted`].
    async fn compact(&self, revision: Revision) -> Result<(), Error>;

    /// The newest revision: at least that of every write acknowledged so far.
    async fn revision(&self) -> Result<Revision, Error>;

    /// Whether other processes may use the store at the same time.
    fn is_shared(&self) -> bool;
}
