//! What a pod's RuntimeClass costs and where its handler is: overhead, node selector and tolerations are the class's.

use std::sync::Arc;

use serde_json::{Map, Value};
use skiff_api::meta;
use skiff_api::status::{Qualified, Status};

use super::{Operation, Plugin, Review};
use crate::cache::Cache;
use crate::errors::Result;

/// See the module.
#[derive(Debug)]
pub(super) struct RuntimeClass {
    pub(super) classes: Arc<Cache>,
}

impl Plugin for RuntimeClass {
    fn mutate(&self, review: &Review<'_>, pod: &mut Value) -> Result<()> {
        if review.operation != Operation::Create || !review.is_about("", "pods") || !pod["spec"].is_object() {
            return Ok(());
        }
        let name = pod["spec"]["runtimeClassName"].as_str().unwrap_or_default();
        let class = match name {
            "" => Ok(Value::Null),
            name => {
                let class = self.classes.get("", name).map(|class| class.value());
                class.ok_or_else(|| format!("pod rejected: RuntimeClass {name:?} not found"))
            }
        };
        let applied = class.and_then(|class| apply(&class, pod));
        applied.map_err(|why| Status::forbidden(Qualified::new("", "pods"), meta::name(pod), &why))
    }
}

/// Writes into the pod what its class says; the error is text for its author.
fn apply(class: &Value, pod: &mut Value) -> std::result::Result<(), String> {
    let is_given = |value: &Value| value.as_object().is_some_and(|map| !map.is_empty());
    let (own, cost) = (&pod["spec"]["overhead"], &class["overhead"]["podFixed"]);
    match (is_given(own), is_given(cost)) {
        (true, false) => {
            return Err("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead".into());
        }
        (true, true) if own != cost => {
            return Err("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".into());
        }
        (false, true) => pod["spec"]["overhead"] = cost.clone(),
        _ => {}
    }
    let scheduling = &class["scheduling"];
    if let Some(wanted) = scheduling["nodeSelector"].as_object() {
        let mut selector = pod["spec"]["nodeSelector"]
            .as_object()
            .cloned()
            .unwrap_or_else(Map::new);
        for (key, value) in wanted {
            let other = selector
                .insert(key.clone(), value.clone())
                .filter(|other| other != value);
            if let Some(other) = other {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                return Err(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                    text(value),
                    text(&other)
                ));
            }
        }
        pod["spec"]["nodeSelector"] = selector.into();
    }
    if let Some(wanted) = scheduling["tolerations"].as_array() {
        let mut tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
        for toleration in wanted {
            if !tolerations.contains(toleration) {
                tolerations.push(toleration.clone());
            }
        }
        pod["spec"]["tolerations"] = tolerations.into();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_gets_what_its_class_says_or_why_not() {
        let class = json!({
            "overhead": {"podFixed": {"cpu": "10m"}},
            "scheduling": {"nodeSelector": {"k": "v"}, "tolerations": [{"key": "t", "operator": "Exists"}]},
        });
        let with = |spec: Value| json!({"spec": spec});
        let mut pod = with(json!({"nodeSelector": {"a": "b"}, "tolerations": [{"key": "u"}]}));
        apply(&class, &mut pod).unwrap();
        let wanted = json!({
            "overhead": {"cpu": "10m"}, "nodeSelector": {"a": "b", "k": "v"},
            "tolerations": [{"key": "u"}, {"key": "t", "operator": "Exists"}],
        });
        assert_eq!(pod["spec"], wanted);
        let again = pod.clone();
        apply(&class, &mut pod).unwrap();
        assert_eq!(pod, again, "twice is once");
        let refusals = [
            (&class, json!({"overhead": {"cpu": "1"}}), "doesn't match"),
            (&Value::Null, json!({"overhead": {"cpu": "1"}}), "without corresponding"),
            (
                &class,
                json!({"nodeSelector": {"k": "other"}}),
                "nodeSelector[k] = v; pod.spec.nodeSelector[k] = other",
            ),
        ];
        for (class, spec, why) in refusals {
            let error = apply(class, &mut with(spec.clone())).unwrap_err();
            assert!(error.contains(why), "{spec}: {error}");
        }
        let mut plain = with(json!({}));
        apply(&Value::Null, &mut plain).unwrap();
        assert_eq!(plain, with(json!({})), "no class changes nothing");
    }
}
