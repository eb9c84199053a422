//! What can go wrong with a store.

use std::path::PathBuf;

use crate::{Entry, MAX_SIZE, Revision};

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The condition of a write does not hold.
    #[error("the key is not at the expected version")]
    Conflict {
        /// What is there instead.
        current: Option<Entry>,
    },
    /// The revision asked for is no longer in history.
    #[error("revision {requested} has been compacted; history begins at {compacted}")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// The oldest revision that can be read.
        compacted: Revision,
    },
    /// The revision asked for has not happened yet.
    #[error("revision {requested} has not happened yet; the newest is {current}")]
    FutureRevision {
        /// What was asked for.
        requested: Revision,
        /// The newest.
        current: Revision,
    },
    /// A key is empty, does not begin with a slash, or ends with one.
    #[error("{key:?} is not a key: it must begin with a slash and not end with one")]
    InvalidKey {
        /// The text.
        key: String,
    },
    /// An entry is larger than [`MAX_SIZE`].
    #[error("{key} has {size} bytes, and a store takes {MAX_SIZE}: take something out of it, or divide it")]
    TooLarge {
        /// Its key.
        key: String,
        /// Bytes of key and value.
        size: usize,
    },
    /// The store's file or its journal cannot grow.
    #[error("no space left for {}: free some on its disk (or raise its size limit); nothing acknowledged is lost, and writes go on by themselves", path.display())]
    DiskFull {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The file is not a database, or a damaged one.
    #[error("{} is damaged or not a skiff store: restore a backup of it, or move it and the -wal file beside it away to begin empty", path.display())]
    Garbled {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: Option<rusqlite::Error>,
    },
    /// Another process has the store open.
    #[error("{} is in use by another process{}: stop it first", path.display(), holder_text(holder))]
    Locked {
        /// The database file.
        path: PathBuf,
        /// Its process id, if it left it.
        holder: Option<u32>,
    },
    /// A backup that cannot be restored from.
    #[error("{} is not a backup that can be restored: {why}", path.display())]
    Backup {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A restore would replace what is there.
    #[error("{place} is not empty: a restore replaces everything in it, give --force if that is meant")]
    NotEmpty {
        /// Which store.
        place: String,
    },
    /// A server works on the store that is to be replaced.
    #[error("the server at {server} is using this etcd cluster: stop all servers first")]
    InUse {
        /// Its address.
        server: String,
    },
    /// A restore was cut short.
    #[error("a restore into this etcd cluster was cut short: run the same `skiff restore` again")]
    Unfinished,
    /// A newer skiff has written the file.
    #[error("{} has schema version {found}, this skiff knows up to {known}: run the newer skiff, or restore an older backup", path.display())]
    NewerSchema {
        /// The database file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A file could not be opened, copied or replaced.
    #[error("{step} {}", path.display())]
    File {
        /// What was being done.
        step: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// SQLite failed otherwise.
    #[error("{step} in {}", path.display())]
    Sqlite {
        /// What was being done.
        step: &'static str,
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// etcd is away, or refused.
    #[error("cannot {step} in etcd: {message}{remedy}")]
    Etcd {
        /// What was being done.
        step: &'static str,
        /// What etcd, or the way to it, said.
        message: String,
        /// What to do.
        remedy: &'static str,
    },
    /// What was given to reach a store cannot be used.
    #[error("{message}")]
    Configuration {
        /// Which part of it, and why.
        message: String,
    },
    /// The store is shut down.
    #[error("the store is closed")]
    Closed,
}

pub use StoreError as Error;

fn holder_text(holder: &Option<u32>) -> String {
    holder.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}
