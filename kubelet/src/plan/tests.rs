//! Table tests: what is planned for which pod in which state.

mod ends;

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::core::v1::Pod;

use super::*;
use crate::backoff::Backoff;
use crate::labels;
use crate::memory::{Doom, Failure, Health, Told, Volumes};
use crate::observed::{Container, Exit, Sandbox, State};
use crate::pod::tests::pod;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn sandbox(attempt: u32, ready: bool) -> Sandbox {
    Sandbox {
        id: format!("s{attempt}"),
        attempt,
        ready,
        created: at(0),
        ips: vec!["10.0.0.1".into()],
    }
}

fn container(name: &str, attempt: u32, sandbox: &str, state: State) -> Container {
    Container {
        id: format!("{name}{attempt}"),
        name: name.into(),
        attempt,
        sandbox: sandbox.into(),
        created: at(i64::from(attempt)),
        state,
        hash: None,
        image: String::new(),
        image_ref: String::new(),
        log_path: String::new(),
        message_file: None,
        read_only_below: Vec::new(),
        user: None,
    }
}

fn running(name: &str) -> Container {
    container(name, 0, "s0", State::Running(at(0)))
}

fn exited(name: &str, attempt: u32, code: i32, finished: i64) -> Container {
    let exit = Exit {
        started: Some(at(0)),
        finished: at(finished),
        code,
        reason: String::new(),
        message: String::new(),
        recorded: true,
    };
    container(name, attempt, "s0", State::Exited(exit))
}

fn told(second: i64) -> Told {
    Told {
        since: at(second),
        again: false,
    }
}

/// A scene that a test changes and plans for.
struct Scene {
    pod: Pod,
    goal: Goal,
    observed: Observed,
    memory: Memory,
    busy: BTreeSet<Task>,
    now: Timestamp,
}

impl Scene {
    /// A pod whose volumes are ready and whose sandbox runs.
    fn new(spec: &Value) -> Self {
        Self {
            pod: pod(spec),
            goal: Goal::Run,
            observed: Observed {
                sandboxes: vec![sandbox(0, true)],
                containers: Vec::new(),
            },
            memory: Memory {
                volumes: Volumes::Ready { refresh: None },
                seen: Some(at(0)),
                ..Memory::default()
            },
            busy: BTreeSet::new(),
            now: at(100),
        }
    }

    fn with(mut self, containers: impl IntoIterator<Item = Container>) -> Self {
        self.observed.containers.extend(containers);
        self.observed
            .containers
            .sort_by_key(|container| std::cmp::Reverse(container.attempt));
        self
    }

    fn plan(&self) -> Plan {
        plan(&Input {
            pod: &self.pod,
            goal: self.goal,
            observed: &self.observed,
            memory: &self.memory,
            busy: &self.busy,
            now: self.now,
        })
    }

    /// The actions, in a short form.
    fn actions(&self) -> Vec<String> {
        self.plan().actions.iter().map(short).collect()
    }
}

fn short(action: &Action) -> String {
    match action {
        Action::PrepareVolumes => "volumes".into(),
        Action::CreateSandbox { attempt } => format!("sandbox {attempt}"),
        Action::StartContainer { name, attempt, .. } => format!("start {name} {attempt}"),
        Action::PreStop { id, grace, .. } => format!("tell {id} {grace}"),
        Action::KillContainer { id, grace, .. } => format!("kill {id} {grace}"),
        Action::StopSandbox { id } => format!("stop {id}"),
        Action::Prune { containers, sandboxes } => format!("prune {} {}", containers.join(","), sandboxes.join(",")),
        Action::Release => "release".into(),
        Action::Cleanup => "cleanup".into(),
    }
}

#[test]
fn a_new_pod_gets_volumes_and_sandbox_at_once() {
    let mut scene = Scene::new(&json!({}));
    scene.observed = Observed::default();
    scene.memory.volumes = Volumes::Pending;
    assert_eq!(scene.actions(), ["volumes", "sandbox 0"]);
    scene.busy = BTreeSet::from([Task::Volumes]);
    assert_eq!(scene.actions(), ["sandbox 0"]);
    scene.busy = BTreeSet::from([Task::Sandbox]);
    scene.memory.volumes = Volumes::Ready { refresh: None };
    assert_eq!(scene.actions(), Vec::<String>::new());
}

