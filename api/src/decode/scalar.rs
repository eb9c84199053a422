//! Scalars: is the value of the right kind, and how is it written canonically?

use std::borrow::Cow;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Number, Value};

use crate::field::quote;
use crate::meta;
use crate::quantity::Quantity;
use crate::schema::{Scalar, Shape};

/// What stood in the document.
pub(super) enum Found<'a> {
    Bool(bool),
    Number(Number),
    Text(Cow<'a, str>),
}

impl Found<'_> {
    /// As Go names the JSON type in its messages.
    pub(super) const fn go_kind(&self) -> &'static str {
        match self {
            Found::Bool(_) => "bool",
            Found::Number(_) => "number",
            Found::Text(_) => "string",
        }
    }

    pub(super) fn into_value(self) -> Value {
        match self {
            Found::Bool(b) => Value::Bool(b),
            Found::Number(n) => Value::Number(n),
            Found::Text(t) => Value::String(t.into_owned()),
        }
    }
}

/// Why a value is refused.
pub(super) enum Wrong {
    /// The JSON type is wrong; Go's name for what was found.
    Kind(String),
    /// The type has a message of its own.
    Text(String),
}

/// Whether any JSON may stand here.
pub(super) const fn is_open(scalar: Scalar) -> bool {
    matches!(scalar, Scalar::RawExtension | Scalar::FieldsV1 | Scalar::Json)
}

/// What Go makes of a null inside a list or map.
pub(super) fn zero(shape: &Shape) -> Value {
    match shape {
        Shape::Struct(_) => Value::Object(Map::new()),
        Shape::List(_) | Shape::Map(_) => Value::Null,
        Shape::Scalar(_) | Shape::Named(_) => match shape.as_scalar() {
            Some(Scalar::Bool) => Value::Bool(false),
            Some(Scalar::Int32 | Scalar::Int64 | Scalar::Uint32 | Scalar::Float64 | Scalar::IntOrString) => 0.into(),
            Some(Scalar::String) => "".into(),
            Some(Scalar::Quantity) => "0".into(),
            _ => Value::Null,
        },
    }
}

/// Checks a value and writes it canonically.
pub(super) fn read(scalar: Scalar, found: Found<'_>) -> Result<Value, Wrong> {
    match (scalar, found) {
        (Scalar::String, Found::Text(text)) => Ok(Value::String(text.into_owned())),
        (Scalar::Bool, Found::Bool(b)) => Ok(Value::Bool(b)),
        (Scalar::Int32, Found::Number(n)) => integer(n, i32::MIN.into(), i32::MAX.into()),
        (Scalar::Int64, Found::Number(n)) => integer(n, i64::MIN, i64::MAX),
        (Scalar::Uint32, Found::Number(n)) => integer(n, 0, u32::MAX.into()),
        (Scalar::Float64, Found::Number(n)) => Ok(Value::Number(n)),
        (Scalar::Quantity, Found::Text(text)) => quantity(text.trim()),
        (Scalar::Quantity, Found::Number(n)) => quantity(&n.to_string()),
        (Scalar::Quantity, Found::Bool(b)) => quantity(&b.to_string()),
        (Scalar::IntOrString, Found::Text(text)) => Ok(Value::String(text.into_owned())),
        (Scalar::IntOrString, found) => int_or_string(found),
        (Scalar::Time, Found::Text(text)) => time(&text, meta::time),
        (Scalar::MicroTime, Found::Text(text)) => time(&text, meta::micro_time),
        (Scalar::Duration, Found::Text(text)) => duration(text),
        (Scalar::Time | Scalar::MicroTime | Scalar::Duration, found) => Err(Wrong::Text(format!(
            "json: cannot unmarshal {} into Go value of type string",
            found.go_kind()
        ))),
        (Scalar::Bytes, Found::Text(text)) => bytes(text),
        (Scalar::RawExtension | Scalar::FieldsV1 | Scalar::Json, found) => Ok(found.into_value()),
        (_, found) => Err(Wrong::Kind(found.go_kind().to_owned())),
    }
}

fn integer(number: Number, min: i64, max: i64) -> Result<Value, Wrong> {
    match number.as_i64() {
        Some(n) if (min..=max).contains(&n) => Ok(Value::Number(number)),
        _ => Err(Wrong::Kind(format!("number {number}"))),
    }
}

