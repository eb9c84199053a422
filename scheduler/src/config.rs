//! What the scheduler is told, and what can go wrong with it.

use std::time::Duration;

/// The settings of the one profile, under upstream's names where they have one.
#[derive(Clone, Debug)]
pub struct Config {
    /// `schedulerName`: pods that name another scheduler are left to it.
    pub scheduler_name: String,
    /// `podInitialBackoffSeconds`.
    pub pod_initial_backoff: Duration,
    /// `podMaxBackoffSeconds`.
    pub pod_max_backoff: Duration,
    /// Told apart in events when several run; the host's name, usually.
    pub instance: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".to_owned(),
            pod_initial_backoff: Duration::from_secs(1),
            pod_max_backoff: Duration::from_secs(10),
            instance: None,
        }
    }
}

/// A step of scheduling that failed. Each is tried again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SchedulerError {
    /// The API server did not accept a decision: perhaps the pod or the node is gone.
    #[error("bind pod {pod} to node {node}")]
    Bind {
        /// Namespace and name.
        pod: String,
        /// The node chosen.
        node: String,
        /// What the API server said.
        source: kube::Error,
    },
    /// The status of a pod could not be written.
    #[error("write the status of pod {pod}")]
    Status {
        /// Namespace and name.
        pod: String,
        /// What the API server said.
        source: kube::Error,
    },
    /// A pod that should make room could not be deleted.
    #[error("delete pod {pod} to make room")]
    Preempt {
        /// Namespace and name.
        pod: String,
        /// What the API server said.
        source: kube::Error,
    },
}

pub use SchedulerError as Error;
