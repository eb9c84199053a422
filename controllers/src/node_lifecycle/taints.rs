//! Which taints a node's conditions ask for.

use jiff::Timestamp;
use skiff_api::k8s_openapi::api::core::v1::Taint;
use skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::health::{Readiness, readiness};
use crate::view::Node;

pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Condition, the status that taints, and the key.
const BY_CONDITION: &[(&str, &str, &str)] = &[
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// What is to be done about the NoExecute taints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evict {
    /// Nothing: leave what is there.
    Keep,
    /// The node is well: no such taint.
    Clear,
    /// This taint, and not the other.
    Taint(&'static str),
}

/// The node's taints as they should be, if that differs from what they are.
pub(super) fn desired(node: &Node, evict: Evict, now: Timestamp) -> Option<Vec<Taint>> {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (condition, status, key) in BY_CONDITION {
        if node
            .condition(condition)
            .is_some_and(|condition| condition.status == *status)
        {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.unschedulable {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    if let Evict::Taint(key) = evict {
        wanted.push((key, "NoExecute"));
    }
    // A node that has never said how it is keeps the taint that it was born with.
    let unborn = readiness(node).is_none();
    let is_ours = |taint: &Taint| match taint.effect.as_str() {
        "NoSchedule" if unborn && taint.key == NOT_READY => false,
        "NoSchedule" => taint.key == UNSCHEDULABLE || BY_CONDITION.iter().any(|(_, _, key)| *key == taint.key),
        "NoExecute" => evict != Evict::Keep && (taint.key == NOT_READY || taint.key == UNREACHABLE),
        _ => false,
    };
    let is_wanted = |taint: &Taint| {
        wanted
            .iter()
            .any(|(key, effect)| taint.key == *key && taint.effect == *effect)
    };
    let mut taints: Vec<_> = node
        .spec
        .taints
        .iter()
        .filter(|taint| !is_ours(taint) || is_wanted(taint))
        .cloned()
        .collect();
    let removed = taints.len() < node.spec.taints.len();
    let missing: Vec<_> = wanted
        .iter()
        .filter(|(key, effect)| !taints.iter().any(|taint| taint.key == *key && taint.effect == *effect))
        .collect();
    let changed = removed || !missing.is_empty();
    let added = Some(Time(now.round(jiff::Unit::Second).unwrap_or(now)));
    taints.extend(missing.into_iter().map(|(key, effect)| Taint {
        key: (*key).to_owned(),
        effect: (*effect).to_owned(),
        time_added: added.clone(),
        value: None,
    }));
    changed.then_some(taints)
}

/// The NoExecute taint that a node in this state should get, when its turn comes.
pub(super) fn evicting(readiness: Readiness) -> Evict {
    match readiness {
        Readiness::Ready => Evict::Clear,
        Readiness::NotReady => Evict::Taint(NOT_READY),
        Readiness::Unknown => Evict::Taint(UNREACHABLE),
    }
}

/// Whether the node has one of the NoExecute taints already: exchanging it needs no turn.
pub(super) fn is_evicting(node: &Node) -> bool {
    let ours = |taint: &Taint| taint.effect == "NoExecute" && (taint.key == NOT_READY || taint.key == UNREACHABLE);
    node.spec.taints.iter().any(ours)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(conditions: Value, taints: Value, unschedulable: bool) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n"},
            "spec": {"taints": taints, "unschedulable": unschedulable},
            "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    fn ready(status: &str) -> Value {
        json!([{"type": "Ready", "status": status}])
    }

    fn taint(key: &str, effect: &str) -> Value {
        json!({"key": key, "effect": effect})
    }

    fn run(node: &Node, evict: Evict) -> Option<Vec<String>> {
        let taints = desired(node, evict, Timestamp::UNIX_EPOCH)?;
        Some(
            taints
                .iter()
                .map(|taint| {
                    format!(
                        "{}:{}",
                        taint.key.trim_start_matches("node.kubernetes.io/"),
                        taint.effect
                    )
                })
                .collect(),
        )
    }

    fn list(items: &[&str]) -> Option<Vec<String>> {
        Some(items.iter().map(|item| (*item).to_owned()).collect())
    }

    #[test]
    fn conditions_become_taints() {
        let cases = [
            (node(ready("True"), json!([]), false), Evict::Clear, None),
            (
                node(
                    ready("True"),
                    json!([taint(NOT_READY, "NoSchedule"), taint("mine", "NoSchedule")]),
                    false,
                ),
                Evict::Clear,
                list(&["mine:NoSchedule"]),
            ),
            (
                node(ready("False"), json!([]), false),
                Evict::Keep,
                list(&["not-ready:NoSchedule"]),
            ),
            (
                node(
                    ready("Unknown"),
                    json!([taint(NOT_READY, "NoSchedule"), taint(NOT_READY, "NoExecute")]),
                    false,
                ),
                Evict::Taint(UNREACHABLE),
                list(&["unreachable:NoSchedule", "unreachable:NoExecute"]),
            ),
            (
                node(ready("Unknown"), json!([taint(UNREACHABLE, "NoSchedule")]), false),
                Evict::Keep,
                None,
            ),
            (
                node(ready("True"), json!([]), true),
                Evict::Clear,
                list(&["unschedulable:NoSchedule"]),
            ),
            (
                node(json!([]), json!([taint(NOT_READY, "NoSchedule")]), false),
                Evict::Keep,
                None,
            ),
            (
                node(
                    json!([{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "True"}]),
                    json!([]),
                    false,
                ),
                Evict::Clear,
                list(&["disk-pressure:NoSchedule"]),
            ),
            (
                node(ready("True"), json!([taint(UNREACHABLE, "NoExecute")]), false),
                Evict::Clear,
                list(&[]),
            ),
        ];
        for (number, (node, evict, expected)) in cases.into_iter().enumerate() {
            assert_eq!(run(&node, evict), expected, "case {number}");
        }
    }
}
