//! HTTPS in, bytes out: authentication, authorization, admission, registry, store.
//!
//! The way of a request: [`http`] (TLS, one task a connection) or the in-process client -> `server` (who, may they) -> `handlers` and
//! `subresources` -> [`registry`] -> the store; reads and watches are answered from the watch cache ([`cache`]).
//!
//! Tasks: one follows the store and feeds the cache; one removes old events; one accepts on each listener; one a connection. Who owns
//! which state: the feeder alone writes the cache; everything else is read-only after the start, or has its own lock ([`allocate`],
//! remembered tokens, compiled roles).

pub mod admission;
pub mod allocate;
pub mod authentication;
pub mod authorization;
pub mod body;
pub mod bootstrap;
pub mod cache;
pub mod discovery;
pub mod errors;
pub mod filter;
pub mod http;
pub mod impersonation;
pub mod metrics;
pub mod negotiate;
pub mod query;
pub mod registry;
pub mod render;
pub mod request;
pub mod resources;
pub mod strategy;
pub mod table;
pub mod watch;

mod client;
mod config;
mod expiry;
mod handlers;
mod health;
mod metrics_server;
mod openapi;
mod openid;
mod pod_references;
mod proxy;
mod reviews;
mod server;
mod servers;
mod start;
mod subresources;

pub use config::{Config, DEFAULT_ISSUER};
pub use start::{ApiServer, Error};
