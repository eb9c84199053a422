//! The status of a Deployment: counts, and the conditions Available, Progressing and ReplicaFailure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus};
use skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::history::History;
use super::rollout::max_unavailable;
use crate::view::{Deployment, View};

const PROGRESSING: &str = "Progressing";
const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

pub(super) fn condition(
    type_: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    let now = Some(Time(now.round(jiff::Unit::Second).unwrap_or(now)));
    DeploymentCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: now.clone(),
        last_transition_time: now,
    }
}

pub(super) fn progressing(status: &str, reason: &str, message: String, now: Timestamp) -> DeploymentCondition {
    condition(PROGRESSING, status, reason, message, now)
}

fn find<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == type_)
}

fn remove(status: &mut DeploymentStatus, type_: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != type_);
    }
}

/// Sets a condition unless it already says so; the transition time moves with the status only.
pub(super) fn set_condition(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    if let Some(present) = find(status, &condition.type_) {
        if present.status == condition.status && present.reason == condition.reason {
            return;
        }
        if present.status == condition.status {
            condition.last_transition_time.clone_from(&present.last_transition_time);
        }
    }
    remove(status, &condition.type_);
    status.conditions.get_or_insert_default().push(condition);
}

pub(super) fn deadline(deployment: &Deployment) -> Option<i32> {
    deployment
        .spec
        .progress_deadline_seconds
        .filter(|seconds| *seconds != i32::MAX)
}

/// The status as it stands, with what pausing or resuming says about progress.
pub(super) fn with_pause(deployment: &Deployment, now: Timestamp) -> DeploymentStatus {
    let mut status = deployment.status.clone();
    if deadline(deployment).is_none() {
        return status;
    }
    let reason = find(&status, PROGRESSING).and_then(|condition| condition.reason.as_deref());
    let (timed_out, was_paused) = (reason == Some(TIMED_OUT), reason == Some(PAUSED));
    // A rollout that has failed stays failed.
    if timed_out {
        return status;
    }
    if deployment.spec.paused && !was_paused {
        set_condition(
            &mut status,
            progressing("Unknown", PAUSED, "Deployment is paused".into(), now),
        );
    } else if !deployment.spec.paused && was_paused {
        set_condition(
            &mut status,
            progressing("Unknown", "DeploymentResumed", "Deployment is resumed".into(), now),
        );
    }
    status
}

/// Counts and availability; other conditions come over from `before`.
pub(super) fn calculate(
    deployment: &Deployment,
    history: &History,
    before: &DeploymentStatus,
    now: Timestamp,
) -> DeploymentStatus {
    let sum = |pick: &dyn Fn(&crate::view::ReplicaSet) -> i32| history.all().map(|set| pick(set)).sum::<i32>();
    let available = sum(&|set| set.status.available_replicas.unwrap_or_default());
    let desired = sum(&|set| set.replicas());
    let terminating: Option<Vec<i32>> = history.all().map(|set| set.status.terminating_replicas).collect();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(sum(&|set| set.status.replicas)),
        updated_replicas: Some(history.new.as_ref().map_or(0, |set| set.status.replicas)),
        ready_replicas: Some(sum(&|set| set.status.ready_replicas.unwrap_or_default())),
        available_replicas: Some(available),
        unavailable_replicas: Some((desired - available).max(0)),
        terminating_replicas: terminating.map(|counts| counts.into_iter().sum()),
        collision_count: before.collision_count,
        conditions: before.conditions.clone(),
    };
    let (state, reason, message) = if available >= deployment.replicas() - max_unavailable(deployment) {
        (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    set_condition(&mut status, condition("Available", state, reason, message.into(), now));
    normalized(&status)
}

/// The status of a rollout: counts, and what they say about progress.
pub(super) fn rollout(
    deployment: &Deployment,
    history: &History,
    before: &DeploymentStatus,
    now: Timestamp,
) -> DeploymentStatus {
    let mut status = calculate(deployment, history, before, now);
    if deadline(deployment).is_none() {
        remove(&mut status, PROGRESSING);
    } else {
        progress(deployment, history, before, &mut status, now);
    }
    let failures = |set: &crate::view::ReplicaSet| {
        set.status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == "ReplicaFailure")
            .cloned()
    };
    // The newest set's failure counts first.
    match history.new.iter().chain(&history.old).find_map(|set| failures(set)) {
        Some(failure) => set_condition(
            &mut status,
            DeploymentCondition {
                type_: failure.type_,
                status: failure.status,
                reason: failure.reason,
                message: failure.message,
                last_update_time: failure.last_transition_time.clone(),
                last_transition_time: failure.last_transition_time,
            },
        ),
        None => remove(&mut status, "ReplicaFailure"),
    }
    normalized(&status)
}

