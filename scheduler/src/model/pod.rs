//! A pod, as scheduling sees it.

use std::sync::Arc;

use skiff_api::k8s_openapi::api::core::v1 as core;
use skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use skiff_api::selector::LabelSelector;

use super::{Labels, NodeTerm, PodTerm, Preferred, Resources, merge_match_label_keys, node_terms, pod_requests};

/// A pod. What only matters while it has no node ([`Wants`]) is not kept afterwards.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Pod {
    pub(crate) uid: Arc<str>,
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) labels: Labels,
    pub(crate) resource_version: String,
    pub(crate) scheduler_name: String,
    pub(crate) node: Option<Arc<str>>,
    pub(crate) nominated_node: Option<Arc<str>>,
    pub(crate) priority: i32,
    pub(crate) terminating: bool,
    /// Succeeded or Failed: it uses nothing any more.
    pub(crate) finished: bool,
    /// Seconds since the epoch; when the kubelet took it, or when it was made.
    pub(crate) started: i64,
    pub(crate) requests: Resources,
    /// The same with a minimum for each container, for scores.
    pub(crate) scored_requests: Resources,
    pub(crate) ports: Vec<HostPort>,
    pub(crate) claims: Vec<PodClaim>,
    pub(crate) affinity: Vec<PodTerm>,
    pub(crate) preferred_affinity: Vec<Preferred<PodTerm>>,
    pub(crate) anti_affinity: Vec<PodTerm>,
    pub(crate) preferred_anti_affinity: Vec<Preferred<PodTerm>>,
    pub(crate) wants: Wants,
}

/// What a pod without a node says about the node that it wants.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Wants {
    /// It may push out others.
    pub(crate) may_preempt: bool,
    pub(crate) gates: Vec<String>,
    pub(crate) tolerations: Vec<Toleration>,
    pub(crate) node_selector: Labels,
    pub(crate) node_affinity: Option<Vec<NodeTerm>>,
    pub(crate) preferred_nodes: Vec<Preferred<NodeTerm>>,
    pub(crate) spread: Vec<SpreadConstraint>,
    pub(crate) images: Vec<String>,
    pub(crate) owner: Option<(String, String)>,
    /// Its PodScheduled condition.
    pub(crate) condition: Option<Condition>,
}

/// A claim that a pod uses, in its own namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct PodClaim {
    pub(crate) name: Arc<str>,
    /// Made for this pod alone, after a volume of its own.
    pub(crate) ephemeral: bool,
}

/// What the PodScheduled condition says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Condition {
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// A port on the node itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct HostPort {
    pub(crate) protocol: String,
    /// `0.0.0.0` for every address.
    pub(crate) ip: String,
    pub(crate) port: i32,
}

/// A taint that does not matter to the pod.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Toleration {
    pub(crate) key: String,
    pub(crate) operator: String,
    pub(crate) value: String,
    pub(crate) effect: String,
}

/// What to do where a spread constraint cannot be met.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum WhenUnsatisfiable {
    DoNotSchedule,
    ScheduleAnyway,
}

/// How evenly pods like this one are to be spread.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SpreadConstraint {
    pub(crate) topology_key: String,
    pub(crate) max_skew: i64,
    pub(crate) min_domains: i64,
    pub(crate) when: WhenUnsatisfiable,
    pub(crate) selector: LabelSelector,
    /// Nodes that its node affinity excludes do not count.
    pub(crate) honor_affinity: bool,
    /// Nodes with taints that it does not tolerate do not count.
    pub(crate) honor_taints: bool,
}

// === impl Pod ===

impl Pod {
    /// Parses what the API server sent; `None` for something without the fields that every stored pod has.
    pub(crate) fn new(pod: core::Pod) -> Option<Self> {
        let spec = pod.spec?;
        let metadata = pod.metadata;
        let status = pod.status.unwrap_or_default();
        let namespace: Arc<str> = metadata.namespace?.into();
        let labels = metadata.labels.unwrap_or_default();
        let (requests, scored_requests) = pod_requests(&spec);
        let node = spec.node_name.as_deref().filter(|name| !name.is_empty()).map(Arc::from);
        let started = status
            .start_time
            .as_ref()
            .or(metadata.creation_timestamp.as_ref())
            .map_or(0, |at| at.0.as_second());
        let claims = claims(metadata.name.as_deref().unwrap_or_default(), &spec);
        let mut parsed = Self {
            uid: metadata.uid?.into(),
            name: metadata.name?.into(),
            resource_version: metadata.resource_version.unwrap_or_default(),
            scheduler_name: spec.scheduler_name.clone().unwrap_or_default(),
            nominated_node: status
                .nominated_node_name
                .as_deref()
                .filter(|name| !name.is_empty())
                .map(Arc::from),
            priority: spec.priority.unwrap_or_default(),
            terminating: metadata.deletion_timestamp.is_some(),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            started,
            requests,
            scored_requests,
            ports: host_ports(&spec),
            claims,
            node,
            namespace,
            labels,
            ..Self::default()
        };
        parsed.parse_affinity(spec.affinity.as_ref());
        if parsed.node.is_none() {
            let condition = status
                .conditions
                .into_iter()
                .flatten()
                .find(|condition| condition.type_ == "PodScheduled");
            parsed.wants = Wants::new(
                &spec,
                &parsed.labels,
                metadata.owner_references.as_deref().unwrap_or_default(),
            );
            parsed.wants.condition = condition.map(|condition| Condition {
                status: condition.status,
                reason: condition.reason.unwrap_or_default(),
                message: condition.message.unwrap_or_default(),
            });
        }
        Some(parsed)
    }

