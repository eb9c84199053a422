//! Watch responses: a cursor into a resource's window of changes.
//!
//! A watcher keeps no queue: it wakes when its resource changed, reads what is behind its cursor, and sends the events that all
//! watchers share. Falling out of the window ends it with 410, so that the client lists anew.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use skiff_api::status::Status;
use skiff_daemon::Shutdown;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::body::{Body, BoxError};
use crate::cache::{Cache, Caches, Change, Kind, Object, frame};
use crate::filter::Filter;
use crate::metrics::Open;
use crate::render::Render;

/// Changes looked at in one go.
const BATCH: usize = 512;
/// Small events travel together up to about this size.
const PIECE: usize = 32 * 1024;
/// How often an idle watcher is told how far it has come.
const BOOKMARKS: Duration = Duration::from_secs(60);

/// What a watcher is shown first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Every object there is, then changes.
    Now,
    /// Every object there is, a bookmark that says so, then changes.
    NowMarked,
    /// The changes behind a revision.
    Behind(u64),
}

/// A watch that is about to begin.
#[derive(Debug)]
pub struct Watch {
    /// All caches: how far they have come.
    pub caches: Arc<Caches>,
    /// The cache of the resource.
    pub cache: Arc<Cache>,
    /// What is looked at.
    pub filter: Filter,
    /// How events look.
    pub render: Render,
    /// Whether the client wants bookmarks.
    pub bookmarks: bool,
    /// When it ends.
    pub deadline: Instant,
    /// Ends it too.
    pub shutdown: Shutdown,
    /// Counts it.
    pub open: Open,
}

struct Watcher {
    watch: Watch,
    initial: VecDeque<Arc<Object>>,
    /// A bookmark is due when the initial objects have been sent.
    mark_initial: bool,
    cursor: u64,
    changed: watch::Receiver<u64>,
    bookmark_at: Instant,
    ended: bool,
}

impl Watch {
    /// The response's body.
    pub fn start(self, start: Start) -> Body {
        let changed = self.cache.subscribe();
        let (initial, cursor) = match start {
            Start::Behind(revision) => (VecDeque::new(), revision),
            Start::Now | Start::NowMarked => {
                let applied = self.caches.applied();
                let listing = self.cache.list(self.filter.namespace(), None, 0, applied, |object| {
                    self.filter.selected(object)
                });
                (listing.objects.into(), listing.revision)
            }
        };
        let watcher = Watcher {
            mark_initial: start == Start::NowMarked,
            initial,
            cursor,
            changed,
            bookmark_at: Instant::now() + BOOKMARKS,
            ended: false,
            watch: self,
        };
        Body::stream(futures::stream::unfold(watcher, |mut watcher| async move {
            let piece = watcher.next().await?;
            Some((Ok::<_, BoxError>(piece), watcher))
        }))
    }
}

impl Watcher {
    /// The next piece of the response; `None` at its end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if !self.initial.is_empty() {
            return Some(self.initial_piece());
        }
        if std::mem::take(&mut self.mark_initial) {
            return Some(self.watch.render.bookmark(self.cursor, true));
        }
        loop {
            // Taken before the changes are read: when there are none, everything up to here was seen.
            let applied = self.watch.caches.applied();
            self.changed.mark_unchanged();
            match self.watch.cache.since(self.cursor, BATCH) {
                Err(error) => {
                    self.ended = true;
                    let status = Status::from(error).to_value();
                    return Some(frame("ERROR", &serde_json::to_vec(&status).unwrap_or_default()));
                }
                Ok(changes) => {
                    if let Some(last) = changes.last() {
                        self.cursor = last.revision;
                        match self.piece(&changes) {
                            Some(piece) => return Some(piece),
                            None => continue,
                        }
                    }
                    self.cursor = self.cursor.max(applied);
                }
            }
            tokio::select! {
                biased;
                () = self.watch.shutdown.cancelled() => return None,
                changed = self.changed.changed() => changed.ok()?,
                () = tokio::time::sleep_until(self.bookmark_at.min(self.watch.deadline)) => {
                    self.bookmark_at = Instant::now() + BOOKMARKS;
                    self.ended = Instant::now() >= self.watch.deadline;
                    if self.watch.bookmarks {
                        return Some(self.watch.render.bookmark(self.cursor, false));
                    }
                    if self.ended {
                        return None;
                    }
                }
            }
        }
    }

    /// The next of the objects that were there at the beginning.
    fn initial_piece(&mut self) -> Bytes {
        let mut piece = BytesMut::new();
        while let Some(object) = self.initial.pop_front() {
            piece.extend_from_slice(&self.watch.render.event(Kind::Added, &object.bytes));
            if piece.len() >= PIECE {
                break;
            }
        }
        piece.freeze()
    }

    /// The events of some changes; `None` when the watcher sees none of them.
    fn piece(&self, changes: &[Arc<Change>]) -> Option<Bytes> {
        let filter = &self.watch.filter;
        let mut frames = changes.iter().filter_map(|change| {
            let kind = change.seen(|object| filter.sees(object))?;
            Some(self.watch.render.frame(change, kind))
        });
        let first = frames.next()?;
        let Some(second) = frames.next() else {
            // The usual case: one event, sent from the bytes that all watchers share.
            return Some(first);
        };
        let mut piece = BytesMut::with_capacity(PIECE.min((first.len() + second.len()) * 4));
        piece.extend_from_slice(&first);
        piece.extend_from_slice(&second);
        for frame in frames {
            piece.extend_from_slice(&frame);
        }
        Some(piece.freeze())
    }
}
