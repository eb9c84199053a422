//! What etcd's refusals mean.

use tonic::{Code, Status};

use crate::Error;

/// A failed call as an error.
pub(super) fn explain(step: &'static str, status: &Status) -> Error {
    // A status that etcd sent has no source; one that was made for a broken connection has, and that tells more.
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(status);
    let mut innermost = None;
    while let Some(error) = cause {
        innermost = Some(error.to_string());
        cause = error.source();
    }
    let message = innermost.unwrap_or_else(|| status.message().to_owned());
    let remedy = match () {
        () if message.contains("database space exceeded") => {
            ": compact and defragment it (or raise its --quota-backend-bytes), then disarm its alarm"
        }
        () if is_passing(status) => ": are its members running, and does a majority of them reach each other?",
        () => "",
    };
    Error::Etcd { step, message, remedy }
}

/// An answer that etcd cannot have given.
pub(super) fn garbled(message: &str) -> Error {
    Error::Etcd {
        step: "read an answer",
        message: message.to_owned(),
        remedy: "",
    }
}

/// Whether asking again may help: the member is away, a leader is being elected.
pub(super) fn is_passing(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
    ) || std::error::Error::source(status).is_some()
}

pub(super) fn is_compacted(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("has been compacted")
}

pub(super) fn is_future(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("future revision")
}
