//! What controllers ask of a pod: is it active, ready, available; and which of several should go first.

use std::cmp::Reverse;

use jiff::{SignedDuration, Timestamp};

use crate::view::{Pod, PodCondition, View};

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

impl Pod {
    pub(crate) fn phase(&self) -> &str {
        self.status.phase.as_deref().unwrap_or("Pending")
    }

    /// Ran to its end: no container will start again.
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self.phase(), "Succeeded" | "Failed")
    }

    /// Counts as a replica.
    pub(crate) fn is_active(&self) -> bool {
        !self.is_terminal() && !self.is_being_deleted()
    }

    /// Asked to go and not yet ended.
    pub(crate) fn is_terminating(&self) -> bool {
        !self.is_terminal() && self.is_being_deleted()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready().is_some()
    }

    /// Since when it has been ready; none if it is not.
    pub(crate) fn ready_since(&self) -> Option<Timestamp> {
        self.ready()?.last_transition_time.as_ref().map(|time| time.0)
    }

    fn ready(&self) -> Option<&PodCondition> {
        let mut conditions = self.status.conditions.iter();
        conditions.find(|condition| condition.type_ == "Ready" && condition.status == "True")
    }

    /// Who needs to be ready for no time is available at once, also where its node's clock is ahead of ours.
    pub(crate) fn is_available(&self, min_ready_seconds: i32, now: Timestamp) -> bool {
        let left = self.available_in(min_ready_seconds, now);
        self.is_ready() && (min_ready_seconds == 0 || left.is_none_or(|left| !left.is_positive()))
    }

    /// For a ready pod, how long until it counts as available.
    pub(crate) fn available_in(&self, min_ready_seconds: i32, now: Timestamp) -> Option<SignedDuration> {
        let since = self.ready_since()?;
        Some(SignedDuration::from_secs(min_ready_seconds.into()) - now.duration_since(since))
    }

    fn restarts(&self) -> i32 {
        self.status
            .container_statuses
            .iter()
            .map(|status| status.restart_count)
            .max()
            .unwrap_or_default()
    }

    fn deletion_cost(&self) -> i32 {
        self.annotation(DELETION_COST)
            .and_then(|cost| cost.parse().ok())
            .unwrap_or_default()
    }

    fn created(&self) -> Option<Timestamp> {
        self.metadata.creation_timestamp.as_ref().map(|time| time.0)
    }
}

/// Orders pods by how little their loss hurts: the first is to be deleted first. `rank` is the number of related active
/// pods on its node. Ages count by their magnitude only, so that pods of about the same age go in random order (of their
/// uids). A key, not a comparison of two: only so is the order total whatever the pods are.
pub(crate) fn deletion_key(pod: &Pod, rank: usize, now: Timestamp) -> impl Ord + use<> {
    let phase = match pod.phase() {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let is_ready = pod.is_ready();
    let ready_for = if is_ready {
        magnitude(pod.ready_since(), now)
    } else {
        -2
    };
    (
        (pod.spec.node_name.is_some(), phase, is_ready, pod.deletion_cost()),
        (Reverse(rank), ready_for, Reverse(pod.restarts())),
        (magnitude(pod.created(), now), pod.uid().to_owned()),
    )
}

/// The power of two of an age; without a time it counts as the youngest.
fn magnitude(at: Option<Timestamp>, now: Timestamp) -> i64 {
    match at.map(|at| now.duration_since(at).as_nanos()) {
        None => -2,
        Some(age) if age > 0 => i64::from(age.ilog2()),
        Some(_) => -1,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::deletion_key;
    use crate::view::Pod;

    fn pod(extra: &Value) -> Pod {
        let mut object = json!({
            "metadata": {"uid": "m", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "n"},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        });
        merge(&mut object, extra);
        serde_json::from_value(object).unwrap()
    }

    fn merge(into: &mut Value, from: &Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                for (key, value) in from {
                    merge(into.entry(key.as_str()).or_insert(Value::Null), value);
                }
            }
            (into, from) => *into = from.clone(),
        }
    }

    #[test]
    fn the_less_useful_goes_first() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let not_ready = json!({"status": {"conditions": []}});
        let ready_at = |at: &str| json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at}]}});
        // Each first pod goes before the second.
        let cases = [
            ("unassigned", json!({"spec": {"nodeName": null}}), json!({})),
            ("pending", json!({"status": {"phase": "Pending"}}), json!({})),
            ("not ready", not_ready.clone(), json!({})),
            (
                "cheaper",
                json!({}),
                json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "5"}}}),
            ),
            ("ready for less long", ready_at("2026-01-01T23:59:00Z"), json!({})),
            (
                "restarted more",
                json!({"status": {"containerStatuses": [{"restartCount": 3}]}}),
                json!({}),
            ),
            (
                "younger",
                json!({"metadata": {"creationTimestamp": "2026-01-01T23:00:00Z"}}),
                json!({}),
            ),
            (
                "alike in age: by uid",
                json!({"metadata": {"uid": "a", "creationTimestamp": "2026-01-01T00:00:01Z"}}),
                json!({}),
            ),
        ];
        for (name, first, second) in cases {
            let (first, second) = (pod(&first), pod(&second));
            assert!(deletion_key(&first, 0, now) < deletion_key(&second, 0, now), "{name}");
        }
        let alike = pod(&json!({}));
        assert!(
            deletion_key(&alike, 3, now) < deletion_key(&alike, 1, now),
            "crowded node first"
        );
    }

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let pod = pod(&json!({}));
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert!(pod.is_available(0, at("2026-01-01T00:00:00Z")));
        assert!(!pod.is_available(10, at("2026-01-01T00:00:09Z")));
        assert!(pod.is_available(10, at("2026-01-01T00:00:10Z")));
    }
}
