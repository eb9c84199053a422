//! NodeName: a pod that names its node goes there only.

use std::sync::Arc;

use crate::cache::Snapshot;
use crate::framework::{ClusterEvent, Filter, Plugin, PreFilter, PreFiltered, Rejection};
use crate::model::{Node, Pod};

/// Refuses every node but the one named.
#[derive(Debug)]
pub(crate) struct NodeName;

struct Named<'a> {
    name: &'a Arc<str>,
}

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn hint(&self, pod: &Pod, event: &ClusterEvent<'_>) -> bool {
        matches!(event, ClusterEvent::NodeAdded(node) if pod.node.as_ref() == Some(&node.name))
    }
}

impl PreFilter for NodeName {
    fn pre_filter<'a>(&'a self, pod: &'a Pod, _snapshot: &'a Snapshot) -> PreFiltered<'a> {
        // One that has a node waits for no scheduler; the question comes up when a plan for it is tried out.
        match &pod.node {
            Some(name) => PreFiltered::Filter(Box::new(Named { name })),
            None => PreFiltered::Skip,
        }
    }
}

impl Filter for Named<'_> {
    fn filter(&self, node: &Node) -> Result<(), Rejection> {
        if node.name == *self.name {
            return Ok(());
        }
        Err(Rejection::unresolvable(
            "NodeName",
            "node(s) didn't match the requested node name",
        ))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::testing::{node, pod};
    use crate::plugins::testing::check;

    #[test]
    fn only_the_named_node_will_do() {
        let refused = Err("node(s) didn't match the requested node name");
        for (spec, expected) in [
            (json!({}), Ok(())),
            (json!({"nodeName": "n"}), Ok(())),
            (json!({"nodeName": "m"}), refused),
        ] {
            check(&NodeName, &pod("a", spec), node("n", json!({})), expected);
        }
    }
}
