//! Table tests: which status shows which state.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::memory::{Failure, Finish, HOOK_FAILED, Health, Told, Volumes};
use crate::observed::{Container, Exit, Sandbox, State};
use crate::pod::tests::pod;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn container(name: &str, attempt: u32, state: State) -> Container {
    Container {
        id: format!("{name}{attempt}"),
        name: name.into(),
        attempt,
        sandbox: "s".into(),
        created: at(10),
        state,
        hash: None,
        image: "i:1".into(),
        image_ref: "i@sha256:1".into(),
        log_path: String::new(),
        message_file: None,
        read_only_below: Vec::new(),
        user: None,
    }
}

fn exit(code: i32, reason: &str) -> State {
    State::Exited(Exit {
        started: Some(at(11)),
        finished: at(12),
        code,
        reason: reason.into(),
        message: String::new(),
        recorded: true,
    })
}

struct Scene {
    pod: Pod,
    observed: Observed,
    memory: Memory,
    plan: Plan,
    last: PodStatus,
}

impl Scene {
    fn new(spec: &Value, containers: Vec<Container>) -> Self {
        let sandbox = Sandbox {
            id: "s".into(),
            ready: true,
            ips: vec!["10.0.0.9".into()],
            ..Sandbox::default()
        };
        let mut memory = Memory {
            volumes: Volumes::Ready { refresh: None },
            seen: Some(at(1)),
            ..Memory::default()
        };
        for container in &containers {
            let health = Health {
                started: true,
                ready: true,
            };
            memory.health.insert(container.id.clone(), health);
        }
        Self {
            pod: pod(spec),
            observed: Observed {
                sandboxes: vec![sandbox],
                containers,
            },
            memory,
            plan: Plan::default(),
            last: PodStatus::default(),
        }
    }

    fn status(&self) -> Value {
        let status = generate(&Input {
            pod: &self.pod,
            last: &self.last,
            observed: &self.observed,
            memory: &self.memory,
            plan: &self.plan,
            runtime: "containerd",
            node_ips: &["172.30.0.1".parse().unwrap()],
            now: at(20),
        });
        patch::json(&status)
    }

    fn condition(&self, kind: &str) -> (String, String, String) {
        let status = self.status();
        let found = status["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .find(|c| c["type"] == kind)
            .unwrap();
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        (text("status"), text("reason"), text("message"))
    }
}

fn triple(a: &str, b: &str, c: &str) -> (String, String, String) {
    (a.into(), b.into(), c.into())
}

#[test]
fn a_pod_before_its_sandbox() {
    let mut scene = Scene::new(&json!({}), Vec::new());
    scene.observed = Observed::default();
    let status = scene.status();
    assert_eq!(status["phase"], "Pending");
    assert_eq!(status["hostIP"], "172.30.0.1");
    assert_eq!(status["podIP"], Value::Null);
    assert_eq!(status["startTime"], "1970-01-01T00:00:01Z");
    assert_eq!(status["qosClass"], "BestEffort");
    assert_eq!(status["observedGeneration"], 1);
    let waiting = &status["containerStatuses"][0];
    assert_eq!(waiting["state"], json!({"waiting": {"reason": "ContainerCreating"}}));
    assert_eq!(waiting["started"], false);
    assert_eq!(scene.condition("PodReadyToStartContainers").0, "False");
    assert_eq!(scene.condition("PodScheduled").0, "True");
    let unready = triple("False", "ContainersNotReady", "containers with unready status: [c]");
    assert_eq!(scene.condition("Ready"), unready);
    assert_eq!(scene.condition("ContainersReady"), unready);
}

/// Its phase is final for the API: nothing would start it again.
#[test]
fn a_container_that_is_being_replaced_ends_no_pod() {
    let spec = json!({"restartPolicy": "Never"});
    for (again, code, phase) in [
        (true, 137, "Running"),
        (true, 0, "Running"),
        (false, 137, "Failed"),
        (false, 0, "Succeeded"),
    ] {
        let mut scene = Scene::new(&spec, vec![container("c", 0, exit(code, ""))]);
        let told = Told { since: at(11), again };
        scene.memory.told_to_end.insert("c0".into(), told);
        assert_eq!(scene.status()["phase"], phase, "{again} {code}");
    }
}

#[test]
fn a_running_pod() {
    let mut scene = Scene::new(&json!({}), vec![container("c", 0, State::Running(at(11)))]);
    let status = scene.status();
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["podIPs"], json!([{"ip": "10.0.0.9"}]));
    assert_eq!(
        status["containerStatuses"][0],
        json!({
            "name": "c", "image": "i:1", "imageID": "i@sha256:1", "containerID": "containerd://c0", "ready": true,
            "started": true, "restartCount": 0, "lastState": {},
            "state": {"running": {"startedAt": "1970-01-01T00:00:11Z"}},
        })
    );
    assert_eq!(scene.condition("Ready").0, "True");
    scene.memory.health.get_mut("c0").unwrap().ready = false;
    assert_eq!(scene.condition("Ready").1, "ContainersNotReady");
}

