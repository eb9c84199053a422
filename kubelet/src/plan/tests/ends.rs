//! Pods that end: by themselves, by a verdict, by a deletion.

use super::*;

#[test]
fn a_deadline_ends_a_pod() {
    let mut scene = Scene::new(&json!({"activeDeadlineSeconds": 60})).with([running("c")]);
    assert_eq!(scene.actions(), ["kill c0 30"]);
    assert_eq!(scene.plan().finish, None, "not before its containers have ended");
    scene.observed.containers = vec![exited("c", 0, 137, 99)];
    assert_eq!(scene.plan().finish.unwrap().reason.as_deref(), Some("DeadlineExceeded"));
    scene.now = at(30);
    scene.observed.containers = vec![running("c")];
    assert_eq!(scene.plan().wake, Some(at(60)));
    assert_eq!(scene.plan().exceeded, None);
}

/// What has ended in time has ended by itself, even if nobody could be told of it until the deadline was past.
#[test]
fn a_deadline_does_not_undo_an_end() {
    let never = json!({"activeDeadlineSeconds": 60, "restartPolicy": "Never"});
    let late = Some("DeadlineExceeded");
    let cases = [
        (exited("c", 0, 0, 50), "Succeeded", None),
        (exited("c", 0, 0, 60), "Succeeded", None),
        (exited("c", 0, 3, 50), "Failed", None),
        (exited("c", 0, 0, 61), "Failed", late),
        (exited("c", 0, 137, 95), "Failed", late),
    ];
    for (container, phase, reason) in cases {
        let what = format!("{container:?}");
        let plan = Scene::new(&never).with([container]).plan();
        let finish = plan.finish.expect("an end");
        assert_eq!(
            (finish.phase.as_str(), finish.reason.as_deref()),
            (phase, reason),
            "{what}"
        );
        assert_eq!(plan.exceeded.is_some(), reason.is_some(), "{what}");
    }
    // One that starts again has not ended, and a verdict is made once.
    let mut again = Scene::new(&json!({"activeDeadlineSeconds": 60})).with([exited("c", 0, 0, 50)]);
    assert_eq!(again.plan().exceeded, Some(Finish::deadline()));
    again.memory.verdict = Some(Finish::deadline());
    let plan = again.plan();
    assert_eq!((plan.exceeded, plan.finish), (None, Some(Finish::deadline())));
}

/// Why a pod fails is not forgotten when it is deleted meanwhile.
#[test]
fn a_deletion_keeps_the_verdict() {
    for verdict in [Finish::deadline(), Finish::evicted("m", 5)] {
        let mut scene = Scene::new(&json!({})).with([exited("c", 0, 0, 50)]);
        scene.goal = Goal::Stop { grace: 30 };
        assert_eq!(scene.plan().finish, Some(Finish::by_exit(true)));
        scene.memory.verdict = Some(verdict.clone());
        assert_eq!(scene.plan().finish, Some(verdict));
    }
}

/// Two seconds are the least, whatever was asked for.
#[test]
fn a_container_always_has_a_moment_to_end() {
    for (grace, seconds) in [(0, 2), (1, 2), (2, 2), (3, 3)] {
        let mut scene = Scene::new(&json!({})).with([running("c")]);
        scene.goal = Goal::Stop { grace };
        assert_eq!(scene.actions(), [format!("kill c0 {seconds}")]);
    }
}

/// An eviction's grace period is one for all containers, too; without one, no hook runs.
#[test]
fn the_sidecars_of_a_pod_that_is_ended_share_its_time() {
    let hook = json!({"preStop": {"sleep": {"seconds": 9}}});
    let spec = json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "c", "lifecycle": hook}]});
    for (grace, first, last) in [
        (15, "tell c0 15", "kill s0 5"),
        (5, "tell c0 5", "kill s0 2"),
        (0, "kill c0 2", "kill s0 2"),
    ] {
        let mut scene = Scene::new(&spec).with([running("c"), running("s")]);
        scene.memory.verdict = Some(Finish::evicted("m", grace));
        assert_eq!(scene.actions(), [first.to_owned(), format!("tell s0 {grace}")]);
        scene.memory.told_to_end.insert("s0".into(), told(90));
        scene.observed.containers.retain(|container| container.name == "s");
        assert_eq!(scene.actions(), [last]);
    }
}

