//! Deletes pods from nodes whose NoExecute taints they do not tolerate, or no longer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::api::DeleteParams;
use parking_lot::Mutex;
use serde_json::json;
use skiff_api::k8s_openapi::api::core::v1::{Taint, Toleration};

use crate::events::{Recorder, Regarding};
use crate::informer::{Change, Informer};
use crate::manager::Shared;
use crate::queue::Queue;
use crate::view::{Index, Key, Node, Pod, View};
use crate::write::{Error, Merge, Writer};

const WORKERS: usize = 8;

struct Controller {
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    writer: Writer,
    recorder: Recorder,
    queue: Arc<Queue<Key>>,
    /// Pods that will be deleted when their time has come.
    scheduled: Mutex<HashMap<Key, FirstSeen>>,
}

/// When each taint that a pod tolerates for a while was seen first, by key and value.
#[derive(Clone, Debug, Default)]
struct FirstSeen(HashMap<(String, String), Timestamp>);

/// What taints mean for a pod.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    Stay,
    /// Goes at this time, which may have passed.
    GoAt(Timestamp),
    GoNow,
}

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let controller = Arc::new(Controller {
        nodes: shared.informers.nodes.want(),
        pods: shared.informers.pods.want(),
        writer: shared.writer("node-controller"),
        recorder: shared.recorder("taint-eviction-controller"),
        queue: shared.queue("taint_eviction_controller"),
        scheduled: Mutex::default(),
    });
    controller.nodes.tell(&controller, Controller::node_changed);
    controller.pods.tell(&controller, Controller::pod_changed);
    let synced = [controller.nodes.synced(), controller.pods.synced()];
    let queue = Arc::clone(&controller.queue);
    shared.work(&queue, WORKERS, synced, move |key| {
        let this = Arc::clone(&controller);
        async move { this.sync(key).await }
    })
}

fn no_execute(node: &Node) -> impl Iterator<Item = &Taint> {
    node.spec.taints.iter().filter(|taint| taint.effect == "NoExecute")
}

impl FirstSeen {
    fn identity(taint: &Taint) -> (String, String) {
        (taint.key.clone(), taint.value.clone().unwrap_or_default())
    }

    /// What is known at a look at these taints: those that are gone are forgotten, and begin anew when they come back.
    fn look(&self, taints: &[&Taint], now: Timestamp) -> Self {
        let seen = taints.iter().map(|taint| {
            let identity = Self::identity(taint);
            let first = self.0.get(&identity).copied().unwrap_or(now);
            (identity, first)
        });
        Self(seen.collect())
    }

    fn of(&self, taint: &Taint) -> Option<Timestamp> {
        self.0.get(&Self::identity(taint)).copied()
    }
}

