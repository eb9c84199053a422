//! The strategy that most kinds share: data says which parts a kind has.

use serde_json::{Map, Value};
use skiff_api::{field, validation};

use super::{Context, Propagation, Scale, Strategy, scale};

/// Which metadata an update of the `status` subresource leaves as it was. The specification always stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// The kind has no status.
    None,
    /// Metadata may change along.
    Plain,
    /// Labels stay.
    KeepLabels,
    /// All of the metadata that users own stays.
    KeepMetadata,
}

/// A strategy made of facts.
#[derive(Debug)]
pub struct Generic {
    /// Top-level fields (or `metadata.annotations`) whose change makes a new generation; `None` when the kind has no generation.
    pub(super) generation: Option<&'static [&'static str]>,
    pub(super) status: Status,
    /// Phase of a new object.
    pub(super) first_phase: Option<&'static str>,
    /// Counters that a status always shows, from the start.
    pub(super) counters: &'static [&'static str],
    pub(super) fields: &'static [&'static str],
    pub(super) scale: Option<&'static Scale>,
    pub(super) propagation: Propagation,
    pub(super) unconditional_update: bool,
    pub(super) create_on_update: bool,
}

const PLAIN: Generic = Generic {
    generation: None,
    status: Status::None,
    first_phase: None,
    counters: &[],
    fields: &[],
    scale: None,
    propagation: Propagation::Background,
    unconditional_update: true,
    create_on_update: false,
};
const SPEC: Option<&[&str]> = Some(&["spec"]);
const WORKLOAD: Generic = Generic {
    generation: SPEC,
    status: Status::Plain,
    ..PLAIN
};

static DEFAULT: Generic = PLAIN;
static WITH_STATUS: Generic = Generic {
    status: Status::Plain,
    ..PLAIN
};
pub(super) static VOLUME: Generic = Generic {
    status: Status::Plain,
    first_phase: Some("Pending"),
    ..PLAIN
};
static UPSERT: Generic = Generic {
    create_on_update: true,
    ..PLAIN
};
static CONDITIONAL: Generic = Generic {
    unconditional_update: false,
    ..PLAIN
};
static LEASE: Generic = Generic {
    create_on_update: true,
    unconditional_update: false,
    ..PLAIN
};
static DEPLOYMENT: Generic = Generic {
    generation: Some(&["spec", "metadata.annotations"]),
    status: Status::KeepLabels,
    scale: Some(&scale::SELECTOR),
    ..PLAIN
};
static REPLICA_SET: Generic = Generic {
    counters: &["replicas"],
    fields: &["status.replicas"],
    scale: Some(&scale::SELECTOR),
    ..WORKLOAD
};
static REPLICATION_CONTROLLER: Generic = Generic {
    counters: &["replicas"],
    fields: &["status.replicas"],
    scale: Some(&scale::LABELS),
    propagation: Propagation::Orphan,
    ..WORKLOAD
};
static STATEFUL_SET: Generic = Generic {
    counters: &["replicas", "availableReplicas"],
    scale: Some(&scale::SELECTOR),
    ..WORKLOAD
};
static WITH_GENERATION: Generic = Generic {
    generation: SPEC,
    ..PLAIN
};
static SPEC_AND_STATUS: Generic = WORKLOAD;
static DAEMON_SET: Generic = Generic {
    counters: &[
        "currentNumberScheduled",
        "desiredNumberScheduled",
        "numberMisscheduled",
        "numberReady",
    ],
    ..WORKLOAD
};
static DISRUPTION_BUDGET: Generic = Generic {
    counters: &["currentHealthy", "desiredHealthy", "disruptionsAllowed", "expectedPods"],
    unconditional_update: false,
    ..WORKLOAD
};
pub(super) static DEFINITION: Generic = Generic {
    status: Status::KeepMetadata,
    unconditional_update: false,
    ..WORKLOAD
};
static ATTACHMENT: Generic = Generic {
    status: Status::KeepMetadata,
    unconditional_update: false,
    ..PLAIN
};
static WEBHOOKS: Generic = Generic {
    generation: Some(&["webhooks"]),
    unconditional_update: false,
    ..PLAIN
};
static ENDPOINT_SLICE: Generic = Generic {
    generation: Some(&["endpoints", "ports", "metadata.labels"]),
    ..PLAIN
};
static FIRST_GENERATION: Generic = Generic {
    generation: Some(&[]),
    ..PLAIN
};

