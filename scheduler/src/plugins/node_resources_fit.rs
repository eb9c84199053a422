//! NodeResourcesFit: the node has room for what the pod asks for; emptier nodes are better (LeastAllocated).

use std::borrow::Cow;

use crate::cache::Snapshot;
use crate::framework::{ClusterEvent, Filter, MAX_SCORE, Plugin, PreFilter, PreFiltered, PreScore, Rejection, Score};
use crate::model::{Node, Pod, Resources};

/// Refuses full nodes, and rates the others by what stays free.
#[derive(Debug)]
pub(crate) struct NodeResourcesFit;

struct Fits<'a> {
    requests: &'a Resources,
}

struct LeastAllocated<'a> {
    requests: &'a Resources,
}

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn hint(&self, pod: &Pod, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::NodeAdded(node) | ClusterEvent::NodeChanged { new: node, .. } => {
                insufficient(&pod.requests, node).reasons.is_empty()
            }
            ClusterEvent::PodGone(_) => true,
            // A pod that was resized may use less now.
            ClusterEvent::PodChanged { old, new } => old.requests != new.requests,
            _ => false,
        }
    }
}

impl PreFilter for NodeResourcesFit {
    fn pre_filter<'a>(&'a self, pod: &'a Pod, _snapshot: &'a Snapshot) -> PreFiltered<'a> {
        let requests = &pod.requests;
        PreFiltered::Filter(Box::new(Fits { requests }))
    }
}

impl Filter for Fits<'_> {
    fn filter(&self, node: &Node) -> Result<(), Rejection> {
        let rejection = insufficient(self.requests, node);
        if rejection.reasons.is_empty() {
            Ok(())
        } else {
            Err(rejection)
        }
    }
}

/// Everything that there is too little of.
fn insufficient(requests: &Resources, node: &Node) -> Rejection {
    let mut rejection = Rejection {
        plugin: "NodeResourcesFit",
        reasons: Vec::new(),
        unresolvable: false,
    };
    if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= node.allowed_pods {
        rejection.reasons.push("Too many pods".into());
    }
    let mut check = |reason: fn(&str) -> Cow<'static, str>, name: &str, wanted: i64, all: i64, used: i64| {
        if wanted > 0 && wanted > all.saturating_sub(used) {
            rejection.reasons.push(reason(name));
            // Not even an empty node would do.
            rejection.unresolvable |= wanted > all;
        }
    };
    let (all, used) = (&node.allocatable, &node.requested);
    check(
        |_| "Insufficient cpu".into(),
        "",
        requests.milli_cpu,
        all.milli_cpu,
        used.milli_cpu,
    );
    check(
        |_| "Insufficient memory".into(),
        "",
        requests.memory,
        all.memory,
        used.memory,
    );
    check(
        |_| "Insufficient ephemeral-storage".into(),
        "",
        requests.ephemeral_storage,
        all.ephemeral_storage,
        used.ephemeral_storage,
    );
    for (name, &wanted) in &requests.other {
        let amount = |resources: &Resources| resources.other.get(name).copied().unwrap_or_default();
        check(
            |name| format!("Insufficient {name}").into(),
            name,
            wanted,
            amount(all),
            amount(used),
        );
    }
    rejection
}

impl PreScore for NodeResourcesFit {
    fn pre_score<'a>(
        &'a self,
        pod: &'a Pod,
        _snapshot: &'a Snapshot,
        _feasible: &[&'a Node],
    ) -> Option<Box<dyn Score + 'a>> {
        let requests = &pod.scored_requests;
        Some(Box::new(LeastAllocated { requests }))
    }
}

