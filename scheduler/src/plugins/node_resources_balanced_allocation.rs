//! NodeResourcesBalancedAllocation: a node whose CPU and memory fill up alike can be filled further.

use crate::cache::Snapshot;
use crate::framework::{MAX_SCORE, Plugin, PreScore, Score};
use crate::model::{Node, Pod, Resources};

/// Rates nodes by how evenly they would be used.
#[derive(Debug)]
pub(crate) struct NodeResourcesBalancedAllocation;

struct Balance<'a> {
    requests: &'a Resources,
}

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }
}

impl PreScore for NodeResourcesBalancedAllocation {
    fn pre_score<'a>(
        &'a self,
        pod: &'a Pod,
        _snapshot: &'a Snapshot,
        _feasible: &[&'a Node],
    ) -> Option<Box<dyn Score + 'a>> {
        let requests = &pod.requests;
        // One that asks for nothing changes no balance.
        if requests.milli_cpu == 0 && requests.memory == 0 {
            return None;
        }
        Some(Box::new(Balance { requests }))
    }
}

impl Score for Balance<'_> {
    #[expect(clippy::cast_possible_truncation, reason = "a share of 100 fits")]
    #[expect(clippy::cast_precision_loss, reason = "shares need no exact amounts")]
    fn score(&self, node: &Node) -> i64 {
        let share =
            |all: i64, used: i64, wanted: i64| (all > 0).then(|| ((used + wanted) as f64 / all as f64).min(1.0));
        let (all, used) = (&node.allocatable, &node.requested);
        let cpu = share(all.milli_cpu, used.milli_cpu, self.requests.milli_cpu);
        let memory = share(all.memory, used.memory, self.requests.memory);
        let deviation = match (cpu, memory) {
            // The standard deviation of two numbers.
            (Some(cpu), Some(memory)) => (cpu - memory).abs() / 2.0,
            _ => 0.0,
        };
        ((1.0 - deviation) * MAX_SCORE as f64) as i64
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::testing::{asking, node, pod, running, with_pods};
    use crate::plugins::testing::scores;

    #[test]
    fn even_use_is_better() {
        let snapshot = Snapshot::of([
            with_pods(
                node("even", json!({})),
                &[running("a", "even", json!({}), asking("1", "2Gi"))],
            ),
            with_pods(
                node("cpu", json!({})),
                &[running("b", "cpu", json!({}), asking("3", "0"))],
            ),
        ]);
        let plugin = NodeResourcesBalancedAllocation;
        assert_eq!(
            scores(&plugin, &pod("p", asking("1", "2Gi")), &snapshot),
            Some(vec![100, 62])
        );
        assert_eq!(scores(&plugin, &pod("p", json!({})), &snapshot), None);
    }
}
