//! Events about pods and the node, aggregated: what repeats is counted, not written again.
//!
//! One task writes; callers never wait for it. When the API server is away, an event is tried again for about a minute; those that
//! wait meanwhile are kept as far as there is room, the newest first.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::json;
use skiff_api::k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use skiff_daemon::Shutdown;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::pod::{self, Role};

/// Events waiting to be written; beyond that the oldest are dropped.
const QUEUE: usize = 1000;
/// Different events remembered, to count repetitions.
const REMEMBERED: usize = 1000;
/// How long a repetition counts as one.
const WINDOW: Duration = Duration::from_secs(600);
/// Upstream's spam filter: so many events at once for one object, then one in five minutes.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(300);

/// How often an event is written at most, as upstream,
const TRIES: usize = 12;
/// and after which pause it is tried again: at first, and at last.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// Severity of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Severity {
    /// All is well.
    Normal,
    /// Somebody should look.
    Warning,
}

/// Records events; clones share one queue.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    queue: Arc<Queue>,
    node: String,
}

#[derive(Clone, Debug, PartialEq)]
struct Note {
    object: ObjectReference,
    severity: Severity,
    reason: Cow<'static, str>,
    message: String,
    at: Timestamp,
    /// Tells events of one moment apart.
    serial: u64,
}

/// What waits to be written.
#[derive(Debug, Default)]
struct Queue {
    notes: Mutex<VecDeque<Note>>,
    more: Notify,
}

/// The end of the queue, to be given to [`Writer::run`].
#[derive(Debug)]
pub(crate) struct Writer {
    queue: Arc<Queue>,
    node: String,
    known: HashMap<Key, Known>,
    budgets: HashMap<String, Budget>,
}

type Key = (
    Option<String>,
    Option<String>,
    Option<String>,
    Severity,
    Cow<'static, str>,
    String,
);

#[derive(Debug)]
struct Known {
    namespace: String,
    name: String,
    count: i32,
    seen: Instant,
}

#[derive(Debug)]
struct Budget {
    left: u32,
    refilled: Instant,
}

/// A recorder and the writer behind it.
pub(crate) fn recorder(node: &str) -> (Recorder, Writer) {
    let queue = Arc::new(Queue::default());
    let writer = Writer {
        queue: queue.clone(),
        node: node.to_owned(),
        known: HashMap::new(),
        budgets: HashMap::new(),
    };
    (
        Recorder {
            queue,
            node: node.to_owned(),
        },
        writer,
    )
}

// === impl Queue ===

impl Queue {
    fn push(&self, note: Note) {
        let mut notes = self.notes.lock();
        if notes.len() >= QUEUE {
            tracing::debug!("the oldest event is dropped");
            notes.pop_front();
        }
        notes.push_back(note);
        self.more.notify_one();
    }

    fn pop(&self) -> Option<Note> {
        self.notes.lock().pop_front()
    }

    async fn next(&self) -> Note {
        loop {
            if let Some(note) = self.pop() {
                return note;
            }
            self.more.notified().await;
        }
    }
}

// === impl Recorder ===

impl Recorder {
    /// An event about a pod.
    pub(crate) fn pod(&self, pod: &Pod, severity: Severity, reason: impl Into<Cow<'static, str>>, message: String) {
        self.send(pod_reference(pod, None), severity, reason.into(), message);
    }

    /// An event about one container of a pod.
    pub(crate) fn container(
        &self,
        pod: &Pod,
        (role, container): (Role, &str),
        severity: Severity,
        reason: &'static str,
        message: String,
    ) {
        self.send(
            pod_reference(pod, Some(pod::field_path(role, container))),
            severity,
            reason.into(),
            message,
        );
    }

    /// An event about this node.
    pub(crate) fn node(&self, severity: Severity, reason: &'static str, message: String) {
        let object = ObjectReference {
            kind: Some("Node".into()),
            name: Some(self.node.clone()),
            uid: Some(self.node.clone()),
            ..ObjectReference::default()
        };
        self.send(object, severity, reason.into(), message);
    }

    /// An event about any other object.
    pub(crate) fn object(&self, object: ObjectReference, severity: Severity, reason: &'static str, message: String) {
        self.send(object, severity, reason.into(), message);
    }