#[test]
fn containers_start_when_both_are_there() {
    let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    assert_eq!(Scene::new(&two).actions(), ["start a 0", "start b 0"]);
    assert_eq!(Scene::new(&two).with([running("a")]).actions(), ["start b 0"]);
    let mut scene = Scene::new(&two);
    scene.memory.volumes = Volumes::Failed(Failure::steady(
        "FailedMount",
        "m".into(),
        Duration::from_secs(5),
        at(99),
    ));
    assert_eq!(scene.actions(), Vec::<String>::new());
    assert_eq!(scene.plan().wake, Some(at(104)));
}

#[test]
fn a_post_start_hook_holds_back_the_next_container() {
    let hook = json!({"postStart": {"exec": {"command": ["true"]}}});
    let mut scene = Scene::new(&json!({"containers": [{"name": "a", "lifecycle": hook}, {"name": "b"}]}));
    assert_eq!(scene.actions(), ["start a 0"]);
    scene = scene.with([running("a")]);
    scene.busy = BTreeSet::from([Task::Container("a".into())]);
    assert_eq!(scene.actions(), Vec::<String>::new());
    scene.busy.clear();
    assert_eq!(scene.actions(), ["start b 0"]);
}

#[test]
fn restart_policies() {
    let cases = [
        ("Always", 0, vec!["start c 1"], None),
        ("Always", 1, vec!["start c 1"], None),
        ("OnFailure", 0, vec!["stop s0"], Some("Succeeded")),
        ("OnFailure", 1, vec!["start c 1"], None),
        ("Never", 0, vec!["stop s0"], Some("Succeeded")),
        ("Never", 1, vec!["stop s0"], Some("Failed")),
    ];
    for (policy, code, actions, phase) in cases {
        let scene = Scene::new(&json!({"restartPolicy": policy})).with([exited("c", 0, code, 50)]);
        assert_eq!(scene.actions(), actions, "{policy} {code}");
        let finish = scene.plan().finish.map(|finish| finish.phase);
        assert_eq!(finish.as_deref(), phase, "{policy} {code}");
    }
}

#[test]
fn a_containers_own_policy_and_rules_decide() {
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let own = |policy: &str, own: Value| json!({"restartPolicy": policy, "containers": [own, {"name": "d"}]});
    let never = json!({"name": "c", "restartPolicy": "Never", "restartPolicyRules": rules});
    let always = json!({"name": "c", "restartPolicy": "Always"});
    let cases = [
        ("Never", &never, 42, 0, vec!["start c 1"], None),
        ("Never", &never, 1, 0, vec!["stop s0"], Some("Failed")),
        ("Never", &always, 0, 0, vec!["start c 1"], None),
        ("OnFailure", &never, 0, 0, vec!["stop s0"], Some("Succeeded")),
        ("Always", &never, 1, 1, vec!["start d 1"], None),
    ];
    for (policy, container, code, other, actions, phase) in cases {
        let spec = own(policy, container.clone());
        let scene = Scene::new(&spec).with([exited("c", 0, code, 50), exited("d", 0, other, 50)]);
        assert_eq!(scene.actions(), actions, "{spec} {code} {other}");
        let finish = scene.plan().finish.map(|finish| finish.phase);
        assert_eq!(finish.as_deref(), phase, "{spec} {code} {other}");
    }
    let single = Scene::new(&json!({"containers": [{"name": "c", "restartPolicy": "Never"}]}));
    let finish = single.with([exited("c", 0, 1, 50)]).plan().finish;
    assert_eq!(
        finish.map(|finish| finish.phase).as_deref(),
        Some("Failed"),
        "whatever the pod's policy says"
    );
}

