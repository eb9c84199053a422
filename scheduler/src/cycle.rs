//! One pod against the cluster: filter the nodes, rate those that are left, choose.

use std::sync::Arc;

use rand::RngExt as _;

use crate::cache::Snapshot;
use crate::framework::{Diagnosis, Filters, Framework, Rejection};
use crate::model::{Node, Pod};

/// Clusters up to this size are searched completely.
const MIN_FEASIBLE: usize = 100;
/// The smallest share of a large cluster that is searched, in percent.
const MIN_PERCENT: usize = 5;

/// Where a pod goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Placement {
    pub(crate) node: Arc<str>,
    /// Nodes looked at, and those of them that could take it.
    pub(crate) evaluated: usize,
    pub(crate) feasible: usize,
}

/// Finds the best node for `pod`, or says why there is none. The search begins at node number `start`, which moves on, so
/// that in a large cluster every node gets its turn.
pub(crate) fn schedule(
    framework: &Framework,
    snapshot: &Snapshot,
    pod: &Pod,
    start: &mut usize,
) -> Result<Placement, Box<Diagnosis>> {
    let mut diagnosis = Box::new(Diagnosis {
        nodes: snapshot.nodes.len(),
        ..Diagnosis::default()
    });
    if snapshot.nodes.is_empty() {
        return Err(diagnosis);
    }
    let filters = match framework.filters(pod, snapshot) {
        Ok(filters) => filters,
        Err(rejection) => {
            diagnosis.pre_filter = Some(rejection);
            return Err(diagnosis);
        }
    };
    let search = Search {
        framework,
        snapshot,
        pod,
        filters: &filters,
    };
    let feasible = match search.nominated() {
        Some(node) => vec![node],
        None => search.feasible(start, &mut diagnosis),
    };
    let evaluated = feasible.len() + diagnosis.rejected.len();
    let node = match feasible.as_slice() {
        [] => return Err(diagnosis),
        [only] => only,
        several => best(several, &framework.score(pod, snapshot, several)),
    };
    Ok(Placement {
        node: Arc::clone(&node.name),
        evaluated,
        feasible: feasible.len(),
    })
}

struct Search<'a> {
    framework: &'a Framework,
    snapshot: &'a Snapshot,
    pod: &'a Pod,
    filters: &'a Filters<'a>,
}

impl<'a> Search<'a> {
    /// The node where room was made for this pod, if it can take it by now.
    fn nominated(&self) -> Option<&'a Node> {
        let node = self.snapshot.node(self.pod.nominated_node.as_deref()?)?;
        self.check(node).is_ok().then_some(node)
    }

    fn feasible(&self, start: &mut usize, diagnosis: &mut Diagnosis) -> Vec<&'a Node> {
        let count = self.snapshot.nodes.len();
        let positions: Vec<usize> = match &self.filters.only {
            None => (0..count).map(|offset| (*start + offset) % count).collect(),
            Some((names, plugins)) => {
                let reason = format!("node(s) didn't satisfy plugin(s) [{}]", plugins.join(" "));
                let plugin = plugins.first().copied().unwrap_or_default();
                diagnosis.others = Some(Rejection::unresolvable(plugin, reason));
                names.iter().filter_map(|name| self.snapshot.position(name)).collect()
            }
        };
        let wanted = wanted(count);
        let mut feasible = Vec::new();
        let mut looked_at = 0;
        for position in positions {
            let node = &*self.snapshot.nodes[position];
            looked_at += 1;
            match self.check(node) {
                Ok(()) => feasible.push(node),
                Err(rejection) => diagnosis.rejected.push((position, rejection)),
            }
            if feasible.len() >= wanted {
                break;
            }
        }
        if self.filters.only.is_none() {
            *start = (*start + looked_at) % count;
        }
        feasible
    }

    /// A node has to take the pod both as it is and with the pods that room is being made for, if these are more
    /// important: nobody knows which of them comes first.
    fn check(&self, node: &Node) -> Result<(), Rejection> {
        self.filters.check(node)?;
        let mut nominated = self
            .snapshot
            .nominated(&node.name, self.pod.priority, &self.pod.uid)
            .peekable();
        if nominated.peek().is_none() {
            return Ok(());
        }
        let mut crowded = node.clone();
        for pod in nominated {
            crowded.add_pod(Arc::clone(pod));
        }
        let snapshot = self.snapshot.with_node(crowded.clone());
        self.framework.filters(self.pod, &snapshot)?.check(&crowded)
    }
}

/// How many feasible nodes are enough: all of a small cluster, a share of a large one that falls as it grows.
fn wanted(nodes: usize) -> usize {
    if nodes <= MIN_FEASIBLE {
        return nodes;
    }
    let percent = 50_usize.saturating_sub(nodes / 125).max(MIN_PERCENT);
    (nodes * percent / 100).max(MIN_FEASIBLE)
}

