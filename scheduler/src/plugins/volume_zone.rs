//! VolumeZone: a volume that is labelled with a zone or region is for nodes there.

use std::sync::Arc;

use crate::cache::Snapshot;
use crate::framework::{ClusterEvent, Filter, Plugin, PreFilter, PreFiltered, Rejection};
use crate::model::{Node, Pod};

/// Labels of volumes and nodes that have to agree.
const TOPOLOGY: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];
/// Between the zones of a volume that is in several.
const SEPARATOR: &str = "__";

/// Refuses nodes outside of the zones of the pod's volumes.
#[derive(Debug)]
pub(crate) struct VolumeZone;

/// Label and value of each volume.
struct Zones<'a>(Vec<(&'static str, &'a str)>);

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn hint(&self, pod: &Pod, event: &ClusterEvent<'_>) -> bool {
        let concerned = matches!(
            event,
            ClusterEvent::NodeAdded(_)
                | ClusterEvent::NodeChanged { .. }
                | ClusterEvent::ClaimChanged(_)
                | ClusterEvent::VolumeChanged
        );
        concerned && !pod.claims.is_empty()
    }
}

impl PreFilter for VolumeZone {
    fn pre_filter<'a>(&'a self, pod: &'a Pod, snapshot: &'a Snapshot) -> PreFiltered<'a> {
        let objects = &snapshot.objects;
        let mut zones = Vec::new();
        for claim in &pod.claims {
            let key = (Arc::clone(&pod.namespace), Arc::clone(&claim.name));
            let volume = objects
                .claims
                .get(&key)
                .and_then(|claim| claim.spec.as_ref()?.volume_name.as_deref());
            let labels = volume
                .and_then(|name| objects.volumes.get(name))
                .and_then(|volume| volume.metadata.labels.as_ref());
            let Some(labels) = labels else { continue };
            zones.extend(
                TOPOLOGY
                    .into_iter()
                    .filter_map(|key| Some((key, labels.get(key)?.as_str()))),
            );
        }
        if zones.is_empty() {
            return PreFiltered::Skip;
        }
        PreFiltered::Filter(Box::new(Zones(zones)))
    }
}

impl Filter for Zones<'_> {
    fn filter(&self, node: &Node) -> Result<(), Rejection> {
        // A node that says nothing of zones is in a cluster without any.
        if !TOPOLOGY.iter().any(|key| node.labels.contains_key(*key)) {
            return Ok(());
        }
        let fits = self.0.iter().all(|(key, zones)| {
            let place = node.labels.get(*key);
            place.is_some_and(|place| zones.split(SEPARATOR).any(|zone| zone == place))
        });
        if fits {
            return Ok(());
        }
        Err(Rejection::unresolvable(
            "VolumeZone",
            "node(s) had no available volume zone",
        ))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::testing::{node, pod};
    use crate::plugins::testing::feasible;

    #[test]
    fn volumes_stay_in_their_zones() {
        let zone = |zone: &str| json!({"topology.kubernetes.io/zone": zone});
        let mut snapshot = Snapshot::of([
            node("a", zone("a")),
            node("b", zone("b")),
            node("c", zone("c")),
            node("nowhere", json!({})),
        ]);
        let objects = Arc::make_mut(&mut snapshot.objects);
        let claim = serde_json::from_value(json!({"spec": {"volumeName": "v"}})).unwrap();
        objects
            .claims
            .insert(("default".into(), "data".into()), Arc::new(claim));
        let volume = json!({"metadata": {"name": "v", "labels": {"topology.kubernetes.io/zone": "a__b"}}});
        let volume = serde_json::from_value(volume).unwrap();
        objects.volumes.insert("v".into(), Arc::new(volume));
        let user = pod(
            "p",
            json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}),
        );
        assert_eq!(feasible(&VolumeZone, &user, &snapshot), ["a", "b", "nowhere"]);
        assert_eq!(feasible(&VolumeZone, &pod("p", json!({})), &snapshot).len(), 4);
    }
}
