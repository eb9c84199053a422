//! Upstream's defaulting: fills in what a manifest leaves out, once, before an object is validated and stored.
//!
//! Works on JSON values of any shape: what is malformed is left as it is, for decoding and validation to report. Three kinds of "left
//! out" exist upstream and so here: a pointer that is nil ([`absent`]), a string that is empty ([`text`]), a number that is zero ([`number`]).

mod admission;
mod apps;
mod autoscaling;
mod batch;
mod container;
mod core;
mod networking;
mod pod;
mod rbac;
mod service;
mod storage;
mod volume;

use serde_json::{Map, Value};

type Fields = Map<String, Value>;

/// Fills in the defaults of a kind.
pub fn apply(group: &str, version: &str, kind: &str, object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    match group {
        "" => core::apply(kind, object),
        "apps" => apps::apply(kind, object),
        "batch" => batch::apply(kind, object),
        "autoscaling" => autoscaling::apply(version, kind, object),
        "networking.k8s.io" | "discovery.k8s.io" => networking::apply(kind, object),
        "rbac.authorization.k8s.io" => rbac::apply(kind, object),
        "storage.k8s.io" | "scheduling.k8s.io" => storage::apply(kind, object),
        "admissionregistration.k8s.io" | "apiextensions.k8s.io" => admission::apply(kind, object),
        "authentication.k8s.io" if kind == "TokenRequest" => core::token_request(object),
        _ => {}
    }
}

/// Standard base64, as `data` of secrets is written.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .enumerate()
            .fold(0_u32, |word, (i, byte)| word | u32::from(*byte) << (16 - 8 * i));
        for i in 0..4 {
            let sextet = (word >> (18 - 6 * i)) & 63;
            text.push(if i <= chunk.len() {
                char::from(ALPHABET[sextet as usize])
            } else {
                '='
            });
        }
    }
    text
}

/// The bytes behind standard base64; `None` for anything else.
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut word, mut bits) = (0_u32, 0);
    for digit in digits.bytes() {
        let sextet = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        word = word << 6 | u32::from(sextet);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(word >> bits & 0xff).ok()?);
        }
    }
    Some(bytes)
}

/// Sets what is missing or null.
fn absent(fields: &mut Fields, key: &str, value: impl Into<Value>) {
    if fields.get(key).is_none_or(Value::is_null) {
        fields.insert(key.to_owned(), value.into());
    }
}

/// Sets what is missing, null or an empty string.
fn text(fields: &mut Fields, key: &str, value: &str) {
    if fields.get(key).is_none_or(|old| old.is_null() || old == "") {
        fields.insert(key.to_owned(), value.into());
    }
}

/// Sets what is missing, null or zero.
fn number(fields: &mut Fields, key: &str, value: i64) {
    if fields.get(key).is_none_or(|old| old.is_null() || old == 0) {
        fields.insert(key.to_owned(), value.into());
    }
}

/// The object under `key`, if there is one.
fn child<'a>(fields: &'a mut Fields, key: &str) -> Option<&'a mut Fields> {
    fields.get_mut(key).and_then(Value::as_object_mut)
}

/// The object under `key`, made when it is missing; `None` when something else is there.
fn make<'a>(fields: &'a mut Fields, key: &str) -> Option<&'a mut Fields> {
    absent(fields, key, Fields::new());
    child(fields, key)
}

/// The object at the end of a chain of keys.
fn descend<'a>(fields: &'a mut Fields, keys: &[&str]) -> Option<&'a mut Fields> {
    keys.iter().try_fold(fields, |fields, key| child(fields, key))
}

/// All objects of the list under `key`.
fn items<'a>(fields: &'a mut Fields, key: &str) -> impl Iterator<Item = &'a mut Fields> {
    fields
        .get_mut(key)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
}

fn has(fields: &Fields, key: &str) -> bool {
    fields.get(key).is_some_and(|value| !value.is_null())
}

fn is_text(fields: &Fields, key: &str, value: &str) -> bool {
    fields.get(key).and_then(Value::as_str) == Some(value)
}

fn is_empty(fields: &Fields, key: &str) -> bool {
    match fields.get(key) {
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Null) | None => true,
        Some(_) => false,
    }
}

#[cfg(test)]
fn applied(group: &str, kind: &str, mut object: Value) -> Value {
    apply(group, "v1", kind, &mut object);
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads() {
        assert_eq!(from_base64("a b"), None);
        for (bytes, text) in [
            ("", ""),
            ("a", "YQ=="),
            ("ab", "YWI="),
            ("abc", "YWJj"),
            ("hello", "aGVsbG8="),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
            assert_eq!(from_base64(text).as_deref(), Some(bytes.as_bytes()));
        }
    }

    #[test]
    fn malformed_objects_are_left_alone() {
        for object in [
            Value::Null,
            serde_json::json!([]),
            serde_json::json!({"spec": 3, "metadata": "x"}),
        ] {
            assert_eq!(applied("apps", "Deployment", object.clone()), object);
        }
    }
}
