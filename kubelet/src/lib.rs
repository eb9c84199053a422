//! Makes this node match the pods bound to it.
//!
//! Level-triggered: whatever wakes a pod's worker, it looks at the runtime, plans, acts and reports, and the same code
//! serves after a restart.
//!
//! Tasks and what they own:
//! - [`config::sources`] watches the API server's pods of this node, and the manifests of static pods, and sends updates to
//!   the dispatcher;
//! - the dispatcher ([`pods`]) owns the set of workers and the mirrors of static pods; it asks [`admission`] (pure) about new
//!   pods, hands on updates, the runtime's events and changed objects,
//!   and asks the runtime for everything once a minute and after each lost connection;
//! - one worker a pod ([`pod_worker`]) owns all memory of its pod: `observe` → [`plan`] (pure) → [`execute`] (alone touches
//!   runtime, volumes, cgroups) → [`status`] (pure) → one patch; one task a probe ([`probes`]) reports to it;
//! - one task a ConfigMap or Secret in use ([`objects`]), one for all Services ([`services`]);
//! - [`local_storage`] measures pods that have a limit of their disk, and evicts those that exceed it;
//! - [`stats`] looks at what pods use when somebody asks, [`metrics`] counts what the kubelet does;
//! - [`local_path`] provisions volumes on this node: one task that watches, one for each directory in work;
//! - [`eviction`] watches for what runs short, [`image_gc`] removes images, [`log_rotation`] rotates logs;
//! - [`certificates`] gets the node's certificates and renews them, one task each;
//! - [`node`] registers the node, keeps its conditions and its lease; [`events`] writes events; [`server`] serves :10250.

pub mod certificates;
pub mod config;

mod admission;
mod agent;
mod backoff;
mod cgroups;
mod clock;
mod dns;
mod env;
mod events;
mod eviction;
mod execute;
mod files;
mod garbage;
mod hop;
mod hosts;
mod image_gc;
mod images;
mod labels;
mod local_path;
mod local_storage;
mod log_rotation;
mod memory;
mod metrics;
mod node;
mod objects;
mod observed;
mod plan;
mod pod;
mod pod_worker;
mod pods;
mod probes;
mod restarts;
mod run;
mod server;
mod services;
mod stats;
mod status;
mod tree;
mod turns;
mod volumes;
mod watching;

pub use config::{Config, Flags, KubeletConfiguration};
pub use run::{Error, run, run_with};
