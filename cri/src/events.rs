//! What happens to containers, as it happens: containerd's own event stream.
//!
//! CRI's `GetContainerEvents` came with containerd 1.7; containerd's own stream is in every version.

use std::time::Duration;

use futures::Stream;
use futures::stream::StreamExt;
use jiff::Timestamp;
use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use crate::channel::Caller;
use crate::error::Error;
use crate::protocols::containerd::events::{ContainerDelete, TaskExit, TaskOom, TaskStart};
use crate::protocols::containerd::services::events::v1::events_client::EventsClient;
use crate::protocols::containerd::services::events::v1::{PublishRequest, SubscribeRequest};
use crate::protocols::containerd::types::Envelope;

/// containerd's namespace of all that CRI makes.
pub(crate) const NAMESPACE: &str = "k8s.io";

/// Topic of the event that shows a subscription to be in place.
const MARKER: &str = "/skiff/subscribed";

/// The first marker may be published before the subscription is there.
const MARKER_PAUSE: Duration = Duration::from_millis(20);

/// Between attempts to reach a runtime that is away.
const RETRY: Duration = Duration::from_millis(200);

/// One item of [`Runtime::events`](crate::Runtime::events).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The stream is open, at first or again: whatever happened before may have been missed, so relist.
    Connected,
    /// Something happened.
    Event(Event),
    /// The connection is lost; it is being made again.
    Lost {
        /// What the connection said.
        reason: String,
    },
}

/// A change of one container or sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Id of a container, or of a sandbox: the runtime runs both the same way, so the consumer looks it up in what it knows.
    pub id: String,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Its first process runs.
    Started {
        /// Process id on the node.
        pid: u32,
    },
    /// Its first process ended. The runtime's own record may show it some 20 to 100 ms later.
    Exited {
        /// Exit code (128 + signal for a signal).
        exit_code: u32,
        /// When.
        at: Timestamp,
    },
    /// The kernel killed a process of it for memory.
    OutOfMemory,
    /// Its record is gone.
    Deleted,
}

/// Where the subscription stands.
enum State {
    /// Not connected; `lost` once that has been told.
    Away { lost: bool },
    /// Connected.
    Open(Box<Streaming<Envelope>>),
}

/// An endless stream; see [`Runtime::events`](crate::Runtime::events).
pub(crate) fn subscribe(channel: Channel, caller: Caller) -> impl Stream<Item = Notice> + Send {
    futures::stream::unfold(State::Away { lost: false }, move |state| {
        let (channel, caller) = (channel.clone(), caller.clone());
        async move { Some(step(state, channel, caller).await) }
    })
}

async fn step(mut state: State, channel: Channel, caller: Caller) -> (Notice, State) {
    loop {
        state = match state {
            State::Away { lost } => match open(channel.clone()).await {
                Ok(stream) => return (Notice::Connected, State::Open(Box::new(stream))),
                Err(status) if !lost => return (lost_notice(&caller, &status), State::Away { lost: true }),
                Err(_) => {
                    tokio::time::sleep(RETRY).await;
                    State::Away { lost: true }
                }
            },
            State::Open(mut stream) => match stream.next().await {
                Some(Ok(envelope)) => match decode(&envelope) {
                    Some(event) => return (Notice::Event(event), State::Open(stream)),
                    None => State::Open(stream),
                },
                Some(Err(status)) => return (lost_notice(&caller, &status), State::Away { lost: true }),
                None => {
                    let reason = "the runtime closed the event stream".to_owned();
                    return (Notice::Lost { reason }, State::Away { lost: true });
                }
            },
        };
    }
}

