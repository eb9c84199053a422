//! The server over HTTPS on loopback, with a real store (SQLite, etcd where that matters), spoken to by the real kubectl and by clients in its process.
#![allow(clippy::unwrap_used)] // support code of tests fails by panicking, too

mod access;
mod ages;
mod certificates;
mod cluster;
mod ingresses;
mod kinds;
mod kubectl;
#[allow(dead_code, reason = "the store's own suites need more of it")]
#[path = "../../../store/tests/conformance/member.rs"]
mod member;
mod nodes;
mod outage;
mod proxying;
mod rights;
mod security;
mod storage;
mod watching;
mod writing;
