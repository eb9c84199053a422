//! NodeAffinity: the pod's node selector and node affinity.

use crate::cache::Snapshot;
use crate::framework::{ClusterEvent, Filter, Plugin, PreFilter, PreFiltered, PreScore, Rejection, Score, normalize};
use crate::model::{Node, NodeTerm, Pod, Preferred, Wants};

/// Refuses nodes that the pod does not select, and rates those that it prefers.
#[derive(Debug)]
pub(crate) struct NodeAffinity;

struct Selected<'a> {
    wants: &'a Wants,
}

struct PreferredNodes<'a> {
    preferred: &'a [Preferred<NodeTerm>],
}

/// Whether a pod's node selector and required node affinity allow a node.
pub(super) fn selects(wants: &Wants, node: &Node) -> bool {
    let selector = wants
        .node_selector
        .iter()
        .all(|(key, value)| node.labels.get(key) == Some(value));
    let alternatives = wants.node_affinity.as_ref();
    selector && alternatives.is_none_or(|terms| terms.iter().any(|term| term.matches(&node.name, &node.labels)))
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn hint(&self, pod: &Pod, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::NodeAdded(node) => selects(&pod.wants, node),
            ClusterEvent::NodeChanged { old, new } => !selects(&pod.wants, old) && selects(&pod.wants, new),
            _ => false,
        }
    }
}

impl PreFilter for NodeAffinity {
    fn pre_filter<'a>(&'a self, pod: &'a Pod, _snapshot: &'a Snapshot) -> PreFiltered<'a> {
        let wants = &pod.wants;
        if wants.node_selector.is_empty() && wants.node_affinity.is_none() {
            return PreFiltered::Skip;
        }
        let filter = Box::new(Selected { wants });
        match named_nodes(wants) {
            // The pods of a DaemonSet: no other node is worth a look.
            Some(names) if names.is_empty() => {
                PreFiltered::Reject(Rejection::unresolvable(self.name(), "pod affinity terms conflict"))
            }
            Some(names) => PreFiltered::Only(names, filter),
            None => PreFiltered::Filter(filter),
        }
    }
}

/// The names that every alternative restricts itself to.
fn named_nodes(wants: &Wants) -> Option<Vec<String>> {
    let terms = wants.node_affinity.as_deref().filter(|terms| !terms.is_empty())?;
    let names: Option<Vec<Vec<String>>> = terms.iter().map(NodeTerm::only_names).collect();
    Some(names?.concat())
}

impl Filter for Selected<'_> {
    fn filter(&self, node: &Node) -> Result<(), Rejection> {
        if selects(self.wants, node) {
            return Ok(());
        }
        Err(Rejection::unresolvable(
            "NodeAffinity",
            "node(s) didn't match Pod's node affinity/selector",
        ))
    }
}

impl PreScore for NodeAffinity {
    fn pre_score<'a>(
        &'a self,
        pod: &'a Pod,
        _snapshot: &'a Snapshot,
        _feasible: &[&'a Node],
    ) -> Option<Box<dyn Score + 'a>> {
        let preferred = &pod.wants.preferred_nodes;
        if preferred.is_empty() {
            return None;
        }
        Some(Box::new(PreferredNodes { preferred }))
    }
}

impl Score for PreferredNodes<'_> {
    fn score(&self, node: &Node) -> i64 {
        let matching = self
            .preferred
            .iter()
            .filter(|preferred| preferred.term.matches(&node.name, &node.labels));
        matching.map(|preferred| preferred.weight).sum()
    }

    fn normalize(&self, _nodes: &[&Node], scores: &mut [i64]) {
        normalize(scores, false);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::testing::{node, pod};
    use crate::plugins::testing::{check, scores};

    fn required(terms: Value) -> Value {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
    }

    #[test]
    fn selector_and_affinity_both_count() {
        let refused = Err("node(s) didn't match Pod's node affinity/selector");
        let ssd = json!({"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]});
        let hdd = json!({"matchExpressions": [{"key": "disk", "operator": "In", "values": ["hdd"]}]});
        let mut both = required(json!([ssd]));
        both["nodeSelector"] = json!({"disk": "hdd"});
        let cases = [
            (json!({}), Ok(())),
            (json!({"nodeSelector": {"disk": "ssd"}}), Ok(())),
            (json!({"nodeSelector": {"disk": "ssd", "more": "x"}}), refused),
            (required(json!([hdd])), refused),
            (required(json!([hdd, ssd])), Ok(())),
            (required(json!([])), refused),
            (both, refused),
        ];
        for (spec, expected) in cases {
            check(
                &NodeAffinity,
                &pod("a", spec),
                node("n", json!({"disk": "ssd"})),
                expected,
            );
        }
    }

    #[test]
    fn pods_for_one_node_look_at_that_one_only() {
        let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n7"]}]});
        let daemon = pod("a", required(json!([term])));
        match NodeAffinity.pre_filter(&daemon, &Snapshot::default()) {
            PreFiltered::Only(names, _) => assert_eq!(names, ["n7"]),
            _ => panic!("it looks at all nodes"),
        }
        let named = |name: &str| json!({"key": "metadata.name", "operator": "In", "values": [name]});
        let torn = pod("a", required(json!([{"matchFields": [named("n7"), named("n8")]}])));
        match NodeAffinity.pre_filter(&torn, &Snapshot::default()) {
            PreFiltered::Reject(rejection) => assert_eq!(rejection.reasons, ["pod affinity terms conflict"]),
            _ => panic!("no node has two names"),
        }
    }

    #[test]
    fn preferences_add_up() {
        let preferred = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 10, "preference": {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}},
            {"weight": 30, "preference": {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}},
        ]}}});
        let snapshot = Snapshot::of([
            node("a", json!({})),
            node("b", json!({"disk": "ssd"})),
            node("c", json!({"disk": "ssd", "gpu": "1"})),
        ]);
        assert_eq!(
            scores(&NodeAffinity, &pod("p", preferred), &snapshot),
            Some(vec![0, 25, 100])
        );
        assert_eq!(scores(&NodeAffinity, &pod("p", json!({})), &snapshot), None);
    }

    #[test]
    fn a_label_that_appears_is_a_reason_to_try_again() {
        let pod = pod("a", json!({"nodeSelector": {"disk": "ssd"}}));
        let (without, with) = (node("n", json!({})), node("n", json!({"disk": "ssd"})));
        assert!(NodeAffinity.hint(
            &pod,
            &ClusterEvent::NodeChanged {
                old: &without,
                new: &with
            }
        ));
        assert!(!NodeAffinity.hint(&pod, &ClusterEvent::NodeChanged { old: &with, new: &with }));
        assert!(!NodeAffinity.hint(&pod, &ClusterEvent::NodeAdded(&without)));
    }
}
