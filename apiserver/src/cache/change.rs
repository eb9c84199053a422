//! One change of one object, and the watch events made of it.

use std::sync::{Arc, OnceLock};

use bytes::{BufMut as _, Bytes, BytesMut};

use super::Object;

/// Kind of a watch event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The object came into view.
    Added,
    /// The object changed and stays in view.
    Modified,
    /// The object left the view.
    Deleted,
}

impl Kind {
    /// The name in a watch event.
    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One change of one object.
#[derive(Debug)]
pub struct Change {
    /// Revision of the change.
    pub revision: u64,
    /// The object after it; `None` when it is deleted.
    pub current: Option<Arc<Object>>,
    /// The object before it; `None` when it is created.
    pub previous: Option<Arc<Object>>,
    /// When it arrived here.
    pub(super) arrived: tokio::time::Instant,
    frames: [OnceLock<Bytes>; 3],
}

impl Change {
    /// A change that has just arrived.
    pub fn new(revision: u64, current: Option<Arc<Object>>, previous: Option<Arc<Object>>) -> Self {
        Self {
            revision,
            current,
            previous,
            arrived: tokio::time::Instant::now(),
            frames: Default::default(),
        }
    }

    /// What a watcher sees of this change, when `sees` says which objects it looks at; `None` when it sees nothing.
    pub fn seen(&self, sees: impl Fn(&Object) -> bool) -> Option<Kind> {
        let before = self.previous.as_deref().is_some_and(&sees);
        let after = self.current.as_deref().is_some_and(&sees);
        match (before, after) {
            (false, true) => Some(Kind::Added),
            (true, true) => Some(Kind::Modified),
            (true, false) => Some(Kind::Deleted),
            (false, false) => None,
        }
    }

    /// The object that an event of `kind` carries, as JSON.
    pub fn object(&self, kind: Kind) -> Bytes {
        match (kind, &self.current, &self.previous) {
            // What a watcher loses sight of is shown as it last saw it, under the revision of the loss.
            (Kind::Deleted, _, Some(previous)) => previous.bytes_at(self.revision),
            (_, Some(current), _) => current.bytes.clone(),
            (_, None, Some(previous)) => previous.bytes_at(self.revision),
            (_, None, None) => Bytes::new(),
        }
    }

    /// The watch event of `kind`, encoded once for all watchers.
    pub fn frame(&self, kind: Kind) -> Bytes {
        self.frames[kind as usize]
            .get_or_init(|| frame(kind.name(), &self.object(kind)))
            .clone()
    }

    /// Roughly what it holds in memory.
    pub(super) fn weight(&self) -> usize {
        let object = |object: &Option<Arc<Object>>| object.as_ref().map_or(0, |object| object.bytes.len());
        256 + object(&self.current) + object(&self.previous)
    }
}

/// One line of a watch response.
pub fn frame(kind: &str, object: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(object.len() + 32);
    bytes.put_slice(b"{\"type\":\"");
    bytes.put_slice(kind.as_bytes());
    bytes.put_slice(b"\",\"object\":");
    bytes.put_slice(object);
    bytes.put_slice(b"}\n");
    bytes.freeze()
}