#[test]
fn an_init_containers_own_policy_and_rules_decide() {
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let cases = [
        (
            json!({"name": "i", "restartPolicy": "Never"}),
            "Always",
            1,
            vec!["stop s0"],
            Some("Failed"),
        ),
        (
            json!({"name": "i", "restartPolicy": "OnFailure"}),
            "Never",
            1,
            vec!["start i 1"],
            None,
        ),
        (
            json!({"name": "i", "restartPolicy": "Never", "restartPolicyRules": rules}),
            "Never",
            42,
            vec!["start i 1"],
            None,
        ),
        (
            json!({"name": "i", "restartPolicy": "Never"}),
            "Always",
            0,
            vec!["start c 0"],
            None,
        ),
    ];
    for (container, policy, code, actions, phase) in cases {
        let spec = json!({"restartPolicy": policy, "initContainers": [container]});
        let scene = Scene::new(&spec).with([exited("i", 0, code, 50)]);
        assert_eq!(scene.actions(), actions, "{spec} {code}");
        assert_eq!(
            scene.plan().finish.map(|finish| finish.phase).as_deref(),
            phase,
            "{spec} {code}"
        );
    }
}

#[test]
fn a_start_in_vain_waits_unless_it_ended_the_container() {
    let failure = |since: i64| Failure::steady(crate::memory::NOT_RUN, "m".into(), Duration::from_secs(10), at(since));
    let mut scene = Scene::new(&json!({})).with([container("c", 0, "s0", State::Created)]);
    scene.memory.starts.insert("c".into(), failure(95));
    let plan = scene.plan();
    assert!(plan.actions.is_empty());
    assert_eq!(
        (plan.waiting["c"].0.as_str(), plan.wake),
        ("RunContainerError", Some(at(105)))
    );
    scene.now = at(105);
    assert_eq!(scene.actions(), ["start c 1"]);
    let mut scene = Scene::new(&json!({})).with([exited("c", 0, 128, 95)]);
    scene.memory.starts.insert("c".into(), failure(95));
    assert_eq!(scene.actions(), ["start c 1"], "the restart back-off governs");
}

#[test]
fn a_crash_loop_backs_off() {
    let mut scene = Scene::new(&json!({})).with([exited("c", 1, 1, 95)]);
    scene
        .memory
        .restarts
        .insert("c".into(), Backoff::next(None, at(50), at(50)));
    let plan = scene.plan();
    assert!(plan.actions.is_empty());
    assert_eq!(plan.wake, Some(at(105)));
    assert_eq!(
        plan.waiting["c"],
        (
            "CrashLoopBackOff".into(),
            "back-off 10s restarting failed container=c pod=p_ns(u1)".into()
        )
    );
    scene.now = at(105);
    assert_eq!(scene.actions(), ["start c 2"]);
}

#[test]
fn a_failed_start_waits_and_shows_why() {
    let mut scene = Scene::new(&json!({}));
    let mut failure = Failure::growing(None, "ErrImagePull", "no such image".into(), at(99));
    failure.pull = Some("i".into());
    scene.memory.starts.insert("c".into(), failure);
    let plan = scene.plan();
    assert!(plan.actions.is_empty());
    assert_eq!(plan.waiting["c"].0, "ErrImagePull");
    scene.now = at(105);
    let plan = scene.plan();
    assert_eq!(
        plan.waiting["c"],
        (
            "ImagePullBackOff".into(),
            "Back-off pulling image \"i\": ErrImagePull: no such image".into()
        )
    );
    assert_eq!(plan.wake, Some(at(109)));
    scene.now = at(109);
    assert_eq!(scene.actions(), ["start c 0"]);
}

#[test]
fn init_containers_run_in_order() {
    let spec = json!({"initContainers": [{"name": "i"}, {"name": "j"}]});
    assert_eq!(Scene::new(&spec).actions(), ["start i 0"]);
    assert_eq!(Scene::new(&spec).with([running("i")]).actions(), Vec::<String>::new());
    assert_eq!(Scene::new(&spec).with([exited("i", 0, 0, 50)]).actions(), ["start j 0"]);
    assert_eq!(Scene::new(&spec).with([exited("i", 0, 1, 50)]).actions(), ["start i 1"]);
    let both = [exited("i", 0, 0, 50), exited("j", 0, 0, 50)];
    assert_eq!(Scene::new(&spec).with(both).actions(), ["start c 0"]);
    // One that is gone, removed as garbage, is not run again once a later one ran.
    assert_eq!(Scene::new(&spec).with([running("c")]).actions(), Vec::<String>::new());
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let scene =
        Scene::new(&json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}]})).with([exited("i", 0, 3, 50)]);
    assert_eq!(scene.actions(), ["stop s0"]);
    assert_eq!(scene.plan().finish.unwrap().phase, "Failed");
}

