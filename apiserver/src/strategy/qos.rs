//! Quality of service of a pod, from its containers' requests and limits of cpu and memory.

use std::collections::BTreeMap;

use serde_json::Value;
use skiff_api::quantity::Quantity;

const COMPUTE: [&str; 2] = ["cpu", "memory"];

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub(super) fn class(pod: &Value) -> &'static str {
    let Some(spec) = pod.get("spec") else {
        return "BestEffort";
    };
    let pod_level = spec.get("resources").filter(|resources| has_any(resources));
    let containers: Vec<&Value> = ["containers", "initContainers"]
        .iter()
        .filter_map(|key| spec.get(key).and_then(Value::as_array))
        .flatten()
        .collect();
    let holders: Vec<&Value> = match pod_level {
        Some(resources) => vec![resources],
        None => containers
            .iter()
            .filter_map(|container| container.get("resources"))
            .collect(),
    };
    let everyone_limited = if pod_level.is_some() { 1 } else { containers.len() };

    let mut requests: BTreeMap<&str, Quantity> = BTreeMap::new();
    let mut limits: BTreeMap<&str, Quantity> = BTreeMap::new();
    let mut fully_limited = 0;
    for holder in holders {
        sum(&mut requests, holder.get("requests"));
        let limited = sum(&mut limits, holder.get("limits"));
        fully_limited += usize::from(limited == COMPUTE.len());
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    let equal = requests.len() == limits.len() && requests.iter().all(|(key, value)| limits.get(key) == Some(value));
    if fully_limited == everyone_limited && equal {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

fn has_any(resources: &Value) -> bool {
    ["requests", "limits"].iter().any(|key| {
        resources
            .get(key)
            .and_then(Value::as_object)
            .is_some_and(|list| COMPUTE.iter().any(|name| list.contains_key(*name)))
    })
}

/// Adds the positive compute quantities of a resource list; how many there were.
fn sum(total: &mut BTreeMap<&'static str, Quantity>, list: Option<&Value>) -> usize {
    let mut found = 0;
    for name in COMPUTE {
        let text = list.and_then(|list| list.get(name)).map(|value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        let Some(quantity) = text.and_then(|text| text.parse::<Quantity>().ok()) else {
            continue;
        };
        if quantity.as_milli() <= 0 {
            continue;
        }
        found += 1;
        let sum = match total.remove(name) {
            Some(before) => before.checked_add(quantity).unwrap_or(quantity),
            None => quantity,
        };
        total.insert(name, sum);
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn classes() {
        let full = json!({"resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}});
        let cpu = json!({"resources": {"requests": {"cpu": "100m"}}});
        let none = json!({});
        let gpu = json!({"resources": {"limits": {"example.com/gpu": 1}}});
        for (containers, class_name) in [
            (vec![&none], "BestEffort"),
            (vec![&gpu], "BestEffort"),
            (vec![&full], "Guaranteed"),
            (vec![&full, &full], "Guaranteed"),
            (vec![&full, &none], "Burstable"),
            (vec![&cpu], "Burstable"),
            (vec![&full, &cpu], "Burstable"),
        ] {
            assert_eq!(
                class(&json!({"spec": {"containers": containers}})),
                class_name,
                "{containers:?}"
            );
        }
        let sidecar = json!({"spec": {"containers": [full.clone()], "initContainers": [{}]}});
        assert_eq!(class(&sidecar), "Burstable");
        let pod_level = json!({"spec": {"containers": [{}], "resources": full["resources"]}});
        assert_eq!(class(&pod_level), "Guaranteed");
    }
}
