use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::core::v1::PersistentVolume;
use skiff_api::k8s_openapi::api::storage::v1::StorageClass;
use skiff_daemon::Shutdown;

use super::*;
use crate::model::testing::{asking, node, pod, running};
use crate::testing::no_client;

/// A scheduler that nobody runs: the test takes its steps, and no API server answers.
struct Fixture {
    scheduler: Scheduler,
    inbox: Inbox,
}

impl Fixture {
    fn new(nodes: &[&str]) -> Self {
        let metrics = Metrics::register(&skiff_daemon::Metrics::default(), "default-scheduler");
        let (_, changes) = unbounded_channel();
        let tasks = Tasks::new(Shutdown::new());
        let (scheduler, inbox) = Scheduler::new(&Config::default(), &no_client(), changes, metrics, &tasks);
        let mut fixture = Self { scheduler, inbox };
        for name in nodes {
            let node = Box::new(node(name, json!({})));
            fixture.scheduler.take(Change::Node(Update::Set(node)));
        }
        fixture
    }

    fn set(&mut self, pod: impl Into<Arc<Pod>>) {
        self.scheduler.take(Change::Pod(Update::Set(pod.into())));
    }

    fn remove(&mut self, pod: impl Into<Arc<Pod>>) {
        self.scheduler.take(Change::Pod(Update::Remove(pod.into())));
    }

    fn relist(&mut self, pods: Vec<Arc<Pod>>) {
        self.scheduler.take(Change::Pod(Update::Replace(pods)));
    }

    fn pop(&mut self) -> Attempt {
        self.scheduler.queue.pop().expect("a pod to try")
    }

    /// Tries the next pod; which.
    fn attempt(&mut self) -> Option<String> {
        let attempt = self.scheduler.queue.pop()?;
        let name = attempt.pod.name.to_string();
        self.scheduler.attempt(attempt);
        Some(name)
    }

    /// Takes in the end of the next binding, which has failed.
    async fn finish(&mut self) {
        let result = self.inbox.results.recv().await.expect("a binding");
        self.scheduler.finish(result);
    }

    fn unschedulable(&self) -> usize {
        self.scheduler.queue.counts().unschedulable
    }

    fn is_assumed(&self, name: &str) -> bool {
        self.scheduler.cache.is_assumed(name)
    }

    fn requested(&self) -> i64 {
        self.scheduler.cache.snapshot.nodes[0].requested.milli_cpu
    }
}

/// As important as what runs already, and waiting for room on a node.
fn nominated(node: &str) -> Pod {
    let mut spec = asking("3", "1Gi");
    spec["priority"] = json!(100);
    let mut pod = pod("important", spec);
    pod.nominated_node = Some(node.into());
    pod
}

#[tokio::test]
async fn room_that_is_no_longer_kept_for_another_is_told_of() {
    type Step = fn(&mut Fixture, Attempt);
    let cases: [(&str, Step); 6] = [
        ("deleted", |fixture, _| fixture.remove(nominated("n"))),
        ("being deleted", |fixture, _| {
            fixture.set(Pod {
                terminating: true,
                ..nominated("n")
            });
        }),
        ("placed elsewhere", |fixture, _| {
            fixture.set(nominated("n").bound_to(&"m".into()));
        }),
        ("waits elsewhere", |fixture, _| fixture.set(nominated("m"))),
        ("goes elsewhere", |fixture, attempt| {
            fixture.scheduler.attempt(attempt);
            assert!(fixture.is_assumed("important"));
        }),
        ("has lost it", |fixture, attempt| {
            fixture.set(busy("full", "m", "4"));
            fixture.scheduler.attempt(attempt);
            assert_eq!(
                fixture.scheduler.queue.counts().unschedulable,
                1,
                "it does not wake itself"
            );
        }),
    ];
    for (what, step) in cases {
        let mut fixture = Fixture::new(&["n", "m"]);
        fixture.set(busy("there", "n", "2"));
        fixture.set(nominated("n"));
        let important = fixture.pop();
        let mut spec = asking("2", "1Gi");
        spec["nodeSelector"] = json!({"kubernetes.io/hostname": "n"});
        fixture.set(pod("b", spec));
        assert_eq!(fixture.attempt().as_deref(), Some("b"));
        assert_eq!(fixture.unschedulable(), 1, "the room is kept");
        step(&mut fixture, important);
        assert_eq!(fixture.attempt().as_deref(), Some("b"), "{what}");
        assert!(fixture.is_assumed("b"), "{what}");
    }
}

