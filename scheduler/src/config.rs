//! What the scheduler is told, and what can go wrong with it.

use std::time::Duration;

use skiff_daemon::election::Election;

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
    /// `leaderElection`, where several schedulers could run at once.
    pub leader_election: Option<Election>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".to_owned(),
            pod_initial_backoff: Duration::from_secs(1),
            pod_max_backoff: Duration::from_secs(10),
            instance: None,
            leader_election: None,
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
    /// The volumes of a pod could not be bound.
    #[error("running PreBind plugin \"VolumeBinding\": binding volumes of pod {pod}")]
    Volumes {
        /// Namespace and name.
        pod: String,
        /// What went wrong.
        source: VolumesError,
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

/// A step of binding a pod's volumes that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumesError {
    /// A volume or claim could not be written: perhaps somebody else took it.
    #[error("write {what}")]
    Write {
        /// Its kind and name.
        what: String,
        /// What the API server said.
        source: kube::Error,
    },
    /// The API server could not be asked.
    #[error("watch {what}")]
    Watch {
        /// Its kind and name.
        what: String,
        /// What the API server said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nobody bound a claim in time.
    #[error("timed out waiting for PersistentVolumeClaim {0:?} to be bound; its events say what its provisioner does")]
    Timeout(String),
    /// A claim was deleted meanwhile.
    #[error("PersistentVolumeClaim {0:?} is gone")]
    Gone(String),
    /// The provisioner wants another node.
    #[error("selectedNode annotation reset for PVC {0:?}")]
    Reset(String),
    /// The volume that a claim was bound to is not on the chosen node.
    #[error("pv {volume:?} node affinity doesn't match node {node:?}")]
    Elsewhere {
        /// The volume.
        volume: String,
        /// The node chosen.
        node: String,
    },
    /// The pod was deleted meanwhile.
    #[error("pod does not exist any more")]
    PodGone,
}

pub use SchedulerError as Error;
