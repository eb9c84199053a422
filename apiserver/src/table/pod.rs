//! Pods: one word for the state that a user should know about.

use jiff::Timestamp;
use serde_json::Value;
use skiff_api::meta;

use super::read::{NONE, at, int, list, or, text};
use super::{AGE, Column, NAME, Printer, age};

pub(super) static PODS: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Ready"),
        Column::text("Status"),
        Column::text("Restarts"),
        AGE,
        Column::wide("IP"),
        Column::wide("Node"),
        Column::wide("Nominated Node"),
        Column::wide("Readiness Gates"),
    ],
    row,
};

fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarize(pod);
    let restarts = match &summary.last_restart {
        Some(last) if summary.restarts != 0 => format!("{} ({} ago)", summary.restarts, age::since(last, now)),
        _ => summary.restarts.to_string(),
    };
    let address = list(pod, "status.podIPs")
        .first()
        .map_or_else(|| text(pod, "status.podIP"), |ip| text(ip, "ip"));
    vec![
        meta::name(pod).into(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.state.into(),
        restarts.into(),
        age::of(pod, now),
        or(address, NONE).into(),
        or(text(pod, "spec.nodeName"), NONE).into(),
        or(text(pod, "status.nominatedNodeName"), NONE).into(),
        readiness_gates(pod).into(),
    ]
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list(pod, "spec.readinessGates");
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let open = gates
        .iter()
        .filter(|gate| meta::has_condition(pod, text(gate, "conditionType")))
        .count();
    format!("{open}/{}", gates.len())
}

#[derive(Default)]
struct Summary {
    ready: usize,
    total: usize,
    state: String,
    restarts: i64,
    last_restart: Option<String>,
}

impl Summary {
    fn count_restarts(&mut self, status: &Value) {
        self.restarts += int(status, "restartCount");
        let finished = text(status, "lastState.terminated.finishedAt");
        // Times of one form compare as texts.
        if !finished.is_empty() && self.last_restart.as_deref().is_none_or(|last| last < finished) {
            self.last_restart = Some(finished.to_owned());
        }
    }
}

fn summarize(pod: &Value) -> Summary {
    let phase = text(pod, "status.phase");
    let mut summary = Summary {
        state: or(text(pod, "status.reason"), phase).to_owned(),
        total: list(pod, "spec.containers").len()
            + list(pod, "spec.initContainers")
                .iter()
                .filter(|container| is_sidecar(container))
                .count(),
        ..Summary::default()
    };
    let gated =
        |condition: &Value| text(condition, "type") == "PodScheduled" && text(condition, "reason") == "SchedulingGated";
    if list(pod, "status.conditions").iter().any(gated) {
        "SchedulingGated".clone_into(&mut summary.state);
    }
    let (initializing, sidecars) = init_containers(pod, &mut summary);
    if !initializing || meta::has_condition(pod, "Initialized") {
        (summary.restarts, summary.last_restart) = (sidecars.restarts, sidecars.last_restart);
        main_containers(pod, &mut summary);
    }
    if meta::deletion_timestamp(pod).is_some() {
        if text(pod, "status.reason") == "NodeLost" {
            "Unknown".clone_into(&mut summary.state);
        } else if !matches!(phase, "Succeeded" | "Failed") {
            "Terminating".clone_into(&mut summary.state);
        }
    }
    summary
}

fn is_sidecar(container: &Value) -> bool {
    text(container, "restartPolicy") == "Always"
}

/// Whether the pod still initializes; and the restarts of its sidecars alone, which count once it has.
fn init_containers(pod: &Value, summary: &mut Summary) -> (bool, Summary) {
    let specs = list(pod, "spec.initContainers");
    let mut sidecars = Summary::default();
    for (i, status) in list(pod, "status.initContainerStatuses").iter().enumerate() {
        let sidecar = specs
            .iter()
            .any(|spec| text(spec, "name") == text(status, "name") && is_sidecar(spec));
        summary.count_restarts(status);
        if sidecar {
            sidecars.count_restarts(status);
        }
        let ended = at(status, "state.terminated");
        if !ended.is_null() && int(ended, "exitCode") == 0 {
            continue;
        }
        if sidecar && at(status, "started") == &Value::Bool(true) {
            summary.ready += usize::from(at(status, "ready") == &Value::Bool(true));
            continue;
        }
        let waiting = text(status, "state.waiting.reason");
        summary.state = if !ended.is_null() {
            format!("Init:{}", end_reason(ended))
        } else if !matches!(waiting, "" | "PodInitializing") {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{}", specs.len())
        };
        return (true, sidecars);
    }
    (false, sidecars)
}

