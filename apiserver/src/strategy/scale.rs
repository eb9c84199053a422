//! The `scale` subresource: a view of a workload as `autoscaling/v1 Scale`.

use serde_json::{Map, Value, json};

use super::generic::{at, text_at};

/// Where a kind keeps what `Scale` shows.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    replicas: &'static str,
    status_replicas: &'static str,
    selector: &'static str,
    /// The selector is a plain map of labels rather than a `LabelSelector`.
    plain_labels: bool,
}

pub(super) static SELECTOR: Scale = Scale {
    replicas: "spec.replicas",
    status_replicas: "status.replicas",
    selector: "spec.selector",
    plain_labels: false,
};
pub(super) static LABELS: Scale = Scale {
    plain_labels: true,
    ..SELECTOR
};

impl Scale {
    /// The object's `Scale`.
    pub fn read(&self, object: &Value) -> Value {
        let mut metadata = Map::new();
        for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
            if let Some(value) = object.pointer(&format!("/metadata/{key}")) {
                metadata.insert(key.to_owned(), value.clone());
            }
        }
        let number = |path| at(object, path).and_then(Value::as_i64).unwrap_or(0);
        let selector = match at(object, self.selector) {
            Some(labels) if self.plain_labels => terms(Some(labels), None),
            Some(selector) => selector_text(selector),
            None => String::new(),
        };
        json!({
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": metadata,
            "spec": {"replicas": number(self.replicas)},
            "status": {"replicas": number(self.status_replicas), "selector": selector},
        })
    }

    /// Takes the wanted number of replicas from a `Scale` into the object. The resource version, when the `Scale` names one, goes along
    /// as a precondition.
    pub fn write(&self, object: &mut Value, scale: &Value) {
        let replicas = at(scale, "spec.replicas").and_then(Value::as_i64).unwrap_or(0);
        let (parent, key) = self.replicas.rsplit_once('.').unwrap_or(("", self.replicas));
        if let Some(parent) = object.get_mut(parent).and_then(Value::as_object_mut) {
            parent.insert(key.to_owned(), replicas.into());
        }
        let version = text_at(scale, "metadata.resourceVersion");
        if let (false, Some(metadata)) = (
            version.is_empty(),
            object.get_mut("metadata").and_then(Value::as_object_mut),
        ) {
            metadata.insert("resourceVersion".to_owned(), version.into());
        }
    }
}

/// A `LabelSelector` in kubectl's notation; empty when it selects everything or nothing is given.
pub(crate) fn selector_text(selector: &Value) -> String {
    terms(selector.get("matchLabels"), selector.get("matchExpressions"))
}

fn terms(labels: Option<&Value>, expressions: Option<&Value>) -> String {
    let mut terms: Vec<(String, String)> = labels
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), format!("{key}={}", value.as_str().unwrap_or_default())))
        .collect();
    terms.extend(
        expressions
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(expression_text),
    );
    terms.sort();
    let terms: Vec<String> = terms.into_iter().map(|(_, term)| term).collect();
    terms.join(",")
}

fn expression_text(expression: &Value) -> (String, String) {
    let key = text_at(expression, "key");
    let mut values: Vec<&str> = expression
        .get("values")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    values.sort_unstable();
    let values = values.join(",");
    let term = match text_at(expression, "operator").as_str() {
        "In" => format!("{key} in ({values})"),
        "NotIn" => format!("{key} notin ({values})"),
        "DoesNotExist" => format!("!{key}"),
        _ => key.clone(),
    };
    (key, term)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes() {
        let mut object = json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u", "resourceVersion": "7", "labels": {"x": "y"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"b": "2", "a": "1"},
                "matchExpressions": [{"key": "c", "operator": "In", "values": ["z", "y"]}, {"key": "aa", "operator": "DoesNotExist"}]}},
            "status": {"replicas": 2},
        });
        let scale = SELECTOR.read(&object);
        assert_eq!(scale["spec"]["replicas"], 3);
        assert_eq!(
            scale["status"],
            json!({"replicas": 2, "selector": "a=1,!aa,b=2,c in (y,z)"})
        );
        assert_eq!(
            scale["metadata"],
            json!({"name": "web", "namespace": "default", "uid": "u", "resourceVersion": "7"})
        );

        SELECTOR.write(
            &mut object,
            &json!({"metadata": {"resourceVersion": "8"}, "spec": {"replicas": 5}}),
        );
        assert_eq!(object["spec"]["replicas"], 5);
        assert_eq!(object["metadata"]["resourceVersion"], "8");
    }

    #[test]
    fn plain_label_selectors() {
        let object = json!({"metadata": {"name": "rc"}, "spec": {"replicas": 1, "selector": {"app": "x"}}});
        assert_eq!(LABELS.read(&object)["status"]["selector"], "app=x");
    }
}
