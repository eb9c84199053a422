//! Secrets: `stringData` is write-only; an update may leave the type out.

use serde_json::{Value, json};
use skiff_api::field;

use super::generic::{self, keep};
use super::{Context, Strategy};

/// See the module.
#[derive(Debug)]
pub(super) struct Secret;

impl Strategy for Secret {
    fn prepare_create(&self, object: &mut Value, _context: &Context<'_>) {
        take_string_data(object);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, _subresource: Option<&str>) {
        take_string_data(new);
        if generic::text_at(new, "type").is_empty() {
            keep(new, old, "type");
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<field::Error> {
        generic::validate_create(object)
    }

    fn validate_update(&self, new: &Value, old: &Value, subresource: Option<&str>) -> Vec<field::Error> {
        generic::validate_update(new, old, subresource)
    }

    fn fields(&self) -> &'static [&'static str] {
        &["type"]
    }
}

/// Moves `stringData` into `data`, where the same key gives way.
fn take_string_data(object: &mut Value) {
    let Some(strings) = object.as_object_mut().and_then(|object| object.remove("stringData")) else {
        return;
    };
    let Value::Object(strings) = strings else { return };
    if strings.is_empty() {
        return;
    }
    if !object["data"].is_object() {
        object["data"] = json!({});
    }
    for (key, value) in strings {
        let encoded = skiff_api::defaults::base64(value.as_str().unwrap_or_default().as_bytes());
        object["data"][key] = encoded.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_data_becomes_data() {
        let mut object = json!({"metadata": {"name": "s"}, "data": {"a": "eA==", "b": "eA=="}, "stringData": {"b": "hello", "c": ""}});
        Secret.prepare_create(&mut object, &Context::default());
        assert_eq!(object["data"], json!({"a": "eA==", "b": "aGVsbG8=", "c": ""}));
        assert!(object.get("stringData").is_none());
    }

    #[test]
    fn update_without_type_keeps_it() {
        let old = json!({"type": "kubernetes.io/tls"});
        let mut new = json!({"metadata": {}});
        Secret.prepare_update(&mut new, &old, None);
        assert_eq!(new["type"], "kubernetes.io/tls");
    }
}