impl Controller {
    fn node_changed(&self, change: &Change<'_, Node>) {
        let taints = |node: Option<&Arc<Node>>| {
            node.map(|node| no_execute(node).cloned().collect::<Vec<_>>())
                .unwrap_or_default()
        };
        if taints(change.old) != taints(change.new) {
            for pod in self.pods.by_index(&Index::Node(change.object().name().to_owned())) {
                self.queue.add(pod.key());
            }
        }
    }

    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let relevant =
            |pod: Option<&Arc<Pod>>| pod.map(|pod| (pod.spec.node_name.clone(), pod.spec.tolerations.clone()));
        if change.is_deletion() || relevant(change.old) != relevant(change.new) {
            self.queue.add(change.object().key());
        }
    }

    async fn sync(&self, key: Key) -> Result<(), Error> {
        let now = Timestamp::now();
        let Some(pod) = self.pods.get(&key).filter(|pod| !pod.is_being_deleted()) else {
            self.scheduled.lock().remove(&key);
            return Ok(());
        };
        let node = pod
            .spec
            .node_name
            .as_deref()
            .and_then(|node| self.nodes.get(&Key::cluster(node)));
        let taints: Vec<_> = node
            .as_deref()
            .map(|node| no_execute(node).collect())
            .unwrap_or_default();
        let before = self.scheduled.lock().get(&key).cloned().unwrap_or_default();
        let seen = before.look(&taints, now);
        let born = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let since = |taint: &Taint| seen.of(taint).unwrap_or(now);
        match verdict(&taints, &pod.spec.tolerations, born, since) {
            Verdict::Stay => {
                if self.scheduled.lock().remove(&key).is_some() {
                    let message = format!("Cancelling deletion of Pod {key}");
                    self.recorder
                        .normal(Regarding::of(&*pod), "TaintManagerEviction", message);
                }
                Ok(())
            }
            Verdict::GoAt(at) => {
                let left = at.duration_since(now);
                if left.is_positive() {
                    self.scheduled.lock().insert(key.clone(), seen);
                    self.queue
                        .add_after(key, left.unsigned_abs().max(Duration::from_millis(1)));
                    return Ok(());
                }
                self.evict(&pod).await
            }
            Verdict::GoNow => self.evict(&pod).await,
        }
    }

    async fn evict(&self, pod: &Pod) -> Result<(), Error> {
        let key = pod.key();
        self.recorder.normal(
            Regarding::of(pod),
            "TaintManagerEviction",
            format!("Marking for deletion Pod {key}"),
        );
        let now = Timestamp::now();
        let patch = json!({
            "metadata": {"uid": pod.uid()},
            "status": {"conditions": [{
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint",
                "lastTransitionTime": now.round(jiff::Unit::Second).unwrap_or(now).to_string(),
            }]},
        });
        let marked = self
            .writer
            .patch_status::<Pod>(&key, Merge::Strategic, &patch)
            .await
            .map(drop);
        let deleted = match marked {
            Ok(()) => {
                self.writer
                    .delete::<Pod>(&key, pod.uid(), DeleteParams::default())
                    .await
            }
            error => error,
        };
        match deleted {
            // After a conflict (also that another pod has the name now), look again.
            Err(error) if !error.is_not_found() => Err(error),
            _ => {
                self.scheduled.lock().remove(&key);
                Ok(())
            }
        }
    }
}

