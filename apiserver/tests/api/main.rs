//! The server over HTTPS on loopback, with a real SQLite store, spoken to by the real kubectl and by clients in its process.
#![allow(clippy::unwrap_used)] // support code of tests fails by panicking, too

mod access;
mod certificates;
mod cluster;
mod ingresses;
mod kinds;
mod kubectl;
mod nodes;
mod proxying;
mod rights;
mod security;
mod storage;
mod watching;
mod writing;
