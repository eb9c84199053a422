//! The whole scheduler against a scripted API server: lists and watches in, bindings, statuses and events out.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake_api;

use std::time::Duration;

use fake_api::{FakeApi, node, pod, running};
use serde_json::{Value, json};
use skiff_scheduler::Config;

const PODS: &str = "/api/v1/namespaces/default/pods";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

struct Running {
    api: FakeApi,
    context: skiff_daemon::Context,
    task: tokio::task::JoinHandle<Result<(), skiff_scheduler::Error>>,
}

impl Running {
    fn start(api: FakeApi) -> Self {
        let context = skiff_daemon::Context::default();
        let config = Config {
            pod_initial_backoff: Duration::from_millis(20),
            instance: Some("test".to_owned()),
            ..Config::default()
        };
        let task = tokio::spawn(skiff_scheduler::run(config, api.client(), context.clone()));
        Self { api, context, task }
    }

    async fn stop(self) {
        self.context.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn binding(pod: &str) -> String {
    format!("{PODS}/{pod}/binding")
}

#[tokio::test]
async fn a_pod_gets_a_node_and_an_event() {
    let api = FakeApi::default();
    api.set(node("n1", "4"));
    api.set(pod("a", "1", json!({})));
    let running = Running::start(api);
    let body = running.api.written("POST", &binding("a")).await;
    assert_eq!(body["target"], json!({"kind": "Node", "name": "n1"}));
    assert_eq!(body["metadata"]["uid"], "a");
    let event = running.api.written("POST", EVENTS).await;
    assert_eq!(event["reason"], "Scheduled");
    assert_eq!(event["note"], "Successfully assigned default/a to n1");
    assert_eq!(
        (&event["action"], &event["type"]),
        (&json!("Binding"), &json!("Normal"))
    );
    assert_eq!(event["reportingController"], "default-scheduler");
    assert_eq!(event["reportingInstance"], "default-scheduler-test");
    assert_eq!(event["regarding"]["kind"], "Pod");
    assert!(running.context.health.is_ready());
    running.stop().await;
}

#[tokio::test]
async fn a_pod_without_a_node_is_told_why_and_goes_when_there_is_one() {
    let api = FakeApi::default();
    api.set(node("small", "500m"));
    api.set(pod("a", "1", json!({})));
    let running = Running::start(api);
    let message = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: \
                   1 Preemption is not helpful for scheduling.";
    let status = running.api.written("PATCH", &format!("{PODS}/a/status")).await;
    let condition = &status["status"]["conditions"][0];
    assert_eq!(condition["type"], "PodScheduled");
    assert_eq!(
        (&condition["status"], &condition["reason"]),
        (&json!("False"), &json!("Unschedulable"))
    );
    assert_eq!(condition["message"], message);
    let event = running.api.written("POST", EVENTS).await;
    assert_eq!(
        (&event["reason"], &event["type"]),
        (&json!("FailedScheduling"), &json!("Warning"))
    );
    assert_eq!(
        (&event["action"], &event["note"]),
        (&json!("Scheduling"), &json!(message))
    );

    running.api.set(node("large", "4"));
    assert_eq!(
        running.api.written("POST", &binding("a")).await["target"]["name"],
        "large"
    );
    running.stop().await;
}

#[tokio::test]
async fn a_refused_binding_is_tried_again() {
    let api = FakeApi::default();
    api.set(node("n1", "1"));
    api.refuse("POST", &binding("a"), 500);
    api.set(pod("a", "1", json!({})));
    let running = Running::start(api);
    running.api.written("POST", &binding("a")).await;
    let event = running.api.written("POST", EVENTS).await;
    assert_eq!(event["reason"], "FailedScheduling");
    running.api.written("POST", &binding("a")).await;
    running.stop().await;
}

#[tokio::test]
async fn pods_of_other_schedulers_gated_and_deleted_ones_are_left_alone() {
    let api = FakeApi::default();
    api.set(node("n1", "4"));
    api.set(pod("other", "1", json!({"schedulerName": "someone-else"})));
    api.set(pod("gated", "1", json!({"schedulingGates": [{"name": "x/y"}]})));
    let mut leaving = pod("leaving", "1", json!({}));
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    api.set(leaving);
    api.set(pod("mine", "1", json!({})));
    let running = Running::start(api);
    running.api.written("POST", &binding("mine")).await;
    running.api.set(pod("gated", "1", json!({})));
    running.api.written("POST", &binding("gated")).await;
    for name in ["other", "leaving"] {
        assert!(!running.api.was_written("POST", &binding(name)), "{name}");
    }
    running.stop().await;
}

#[tokio::test]
async fn an_important_pod_pushes_out_another() {
    let api = FakeApi::default();
    api.set(node("n1", "2"));
    api.set(running_pod("low", "n1", "2"));
    api.set(pod("high", "1", json!({"priority": 1000})));
    let running = Running::start(api);
    let disruption = running.api.written("PATCH", &format!("{PODS}/low/status")).await;
    let condition = &disruption["status"]["conditions"][0];
    assert_eq!(
        (&condition["type"], &condition["reason"]),
        (&json!("DisruptionTarget"), &json!("PreemptionByScheduler"))
    );
    let options = running.api.written("DELETE", &format!("{PODS}/low")).await;
    assert_eq!(options["preconditions"]["uid"], "low");
    let status = running.api.written("PATCH", &format!("{PODS}/high/status")).await;
    assert_eq!(status["status"]["nominatedNodeName"], "n1");
    // Until the victim is gone, nobody else takes its place.
    running.api.set(pod("sneaky", "500m", json!({})));
    running.api.written("PATCH", &format!("{PODS}/sneaky/status")).await;
    running.api.remove(running_pod("low", "n1", "2"));
    assert_eq!(
        running.api.written("POST", &binding("high")).await["target"]["name"],
        "n1"
    );
    running.stop().await;
}

#[tokio::test]
async fn a_victim_that_cannot_be_deleted_at_once_is_tried_again() {
    let api = FakeApi::default();
    api.set(node("n1", "2"));
    api.set(running_pod("low", "n1", "2"));
    api.set(pod("high", "1", json!({"priority": 1000})));
    api.refuse("DELETE", &format!("{PODS}/low"), 500);
    let running = Running::start(api);
    running.api.written("DELETE", &format!("{PODS}/low")).await;
    running.api.written("DELETE", &format!("{PODS}/low")).await;
    running.api.remove(running_pod("low", "n1", "2"));
    running.api.written("POST", &binding("high")).await;
    running.stop().await;
}

#[tokio::test]
async fn a_victim_that_is_gone_already_keeps_no_other_from_being_deleted() {
    for (method, what, code) in [("DELETE", "", 404), ("DELETE", "", 409), ("PATCH", "/status", 404)] {
        let api = FakeApi::default();
        api.set(node("n1", "2"));
        for victim in ["one", "two"] {
            api.set(running_pod(victim, "n1", "1"));
        }
        api.set(pod("high", "2", json!({"priority": 1000})));
        // Whichever comes first.
        for victim in ["one", "two"] {
            api.refuse(method, &format!("{PODS}/{victim}{what}"), code);
        }
        let running = Running::start(api);
        for victim in ["one", "two"] {
            running.api.written("DELETE", &format!("{PODS}/{victim}")).await;
        }
        for victim in ["one", "two"] {
            let again = running.api.was_written("DELETE", &format!("{PODS}/{victim}"));
            assert!(!again, "{victim} was asked for twice: {method} {code}");
        }
        running.stop().await;
    }
}

fn running_pod(name: &str, on: &str, cpu: &str) -> Value {
    running(pod(name, cpu, json!({})), on)
}

#[tokio::test]
async fn a_crowd_fills_nodes_evenly_and_none_beyond_its_room() {
    const NODES: usize = 20;
    const PODS_EACH: usize = 16;
    let api = FakeApi::default();
    for number in 0..NODES {
        api.set(node(&format!("n{number}"), "4"));
    }
    let running = Running::start(api);
    // 16 pods of 250m fill a node of 4; the last 10 find no room.
    for number in 0..NODES * PODS_EACH + 10 {
        running.api.set(pod(&format!("p{number}"), "250m", json!({})));
    }
    let bound = running.api.bindings(NODES * PODS_EACH).await;
    assert_eq!(bound.len(), NODES);
    assert!(bound.values().all(|&count| count == PODS_EACH), "{bound:?}");
    // Those without room were tried last, after all bindings were through.
    running.api.writes("PATCH", 10).await;
    let metrics = running.context.metrics.encode();
    let expected = format!(
        "scheduler_schedule_attempts_total{{result=\"scheduled\",profile=\"default-scheduler\"}} {}",
        NODES * PODS_EACH
    );
    assert!(metrics.contains(&expected), "{metrics}");
    running.stop().await;
}
