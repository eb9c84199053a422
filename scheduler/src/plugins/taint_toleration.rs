//! TaintToleration: taints keep pods away that do not tolerate them, or only discourage them.

use crate::cache::Snapshot;
use crate::framework::{ClusterEvent, Filter, Plugin, PreFilter, PreFiltered, PreScore, Rejection, Score, normalize};
use crate::model::{Effect, Node, Pod, Toleration};

/// Refuses, and rates, tainted nodes.
#[derive(Debug)]
pub(crate) struct TaintToleration;

struct Tolerates<'a> {
    tolerations: &'a [Toleration],
}

struct Discouraged<'a> {
    tolerations: Vec<&'a Toleration>,
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn hint(&self, pod: &Pod, event: &ClusterEvent<'_>) -> bool {
        let open = |node: &Node| node.untolerated_taint(&pod.wants.tolerations).is_none();
        match event {
            ClusterEvent::NodeAdded(node) => open(node),
            ClusterEvent::NodeChanged { old, new } => !open(old) && open(new),
            _ => false,
        }
    }
}

impl PreFilter for TaintToleration {
    fn pre_filter<'a>(&'a self, pod: &'a Pod, _snapshot: &'a Snapshot) -> PreFiltered<'a> {
        let tolerations = &pod.wants.tolerations;
        PreFiltered::Filter(Box::new(Tolerates { tolerations }))
    }
}

impl Filter for Tolerates<'_> {
    fn filter(&self, node: &Node) -> Result<(), Rejection> {
        let Some(taint) = node.untolerated_taint(self.tolerations) else {
            return Ok(());
        };
        let reason = format!("node(s) had untolerated taint {{{}: {}}}", taint.key, taint.value);
        Err(Rejection::unresolvable("TaintToleration", reason))
    }
}

impl PreScore for TaintToleration {
    fn pre_score<'a>(
        &'a self,
        pod: &'a Pod,
        _snapshot: &'a Snapshot,
        feasible: &[&'a Node],
    ) -> Option<Box<dyn Score + 'a>> {
        let soft = |node: &&'a Node| node.taints.iter().any(|taint| taint.effect == Effect::PreferNoSchedule);
        if !feasible.iter().any(soft) {
            return None;
        }
        let concerns = |toleration: &&Toleration| matches!(toleration.effect.as_str(), "" | "PreferNoSchedule");
        Some(Box::new(Discouraged {
            tolerations: pod.wants.tolerations.iter().filter(concerns).collect(),
        }))
    }
}

impl Score for Discouraged<'_> {
    fn score(&self, node: &Node) -> i64 {
        let soft = node
            .taints
            .iter()
            .filter(|taint| taint.effect == Effect::PreferNoSchedule);
        let count = soft
            .filter(|taint| !taint.is_tolerated(self.tolerations.iter().copied()))
            .count();
        i64::try_from(count).unwrap_or(i64::MAX)
    }

    fn normalize(&self, _nodes: &[&Node], scores: &mut [i64]) {
        normalize(scores, true);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::testing::{pod, tainted};
    use crate::plugins::testing::{check, scores};

    #[test]
    fn taints_keep_out_those_who_do_not_tolerate_them() {
        let gpu = json!([{"key": "gpu", "value": "a100", "effect": "NoSchedule"}]);
        let refused = Err("node(s) had untolerated taint {gpu: a100}");
        let cases = [
            (json!([]), gpu.clone(), refused),
            (json!([{"key": "gpu", "operator": "Exists"}]), gpu.clone(), Ok(())),
            (json!([{"key": "gpu", "value": "a100"}]), gpu.clone(), Ok(())),
            (
                json!([{"key": "gpu", "operator": "Equal", "value": "h100"}]),
                gpu.clone(),
                refused,
            ),
            (
                json!([{"key": "gpu", "operator": "Exists", "effect": "NoExecute"}]),
                gpu.clone(),
                refused,
            ),
            (json!([{"operator": "Exists"}]), gpu, Ok(())),
            (
                json!([]),
                json!([{"key": "soft", "effect": "PreferNoSchedule"}]),
                Ok(()),
            ),
            (
                json!([]),
                json!([{"key": "gone", "effect": "NoExecute"}]),
                Err("node(s) had untolerated taint {gone: }"),
            ),
            (
                json!([{"key": "n", "operator": "Gt", "value": "5"}]),
                json!([{"key": "n", "value": "6", "effect": "NoSchedule"}]),
                Ok(()),
            ),
        ];
        for (tolerations, taints, expected) in cases {
            check(
                &TaintToleration,
                &pod("a", json!({"tolerations": tolerations})),
                tainted("n", taints),
                expected,
            );
        }
    }

    #[test]
    fn soft_taints_cost_points() {
        let soft = |keys: &[&str]| {
            let taints: Vec<_> = keys
                .iter()
                .map(|key| json!({"key": key, "effect": "PreferNoSchedule"}))
                .collect();
            tainted(keys.last().unwrap_or(&"none"), json!(taints))
        };
        let snapshot = Snapshot::of([soft(&[]), soft(&["a"]), soft(&["a", "b"])]);
        assert_eq!(
            scores(&TaintToleration, &pod("p", json!({})), &snapshot),
            Some(vec![100, 50, 0])
        );
        let tolerant = pod("p", json!({"tolerations": [{"key": "b", "operator": "Exists"}]}));
        assert_eq!(scores(&TaintToleration, &tolerant, &snapshot), Some(vec![100, 0, 0]));
    }
}
