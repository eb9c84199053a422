//! What the cluster looks like: nodes with their pods, including pods whose binding is still on its way.
//!
//! The scheduler's task owns it and decides between two changes, so it is its own snapshot; nothing is copied. Trying
//! out a node in another state ([`Snapshot::with_node`]) copies pointers only.

mod objects;

pub(crate) use objects::{Budget, Key, Objects};

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::{Node, Pod};

/// The nodes as they stand, and the other objects that plugins ask for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) nodes: Vec<Arc<Node>>,
    index: Arc<HashMap<Arc<str>, usize>>,
    pub(crate) objects: Arc<Objects>,
    /// Pods that wait for room which is being made for them, by node.
    nominated: Arc<HashMap<Arc<str>, Vec<Arc<Pod>>>>,
}

/// The snapshot, and what is needed to keep it current.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    pub(crate) snapshot: Snapshot,
    pods: HashMap<Arc<str>, Placed>,
}

#[derive(Debug)]
struct Placed {
    pod: Arc<Pod>,
    node: Arc<str>,
    /// Decided here, not yet seen in the API.
    assumed: bool,
}

// === impl Snapshot ===

impl Snapshot {
    pub(crate) fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.position(name).map(|position| &self.nodes[position])
    }

    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// The same cluster, with one node in another state.
    pub(crate) fn with_node(&self, node: Node) -> Self {
        let mut other = self.clone();
        if let Some(position) = self.position(&node.name) {
            other.nodes[position] = Arc::new(node);
        }
        other
    }

    /// Pods of at least this priority that wait for room on a node, except `uid`.
    pub(crate) fn nominated(&self, node: &str, priority: i32, uid: &str) -> impl Iterator<Item = &Arc<Pod>> {
        let waiting = if self.nominated.is_empty() {
            None
        } else {
            self.nominated.get(node)
        };
        waiting
            .into_iter()
            .flatten()
            .filter(move |pod| pod.priority >= priority && &*pod.uid != uid)
    }

    #[cfg(test)]
    pub(crate) fn of(nodes: impl IntoIterator<Item = Node>) -> Self {
        let mut snapshot = Self::default();
        for node in nodes {
            let name = Arc::clone(&node.name);
            Arc::make_mut(&mut snapshot.index).insert(name, snapshot.nodes.len());
            snapshot.nodes.push(Arc::new(node));
        }
        snapshot
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut Node)) {
        if let Some(position) = self.position(name) {
            // Alone in holding it, except in the middle of a preemption: this does not copy.
            change(Arc::make_mut(&mut self.nodes[position]));
        }
    }
}

// === impl Cache ===

impl Cache {
    /// Adds a node or takes over its new state; the old state when there was one and it differed.
    pub(crate) fn set_node(&mut self, node: Node) -> NodeChange {
        let name = Arc::clone(&node.name);
        if let Some(position) = self.snapshot.position(&name) {
            let known = &mut self.snapshot.nodes[position];
            let old = known.differs(&node).then(|| Node {
                pods: Vec::new(),
                ..Node::clone(known)
            });
            Arc::make_mut(known).update(node);
            return match old {
                Some(old) => NodeChange::Changed(Box::new(old)),
                None => NodeChange::Same,
            };
        }
        Arc::make_mut(&mut self.snapshot.index).insert(Arc::clone(&name), self.snapshot.nodes.len());
        let mut node = node;
        // Its pods may have come before it.
        for placed in self.pods.values().filter(|placed| placed.node == name) {
            node.add_pod(Arc::clone(&placed.pod));
        }
        self.snapshot.nodes.push(Arc::new(node));
        NodeChange::Added
    }

    /// Forgets a node. Its pods stay known, in case it comes back before they go.
    pub(crate) fn remove_node(&mut self, name: &str) -> Option<Arc<Node>> {
        let position = Arc::make_mut(&mut self.snapshot.index).remove(name)?;
        let node = self.snapshot.nodes.swap_remove(position);
        if let Some(moved) = self.snapshot.nodes.get(position) {
            let moved = Arc::clone(&moved.name);
            Arc::make_mut(&mut self.snapshot.index).insert(moved, position);
        }
        Some(node)
    }

    /// Counts a pod to the node that was just chosen for it.
    pub(crate) fn assume(&mut self, pod: &Pod, node: &Arc<str>) {
        self.place(Arc::new(pod.bound_to(node)), Arc::clone(node), true);
    }

    /// Takes back an assumption; nothing when the API has confirmed it by now.
    pub(crate) fn forget(&mut self, uid: &str) -> bool {
        if !self.is_assumed(uid) {
            return false;
        }
        self.remove_pod(uid).is_some()
    }

