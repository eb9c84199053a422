//! One watcher: history until it is level with the store, then live; back to history when it falls behind.

use std::sync::Arc;

use futures::stream;

use super::hub::{Hub, Subscription};
use super::reader::{self, Readers};
use crate::{Error, Event, Prefix, Revision, Watch};

/// Changes read from history at a time.
const CHUNK: usize = 500;

struct Watcher {
    hub: Arc<Hub>,
    readers: Arc<Readers>,
    prefix: Prefix,
    buffer: usize,
    /// Everything up to here has been delivered.
    position: Revision,
    mode: Mode,
}

enum Mode {
    /// Reading history; not in the hub.
    Behind,
    /// In the hub, reading the last of history up to where the subscription begins.
    Joining(Subscription),
    Live(Subscription),
    Ended,
}

/// Begins after `from`.
pub(super) fn start(hub: Arc<Hub>, readers: Arc<Readers>, prefix: Prefix, from: Revision, buffer: usize) -> Watch {
    let mut watcher = Watcher {
        hub,
        readers,
        prefix,
        buffer,
        position: from,
        mode: Mode::Behind,
    };
    // Joined at once when there is nothing to catch up with, so that the first change needs no read of history.
    if from >= watcher.hub.published() {
        watcher.join();
    }
    Watch::new(stream::unfold(watcher, |mut watcher| async {
        let item = watcher.next().await?;
        Some((item, watcher))
    }))
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<Vec<Event>, Error>> {
        loop {
            match self.step().await {
                Ok(None) => return None,
                Ok(Some(events)) if events.is_empty() => {}
                Ok(Some(events)) => return Some(Ok(events)),
                Err(error) => {
                    self.mode = Mode::Ended;
                    return Some(Err(error));
                }
            }
        }
    }

    /// One move; empty when it only changed modes, `None` after the end.
    async fn step(&mut self) -> Result<Option<Vec<Event>>, Error> {
        match &mut self.mode {
            Mode::Ended => Ok(None),
            Mode::Behind => {
                let events = self.history(None).await?;
                if events.len() < CHUNK {
                    self.join();
                }
                Ok(Some(events))
            }
            Mode::Joining(subscription) => {
                let until = subscription.from;
                let events = self.history(Some(until)).await?;
                if self.position >= until
                    && let Mode::Joining(subscription) = std::mem::replace(&mut self.mode, Mode::Ended)
                {
                    self.mode = Mode::Live(subscription);
                }
                Ok(Some(events))
            }
            Mode::Live(subscription) => match subscription.next().await {
                Some(mut events) => {
                    // A list may have shown changes that were committed, but not yet published.
                    events.retain(|event| event.revision() > self.position);
                    if let Some(last) = events.last() {
                        self.position = last.revision();
                    }
                    Ok(Some(events))
                }
                None if self.hub.is_closed() => Err(Error::Closed),
                None => {
                    self.mode = Mode::Behind;
                    Ok(Some(Vec::new()))
                }
            },
        }
    }

    fn join(&mut self) {
        self.mode = match self.hub.subscribe(self.prefix.clone(), self.buffer) {
            // The end shows at the next step, as a subscription that is over.
            None => Mode::Behind,
            Some(subscription) if subscription.from <= self.position => Mode::Live(subscription),
            Some(subscription) => Mode::Joining(subscription),
        };
    }

    /// The next changes on disk, no further than `until`; moves the position.
    async fn history(&mut self, until: Option<Revision>) -> Result<Vec<Event>, Error> {
        if self.hub.is_closed() {
            return Err(Error::Closed);
        }
        let (prefix, from) = (self.prefix.clone(), self.position);
        let read = self
            .readers
            .run(move |connection, path| reader::history(connection, path, &prefix, from, until, CHUNK))
            .await?;
        self.position = read.position;
        Ok(read.events)
    }
}
