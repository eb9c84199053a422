//! What every long-running process shares: logging, metrics, health endpoints, bounds for who connects, shutdown, sd_notify.
//!
//! A process calls [`run`] once; it hands a [`Shutdown`] to its main future, and each component gets a [`Context`]
//! made from it. No task is spawned here but the signal listener, one that gives memory back once, and, on
//! request, [`health::serve`], a listener for SIGHUP ([`files`]), a thread for inotify ([`directory`]), the watchdog ([`Context::serving`]), the events of [`election`], one task a
//! connection ([`serve::listen`]) and what is given to [`Tasks`].

pub mod directory;
pub mod election;
pub mod files;
pub mod health;
pub mod logging;
pub mod metrics;
pub mod process;
pub mod serve;

mod error;
mod memory;
mod notify;
mod runtime;
mod tasks;

pub use directory::Subscription;
pub use error::error_chain;
pub use files::Files;
pub use health::{Check, Health};
pub use logging::{LogFormat, LogOptions};
pub use metrics::Metrics;
pub use runtime::{install_crypto, run, run_command};
pub use tasks::Tasks;

/// Cancelled once, when the process has been asked to stop; every loop selects on it.
pub type Shutdown = tokio_util::sync::CancellationToken;

/// What a component gets from the process that it runs in.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Ends the component's loops.
    pub shutdown: Shutdown,
    /// Where the component registers what it measures.
    pub metrics: Metrics,
    /// Where the component says whether it lives and is ready.
    pub health: Health,
}
