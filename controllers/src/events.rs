//! Records what controllers did as core/v1 Events, without letting a storm of them through.
//!
//! One task owns all state and writes the events one after another; senders never wait. As upstream's correlator does:
//! the same event again raises `count`; many that differ only in their message become one "combined" event; an object
//! that keeps producing events is let through once in five minutes after a burst of 25.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::core::v1::Event;
use skiff_daemon::{Shutdown, error_chain};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::view::{Key, View};
use crate::write::{Merge, Writer};

/// Events that wait to be written; more are dropped, as upstream does.
const BACKLOG: usize = 1000;
/// How long and how many different events are remembered.
const MEMORY: Duration = Duration::from_secs(10 * 60);
const REMEMBERED: usize = 4096;
/// From this many different messages on, events alike in all else are combined.
const COMBINE_FROM: usize = 10;
const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;

/// The object that an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Regarding {
    api_version: String,
    kind: String,
    namespace: String,
    name: String,
    uid: String,
    resource_version: String,
}

impl Regarding {
    pub(crate) fn of<K: View>(object: &K) -> Self {
        Self {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            namespace: object.namespace().to_owned(),
            name: object.name().to_owned(),
            uid: object.uid().to_owned(),
            resource_version: object.resource_version().to_owned(),
        }
    }

    /// By reference only, when the object itself is not at hand.
    pub(crate) fn named(api_version: &str, kind: &str, namespace: &str, name: &str, uid: &str) -> Self {
        Self {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            resource_version: String::new(),
        }
    }

    fn to_json(&self) -> Value {
        let mut reference =
            json!({"apiVersion": self.api_version, "kind": self.kind, "name": self.name, "uid": self.uid});
        if !self.namespace.is_empty() {
            reference["namespace"] = json!(self.namespace);
        }
        if !self.resource_version.is_empty() {
            reference["resourceVersion"] = json!(self.resource_version);
        }
        reference
    }
}

#[derive(Clone, Debug)]
struct Record {
    component: &'static str,
    regarding: Regarding,
    kind: &'static str,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

/// Records events under one component's name.
#[derive(Clone)]
pub(crate) struct Recorder {
    component: &'static str,
    sender: mpsc::Sender<Record>,
}

/// The receiving end of all recorders.
pub(crate) struct Broadcaster {
    sender: mpsc::Sender<Record>,
    receiver: mpsc::Receiver<Record>,
}

// === impl Recorder ===

impl Recorder {
    pub(crate) fn normal(&self, regarding: Regarding, reason: &'static str, message: String) {
        self.record("Normal", regarding, reason, message);
    }

    pub(crate) fn warning(&self, regarding: Regarding, reason: &'static str, message: String) {
        self.record("Warning", regarding, reason, message);
    }

    fn record(&self, kind: &'static str, regarding: Regarding, reason: &'static str, message: String) {
        let record = Record {
            component: self.component,
            regarding,
            kind,
            reason,
            message,
            at: Timestamp::now(),
        };
        if self.sender.try_send(record).is_err() {
            tracing::debug!(reason, "event dropped: too many are waiting to be written");
        }
    }
}

// === impl Broadcaster ===

impl Broadcaster {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        Self { sender, receiver }
    }

    pub(crate) fn recorder(&self, component: &'static str) -> Recorder {
        Recorder {
            component,
            sender: self.sender.clone(),
        }
    }

    /// Writes events until shutdown.
    pub(crate) async fn run(mut self, client: Client, shutdown: Shutdown) {
        let writer = Writer::new(client);
        let mut correlator = Correlator::default();
        loop {
            let record = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                record = self.receiver.recv() => record,
            };
            let Some(record) = record else { return };
            write(&writer, &mut correlator, record).await;
        }
    }
}

async fn write(writer: &Writer, correlator: &mut Correlator, record: Record) {
    let plan = correlator.plan(record, Instant::now());
    let result = match plan {
        Plan::Drop => return,
        Plan::Create(seen) => writer.create::<Event>(&seen.key, &seen.body()).await.map(drop),
        Plan::Count(seen) => {
            let patch =
                json!({"count": seen.count, "lastTimestamp": seen.record.at_seconds(), "message": seen.record.message});
            match writer.patch::<Event>(&seen.key, Merge::Json, &patch).await {
                Err(error) if error.is_not_found() => writer.create::<Event>(&seen.key, &seen.body()).await.map(drop),
                other => other.map(drop),
            }
        }
    };
    match result {
        Err(error) if error.is_namespace_terminating() || error.is_not_found() => {}
        Err(error) => tracing::warn!(error = %error_chain(&error), "cannot record an event"),
        Ok(()) => {}
    }
}

impl Record {
    fn at_seconds(&self) -> String {
        self.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }
}

// === correlation ===

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Similar {
    component: &'static str,
    regarding: Regarding,
    kind: &'static str,
    reason: &'static str,
}

#[derive(Clone)]
struct Seen {
    key: Key,
    record: Record,
    first: String,
    count: u32,
}