fn progress(
    deployment: &Deployment,
    history: &History,
    before: &DeploymentStatus,
    status: &mut DeploymentStatus,
    now: Timestamp,
) {
    let present = find(before, PROGRESSING).cloned();
    let was_complete = present.as_ref().and_then(|condition| condition.reason.as_deref()) == Some(NEW_SET_AVAILABLE);
    if count(status.replicas) == count(status.updated_replicas) && was_complete {
        return;
    }
    let subject = match &history.new {
        Some(set) => format!("ReplicaSet {:?}", set.name()),
        None => format!("Deployment {:?}", deployment.name()),
    };
    if is_complete(deployment, status) {
        let message = format!("{subject} has successfully progressed.");
        set_condition(status, progressing("True", NEW_SET_AVAILABLE, message, now));
    } else if has_progressed(before, status) {
        let mut condition = progressing("True", "ReplicaSetUpdated", format!("{subject} is progressing."), now);
        if let Some(present) = present {
            if present.status == "True" {
                condition.last_transition_time = present.last_transition_time;
            }
            // Each progress renews the time that the deadline counts from.
            remove(status, PROGRESSING);
        }
        set_condition(status, condition);
    } else if has_timed_out(deployment, before, now) {
        let message = format!("{subject} has timed out progressing.");
        set_condition(status, progressing("False", TIMED_OUT, message, now));
    }
}

fn count(value: Option<i32>) -> i32 {
    value.unwrap_or_default()
}

pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let desired = deployment.replicas();
    count(status.updated_replicas) == desired
        && count(status.replicas) == desired
        && count(status.available_replicas) == desired
        && status.observed_generation.unwrap_or_default() >= deployment.metadata.generation.unwrap_or_default()
}

fn has_progressed(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    let old_pods = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(after.updated_replicas) > count(before.updated_replicas)
        || old_pods(after) < old_pods(before)
        || count(after.ready_replicas) > count(before.ready_replicas)
        || count(after.available_replicas) > count(before.available_replicas)
}

