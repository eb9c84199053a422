//! NodePorts: two pods cannot have the same port of one node.

use crate::cache::Snapshot;
use crate::framework::{ClusterEvent, Filter, Plugin, PreFilter, PreFiltered, Rejection};
use crate::model::{HostPort, Node, Pod};

/// Refuses nodes where a host port is taken.
#[derive(Debug)]
pub(crate) struct NodePorts;

struct Free<'a> {
    ports: &'a [HostPort],
}

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn hint(&self, pod: &Pod, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::PodGone(gone) => conflict(&pod.ports, gone),
            _ => false,
        }
    }
}

impl PreFilter for NodePorts {
    fn pre_filter<'a>(&'a self, pod: &'a Pod, _snapshot: &'a Snapshot) -> PreFiltered<'a> {
        if pod.ports.is_empty() {
            return PreFiltered::Skip;
        }
        PreFiltered::Filter(Box::new(Free { ports: &pod.ports }))
    }
}

impl Filter for Free<'_> {
    fn filter(&self, node: &Node) -> Result<(), Rejection> {
        if node.with_ports > 0 && node.pods.iter().any(|pod| conflict(self.ports, pod)) {
            return Err(Rejection::new(
                "NodePorts",
                "node(s) didn't have free ports for the requested pod ports",
            ));
        }
        Ok(())
    }
}

fn conflict(ports: &[HostPort], pod: &Pod) -> bool {
    ports
        .iter()
        .any(|port| pod.ports.iter().any(|taken| taken.conflicts(port)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::testing::{node, pod, running, with_pods};
    use crate::plugins::testing::check;

    fn spec(port: Value) -> Value {
        json!({"containers": [{"name": "c", "ports": [port]}]})
    }

    #[test]
    fn ports_conflict_by_number_protocol_and_address() {
        let refused = Err("node(s) didn't have free ports for the requested pod ports");
        let cases = [
            (json!({"hostPort": 80}), json!({"hostPort": 80}), refused),
            (json!({"hostPort": 80}), json!({"hostPort": 81}), Ok(())),
            (
                json!({"hostPort": 80, "protocol": "UDP"}),
                json!({"hostPort": 80}),
                Ok(()),
            ),
            (
                json!({"hostPort": 80, "hostIP": "127.0.0.1"}),
                json!({"hostPort": 80}),
                refused,
            ),
            (
                json!({"hostPort": 80, "hostIP": "10.0.0.1"}),
                json!({"hostPort": 80, "hostIP": "10.0.0.2"}),
                Ok(()),
            ),
            (json!({"containerPort": 80}), json!({"containerPort": 80}), Ok(())),
        ];
        for (taken, wanted, expected) in cases {
            let node = with_pods(node("n", json!({})), &[running("b", "n", json!({}), spec(taken))]);
            check(&NodePorts, &pod("a", spec(wanted)), node, expected);
        }
    }

    #[test]
    fn a_port_that_is_freed_is_a_reason_to_try_again() {
        let waiting = pod("a", spec(json!({"hostPort": 80})));
        let same = running("b", "n", json!({}), spec(json!({"hostPort": 80})));
        let other = running("b", "n", json!({}), spec(json!({"hostPort": 81})));
        assert!(NodePorts.hint(&waiting, &ClusterEvent::PodGone(&same)));
        assert!(!NodePorts.hint(&waiting, &ClusterEvent::PodGone(&other)));
    }
}