#[test]
fn a_user_is_shown_where_the_runtime_tells_it() {
    let mut c = container("c", 0, State::Running(at(11)));
    let status = Scene::new(&json!({}), vec![c.clone()]).status();
    assert!(status["containerStatuses"][0]["user"].is_null(), "{status:#}");
    c.user = Some(skiff_cri::ContainerUser {
        uid: 1000,
        gid: 2000,
        supplemental_groups: vec![2000, 3000],
    });
    let status = Scene::new(&json!({}), vec![c]).status();
    let user = json!({"linux": {"uid": 1000, "gid": 2000, "supplementalGroups": [2000, 3000]}});
    assert_eq!(status["containerStatuses"][0]["user"], user);
}

#[test]
fn mounts_are_shown_as_they_are() {
    let spec = json!({"containers": [{"name": "c", "volumeMounts": [
        {"name": "v", "mountPath": "/v"}, {"name": "r", "mountPath": "/r", "readOnly": true},
        {"name": "d", "mountPath": "d", "readOnly": true, "recursiveReadOnly": "IfPossible"}]}]});
    let mut c = container("c", 0, State::Running(at(11)));
    c.read_only_below = vec!["/d".into()];
    let scene = Scene::new(&spec, vec![c]);
    assert_eq!(
        scene.status()["containerStatuses"][0]["volumeMounts"],
        json!([
            {"name": "v", "mountPath": "/v"},
            {"name": "r", "mountPath": "/r", "readOnly": true, "recursiveReadOnly": "Disabled"},
            {"name": "d", "mountPath": "d", "readOnly": true, "recursiveReadOnly": "Enabled"},
        ])
    );
}

#[test]
fn readiness_gates() {
    let spec = json!({"readinessGates": [{"conditionType": "a.b/c"}]});
    let mut scene = Scene::new(&spec, vec![container("c", 0, State::Running(at(11)))]);
    let missing = "corresponding condition of pod readiness gate \"a.b/c\" does not exist.";
    assert_eq!(
        scene.condition("Ready"),
        triple("False", "ReadinessGatesNotReady", missing)
    );
    scene.last = serde_json::from_value(json!({"conditions": [{"type": "a.b/c", "status": "True"}]})).unwrap();
    assert_eq!(scene.condition("Ready").0, "True");
}

#[test]
fn a_crash_loop() {
    let containers = vec![container("c", 2, exit(1, "Error")), container("c", 1, exit(0, ""))];
    let mut scene = Scene::new(&json!({}), containers);
    let waiting = ("CrashLoopBackOff".into(), "back-off 10s ...".into());
    scene.plan.waiting.insert("c".into(), waiting);
    let status = scene.status();
    assert_eq!(status["phase"], "Running");
    let c = &status["containerStatuses"][0];
    assert_eq!(c["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(c["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(c["lastState"]["terminated"]["containerID"], "containerd://c2");
    assert_eq!(
        (&c["restartCount"], &c["ready"], &c["started"]),
        (&json!(2), &json!(false), &json!(false))
    );
    scene.plan.waiting.clear();
    let c = &scene.status()["containerStatuses"][0];
    assert_eq!(c["state"]["terminated"]["reason"], "Error");
    assert_eq!(c["lastState"]["terminated"]["reason"], "Completed");
}

#[test]
fn phases() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "a"}, {"name": "b"}]});
    let run = |name: &str| container(name, 0, State::Running(at(11)));
    let end = |name: &str, code: i32| container(name, 0, exit(code, ""));
    let cases = [
        (vec![], "Pending"),
        (vec![run("a")], "Pending"),
        (vec![run("a"), run("b")], "Running"),
        (vec![run("a"), end("b", 1)], "Running"),
        (vec![end("a", 0), end("b", 0)], "Succeeded"),
        (vec![end("a", 0), end("b", 2)], "Failed"),
    ];
    for (containers, phase) in cases {
        let names: Vec<_> = containers.iter().map(|c: &Container| c.id.clone()).collect();
        assert_eq!(Scene::new(&spec, containers).status()["phase"], phase, "{names:?}");
    }
    let own =
        |of_pod: &str, own: &str| json!({"restartPolicy": of_pod, "containers": [{"name": "a", "restartPolicy": own}]});
    let cases = [
        (own("Always", "Never"), 0, "Succeeded"),
        (own("Always", "Never"), 1, "Failed"),
        (own("Never", "Always"), 0, "Running"),
        (own("Never", "OnFailure"), 1, "Running"),
    ];
    for (spec, code, phase) in cases {
        assert_eq!(
            Scene::new(&spec, vec![end("a", code)]).status()["phase"],
            phase,
            "{spec} {code}"
        );
    }
}

