//! Horizontal pod autoscalers.

use serde_json::json;

use super::{Fields, absent, child, descend, has, is_empty};

pub(super) fn apply(kind: &str, object: &mut Fields) {
    if kind != "HorizontalPodAutoscaler" {
        return;
    }
    let Some(spec) = child(object, "spec") else { return };
    absent(spec, "minReplicas", 1);
    // autoscaling/v1 has a field for the one metric that it knows.
    if is_empty(spec, "metrics") && !has(spec, "targetCPUUtilizationPercentage") {
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
    use super::super::applied;
    use super::*;

    #[test]
    fn cpu_at_eighty_percent() {
        let spec = &applied("autoscaling", "HorizontalPodAutoscaler", json!({"spec": {}}))["spec"];
        assert_eq!(spec["minReplicas"], 1);
        assert_eq!(spec["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert!(spec.get("behavior").is_none());
    }

    #[test]
    fn behavior_is_completed() {
        let spec = &applied(
            "autoscaling",
            "HorizontalPodAutoscaler",
            json!({"spec": {"behavior": {"scaleUp": {"selectPolicy": "Min"}}}}),
        )["spec"];
        assert_eq!(spec["behavior"]["scaleUp"]["selectPolicy"], "Min");
        assert_eq!(
            spec["behavior"]["scaleDown"]["policies"],
            json!([{"type": "Percent", "value": 100, "periodSeconds": 15}])
        );
    }
}
