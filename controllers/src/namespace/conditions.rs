//! What the conditions of a namespace say about its deletion, in upstream's words.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::core::v1::NamespaceCondition;
use skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::discovery::Kind;

/// How long to expect for content that does not say how long it takes.
const DEFAULT_ESTIMATE: u64 = 15;

/// What an attempt to empty a namespace found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) stale_groups: Vec<String>,
    pub(super) failures: Vec<String>,
    /// Seconds until what remains should be gone; none when nothing remains.
    pub(super) estimate: Option<u64>,
    remaining: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
}

impl Found {
    pub(super) fn new(stale_groups: Vec<String>) -> Self {
        Self {
            stale_groups,
            ..Self::default()
        }
    }

    pub(super) fn remains(&mut self, kind: &Kind, meta: &ObjectMeta) {
        *self
            .remaining
            .entry(format!("{}.{}", kind.plural, kind.group))
            .or_default() += 1;
        for finalizer in meta.finalizers.iter().flatten() {
            *self.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
        let is_pod = kind.group.is_empty() && kind.plural == "pods";
        let grace = meta
            .deletion_grace_period_seconds
            .filter(|_| is_pod)
            .and_then(|grace| u64::try_from(grace).ok());
        self.estimate = self.estimate.max(Some(grace.unwrap_or(DEFAULT_ESTIMATE)));
    }

    pub(super) fn is_clean(&self) -> bool {
        self.stale_groups.is_empty() && self.failures.is_empty() && self.estimate.is_none()
    }
}

/// One condition.
struct Row {
    type_: &'static str,
    /// Reason and message, when something is wrong.
    problem: Option<(&'static str, String)>,
    /// Reason and message otherwise.
    well: (&'static str, &'static str),
}

/// The new conditions, if they differ.
pub(super) fn conditions(
    before: &BTreeMap<&str, &NamespaceCondition>,
    found: &Found,
    now: Timestamp,
) -> Option<Vec<Value>> {
    let mut changed = false;
    let conditions = rows(found).map(|row| {
        let (status, reason, message) = match row.problem {
            Some((reason, message)) => ("True", reason, message),
            None => ("False", row.well.0, row.well.1.to_owned()),
        };
        let old = before.get(row.type_).filter(|old| old.status == status);
        changed |= !old.is_some_and(|old| {
            old.reason.as_deref() == Some(reason) && old.message.as_deref() == Some(message.as_str())
        });
        let since = old.and_then(|old| old.last_transition_time.clone());
        let since = since.unwrap_or_else(|| Time(now.round(jiff::Unit::Second).unwrap_or(now)));
        json!({"type": row.type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": since})
    });
    changed.then(|| conditions.into())
}

fn rows(found: &Found) -> [Row; 5] {
    [
        Row {
            type_: "NamespaceDeletionDiscoveryFailure",
            problem: discovery(&found.stale_groups),
            well: ("ResourcesDiscovered", "All resources successfully discovered"),
        },
        Row {
            type_: "NamespaceDeletionGroupVersionParsingFailure",
            problem: None,
            well: ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        },
        Row {
            type_: "NamespaceDeletionContentFailure",
            problem: content(&found.failures),
            well: (
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
        },
        Row {
            type_: "NamespaceContentRemaining",
            problem: listed(&found.remaining, "has").map(|list| {
                let message = format!("Some resources are remaining: {list}");
                ("SomeResourcesRemain", message)
            }),
            well: ("ContentRemoved", "All content successfully removed"),
        },
        Row {
            type_: "NamespaceFinalizersRemaining",
            problem: listed(&found.finalizers, "in").map(|list| {
                let message = format!("Some content in the namespace has finalizers remaining: {list}");
                ("SomeFinalizersRemain", message)
            }),
            well: ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        },
    ]
}

fn discovery(stale: &[String]) -> Option<(&'static str, String)> {
    let (count, list) = (stale.len(), stale.join(", "));
    let message = format!("Discovery failed for some groups, {count} failing: {list}");
    (count > 0).then_some(("DiscoveryFailed", message))
}

fn content(failures: &[String]) -> Option<(&'static str, String)> {
    let (count, list) = (failures.len(), failures.join(", "));
    let message = format!("Failed to delete all resource types, {count} remaining: {list}");
    (count > 0).then_some(("ContentDeletionFailed", message))
}

/// How many of each; `None` of nothing.
fn listed(counts: &BTreeMap<String, usize>, middle: &str) -> Option<String> {
    let parts = counts
        .iter()
        .map(|(name, count)| format!("{name} {middle} {count} resource instances"));
    (!counts.is_empty()).then(|| parts.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(plural: &str, group: &str) -> Kind {
        Kind {
            group: group.into(),
            version: "v1".into(),
            kind: String::new(),
            plural: plural.into(),
            namespaced: true,
            verbs: vec![],
        }
    }

    #[test]
    fn what_remains_is_named() {
        let mut found = Found::default();
        let pod: ObjectMeta =
            serde_json::from_value(json!({"deletionGracePeriodSeconds": 30, "finalizers": ["a/b"]})).unwrap();
        found.remains(&kind("pods", ""), &pod);
        found.remains(&kind("pods", ""), &ObjectMeta::default());
        found.remains(&kind("deployments", "apps"), &ObjectMeta::default());
        assert_eq!(found.estimate, Some(30));
        let conditions = conditions(&BTreeMap::new(), &found, Timestamp::UNIX_EPOCH).unwrap();
        let message = |type_: &str| {
            conditions.iter().find(|c| c["type"] == type_).unwrap()["message"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(
            message("NamespaceContentRemaining"),
            "Some resources are remaining: deployments.apps has 1 resource instances, pods. has 2 resource instances"
        );
        assert_eq!(
            message("NamespaceFinalizersRemaining"),
            "Some content in the namespace has finalizers remaining: a/b in 1 resource instances"
        );
        assert_eq!(
            message("NamespaceDeletionContentFailure"),
            "All content successfully deleted, may be waiting on finalization"
        );
        let again: Vec<NamespaceCondition> = serde_json::from_value(json!(conditions)).unwrap();
        let before = again
            .iter()
            .map(|condition| (condition.type_.as_str(), condition))
            .collect();
        assert_eq!(
            super::conditions(&before, &found, Timestamp::now()),
            None,
            "nothing new to say"
        );
    }
}
