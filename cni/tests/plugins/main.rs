//! The plugins as the runtime runs them: programs, in network namespaces of the test's own.

#![allow(clippy::unwrap_used)] // Test code throughout: a panic is a failed test.

mod crowd;
mod differential;
mod portmap;
mod single;
mod world;
