//! JSON patch, JSON merge patch, strategic merge patch.

use serde_json::Value;

use crate::schema::Type;

/// Most operations in one JSON patch; upstream's cap.
pub const MAX_OPERATIONS: usize = 10_000;

/// Why a patch cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The patch itself is malformed (400).
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit the object (422).
    #[error("{0}")]
    Unprocessable(String),
    /// The patch is too large (413).
    #[error("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {0}")]
    TooManyOperations(usize),
}

/// Applies a strategic merge patch.
///
/// # Errors
/// When the patch is malformed or does not fit.
pub fn strategic_merge(_kind: &Type, current: &Value, _patch: &Value) -> Result<Value, Error> {
    Ok(current.clone())
}

/// Applies a JSON merge patch (RFC 7396).
pub fn json_merge(current: &mut Value, patch: &Value) {
    let _ = (current, patch);
}

/// Applies a JSON patch (RFC 6902).
///
/// # Errors
/// When the patch is malformed, too long, or an operation fails.
pub fn json_patch(_current: &mut Value, _patch: &[u8]) -> Result<(), Error> {
    Ok(())
}
