//! Generated from `cri/proto`: gRPC messages and clients. Nothing outside this crate sees them.
#![allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::all,
    clippy::pedantic,
    dead_code
)]

include!(concat!(env!("OUT_DIR"), "/protocols.rs"));
