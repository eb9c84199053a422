//! How many pods to create, or which to delete.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::pods::deletion_key;
use crate::view::Pod;

#[derive(Debug)]
pub(super) enum Scale {
    Keep,
    Create(usize),
    /// The pods to delete, least useful first.
    Delete(Vec<Arc<Pod>>),
}

/// `related` gives the active pods whose number on a node makes a pod there dispensable; asked only when needed.
pub(super) fn scale(
    desired: i32,
    active: &[Arc<Pod>],
    related: impl FnOnce() -> Vec<Arc<Pod>>,
    now: Timestamp,
) -> Scale {
    let desired = usize::try_from(desired).unwrap_or_default();
    match active.len() {
        have if have < desired => Scale::Create(desired - have),
        have if have > desired => {
            let surplus = have - desired;
            let mut pods = active.to_vec();
            if desired > 0 {
                let related = related();
                let mut on_node: HashMap<&str, usize> = HashMap::new();
                for node in related.iter().filter_map(|pod| pod.spec.node_name.as_deref()) {
                    *on_node.entry(node).or_default() += 1;
                }
                let rank = |pod: &Pod| {
                    pod.spec
                        .node_name
                        .as_deref()
                        .and_then(|node| on_node.get(node))
                        .copied()
                        .unwrap_or(0)
                };
                pods.sort_by_cached_key(|pod| deletion_key(pod, rank(pod), now));
            }
            pods.truncate(surplus);
            Scale::Delete(pods)
        }
        _ => Scale::Keep,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use serde_json::json;

    use super::{Scale, scale};
    use crate::view::{Pod, View};

    fn pod(name: &str, node: &str) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name, "uid": name}, "spec": {"nodeName": node}, "status": {"phase": "Running"}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn the_difference_decides() {
        let pods = vec![pod("a", "n1"), pod("b", "n2"), pod("c", "n2")];
        let related = || pods.clone();
        let now = Timestamp::UNIX_EPOCH;
        assert!(matches!(scale(3, &pods, related, now), Scale::Keep));
        assert!(matches!(scale(5, &pods, related, now), Scale::Create(2)));
        let Scale::Delete(gone) = scale(2, &pods, related, now) else {
            panic!("too many pods")
        };
        assert_eq!(gone.len(), 1);
        assert_eq!(
            gone[0].spec.node_name.as_deref(),
            Some("n2"),
            "the crowded node gives one up: {}",
            gone[0].name()
        );
        assert!(matches!(scale(0, &pods, related, now), Scale::Delete(gone) if gone.len() == 3));
    }
}
