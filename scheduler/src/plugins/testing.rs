//! How plugin tests put a question.

use crate::cache::Snapshot;
use crate::framework::{PreFilter, PreFiltered, PreScore};
use crate::model::{Node, Pod};

/// Asserts what `plugin` says of one node, alone in its cluster.
pub(crate) fn check(plugin: &dyn PreFilter, pod: &Pod, node: Node, expected: Result<(), &str>) {
    let name = node.name.to_string();
    let verdicts = verdicts(plugin, pod, &Snapshot::of([node]));
    assert_eq!(verdicts, [(name, expected.map_err(str::to_owned))], "{pod:?}");
}

/// What `plugin` says of each node; the reasons joined.
pub(crate) fn verdicts(plugin: &dyn PreFilter, pod: &Pod, snapshot: &Snapshot) -> Vec<(String, Result<(), String>)> {
    let filter = match plugin.pre_filter(pod, snapshot) {
        PreFiltered::Skip => None,
        PreFiltered::Reject(rejection) => panic!("{rejection:?}"),
        PreFiltered::Filter(filter) | PreFiltered::Only(_, filter) => Some(filter),
    };
    let verdict = |node: &Node| match &filter {
        None => Ok(()),
        Some(filter) => filter.filter(node).map_err(|rejection| rejection.reasons.join(", ")),
    };
    snapshot
        .nodes
        .iter()
        .map(|node| (node.name.to_string(), verdict(node)))
        .collect()
}

/// The names of the nodes that `plugin` lets through.
pub(crate) fn feasible(plugin: &dyn PreFilter, pod: &Pod, snapshot: &Snapshot) -> Vec<String> {
    verdicts(plugin, pod, snapshot)
        .into_iter()
        .filter(|(_, verdict)| verdict.is_ok())
        .map(|(name, _)| name)
        .collect()
}

/// The normalized scores of all nodes, in order; `None` when the plugin does not care.
pub(crate) fn scores(plugin: &dyn PreScore, pod: &Pod, snapshot: &Snapshot) -> Option<Vec<i64>> {
    let nodes: Vec<&Node> = snapshot.nodes.iter().map(|node| &**node).collect();
    let scorer = plugin.pre_score(pod, snapshot, &nodes)?;
    let mut scores: Vec<i64> = nodes.iter().map(|node| scorer.score(node)).collect();
    scorer.normalize(&nodes, &mut scores);
    Some(scores)
}