impl Seen {
    fn body(&self) -> Value {
        let record = &self.record;
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": &*self.key.name, "namespace": &*self.key.namespace},
            "involvedObject": record.regarding.to_json(),
            "reason": record.reason,
            "message": record.message,
            "type": record.kind,
            "count": self.count,
            "firstTimestamp": self.first,
            "lastTimestamp": record.at_seconds(),
            "source": {"component": record.component},
            "reportingComponent": record.component,
        })
    }
}

enum Plan {
    Create(Seen),
    Count(Seen),
    Drop,
}

#[derive(Default)]
struct Correlator {
    /// By everything but the message: the different messages of the present interval, and when it began.
    messages: HashMap<Similar, (Instant, HashSet<String>)>,
    /// By everything, the message empty where combined.
    seen: HashMap<(Similar, String), (Instant, Seen)>,
    buckets: HashMap<(&'static str, Regarding), (Instant, f64)>,
}

impl Correlator {
    fn plan(&mut self, mut record: Record, now: Instant) -> Plan {
        self.forget_old(now);
        let mut regarding = record.regarding.clone();
        // The object's version changes between alike events.
        regarding.resource_version.clear();
        if !self.take_token(record.component, &regarding, now) {
            return Plan::Drop;
        }
        let similar = Similar {
            component: record.component,
            regarding,
            kind: record.kind,
            reason: record.reason,
        };
        let (began, messages) = self
            .messages
            .entry(similar.clone())
            .or_insert_with(|| (now, HashSet::new()));
        if now.duration_since(*began) > MEMORY {
            *began = now;
            messages.clear();
        }
        messages.insert(record.message.clone());
        let message_key = if messages.len() >= COMBINE_FROM {
            record.message = format!("(combined from similar events): {}", record.message);
            String::new()
        } else {
            record.message.clone()
        };
        match self.seen.entry((similar, message_key)) {
            std::collections::hash_map::Entry::Occupied(mut entry) => {
                let (last, seen) = entry.get_mut();
                *last = now;
                seen.count += 1;
                seen.record = record;
                Plan::Count(seen.clone())
            }
            std::collections::hash_map::Entry::Vacant(entry) => {
                let namespace = if record.regarding.namespace.is_empty() {
                    "default"
                } else {
                    &record.regarding.namespace
                };
                let name = format!("{}.{:x}", record.regarding.name, record.at.as_nanosecond());
                let seen = Seen {
                    key: Key::new(namespace, &name),
                    first: record.at_seconds(),
                    record,
                    count: 1,
                };
                entry.insert((now, seen.clone()));
                Plan::Create(seen)
            }
        }
    }

    fn take_token(&mut self, component: &'static str, regarding: &Regarding, now: Instant) -> bool {
        let (at, tokens) = self
            .buckets
            .entry((component, regarding.clone()))
            .or_insert((now, BURST));
        *tokens = (*tokens + now.duration_since(*at).as_secs_f64() / REFILL_SECONDS).min(BURST);
        *at = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }

    fn forget_old(&mut self, now: Instant) {
        if self.seen.len() < REMEMBERED && self.buckets.len() < REMEMBERED {
            return;
        }
        let fresh = |at: &Instant| now.duration_since(*at) < MEMORY;
        self.seen.retain(|_, (at, _)| fresh(at));
        self.messages.retain(|_, (at, _)| fresh(at));
        self.buckets.retain(|_, (at, _)| fresh(at));
        if self.seen.len() >= REMEMBERED || self.buckets.len() >= REMEMBERED {
            // Better to count anew than to grow without bound.
            self.seen.clear();
            self.messages.clear();
            self.buckets.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, message: &str) -> Record {
        Record {
            component: "test",
            regarding: Regarding::named("apps/v1", "ReplicaSet", "ns", name, "uid"),
            kind: "Normal",
            reason: "SuccessfulCreate",
            message: message.into(),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_again_is_counted_and_many_alike_are_combined() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        assert!(matches!(
            correlator.plan(record("web", "Created pod: a"), now),
            Plan::Create(_)
        ));
        assert!(matches!(correlator.plan(record("web", "Created pod: a"), now), Plan::Count(seen) if seen.count == 2));
        for pod in 1..9 {
            assert!(matches!(
                correlator.plan(record("web", &format!("Created pod: {pod}")), now),
                Plan::Create(_)
            ));
        }
        let Plan::Create(tenth) = correlator.plan(record("web", "Created pod: x"), now) else {
            panic!("a new event")
        };
        assert_eq!(tenth.record.message, "(combined from similar events): Created pod: x");
        assert!(matches!(
            correlator.plan(record("web", "Created pod: y"), now),
            Plan::Count(_)
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_is_silenced_after_a_burst() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        let passed = (0..100)
            .filter(|_| !matches!(correlator.plan(record("web", "x"), now), Plan::Drop))
            .count();
        assert_eq!(passed, 25);
        let later = now + Duration::from_secs(301);
        assert!(!matches!(correlator.plan(record("web", "x"), later), Plan::Drop));
        assert!(
            !matches!(correlator.plan(record("other", "x"), now), Plan::Drop),
            "others are not silenced"
        );
    }
}
