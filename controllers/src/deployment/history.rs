//! Which ReplicaSet is the Deployment's newest, what the others' revisions are, and what a new one looks like.

use std::cmp::Reverse;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::rollout::max_surge;
use crate::ownership::controller_reference;
use crate::view::{Deployment, ReplicaSet, View};

pub(super) const HASH_LABEL: &str = "pod-template-hash";
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of the Deployment that its ReplicaSets do not get.
const OWN_ANNOTATIONS: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.revision",
];
/// How long the list of a set's former revisions may grow.
const MAX_HISTORY_CHARS: usize = 2000;
/// Upstream's alphabet for names: no vowels, so no words.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A Deployment's sets: the one with its present template, and the rest in order of creation.
#[derive(Clone, Debug)]
pub(super) struct History {
    pub(super) new: Option<Arc<ReplicaSet>>,
    pub(super) old: Vec<Arc<ReplicaSet>>,
}

impl History {
    pub(super) fn of(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Self {
        let mut old = sets.to_vec();
        old.sort_by(|a, b| by_age(a, b));
        let same = |set: &Arc<ReplicaSet>| same_template(&set.spec.template, &deployment.spec.template);
        // Of several with the template (a collision of old) the oldest is taken, always the same one.
        let new = old.iter().position(same).map(|at| old.remove(at));
        Self { new, old }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new)
    }

    /// The revision that the newest set must carry: one more than any other's.
    pub(super) fn next_revision(&self) -> i64 {
        self.old
            .iter()
            .filter_map(|set| revision(&**set))
            .max()
            .unwrap_or_default()
            + 1
    }

    /// Old sets beyond the history limit, oldest revision first, of those that are empty and settled.
    pub(super) fn surplus(&self, limit: Option<i32>) -> Vec<Arc<ReplicaSet>> {
        let Some(limit) = limit.filter(|limit| *limit != i32::MAX) else {
            return Vec::new();
        };
        let mut sets: Vec<_> = self.old.iter().filter(|set| !set.is_being_deleted()).cloned().collect();
        let surplus = sets.len().saturating_sub(usize::try_from(limit).unwrap_or_default());
        sets.sort_by_key(|set| revision(&**set).unwrap_or_default());
        sets.truncate(surplus);
        sets.retain(|set| {
            set.status.replicas == 0
                && set.replicas() == 0
                && set.metadata.generation.unwrap_or_default() <= set.status.observed_generation.unwrap_or_default()
        });
        sets
    }
}

pub(super) fn by_age(a: &ReplicaSet, b: &ReplicaSet) -> std::cmp::Ordering {
    let age = |set: &ReplicaSet| set.metadata.creation_timestamp.clone();
    age(a).cmp(&age(b)).then_with(|| a.name().cmp(b.name()))
}

pub(super) fn revision<K: View>(object: &K) -> Option<i64> {
    object.annotation(REVISION)?.parse().ok()
}

/// Whether two pod templates make the same pods. A client that round-trips a template through typed structs, as
/// `kubectl rollout undo` does, adds empty objects and drops zeros where its types have no way to tell them from nothing.
/// The hash label that we add ourselves does not count.
pub(super) fn same_template(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let known = a.iter().all(|(key, value)| same_field(key, value, b.get(key)));
            known
                && b.iter()
                    .all(|(key, value)| a.contains_key(key) || same_field(key, value, None))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_template(a, b)),
        (a, b) => a == b,
    }
}

fn same_field(key: &str, value: &Value, other: Option<&Value>) -> bool {
    match other {
        _ if key == HASH_LABEL => true,
        Some(other) if !other.is_null() && !value.is_null() => same_template(value, other),
        other => says_nothing(key, value) && other.is_none_or(|other| says_nothing(key, other)),
    }
}

/// Whether a field with this value is the same as no field.
fn says_nothing(key: &str, value: &Value) -> bool {
    /// Empty objects that mean something: a kind of volume, and "all" where absence means "none".
    const TELLING: &[&str] = &["emptyDir", "labelSelector", "namespaceSelector"];
    /// Fields whose zero cannot be told from absence in the typed form.
    const ZERO: &[&str] = &[
        "hostIPC",
        "hostNetwork",
        "hostPID",
        "hostPort",
        "initialDelaySeconds",
        "readOnly",
        "stdin",
        "stdinOnce",
        "tty",
    ];
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => {
            !TELLING.contains(&key)
                && fields
                    .iter()
                    .all(|(key, value)| key == HASH_LABEL || says_nothing(key, value))
        }
        Value::Bool(false) => ZERO.contains(&key),
        Value::Number(number) => number.as_i64() == Some(0) && ZERO.contains(&key),
        _ => false,
    }
}

/// The hash of a template: stable over key order, and different for each collision count.
pub(super) fn template_hash(template: &Value, collision_count: Option<i32>) -> String {
    let mut hash = Fnv1a::default();
    hash.value(template);
    if let Some(count) = collision_count {
        hash.bytes(&count.to_le_bytes());
    }
    let digits = hash.0.to_string();
    digits
        .bytes()
        .map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()]))
        .collect()
}

