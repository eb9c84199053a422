//! The status of a ReplicaSet.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::apps::v1::{ReplicaSetCondition, ReplicaSetStatus};
use skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::len;
use crate::view::{Pod, ReplicaSet, View};

/// `failure` is what kept the set from reaching its size: whether pods were missing, and the error's text.
pub(super) fn calculate(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    terminating: usize,
    failure: Option<(bool, String)>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let count = |pick: &dyn Fn(&Pod) -> bool| Some(len(&active.iter().filter(|pod| pick(pod)).collect::<Vec<_>>()));
    let template_labels = set.spec.template["metadata"]["labels"].as_object();
    let fully_labeled = |pod: &Pod| {
        let mut wanted = template_labels.into_iter().flatten();
        wanted.all(|(key, value)| pod.labels().get(key).map(String::as_str) == value.as_str())
    };
    let min_ready = set.spec.min_ready_seconds.unwrap_or_default();
    normalized(&ReplicaSetStatus {
        replicas: len(active),
        fully_labeled_replicas: count(&fully_labeled),
        ready_replicas: count(&|pod| pod.is_ready()),
        available_replicas: count(&|pod| pod.is_available(min_ready, now)),
        terminating_replicas: Some(i32::try_from(terminating).unwrap_or(i32::MAX)),
        observed_generation: set.metadata.generation,
        conditions: conditions(set, failure, now),
    })
}

fn conditions(set: &ReplicaSet, failure: Option<(bool, String)>, now: Timestamp) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions = set.status.conditions.clone().unwrap_or_default();
    let Some((creating, message)) = failure else {
        conditions.retain(|condition| condition.type_ != "ReplicaFailure");
        return Some(conditions);
    };
    // As upstream: the first failure stands until the set succeeds.
    if !conditions.iter().any(|condition| condition.type_ == "ReplicaFailure") {
        conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some(if creating { "FailedCreate" } else { "FailedDelete" }.into()),
            message: Some(message),
            last_transition_time: Some(Time(now.round(jiff::Unit::Second).unwrap_or(now))),
        });
    }
    Some(conditions)
}

/// Zero, absent and empty are the same, as they are on the wire.
pub(super) fn normalized(status: &ReplicaSetStatus) -> ReplicaSetStatus {
    ReplicaSetStatus {
        replicas: status.replicas,
        fully_labeled_replicas: status.fully_labeled_replicas.filter(|n| *n != 0),
        ready_replicas: status.ready_replicas.filter(|n| *n != 0),
        available_replicas: status.available_replicas.filter(|n| *n != 0),
        terminating_replicas: status.terminating_replicas,
        observed_generation: status.observed_generation,
        conditions: status.conditions.clone().filter(|conditions| !conditions.is_empty()),
    }
}

/// A merge patch that replaces every field of the status; null takes a field away.
pub(super) fn patch(set: &ReplicaSet, status: &ReplicaSetStatus) -> Value {
    json!({
        "metadata": {"uid": set.uid()},
        "status": {
            "replicas": status.replicas,
            "fullyLabeledReplicas": status.fully_labeled_replicas,
            "readyReplicas": status.ready_replicas,
            "availableReplicas": status.available_replicas,
            "terminatingReplicas": status.terminating_replicas,
            "observedGeneration": status.observed_generation,
            "conditions": status.conditions,
        },
    })
}

/// When the next ready pod becomes available, if one waits for that.
pub(super) fn next_available(set: &ReplicaSet, active: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let min_ready = set.spec.min_ready_seconds.filter(|seconds| *seconds > 0)?;
    let waiting = active
        .iter()
        .filter(|pod| pod.is_ready())
        .filter_map(|pod| pod.available_in(min_ready, now));
    waiting
        .filter(|left| left.is_positive())
        .min()
        .map(|left| left.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(extra: Value) -> ReplicaSet {
        let mut object = json!({
            "metadata": {"name": "web", "uid": "u", "generation": 3},
            "spec": {"replicas": 2, "minReadySeconds": 10, "template": {"metadata": {"labels": {"app": "web", "v": "1"}}}},
        });
        if !extra.is_null() {
            object["status"] = extra;
        }
        serde_json::from_value(object).unwrap()
    }

    fn pod(labels: Value, ready_at: Option<&str>) -> Arc<Pod> {
        let conditions: Vec<_> = ready_at
            .map(|at| json!({"type": "Ready", "status": "True", "lastTransitionTime": at}))
            .into_iter()
            .collect();
        Arc::new(
            serde_json::from_value(json!({"metadata": {"labels": labels}, "status": {"conditions": conditions}}))
                .unwrap(),
        )
    }

    #[test]
    fn pods_are_counted_by_what_they_have_reached() {
        let now: Timestamp = "2026-01-01T00:00:20Z".parse().unwrap();
        let pods = [
            pod(json!({"app": "web", "v": "1"}), Some("2026-01-01T00:00:00Z")),
            pod(
                json!({"app": "web", "v": "1", "extra": "x"}),
                Some("2026-01-01T00:00:15Z"),
            ),
            pod(json!({"app": "web"}), None),
        ];
        let status = calculate(&set(Value::Null), &pods, 1, None, now);
        assert_eq!(status.replicas, 3);
        assert_eq!(status.fully_labeled_replicas, Some(2));
        assert_eq!(status.ready_replicas, Some(2));
        assert_eq!(status.available_replicas, Some(1));
        assert_eq!(status.terminating_replicas, Some(1));
        assert_eq!(status.observed_generation, Some(3));
        assert_eq!(
            next_available(&set(Value::Null), &pods, now),
            Some(Duration::from_secs(5))
        );
    }

    #[test]
    fn a_node_whose_clock_is_ahead_holds_nobody_up() {
        let now: Timestamp = "2026-01-01T00:00:20Z".parse().unwrap();
        let pods = [pod(json!({}), Some("2026-01-01T00:00:21Z"))];
        let mut at_once = set(Value::Null);
        at_once.spec.min_ready_seconds = None;
        let available = |set: &ReplicaSet| calculate(set, &pods, 0, None, now).available_replicas;
        assert_eq!(available(&at_once), Some(1));
        assert_eq!(available(&set(Value::Null)), None);
    }

    #[test]
    fn a_failure_is_a_condition_until_it_is_over() {
        let now = Timestamp::UNIX_EPOCH;
        let failed = calculate(&set(Value::Null), &[], 0, Some((true, "exceeded quota".into())), now);
        let condition = &failed.conditions.as_ref().unwrap()[0];
        assert_eq!(
            (condition.type_.as_str(), condition.reason.as_deref()),
            ("ReplicaFailure", Some("FailedCreate"))
        );
        let over = calculate(
            &set(json!({"replicas": 0, "conditions": failed.conditions})),
            &[],
            0,
            None,
            now,
        );
        assert_eq!(over.conditions, None);
    }
}
