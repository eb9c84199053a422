//! Labels and label selectors inside objects.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Errors;
use super::read::{complain, entries, get, list, text};
use crate::field::{Error, Path};
use crate::names;

pub(super) fn labels(path: &Path<'_>, labels: &Value, errors: &mut Errors) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        complain(path, key, names::qualified_name(key), errors);
        let value = value.as_str().unwrap_or_default();
        complain(path, value, names::label_value(value), errors);
    }
}

/// A `LabelSelector`.
pub(super) fn selector(path: &Path<'_>, selector: &Value, errors: &mut Errors) {
    labels(&path.child("matchLabels"), get(selector, "matchLabels"), errors);
    let expressions = path.child("matchExpressions");
    for (i, expression) in list(selector, "matchExpressions").iter().enumerate() {
        requirement(&expressions.index(i), expression, errors);
    }
}

fn requirement(path: &Path<'_>, expression: &Value, errors: &mut Errors) {
    let values = list(expression, "values");
    match text(expression, "operator") {
        "In" | "NotIn" if values.is_empty() => {
            let detail = "must be specified when `operator` is 'In' or 'NotIn'";
            errors.push(Error::required(&path.child("values"), detail));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(Error::forbidden(&path.child("values"), detail));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        operator => errors.push(Error::invalid(
            &path.child("operator"),
            operator,
            "not a valid selector operator",
        )),
    }
    let key = text(expression, "key");
    complain(&path.child("key"), key, names::qualified_name(key), errors);
    let values_path = path.child("values");
    for (i, value) in values.iter().enumerate() {
        let value = value.as_str().unwrap_or_default();
        complain(&values_path.index(i), value, names::label_value(value), errors);
    }
}

/// Whether the selector has no requirement at all.
pub(super) fn is_everything(selector: &Value) -> bool {
    entries(selector, "matchLabels").next().is_none() && list(selector, "matchExpressions").is_empty()
}

/// Whether a `LabelSelector` picks these labels.
pub(super) fn matches(selector: &Value, labels: &Value) -> bool {
    let labels: BTreeMap<&str, &str> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()))
        .collect();
    entries(selector, "matchLabels").all(|(key, value)| labels.get(key).copied() == value.as_str())
        && list(selector, "matchExpressions").iter().all(|expression| {
            let found = labels.get(text(expression, "key")).copied();
            let listed = found.is_some_and(|found| list(expression, "values").iter().any(|value| value == found));
            match text(expression, "operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn matching() {
        let labels = json!({"app": "web", "tier": "front"});
        for (selector, matched) in [
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "db"}}), false),
            (json!({}), true),
            (
                json!({"matchExpressions": [{"key": "tier", "operator": "In", "values": ["front", "back"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["front"]}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "x", "operator": "NotIn", "values": ["front"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}, {"key": "app", "operator": "Exists"}]}),
                true,
            ),
        ] {
            assert_eq!(matches(&selector, &labels), matched, "{selector}");
        }
    }

    #[test]
    fn requirements() {
        let mut errors = Errors::new();
        let bad = json!({"matchExpressions": [{"key": "a", "operator": "In"}, {"key": "a", "operator": "Exists", "values": ["b"]},
            {"key": "a", "operator": "Like"}]});
        selector(&Path::root("spec").child("selector"), &bad, &mut errors);
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
                "spec.selector.matchExpressions[1].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                "spec.selector.matchExpressions[2].operator: Invalid value: \"Like\": not a valid selector operator",
            ]
        );
    }
}
