//! Pods and nodes as scheduling sees them: parsed once when they arrive, small enough to keep all of a cluster's.

mod affinity;
mod node;
mod pod;
mod resources;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use affinity::{PodTerm, Preferred, merge_match_label_keys};
pub(crate) use node::{Effect, Node, Taint};
pub(crate) use pod::{Condition, HostPort, Pod, PodClaim, SpreadConstraint, Toleration, Wants, WhenUnsatisfiable};
pub(crate) use resources::{Resources, parse_all, pod_requests};

pub(crate) use skiff_api::selector::{NodeTerm, node_terms};

use std::collections::BTreeMap;

/// Label or selector pairs.
pub(crate) type Labels = BTreeMap<String, String>;

/// The label that holds a node's own name.
pub(crate) const HOSTNAME: &str = "kubernetes.io/hostname";
/// The label that holds a node's zone.
pub(crate) const ZONE: &str = "topology.kubernetes.io/zone";