fn int_or_string(found: Found<'_>) -> Result<Value, Wrong> {
    let kind = match found {
        Found::Number(n) => match integer(n, i32::MIN.into(), i32::MAX.into()) {
            Err(Wrong::Kind(kind)) => kind,
            done => return done,
        },
        other => other.go_kind().to_owned(),
    };
    Err(Wrong::Text(format!(
        "json: cannot unmarshal {kind} into Go value of type int32"
    )))
}

fn quantity(text: &str) -> Result<Value, Wrong> {
    match text.parse::<Quantity>() {
        Ok(quantity) => Ok(Value::String(quantity.to_string())),
        Err(error) => Err(Wrong::Text(error.to_string())),
    }
}

fn time(text: &str, write: fn(jiff::Timestamp) -> String) -> Result<Value, Wrong> {
    match is_rfc3339(text).then(|| meta::parse_time(text)).flatten() {
        Some(at) => Ok(Value::String(write(at))),
        None => {
            let quoted = quote(text);
            let layout = quote("2006-01-02T15:04:05Z07:00");
            Err(Wrong::Text(format!(
                "parsing time {quoted} as {layout}: cannot parse {quoted} as \"2006\""
            )))
        }
    }
}

/// `2006-01-02T15:04:05[.000]Z` or with `+07:00`; the parser itself takes more.
fn is_rfc3339(text: &str) -> bool {
    let bytes = text.as_bytes();
    let fits = |bytes: &[u8], pattern: &[u8]| {
        bytes.len() == pattern.len()
            && bytes
                .iter()
                .zip(pattern)
                .all(|(b, p)| if *p == b'0' { b.is_ascii_digit() } else { b == p })
    };
    let Some((head, mut rest)) = bytes.split_at_checked(19) else {
        return false;
    };
    if let [b'.', fraction @ ..] = rest {
        let digits = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
        if digits == 0 {
            return false;
        }
        rest = &fraction[digits..];
    }
    fits(head, b"0000-00-00T00:00:00") && (rest == b"Z" || fits(rest, b"+00:00") || fits(rest, b"-00:00"))
}

fn duration(text: Cow<'_, str>) -> Result<Value, Wrong> {
    if is_duration(&text) {
        return Ok(Value::String(text.into_owned()));
    }
    Err(Wrong::Text(format!("time: invalid duration {}", quote(&text))))
}

/// Go's durations: a sign, then numbers with units.
fn is_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    let mut parts = 0;
    while !rest.is_empty() {
        let number = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let taken = &rest[..rest.len() - number.len()];
        if !taken.contains(|c: char| c.is_ascii_digit()) || taken.matches('.').count() > 1 {
            return false;
        }
        let units = ["ns", "us", "µs", "μs", "ms", "s", "m", "h"];
        let Some(after) = units.iter().find_map(|u| number.strip_prefix(u)) else {
            return false;
        };
        rest = after;
        parts += 1;
    }
    parts > 0
}

fn bytes(text: Cow<'_, str>) -> Result<Value, Wrong> {
    // Line breaks are fine to Go; they do not come back.
    let text = if text.contains(['\n', '\r']) {
        Cow::Owned(text.replace(['\n', '\r'], ""))
    } else {
        text
    };
    match BASE64_STANDARD.decode(text.as_bytes()) {
        Ok(_) => Ok(Value::String(text.into_owned())),
        Err(error) => {
            let at = match error {
                base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                _ => text.len() / 4 * 4,
            };
            Err(Wrong::Text(format!("illegal base64 data at input byte {at}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_times() {
        for good in ["0", "1s", "-1.5h", "1h30m", ".5ms", "3µs"] {
            assert!(is_duration(good), "{good}");
        }
        for bad in ["", "1", "s", "1 s", "1x", "1..5s", "."] {
            assert!(!is_duration(bad), "{bad}");
        }
        for good in [
            "2026-01-02T03:04:05Z",
            "2026-01-02T03:04:05.123Z",
            "2026-01-02T03:04:05+01:00",
        ] {
            assert!(is_rfc3339(good), "{good}");
        }
        for bad in [
            "",
            "2026-01-02",
            "2026-01-02 03:04:05Z",
            "2026-01-02T03:04:05",
            "2026-01-02T03:04:05.Z",
        ] {
            assert!(!is_rfc3339(bad), "{bad}");
        }
    }
}
