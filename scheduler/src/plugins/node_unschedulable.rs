//! NodeUnschedulable: a cordoned node takes no pods, but those that tolerate it.

use crate::cache::Snapshot;
use crate::framework::{ClusterEvent, Filter, Plugin, PreFilter, PreFiltered, Rejection};
use crate::model::{Effect, Node, Pod, Taint};

/// Refuses cordoned nodes.
#[derive(Debug)]
pub(crate) struct NodeUnschedulable;

struct Cordoned {
    tolerated: bool,
}

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn hint(&self, _pod: &Pod, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::NodeAdded(node) => !node.unschedulable,
            ClusterEvent::NodeChanged { old, new } => old.unschedulable && !new.unschedulable,
            _ => false,
        }
    }
}

impl PreFilter for NodeUnschedulable {
    fn pre_filter<'a>(&'a self, pod: &'a Pod, _snapshot: &'a Snapshot) -> PreFiltered<'a> {
        // `kubectl cordon` is known to pods as this taint.
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            value: String::new(),
            effect: Effect::NoSchedule,
        };
        let tolerated = taint.is_tolerated(&pod.wants.tolerations);
        PreFiltered::Filter(Box::new(Cordoned { tolerated }))
    }
}

impl Filter for Cordoned {
    fn filter(&self, node: &Node) -> Result<(), Rejection> {
        if node.unschedulable && !self.tolerated {
            return Err(Rejection::unresolvable(
                "NodeUnschedulable",
                "node(s) were unschedulable",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::testing::{node, pod};
    use crate::plugins::testing::check;

    #[test]
    fn cordoned_nodes_are_for_those_who_tolerate_it() {
        let mut cordoned = node("n", json!({}));
        cordoned.unschedulable = true;
        let tolerant = json!({"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]});
        let cases = [
            (json!({}), node("n", json!({})), Ok(())),
            (json!({}), cordoned.clone(), Err("node(s) were unschedulable")),
            (tolerant, cordoned, Ok(())),
        ];
        for (spec, node, expected) in cases {
            check(&NodeUnschedulable, &pod("a", spec), node, expected);
        }
    }
}
