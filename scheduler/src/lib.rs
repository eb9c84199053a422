//! Finds a node for each unscheduled pod: queue, filter plugins, score plugins, preemption, bind.
//!
//! A pod's way: [`watch`] parses it into the [`model`] → [`scheduler`] puts it into the [`queue`] → [`cycle`] filters and
//! rates the nodes of the [`cache`] with the [`plugins`] of the [`framework`] → the node is assumed, and the binding posted
//! on a task of its own → the watch confirms it.
//!
//! Tasks: one watch a kind; one owner of cache and queue, which decides; one a binding; one writer of pod statuses and one
//! of events ([`effects`]). Nothing is shared: they talk through channels.

mod cache;
mod config;
mod cycle;
mod effects;
mod framework;
mod metrics;
mod model;
mod plugins;
mod queue;
mod request;
mod scheduler;
#[cfg(test)]
mod testing;
mod watch;

pub use config::{Config, Error, SchedulerError, VolumesError};
pub use scheduler::run;
