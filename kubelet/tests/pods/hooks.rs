//! Lifecycle hooks: what is told, asked and waited for while they run.

use std::time::Duration;

use serde_json::{Value, json};
use skiff_cri::ExecOutput;

use crate::api::Api;
use crate::kubelet::{Kubelet, is_ready};
use crate::scene::Scene;

fn container(more: &Value) -> Value {
    let mut container = json!({"name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent"});
    for (key, value) in more.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    container
}

fn exec(command: &str) -> Value {
    json!({"exec": {"command": [command]}})
}

/// How often a command was run in containers.
fn runs(scene: &Scene, command: &str) -> usize {
    let calls = scene.runtime.calls();
    let run = |call: &&String| call.starts_with("ExecSync ") && call.ends_with(&format!(" {command}"));
    calls.iter().filter(run).count()
}

async fn until_run(scene: &Scene, command: &str, times: usize) {
    let what = format!("{times} runs of {command}");
    let run = |_: &Api| (runs(scene, command) >= times).then_some(());
    scene.api.until(&what, run).await;
}

fn status(scene: &Scene) -> Value {
    scene.api.get(&Kubelet::path("p")).expect("the pod")["status"].clone()
}

/// A server that warms up in its hook gets no traffic, and no probe, before that is done.
#[tokio::test(start_paused = true)]
async fn a_container_does_not_run_before_its_post_start_hook_has_ended() {
    let scene = Scene::new();
    scene.runtime.delay_exec("warm", Duration::from_secs(10));
    let probed = json!({
        "lifecycle": {"postStart": exec("warm")},
        "readinessProbe": {"exec": {"command": ["probe"]}, "periodSeconds": 1},
        "livenessProbe": {"exec": {"command": ["probe"]}, "periodSeconds": 1},
    });
    let mut other = container(&json!({}));
    other["name"] = "d".into();
    scene.create("p", &json!({"containers": [other, container(&probed)]}));
    until_run(&scene, "warm", 1).await;
    let begun = tokio::time::Instant::now();
    // The other one starts anew: the kubelet looks at the pod meanwhile.
    scene.runtime.exit_container(&scene.running("d").await[0], 1);
    let restarted = |status: &Value| {
        let other = &status["containerStatuses"][0];
        other["restartCount"] == 1 && !other["state"]["running"].is_null()
    };
    scene.until_status("p", "restart", restarted).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let early = status(&scene);
    assert_eq!(early["phase"], "Pending", "{early:#}");
    let state = &early["containerStatuses"][1]["state"];
    assert_eq!(*state, json!({"waiting": {"reason": "ContainerCreating"}}));
    assert_eq!(runs(&scene, "probe"), 0);
    scene.until_ready("p").await;
    assert!(begun.elapsed().as_secs() >= 9, "{:?}", begun.elapsed());
    until_run(&scene, "probe", 2).await;
}

/// What a hook prints may be secret: events are for many eyes.
#[tokio::test(start_paused = true)]
async fn a_failed_post_start_hook_is_told_without_what_it_printed() {
    let scene = Scene::new();
    scene.runtime.delay_exec("warm", Duration::from_secs(5));
    let fail = || ExecOutput {
        exit_code: 1,
        stderr: b"s3cret\n".to_vec(),
        ..ExecOutput::default()
    };
    scene.runtime.push_exec(fail());
    let hook = json!({"lifecycle": {"postStart": exec("warm")}});
    scene.create("p", &json!({"containers": [container(&hook)]}));
    let waits = |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"] == "PostStartHookError";
    let waiting = scene.until_status("p", "PostStartHookError", waits).await;
    assert!(!waiting.to_string().contains("s3cret"), "{waiting:#}");
    for event in [
        "FailedPostStartHook: PostStartHook failed",
        "Killing: FailedPostStartHook",
    ] {
        scene.until_event(event).await;
    }
    // The second hook succeeds.
    let again = |status: &Value| is_ready(status) && status["containerStatuses"][0]["restartCount"] == 1;
    scene.until_status("p", "restart", again).await;
    assert_eq!(runs(&scene, "warm"), 2);
    let events = scene.api.events();
    assert!(!events.iter().any(|event| event.contains("s3cret")), "{events:?}");
}

#[tokio::test]
async fn a_failed_pre_stop_hook_is_told_without_what_it_printed() {
    let scene = Scene::new();
    let hook = json!({"lifecycle": {"preStop": exec("drain")}});
    scene.create("p", &json!({"containers": [container(&hook)]}));
    scene.until_ready("p").await;
    scene.runtime.push_exec(ExecOutput {
        exit_code: 1,
        stderr: b"s3cret\n".to_vec(),
        ..ExecOutput::default()
    });
    scene.delete("p", 5);
    scene.until_gone("p").await;
    scene.until_event("FailedPreStopHook: PreStopHook failed").await;
    let events = scene.api.events();
    assert!(!events.iter().any(|event| event.contains("s3cret")), "{events:?}");
}

