//! One watcher: a stream of its own, taken up again wherever it broke.

use futures::stream;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status, Streaming};

use super::failure::{explain, garbled, is_passing};
use super::protocol::etcdserverpb::watch_client::WatchClient;
use super::protocol::etcdserverpb::watch_request::RequestUnion;
use super::protocol::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use super::protocol::mvccpb;
use super::protocol::mvccpb::event::EventType;
use super::{CALL, Client, MAX_MESSAGE, PAUSE, Range, convert, once};
use crate::{Error, Event, Prefix, Revision, Watch};

struct Watcher {
    client: Client,
    range: Range,
    /// Everything up to here has been delivered.
    position: Revision,
    stream: Option<Stream>,
    ended: bool,
}

/// An open stream; a call lasts for as long as its requests do.
struct Stream {
    answers: Streaming<WatchResponse>,
    _requests: tokio::sync::mpsc::Sender<WatchRequest>,
}

/// Begins after `from`.
pub(super) async fn start(client: Client, prefix: &Prefix, from: Revision) -> Result<Watch, Error> {
    // A stream would tell of history that is gone only once it is under way.
    client.check_readable(from).await?;
    let watcher = Watcher::new(client, convert::range(prefix, None), from);
    Ok(Watch::new(stream::unfold(watcher, |mut watcher| async {
        let item = watcher.next().await?;
        Some((item, watcher))
    })))
}

/// The oldest revision that can be read, when the first cannot: etcd tells it to those who want to watch from there.
pub(super) async fn compacted(client: &Client) -> Result<Revision, Error> {
    let mut watcher = Watcher::new(client.clone(), (b"/".to_vec(), Vec::new()), Revision(1));
    match tokio::time::timeout(CALL, watcher.next()).await {
        Ok(Some(Err(Error::Compacted { compacted, .. }))) => Ok(compacted),
        Ok(Some(Err(error))) => Err(error),
        _ => Err(garbled("history is compacted, but not up to where")),
    }
}

impl Watcher {
    fn new(client: Client, range: Range, position: Revision) -> Self {
        Self {
            client,
            range,
            position,
            stream: None,
            ended: false,
        }
    }

    async fn next(&mut self) -> Option<Result<Vec<Event>, Error>> {
        if self.ended {
            return None;
        }
        loop {
            match self.step().await {
                Ok(events) if events.is_empty() => {}
                Ok(events) => return Some(Ok(events)),
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Vec<Event>, Error> {
        let Some(stream) = &mut self.stream else {
            match self.open().await {
                Ok(stream) => self.stream = Some(stream),
                // However long the members are away.
                Err(status) if is_passing(&status) => tokio::time::sleep(PAUSE).await,
                Err(status) => return Err(explain("watch keys", &status)),
            }
            return Ok(Vec::new());
        };
        match stream.answers.message().await {
            Ok(Some(answer)) if answer.canceled => Err(self.canceled(&answer)),
            Ok(Some(answer)) => self.take(answer.events),
            Ok(None) => {
                self.stream = None;
                Ok(Vec::new())
            }
            Err(status) if is_passing(&status) => {
                tracing::debug!(%status, "a watch of etcd broke; it is taken up again");
                self.stream = None;
                Ok(Vec::new())
            }
            Err(status) => Err(explain("watch keys", &status)),
        }
    }

    fn canceled(&self, answer: &WatchResponse) -> Error {
        if answer.compact_revision > 0 {
            return Error::Compacted {
                requested: self.position,
                compacted: self.client.scale.ours(answer.compact_revision),
            };
        }
        garbled(&format!("a watch was cancelled: {}", answer.cancel_reason))
    }

    /// The news among the events; moves the position.
    fn take(&mut self, events: Vec<mvccpb::Event>) -> Result<Vec<Event>, Error> {
        let mut taken = Vec::with_capacity(events.len());
        for event in events {
            let event = self.event(event)?;
            if event.revision() > self.position {
                taken.push(event);
            }
        }
        if let Some(last) = taken.last() {
            self.position = last.revision();
        }
        Ok(taken)
    }

    fn event(&self, event: mvccpb::Event) -> Result<Event, Error> {
        let kind = event.r#type();
        let kv = event.kv.ok_or_else(|| garbled("an event has no key"))?;
        let scale = self.client.scale;
        let revision = scale.ours(kv.mod_revision);
        let previous = event.prev_kv.map(|kv| scale.entry(kv)).transpose()?;
        let forgotten = Error::Compacted {
            requested: self.position,
            compacted: revision,
        };
        match (kind, previous) {
            (EventType::Delete, Some(previous)) => Ok(Event::Delete { revision, previous }),
            (EventType::Put, None) if kv.version > 1 && revision > self.position => Err(forgotten),
            (EventType::Put, previous) => Ok(Event::Put {
                entry: scale.entry(kv)?,
                previous,
            }),
            // What it deleted was compacted in between; of what was delivered before, nobody asks.
            (EventType::Delete, None) if revision > self.position => Err(forgotten),
            (EventType::Delete, None) => Ok(Event::Delete {
                revision,
                previous: scale.entry(kv)?,
            }),
        }
    }

    async fn open(&self) -> Result<Stream, Status> {
        let (requests, queue) = tokio::sync::mpsc::channel(1);
        let create = WatchCreateRequest {
            key: self.range.0.clone().into(),
            range_end: self.range.1.clone().into(),
            // From what has been seen, not from behind it: then etcd refuses exactly what has been compacted. Zero would mean "now".
            start_revision: self.client.scale.to_wire(self.position).max(1),
            prev_kv: true,
        };
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        // There is room for one.
        requests.send(request).await.ok();
        let mut client = WatchClient::new(self.client.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let queue = tokio_stream::wrappers::ReceiverStream::new(queue);
        let mut call = Request::new(queue);
        // Else a member that is cut off from the others would keep us, and be silent.
        (call.metadata_mut()).insert("hasleader", MetadataValue::from_static("true"));
        Ok(Stream {
            answers: once(client.watch(call)).await?,
            _requests: requests,
        })
    }
}
