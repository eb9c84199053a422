//! Horizontal pod autoscalers of both versions.

use jiff::Timestamp;
use serde_json::Value;
use skiff_api::meta;

use super::read::{NONE, UNSET, at, int, list, shown, text};
use super::{AGE, Column, NAME, Printer, age};

const UNKNOWN: &str = "<unknown>";

pub(super) static AUTOSCALERS: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Reference"),
        Column::text("Targets"),
        Column::text("MinPods"),
        Column::text("MaxPods"),
        Column::text("Replicas"),
        AGE,
    ],
    row,
};

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let min = at(object, "spec.minReplicas")
        .as_i64()
        .map_or_else(|| UNSET.to_owned(), |min| min.to_string());
    vec![
        meta::name(object).into(),
        format!(
            "{}/{}",
            text(object, "spec.scaleTargetRef.kind"),
            text(object, "spec.scaleTargetRef.name")
        )
        .into(),
        targets(object).into(),
        min.into(),
        int(object, "spec.maxReplicas").into(),
        int(object, "status.currentReplicas").into(),
        age::of(object, now),
    ]
}

fn targets(object: &Value) -> String {
    if let Some(target) = at(object, "spec.targetCPUUtilizationPercentage").as_i64() {
        let current = percent(at(object, "status.currentCPUUtilizationPercentage"));
        return format!("cpu: {current}/{target}%");
    }
    let metrics = list(object, "spec.metrics");
    if metrics.is_empty() {
        return NONE.to_owned();
    }
    let current = list(object, "status.currentMetrics");
    let all: Vec<String> = metrics
        .iter()
        .enumerate()
        .map(|(i, metric)| one_target(metric, current.get(i)))
        .collect();
    match all.as_slice() {
        [a, b, rest @ ..] if !rest.is_empty() => format!("{a}, {b} + {} more...", rest.len()),
        _ => all.join(", "),
    }
}

fn one_target(metric: &Value, current: Option<&Value>) -> String {
    let kind = text(metric, "type");
    let mut field = kind.to_owned();
    if let Some(first) = field.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    let (wanted, now) = (
        at(metric, &field),
        current.map_or(&Value::Null, |current| at(current, &field)),
    );
    let target = at(wanted, "target");
    let (current, goal) = if !at(target, "averageUtilization").is_null() {
        (
            percent(at(now, "current.averageUtilization")),
            percent(at(target, "averageUtilization")),
        )
    } else if !at(target, "averageValue").is_null() {
        let average = if kind == "External" || kind == "Object" {
            " (avg)"
        } else {
            ""
        };
        (
            quantity(at(now, "current.averageValue")),
            quantity(at(target, "averageValue")) + average,
        )
    } else {
        (quantity(at(now, "current.value")), quantity(at(target, "value")))
    };
    // Only resources have a name that says what is counted.
    match text(wanted, "name") {
        "" => format!("{current}/{goal}"),
        name => format!("{name}: {current}/{goal}"),
    }
}

fn percent(value: &Value) -> String {
    value
        .as_i64()
        .map_or_else(|| UNKNOWN.to_owned(), |percent| format!("{percent}%"))
}

fn quantity(value: &Value) -> String {
    if value.is_null() {
        UNKNOWN.to_owned()
    } else {
        shown(value)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::check;

    const HEADINGS: &str = "NAME | REFERENCE | TARGETS | MINPODS | MAXPODS | REPLICAS | AGE";

    #[test]
    fn metrics() {
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}});
        let mut hpa = json!({"metadata": {"name": "h"}, "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "minReplicas": 1,
            "maxReplicas": 5, "metrics": [cpu]}, "status": {"currentReplicas": 2}});
        check(
            "autoscaling",
            "horizontalpodautoscalers",
            &hpa,
            HEADINGS,
            "h | Deployment/web | cpu: <unknown>/80% | 1 | 5 | 2 | <unknown>",
        );
        hpa["status"]["currentMetrics"] =
            json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 12}}}]);
        let pods = json!({"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "10"}}});
        hpa["spec"]["metrics"] = json!([cpu, pods, pods]);
        check(
            "autoscaling",
            "horizontalpodautoscalers",
            &hpa,
            HEADINGS,
            "h | Deployment/web | cpu: 12%/80%, <unknown>/10 + 1 more... | 1 | 5 | 2 | <unknown>",
        );
    }

    #[test]
    fn foreign_letters_do_no_harm() {
        let hpa = json!({"metadata": {"name": "h"}, "spec": {"metrics": [{"type": "\u{e9}trange"}]}});
        check(
            "autoscaling",
            "horizontalpodautoscalers",
            &hpa,
            HEADINGS,
            "h | / | <unknown>/<unknown> | <unset> | 0 | 0 | <unknown>",
        );
    }
}
