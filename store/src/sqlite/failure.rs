//! What SQLite says, in our words.

use std::path::Path;

use rusqlite::ErrorCode;

use crate::Error;

/// Turns a failure of `step` into an error that names the likely cause.
pub(crate) fn explain(path: &Path, step: &'static str, source: rusqlite::Error) -> Error {
    let path = path.to_owned();
    // The memory that readers and the writer share is a file beside the database, and grows with it.
    let shared_memory = |error: &rusqlite::ffi::Error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE;
    if source.sqlite_error().is_some_and(shared_memory) {
        return Error::DiskFull { path, source };
    }
    match source.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Error::DiskFull { path, source },
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Error::Garbled {
            path,
            source: Some(source),
        },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Error::Locked { path, holder: None },
        _ => Error::Sqlite { step, path, source },
    }
}

/// The same failure once more: every write of a failed batch gets its own.
pub(super) fn copy(source: &rusqlite::Error) -> rusqlite::Error {
    match source {
        rusqlite::Error::SqliteFailure(error, message) => rusqlite::Error::SqliteFailure(*error, message.clone()),
        other => rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ERROR),
            Some(other.to_string()),
        ),
    }
}
