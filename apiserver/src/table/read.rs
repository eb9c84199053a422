//! Reading objects for cells.

use serde_json::Value;

pub(super) const NONE: &str = "<none>";
pub(super) const UNSET: &str = "<unset>";

/// The value at a dotted path.
pub(super) fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    static NULL: Value = Value::Null;
    path.split('.')
        .try_fold(value, |value, key| value.get(key))
        .unwrap_or(&NULL)
}

pub(super) fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).as_str().unwrap_or_default()
}

pub(super) fn int(value: &Value, path: &str) -> i64 {
    at(value, path).as_i64().unwrap_or(0)
}

pub(super) fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    at(value, path).as_array().map_or(&[], Vec::as_slice)
}

/// A text, or what stands for an empty one.
pub(super) fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

/// Texts with commas between, or what stands for none.
pub(super) fn joined<'a>(parts: impl Iterator<Item = &'a str>, otherwise: &str) -> String {
    let parts: Vec<&str> = parts.collect();
    if parts.is_empty() {
        otherwise.to_owned()
    } else {
        parts.join(",")
    }
}

/// A text or number as it is written.
pub(super) fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// `a=b,c=d`, or `<none>`.
pub(super) fn labels(map: &Value) -> String {
    let mut pairs: Vec<String> = map
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    pairs.sort();
    if pairs.is_empty() {
        NONE.to_owned()
    } else {
        pairs.join(",")
    }
}

/// A `LabelSelector` in kubectl's notation, or `<none>`.
pub(super) fn selector(selector: &Value) -> String {
    let text = crate::strategy::selector_text(selector);
    if text.is_empty() { NONE.to_owned() } else { text }
}

/// Names and images of a template's containers.
pub(super) fn containers(template: &Value) -> [Value; 2] {
    let column = |key: &str| {
        list(template, "spec.containers")
            .iter()
            .map(|container| text(container, key))
            .collect::<Vec<_>>()
            .join(",")
            .into()
    };
    [column("name"), column("image")]
}

/// The first three of many, and how many more there are.
pub(super) fn first_three(all: &[String]) -> String {
    match all {
        [a, b, c, rest @ ..] if !rest.is_empty() => format!("{a},{b},{c} + {} more...", rest.len()),
        _ => all.join(","),
    }
}
