//! Autoscalers of `autoscaling/v1`: stored as v2, served with the one metric that v1 knows. The rest travels in annotations, so that a
//! client of the old version does not lose what a client of the new one wrote.

use serde_json::{Map, Value, json};

use super::generic::at;
use crate::resources::Conversion;

/// Of `autoscaling/v1`.
pub(crate) const V1: Conversion = Conversion { store, serve };

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const TARGET_FIELD: &str = "targetCPUUtilizationPercentage";
const CURRENT_FIELD: &str = "currentCPUUtilizationPercentage";

fn store(object: &mut Value) {
    object["apiVersion"] = "autoscaling/v2".into();
    let (mut metrics, mut current) = (take_list(object, METRICS), take_list(object, CURRENT));
    if let Some(target) = take(object, "spec", TARGET_FIELD) {
        let target = json!({"type": "Utilization", "averageUtilization": target});
        metrics.insert(
            0,
            json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}),
        );
    }
    if let Some(percent) = take(object, "status", CURRENT_FIELD) {
        let reached = json!({"averageUtilization": percent, "averageValue": "0"});
        current.insert(
            0,
            json!({"type": "Resource", "resource": {"name": "cpu", "current": reached}}),
        );
    }
    put(object, "spec", "metrics", metrics.into());
    put(object, "status", "currentMetrics", current.into());
    for (annotation, parent, key) in [(BEHAVIOR, "spec", "behavior"), (CONDITIONS, "status", "conditions")] {
        if let Some(value) = take_annotation(object, annotation) {
            put(object, parent, key, value);
        }
    }
}

fn serve(object: &mut Value) {
    object["apiVersion"] = "autoscaling/v1".into();
    let metrics = take(object, "spec", "metrics");
    if let Some(percent) = split(object, metrics, METRICS, "resource.target.averageUtilization") {
        put(object, "spec", TARGET_FIELD, percent);
    }
    let current = take(object, "status", "currentMetrics");
    if let Some(percent) = split(object, current, CURRENT, "resource.current.averageUtilization") {
        put(object, "status", CURRENT_FIELD, percent);
    }
    for (annotation, parent, key) in [(BEHAVIOR, "spec", "behavior"), (CONDITIONS, "status", "conditions")] {
        if let Some(value) = take(object, parent, key) {
            annotate(object, annotation, &value);
        }
    }
}

/// The cpu percentage among metrics; the other metrics go into an annotation.
fn split(object: &mut Value, metrics: Option<Value>, annotation: &str, path: &str) -> Option<Value> {
    let Some(Value::Array(mut metrics)) = metrics else {
        return None;
    };
    let cpu = metrics.iter().position(|metric| {
        at(metric, "resource.name").and_then(Value::as_str) == Some("cpu") && at(metric, path).is_some()
    });
    let percent = cpu.and_then(|index| at(&metrics.remove(index), path).cloned());
    if !metrics.is_empty() {
        annotate(object, annotation, &Value::Array(metrics));
    }
    percent
}

fn take(object: &mut Value, parent: &str, key: &str) -> Option<Value> {
    object
        .get_mut(parent)?
        .as_object_mut()?
        .remove(key)
        .filter(|value| !value.is_null())
}

fn put(object: &mut Value, parent: &str, key: &str, value: Value) {
    let empty = value.as_array().is_some_and(Vec::is_empty);
    if let Some(parent) = object.get_mut(parent).and_then(Value::as_object_mut).filter(|_| !empty) {
        parent.insert(key.to_owned(), value);
    }
}

fn annotate(object: &mut Value, key: &str, value: &Value) {
    let annotations = &mut object["metadata"]["annotations"];
    if !annotations.is_object() {
        *annotations = Value::Object(Map::new());
    }
    annotations[key] = value.to_string().into();
}

fn take_annotation(object: &mut Value, key: &str) -> Option<Value> {
    let metadata = object.get_mut("metadata")?.as_object_mut()?;
    let annotations = metadata.get_mut("annotations")?.as_object_mut()?;
    let text = annotations.remove(key)?;
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
    serde_json::from_str(text.as_str()?).ok()
}

fn take_list(object: &mut Value, key: &str) -> Vec<Value> {
    match take_annotation(object, key) {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_on_the_way() {
        let v2 = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "behavior": {"scaleUp": {"selectPolicy": "Min"}}, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}},
                {"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "10"}}}]},
            "status": {"desiredReplicas": 1},
        });
        let mut v1 = v2.clone();
        serve(&mut v1);
        assert_eq!(v1["apiVersion"], "autoscaling/v1");
        assert_eq!(
            v1["spec"],
            json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 70})
        );
        store(&mut v1);
        assert_eq!(v1, v2);
    }

    #[test]
    fn plain_v1() {
        let mut object =
            json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}});
        store(&mut object);
        assert_eq!(
            object["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
            50
        );
        assert!(object["spec"].get("targetCPUUtilizationPercentage").is_none());
    }
}