    /// `namespace/name`.
    pub(crate) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether it is for this scheduler to find a node for it.
    pub(crate) fn is_waiting(&self, scheduler_name: &str) -> bool {
        self.node.is_none() && !self.terminating && !self.finished && self.scheduler_name == scheduler_name
    }

    /// Whether it prefers or requires anything of other pods.
    pub(crate) fn has_affinity(&self) -> bool {
        !(self.affinity.is_empty()
            && self.preferred_affinity.is_empty()
            && self.anti_affinity.is_empty()
            && self.preferred_anti_affinity.is_empty())
    }

    /// The same pod, on a node.
    pub(crate) fn bound_to(&self, node: &Arc<str>) -> Self {
        Self {
            node: Some(Arc::clone(node)),
            wants: Wants::default(),
            ..self.clone()
        }
    }

    fn parse_affinity(&mut self, affinity: Option<&core::Affinity>) {
        let Some(affinity) = affinity else { return };
        let (namespace, labels) = (Arc::clone(&self.namespace), &self.labels);
        let term = |term: &core::PodAffinityTerm| PodTerm::new(term, &namespace, labels);
        let weighted = |weighted: &core::WeightedPodAffinityTerm| Preferred {
            weight: i64::from(weighted.weight),
            term: term(&weighted.pod_affinity_term),
        };
        if let Some(pods) = &affinity.pod_affinity {
            let required = pods
                .required_during_scheduling_ignored_during_execution
                .iter()
                .flatten();
            let preferred = pods
                .preferred_during_scheduling_ignored_during_execution
                .iter()
                .flatten();
            self.affinity = required.map(term).collect();
            self.preferred_affinity = preferred.map(weighted).collect();
        }
        if let Some(pods) = &affinity.pod_anti_affinity {
            let required = pods
                .required_during_scheduling_ignored_during_execution
                .iter()
                .flatten();
            let preferred = pods
                .preferred_during_scheduling_ignored_during_execution
                .iter()
                .flatten();
            self.anti_affinity = required.map(term).collect();
            self.preferred_anti_affinity = preferred.map(weighted).collect();
        }
    }
}

// === impl Wants ===

impl Wants {
    fn new(spec: &core::PodSpec, labels: &Labels, owners: &[OwnerReference]) -> Self {
        let node_affinity = spec
            .affinity
            .as_ref()
            .and_then(|affinity| affinity.node_affinity.as_ref());
        let required =
            node_affinity.and_then(|nodes| nodes.required_during_scheduling_ignored_during_execution.as_ref());
        let preferred =
            node_affinity.and_then(|nodes| nodes.preferred_during_scheduling_ignored_during_execution.as_ref());
        let controller = owners.iter().find(|owner| owner.controller == Some(true));
        let all_containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        Self {
            may_preempt: spec.preemption_policy.as_deref() != Some("Never"),
            gates: spec
                .scheduling_gates
                .iter()
                .flatten()
                .map(|gate| gate.name.clone())
                .collect(),
            tolerations: spec.tolerations.iter().flatten().map(Toleration::new).collect(),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            node_affinity: required.map(node_terms),
            preferred_nodes: (preferred.into_iter().flatten())
                .map(|preferred| Preferred {
                    weight: i64::from(preferred.weight),
                    term: NodeTerm::new(&preferred.preference),
                })
                .collect(),
            spread: (spec.topology_spread_constraints.iter().flatten())
                .map(|constraint| SpreadConstraint::new(constraint, labels))
                .collect(),
            images: all_containers.filter_map(|container| container.image.clone()).collect(),
            owner: controller.map(|owner| (owner.kind.clone(), owner.name.clone())),
            condition: None,
        }
    }
}

impl Toleration {
    fn new(toleration: &core::Toleration) -> Self {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        Self {
            key: text(&toleration.key),
            operator: text(&toleration.operator),
            value: text(&toleration.value),
            effect: text(&toleration.effect),
        }
    }
}

impl SpreadConstraint {
    fn new(constraint: &core::TopologySpreadConstraint, labels: &Labels) -> Self {
        let keys = constraint.match_label_keys.as_deref().unwrap_or_default();
        Self {
            topology_key: constraint.topology_key.clone(),
            max_skew: i64::from(constraint.max_skew),
            min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
            when: match constraint.when_unsatisfiable.as_str() {
                "ScheduleAnyway" => WhenUnsatisfiable::ScheduleAnyway,
                _ => WhenUnsatisfiable::DoNotSchedule,
            },
            selector: merge_match_label_keys(constraint.label_selector.as_ref(), keys, &[], labels),
            honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

impl HostPort {
    /// Whether both cannot be on one node.
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        const ANY: &str = "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == ANY || other.ip == ANY)
    }
}

fn claims(pod: &str, spec: &core::PodSpec) -> Vec<PodClaim> {
    let claims = spec.volumes.iter().flatten().filter_map(|volume| {
        let named = volume.persistent_volume_claim.as_ref();
        let own = volume
            .ephemeral
            .as_ref()
            .map(|_| format!("{pod}-{}", volume.name).into());
        Some(PodClaim {
            name: named.map(|claim| claim.claim_name.as_str().into()).or(own)?,
            ephemeral: named.is_none(),
        })
    });
    claims.collect()
}

fn host_ports(spec: &core::PodSpec) -> Vec<HostPort> {
    let restartable = |container: &&core::Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(restartable);
    let ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number = port.host_port.filter(|&number| number > 0)?;
            let or = |text: &Option<String>, default: &str| match text.as_deref() {
                None | Some("") => default.to_owned(),
                Some(text) => text.to_owned(),
            };
            Some(HostPort {
                protocol: or(&port.protocol, "TCP"),
                ip: or(&port.host_ip, "0.0.0.0"),
                port: number,
            })
        })
        .collect()
}