/// The phase is final for the API: a verdict without its reason would stay so.
#[test]
fn a_verdict_is_told_with_its_reason_or_not_yet() {
    for code in [0, 137] {
        let spec = json!({"restartPolicy": "Never"});
        let mut scene = Scene::new(&spec, vec![container("c", 0, exit(code, ""))]);
        scene.memory.verdict = Some(Finish::deadline());
        assert_eq!(scene.status()["phase"], "Running", "its kill has not come back");
        scene.plan.finish = scene.memory.verdict.clone();
        let status = scene.status();
        assert_eq!(
            (&status["phase"], &status["reason"]),
            (&json!("Failed"), &json!("DeadlineExceeded"))
        );
    }
}

#[test]
fn initialization() {
    let spec = json!({"initContainers": [{"name": "i"}, {"name": "j"}]});
    let scene = Scene::new(&spec, vec![container("i", 0, State::Running(at(11)))]);
    let status = scene.status();
    assert_eq!(status["phase"], "Pending");
    assert_eq!(
        status["containerStatuses"][0]["state"]["waiting"]["reason"],
        "PodInitializing"
    );
    let incomplete = "containers with incomplete status: [i j]";
    assert_eq!(
        scene.condition("Initialized"),
        triple("False", "ContainersNotInitialized", incomplete)
    );
    let done = ["i", "j"].map(|name| container(name, 0, exit(0, "")));
    let mut scene = Scene::new(&spec, done.to_vec());
    assert_eq!(scene.condition("Initialized").0, "True");
    assert_eq!(scene.status()["initContainerStatuses"][0]["ready"], true);
    scene
        .observed
        .containers
        .push(container("c", 0, State::Running(at(11))));
    assert_eq!(scene.status()["phase"], "Running");
}

#[test]
fn a_finished_pod() {
    let mut scene = Scene::new(
        &json!({"restartPolicy": "OnFailure"}),
        vec![container("c", 0, exit(0, ""))],
    );
    scene.plan.finish = Some(Finish {
        evicted: None,
        phase: "Succeeded".into(),
        reason: None,
        message: None,
    });
    scene.observed.sandboxes[0].ready = false;
    scene.last = serde_json::from_value(json!({"podIPs": [{"ip": "10.0.0.9"}]})).unwrap();
    let status = scene.status();
    assert_eq!(
        (&status["phase"], &status["podIP"]),
        (&json!("Succeeded"), &json!("10.0.0.9"))
    );
    assert_eq!(scene.condition("Ready").1, "PodCompleted");
    assert_eq!(scene.condition("Initialized").1, "PodCompleted");
    scene.plan.finish = Some(Finish::failed("DeadlineExceeded", "m"));
    let status = scene.status();
    assert_eq!(
        (&status["phase"], &status["reason"]),
        (&json!("Failed"), &json!("DeadlineExceeded"))
    );
    assert_eq!(scene.condition("Ready").1, "PodFailed");
}