#[test]
fn sidecars_start_before_and_restart_beside_the_main_containers() {
    let spec = json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "i"}]});
    assert_eq!(Scene::new(&spec).actions(), ["start s 0"]);
    let mut scene = Scene::new(&spec).with([running("s")]);
    assert_eq!(scene.actions(), Vec::<String>::new(), "not started yet");
    let health = Health {
        started: true,
        ready: true,
    };
    scene.memory.health.insert("s0".into(), health);
    assert_eq!(scene.actions(), ["start i 0"]);
    let dead = Scene::new(&spec).with([exited("s", 0, 1, 50), exited("i", 0, 0, 40), running("c")]);
    assert_eq!(dead.actions(), ["start s 1"]);
}

#[test]
fn a_dead_sandbox_is_replaced() {
    let mut scene = Scene::new(&json!({})).with([running("c")]);
    scene.observed.sandboxes = vec![sandbox(0, false)];
    assert_eq!(scene.actions(), ["kill c0 30"], "nothing outlives its sandbox");
    scene.observed.containers = vec![exited("c", 0, 137, 50)];
    assert_eq!(scene.actions(), ["sandbox 1"]);
    scene.observed.sandboxes.insert(0, sandbox(1, true));
    assert_eq!(scene.actions(), ["start c 1"]);
}

#[test]
fn a_failed_sandbox_waits() {
    let mut scene = Scene::new(&json!({}));
    scene.observed = Observed::default();
    scene.memory.sandbox = Some(Failure::steady("x", "m".into(), Duration::from_secs(4), at(98)));
    assert_eq!(scene.actions(), Vec::<String>::new());
    assert_eq!(scene.plan().wake, Some(at(102)));
}

#[test]
fn a_container_is_replaced_when_its_probe_fails_or_its_image_changes() {
    let mut scene = Scene::new(&json!({})).with([running("c")]);
    let doom = Doom {
        message: "m".into(),
        grace: Some(3),
    };
    scene.memory.doomed.insert("c0".into(), doom);
    assert_eq!(scene.actions(), ["kill c0 3"]);
    scene.memory.doomed.clear();
    let spec = crate::pod::main_containers(&scene.pod)[0].clone();
    scene.observed.containers[0].hash = Some(labels::container_hash(&spec));
    assert_eq!(scene.actions(), Vec::<String>::new());
    scene.observed.containers[0].hash = Some("other".into());
    assert_eq!(scene.actions(), ["kill c0 30"]);
}

/// The messages and whether the container starts anew.
fn kills(scene: &Scene) -> Vec<(String, bool)> {
    let plan = scene.plan();
    let kills = plan.actions.iter().filter_map(|action| match action {
        Action::PreStop { message, again, .. } => Some((message.clone(), *again)),
        Action::KillContainer { message, again, .. } => Some((message.clone().unwrap_or_default(), *again)),
        _ => None,
    });
    kills.collect()
}

/// Whatever the restart policy says: the end was ours, not the container's.
#[test]
fn a_container_that_is_replaced_starts_anew() {
    for policy in ["Always", "OnFailure", "Never"] {
        for hook in [json!(null), json!({"preStop": {"sleep": {"seconds": 1}}})] {
            let spec = json!({"restartPolicy": policy, "containers": [{"name": "c", "lifecycle": hook}]});
            let mut scene = Scene::new(&spec).with([running("c")]);
            scene.observed.containers[0].hash = Some("other".into());
            let message = "Container c definition changed, will be restarted";
            assert_eq!(kills(&scene), [(message.to_owned(), true)], "{policy}");
            let again = Told {
                again: true,
                ..told(90)
            };
            scene.memory.told_to_end.insert("c0".into(), again);
            scene.observed.containers[0].hash =
                Some(labels::container_hash(&crate::pod::main_containers(&scene.pod)[0]));
            assert_eq!(scene.actions(), ["kill c0 20"], "it is not taken back");
            for code in [0, 137] {
                scene.observed.containers = vec![exited("c", 0, code, 99)];
                assert_eq!(scene.actions(), ["start c 1"], "{policy} {code}");
                assert_eq!(scene.plan().finish, None, "{policy} {code}");
            }
        }
    }
}