/// Opens the stream. containerd answers a subscription with its first event only, so we publish one of our own until it comes
/// back: then the subscription is known to be in place, and nothing that follows is missed.
async fn open(channel: Channel) -> Result<Streaming<Envelope>, tonic::Status> {
    // Each filter is an alternative; containerd would otherwise send every image and snapshot event, too.
    let filter = |topic: &str| format!("namespace=={NAMESPACE},topic==\"{topic}\"");
    let topics = [
        "/tasks/start",
        "/tasks/exit",
        "/tasks/oom",
        "/containers/delete",
        MARKER,
    ];
    let request = SubscribeRequest {
        filters: topics.map(filter).to_vec(),
    };
    let mut client = EventsClient::new(channel.clone());
    let mut subscribed = std::pin::pin!(client.subscribe(request));
    loop {
        tokio::select! {
            biased;
            answer = &mut subscribed => return Ok(answer?.into_inner()),
            published = publish_marker(channel.clone()) => published?,
        }
        tokio::select! {
            answer = &mut subscribed => return Ok(answer?.into_inner()),
            () = tokio::time::sleep(MARKER_PAUSE) => {}
        }
    }
}

async fn publish_marker(channel: Channel) -> Result<(), tonic::Status> {
    let event = prost_types::Any {
        type_url: "skiff/subscribed".into(),
        value: Vec::new(),
    };
    let mut request = Request::new(PublishRequest {
        topic: MARKER.into(),
        event: Some(event),
    });
    request
        .metadata_mut()
        .insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
    EventsClient::new(channel).publish(request).await.map(drop)
}

fn lost_notice(caller: &Caller, status: &tonic::Status) -> Notice {
    let error = caller.error("Subscribe", "", status);
    let reason = match &error {
        Error::Unreachable { source, .. } => format!("{error}: {source}"),
        other => other.to_string(),
    };
    Notice::Lost { reason }
}

/// `None` for what concerns nobody: exec'd processes, unknown topics, payloads that do not decode.
fn decode(envelope: &Envelope) -> Option<Event> {
    let payload = envelope.event.as_ref()?.value.as_slice();
    let event = match envelope.topic.as_str() {
        "/tasks/start" => {
            let start = TaskStart::decode(payload).ok()?;
            Event {
                id: start.container_id,
                kind: EventKind::Started { pid: start.pid },
            }
        }
        "/tasks/exit" => {
            let exit = TaskExit::decode(payload).ok()?;
            if exit.id != exit.container_id {
                return None;
            }
            let at = exit
                .exited_at
                .and_then(|at| Timestamp::new(at.seconds, at.nanos).ok())
                .unwrap_or_default();
            Event {
                id: exit.container_id,
                kind: EventKind::Exited {
                    exit_code: exit.exit_status,
                    at,
                },
            }
        }
        "/tasks/oom" => Event {
            id: TaskOom::decode(payload).ok()?.container_id,
            kind: EventKind::OutOfMemory,
        },
        "/containers/delete" => Event {
            id: ContainerDelete::decode(payload).ok()?.id,
            kind: EventKind::Deleted,
        },
        _ => return None,
    };
    Some(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(topic: &str, message: &impl Message) -> Envelope {
        let event = prost_types::Any {
            type_url: String::new(),
            value: message.encode_to_vec(),
        };
        Envelope {
            topic: topic.into(),
            event: Some(event),
            ..Default::default()
        }
    }

    #[test]
    fn an_exec_that_ends_is_not_an_exit_of_the_container() {
        let exit = |id: &str| TaskExit {
            container_id: "c1".into(),
            id: id.into(),
            pid: 7,
            exit_status: 137,
            exited_at: Some(prost_types::Timestamp { seconds: 5, nanos: 0 }),
        };
        assert_eq!(decode(&envelope("/tasks/exit", &exit("exec-1"))), None);
        let at = Timestamp::new(5, 0).unwrap();
        let kind = EventKind::Exited { exit_code: 137, at };
        assert_eq!(
            decode(&envelope("/tasks/exit", &exit("c1"))),
            Some(Event { id: "c1".into(), kind })
        );
    }

    #[test]
    fn topics() {
        let start = TaskStart {
            container_id: "c".into(),
            pid: 9,
        };
        assert_eq!(
            decode(&envelope("/tasks/start", &start)).unwrap().kind,
            EventKind::Started { pid: 9 }
        );
        let oom = TaskOom {
            container_id: "c".into(),
        };
        assert_eq!(
            decode(&envelope("/tasks/oom", &oom)).unwrap().kind,
            EventKind::OutOfMemory
        );
        assert_eq!(decode(&envelope("/images/create", &oom)), None);
    }
}