/// The facts of a resource that needs no code of its own.
pub(super) fn lookup(group: &str, plural: &str) -> &'static Generic {
    match (group, plural) {
        ("apps", "deployments") => &DEPLOYMENT,
        ("apps", "replicasets") => &REPLICA_SET,
        ("apps", "statefulsets") => &STATEFUL_SET,
        ("apps", "daemonsets") => &DAEMON_SET,
        ("batch", "cronjobs") | ("networking.k8s.io", "ingresses") => &SPEC_AND_STATUS,
        ("", "replicationcontrollers") => &REPLICATION_CONTROLLER,
        ("", "persistentvolumes" | "persistentvolumeclaims") => &VOLUME,
        ("", "resourcequotas")
        | ("autoscaling", "horizontalpodautoscalers")
        | ("networking.k8s.io", "servicecidrs") => &WITH_STATUS,
        ("", "endpoints" | "limitranges")
        | ("rbac.authorization.k8s.io", "roles" | "clusterroles" | "rolebindings" | "clusterrolebindings") => &UPSERT,
        ("coordination.k8s.io", "leases") => &LEASE,
        ("policy", "poddisruptionbudgets") => &DISRUPTION_BUDGET,
        ("networking.k8s.io", "networkpolicies" | "ingressclasses")
        | ("admissionregistration.k8s.io", "validatingadmissionpolicybindings" | "mutatingadmissionpolicybindings") => {
            &WITH_GENERATION
        }
        ("admissionregistration.k8s.io", "validatingadmissionpolicies" | "mutatingadmissionpolicies") => &DEFINITION,
        ("storage.k8s.io", "volumeattachments") => &ATTACHMENT,
        ("storage.k8s.io", "csidrivers" | "csinodes") | ("node.k8s.io", "runtimeclasses") => &CONDITIONAL,
        ("admissionregistration.k8s.io", "validatingwebhookconfigurations" | "mutatingwebhookconfigurations") => {
            &WEBHOOKS
        }
        ("discovery.k8s.io", "endpointslices") => &ENDPOINT_SLICE,
        ("scheduling.k8s.io", "priorityclasses") => &FIRST_GENERATION,
        _ => &DEFAULT,
    }
}

impl Strategy for Generic {
    fn prepare_create(&self, object: &mut Value, _context: &Context<'_>) {
        if self.status != Status::None {
            reset_status(object, self.first_phase);
            for counter in self.counters {
                object["status"][counter] = 0.into();
            }
        }
        if self.generation.is_some() {
            set_generation(object, 1);
        }
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, subresource: Option<&str>) {
        if subresource == Some("status") {
            keep_all_but_status(new, old, self.status);
        } else if self.status != Status::None {
            keep(new, old, "status");
        }
        if let Some(paths) = self.generation {
            carry_generation(new, old, paths);
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<field::Error> {
        validate_create(object)
    }

    fn validate_update(&self, new: &Value, old: &Value, subresource: Option<&str>) -> Vec<field::Error> {
        validate_update(new, old, subresource)
    }

    fn fields(&self) -> &'static [&'static str] {
        self.fields
    }

    fn default_propagation(&self) -> Propagation {
        self.propagation
    }

    fn scale(&self) -> Option<&'static Scale> {
        self.scale
    }

    fn allow_unconditional_update(&self) -> bool {
        self.unconditional_update
    }

    fn allow_create_on_update(&self) -> bool {
        self.create_on_update
    }
}

/// Group, version and kind out of the object itself; the registry has set them before any strategy runs.
fn type_of(object: &Value) -> (&str, &str, &str) {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
    (group, version, text("kind"))
}

pub(super) fn validate_create(object: &Value) -> Vec<field::Error> {
    let (group, version, kind) = type_of(object);
    validation::validate_create(group, version, kind, object)
}

pub(super) fn validate_update(new: &Value, old: &Value, subresource: Option<&str>) -> Vec<field::Error> {
    let (group, version, kind) = type_of(new);
    validation::validate_update(group, version, kind, new, old, subresource)
}

/// Value at a dotted path; `None` unless the path is selectable.
pub(super) fn field(supported: &[&str], object: &Value, path: &str) -> Option<String> {
    let always = matches!(path, "metadata.name" | "metadata.namespace");
    (always || supported.contains(&path)).then(|| match text_at(object, path) {
        // A count that nobody has set is none, not unknown.
        unset if unset.is_empty() && path == "status.replicas" => "0".to_owned(),
        text => text,
    })
}

/// Text of the scalar at a dotted path, empty when it is unset.
pub(super) fn text_at(object: &Value, path: &str) -> String {
    match at(object, path) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => flag.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}

pub(super) fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.')
        .try_fold(object, |value, key| value.get(key))
        .filter(|value| !value.is_null())
}

/// Puts `old`'s top-level field into `new`, or removes it where `old` has none.
pub(super) fn keep(new: &mut Value, old: &Value, key: &str) {
    let Some(new) = new.as_object_mut() else { return };
    match old.get(key) {
        Some(value) => {
            new.insert(key.to_owned(), value.clone());
        }
        None => {
            new.remove(key);
        }
    }
}

