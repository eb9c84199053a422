//! The controller manager: one file a controller, under upstream's name.
//!
//! Tasks: one informer a kind ([`informer`]), shared by all controllers; a few workers a controller, fed by its keyed
//! [`queue`]; one writer of events ([`events`]). Each controller decides in a pure `plan` and acts through [`write`].
//! Nothing polls but node lifecycle, which looks at leases every `node_monitor_period`. Beside the manager, every server keeps a directory
//! of [`Manifests`].

mod bootstrap_signer;
mod certificates;
mod clients;
mod cluster_role_aggregation;
mod config;
mod deployment;
mod discovery;
mod endpoint_slice;
mod endpoints;
mod ephemeral_volume;
mod events;
mod expectations;
mod garbage_collector;
mod informer;
mod manager;
mod manifests;
mod metrics;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod ownership;
mod per_namespace;
mod persistent_volume;
mod pod_gc;
mod pods;
mod queue;
mod replica_set;
mod root_ca;
mod service_account;
mod service_lb;
mod taint_eviction;
mod token_cleaner;
mod view;
mod volume_protection;
mod write;

pub use clients::Clients;
pub use config::{ClusterSigning, Config, Error, Renewable, fixed};
pub use manager::run;
pub use manifests::Manifests;
