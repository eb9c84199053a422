//! The image that holds a pod's namespaces open, made of our own program: no registry is asked for it.

use std::io::Write;

use crate::archive::{Builder, Error};
use crate::oci::Execution;

/// Name of the pause image; containerd's `sandbox_image` must say the same.
pub const IMAGE: &str = concat!("localhost/skiff/pause:", env!("CARGO_PKG_VERSION"));

/// Compiled from `cri/pause/pause.rs` by `build.rs`.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));

/// Writes the archive of the pause image; returns its digest.
///
/// # Errors
/// When `to` cannot be written.
pub fn write_archive(to: impl Write) -> Result<String, Error> {
    write_archive_as(IMAGE, to)
}

/// The same under another name: the one that a runtime asks for by its `sandbox_image`.
///
/// # Errors
/// When `to` cannot be written.
pub fn write_archive_as(image: &str, to: impl Write) -> Result<String, Error> {
    // The pod may run as anybody, so the program is readable and executable for everybody.
    let execution = Execution {
        entrypoint: vec!["/pause".into()],
        user: "65535:65535".into(),
        ..Default::default()
    };
    Builder::new(image)
        .bytes("/pause", 0o555, PROGRAM)
        .execution(execution)
        .write(to)
}
