//! An Ingress that says nothing of a class gets the default one, if there is one.

use std::cmp::Reverse;
use std::sync::Arc;

use serde_json::Value;
use skiff_api::meta;

use super::{Operation, Plugin, Review};
use crate::cache::Cache;
use crate::errors::Result;

/// What named a class before `spec.ingressClassName` was there.
const LEGACY_CLASS: &str = "kubernetes.io/ingress.class";
const IS_DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";

/// See the module.
#[derive(Debug)]
pub(super) struct DefaultIngressClass {
    pub(super) classes: Arc<Cache>,
}

impl Plugin for DefaultIngressClass {
    fn mutate(&self, review: &Review<'_>, ingress: &mut Value) -> Result<()> {
        let created = review.operation == Operation::Create && review.is_about("networking.k8s.io", "ingresses");
        // The empty name is a choice, too: none.
        let chosen =
            !ingress["spec"]["ingressClassName"].is_null() || meta::annotation(ingress, LEGACY_CLASS).is_some();
        if !created || chosen || !ingress["spec"].is_object() {
            return Ok(());
        }
        let classes: Vec<Value> = self.classes.all("").iter().map(|class| class.value()).collect();
        if let Some(class) = default_class(&classes) {
            ingress["spec"]["ingressClassName"] = meta::name(class).into();
        }
        Ok(())
    }
}

/// Of several the newest, among equals the first by name.
fn default_class(classes: &[Value]) -> Option<&Value> {
    let default = |class: &&Value| meta::annotation(class, IS_DEFAULT_CLASS) == Some("true");
    // Stored times are all of one form: their order is that of their texts.
    let age = |class: &&Value| {
        let made = class["metadata"]["creationTimestamp"].as_str().map(str::to_owned);
        (Reverse(made), meta::name(class).to_owned())
    };
    classes.iter().filter(default).min_by_key(age)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newest_default_is_taken() {
        let class = |name: &str, made: &str, default: &str| json!({"metadata": {"name": name, "creationTimestamp": made, "annotations": {IS_DEFAULT_CLASS: default}}});
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
        let plain = json!({"metadata": {"name": "plain", "creationTimestamp": late}});
        for (classes, wanted) in [
            (vec![], None),
            (vec![plain.clone(), class("a", late, "false")], None),
            (vec![class("a", early, "true"), plain], Some("a")),
            (vec![class("a", early, "true"), class("b", late, "true")], Some("b")),
            (vec![class("b", late, "true"), class("a", late, "true")], Some("a")),
        ] {
            assert_eq!(default_class(&classes).map(meta::name), wanted, "{classes:?}");
        }
    }
}
