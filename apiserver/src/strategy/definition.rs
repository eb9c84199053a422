//! Custom resource definitions: the status remembers every version that objects may be stored in.

use serde_json::{Value, json};
use skiff_api::field;

use super::generic::{self, DEFINITION, at};
use super::{Context, Strategy};

/// See the module.
#[derive(Debug)]
pub(super) struct Definition;

impl Strategy for Definition {
    fn prepare_create(&self, object: &mut Value, context: &Context<'_>) {
        DEFINITION.prepare_create(object, context);
        remember_stored_version(object);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, subresource: Option<&str>) {
        DEFINITION.prepare_update(new, old, subresource);
        if subresource.is_none() {
            remember_stored_version(new);
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<field::Error> {
        generic::validate_create(object)
    }

    fn validate_update(&self, new: &Value, old: &Value, subresource: Option<&str>) -> Vec<field::Error> {
        generic::validate_update(new, old, subresource)
    }

    fn allow_unconditional_update(&self) -> bool {
        DEFINITION.allow_unconditional_update()
    }
}

fn remember_stored_version(definition: &mut Value) {
    let versions = at(definition, "spec.versions")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let stored = versions
        .iter()
        .find(|version| version["storage"] == true)
        .map(|version| version["name"].clone());
    let Some(name) = stored else { return };
    if !definition["status"].is_object() {
        definition["status"] = json!({});
    }
    match definition["status"]["storedVersions"].as_array_mut() {
        Some(names) if names.contains(&name) => {}
        Some(names) => names.push(name),
        None => definition["status"]["storedVersions"] = json!([name]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_versions_add_up() {
        let crd = |stored: &str| {
            json!({"metadata": {"name": "a"}, "spec": {"versions": [
                {"name": "v1", "storage": stored == "v1"}, {"name": "v2", "storage": stored == "v2"}]}})
        };
        let mut old = crd("v1");
        Definition.prepare_create(&mut old, &Context::default());
        assert_eq!(old["status"], json!({"storedVersions": ["v1"]}));
        let mut new = crd("v2");
        Definition.prepare_update(&mut new, &old, None);
        assert_eq!(new["status"], json!({"storedVersions": ["v1", "v2"]}));
    }
}
