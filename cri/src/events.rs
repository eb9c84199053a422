//! What happens to containers, as it happens.

use jiff::Timestamp;

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
    /// Its first process ended.
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