fn main_containers(pod: &Value, summary: &mut Summary) {
    let mut running = false;
    // From the last to the first: the first container has the last word.
    for status in list(pod, "status.containerStatuses").iter().rev() {
        summary.count_restarts(status);
        let (waiting, ended) = (text(status, "state.waiting.reason"), at(status, "state.terminated"));
        if !waiting.is_empty() {
            waiting.clone_into(&mut summary.state);
        } else if !ended.is_null() {
            summary.state = end_reason(ended);
        } else if at(status, "ready") == &Value::Bool(true) && !at(status, "state.running").is_null() {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.state == "Completed" && running {
        let state = if meta::has_condition(pod, "Ready") {
            "Running"
        } else {
            "NotReady"
        };
        state.clone_into(&mut summary.state);
    }
}

fn end_reason(ended: &Value) -> String {
    match (text(ended, "reason"), int(ended, "signal")) {
        ("", 0) => format!("ExitCode:{}", int(ended, "exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::check;
    use super::*;

    const HEADINGS: &str = "NAME | READY | STATUS | RESTARTS | AGE | IP | NODE | NOMINATED NODE | READINESS GATES";

    #[test]
    fn running_pod() {
        let pod = json!({
            "metadata": {"name": "web", "creationTimestamp": "2025-12-31T23:55:00Z"},
            "spec": {"nodeName": "n1", "containers": [{"name": "a"}, {"name": "b"}], "readinessGates": [{"conditionType": "x/y"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "x/y", "status": "True"}],
                "containerStatuses": [
                    {"name": "a", "ready": true, "restartCount": 3, "state": {"running": {}},
                     "lastState": {"terminated": {"finishedAt": "2025-12-31T23:59:00Z"}}},
                    {"name": "b", "ready": false, "restartCount": 1, "state": {"running": {}},
                     "lastState": {"terminated": {"finishedAt": "2025-12-31T23:58:00Z"}}}]},
        });
        check(
            "",
            "pods",
            &pod,
            HEADINGS,
            "web | 1/2 | Running | 4 (60s ago) | 5m | 10.0.0.1 | n1 | <none> | 1/1",
        );
    }

    /// Ready and status columns for a pod's status; its spec has two containers and two init containers.
    fn state(change: Value) -> (String, String) {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}],
            "initContainers": [{"name": "i"}, {"name": "j"}]}});
        for (key, value) in change.as_object().unwrap() {
            pod[key] = value.clone();
        }
        let summary = summarize(&pod);
        (format!("{}/{}", summary.ready, summary.total), summary.state)
    }

    #[test]
    fn states() {
        let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0}}});
        let waiting = |reason: &str| json!({"name": "a", "state": {"waiting": {"reason": reason}}});
        let ended = |fields: Value| json!({"name": "a", "state": {"terminated": fields}});
        let running = json!({"name": "b", "ready": true, "state": {"running": {}}});
        let deleted = json!({"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        for (change, ready, word) in [
            (json!({"status": {"phase": "Pending"}}), "0/2", "Pending"),
            (
                json!({"status": {"phase": "Failed", "reason": "Evicted"}}),
                "0/2",
                "Evicted",
            ),
            (
                json!({"status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}}),
                "0/2",
                "SchedulingGated",
            ),
            (
                json!({"status": {"phase": "Pending", "initContainerStatuses": [waiting("PodInitializing")], "containerStatuses": [waiting("PodInitializing")]}}),
                "0/2",
                "Init:0/2",
            ),
            (
                json!({"status": {"phase": "Pending", "initContainerStatuses": [done, {"name": "j", "state": {"running": {}}}]}}),
                "0/2",
                "Init:1/2",
            ),
            (
                json!({"status": {"phase": "Pending", "initContainerStatuses": [waiting("ImagePullBackOff")]}}),
                "0/2",
                "Init:ImagePullBackOff",
            ),
            (
                json!({"status": {"phase": "Pending", "initContainerStatuses": [ended(json!({"exitCode": 2}))]}}),
                "0/2",
                "Init:ExitCode:2",
            ),
            (
                json!({"status": {"phase": "Pending", "initContainerStatuses": [ended(json!({"exitCode": 1, "reason": "Error"}))]}}),
                "0/2",
                "Init:Error",
            ),
            (
                json!({"status": {"phase": "Pending", "containerStatuses": [waiting("ContainerCreating"), waiting("ContainerCreating")]}}),
                "0/2",
                "ContainerCreating",
            ),
            (
                json!({"status": {"phase": "Running", "containerStatuses": [waiting("CrashLoopBackOff"), running]}}),
                "1/2",
                "CrashLoopBackOff",
            ),
            (
                json!({"status": {"phase": "Running", "containerStatuses": [ended(json!({"exitCode": 137, "reason": "OOMKilled"}))]}}),
                "0/2",
                "OOMKilled",
            ),
            (
                json!({"status": {"phase": "Failed", "containerStatuses": [ended(json!({"exitCode": 137, "signal": 9}))]}}),
                "0/2",
                "Signal:9",
            ),
            (
                json!({"status": {"phase": "Running", "containerStatuses": [ended(json!({"exitCode": 0, "reason": "Completed"})), running]}}),
                "1/2",
                "NotReady",
            ),
            (
                json!({"status": {"phase": "Succeeded", "containerStatuses": [ended(json!({"exitCode": 0, "reason": "Completed"}))]}}),
                "0/2",
                "Completed",
            ),
            (
                json!({"metadata": deleted, "status": {"phase": "Running"}}),
                "0/2",
                "Terminating",
            ),
            (
                json!({"metadata": deleted, "status": {"phase": "Running", "reason": "NodeLost"}}),
                "0/2",
                "Unknown",
            ),
            (
                json!({"metadata": deleted, "status": {"phase": "Succeeded"}}),
                "0/2",
                "Succeeded",
            ),
        ] {
            assert_eq!(state(change.clone()), (ready.to_owned(), word.to_owned()), "{change}");
        }
    }

    #[test]
    fn sidecars_count() {
        let change = json!({"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i", "restartPolicy": "Always"}]},
            "status": {"phase": "Running", "initContainerStatuses": [{"name": "i", "started": true, "ready": true, "restartCount": 2, "state": {"running": {}}}],
                "containerStatuses": [{"name": "a", "ready": true, "state": {"running": {}}}]}});
        assert_eq!(state(change), ("2/2".to_owned(), "Running".to_owned()));
    }
}
