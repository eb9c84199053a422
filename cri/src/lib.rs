//! Client of the container runtime: CRI v1, containerd's events and image import, CRI log files.
//!
//! [`Runtime`] is what the kubelet sees.

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
pub mod types;

pub use client::Client;
pub use error::{Error, Result};
pub use oci::Execution;
pub use runtime::Runtime;
pub use types::*;
