//! Bytes of a request to a JSON object of a known kind.

use serde_json::Value;

use crate::schema::Type;

/// What to do about unknown and duplicate fields (the `fieldValidation` parameter).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Drop them silently.
    Ignore,
    /// Drop them and say so.
    #[default]
    Warn,
    /// Refuse the object.
    Strict,
}

impl FieldValidation {
    /// Reads the query parameter; empty means the default.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Warn" => Some(FieldValidation::Warn),
            "Ignore" => Some(FieldValidation::Ignore),
            "Strict" => Some(FieldValidation::Strict),
            _ => None,
        }
    }
}

/// A decoded object.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The object: only known fields, canonical scalars, empty optional fields left out.
    pub value: Value,
    /// What was dropped; for the client as `Warning` headers.
    pub warnings: Vec<String>,
}

/// Why a body is not an object of the kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON (or YAML).
    #[error("{0}")]
    Syntax(String),
    /// A value of the wrong type, or a scalar that cannot be read.
    #[error("{0}")]
    Value(String),
    /// Unknown or duplicate fields, when these are refused.
    #[error("strict decoding error: {}", .0.join(", "))]
    Strict(Vec<String>),
}

/// Decodes JSON.
///
/// # Errors
/// When it is not JSON, not of the kind's shape, or has unknown fields and these are refused.
pub fn decode(json: &[u8], kind: &Type, validation: FieldValidation) -> Result<Decoded, DecodeError> {
    let value: Value = serde_json::from_slice(json).map_err(|e| DecodeError::Syntax(e.to_string()))?;
    conform(value, kind, validation)
}

/// Decodes one YAML document.
///
/// # Errors
/// As [`decode`].
pub fn decode_yaml(_yaml: &[u8], _kind: &Type, _validation: FieldValidation) -> Result<Decoded, DecodeError> {
    Err(DecodeError::Syntax("not yet".to_owned()))
}

/// Checks and cleans an object that is parsed already (the result of a patch).
///
/// # Errors
/// As [`decode`].
pub fn conform(value: Value, _kind: &Type, _validation: FieldValidation) -> Result<Decoded, DecodeError> {
    Ok(Decoded {
        value,
        warnings: Vec::new(),
    })
}
