//! Client of the container runtime: CRI v1, containerd's events and image import, CRI log files.
//!
//! [`Runtime`] is what the kubelet sees; [`Client`] is the real one, over one connection to the runtime's socket that is made again
//! whenever it is lost, and `fake::FakeRuntime` (feature `fake`) the one for tests. [`events`] tells what happens to containers,
//! over a connection of its own. [`images`] imports archives, which [`archive`] makes, and [`pause`] makes the one that every pod
//! needs. [`logs`] reads what containers wrote. [`containerd`] is for
//! those who start a containerd themselves. Nothing here keeps state between calls.

pub mod archive;
mod channel;
mod client;
pub mod containerd;
mod convert;
mod error;
pub mod events;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod images;
pub mod logs;
mod oci;
pub mod pause;
mod protocols;
mod runtime;
mod settings;
#[cfg(any(test, feature = "fake"))]
pub mod testing;
pub mod types;

pub use client::Client;
pub use error::{Error, Result};
pub use oci::Execution;
pub use runtime::Runtime;
pub use types::*;