    fn send(&self, object: ObjectReference, severity: Severity, reason: Cow<'static, str>, message: String) {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        self.queue.push(Note {
            object,
            severity,
            reason,
            message,
            at: Timestamp::now(),
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
        });
    }
}

fn pod_reference(pod: &Pod, field_path: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(pod::namespace(pod).into()),
        name: Some(pod::name(pod).into()),
        uid: Some(pod::uid(pod).into()),
        resource_version: pod.metadata.resource_version.clone(),
        field_path,
    }
}

// === impl Writer ===

impl Writer {
    /// Writes events until shutdown.
    pub(crate) async fn run(mut self, client: kube::Client, shutdown: Shutdown) {
        loop {
            let note = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                note = self.queue.next() => note,
            };
            if !self.within_budget(&note) {
                continue;
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = self.insist(&client, &note) => {}
            }
        }
    }

    /// Writes an event, again and again while nobody says what is wrong with it.
    async fn insist(&mut self, client: &kube::Client, note: &Note) {
        let mut pause = FIRST_PAUSE;
        for _ in 0..TRIES {
            let Err(error) = self.write(client, note).await else {
                return;
            };
            tracing::debug!(error = skiff_daemon::error_chain(&error), "cannot write an event");
            if is_refused(&error) {
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    fn within_budget(&mut self, note: &Note) -> bool {
        let now = Instant::now();
        if self.budgets.len() > REMEMBERED {
            self.budgets.retain(|_, budget| now - budget.refilled < REFILL);
        }
        let budget = self
            .budgets
            .entry(note.object.uid.clone().unwrap_or_default())
            .or_insert(Budget {
                left: BURST,
                refilled: now,
            });
        let periods = (now - budget.refilled).as_secs() / REFILL.as_secs();
        if periods > 0 {
            budget.left = BURST.min(budget.left.saturating_add(u32::try_from(periods).unwrap_or(BURST)));
            budget.refilled = now;
        }
        budget.left = match budget.left {
            0 => return false,
            left => left - 1,
        };
        true
    }

    async fn write(&mut self, client: &kube::Client, note: &Note) -> kube::Result<()> {
        let key = (
            note.object.uid.clone(),
            note.object.name.clone(),
            note.object.field_path.clone(),
            note.severity,
            note.reason.clone(),
            note.message.clone(),
        );
        let now = Instant::now();
        if let Some(known) = self.known.get_mut(&key).filter(|known| now - known.seen < WINDOW) {
            let count = known.count + 1;
            let api: Api<Event> = Api::namespaced(client.clone(), &known.namespace);
            let patch = json!({"count": count, "lastTimestamp": Time(note.at), "message": note.message});
            match api
                .patch(&known.name, &PatchParams::default(), &Patch::Strategic(patch))
                .await
            {
                Err(error) if is_not_found(&error) => {}
                other => {
                    other?;
                    (known.count, known.seen) = (count, now);
                    return Ok(());
                }
            }
        }
        if self.known.len() >= REMEMBERED {
            self.known.retain(|_, known| now - known.seen < WINDOW / 10);
        }
        let event = event(&self.node, note);
        let (namespace, name) = (
            event.metadata.namespace.clone().unwrap_or_default(),
            event.metadata.name.clone().unwrap_or_default(),
        );
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        api.create(&PostParams::default(), &event).await?;
        self.known.insert(
            key,
            Known {
                namespace,
                name,
                count: 1,
                seen: now,
            },
        );
        Ok(())
    }
}

fn event(node: &str, note: &Note) -> Event {
    let serial = note.at.as_nanosecond() + i128::from(note.serial);
    let namespace = note.object.namespace.clone().unwrap_or_else(|| "default".into());
    let mut event = Event {
        reason: Some(note.reason.clone().into()),
        message: Some(note.message.clone()),
        type_: Some(
            if note.severity == Severity::Normal {
                "Normal"
            } else {
                "Warning"
            }
            .into(),
        ),
        source: Some(EventSource {
            component: Some("kubelet".into()),
            host: Some(node.into()),
        }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(node.into()),
        first_timestamp: Some(Time(note.at)),
        last_timestamp: Some(Time(note.at)),
        count: Some(1),
        ..Event::default()
    };
    event.metadata.name = Some(format!(
        "{}.{serial:x}",
        note.object.name.as_deref().unwrap_or_default()
    ));
    event.metadata.namespace = Some(namespace);
    event.involved_object = note.object.clone();
    event
}

/// Whether the API server has looked at the event and does not want it; a busy one is asked again.
fn is_refused(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code < 500 && status.code != 429)
}

pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn an_event_says_who_what_and_where() {
        let pod = pod(&json!({}));
        let note = Note {
            object: pod_reference(&pod, Some("spec.containers{c}".into())),
            severity: Severity::Warning,
            reason: "BackOff".into(),
            message: "m".into(),
            at: Timestamp::from_second(5).unwrap(),
            serial: 0,
        };
        let value = serde_json::to_value(event("node-1", &note)).unwrap();
        assert!(value["metadata"]["name"].as_str().unwrap().starts_with("p."));
        assert_eq!(value["metadata"]["namespace"], "ns");
        assert_eq!(value["involvedObject"]["fieldPath"], "spec.containers{c}");
        assert_eq!(value["source"], json!({"component": "kubelet", "host": "node-1"}));
        assert_eq!(value["type"], "Warning");
        assert_eq!(value["firstTimestamp"], "1970-01-01T00:00:05Z");
    }

    #[tokio::test]
    async fn an_object_gets_a_burst_and_no_more() {
        let (recorder, mut writer) = recorder("node-1");
        for _ in 0..=BURST {
            recorder.node(Severity::Normal, "NodeReady", String::new());
        }
        let mut written = 0;
        while let Some(note) = writer.queue.pop() {
            written += u32::from(writer.within_budget(&note));
        }
        assert_eq!(written, BURST);
    }

    #[test]
    fn the_newest_events_win() {
        let (recorder, writer) = recorder("node-1");
        for index in 0..=QUEUE {
            recorder.node(Severity::Normal, "NodeReady", index.to_string());
        }
        assert_eq!(writer.queue.pop().unwrap().message, "1");
        assert_eq!(writer.queue.notes.lock().back().unwrap().message, QUEUE.to_string());
    }

    /// An answer of `None` is none: the API server is away.
    #[tokio::test(start_paused = true)]
    async fn an_event_is_written_when_the_api_server_is_back() {
        type Script = VecDeque<Option<u16>>;
        let away = std::iter::repeat_n(None, TRIES);
        let script: Script = [None, Some(503), Some(201), Some(403)]
            .into_iter()
            .chain(away)
            .chain([Some(201)])
            .collect();
        let script = Arc::new(Mutex::new(script));
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let serve = move |request: http::Request<kube::client::Body>| {
            let (script, told) = (script.clone(), told.clone());
            async move {
                let answer = script.lock().pop_front().flatten();
                let status = answer.ok_or_else(|| std::io::Error::other("away"))?;
                let body = request
                    .into_body()
                    .collect_bytes()
                    .await
                    .map_err(std::io::Error::other)?;
                let event: serde_json::Value = serde_json::from_slice(&body)?;
                told.send((status, event["message"].as_str().unwrap_or_default().to_owned()))
                    .ok();
                let body = match status {
                    201 => body.to_vec(),
                    _ => json!({"kind": "Status", "status": "Failure", "code": status})
                        .to_string()
                        .into_bytes(),
                };
                let answer = http::Response::builder().status(status);
                answer
                    .body(kube::client::Body::from(body))
                    .map_err(std::io::Error::other)
            }
        };
        let client = kube::Client::new(tower::service_fn(serve), "default");
        let (recorder, writer) = recorder("node-1");
        for message in ["late", "refused", "lost", "after"] {
            recorder.node(Severity::Normal, "NodeReady", message.into());
        }
        let shutdown = Shutdown::default();
        let running = tokio::spawn(writer.run(client, shutdown.clone()));
        for expected in [(503, "late"), (201, "late"), (403, "refused"), (201, "after")] {
            let (status, message) = heard.recv().await.unwrap();
            assert_eq!((status, message.as_str()), expected);
        }
        shutdown.cancel();
        running.await.unwrap();
    }
}
