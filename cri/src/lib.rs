//! Client of the container runtime: CRI v1, containerd's events and image import, CRI log files.
//!
//! [`Runtime`] is what the kubelet sees.

mod error;
pub mod events;
mod runtime;
pub mod types;

pub use error::{Error, Result};
pub use runtime::Runtime;
pub use types::*;
