//! The whole proxy against a real kernel: a node, pods and a client outside in network namespaces of the test's own; the
//! API is scripted.

#![allow(clippy::unwrap_used)] // Test code throughout: a panic is a failed test.

mod api;
mod changes;
mod faults;
mod notify;
mod policies;
mod sctp;
mod services;
mod world;
