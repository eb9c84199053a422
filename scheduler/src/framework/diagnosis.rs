//! Why no node could take a pod, in upstream's words.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// A plugin's refusal of a node, or of a pod altogether.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Rejection {
    pub(crate) plugin: &'static str,
    pub(crate) reasons: Vec<Cow<'static, str>>,
    /// Deleting other pods would not help.
    pub(crate) unresolvable: bool,
}

/// What was found out about each node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Diagnosis {
    /// How many nodes there are.
    pub(crate) nodes: usize,
    /// By index of the node in the snapshot.
    pub(crate) rejected: Vec<(usize, Rejection)>,
    /// The refusal that stands for all nodes not in `rejected`.
    pub(crate) others: Option<Rejection>,
    /// A refusal of the pod before any node was looked at.
    pub(crate) pre_filter: Option<Rejection>,
    /// What came of trying to make room.
    pub(crate) post_filter: String,
}

impl Rejection {
    /// Deleting other pods might help.
    pub(crate) fn new(plugin: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            plugin,
            reasons: vec![reason.into()],
            unresolvable: false,
        }
    }

    /// Deleting other pods would not help.
    pub(crate) fn unresolvable(plugin: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            unresolvable: true,
            ..Self::new(plugin, reason)
        }
    }
}

impl Diagnosis {
    /// The plugins that refused something: those whose hints decide when to try again.
    pub(crate) fn plugins(&self) -> BTreeSet<&'static str> {
        let of_nodes = self.rejected.iter().map(|(_, rejection)| rejection);
        of_nodes
            .chain(&self.others)
            .chain(&self.pre_filter)
            .map(|rejection| rejection.plugin)
            .collect()
    }

    /// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable. preemption: …`
    pub(crate) fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let mut text = match &self.pre_filter {
            Some(rejection) => format!(
                "0/{} nodes are available: {}.",
                self.nodes,
                rejection.reasons.join(", ")
            ),
            None => self.count_reasons(),
        };
        if !self.post_filter.is_empty() {
            text.push(' ');
            text.push_str(&self.post_filter);
        }
        text
    }

    fn count_reasons(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, rejection) in &self.rejected {
            for reason in &rejection.reasons {
                *counts.entry(reason).or_default() += 1;
            }
        }
        for reason in self.others.iter().flat_map(|rejection| &rejection.reasons) {
            let count = self.nodes - self.rejected.len();
            if count > 0 {
                *counts.entry(reason).or_default() += count;
            }
        }
        nodes_message(self.nodes, counts)
    }
}

/// `0/3 nodes are available: 1 A, 2 B.`, sorted as text.
pub(crate) fn nodes_message<'a>(nodes: usize, counts: impl IntoIterator<Item = (&'a str, usize)>) -> String {
    let mut reasons: Vec<String> = counts
        .into_iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    reasons.sort();
    let mut text = format!("0/{nodes} nodes are available:");
    if !reasons.is_empty() {
        text.push_str(&format!(" {}.", reasons.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_upstreams() {
        let reject = |reason: &'static str| Rejection::new("P", reason);
        let rejected = vec![
            (0, reject("Insufficient cpu")),
            (1, Rejection::unresolvable("T", "node(s) had untolerated taint {k: v}")),
            (2, Rejection::unresolvable("T", "node(s) had untolerated taint {k: v}")),
        ];
        let mut diagnosis = Diagnosis {
            nodes: 3,
            rejected,
            post_filter: "preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod, \
                          2 Preemption is not helpful for scheduling."
                .to_owned(),
            ..Diagnosis::default()
        };
        assert_eq!(
            diagnosis.message(),
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint {k: v}. preemption: 0/3 nodes \
             are available: 1 No preemption victims found for incoming pod, 2 Preemption is not helpful for scheduling."
        );
        assert_eq!(diagnosis.plugins().into_iter().collect::<Vec<_>>(), ["P", "T"]);

        diagnosis.post_filter.clear();
        diagnosis.rejected[0].1.reasons.push("Insufficient memory".into());
        diagnosis.nodes = 13;
        diagnosis.others = Some(reject("node(s) didn't satisfy plugin(s) [NodeAffinity]"));
        assert_eq!(
            diagnosis.message(),
            "0/13 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 10 node(s) didn't satisfy plugin(s) \
             [NodeAffinity], 2 node(s) had untolerated taint {k: v}."
        );

        assert_eq!(Diagnosis::default().message(), "no nodes available to schedule pods");
        let refused = Diagnosis {
            nodes: 2,
            pre_filter: Some(reject("pod affinity terms conflict")),
            ..Diagnosis::default()
        };
        assert_eq!(
            refused.message(),
            "0/2 nodes are available: pod affinity terms conflict."
        );
    }
}
