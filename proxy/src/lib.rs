//! The service proxy: Services and EndpointSlices become packet rules of this node.
//!
//! One task ([`watch`]) reads both kinds, reduced to what rules are made of, and sends changes through a channel; one
//! loop ([`run`]) owns everything else. It takes changes into the `index`, asks [`plan`] for the rules of each Service
//! that changed, lets `sync` write the difference to what is in the kernel, and hands that to `iptables-restore` in one
//! transaction. The first change of a burst is applied at once; what comes meanwhile goes into the next transaction.
//!
//! What is in the kernel is remembered, not read back. After a failure, and when the canary chain or a jump into our chains
//! is gone (somebody flushed rules), everything is written anew.

mod cleanup;
mod config;
mod events;
mod express;
mod healthz;
mod index;
mod kernel;
mod metrics;
mod model;
mod names;
pub mod plan;
mod ports_taken;
mod run;
mod service_health;
mod stale_flows;
mod sync;
mod watch;
mod wire;

use std::net::SocketAddr;

pub use cleanup::cleanup;
pub use config::{ClientConnection, Config, Conntrack, ConntrackConfiguration, DetectLocal, Error as ConfigError};
pub use config::{IptablesConfiguration, IpvsConfiguration, KubeProxyConfiguration, LoggingConfiguration};
pub use config::{NftablesConfiguration, VmoduleItem, WinkernelConfiguration};
pub use model::{Endpoint, Hint, Node, Outside, Port, Protocol, Service, Slice, SlicePort};
pub use names::{Kind, chain};
pub use run::run;

/// Why the proxy cannot work at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There are no programs for packet rules.
    #[error("cannot program packet rules on this node")]
    Iptables(#[source] skiff_net::iptables::Error),
    /// A port is in use.
    #[error("cannot listen on {address}: another process may have the port")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The watching task died.
    #[error("the watch of services and endpoints ended")]
    WatchEnded,
}