/// As [`keep`], for a field of `metadata`.
pub(super) fn keep_metadata(new: &mut Value, old: &Value, key: &str) {
    if let (Some(new), Some(old)) = (new.get_mut("metadata"), old.get("metadata")) {
        keep(new, old, key);
    }
}

pub(super) fn reset_status(object: &mut Value, phase: Option<&str>) {
    let Some(object) = object.as_object_mut() else { return };
    let mut status = Map::new();
    if let Some(phase) = phase {
        status.insert("phase".to_owned(), phase.into());
    }
    object.insert("status".to_owned(), Value::Object(status));
}

/// A status update: all but the status comes back from the stored object, and metadata as far as the kind says.
pub(super) fn keep_all_but_status(new: &mut Value, old: &Value, split: Status) {
    if let (Some(fields), Some(stored)) = (new.as_object_mut(), old.as_object()) {
        fields.retain(|key, _| matches!(key.as_str(), "metadata" | "status" | "apiVersion" | "kind"));
        for (key, value) in stored {
            if !matches!(key.as_str(), "metadata" | "status" | "apiVersion" | "kind") {
                fields.insert(key.clone(), value.clone());
            }
        }
    }
    let kept: &[&str] = match split {
        Status::None | Status::Plain => &[],
        Status::KeepLabels => &["labels"],
        Status::KeepMetadata => &[
            "labels",
            "annotations",
            "finalizers",
            "ownerReferences",
            "deletionTimestamp",
            "generation",
        ],
    };
    for key in kept {
        keep_metadata(new, old, key);
    }
}

pub(super) fn generation(object: &Value) -> i64 {
    object
        .pointer("/metadata/generation")
        .and_then(Value::as_i64)
        .unwrap_or(0)
}

pub(super) fn set_generation(object: &mut Value, generation: i64) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("generation".to_owned(), generation.into());
    }
}

/// The stored generation, one higher when one of `paths` changed.
pub(super) fn carry_generation(new: &mut Value, old: &Value, paths: &[&str]) {
    let changed = paths.iter().any(|path| at(new, path) != at(old, path));
    set_generation(new, generation(old) + i64::from(changed));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment() -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment",
               "metadata": {"name": "d", "labels": {"a": "b"}, "generation": 3},
               "spec": {"replicas": 1}, "status": {"replicas": 1}})
    }

    #[test]
    fn create_starts_without_status() {
        let mut object = deployment();
        DEPLOYMENT.prepare_create(&mut object, &Context::default());
        assert_eq!(object["status"], json!({}));
        assert_eq!(object["metadata"]["generation"], 1);
    }

    #[test]
    fn main_update_keeps_status_and_counts_generations() {
        let old = deployment();
        let mut new = old.clone();
        new["spec"]["replicas"] = 5.into();
        new["status"] = json!({"replicas": 9});
        new["metadata"]["generation"] = 77.into();
        DEPLOYMENT.prepare_update(&mut new, &old, None);
        assert_eq!(new["status"], old["status"]);
        assert_eq!(new["metadata"]["generation"], 4);

        let mut same = old.clone();
        DEPLOYMENT.prepare_update(&mut same, &old, None);
        assert_eq!(same["metadata"]["generation"], 3);

        let mut annotated = old.clone();
        annotated["metadata"]["annotations"] = json!({"x": "y"});
        DEPLOYMENT.prepare_update(&mut annotated, &old, None);
        assert_eq!(annotated["metadata"]["generation"], 4);
    }

    #[test]
    fn status_update_changes_only_status() {
        let old = deployment();
        let mut new = old.clone();
        new["spec"]["replicas"] = 5.into();
        new["status"] = json!({"replicas": 9});
        new["metadata"]["labels"] = json!({"c": "d"});
        DEPLOYMENT.prepare_update(&mut new, &old, Some("status"));
        assert_eq!(new["spec"], old["spec"]);
        assert_eq!(new["status"], json!({"replicas": 9}));
        assert_eq!(new["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!(new["metadata"]["generation"], 3);
    }

    #[test]
    fn only_named_fields_are_selectable() {
        let object = json!({"metadata": {"name": "r"}, "status": {"replicas": 2}});
        assert_eq!(REPLICA_SET.field(&object, "metadata.name").as_deref(), Some("r"));
        assert_eq!(REPLICA_SET.field(&object, "metadata.namespace").as_deref(), Some(""));
        assert_eq!(REPLICA_SET.field(&object, "status.replicas").as_deref(), Some("2"));
        assert_eq!(REPLICA_SET.field(&object, "spec.replicas"), None);
    }
}
