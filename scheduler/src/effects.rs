//! What follows from decisions, away from the cycle: conditions, events, deleted victims.
//!
//! Two tasks: one writes pod statuses, the newest of each pod; one records events. Scheduling waits for neither, but a
//! binding waits for a status of the same pod that is being written: it must not overtake the binding and take it back.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::core::v1::ObjectReference;
use skiff_daemon::{Tasks, error_chain};
use tokio::sync::{Notify, mpsc};

use crate::Error;
use crate::config::Config;
use crate::framework::Preemption;
use crate::model::{Condition, Pod};
use crate::request::{delete, patch};

/// Events that wait to be recorded; more are dropped.
const BACKLOG: usize = 5000;

/// What is to be written about pods.
#[derive(Debug)]
enum Task {
    /// No node can take this one; what to say is in [`Waiting::statuses`].
    Status(Arc<str>),
    /// Pods that have to go for another.
    Preempt {
        preemptor: Arc<Pod>,
        preemption: Preemption,
    },
}

/// No node can take a pod.
#[derive(Debug)]
struct Unschedulable {
    pod: Arc<Pod>,
    message: String,
    nomination: Nomination,
}

/// What becomes of a pod's nominated node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Nomination {
    /// Nothing.
    Keep,
    /// Room is being made for it there.
    Set(Arc<str>),
    /// It waits for no node in particular any more.
    Clear,
}

#[derive(Debug, Default)]
struct Waiting {
    tasks: VecDeque<Task>,
    /// The newest for each pod; one that is missing here has been overtaken.
    statuses: HashMap<Arc<str>, Unschedulable>,
    /// The pod whose status is being written right now.
    writing: Option<Arc<str>>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Something waits.
    more: Notify,
    /// Held while a status is being written.
    busy: tokio::sync::Mutex<()>,
}

/// Hands decisions on.
#[derive(Clone, Debug)]
pub(crate) struct Effects {
    shared: Arc<Shared>,
    events: mpsc::Sender<(Event, ObjectReference)>,
}

struct StatusWriter {
    client: Client,
    scheduler: String,
    effects: Effects,
    /// Hears of each pod (its UID) that a victim could not be deleted for.
    failed: mpsc::UnboundedSender<Arc<str>>,
}

// === impl Effects ===

impl Effects {
    /// Starts the two tasks. `failed` hears of each pod (its UID) that no room could be made for.
    pub(crate) fn start(
        client: &Client,
        config: &Config,
        failed: mpsc::UnboundedSender<Arc<str>>,
        tasks: &Tasks,
    ) -> Self {
        let (events, mut event_queue) = mpsc::channel::<(Event, ObjectReference)>(BACKLOG);
        let effects = Self {
            shared: Arc::default(),
            events,
        };
        let writer = StatusWriter {
            client: client.clone(),
            scheduler: config.scheduler_name.clone(),
            effects: effects.clone(),
            failed,
        };
        tasks.spawn(async move { writer.run().await });
        let mut reporter = Reporter::from(config.scheduler_name.as_str());
        let host = config.instance.clone().or(reporter.instance.take());
        reporter.instance = host.map(|host| format!("{}-{host}", config.scheduler_name));
        let recorder = Recorder::new(client.clone(), reporter);
        tasks.spawn(async move {
            while let Some((event, regarding)) = event_queue.recv().await {
                if let Err(error) = recorder.publish(&event, &regarding).await {
                    tracing::debug!(error = %error_chain(&error), reason = event.reason, "cannot record an event");
                }
            }
        });
        effects
    }

    /// No node can take a pod: its condition and an event say so.
    pub(crate) fn unschedulable(&self, pod: &Arc<Pod>, message: String, nomination: Nomination) {
        self.event(
            pod,
            EventType::Warning,
            "FailedScheduling",
            "Scheduling",
            message.clone(),
        );
        let condition = Condition {
            status: "False".to_owned(),
            reason: "Unschedulable".to_owned(),
            message: message.clone(),
        };
        // The same news again would only wake everybody who watches pods.
        if pod.wants.condition.as_ref() == Some(&condition) && nomination == Nomination::Keep {
            return;
        }
        let status = Unschedulable {
            pod: Arc::clone(pod),
            message,
            nomination,
        };
        let known = self.shared.waiting.lock().statuses.insert(Arc::clone(&pod.uid), status);
        if known.is_none() {
            self.shared.add(Task::Status(Arc::clone(&pod.uid)));
        }
    }

    /// Deletes victims.
    pub(crate) fn preempt(&self, preemptor: &Arc<Pod>, preemption: Preemption) {
        self.shared.add(Task::Preempt {
            preemptor: Arc::clone(preemptor),
            preemption,
        });
    }

    /// A node was found after all: what was to be said about the pod no longer is, not even by a write under way.
    pub(crate) async fn settle(&self, uid: &str) {
        let is_writing = {
            let mut waiting = self.shared.waiting.lock();
            waiting.statuses.remove(uid);
            waiting.writing.as_deref() == Some(uid)
        };
        if is_writing {
            drop(self.shared.busy.lock().await);
        }
    }

