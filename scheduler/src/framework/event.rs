//! What happened in the cluster, as far as it may let a waiting pod in.

use crate::cache::Key;
use crate::model::{Node, Pod};

/// A change that waiting pods hear of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ClusterEvent<'a> {
    /// A node came.
    NodeAdded(&'a Node),
    /// A node is other than it was.
    NodeChanged { old: &'a Node, new: &'a Node },
    /// A node went: spreading counts one domain less.
    NodeGone(&'a Node),
    /// A pod is on a node now.
    PodPlaced(&'a Pod),
    /// A pod on a node is other than it was.
    PodChanged { old: &'a Pod, new: &'a Pod },
    /// A pod that was on a node ended or was deleted.
    PodGone(&'a Pod),
    /// A namespace's labels are other than they were.
    NamespaceChanged,
    /// A claim, by namespace and name, is other than it was.
    ClaimChanged(&'a Key),
    /// A volume came, went or is other than it was.
    VolumeChanged,
    /// A class of storage came, went or is other than it was.
    StorageClassChanged,
}

impl ClusterEvent<'_> {
    /// Upstream's name for it, in metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::NodeAdded(_) => "NodeAdd",
            Self::NodeChanged { .. } => "NodeUpdate",
            Self::NodeGone(_) => "NodeDelete",
            Self::PodPlaced(_) => "AssignedPodAdd",
            Self::PodChanged { .. } => "AssignedPodUpdate",
            Self::PodGone(_) => "AssignedPodDelete",
            Self::NamespaceChanged => "NamespaceUpdate",
            Self::ClaimChanged(_) => "PersistentVolumeClaimUpdate",
            Self::VolumeChanged => "PersistentVolumeUpdate",
            Self::StorageClassChanged => "StorageClassUpdate",
        }
    }
}