/// A pod goes at once when some taint is not tolerated, and when the shortest of its tolerations ends otherwise. Time
/// counts from the taint's own time, so that a restart of this process gives nobody more or less. A taint that says none
/// (people's do not) counts `since` it was first seen to make the pod go: a restart begins anew.
fn verdict(
    taints: &[&Taint],
    tolerations: &[Toleration],
    born: Option<Timestamp>,
    since: impl Fn(&Taint) -> Timestamp,
) -> Verdict {
    let mut earliest: Option<Timestamp> = None;
    for taint in taints {
        let mut tolerating = tolerations
            .iter()
            .filter(|toleration| tolerates(toleration, taint))
            .peekable();
        if tolerating.peek().is_none() {
            return Verdict::GoNow;
        }
        let Some(seconds) = tolerating.filter_map(|toleration| toleration.toleration_seconds).min() else {
            continue;
        };
        if seconds <= 0 {
            return Verdict::GoNow;
        }
        // The written time was cut to the second: one more, so that none goes early.
        let added = taint
            .time_added
            .as_ref()
            .map_or_else(|| since(taint), |added| added.0 + SignedDuration::from_secs(1));
        let from = born.map_or(added, |born| added.max(born));
        let at = from
            .saturating_add(SignedDuration::from_secs(seconds))
            .unwrap_or(Timestamp::MAX);
        earliest = Some(earliest.map_or(at, |earliest| earliest.min(at)));
    }
    earliest.map_or(Verdict::Stay, Verdict::GoAt)
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    let exists = toleration.operator.as_deref() == Some("Exists");
    (effect.is_empty() || effect == taint.effect)
        && (key == taint.key || (key.is_empty() && exists))
        && (exists || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn run(taints: &Value, tolerations: &Value, born: &str) -> Verdict {
        let taints: Vec<Taint> = serde_json::from_value(taints.clone()).unwrap();
        let tolerations: Vec<Toleration> = serde_json::from_value(tolerations.clone()).unwrap();
        let since = "2026-01-01T01:00:00Z".parse().unwrap();
        verdict(
            &taints.iter().collect::<Vec<_>>(),
            &tolerations,
            Some(born.parse().unwrap()),
            |_| since,
        )
    }

    /// What a pod that tolerates `a` for 300 s and `b` for 60 s hears at each look at the node's taints, in seconds.
    #[test]
    fn each_taint_without_a_time_counts_from_when_it_came() {
        let tolerations: Vec<Toleration> = serde_json::from_value(json!([
            {"key": "a", "operator": "Exists", "tolerationSeconds": 300},
            {"key": "b", "operator": "Exists", "tolerationSeconds": 60},
        ]))
        .unwrap();
        let second = |second| Timestamp::from_second(second).unwrap();
        let mut seen = FirstSeen::default();
        for (now, taints, expected) in [
            (1000, &["a"][..], Some(1300)),
            (1100, &["a", "b"], Some(1160)),
            (1110, &["b", "a"], Some(1160)),
            // One that goes and comes back begins anew.
            (1120, &["a"], Some(1300)),
            (1130, &["a", "b"], Some(1190)),
            // So does one with another value.
            (1150, &["a", "b=x"], Some(1210)),
            (1280, &["a"], Some(1300)),
            (1290, &[], None),
            (1295, &["a"], Some(1595)),
        ] {
            let taints = taints.iter().map(|text| {
                let (key, value) = text.split_once('=').unwrap_or((text, ""));
                Taint {
                    key: key.to_owned(),
                    value: (!value.is_empty()).then(|| value.to_owned()),
                    effect: "NoExecute".to_owned(),
                    ..Taint::default()
                }
            });
            let taints: Vec<_> = taints.collect();
            let taints: Vec<_> = taints.iter().collect();
            seen = seen.look(&taints, second(now));
            let found = verdict(&taints, &tolerations, None, |taint| seen.of(taint).unwrap());
            let expected = expected.map_or(Verdict::Stay, |at| Verdict::GoAt(second(at)));
            assert_eq!(found, expected, "at {now}");
        }
    }

    #[test]
    fn tolerations_decide_when_a_pod_goes() {
        let taint = |key: &str| json!({"key": key, "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"});
        let for_seconds = |key: &str, seconds: u64| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        let at = |text: &str| Verdict::GoAt(text.parse().unwrap());
        let old = "2025-01-01T00:00:00Z";
        let cases = [
            (json!([]), json!([]), old, Verdict::Stay),
            (json!([taint("a")]), json!([]), old, Verdict::GoNow),
            (json!([taint("a")]), json!([{"operator": "Exists"}]), old, Verdict::Stay),
            (
                json!([taint("a")]),
                json!([{"key": "a", "value": "x"}]),
                old,
                Verdict::GoNow,
            ),
            (
                json!([taint("a")]),
                json!([{"key": "a", "operator": "Exists", "effect": "NoSchedule"}]),
                old,
                Verdict::GoNow,
            ),
            (
                json!([taint("a")]),
                json!([for_seconds("a", 300)]),
                old,
                at("2026-01-01T00:05:01Z"),
            ),
            (json!([taint("a")]), json!([for_seconds("a", 0)]), old, Verdict::GoNow),
            (
                json!([taint("a"), taint("b")]),
                json!([for_seconds("a", 300), for_seconds("b", 60)]),
                old,
                at("2026-01-01T00:01:01Z"),
            ),
            (
                json!([taint("a"), taint("b")]),
                json!([for_seconds("a", 300)]),
                old,
                Verdict::GoNow,
            ),
            // Born on a tainted node: its time starts with it.
            (
                json!([taint("a")]),
                json!([for_seconds("a", 300)]),
                "2026-01-01T00:30:00Z",
                at("2026-01-01T00:35:00Z"),
            ),
            // Nobody wrote down when it was tainted.
            (
                json!([{"key": "a", "effect": "NoExecute"}]),
                json!([for_seconds("a", 300)]),
                old,
                at("2026-01-01T01:05:00Z"),
            ),
            (
                json!([{"key": "a", "effect": "NoExecute"}, taint("b")]),
                json!([for_seconds("a", 300), for_seconds("b", 7200)]),
                old,
                at("2026-01-01T01:05:00Z"),
            ),
        ];
        for (taints, tolerations, born, expected) in cases {
            assert_eq!(run(&taints, &tolerations, born), expected, "{taints} {tolerations}");
        }
    }
}