fn busy(name: &str, on: &str, cpu: &str) -> Arc<Pod> {
    let mut spec = asking(cpu, "1Gi");
    spec["priority"] = json!(100);
    running(name, on, json!({}), spec)
}

#[tokio::test]
async fn a_list_takes_away_a_bound_pod_that_was_never_seen_on_its_node() {
    let mut fixture = Fixture::new(&["n"]);
    let waiting = Arc::new(pod("a", asking("1", "1Gi")));
    fixture.set(Arc::clone(&waiting));
    let attempt = fixture.pop();
    fixture.scheduler.attempt(attempt.clone());
    fixture.relist(vec![waiting]);
    assert_eq!(fixture.requested(), 1000, "its binding is on its way");
    fixture.scheduler.finish(Bound {
        attempt,
        node: "n".into(),
        began: Instant::now(),
        result: Ok(()),
    });
    assert_eq!(fixture.requested(), 1000);
    fixture.relist(Vec::new());
    assert_eq!(fixture.requested(), 0);
    assert!(!fixture.is_assumed("a"));
}

#[tokio::test]
async fn a_binding_whose_answer_was_lost_is_not_done_again() {
    let mut fixture = Fixture::new(&["n"]);
    let waiting = pod("a", asking("1", "1Gi"));
    fixture.set(waiting.clone());
    fixture.attempt();
    fixture.set(waiting.bound_to(&"n".into()));
    fixture.finish().await;
    assert_eq!(fixture.scheduler.queue.uids().count(), 0);
    assert_eq!(fixture.requested(), 1000);
}

/// Two claims that wait for their pods, and one volume, on the one node.
fn one_volume() -> Fixture {
    let mut fixture = Fixture::new(&["n"]);
    let class: StorageClass = parsed(json!({
        "metadata": {"name": "manual"},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }));
    let volume: PersistentVolume = parsed(json!({
        "metadata": {"name": "v"},
        "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "storageClassName": "manual"},
        "status": {"phase": "Available"},
    }));
    let scheduler = &mut fixture.scheduler;
    scheduler.take(Change::StorageClass(Update::Set(("manual".into(), Arc::new(class)))));
    scheduler.take(Change::Volume(Update::Set(("v".into(), Arc::new(volume)))));
    for name in ["a", "b"] {
        let claim: PersistentVolumeClaim = parsed(json!({
            "metadata": {"namespace": "default", "name": name, "uid": name},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}},
                "storageClassName": "manual",
            },
        }));
        let key = ("default".into(), name.into());
        scheduler.take(Change::Claim(Update::Set((key, Arc::new(claim)))));
    }
    fixture
}

fn parsed<T: serde::de::DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).unwrap()
}

fn user(claim: &str) -> Pod {
    pod(
        claim,
        json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}),
    )
}

#[tokio::test]
async fn a_volume_that_one_pod_did_not_get_is_there_for_the_next() {
    for deleted in [false, true] {
        let mut fixture = one_volume();
        fixture.set(user("a"));
        fixture.set(user("b"));
        assert_eq!(fixture.attempt().as_deref(), Some("a"));
        assert_eq!(fixture.attempt().as_deref(), Some("b"));
        assert_eq!(fixture.unschedulable(), 1, "the volume is reserved");
        if deleted {
            fixture.remove(user("a"));
            while fixture.attempt().is_some() {}
            assert_eq!(fixture.unschedulable(), 1, "it still is");
        }
        fixture.finish().await;
        assert_eq!(fixture.attempt().as_deref(), Some("b"), "deleted: {deleted}");
        assert!(fixture.is_assumed("b"), "deleted: {deleted}");
    }
}