#[test]
fn an_end_is_told_once() {
    let mut scene = Scene::new(&json!({})).with([running("c")]);
    scene.goal = Goal::Stop { grace: 30 };
    let message = |scene: &Scene| match scene.plan().actions.as_slice() {
        [Action::KillContainer { message, .. }] => message.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(message(&scene).as_deref(), Some("Stopping container c"));
    scene.memory.told_to_end.insert("c0".into(), told(90));
    assert_eq!(message(&scene), None);
}

#[test]
fn a_finished_pod_is_released_once_and_never_runs_again() {
    let mut scene = Scene::new(&json!({})).with([exited("c", 0, 0, 50)]);
    scene.pod.status = serde_json::from_value(json!({"phase": "Succeeded"})).unwrap();
    assert_eq!(scene.actions(), ["stop s0"]);
    scene.observed.sandboxes = vec![sandbox(0, false)];
    assert_eq!(scene.actions(), ["release"]);
    scene.memory.released = true;
    assert_eq!(scene.actions(), Vec::<String>::new());
}

/// KEP-753: what a pod's sidecars are to do before they end, they do beside the main containers; only their signals wait.
#[test]
fn a_pod_that_must_go_ends_in_order() {
    let hook = json!({"preStop": {"exec": {"command": ["true"]}}});
    let spec = json!({
        "initContainers": [
            {"name": "s", "restartPolicy": "Always"}, {"name": "t", "restartPolicy": "Always", "lifecycle": hook},
        ],
        "containers": [{"name": "c", "lifecycle": hook}, {"name": "d"}],
    });
    let mut scene = Scene::new(&spec).with([running("c"), running("d"), running("s"), running("t")]);
    scene.goal = Goal::Stop { grace: 30 };
    assert_eq!(
        scene.actions(),
        ["tell c0 30", "kill d0 30", "tell s0 30", "tell t0 30"]
    );
    for id in ["c0", "d0", "s0", "t0"] {
        scene.memory.told_to_end.insert(id.into(), told(90));
    }
    scene.busy = BTreeSet::from([Task::Container("c".into()), Task::Container("d".into())]);
    assert_eq!(
        scene.actions(),
        Vec::<String>::new(),
        "the sidecars have not their turn"
    );
    scene.busy.clear();
    assert_eq!(
        scene.actions(),
        ["kill c0 20", "kill d0 20"],
        "in what is left, also when tried again"
    );
    scene.observed.containers.retain(|container| container.name != "d");
    assert_eq!(scene.actions(), ["kill c0 20"]);
    scene.observed.containers.retain(|container| container.name != "c");
    scene.busy = BTreeSet::from([Task::Container("c".into())]);
    assert_eq!(
        scene.actions(),
        Vec::<String>::new(),
        "a main container may still come up"
    );
    scene.busy = BTreeSet::from([Task::Container("s".into())]);
    assert_eq!(
        scene.actions(),
        ["kill t0 20"],
        "the hook of one does not hold up another"
    );
    scene.busy.clear();
    scene.observed.containers.retain(|container| container.name != "t");
    scene.now = at(200);
    assert_eq!(scene.actions(), ["kill s0 2"]);
    scene.observed.containers.clear();
    scene.busy = BTreeSet::from([Task::Volumes]);
    assert_eq!(
        scene.actions(),
        Vec::<String>::new(),
        "not while something is under way"
    );
    assert_eq!(
        scene.plan().given_up,
        BTreeSet::from([Task::Volumes]),
        "nobody needs its token any more"
    );
    scene.memory.volumes = Volumes::Pending;
    assert_eq!(
        scene.plan().given_up,
        BTreeSet::new(),
        "what is half made is finished first"
    );
    scene.busy.clear();
    assert_eq!(scene.actions(), ["cleanup"]);
    assert_eq!(scene.plan().finish.unwrap().phase, "Failed");
    scene.memory.cleaned = true;
    assert_eq!(scene.actions(), Vec::<String>::new());
}

/// What cannot be taken away is tried again in its time, and holds up nothing else.
#[test]
fn what_fails_to_end_waits() {
    let failed = || Failure::steady("FailedKillPod", "m".into(), Duration::from_secs(4), at(98));
    let stop = |mut scene: Scene| {
        scene.goal = Goal::Stop { grace: 30 };
        scene
    };
    let ended = || Scene::new(&json!({"restartPolicy": "Never"})).with([exited("c", 0, 0, 50)]);
    let released = || {
        let mut scene = ended();
        scene.observed.sandboxes = vec![sandbox(0, false)];
        scene
    };
    let runs = [
        exited("c", 0, 1, 10),
        exited("c", 1, 1, 20),
        container("c", 2, "s0", State::Running(at(30))),
    ];
    let cases = [
        (
            Task::Container("c".into()),
            stop(Scene::new(&json!({})).with([running("c")])),
            "kill c0 30",
        ),
        (Task::Sandbox, ended(), "stop s0"),
        (Task::Cleanup, released(), "release"),
        (Task::Cleanup, stop(Scene::new(&json!({}))), "cleanup"),
        (Task::Prune, Scene::new(&json!({})).with(runs), "prune c0 "),
    ];
    let tasks: Vec<Task> = cases.iter().map(|(task, ..)| task.clone()).collect();
    for (task, mut scene, action) in cases {
        for other in tasks.iter().filter(|other| **other != task) {
            scene.memory.retries.insert(other.clone(), failed());
        }
        assert_eq!(scene.actions(), [action], "other failures hold up nothing");
        scene.memory.retries.insert(task, failed());
        assert_eq!(scene.actions(), Vec::<String>::new(), "{action}");
        assert_eq!(scene.plan().wake, Some(at(102)), "{action}");
        scene.now = at(102);
        assert_eq!(scene.actions(), [action]);
    }
    let mut scene = Scene::new(&json!({}));
    scene.memory.retries.insert(Task::Container("c".into()), failed());
    assert_eq!(scene.actions(), ["start c 0"], "a start has its own back-off");
}