/// As long as a postStart hook runs, and once it has failed, what was before its container is shown.
#[test]
fn a_container_is_shown_once_its_hook_has_succeeded() {
    let runs = || container("c", 1, State::Running(at(13)));
    let state = |scene: &Scene| {
        let status = scene.status();
        assert_eq!(scene.condition("Ready").0, "False", "{status:#}");
        (status["phase"].clone(), status["containerStatuses"][0].clone())
    };
    let mut first = Scene::new(&json!({}), vec![container("c", 0, State::Running(at(13)))]);
    first.memory.hooks.insert("c".into());
    let (phase, shown) = state(&first);
    assert_eq!(phase, "Pending");
    assert_eq!(shown["state"], json!({"waiting": {"reason": "ContainerCreating"}}));
    let mut again = Scene::new(&json!({}), vec![runs(), container("c", 0, exit(1, "Error"))]);
    again.memory.hooks.insert("c".into());
    let (phase, shown) = state(&again);
    assert_eq!(phase, "Running");
    assert_eq!(
        (
            &shown["state"]["terminated"]["exitCode"],
            &shown["restartCount"],
            &shown["lastState"]
        ),
        (&json!(1), &json!(0), &json!({}))
    );
    // Nor does the count go to and fro between two looks at the start.
    let before = state(&again);
    let started = std::mem::replace(&mut again.observed.containers[0].state, State::Created);
    assert_eq!(state(&again), before);
    again.observed.containers[0].state = started;
    let failure = Failure::steady(HOOK_FAILED, "m".into(), Duration::ZERO, at(12));
    again.memory.starts.insert("c".into(), failure);
    let (_, shown) = state(&again);
    assert_eq!(
        shown["state"]["waiting"],
        json!({"reason": "PostStartHookError", "message": "m"})
    );
    assert_eq!(shown["lastState"]["terminated"]["exitCode"], 1);
    again.memory.hooks.clear();
    assert_eq!(again.condition("Ready").0, "True");
}

#[test]
fn nothing_of_a_pod_that_is_over_waits() {
    let lost = |state: &Value| {
        let ended = &state["terminated"];
        let text = "The container could not be located when the pod was terminated";
        (ended["reason"] == "ContainerStatusUnknown" && ended["exitCode"] == 137 && ended["message"] == text)
            || ended["reason"] == "Error"
    };
    let ended = |name: &str, code: i32| container(name, 0, exit(code, "Error"));
    let two = json!([{"name": "i"}, {"name": "j"}]);
    // Of the init containers and the main one, in order: whether they have ended, and whether where nothing was ever begun.
    let cases = [
        (json!({}), vec![], vec![true], vec![false]),
        (
            json!({}),
            vec![container("c", 0, State::Created)],
            vec![true],
            vec![false],
        ),
        (
            json!({"initContainers": two}),
            vec![],
            vec![true, false, false],
            vec![false, false, false],
        ),
        (
            json!({"initContainers": two}),
            vec![ended("i", 0)],
            vec![true, false, false],
            vec![true, false, false],
        ),
        (
            json!({"initContainers": two}),
            vec![ended("i", 0), ended("j", 3)],
            vec![true, true, false],
            vec![true, true, false],
        ),
        (
            json!({"initContainers": two}),
            vec![ended("i", 0), ended("j", 0)],
            vec![true, true, true],
            vec![true, true, false],
        ),
        (
            json!({"initContainers": two}),
            vec![ended("c", 0)],
            vec![true, false, true],
            vec![false, false, true],
        ),
    ];
    for (spec, containers, expected, refused) in cases {
        let what = format!("{spec} {containers:?}");
        let mut scene = Scene::new(&spec, containers);
        let ended = |scene: &Scene| {
            let status = scene.status();
            let lists = ["initContainerStatuses", "containerStatuses"].map(|list| status[list].as_array().cloned());
            lists
                .into_iter()
                .flatten()
                .flatten()
                .map(|status| lost(&status["state"]))
                .collect::<Vec<_>>()
        };
        scene.plan.finish = Some(Finish::deadline());
        scene.memory.refused = true;
        assert_eq!(ended(&scene), refused, "{what}: refused");
        scene.memory.refused = false;
        assert_eq!(ended(&scene), expected, "{what}");
        // The API takes back no end.
        scene.last = serde_json::from_value(scene.status()).unwrap();
        scene.pod.status = Some(scene.last.clone());
        assert_eq!(ended(&scene), expected, "{what}: told");
    }
}

#[test]
fn transitions_keep_their_time() {
    let mut scene = Scene::new(&json!({}), vec![container("c", 0, State::Running(at(11)))]);
    let time = |scene: &Scene, kind: &str| {
        let status = scene.status();
        let list = status["conditions"].as_array().unwrap().clone();
        list.iter().find(|c| c["type"] == kind).unwrap()["lastTransitionTime"].clone()
    };
    assert_eq!(time(&scene, "Ready"), "1970-01-01T00:00:20Z");
    scene.last = serde_json::from_value(json!({"conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:05Z"},
        {"type": "ContainersReady", "status": "False", "lastTransitionTime": "1970-01-01T00:00:05Z"},
    ]}))
    .unwrap();
    assert_eq!(time(&scene, "Ready"), "1970-01-01T00:00:05Z");
    assert_eq!(time(&scene, "ContainersReady"), "1970-01-01T00:00:20Z");
}