    /// Whether its binding is on its way.
    pub(crate) fn is_assumed(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|placed| placed.assumed)
    }

    /// Takes over a pod that the API says is on a node; its old state when it was known.
    pub(crate) fn set_pod(&mut self, pod: Arc<Pod>) -> PodChange {
        let Some(node) = pod.node.clone() else {
            return PodChange::Same;
        };
        match self.pods.get_mut(&pod.uid) {
            // The same amounts on the same node: what was assumed is true now.
            Some(placed) if placed.node == node && same_weight(&placed.pod, &pod) => {
                let confirmed = std::mem::take(&mut placed.assumed);
                if confirmed { PodChange::Placed } else { PodChange::Same }
            }
            Some(_) => {
                let old = self.remove_pod(&pod.uid);
                self.place(pod, node, false);
                old.map_or(PodChange::Placed, PodChange::Changed)
            }
            None => {
                self.place(pod, node, false);
                PodChange::Placed
            }
        }
    }

    /// Forgets a pod.
    pub(crate) fn remove_pod(&mut self, uid: &str) -> Option<Arc<Pod>> {
        let placed = self.pods.remove(uid)?;
        self.snapshot.change(&placed.node, |node| {
            node.remove_pod(uid);
        });
        Some(placed.pod)
    }

    /// Whether it counts on a node.
    pub(crate) fn knows(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// UIDs of all pods that count on a node.
    pub(crate) fn uids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.pods.keys()
    }

    /// Notes that room is being made for a pod, or (`None`) that it no longer waits for that. The node where room was kept
    /// for it until now, and is not any more.
    pub(crate) fn nominate(&mut self, pod: &Arc<Pod>, node: Option<&Arc<str>>) -> Option<Arc<str>> {
        if node.is_none() && self.snapshot.nominated.is_empty() {
            return None;
        }
        let mut left = None;
        let nominated = Arc::make_mut(&mut self.snapshot.nominated);
        nominated.retain(|name, pods| {
            let before = pods.len();
            pods.retain(|known| known.uid != pod.uid);
            if pods.len() < before && node != Some(name) {
                left = Some(Arc::clone(name));
            }
            !pods.is_empty()
        });
        if let Some(node) = node {
            nominated.entry(Arc::clone(node)).or_default().push(Arc::clone(pod));
        }
        left
    }

    pub(crate) fn objects(&mut self) -> &mut Objects {
        Arc::make_mut(&mut self.snapshot.objects)
    }

    fn place(&mut self, pod: Arc<Pod>, node: Arc<str>, assumed: bool) {
        self.snapshot.change(&node, |state| state.add_pod(Arc::clone(&pod)));
        self.pods.insert(Arc::clone(&pod.uid), Placed { pod, node, assumed });
    }
}

/// What became of a node that was set.
#[derive(Debug)]
pub(crate) enum NodeChange {
    Added,
    Changed(Box<Node>),
    Same,
}

/// What became of a pod that was set.
#[derive(Debug)]
pub(crate) enum PodChange {
    Placed,
    Changed(Arc<Pod>),
    Same,
}

/// Whether two states of a pod count the same for other pods.
fn same_weight(known: &Pod, new: &Pod) -> bool {
    known.requests == new.requests
        && known.labels == new.labels
        && known.terminating == new.terminating
        && known.priority == new.priority
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::testing::{asking, node, pod, running};

    #[test]
    fn an_assumed_pod_counts_until_it_is_confirmed_or_forgotten() {
        let mut cache = Cache::default();
        assert!(matches!(cache.set_node(node("n1", json!({}))), NodeChange::Added));
        let name: Arc<str> = "n1".into();
        let waiting = pod("a", asking("1", "1Gi"));
        cache.assume(&waiting, &name);
        assert_eq!(cache.snapshot.nodes[0].requested.milli_cpu, 1000);
        assert!(cache.is_assumed("a"));
        assert!(matches!(
            cache.set_pod(running("a", "n1", json!({}), asking("1", "1Gi"))),
            PodChange::Placed
        ));
        assert!(!cache.forget("a"));
        assert_eq!(cache.snapshot.nodes[0].requested.milli_cpu, 1000);

        cache.assume(&pod("b", asking("2", "1Gi")), &name);
        assert!(cache.forget("b"));
        assert_eq!(cache.snapshot.nodes[0].requested.milli_cpu, 1000);
        assert!(cache.remove_pod("a").is_some());
        assert_eq!(cache.snapshot.nodes[0].requested.milli_cpu, 0);
        assert_eq!(cache.snapshot.nodes[0].pods.len(), 0);
    }

    #[test]
    fn a_pod_that_landed_elsewhere_moves() {
        let mut cache = Cache::default();
        cache.set_node(node("n1", json!({})));
        cache.set_node(node("n2", json!({})));
        cache.assume(&pod("a", asking("1", "1Gi")), &"n1".into());
        cache.set_pod(running("a", "n2", json!({}), asking("1", "1Gi")));
        assert_eq!(cache.snapshot.node("n1").unwrap().requested.milli_cpu, 0);
        assert_eq!(cache.snapshot.node("n2").unwrap().requested.milli_cpu, 1000);
    }

    #[test]
    fn pods_may_come_before_their_node_and_outlive_it() {
        let mut cache = Cache::default();
        cache.set_pod(running("a", "late", json!({}), asking("1", "1Gi")));
        cache.set_node(node("other", json!({})));
        cache.set_node(node("late", json!({})));
        assert_eq!(cache.snapshot.node("late").unwrap().pods.len(), 1);
        cache.remove_node("other");
        assert_eq!(cache.snapshot.node("late").unwrap().pods.len(), 1, "the index follows");
        cache.remove_node("late");
        cache.set_node(node("late", json!({})));
        assert_eq!(cache.snapshot.node("late").unwrap().requested.milli_cpu, 1000);
    }

    #[test]
    fn only_a_difference_that_matters_is_a_change() {
        let mut cache = Cache::default();
        cache.set_node(node("n1", json!({})));
        assert!(matches!(cache.set_node(node("n1", json!({}))), NodeChange::Same));
        assert!(matches!(
            cache.set_node(node("n1", json!({"zone": "a"}))),
            NodeChange::Changed(_)
        ));
        assert_eq!(cache.snapshot.nodes[0].labels["zone"], "a");
    }
}
