//! The bundled ingress controller: Ingresses become routes of a reverse proxy for HTTP and TLS.
//!
//! One task ([`watch`]) reads Ingresses, IngressClasses, Services, EndpointSlices and TLS Secrets, reduced ([`wire`]) to
//! what routes are made of ([`model`]), and sends changes through a channel. One loop ([`run`]) takes them into the
//! `index`; when one matters, [`plan`] makes a whole new routing [`table`] of everything, which takes the former one's
//! place in one step: a request sees one table from its begin to its end. One task (`publish`) tells the API what was
//! found: addresses, the class, events.
//!
//! Each listener has a task (`server`), each connection one. A request is read (`request`), routed, and sent on
//! (`proxy`) over connections that are kept (`pool`); bodies pass frame by frame (`body`). With the end of its answer it
//! is logged and counted (`access`).

mod access;
mod body;
mod certificate;
mod config;
mod headers;
mod index;
mod metrics;
pub mod model;
pub mod plan;
mod pool;
mod proxy;
mod publish;
mod request;
mod run;
mod server;
mod socket;
pub mod table;
mod watch;
mod wire;

use std::net::SocketAddr;

pub use certificate::Error as CertificateError;
pub use config::{Error as ConfigError, IngressConfiguration, Limits};
pub use run::run;

/// What an IngressClass names to be served here (`spec.controller`).
pub const CONTROLLER: &str = "skiff/ingress";

/// Why the controller cannot work at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be used.
    #[error("use the ingress configuration")]
    Config(#[source] ConfigError),
    /// A port is in use.
    #[error("cannot listen on {address}: another process may have the port")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// TLS cannot be set up.
    #[error("set up TLS for ingresses")]
    Tls(#[source] CertificateError),
    /// The watching task died.
    #[error("the watch of ingresses and services ended")]
    WatchEnded,
}
