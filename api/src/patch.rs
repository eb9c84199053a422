//! JSON patch, JSON merge patch, strategic merge patch.
//!
//! Patches come from clients: work and depth are bounded here, sizes where bodies are read.

mod json;
mod order;
mod strategic;

pub use json::{json_merge, json_patch};
pub use strategic::strategic_merge;

use crate::status::Status;

/// Most operations in one JSON patch; upstream's cap.
pub const MAX_OPERATIONS: usize = 10_000;

/// Why a patch cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The patch itself is malformed.
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit the object.
    #[error("{0}")]
    Unprocessable(String),
    /// The patch has too many operations.
    #[error("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {0}")]
    TooManyOperations(usize),
}

impl Error {
    /// The answer to the client.
    pub fn to_status(&self) -> Status {
        match self {
            Error::Malformed(text) => Status::bad_request(text),
            Error::Unprocessable(text) => Status::failure(
                422,
                "Invalid",
                format!("the server rejected our request due to an error in our request: {text}"),
            ),
            Error::TooManyOperations(_) => Status::request_entity_too_large(self),
        }
    }
}