    /// A decision is made and known to the API server.
    pub(crate) fn scheduled(&self, pod: &Pod, node: &str) {
        let note = format!("Successfully assigned {} to {node}", pod.full_name());
        self.event(pod, EventType::Normal, "Scheduled", "Binding", note);
    }

    /// A decision could not be carried out.
    pub(crate) fn failed(&self, pod: &Pod, error: &Error) {
        self.event(
            pod,
            EventType::Warning,
            "FailedScheduling",
            "Scheduling",
            error_chain(error),
        );
    }

    fn event(&self, pod: &Pod, type_: EventType, reason: &str, action: &str, note: String) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note),
            action: action.to_owned(),
            secondary: None,
        };
        if self.events.try_send((event, reference(pod))).is_err() {
            tracing::debug!(pod = pod.full_name(), reason, "too many events wait; one was left out");
        }
    }
}

// === impl StatusWriter ===

impl StatusWriter {
    async fn run(&self) {
        let shared = &self.effects.shared;
        loop {
            let task = shared.waiting.lock().tasks.pop_front();
            match task {
                None => shared.more.notified().await,
                Some(Task::Preempt { preemptor, preemption }) => {
                    if let Err(error) = self.preempt(&preemptor, preemption).await {
                        tracing::warn!(error = %error_chain(&error), "cannot make room for a pod; trying it again");
                        // Nobody listens after shutdown.
                        self.failed.send(Arc::clone(&preemptor.uid)).ok();
                    }
                }
                Some(Task::Status(uid)) => {
                    let _busy = shared.busy.lock().await;
                    let status = shared.waiting.lock().begin(uid);
                    if let Some(status) = status {
                        report(self.unschedulable(status).await);
                    }
                    shared.waiting.lock().writing = None;
                }
            }
        }
    }

    async fn unschedulable(&self, status: Unschedulable) -> Result<(), Error> {
        let Unschedulable {
            pod,
            message,
            nomination,
        } = status;
        let known = pod
            .wants
            .condition
            .as_ref()
            .is_some_and(|condition| condition.status == "False");
        let mut condition = json!({
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
        });
        if !known {
            condition["lastTransitionTime"] = json!(now());
        }
        let mut status = json!({"conditions": [condition]});
        match nomination {
            Nomination::Keep => {}
            Nomination::Set(node) => status["nominatedNodeName"] = json!(&*node),
            // In a patch, null removes.
            Nomination::Clear => status["nominatedNodeName"] = Value::Null,
        }
        self.patch_status(&pod, status).await
    }

    async fn preempt(&self, preemptor: &Pod, preemption: Preemption) -> Result<(), Error> {
        for victim in &preemption.victims {
            match self.evict(victim).await {
                Ok(()) => {
                    let note = format!("Preempted by pod {} on node {}", preemptor.uid, preemption.node);
                    self.effects
                        .event(victim, EventType::Normal, "Preempted", "Preempting", note);
                }
                // It has left by itself.
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn evict(&self, victim: &Pod) -> Result<(), Error> {
        let message = format!("{}: preempting to accommodate a higher priority pod", self.scheduler);
        let condition = json!({
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": message,
            "lastTransitionTime": now(),
        });
        let told = self.patch_status(victim, json!({"conditions": [condition]})).await;
        // Whether the pod itself is gone, or only somebody else wrote at the same time, the deletion shows.
        told.or_else(|error| if is_gone(&error) { Ok(()) } else { Err(error) })?;
        let options = json!({
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "preconditions": {"uid": &*victim.uid},
        });
        let deleted = delete(&self.client, &path(victim), &options).await;
        deleted.map_err(|source| Error::Preempt {
            pod: victim.full_name(),
            source,
        })
    }

    async fn patch_status(&self, pod: &Pod, status: Value) -> Result<(), Error> {
        // With the UID, a pod that was deleted and made again meanwhile refuses it.
        let body = json!({"metadata": {"uid": &*pod.uid}, "status": status});
        patch(&self.client, &format!("{}/status", path(pod)), &body)
            .await
            .map_err(|source| Error::Status {
                pod: pod.full_name(),
                source,
            })
    }
}

impl Shared {
    fn add(&self, task: Task) {
        self.waiting.lock().tasks.push_back(task);
        self.more.notify_one();
    }
}

impl Waiting {
    fn begin(&mut self, uid: Arc<str>) -> Option<Unschedulable> {
        let status = self.statuses.remove(&uid)?;
        self.writing = Some(uid);
        Some(status)
    }
}

fn report(result: Result<(), Error>) {
    match result {
        // A pod that is gone needs no status.
        Err(error) if is_gone(&error) => {}
        Err(error) => tracing::warn!(error = %error_chain(&error), "cannot tell of a decision"),
        Ok(()) => {}
    }
}

/// Whether a write was refused because its pod is gone, or another of its name is there.
fn is_gone(error: &Error) -> bool {
    let (Error::Status { source, .. } | Error::Preempt { source, .. }) = error else {
        return false;
    };
    matches!(source, kube::Error::Api(status) if matches!(status.code, 404 | 409))
}

fn path(pod: &Pod) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name)
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.to_string()),
        name: Some(pod.name.to_string()),
        uid: Some(pod.uid.to_string()),
        resource_version: Some(pod.resource_version.clone()),
        field_path: None,
    }
}