struct Fnv1a(u32);

impl Default for Fnv1a {
    fn default() -> Self {
        Self(0x811c_9dc5)
    }
}

impl Fnv1a {
    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().filter(|(_, value)| !value.is_null()).collect();
                fields.sort_by_key(|(key, _)| key.as_str());
                self.bytes(b"{");
                for (key, value) in fields {
                    self.bytes(key.as_bytes());
                    self.bytes(b":");
                    self.value(value);
                }
                self.bytes(b"}");
            }
            Value::Array(items) => {
                self.bytes(b"[");
                items.iter().for_each(|item| self.value(item));
                self.bytes(b"]");
            }
            scalar => self.bytes(scalar.to_string().as_bytes()),
        }
        self.bytes(b",");
    }
}

/// A new ReplicaSet for the Deployment's present template.
pub(super) fn new_set(deployment: &Deployment, replicas: i32, revision: i64) -> Value {
    let hash = template_hash(&deployment.spec.template, deployment.status.collision_count);
    let mut template = (*deployment.spec.template).clone();
    template["metadata"]["labels"][HASH_LABEL] = json!(hash);
    let mut selector = json!(deployment.spec.selector);
    selector["matchLabels"][HASH_LABEL] = json!(hash);
    let mut annotations = inherited(deployment);
    annotations.insert(REVISION.into(), json!(revision.to_string()));
    annotations.extend(size_annotations(deployment));
    json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{}-{hash}", deployment.name()),
            "namespace": deployment.namespace(),
            "labels": template["metadata"]["labels"],
            "annotations": annotations,
            "ownerReferences": [controller_reference(deployment)],
        },
        "spec": {
            "replicas": replicas,
            "minReadySeconds": deployment.spec.min_ready_seconds.unwrap_or_default(),
            "selector": selector,
            "template": template,
        },
    })
}

/// The sizes that the Deployment had when it last sized a set; a difference later tells a scaling from a rollout.
pub(super) fn size_annotations(deployment: &Deployment) -> [(String, Value); 2] {
    let desired = deployment.replicas();
    let most = desired + max_surge(deployment);
    [
        (DESIRED_REPLICAS.into(), json!(desired.to_string())),
        (MAX_REPLICAS.into(), json!(most.to_string())),
    ]
}

