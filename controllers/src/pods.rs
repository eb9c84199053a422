//! What controllers ask of a pod: is it active, ready, available; and which of several should go first.

use std::cmp::Ordering;

use jiff::{SignedDuration, Timestamp};

use crate::view::{Pod, View};

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
        self.status
            .conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    }

    /// Since when it has been ready; none if it is not.
    pub(crate) fn ready_since(&self) -> Option<Timestamp> {
        let ready = self
            .status
            .conditions
            .iter()
            .find(|c| c.type_ == "Ready" && c.status == "True")?;
        ready.last_transition_time.as_ref().map(|time| time.0)
    }

    pub(crate) fn is_available(&self, min_ready_seconds: i32, now: Timestamp) -> bool {
        self.is_ready()
            && self
                .available_in(min_ready_seconds, now)
                .is_none_or(|left| !left.is_positive())
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

/// Which of two pods is to be deleted first (`Less`): the one whose loss hurts less. The rank of a pod is the number of
/// related active pods on its node.
pub(crate) fn deletion_order(a: (&Pod, usize), b: (&Pod, usize), now: Timestamp) -> Ordering {
    let ((a, a_rank), (b, b_rank)) = (a, b);
    let assigned = |pod: &Pod| pod.spec.node_name.is_some();
    let phase = |pod: &Pod| match pod.phase() {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| phase(a).cmp(&phase(b)))
        .then_with(|| a.is_ready().cmp(&b.is_ready()))
        .then_with(|| a.deletion_cost().cmp(&b.deletion_cost()))
        .then_with(|| b_rank.cmp(&a_rank))
        .then_with(|| match (a.is_ready(), b.is_ready()) {
            (true, true) => younger_first(a.ready_since(), b.ready_since(), a, b, now),
            _ => Ordering::Equal,
        })
        .then_with(|| b.restarts().cmp(&a.restarts()))
        .then_with(|| younger_first(a.created(), b.created(), a, b, now))
}

/// Ages count by their magnitude only, so that pods of about the same age go in random order (of their uids).
fn younger_first(a_at: Option<Timestamp>, b_at: Option<Timestamp>, a: &Pod, b: &Pod, now: Timestamp) -> Ordering {
    if a_at == b_at {
        return Ordering::Equal;
    }
    let (Some(a_at), Some(b_at)) = (a_at, b_at) else {
        // Without a time it counts as the youngest.
        return a_at.is_some().cmp(&b_at.is_some());
    };
    let magnitude = |at: Timestamp| match now.duration_since(at).as_nanos() {
        age if age > 0 => i64::from(age.ilog2()),
        _ => -1,
    };
    magnitude(a_at).cmp(&magnitude(b_at)).then_with(|| a.uid().cmp(b.uid()))
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::deletion_order;
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
            assert_eq!(deletion_order((&first, 0), (&second, 0), now), Ordering::Less, "{name}");
            assert_eq!(
                deletion_order((&second, 0), (&first, 0), now),
                Ordering::Greater,
                "{name}, turned"
            );
        }
        let alike = pod(&json!({}));
        assert_eq!(
            deletion_order((&alike, 3), (&alike, 1), now),
            Ordering::Less,
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