fn has_timed_out(deployment: &Deployment, before: &DeploymentStatus, now: Timestamp) -> bool {
    match find(before, PROGRESSING).and_then(|condition| condition.reason.as_deref()) {
        None | Some(NEW_SET_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        Some(_) => time_left(deployment, before, now).is_some_and(|left| left.is_negative()),
    }
}

fn time_left(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<SignedDuration> {
    let since = find(status, PROGRESSING)?.last_update_time.as_ref()?;
    Some(SignedDuration::from_secs(deadline(deployment)?.into()) - now.duration_since(since.0))
}

/// When to look again at a rollout that may get stuck.
pub(super) fn look_again(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let reason = find(status, PROGRESSING)?.reason.as_deref();
    if reason == Some(TIMED_OUT) || deployment.spec.paused || is_complete(deployment, status) {
        return None;
    }
    let left = time_left(deployment, status, now)?;
    Some(left.max(SignedDuration::ZERO).unsigned_abs() + Duration::from_secs(1))
}

/// Zero, absent and empty are the same, as they are on the wire.
pub(super) fn normalized(status: &DeploymentStatus) -> DeploymentStatus {
    let some = |count: Option<i32>| count.filter(|n| *n != 0);
    DeploymentStatus {
        replicas: some(status.replicas),
        updated_replicas: some(status.updated_replicas),
        ready_replicas: some(status.ready_replicas),
        available_replicas: some(status.available_replicas),
        unavailable_replicas: some(status.unavailable_replicas),
        terminating_replicas: status.terminating_replicas,
        collision_count: status.collision_count,
        observed_generation: status.observed_generation,
        conditions: status.conditions.clone().filter(|conditions| !conditions.is_empty()),
    }
}

/// A merge patch that replaces every field of the status; null takes a field away.
pub(super) fn patch(deployment: &Deployment, status: &DeploymentStatus) -> Value {
    json!({
        "metadata": {"uid": deployment.uid()},
        "status": {
            "observedGeneration": status.observed_generation,
            "replicas": status.replicas,
            "updatedReplicas": status.updated_replicas,
            "readyReplicas": status.ready_replicas,
            "availableReplicas": status.available_replicas,
            "unavailableReplicas": status.unavailable_replicas,
            "terminatingReplicas": status.terminating_replicas,
            "collisionCount": status.collision_count,
            "conditions": status.conditions,
        },
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::super::tests::{deployment, set};
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    /// A Deployment of 10 whose newest set has so many pods, ready and available; the old one the rest.
    fn history(new: (i32, i32), old: (i32, i32)) -> History {
        let sized = |name: &str, image: &str, (size, available): (i32, i32)| {
            let mut set = set(name, size, json!({"image": image}));
            set.status.replicas = size;
            set.status.ready_replicas = Some(available);
            set.status.available_replicas = Some(available);
            set.status.terminating_replicas = Some(0);
            Arc::new(set)
        };
        History {
            new: Some(sized("web-2", "2", new)),
            old: vec![sized("web-1", "1", old)],
        }
    }

    fn reason(status: &DeploymentStatus) -> (&str, &str) {
        let condition = find(status, PROGRESSING).unwrap();
        (condition.status.as_str(), condition.reason.as_deref().unwrap())
    }

    #[test]
    fn a_rollout_progresses_and_completes() {
        let deployment = deployment(json!({"metadata": {"generation": 2}, "spec": {"progressDeadlineSeconds": 600}}));
        let first = rollout(
            &deployment,
            &history((3, 0), (10, 10)),
            &DeploymentStatus::default(),
            at(0),
        );
        assert_eq!(reason(&first), ("True", "ReplicaSetUpdated"));
        assert_eq!(
            (first.replicas, first.updated_replicas, first.unavailable_replicas),
            (Some(13), Some(3), Some(3))
        );
        assert_eq!(find(&first, "Available").unwrap().status, "True");
        let next = rollout(&deployment, &history((3, 2), (10, 10)), &first, at(9));
        assert_eq!(
            find(&next, PROGRESSING).unwrap().last_update_time,
            Some(Time(at(9))),
            "the deadline counts anew"
        );
        assert_eq!(
            find(&next, PROGRESSING).unwrap().last_transition_time,
            Some(Time(at(0)))
        );
        let done = rollout(&deployment, &history((10, 10), (0, 0)), &next, at(20));
        assert_eq!(reason(&done), ("True", "NewReplicaSetAvailable"));
        let message = find(&done, PROGRESSING).unwrap().message.as_deref();
        assert_eq!(message, Some(r#"ReplicaSet "web-2" has successfully progressed."#));
        assert!(is_complete(&deployment, &done));
        assert_eq!(
            rollout(&deployment, &history((10, 10), (0, 0)), &done, at(99)),
            done,
            "and then nothing changes"
        );
    }

    #[test]
    fn a_stuck_rollout_exceeds_its_deadline() {
        let deployment = deployment(json!({"metadata": {"generation": 2}, "spec": {"progressDeadlineSeconds": 10}}));
        let stuck = history((3, 0), (8, 8));
        let first = rollout(&deployment, &stuck, &DeploymentStatus::default(), at(0));
        assert_eq!(look_again(&deployment, &first, at(4)), Some(Duration::from_secs(7)));
        let late = rollout(&deployment, &stuck, &first, at(11));
        assert_eq!(reason(&late), ("False", "ProgressDeadlineExceeded"));
        assert_eq!(look_again(&deployment, &late, at(11)), None);
    }

    #[test]
    fn pausing_shows_in_progress() {
        let paused = deployment(json!({"spec": {"paused": true, "progressDeadlineSeconds": 10}}));
        let status = with_pause(&paused, at(0));
        assert_eq!(reason(&status), ("Unknown", "DeploymentPaused"));
        let mut resumed = deployment(json!({"spec": {"progressDeadlineSeconds": 10}}));
        resumed.status = status;
        assert_eq!(reason(&with_pause(&resumed, at(1))), ("Unknown", "DeploymentResumed"));
    }

    #[test]
    fn a_sets_failure_is_shown() {
        let deployment = deployment(json!({"spec": {"progressDeadlineSeconds": 10}}));
        let mut failing = history((3, 0), (8, 8));
        let mut set = (**failing.new.as_ref().unwrap()).clone();
        set.status.conditions = serde_json::from_value(json!([
            {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}
        ]))
        .unwrap();
        failing.new = Some(Arc::new(set));
        let status = rollout(&deployment, &failing, &DeploymentStatus::default(), at(0));
        assert_eq!(
            find(&status, "ReplicaFailure").unwrap().reason.as_deref(),
            Some("FailedCreate")
        );
        let over = rollout(&deployment, &history((3, 0), (8, 8)), &status, at(1));
        assert!(find(&over, "ReplicaFailure").is_none());
    }
}