/// The runtime cannot tell whether it runs: there must not be two of it.
#[test]
fn a_container_in_an_unknown_state_is_killed_and_starts_anew() {
    let lost = |name: &str| container(name, 0, "s0", State::Unknown);
    for policy in ["Always", "OnFailure", "Never"] {
        let main = Scene::new(&json!({"restartPolicy": policy})).with([lost("c")]);
        let message = r#"Container is in "unknown" state, try killing it before restart"#;
        assert_eq!(kills(&main), [(message.to_owned(), true)], "{policy}");
        for (spec, again) in [
            (json!({"name": "i"}), false),
            (json!({"name": "i", "restartPolicy": "Always"}), true),
        ] {
            let scene = Scene::new(&json!({"restartPolicy": policy, "initContainers": [spec]})).with([lost("i")]);
            assert_eq!(
                kills(&scene),
                [(format!("Init {}", message.replace('C', "c")), again)],
                "{policy}"
            );
            assert_eq!(scene.actions(), ["kill i0 30"], "and nothing else starts");
        }
    }
}

#[test]
fn old_runs_are_pruned_but_the_last() {
    let runs = [
        exited("c", 0, 1, 10),
        exited("c", 1, 1, 20),
        container("c", 2, "s0", State::Running(at(30))),
    ];
    assert_eq!(Scene::new(&json!({})).with(runs).actions(), ["prune c0 "]);
    let mut scene = Scene::new(&json!({})).with([container("c", 1, "s1", State::Running(at(30)))]);
    scene.observed.sandboxes = vec![sandbox(1, true), sandbox(0, false)];
    assert_eq!(scene.actions(), ["prune  s0"]);
}

/// A hook that failed: its container ends, starts as the restart back-off says, and says why it waits.
#[test]
fn a_failed_post_start_hook_is_shown_until_the_next_start() {
    let hook = json!({"postStart": {"exec": {"command": ["true"]}}});
    let mut scene =
        Scene::new(&json!({"containers": [{"name": "c", "lifecycle": hook}]})).with([exited("c", 0, 137, 99)]);
    let failure = Failure::steady(crate::memory::HOOK_FAILED, "m".into(), Duration::ZERO, at(99));
    scene.memory.starts.insert("c".into(), failure);
    assert_eq!(scene.actions(), ["start c 1"]);
    assert_eq!(scene.plan().waiting["c"].0, "PostStartHookError");
    scene
        .memory
        .restarts
        .insert("c".into(), Backoff::next(None, at(50), at(50)));
    assert_eq!(scene.actions(), Vec::<String>::new());
    assert_eq!(scene.plan().waiting["c"].0, "CrashLoopBackOff");
    scene.busy = BTreeSet::from([Task::Container("c".into())]);
    assert_eq!(
        scene.plan().waiting["c"].0,
        "PostStartHookError",
        "while it is being started"
    );
}

/// A sidecar has started when its hook has succeeded.
#[test]
fn a_sidecars_hook_holds_back_what_follows() {
    let mut scene =
        Scene::new(&json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}]})).with([running("s")]);
    let (started, ready) = (true, true);
    scene.memory.health.insert("s0".into(), Health { started, ready });
    assert_eq!(scene.actions(), ["start c 0"]);
    scene.memory.hooks.insert("s".into());
    scene.busy = BTreeSet::from([Task::Container("s".into())]);
    assert_eq!(scene.actions(), Vec::<String>::new());
}

/// Nothing else than its name need be remembered: it may fail before the runtime was asked of its container.
#[test]
fn a_container_ends_whose_hook_has_failed() {
    let sidecar = json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}]});
    for (spec, name) in [(json!({}), "c"), (sidecar, "s")] {
        let mut scene = Scene::new(&spec).with([running(name)]);
        scene.memory.hooks.insert(name.into());
        assert_eq!(kills(&scene), [("FailedPostStartHook".into(), false)], "{name}");
        scene.busy = BTreeSet::from([Task::Container(name.into())]);
        assert_eq!(scene.actions(), Vec::<String>::new(), "its hook still runs");
    }
}