/// A kubelet that begins while a hook runs cannot know of it: the container counts as running, and its pod goes on.
#[tokio::test(start_paused = true)]
async fn a_hook_that_outlives_the_kubelet_holds_up_nothing() {
    let mut scene = Scene::new();
    scene.runtime.delay_exec("warm", Duration::from_secs(600));
    let hook = container(&json!({"lifecycle": {"postStart": exec("warm")}}));
    let mut other = container(&json!({}));
    other["name"] = "d".into();
    scene.create("p", &json!({"containers": [hook, other]}));
    until_run(&scene, "warm", 1).await;
    assert!(
        scene.running("d").await.is_empty(),
        "it waits for the hook of the one before"
    );
    scene.kill().await;
    scene.start();
    scene.until_ready("p").await;
    assert_eq!((scene.running("c").await.len(), scene.running("d").await.len()), (1, 1));
    scene.delete("p", 1);
    scene.until_gone("p").await;
}

/// A container whose hook is given up is not left behind.
#[tokio::test(start_paused = true)]
async fn a_pod_is_deleted_while_its_post_start_hook_runs() {
    let scene = Scene::new();
    scene.runtime.delay_exec("warm", Duration::from_secs(600));
    let hook = json!({"lifecycle": {"postStart": exec("warm")}});
    scene.create("p", &json!({"containers": [container(&hook)]}));
    until_run(&scene, "warm", 1).await;
    let begun = tokio::time::Instant::now();
    scene.delete("p", 5);
    scene.until_gone("p").await;
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
}

/// A kill with all the time in the world does not keep a deletion waiting, nor a hook that takes its time.
#[tokio::test(start_paused = true)]
async fn a_deletion_hurries_what_is_being_killed() {
    for hook in [json!({}), json!({"lifecycle": {"preStop": exec("drain")}})] {
        let scene = Scene::new();
        scene.runtime.set_ignores_term(true);
        scene.runtime.delay_exec("drain", Duration::from_secs(3600));
        let probe = json!({"exec": {"command": ["probe"]}, "periodSeconds": 1, "failureThreshold": 1});
        let mut probed = container(&hook);
        probed["livenessProbe"] = probe;
        scene.create(
            "p",
            &json!({"terminationGracePeriodSeconds": 3600, "containers": [probed]}),
        );
        scene.until_ready("p").await;
        until_run(&scene, "probe", 1).await;
        scene.runtime.push_exec(ExecOutput {
            exit_code: 1,
            ..ExecOutput::default()
        });
        scene
            .until_event("Killing: Container c failed liveness probe, will be restarted")
            .await;
        let stops = |scene: &Scene| {
            let calls = scene.runtime.calls();
            calls.iter().filter(|call| call.starts_with("StopContainer ")).count()
        };
        let drains = usize::from(hook != json!({}));
        let under_way = |_: &Api| (stops(&scene) + runs(&scene, "drain") == 1).then_some(());
        scene.api.until("a kill", under_way).await;
        let begun = tokio::time::Instant::now();
        scene.delete("p", 5);
        scene.until_gone("p").await;
        assert!(begun.elapsed().as_secs() < 60, "{hook}: {:?}", begun.elapsed());
        assert_eq!(
            (stops(&scene), runs(&scene, "drain")),
            (2 - drains, 2 * drains),
            "{hook}"
        );
    }
}

/// A deadline ends the start of a container, too, and says so once.
#[tokio::test]
async fn a_deadline_ends_a_pod_that_has_not_begun() {
    let scene = Scene::new();
    let absent = json!({"containers": [{"name": "c", "image": "absent:1", "imagePullPolicy": "IfNotPresent"}], "activeDeadlineSeconds": 1});
    scene.create("p", &absent);
    let failed = |status: &Value| status["phase"] == "Failed";
    let status = scene.until_status("p", "failed pod", failed).await;
    assert_eq!(status["reason"], "DeadlineExceeded");
    let ended = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&ended["reason"], &ended["exitCode"]),
        (&json!("ContainerStatusUnknown"), &json!(137))
    );
    let text = "DeadlineExceeded: Pod was active on the node longer than the specified deadline";
    scene.until_event(text).await;
    let told = |event: &&Value| event["reason"] == "DeadlineExceeded";
    let events = scene.api.list("events");
    let events: Vec<_> = events
        .iter()
        .filter(told)
        .map(|event| (&event["type"], &event["count"]))
        .collect();
    assert_eq!(events, [(&json!("Normal"), &json!(1))]);
}
