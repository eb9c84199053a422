//! Field paths and field-level validation errors, worded as upstream words them.

use std::fmt::{self, Write as _};

use serde_json::Value;

/// A path to a field, such as `spec.containers[0].name`. Each step borrows the one before it, so that building paths
/// costs nothing until an error is reported.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Name(&'a str),
    Index(usize),
    Key(&'a str),
}

impl Path<'static> {
    /// The whole object: children of it are written without a leading dot.
    pub const OBJECT: Path<'static> = Path {
        parent: None,
        step: Step::Name(""),
    };
}

impl<'a> Path<'a> {
    /// A path of one name; dots in it are kept, so `root("spec.template")` is two levels at once.
    pub const fn root(name: &'a str) -> Self {
        Path {
            parent: None,
            step: Step::Name(name),
        }
    }

    /// The field `name` of this one; dots in it are kept, so `child("spec.containers")` is two levels at once.
    pub const fn child<'b>(&'b self, name: &'b str) -> Path<'b> {
        Path {
            parent: Some(self),
            step: Step::Name(name),
        }
    }

    /// An item of this list.
    pub const fn index(&self, index: usize) -> Path<'_> {
        Path {
            parent: Some(self),
            step: Step::Index(index),
        }
    }

    /// An entry of this map.
    pub const fn key<'b>(&'b self, key: &'b str) -> Path<'b> {
        Path {
            parent: Some(self),
            step: Step::Key(key),
        }
    }

    fn write(&self, out: &mut String) {
        if let Some(parent) = self.parent {
            parent.write(out);
        }
        match self.step {
            Step::Name(name) => {
                if !out.is_empty() && !name.is_empty() {
                    out.push('.');
                }
                out.push_str(name);
            }
            Step::Index(index) => {
                write!(out, "[{index}]").ok();
            }
            Step::Key(key) => {
                write!(out, "[{key}]").ok();
            }
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write(&mut text);
        f.write_str(&text)
    }
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// A value must be given.
    Required,
    /// The value is malformed or out of bounds.
    Invalid,
    /// The value is not one of those that are known.
    NotSupported,
    /// The value must be unique and is not.
    Duplicate,
    /// The value is well-formed but not allowed here.
    Forbidden,
    /// The value is longer than allowed.
    TooLong,
    /// The value is shorter than allowed.
    TooShort,
    /// The list has more items than allowed.
    TooMany,
    /// The list has fewer items than required.
    TooFew,
    /// The value is not of the schema's type.
    TypeInvalid,
    /// What the value refers to does not exist.
    NotFound,
    /// Not the caller's fault.
    Internal,
}

impl Reason {
    /// The `reason` of a status cause.
    pub const fn cause(self) -> &'static str {
        match self {
            Reason::Required => "FieldValueRequired",
            Reason::Invalid => "FieldValueInvalid",
            Reason::NotSupported => "FieldValueNotSupported",
            Reason::Duplicate => "FieldValueDuplicate",
            Reason::Forbidden => "FieldValueForbidden",
            Reason::TooLong => "FieldValueTooLong",
            Reason::TooShort => "FieldValueTooShort",
            Reason::TooMany => "FieldValueTooMany",
            Reason::TooFew => "FieldValueTooFew",
            Reason::TypeInvalid => "FieldValueTypeInvalid",
            Reason::NotFound => "FieldValueNotFound",
            Reason::Internal => "InternalError",
        }
    }

    /// The words that open the message.
    pub const fn text(self) -> &'static str {
        match self {
            Reason::Required => "Required value",
            Reason::Invalid | Reason::TypeInvalid => "Invalid value",
            Reason::NotSupported => "Unsupported value",
            Reason::Duplicate => "Duplicate value",
            Reason::Forbidden => "Forbidden",
            Reason::TooLong => "Too long",
            Reason::TooShort => "Too short",
            Reason::TooMany => "Too many",
            Reason::TooFew => "Too few",
            Reason::NotFound => "Not found",
            Reason::Internal => "Internal error",
        }
    }

    /// Whether the offending value is repeated in the message.
    const fn shows_value(self) -> bool {
        !matches!(
            self,
            Reason::Required | Reason::Forbidden | Reason::TooLong | Reason::TooShort | Reason::Internal
        )
    }
}

/// One thing wrong with one field of an object.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{path}: {}", self.body())]
pub struct Error {
    /// Where, such as `spec.replicas`.
    pub path: String,
    /// What kind of mistake.
    pub reason: Reason,
    /// The offending value; `None` where the message leaves it out.
    pub value: Option<Value>,
    /// What would be right; may be empty.
    pub detail: String,
}

impl Error {
    /// An error with every part given.
    pub fn new(path: &Path<'_>, reason: Reason, value: Option<Value>, detail: impl Into<String>) -> Self {
        Error {
            path: path.to_string(),
            reason,
            value,
            detail: detail.into(),
        }
    }

    /// `spec.x: Required value: detail`
    pub fn required(path: &Path<'_>, detail: impl Into<String>) -> Self {
        Error::new(path, Reason::Required, None, detail)
    }

    /// `spec.x: Invalid value: -1: detail`
    pub fn invalid(path: &Path<'_>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Error::new(path, Reason::Invalid, Some(value.into()), detail)
    }

