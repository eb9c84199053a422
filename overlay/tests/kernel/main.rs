//! The whole component in network namespaces, against a scripted API.

#![allow(clippy::unwrap_used)] // Test code throughout: a panic is a failed test.

mod node;
mod scripted;
mod segments;
