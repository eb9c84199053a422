//! Events, of both groups: the same stored object under two shapes of field names.

use serde_json::Value;
use skiff_api::field;

use super::{Context, Strategy, generic};

/// Events may be created by PUT, and answer many field selectors.
#[derive(Debug)]
pub(super) struct Event;

const FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingComponent",
    "reportingController",
    "source",
    "type",
];

impl Strategy for Event {
    fn prepare_create(&self, _object: &mut Value, _context: &Context<'_>) {}

    fn prepare_update(&self, _new: &mut Value, _old: &Value, _subresource: Option<&str>) {}

    fn validate_create(&self, object: &Value) -> Vec<field::Error> {
        generic::validate_create(object)
    }

    fn validate_update(&self, new: &Value, old: &Value, subresource: Option<&str>) -> Vec<field::Error> {
        generic::validate_update(new, old, subresource)
    }

    fn fields(&self) -> &'static [&'static str] {
        FIELDS
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        let first = |paths: &[&str]| {
            let found = paths
                .iter()
                .map(|path| generic::text_at(object, path))
                .find(|text| !text.is_empty());
            Some(found.unwrap_or_default())
        };
        match path {
            "source" => first(&[
                "source.component",
                "deprecatedSource.component",
                "reportingComponent",
                "reportingController",
            ]),
            "reportingComponent" | "reportingController" => first(&["reportingComponent", "reportingController"]),
            _ => match path.split_once('.') {
                Some(("involvedObject" | "regarding", rest)) if FIELDS.contains(&path) => {
                    first(&[&format!("involvedObject.{rest}"), &format!("regarding.{rest}")])
                }
                _ => generic::field(FIELDS, object, path),
            },
        }
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selects_by_either_name_of_a_field() {
        let core = json!({"involvedObject": {"kind": "Pod", "name": "p"}, "source": {"component": "kubelet"}, "type": "Normal"});
        let new =
            json!({"regarding": {"kind": "Pod", "name": "p"}, "reportingController": "kubelet", "type": "Normal"});
        for event in [core, new] {
            for (path, value) in [
                ("involvedObject.kind", "Pod"),
                ("regarding.name", "p"),
                ("involvedObject.uid", ""),
                ("source", "kubelet"),
                ("type", "Normal"),
            ] {
                assert_eq!(Event.field(&event, path).as_deref(), Some(value), "{path} of {event}");
            }
            assert_eq!(Event.field(&event, "message"), None);
        }
    }
}
