//! Horizontal pod autoscalers and disruption budgets.

use serde_json::Value;

use super::Errors;
use super::read::{get, has, int, int_or_percent, list, one_of, required, text};
use super::selector;
use crate::field::{Error, Path};

const SPEC: Path<'static> = Path::root("spec");
const METRICS: [&str; 5] = ["ContainerResource", "External", "Object", "Pods", "Resource"];

pub(super) fn autoscaler(object: &Value, errors: &mut Errors) {
    let spec = get(object, "spec");
    let min = int(spec, "minReplicas");
    if let Some(min) = min.filter(|min| *min < 1) {
        let detail = "must be greater than or equal to 1";
        errors.push(Error::invalid(&SPEC.child("minReplicas"), min, detail));
    }
    let max = int(spec, "maxReplicas").unwrap_or(0);
    if max < 1 {
        errors.push(Error::invalid(
            &SPEC.child("maxReplicas"),
            max,
            "must be greater than 0",
        ));
    }
    if min.is_some_and(|min| max < min) {
        let detail = "must be greater than or equal to `minReplicas`";
        errors.push(Error::invalid(&SPEC.child("maxReplicas"), max, detail));
    }
    let path = SPEC.child("scaleTargetRef");
    for key in ["kind", "name"] {
        required(&path, key, get(spec, "scaleTargetRef"), errors);
    }
    let root = SPEC.child("metrics");
    for (i, metric) in list(spec, "metrics").iter().enumerate() {
        let path = root.index(i);
        let kind = text(metric, "type");
        match kind {
            "" => errors.push(Error::required(
                &path.child("type"),
                "must specify a metric source type",
            )),
            _ => one_of(&path, "type", metric, &METRICS, true, errors),
        }
        let mut field = kind.to_owned();
        if let Some(first) = field.get_mut(..1) {
            first.make_ascii_lowercase();
        }
        if METRICS.contains(&kind) && !has(metric, &field) {
            let detail = "must populate information for the given metric source";
            errors.push(Error::required(&path.child(&field), detail));
        }
    }
}

pub(super) fn disruption_budget(object: &Value, errors: &mut Errors) {
    let spec = get(object, "spec");
    if has(spec, "minAvailable") && has(spec, "maxUnavailable") {
        let detail = "minAvailable and maxUnavailable cannot be both set";
        errors.push(Error::invalid(&SPEC, spec.clone(), detail));
    }
    for key in ["minAvailable", "maxUnavailable"] {
        if has(spec, key) {
            int_or_percent(&SPEC, key, spec, errors);
            if super::read::percent(get(spec, key)).is_some_and(|percent| percent > 100) {
                errors.push(Error::invalid(
                    &SPEC.child(key),
                    get(spec, key).clone(),
                    "must not be greater than 100%",
                ));
            }
        }
    }
    selector::selector(&SPEC.child("selector"), get(spec, "selector"), errors);
    one_of(
        &SPEC,
        "unhealthyPodEvictionPolicy",
        spec,
        &["AlwaysAllow", "IfHealthyBudget"],
        false,
        errors,
    );
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::created;

    #[test]
    fn bounds() {
        let hpa = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"minReplicas": 3, "maxReplicas": 1, "scaleTargetRef": {"kind": "Deployment"},
            "metrics": [{"type": "Resource"}]}});
        assert_eq!(
            created("autoscaling", "HorizontalPodAutoscaler", &hpa),
            [
                "spec.maxReplicas: Invalid value: 1: must be greater than or equal to `minReplicas`",
                "spec.scaleTargetRef.name: Required value",
                "spec.metrics[0].resource: Required value: must populate information for the given metric source",
            ]
        );
        let budget = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"minAvailable": "101%"}});
        assert_eq!(
            created("policy", "PodDisruptionBudget", &budget),
            ["spec.minAvailable: Invalid value: \"101%\": must not be greater than 100%"]
        );
    }
}