impl Score for LeastAllocated<'_> {
    fn score(&self, node: &Node) -> i64 {
        let (all, used) = (&node.allocatable, &node.scored_requested);
        let free = |all: i64, used: i64, wanted: i64| {
            let used = used.saturating_add(wanted);
            // A resource that the node has none of says nothing about it.
            (all > 0).then(|| {
                if used > all {
                    0
                } else {
                    (all - used).saturating_mul(MAX_SCORE) / all
                }
            })
        };
        let cpu = free(all.milli_cpu, used.milli_cpu, self.requests.milli_cpu);
        let memory = free(all.memory, used.memory, self.requests.memory);
        let known: Vec<i64> = [cpu, memory].into_iter().flatten().collect();
        let count = i64::try_from(known.len()).unwrap_or(1).max(1);
        known.into_iter().sum::<i64>() / count
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::testing::{asking, node, pod, running, with_pods};
    use crate::plugins::testing::{check, scores, verdicts};

    fn asking_for(requests: Value) -> Value {
        json!({"containers": [{"name": "c", "resources": {"requests": requests}}]})
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let busy = with_pods(
            node("n", json!({})),
            &[running("b", "n", json!({}), asking("3", "6Gi"))],
        );
        let cases = [
            (json!({}), Ok(())),
            (json!({"cpu": "1", "memory": "2Gi"}), Ok(())),
            (json!({"cpu": "1001m"}), Err("Insufficient cpu")),
            (
                json!({"cpu": "2", "memory": "3Gi"}),
                Err("Insufficient cpu, Insufficient memory"),
            ),
            (
                json!({"ephemeral-storage": "11Gi"}),
                Err("Insufficient ephemeral-storage"),
            ),
            (json!({"example.com/gpu": "1"}), Err("Insufficient example.com/gpu")),
            (json!({"cpu": "0"}), Ok(())),
        ];
        for (requests, expected) in cases {
            check(
                &NodeResourcesFit,
                &pod("a", asking_for(requests)),
                busy.clone(),
                expected,
            );
        }
        let mut full = node("n", json!({}));
        full.allowed_pods = 0;
        check(&NodeResourcesFit, &pod("a", json!({})), full, Err("Too many pods"));
    }

    #[test]
    fn what_never_fits_is_unresolvable() {
        let busy = with_pods(
            node("n", json!({})),
            &[running("b", "n", json!({}), asking("3", "6Gi"))],
        );
        for (cpu, unresolvable) in [("2", false), ("5", true)] {
            let pod = pod("a", asking(cpu, "1"));
            let rejection = insufficient(&pod.requests, &busy);
            assert_eq!(rejection.unresolvable, unresolvable, "{cpu}");
        }
    }

    #[test]
    fn emptier_nodes_are_better() {
        let snapshot = Snapshot::of([
            node("empty", json!({})),
            with_pods(
                node("half", json!({})),
                &[running("b", "half", json!({}), asking("2", "4Gi"))],
            ),
            with_pods(
                node("full", json!({})),
                &[running("c", "full", json!({}), asking("4", "8Gi"))],
            ),
        ]);
        assert_eq!(
            scores(&NodeResourcesFit, &pod("a", asking("1", "2Gi")), &snapshot),
            Some(vec![75, 25, 0])
        );
        // One that asks for nothing counts as if it did a little.
        let modest = scores(&NodeResourcesFit, &pod("a", json!({})), &snapshot).unwrap();
        assert!(modest[0] < 100 && modest[0] > 90, "{modest:?}");
    }

    #[test]
    fn room_is_a_reason_to_try_again() {
        let waiting = pod("a", asking("3", "1Gi"));
        let small = with_pods(
            node("n", json!({})),
            &[running("b", "n", json!({}), asking("2", "1Gi"))],
        );
        assert!(!NodeResourcesFit.hint(&waiting, &ClusterEvent::NodeAdded(&small)));
        assert!(NodeResourcesFit.hint(&waiting, &ClusterEvent::NodeAdded(&node("m", json!({})))));
        assert!(NodeResourcesFit.hint(&waiting, &ClusterEvent::PodGone(&small.pods[0])));
        assert_eq!(verdicts(&NodeResourcesFit, &waiting, &Snapshot::of([small])).len(), 1);
    }
}