    /// `spec.x: Invalid value: "object": detail`, where the value is named by its type
    pub fn type_invalid(path: &Path<'_>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Error::new(path, Reason::TypeInvalid, Some(value.into()), detail)
    }

    /// `spec.x: Unsupported value: "a": supported values: "b", "c"`
    pub fn not_supported<S: AsRef<str>>(path: &Path<'_>, value: impl Into<Value>, supported: &[S]) -> Self {
        let quoted: Vec<String> = supported.iter().map(|s| quote(s.as_ref())).collect();
        let detail = if quoted.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", quoted.join(", "))
        };
        Error::new(path, Reason::NotSupported, Some(value.into()), detail)
    }

    /// `spec.x: Duplicate value: "a"`
    pub fn duplicate(path: &Path<'_>, value: impl Into<Value>) -> Self {
        Error::new(path, Reason::Duplicate, Some(value.into()), "")
    }

    /// `spec.x: Not found: "a"`
    pub fn not_found(path: &Path<'_>, value: impl Into<Value>) -> Self {
        Error::new(path, Reason::NotFound, Some(value.into()), "")
    }

    /// `spec.x: Forbidden: detail`
    pub fn forbidden(path: &Path<'_>, detail: impl Into<String>) -> Self {
        Error::new(path, Reason::Forbidden, None, detail)
    }

    /// `spec.x: Too long: may not be more than 63 bytes`
    pub fn too_long(path: &Path<'_>, max: usize) -> Self {
        let unit = if max == 1 { "byte" } else { "bytes" };
        Error::new(
            path,
            Reason::TooLong,
            None,
            format!("may not be more than {max} {unit}"),
        )
    }

    /// `spec.x: Too long: may not be more than 63 characters`
    pub fn too_long_characters(path: &Path<'_>, max: usize) -> Self {
        let unit = if max == 1 { "character" } else { "characters" };
        Error::new(
            path,
            Reason::TooLong,
            None,
            format!("may not be more than {max} {unit}"),
        )
    }

    /// `spec.x: Too short: must be at least 2 characters`
    pub fn too_short(path: &Path<'_>, min: usize) -> Self {
        let unit = if min == 1 { "character" } else { "characters" };
        Error::new(path, Reason::TooShort, None, format!("must be at least {min} {unit}"))
    }

    /// `spec.x: Too many: 17: must have at most 16 items`
    pub fn too_many(path: &Path<'_>, actual: usize, max: usize) -> Self {
        let unit = if max == 1 { "item" } else { "items" };
        Error::new(
            path,
            Reason::TooMany,
            Some(actual.into()),
            format!("must have at most {max} {unit}"),
        )
    }

    /// `spec.x: Internal error: detail`
    pub fn internal(path: &Path<'_>, detail: impl Into<String>) -> Self {
        Error::new(path, Reason::Internal, None, detail)
    }

    /// The message without the path, as status causes carry it.
    pub fn body(&self) -> String {
        let mut out = String::from(self.reason.text());
        if let Some(value) = self.value.as_ref().filter(|_| self.reason.shows_value()) {
            out.push_str(": ");
            match value {
                Value::String(s) => out.push_str(&quote(s)),
                other => out.push_str(&other.to_string()),
            }
        }
        if !self.detail.is_empty() {
            out.push_str(": ");
            out.push_str(&self.detail);
        }
        out
    }
}

/// A string in double quotes, escaped as Go's `%q` does.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                write!(out, "\\x{:02x}", c as u32).ok();
            }
            c if c.is_control() => {
                write!(out, "\\u{:04x}", c as u32).ok();
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths() {
        let spec = Path::root("spec");
        let containers = spec.child("template.spec.containers");
        let first = containers.index(0);
        assert_eq!(first.child("name").to_string(), "spec.template.spec.containers[0].name");
        assert_eq!(
            Path::root("metadata").child("labels").key("a/b").to_string(),
            "metadata.labels[a/b]"
        );
        assert_eq!(Path::OBJECT.child("spec").to_string(), "spec");
    }

    #[test]
    fn texts() {
        let path = Path::root("spec.replicas");
        let cases = [
            (
                Error::invalid(&path, -1, "must be greater than or equal to 0"),
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            ),
            (Error::required(&path, ""), "spec.replicas: Required value"),
            (
                Error::not_supported(&path, "x", &["a", "b"]),
                r#"spec.replicas: Unsupported value: "x": supported values: "a", "b""#,
            ),
            (
                Error::duplicate(&path, "x\"y"),
                r#"spec.replicas: Duplicate value: "x\"y""#,
            ),
            (Error::forbidden(&path, "no"), "spec.replicas: Forbidden: no"),
            (
                Error::too_long(&path, 63),
                "spec.replicas: Too long: may not be more than 63 bytes",
            ),
            (
                Error::too_many(&path, 3, 1),
                "spec.replicas: Too many: 3: must have at most 1 item",
            ),
            (
                Error::invalid(&path, json!({"a": [1]}), "no"),
                r#"spec.replicas: Invalid value: {"a":[1]}: no"#,
            ),
        ];
        for (error, text) in cases {
            assert_eq!(error.to_string(), text);
        }
    }
}
