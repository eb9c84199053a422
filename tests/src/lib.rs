//! What the end-to-end suites share: traffic through a Service, a census of what a node holds, waiting for a condition.
//!
//! The suites themselves are in `tests/tests/`, one file a theme; each test has a real cluster of its own from
//! `skiff-cluster`.

pub mod census;
pub mod kubectl;
pub mod traffic;
pub mod wait;