/// The node with the highest score; one at random among several, so that equals fill evenly.
fn best<'a>(nodes: &[&'a Node], scores: &[i64]) -> &'a Node {
    let highest = scores.iter().copied().max().unwrap_or_default();
    let equals: Vec<&Node> = nodes
        .iter()
        .zip(scores)
        .filter(|(_, score)| **score == highest)
        .map(|(node, _)| *node)
        .collect();
    let choice = if equals.len() > 1 {
        rand::rng().random_range(0..equals.len())
    } else {
        0
    };
    equals.get(choice).copied().unwrap_or(nodes[0])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cache::Cache;
    use crate::model::testing::{asking, node, pod, running, tainted, with_pods};
    use crate::testing::no_client;

    fn place(snapshot: &Snapshot, pod: &Pod) -> Result<String, String> {
        let found = schedule(&Framework::new(no_client()), snapshot, pod, &mut 0);
        found
            .map(|placement| placement.node.to_string())
            .map_err(|diagnosis| diagnosis.message())
    }

    #[tokio::test]
    async fn the_emptier_node_wins() {
        let busy = with_pods(
            node("busy", json!({})),
            &[running("x", "busy", json!({}), asking("2", "4Gi"))],
        );
        let snapshot = Snapshot::of([busy, node("idle", json!({}))]);
        assert_eq!(place(&snapshot, &pod("p", asking("1", "1Gi"))).as_deref(), Ok("idle"));
    }

    #[tokio::test]
    async fn the_first_plugin_to_refuse_is_named() {
        let mut cordoned = node("c", json!({}));
        cordoned.unschedulable = true;
        let full = with_pods(
            node("f", json!({})),
            &[running("x", "f", json!({}), asking("4", "1Gi"))],
        );
        let taint = tainted("t", json!([{"key": "k", "value": "v", "effect": "NoSchedule"}]));
        let snapshot = Snapshot::of([cordoned, full, taint]);
        assert_eq!(
            place(&snapshot, &pod("p", asking("1", "1Gi"))).unwrap_err(),
            "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: v}, \
             1 node(s) were unschedulable."
        );
        assert_eq!(
            place(&Snapshot::default(), &pod("p", json!({}))).unwrap_err(),
            "no nodes available to schedule pods"
        );
    }

    #[tokio::test]
    async fn a_pod_for_one_node_looks_at_no_other() {
        let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]});
        let spec = |cpu: &str| {
            let mut spec = asking(cpu, "1Gi");
            spec["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}});
            spec
        };
        let snapshot = Snapshot::of(["n1", "n2", "n3"].map(|name| node(name, json!({}))));
        let found = schedule(&Framework::new(no_client()), &snapshot, &pod("p", spec("1")), &mut 0).unwrap();
        assert_eq!((&*found.node, found.evaluated), ("n2", 1));
        assert_eq!(
            place(&snapshot, &pod("p", spec("9"))).unwrap_err(),
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't satisfy plugin(s) [NodeAffinity]."
        );
    }

    #[tokio::test]
    async fn large_clusters_are_searched_in_turns() {
        let names: Vec<String> = (0..300).map(|number| format!("n{number}")).collect();
        let snapshot = Snapshot::of(names.iter().map(|name| node(name, json!({}))));
        let framework = Framework::new(no_client());
        let mut start = 0;
        let found = schedule(&framework, &snapshot, &pod("p", json!({})), &mut start).unwrap();
        assert_eq!((found.evaluated, found.feasible, start), (144, 144, 144));
        assert_eq!(
            [wanted(50), wanted(100), wanted(200), wanted(5000), wanted(100_000)],
            [50, 100, 100, 500, 5000]
        );
    }

    #[tokio::test]
    async fn room_made_for_a_more_important_pod_is_not_taken() {
        let mut cache = Cache::default();
        cache.set_node(node("n", json!({})));
        let mut important = asking("3", "1Gi");
        important["priority"] = json!(100);
        let mut waiting = pod("important", important);
        waiting.nominated_node = Some("n".into());
        let waiting = Arc::new(waiting);
        cache.nominate(&waiting, Some(&"n".into()));
        assert!(place(&cache.snapshot, &pod("p", asking("2", "1Gi"))).is_err());
        assert_eq!(
            place(&cache.snapshot, &pod("p", asking("1", "1Gi"))).as_deref(),
            Ok("n")
        );
        assert_eq!(place(&cache.snapshot, &waiting).as_deref(), Ok("n"));
        cache.nominate(&waiting, None);
        assert_eq!(
            place(&cache.snapshot, &pod("p", asking("2", "1Gi"))).as_deref(),
            Ok("n")
        );
    }
}
