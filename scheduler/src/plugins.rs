//! The plugins, one file each, under upstream's names.

mod default_binder;
mod default_preemption;
mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources_balanced_allocation;
mod node_resources_fit;
mod node_unschedulable;
mod pod_topology_spread;
mod priority_sort;
mod scheduling_gates;
mod taint_toleration;
#[cfg(test)]
pub(crate) mod testing;
mod volume_binding;
mod volume_restrictions;
mod volume_zone;

pub(crate) use default_binder::DefaultBinder;
pub(crate) use default_preemption::DefaultPreemption;
pub(crate) use image_locality::ImageLocality;
pub(crate) use inter_pod_affinity::InterPodAffinity;
pub(crate) use node_affinity::NodeAffinity;
pub(crate) use node_name::NodeName;
pub(crate) use node_ports::NodePorts;
pub(crate) use node_resources_balanced_allocation::NodeResourcesBalancedAllocation;
pub(crate) use node_resources_fit::NodeResourcesFit;
pub(crate) use node_unschedulable::NodeUnschedulable;
pub(crate) use pod_topology_spread::PodTopologySpread;
pub(crate) use priority_sort::PrioritySort;
pub(crate) use scheduling_gates::SchedulingGates;
pub(crate) use taint_toleration::TaintToleration;
pub(crate) use volume_binding::VolumeBinding;
pub(crate) use volume_restrictions::VolumeRestrictions;
pub(crate) use volume_zone::VolumeZone;
