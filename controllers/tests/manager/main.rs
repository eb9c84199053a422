//! The controller manager against a real API server with a real SQLite store, in one process; nodes are played by the test.

#![allow(clippy::unwrap_used, reason = "test code outside of test functions too")]

mod certificates;
mod cluster;
mod garbage;
mod load_balancers;
mod manifests;
mod namespaces;
mod nodes;
mod services;
mod storage;
mod workloads;
