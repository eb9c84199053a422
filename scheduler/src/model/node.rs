//! A node, as scheduling sees it, with the pods on it.

use std::collections::HashMap;
use std::sync::Arc;

use skiff_api::k8s_openapi::api::core::v1 as core;
use skiff_api::quantity::Quantity;

use super::{Labels, Pod, Resources, Toleration, parse_all};

/// What a taint does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Effect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

/// Keeps pods away that do not tolerate it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Taint {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) effect: Effect,
}

/// A node. The sums are kept up to date as pods come and go.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Node {
    pub(crate) name: Arc<str>,
    pub(crate) labels: Labels,
    pub(crate) taints: Vec<Taint>,
    pub(crate) unschedulable: bool,
    pub(crate) allocatable: Resources,
    pub(crate) allowed_pods: i64,
    /// Bytes of each image on it, by each of its names.
    pub(crate) images: HashMap<String, i64>,
    pub(crate) pods: Vec<Arc<Pod>>,
    pub(crate) requested: Resources,
    pub(crate) scored_requested: Resources,
    /// Pods on it that want something of other pods.
    pub(crate) with_affinity: usize,
    /// Pods on it that keep others away.
    pub(crate) with_anti_affinity: usize,
    /// Ports in use on the node itself.
    pub(crate) with_ports: usize,
}

// === impl Node ===

impl Node {
    /// Parses what the API server sent, without pods.
    pub(crate) fn new(node: core::Node) -> Option<Self> {
        let spec = node.spec.unwrap_or_default();
        let status = node.status.unwrap_or_default();
        // A kubelet that does not say what can be allocated says what there is.
        let allocatable = status.allocatable.as_ref().or(status.capacity.as_ref());
        let allowed_pods = allocatable
            .and_then(|list| list.get("pods"))
            .and_then(|text| text.0.parse::<Quantity>().ok());
        let mut images = HashMap::new();
        for image in status.images.into_iter().flatten() {
            for name in image.names.into_iter().flatten() {
                images.insert(name, image.size_bytes.unwrap_or_default());
            }
        }
        Some(Self {
            name: node.metadata.name?.into(),
            labels: node.metadata.labels.unwrap_or_default(),
            taints: spec.taints.into_iter().flatten().filter_map(Taint::new).collect(),
            unschedulable: spec.unschedulable.unwrap_or_default(),
            allocatable: parse_all(allocatable),
            allowed_pods: allowed_pods.map_or(0, |amount| i64::try_from(amount.value()).unwrap_or(i64::MAX)),
            images,
            ..Self::default()
        })
    }

    /// Takes over what the API server says of it, keeping its pods; whether anything changed.
    pub(crate) fn update(&mut self, from: Self) -> bool {
        let changed = self.differs(&from);
        self.labels = from.labels;
        self.taints = from.taints;
        self.unschedulable = from.unschedulable;
        self.allocatable = from.allocatable;
        self.allowed_pods = from.allowed_pods;
        self.images = from.images;
        changed
    }

    /// Whether a difference could let a pod in; images only make it better.
    pub(crate) fn differs(&self, other: &Self) -> bool {
        self.labels != other.labels
            || self.taints != other.taints
            || self.unschedulable != other.unschedulable
            || self.allocatable != other.allocatable
            || self.allowed_pods != other.allowed_pods
    }

    pub(crate) fn add_pod(&mut self, pod: Arc<Pod>) {
        self.requested.add(&pod.requests);
        self.scored_requested.add(&pod.scored_requests);
        self.with_affinity += usize::from(pod.has_affinity());
        self.with_anti_affinity += usize::from(!pod.anti_affinity.is_empty());
        self.with_ports += usize::from(!pod.ports.is_empty());
        self.pods.push(pod);
    }

    /// Whether it was there.
    pub(crate) fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(position) = self.pods.iter().position(|pod| &*pod.uid == uid) else {
            return false;
        };
        let pod = self.pods.swap_remove(position);
        self.requested.subtract(&pod.requests);
        self.scored_requested.subtract(&pod.scored_requests);
        self.with_affinity -= usize::from(pod.has_affinity());
        self.with_anti_affinity -= usize::from(!pod.anti_affinity.is_empty());
        self.with_ports -= usize::from(!pod.ports.is_empty());
        true
    }

    /// The first taint that keeps a pod with these tolerations from being scheduled here.
    pub(crate) fn untolerated_taint(&self, tolerations: &[Toleration]) -> Option<&Taint> {
        let keeps_out = |taint: &&Taint| taint.effect != Effect::PreferNoSchedule;
        self.taints
            .iter()
            .filter(keeps_out)
            .find(|taint| !taint.is_tolerated(tolerations))
    }
}

// === impl Taint ===

impl Taint {
    fn new(taint: core::Taint) -> Option<Self> {
        let effect = match taint.effect.as_str() {
            "NoSchedule" => Effect::NoSchedule,
            "PreferNoSchedule" => Effect::PreferNoSchedule,
            "NoExecute" => Effect::NoExecute,
            _ => return None,
        };
        Some(Self {
            key: taint.key,
            value: taint.value.unwrap_or_default(),
            effect,
        })
    }

    pub(crate) fn is_tolerated<'a>(&self, tolerations: impl IntoIterator<Item = &'a Toleration>) -> bool {
        tolerations
            .into_iter()
            .any(|toleration| self.is_tolerated_by(toleration))
    }

    fn is_tolerated_by(&self, toleration: &Toleration) -> bool {
        if !toleration.effect.is_empty() && toleration.effect != self.effect.name() {
            return false;
        }
        if !toleration.key.is_empty() && toleration.key != self.key {
            return false;
        }
        let number = |text: &str| text.parse::<i64>().ok();
        let compare = |wanted: fn(i64, i64) -> bool| {
            number(&self.value)
                .zip(number(&toleration.value))
                .is_some_and(|(taint, bound)| wanted(taint, bound))
        };
        match toleration.operator.as_str() {
            // An empty key is for Exists only, which the API server checks.
            "" | "Equal" => toleration.value == self.value,
            "Exists" => true,
            "Lt" => compare(|taint, bound| taint < bound),
            "Gt" => compare(|taint, bound| taint > bound),
            _ => false,
        }
    }
}

impl Effect {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NoSchedule => "NoSchedule",
            Self::PreferNoSchedule => "PreferNoSchedule",
            Self::NoExecute => "NoExecute",
        }
    }
}