fn inherited(deployment: &Deployment) -> Map<String, Value> {
    let annotations = deployment.metadata.annotations.iter().flatten();
    annotations
        .filter(|(key, _)| !OWN_ANNOTATIONS.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect()
}

/// What to change in the newest set so that it carries the Deployment's annotations, revision and minReadySeconds.
pub(super) fn new_set_patch(deployment: &Deployment, set: &ReplicaSet, next_revision: i64) -> Option<Value> {
    let mut annotations = inherited(deployment);
    annotations.retain(|key, value| set.annotation(key) != value.as_str());
    let has = set.annotation(REVISION).unwrap_or_default();
    let present = if has.is_empty() {
        Some(0)
    } else {
        has.parse::<i64>().ok()
    };
    if present.is_some_and(|present| present < next_revision) {
        annotations.insert(REVISION.into(), json!(next_revision.to_string()));
        if !has.is_empty() {
            // A rollback: the set takes a new number and remembers the old one.
            annotations.insert(
                REVISION_HISTORY.into(),
                json!(with_revision(set.annotation(REVISION_HISTORY), has)),
            );
        }
    }
    let min_ready = deployment.spec.min_ready_seconds.unwrap_or_default();
    let mut patch = json!({});
    if !annotations.is_empty() {
        patch["metadata"]["annotations"] = Value::Object(annotations);
    }
    if set.spec.min_ready_seconds.unwrap_or_default() != min_ready {
        patch["spec"]["minReadySeconds"] = json!(min_ready);
    }
    (patch != json!({})).then_some(patch)
}

fn with_revision(history: Option<&str>, revision: &str) -> String {
    let mut revisions: Vec<&str> = history
        .unwrap_or_default()
        .split(',')
        .filter(|part| !part.is_empty())
        .collect();
    revisions.push(revision);
    while revisions.len() > 1 && revisions.iter().map(|part| part.len() + 1).sum::<usize>() - 1 > MAX_HISTORY_CHARS {
        revisions.remove(0);
    }
    revisions.join(",")
}

/// Newest first, for whom only one set matters.
pub(super) fn newest_first(sets: &mut [Arc<ReplicaSet>]) {
    sets.sort_by_key(|set| Reverse(set.metadata.creation_timestamp.clone()));
}

#[cfg(test)]
mod tests {
    use super::super::tests::{deployment, set};
    use super::*;

    #[test]
    fn templates_are_compared_by_meaning() {
        let base = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "a"}], "volumes": [{"emptyDir": {}}]}});
        let mut hashed = base.clone();
        hashed["metadata"]["labels"][HASH_LABEL] = json!("abc");
        hashed["metadata"]["creationTimestamp"] = Value::Null;
        hashed["spec"]["tolerations"] = json!([]);
        hashed["spec"]["containers"][0]["resources"] = json!({});
        hashed["spec"]["hostNetwork"] = json!(false);
        assert!(same_template(&base, &hashed) && same_template(&hashed, &base));
        for (pointer, value) in [
            ("/spec/containers/0/image", json!("b")),
            ("/spec/containers", json!([])),
            ("/metadata/labels/app", json!("x")),
            ("/spec/volumes/0", json!({})),
            (
                "/spec",
                json!({"automountServiceAccountToken": false, "containers": [{"name": "c", "image": "a"}], "volumes": [{"emptyDir": {}}]}),
            ),
        ] {
            let mut other = base.clone();
            *other.pointer_mut(pointer).unwrap() = value;
            assert!(
                !same_template(&base, &other) && !same_template(&other, &base),
                "{pointer}"
            );
        }
    }

    #[test]
    fn the_hash_is_stable_and_avoids_collisions() {
        let a: Value = serde_json::from_str(r#"{"b": 1, "a": {"d": [1, 2], "c": null}}"#).unwrap();
        let b: Value = serde_json::from_str(r#"{"a": {"d": [1, 2]}, "b": 1}"#).unwrap();
        assert_eq!(template_hash(&a, None), template_hash(&b, None));
        assert_ne!(template_hash(&a, None), template_hash(&a, Some(1)));
        assert!(template_hash(&a, None).bytes().all(|byte| ALPHABET.contains(&byte)));
    }

    #[test]
    fn the_newest_set_is_the_one_with_the_template() {
        let deployment = deployment(json!({}));
        let sets = [set("web-1", 0, json!({"image": "old"})), set("web-2", 0, json!({}))];
        let history = History::of(&deployment, &sets.map(Arc::new));
        assert_eq!(history.new.unwrap().name(), "web-2");
        assert_eq!(history.old.len(), 1);
    }

    #[test]
    fn a_rollback_takes_a_new_revision_and_remembers_the_old() {
        let deployment = deployment(json!({}));
        let mut old = set("web-1", 0, json!({}));
        old.metadata.annotations = Some([(REVISION.to_owned(), "1".to_owned())].into());
        let patch = new_set_patch(&deployment, &old, 3).unwrap();
        assert_eq!(patch["metadata"]["annotations"][REVISION], "3");
        assert_eq!(patch["metadata"]["annotations"][REVISION_HISTORY], "1");
        assert_eq!(new_set_patch(&deployment, &old, 1), None, "nothing to change");
        assert_eq!(with_revision(Some("1,4"), "7"), "1,4,7");
        let long = vec!["1000"; 400].join(",");
        assert!(with_revision(Some(&long), "1001").len() <= MAX_HISTORY_CHARS);
    }

    #[test]
    fn only_settled_old_sets_beyond_the_limit_go() {
        let mut busy = set("web-0", 1, json!({"image": "0"}));
        busy.metadata.annotations = Some([(REVISION.to_owned(), "1".to_owned())].into());
        let mut sets = vec![Arc::new(busy)];
        for revision in 2..5 {
            let mut old = set(&format!("web-{revision}"), 0, json!({"image": revision.to_string()}));
            old.metadata.annotations = Some([(REVISION.to_owned(), revision.to_string())].into());
            sets.push(Arc::new(old));
        }
        let history = History::of(&deployment(json!({})), &sets);
        let names = |limit| {
            history
                .surplus(limit)
                .iter()
                .map(|set| set.name().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(Some(2)), ["web-2"], "the busy one is among the surplus but stays");
        assert_eq!(names(Some(0)), ["web-2", "web-3", "web-4"]);
        assert!(names(None).is_empty());
    }

    #[test]
    fn a_new_set_carries_hash_owner_and_sizes() {
        let deployment = deployment(json!({"metadata": {"annotations": {"note": "x", REVISION: "7"}}}));
        let body = new_set(&deployment, 2, 5);
        let hash = body["spec"]["template"]["metadata"]["labels"][HASH_LABEL]
            .as_str()
            .unwrap();
        assert_eq!(body["metadata"]["name"], format!("web-{hash}"));
        assert_eq!(
            body["spec"]["selector"]["matchLabels"],
            json!({"app": "web", HASH_LABEL: hash})
        );
        assert_eq!(body["metadata"]["labels"][HASH_LABEL], hash);
        assert_eq!(
            body["metadata"]["annotations"],
            json!({"note": "x", REVISION: "5", DESIRED_REPLICAS: "10", MAX_REPLICAS: "13"})
        );
        assert_eq!(body["metadata"]["ownerReferences"][0]["controller"], true);
    }
}
