//! The whole controller against an API of the test's own and real sockets, in a network namespace of the test's own.

#![allow(clippy::unwrap_used)] // Test code throughout: a panic is a failed test.

mod api;
mod bodies;
mod certificates;
mod failures;
mod limits;
mod routing;
mod world;
