//! Horizontal pod autoscalers.

use serde_json::json;

use super::{Fields, absent, child, descend, has, is_empty};

/// Other metrics than cpu, as `autoscaling/v1` carries them.
const V1_METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";

pub(super) fn apply(version: &str, kind: &str, object: &mut Fields) {
    if kind != "HorizontalPodAutoscaler" {
        return;
    }
    let annotated = object
        .get("metadata")
        .and_then(|metadata| metadata.get("annotations"))
        .is_some_and(|annotations| annotations.get(V1_METRICS).is_some());
    let Some(spec) = child(object, "spec") else { return };
    absent(spec, "minReplicas", 1);
    if version == "v1" {
        if !annotated {
            absent(spec, "targetCPUUtilizationPercentage", 80);
        }
        return;
    }
    if is_empty(spec, "metrics") {
        spec.insert(
            "metrics".to_owned(),
            json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]),
        );
    }
    if !has(spec, "behavior") {
        return;
    }
    if let Some(behavior) = child(spec, "behavior") {
        absent(behavior, "scaleUp", Fields::new());
        absent(behavior, "scaleDown", Fields::new());
    }
    if let Some(up) = descend(spec, &["behavior", "scaleUp"]) {
        absent(up, "stabilizationWindowSeconds", 0);
        absent(up, "selectPolicy", "Max");
        absent(
            up,
            "policies",
            json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]),
        );
    }
    if let Some(down) = descend(spec, &["behavior", "scaleDown"]) {
        absent(down, "selectPolicy", "Max");
        absent(
            down,
            "policies",
            json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(version: &str, mut object: serde_json::Value) -> serde_json::Value {
        crate::defaults::apply("autoscaling", version, "HorizontalPodAutoscaler", &mut object);
        object
    }

    #[test]
    fn cpu_at_eighty_percent() {
        let spec = &applied("v2", json!({"spec": {}}))["spec"];
        assert_eq!(spec["minReplicas"], 1);
        assert_eq!(spec["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert!(spec.get("behavior").is_none());
    }

    #[test]
    fn the_old_version_has_one_metric() {
        let spec = &applied("v1", json!({"spec": {}}))["spec"];
        assert_eq!(*spec, json!({"minReplicas": 1, "targetCPUUtilizationPercentage": 80}));
    }

    #[test]
    fn behavior_is_completed() {
        let spec = &applied(
            "v2",
            json!({"spec": {"behavior": {"scaleUp": {"selectPolicy": "Min"}}}}),
        )["spec"];
        assert_eq!(spec["behavior"]["scaleUp"]["selectPolicy"], "Min");
        assert_eq!(
            spec["behavior"]["scaleDown"]["policies"],
            json!([{"type": "Percent", "value": 100, "periodSeconds": 15}])
        );
    }
}
