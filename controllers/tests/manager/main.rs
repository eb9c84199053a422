//! The controller manager against a real API server with a real SQLite store, in one process; nodes are played by the test.

mod cluster;
mod garbage;
mod namespaces;
mod nodes;
mod services;
mod workloads;
