//! Events: what is wrong with a Service on this node, for those who look at the Service, and what is wrong with the node.
//!
//! One task writes them; nobody waits for it. When it cannot keep up, the newest are lost.

use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource as _};
use skiff_daemon::{Shutdown, error_chain};
use tokio::sync::mpsc;
use tracing::debug;

use crate::wire::{Node, Service};

/// Events that wait for being written.
const QUEUE: usize = 100;

/// The start of the queue; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Events(mpsc::Sender<Note>);

#[derive(Debug)]
struct Note {
    about: About,
    reason: &'static str,
    action: &'static str,
    message: String,
}

#[derive(Debug)]
enum About {
    /// `namespace/name`
    Service(String),
    Node(EventType),
}

impl Events {
    /// Starts the writing task; it ends at shutdown.
    pub(crate) fn start(client: Client, node: &str, shutdown: &Shutdown) -> Self {
        let (sender, notes) = mpsc::channel(QUEUE);
        let reporter = Reporter {
            controller: "kube-proxy".to_owned(),
            instance: Some(node.to_owned()),
        };
        let writing = write(Recorder::new(client, reporter), node.to_owned(), notes);
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = writing => {}
                () = shutdown.cancelled() => {}
            }
        });
        Self(sender)
    }

    /// A warning about a Service (`namespace/name`).
    pub(crate) fn service(&self, key: &str, reason: &'static str, action: &'static str, message: String) {
        self.send(About::Service(key.to_owned()), reason, action, message);
    }

    /// A warning about this node.
    pub(crate) fn node(&self, reason: &'static str, action: &'static str, message: String) {
        self.send(About::Node(EventType::Warning), reason, action, message);
    }

    /// This node's proxy has started.
    pub(crate) fn started(&self) {
        self.send(
            About::Node(EventType::Normal),
            "Starting",
            "StartKubeProxy",
            String::new(),
        );
    }

    fn send(&self, about: About, reason: &'static str, action: &'static str, message: String) {
        let note = Note {
            about,
            reason,
            action,
            message,
        };
        if self.0.try_send(note).is_err() {
            debug!(reason, "too many events wait: one is left out");
        }
    }
}

async fn write(recorder: Recorder, node: String, mut notes: mpsc::Receiver<Note>) {
    while let Some(note) = notes.recv().await {
        let (type_, object) = match note.about {
            About::Service(key) => (EventType::Warning, Service::named(&key).object_ref(&())),
            About::Node(type_) => (type_, Node::named(&node).object_ref(&())),
        };
        let event = Event {
            type_,
            reason: note.reason.to_owned(),
            note: Some(note.message).filter(|text| !text.is_empty()),
            action: note.action.to_owned(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &object).await {
            debug!(
                error = error_chain(&error),
                reason = note.reason,
                "cannot write an event"
            );
        }
    }
}
