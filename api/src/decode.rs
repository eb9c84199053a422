//! Bytes of a request to a JSON object of a known kind.
//!
//! One pass over the bytes: the parser is led by the schema, so that unknown fields are dropped as they come by, scalars
//! are checked and made canonical in place, and nothing is built that does not stay. What upstream's typed decoding would
//! drop (nulls, empty optional fields) is dropped here too. Errors have upstream's texts.

mod scalar;
mod walk;

use serde::de::DeserializeSeed as _;
use serde_json::Value;

use crate::field::quote;
use crate::schema::{Shape, Type};
use crate::status::Status;

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

impl DecodeError {
    /// The answer to the client that sent `body` as a `kind` of API `version`.
    pub fn to_status(&self, kind: &str, version: &str, body: &[u8]) -> Status {
        Status::bad_request(match self {
            DecodeError::Syntax(_) => {
                format!(
                    "the object provided is unrecognized (must be of type {kind}): {self} ({})",
                    summary(body)
                )
            }
            _ => format!(
                "{kind} in version {} cannot be handled as a {kind}: {self}",
                quote(version)
            ),
        })
    }
}

/// The first bytes of a body, for messages.
fn summary(body: &[u8]) -> String {
    const MOST: usize = 30;
    let head = &body[..body.len().min(MOST)];
    let more = if body.len() > MOST { " ..." } else { "" };
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(head)),
        Some(_) => format!("{}{more}", head.iter().map(|b| format!("{b:02x}")).collect::<String>()),
    }
}

/// Decodes JSON.
///
/// # Errors
/// When it is not JSON, not of the kind's shape, or has unknown fields and these are refused.
pub fn decode(json: &[u8], kind: &Type, validation: FieldValidation) -> Result<Decoded, DecodeError> {
    let syntax =
        |e: serde_json::Error| DecodeError::Syntax(format!("couldn't get version/kind; json parse error: {e}"));
    let mut parser = serde_json::Deserializer::from_slice(json);
    let mut walk = walk::Walk::new(validation);
    let value = walk::Root { kind, walk: &mut walk }
        .deserialize(&mut parser)
        .map_err(syntax)?;
    parser.end().map_err(syntax)?;
    finish(value, walk, validation)
}

/// Decodes one YAML document; aliases, depth and size are bounded.
///
/// # Errors
/// As [`decode`].
pub fn decode_yaml(yaml: &[u8], kind: &Type, validation: FieldValidation) -> Result<Decoded, DecodeError> {
    let mut walk = walk::Walk::new(validation);
    let parsed = serde_saphyr::with_deserializer_from_slice_with_options(yaml, yaml_options(), |parser| {
        walk::Root { kind, walk: &mut walk }.deserialize(parser)
    });
    let value = parsed.map_err(yaml_error)?;
    finish(value, walk, validation)
}

/// Reads one YAML document without a schema, under the same bounds (patches, CRD bodies).
///
/// # Errors
/// When it is not YAML, or too large once expanded.
pub fn parse_yaml(yaml: &[u8]) -> Result<Value, DecodeError> {
    serde_saphyr::from_slice_with_options(yaml, yaml_options()).map_err(yaml_error)
}

/// Reads all YAML documents of a file without a schema, under the same bounds; empty ones are left out.
///
/// # Errors
/// As [`parse_yaml`], and when they are more than a thousand.
pub fn parse_yaml_documents(yaml: &[u8]) -> Result<Vec<Value>, DecodeError> {
    let mut options = yaml_options();
    if let Some(budget) = &mut options.budget {
        budget.max_documents = 1000;
    }
    serde_saphyr::from_slice_multiple_with_options(yaml, options).map_err(yaml_error)
}

fn yaml_error(error: serde_saphyr::Error) -> DecodeError {
    DecodeError::Syntax(format!("error converting YAML to JSON: yaml: {error}"))
}

/// YAML 1.1 as upstream's parser reads it, and bounds that a bomb meets early.
fn yaml_options() -> serde_saphyr::Options {
    let mut options = serde_saphyr::Options::default();
    options.duplicate_keys = serde_saphyr::DuplicateKeyPolicy::LastWins;
    options.legacy_octal_numbers = true;
    options.with_snippet = false;
    options.alias_limits.max_total_replayed_events = 100_000;
    if let Some(budget) = &mut options.budget {
        budget.max_depth = 128;
        budget.max_nodes = 250_000;
        budget.max_documents = 1;
    }
    options
}

/// Checks and cleans an object that is parsed already (the result of a patch).
///
/// # Errors
/// As [`decode`].
pub fn conform(value: Value, kind: &Type, validation: FieldValidation) -> Result<Decoded, DecodeError> {
    let mut walk = walk::Walk::new(validation);
    let value = walk::Root { kind, walk: &mut walk }
        .deserialize(value)
        .map_err(|e: serde_json::Error| DecodeError::Syntax(e.to_string()))?;
    finish(value, walk, validation)
}

/// As [`conform`], for one field's value; `None` when nothing of it stays.
///
/// # Errors
/// As [`decode`].
pub fn conform_shape(value: Value, shape: &Shape) -> Result<Option<Value>, DecodeError> {
    let mut walk = walk::Walk::new(FieldValidation::Ignore);
    let value = walk::Seed {
        shape,
        place: &walk::Place::Root,
        walk: &mut walk,
    }
    .deserialize(value)
    .map_err(|e: serde_json::Error| DecodeError::Syntax(e.to_string()))?;
    walk.wrong.map_or(Ok(value), |text| Err(DecodeError::Value(text)))
}

fn finish(value: Value, walk: walk::Walk, validation: FieldValidation) -> Result<Decoded, DecodeError> {
    if let Some(text) = walk.wrong {
        return Err(DecodeError::Value(text));
    }
    match validation {
        FieldValidation::Strict if !walk.strict.is_empty() => Err(DecodeError::Strict(walk.strict)),
        _ => Ok(Decoded {
            value,
            warnings: walk.strict,
        }),
    }
}

#[cfg(test)]
mod tests;