/// The API takes back no end of a container that never starts again.
#[test]
fn what_has_ended_for_good_does_not_wait_for_a_sandbox() {
    let cases = [
        ("Never", 137, false),
        ("OnFailure", 137, true),
        ("OnFailure", 0, false),
        ("Always", 0, true),
    ];
    for (policy, code, waits) in cases {
        let spec = json!({"restartPolicy": policy, "containers": [{"name": "c"}, {"name": "d"}]});
        let mut scene = Scene::new(&spec).with([exited("c", 0, code, 90), running("d")]);
        scene.observed.sandboxes = vec![sandbox(0, false)];
        for name in ["c", "d"] {
            let failure = Failure::steady(crate::memory::HOOK_FAILED, "m".into(), Duration::ZERO, at(90));
            scene.memory.starts.insert(name.into(), failure);
        }
        let waiting = scene.plan().waiting;
        let shown = ["c", "d"].map(|name| waiting.contains_key(name));
        assert_eq!(shown, [waits, true], "{policy} {code}");
    }
}

/// On a full disk. Only what the API knows to have ended: nothing else would keep it from running again.
#[test]
fn what_is_kept_of_a_finished_pod_goes_when_it_must() {
    let spec = json!({"restartPolicy": "Never"});
    let mut scene = Scene::new(&spec).with([exited("c", 0, 0, 10)]);
    scene.observed.sandboxes = vec![sandbox(0, false)];
    scene.memory.released = true;
    assert!(scene.actions().is_empty());
    scene.memory.bare = true;
    assert!(scene.actions().is_empty(), "the API has not heard of its end");
    scene.pod.status = serde_json::from_value(json!({"phase": "Succeeded"})).unwrap();
    assert_eq!(scene.actions(), ["prune c0 s0"]);
    scene.observed = Observed::default();
    assert!(scene.actions().is_empty());
    assert_eq!(scene.plan().finish.unwrap().phase, "Succeeded");
}

/// As long as something runs in the old sandbox, there is no new one.
#[test]
fn a_sandbox_waits_for_what_cannot_be_killed() {
    let mut scene = Scene::new(&json!({})).with([running("c")]);
    scene.observed.sandboxes = vec![sandbox(0, false)];
    let failure = Failure::steady("FailedKillPod", "m".into(), Duration::from_secs(4), at(98));
    scene.memory.retries.insert(Task::Container("c".into()), failure);
    assert_eq!(scene.actions(), Vec::<String>::new());
}

#[test]
fn a_runtime_that_forgot_does_not_reset_the_count() {
    let mut scene = Scene::new(&json!({}));
    let status = json!({"containerStatuses": [
        {"name": "c", "containerID": "containerd://x", "restartCount": 4, "image": "", "imageID": "", "ready": false},
    ]});
    scene.pod.status = serde_json::from_value(status).unwrap();
    assert_eq!(scene.actions(), ["start c 5"]);
}

/// A clock that is set by an hour, either way, neither stops a restart nor makes it come at once.
#[test]
fn a_back_off_outlives_a_clock_that_is_set() {
    for step in [-3600, 3600] {
        let step = jiff::SignedDuration::from_secs(step);
        let p = pod(&json!({}));
        let observed = Observed {
            sandboxes: vec![sandbox(0, true)],
            containers: vec![exited("c", 1, 1, 100)],
        };
        let mut memory = Memory {
            volumes: Volumes::Ready { refresh: None },
            ..Memory::default()
        };
        memory.restarts.insert("c".into(), Backoff::next(None, at(90), at(90)));
        memory.ends.insert("c1".into(), at(100));
        let starts = |memory: &Memory, now: Timestamp| {
            let busy = BTreeSet::new();
            let input = Input {
                pod: &p,
                goal: Goal::Run,
                observed: &observed,
                memory,
                busy: &busy,
                now,
            };
            let plan = plan(&input);
            let starts = plan
                .actions
                .iter()
                .any(|action| matches!(action, Action::StartContainer { .. }));
            (starts, plan.wake)
        };
        assert_eq!(starts(&memory, at(101)), (false, Some(at(110))));
        memory.shift(step);
        let now = |second| crate::clock::moved(at(second), step);
        assert!(starts(&memory, now(111)).0, "after {step:?} the restart comes");
        let (early, wake) = starts(&memory, now(102));
        assert_eq!(
            (early, wake),
            (false, Some(now(110))),
            "after {step:?} it comes in its time"
        );
    }
}
