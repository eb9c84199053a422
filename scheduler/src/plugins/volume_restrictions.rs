//! VolumeRestrictions: a claim that only one pod may use keeps a second one waiting.

use std::sync::Arc;

use crate::cache::{Objects, Snapshot};
use crate::framework::{ClusterEvent, Filter, Plugin, PreFilter, PreFiltered, Rejection};
use crate::model::{Node, Pod};

const REASON: &str = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";

/// Refuses a pod whose ReadWriteOncePod claim another pod uses, wherever that is.
#[derive(Debug)]
pub(crate) struct VolumeRestrictions;

struct InUse;

/// The pod's claims that no two pods may use.
fn exclusive<'a>(pod: &'a Pod, objects: &'a Objects) -> impl Iterator<Item = &'a Arc<str>> {
    pod.claims.iter().map(|claim| &claim.name).filter(|name| {
        let claim = objects.claims.get(&(Arc::clone(&pod.namespace), Arc::clone(name)));
        let modes = claim.and_then(|claim| claim.spec.as_ref()?.access_modes.as_ref());
        modes.is_some_and(|modes| modes.iter().any(|mode| mode == "ReadWriteOncePod"))
    })
}

fn uses(pod: &Pod, namespace: &str, claim: &str) -> bool {
    *pod.namespace == *namespace && pod.claims.iter().any(|used| *used.name == *claim)
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn hint(&self, pod: &Pod, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::PodGone(gone) => pod.claims.iter().any(|claim| uses(gone, &pod.namespace, &claim.name)),
            ClusterEvent::ClaimChanged((namespace, claim)) => uses(pod, namespace, claim),
            _ => false,
        }
    }
}

impl PreFilter for VolumeRestrictions {
    fn pre_filter<'a>(&'a self, pod: &'a Pod, snapshot: &'a Snapshot) -> PreFiltered<'a> {
        let taken = |claim: &Arc<str>| {
            let mut pods = snapshot.nodes.iter().flat_map(|node| &node.pods);
            pods.any(|other| other.uid != pod.uid && uses(other, &pod.namespace, claim))
        };
        let mut exclusive = exclusive(pod, &snapshot.objects).peekable();
        if exclusive.peek().is_none() || !exclusive.any(taken) {
            return PreFiltered::Skip;
        }
        PreFiltered::Filter(Box::new(InUse))
    }
}

impl Filter for InUse {
    fn filter(&self, _node: &Node) -> Result<(), Rejection> {
        // Not beyond hope: the other pod may be less important.
        Err(Rejection::new("VolumeRestrictions", REASON))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::testing::{node, pod, running, with_pods};
    use crate::plugins::testing::verdicts;

    #[test]
    fn one_pod_at_a_time() {
        let using = |claims: &[&str]| {
            let volume = |claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}});
            json!({"volumes": claims.iter().map(volume).collect::<Vec<_>>()})
        };
        let users = [
            running("x", "n1", json!({}), using(&["alone"])),
            running("y", "n1", json!({}), using(&["shared"])),
        ];
        let mut snapshot = Snapshot::of([with_pods(node("n1", json!({})), &users), node("n2", json!({}))]);
        let objects = Arc::make_mut(&mut snapshot.objects);
        for (name, mode) in [
            ("alone", "ReadWriteOncePod"),
            ("free", "ReadWriteOncePod"),
            ("shared", "ReadWriteOnce"),
        ] {
            let claim = serde_json::from_value(json!({"spec": {"accessModes": [mode]}})).unwrap();
            objects.claims.insert(("default".into(), name.into()), Arc::new(claim));
        }
        let cases: [(&[&str], usize); 5] = [
            (&["alone"], 2),
            (&["free"], 0),
            (&["shared"], 0),
            (&["free", "alone"], 2),
            (&["alone", "free"], 2),
        ];
        for (claims, refusals) in cases {
            let verdicts = verdicts(&VolumeRestrictions, &pod("p", using(claims)), &snapshot);
            let refused = verdicts.iter().filter(|(_, verdict)| verdict.is_err()).count();
            assert_eq!(refused, refusals, "{claims:?}");
        }
        let waiting = pod("p", using(&["alone"]));
        assert!(VolumeRestrictions.hint(&waiting, &ClusterEvent::PodGone(&users[0])));
        assert!(!VolumeRestrictions.hint(&waiting, &ClusterEvent::PodGone(&users[1])));
    }
}
