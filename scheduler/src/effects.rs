//! What follows from decisions, away from the cycle: conditions, events, deleted victims.
//!
//! Two tasks, each with a queue: one writes pod statuses in order, one records events. Neither is waited for; when the
//! API server is too slow for them, the oldest news is dropped, not the scheduling.

use std::sync::Arc;

use jiff::Timestamp;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::core::v1::ObjectReference;
use skiff_daemon::{Shutdown, error_chain};
use tokio::sync::mpsc;

use crate::Error;
use crate::config::Config;
use crate::framework::Preemption;
use crate::model::{Condition, Pod};
use crate::request::{delete, patch};

const BACKLOG: usize = 5000;

/// What is to be told of a pod.
#[derive(Debug)]
pub(crate) enum Status {
    /// No node can take it.
    Unschedulable {
        pod: Arc<Pod>,
        message: String,
        /// Where room is being made for it.
        nominated: Option<Arc<str>>,
    },
    /// Pods that have to go for another.
    Preempt {
        preemptor: Arc<Pod>,
        preemption: Preemption,
    },
}

/// Hands decisions on.
#[derive(Clone, Debug)]
pub(crate) struct Effects {
    statuses: mpsc::Sender<Status>,
    events: mpsc::Sender<(Event, ObjectReference)>,
}

struct StatusWriter {
    client: Client,
    scheduler: String,
    effects: Effects,
}

// === impl Effects ===

impl Effects {
    /// Starts the two tasks; they end at shutdown.
    pub(crate) fn start(client: &Client, config: &Config, shutdown: &Shutdown) -> Self {
        let (statuses, mut status_queue) = mpsc::channel(BACKLOG);
        let (events, mut event_queue) = mpsc::channel::<(Event, ObjectReference)>(BACKLOG);
        let effects = Self { statuses, events };
        let writer = StatusWriter {
            client: client.clone(),
            scheduler: config.scheduler_name.clone(),
            effects: effects.clone(),
        };
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(async move {
            while let Some(status) = status_queue.recv().await {
                writer.write(status).await;
            }
        }));
        let mut reporter = Reporter::from(config.scheduler_name.as_str());
        let host = config.instance.clone().or(reporter.instance.take());
        reporter.instance = host.map(|host| format!("{}-{host}", config.scheduler_name));
        let recorder = Recorder::new(client.clone(), reporter);
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(async move {
            while let Some((event, regarding)) = event_queue.recv().await {
                if let Err(error) = recorder.publish(&event, &regarding).await {
                    tracing::debug!(error = %error_chain(&error), reason = event.reason, "cannot record an event");
                }
            }
        }));
        effects
    }

    /// No node can take a pod: its condition and an event say so.
    pub(crate) fn unschedulable(&self, pod: &Arc<Pod>, message: String, nominated: Option<Arc<str>>) {
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
        if pod.wants.condition.as_ref() == Some(&condition) && nominated.is_none() {
            return;
        }
        self.tell(Status::Unschedulable {
            pod: Arc::clone(pod),
            message,
            nominated,
        });
    }

    /// Deletes victims.
    pub(crate) fn preempt(&self, preemptor: &Arc<Pod>, preemption: Preemption) {
        self.tell(Status::Preempt {
            preemptor: Arc::clone(preemptor),
            preemption,
        });
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

    fn tell(&self, status: Status) {
        if self.statuses.try_send(status).is_err() {
            tracing::warn!("pod statuses are not written as fast as they change; one was left out");
        }
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
    async fn write(&self, status: Status) {
        let result = match status {
            Status::Unschedulable {
                pod,
                message,
                nominated,
            } => self.unschedulable(&pod, &message, nominated).await,
            Status::Preempt { preemptor, preemption } => self.preempt(&preemptor, preemption).await,
        };
        match result {
            // A pod that is gone needs no status.
            Err(
                Error::Status {
                    source: kube::Error::Api(status),
                    ..
                }
                | Error::Preempt {
                    source: kube::Error::Api(status),
                    ..
                },
            ) if matches!(status.code, 404 | 409) => {}
            Err(error) => tracing::warn!(error = %error_chain(&error), "cannot tell of a decision"),
            Ok(()) => {}
        }
    }

    async fn unschedulable(&self, pod: &Pod, message: &str, nominated: Option<Arc<str>>) -> Result<(), Error> {
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
        if let Some(node) = nominated {
            status["nominatedNodeName"] = json!(&*node);
        }
        self.patch_status(pod, status).await
    }

    async fn preempt(&self, preemptor: &Pod, preemption: Preemption) -> Result<(), Error> {
        for victim in &preemption.victims {
            let message = format!("{}: preempting to accommodate a higher priority pod", self.scheduler);
            let condition = json!({
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "PreemptionByScheduler",
                "message": message,
                "lastTransitionTime": now(),
            });
            self.patch_status(victim, json!({"conditions": [condition]})).await?;
            let options = json!({
                "kind": "DeleteOptions",
                "apiVersion": "v1",
                "preconditions": {"uid": &*victim.uid},
            });
            delete(&self.client, &path(victim), &options)
                .await
                .map_err(|source| Error::Preempt {
                    pod: victim.full_name(),
                    source,
                })?;
            let note = format!("Preempted by pod {} on node {}", preemptor.uid, preemption.node);
            self.effects
                .event(victim, EventType::Normal, "Preempted", "Preempting", note);
        }
        Ok(())
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
