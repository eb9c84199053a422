//! What goes into a store and comes out of it.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::{BoxStream, Stream};

use crate::Error;

/// The most bytes that a key and its value may have together, in either backend: what etcd takes by default for a whole request
/// (1.5 MiB), less what a transaction adds. So whatever is in a store can be restored into any other.
pub const MAX_SIZE: usize = (3 << 19) - (16 << 10);

/// A point in the history of the whole store. Zero comes before everything.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Revision(pub u64);

/// One version of a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Its path.
    pub key: Arc<str>,
    /// Its bytes.
    pub value: Bytes,
    /// When the key was created, last.
    pub create_revision: Revision,
    /// When this version was written.
    pub mod_revision: Revision,
}

/// A conditional change of one key.
#[derive(Clone, Debug)]
pub enum Write {
    /// Holds when the key does not exist.
    Create {
        /// The key.
        key: Arc<str>,
        /// Its value.
        value: Bytes,
    },
    /// Holds when the key's newest version is the one expected.
    Update {
        /// The key.
        key: Arc<str>,
        /// Its new value.
        value: Bytes,
        /// The version that this one follows.
        expected: Revision,
    },
    /// Holds when the key exists, and its newest version is the one expected, if one is.
    Delete {
        /// The key.
        key: Arc<str>,
        /// The version to delete; any when `None`.
        expected: Option<Revision>,
    },
}

/// A change that happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// A key was created or updated.
    Put {
        /// Its new version.
        entry: Entry,
        /// The version before; `None` when it was created.
        previous: Option<Entry>,
    },
    /// A key was deleted.
    Delete {
        /// When.
        revision: Revision,
        /// Its last version.
        previous: Entry,
    },
}

/// A part of a listing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Page {
    /// In key order.
    pub entries: Vec<Entry>,
    /// The revision that this page, and those that follow it, are consistent at.
    pub revision: Revision,
    /// Whether there are entries after these.
    pub more: bool,
    /// How many.
    pub remaining: u64,
}

/// A stream of changes, in batches that are never empty. It ends after its first error.
pub struct Watch {
    stream: BoxStream<'static, Result<Vec<Event>, Error>>,
}

// === impl Write ===

impl Write {
    /// The key that it is about.
    pub fn key(&self) -> &Arc<str> {
        match self {
            Self::Create { key, .. } | Self::Update { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    /// Refuses a key that is none, and what is too large.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let key = self.key();
        if !key.starts_with('/') || key.ends_with('/') {
            return Err(Error::InvalidKey { key: key.to_string() });
        }
        check_size(key, self.size())
    }

    /// The bytes that it stores.
    pub fn size(&self) -> usize {
        let value = match self {
            Self::Create { value, .. } | Self::Update { value, .. } => value.len(),
            Self::Delete { .. } => 0,
        };
        self.key().len() + value
    }
}

/// Refuses an entry of so many bytes when they are too many.
pub(crate) fn check_size(key: &str, size: usize) -> Result<(), Error> {
    if size > MAX_SIZE {
        return Err(Error::TooLarge {
            key: key.to_owned(),
            size,
        });
    }
    Ok(())
}

// === impl Event ===

impl Event {
    /// When it happened.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put { entry, .. } => entry.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }

    /// The key that it happened to.
    pub fn key(&self) -> &Arc<str> {
        match self {
            Self::Put { entry, .. } => &entry.key,
            Self::Delete { previous, .. } => &previous.key,
        }
    }
}

// === impl Watch ===

impl Watch {
    /// For backends: wraps their stream.
    pub fn new(stream: impl Stream<Item = Result<Vec<Event>, Error>> + Send + 'static) -> Self {
        Self {
            stream: Box::pin(stream),
        }
    }
}

impl Stream for Watch {
    type Item = Result<Vec<Event>, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
