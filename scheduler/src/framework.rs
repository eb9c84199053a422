//! The extension points, under upstream's names, and the order that the plugins of a profile run in.
//!
//! State that one pod's pass carries from one point to the next is a value with a type, not an entry in a map:
//! [`PreFilter`] hands back the [`Filter`] to try nodes with, [`PreScore`] the [`Score`] to rate them with.

mod diagnosis;
mod event;
mod profile;

pub(crate) use diagnosis::{Diagnosis, Rejection, nodes_message};
pub(crate) use event::ClusterEvent;
pub(crate) use profile::{Filters, Framework};

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::cache::Snapshot;
use crate::model::{Node, Pod};

/// The best score that a plugin gives a node.
pub(crate) const MAX_SCORE: i64 = 100;

/// What every plugin has.
pub(crate) trait Plugin: Send + Sync {
    /// Its name, upstream's.
    fn name(&self) -> &'static str;

    /// Whether an event may let in a pod that this plugin kept out. Asked for each such pod at each event.
    fn hint(&self, _pod: &Pod, _event: &ClusterEvent<'_>) -> bool {
        false
    }
}

/// May keep a pod out of the queue.
pub(crate) trait PreEnqueue: Plugin {
    /// Why it has to wait.
    fn pre_enqueue(&self, pod: &Pod) -> Result<(), Rejection>;
}

/// Says which pod goes first.
pub(crate) trait QueueSort: Plugin {
    /// Lower goes first; among equals, whoever came first.
    fn rank(&self, pod: &Pod) -> i64;
}

/// Looks at the pod and the whole cluster, once.
pub(crate) trait PreFilter: Plugin {
    /// What there is to check on each node.
    fn pre_filter<'a>(&'a self, pod: &'a Pod, snapshot: &'a Snapshot) -> PreFiltered<'a>;
}

/// What a [`PreFilter`] found.
pub(crate) enum PreFiltered<'a> {
    /// The pod does not concern this plugin.
    Skip,
    /// No node can do.
    Reject(Rejection),
    /// Each node has to pass this.
    Filter(Box<dyn Filter + 'a>),
    /// Only nodes of these names can do, and each has to pass this.
    Only(Vec<String>, Box<dyn Filter + 'a>),
}

/// Whether one node can take the pod.
pub(crate) trait Filter {
    /// Why it cannot.
    fn filter(&self, node: &Node) -> Result<(), Rejection>;
}

/// May make room where no node could take the pod.
pub(crate) trait PostFilter: Plugin {
    /// What it found.
    fn post_filter(&self, framework: &Framework, pod: &Pod, snapshot: &Snapshot, diagnosis: &Diagnosis)
    -> PostFiltered;
}

/// What a [`PostFilter`] found.
#[derive(Debug, Default)]
pub(crate) struct PostFiltered {
    /// What to tell the user.
    pub(crate) message: String,
    /// Where to make room, and by deleting which pods.
    pub(crate) preemption: Option<Preemption>,
    /// Room that was promised before is still being made.
    pub(crate) keeps_nomination: bool,
}

/// Pods to delete so that another fits.
#[derive(Debug)]
pub(crate) struct Preemption {
    /// Where.
    pub(crate) node: Arc<str>,
    /// Which.
    pub(crate) victims: Vec<Arc<Pod>>,
}

/// Looks at the pod and the nodes that can take it, once.
pub(crate) trait PreScore: Plugin {
    /// How to rate each; `None` when the pod does not concern this plugin.
    fn pre_score<'a>(
        &'a self,
        pod: &'a Pod,
        snapshot: &'a Snapshot,
        feasible: &[&'a Node],
    ) -> Option<Box<dyn Score + 'a>>;
}

/// How well one node suits the pod.
pub(crate) trait Score {
    /// In any unit when [`Score::normalize`] is implemented, else from 0 to [`MAX_SCORE`].
    fn score(&self, node: &Node) -> i64;

    /// Brings the scores of all feasible nodes into the range from 0 to [`MAX_SCORE`].
    fn normalize(&self, _nodes: &[&Node], _scores: &mut [i64]) {}
}

/// Takes what the pod needs besides the node, before it is bound.
pub(crate) trait Reserve: Plugin {
    /// Takes it.
    fn reserve(&self, pod: &Pod, node: &str, snapshot: &Snapshot) -> Result<(), Rejection>;
    /// Gives it back; called also when nothing was taken.
    fn unreserve(&self, pod: &Pod, node: &str);
}

/// May refuse a decision at the last moment.
pub(crate) trait Permit: Plugin {
    /// Why it is refused.
    fn permit(&self, pod: &Pod, node: &str) -> Result<(), Rejection>;
}

/// Prepares a node for a pod, outside the scheduling cycle.
pub(crate) trait PreBind: Plugin {
    /// Prepares it.
    fn pre_bind<'a>(&'a self, pod: &'a Pod, node: &'a str) -> BoxFuture<'a, Result<(), crate::Error>>;
}

/// Tells the API server where the pod goes.
pub(crate) trait Bind: Plugin {
    /// Tells it.
    fn bind<'a>(&'a self, pod: &'a Pod, node: &'a str) -> BoxFuture<'a, Result<(), crate::Error>>;
}

/// Hears of a pod that has been bound.
pub(crate) trait PostBind: Plugin {
    /// Hears of it.
    fn post_bind(&self, pod: &Pod, node: &str);
}

/// Scales scores so that the largest becomes [`MAX_SCORE`]; turned around when less is better.
pub(crate) fn normalize(scores: &mut [i64], reverse: bool) {
    let largest = scores.iter().copied().max().unwrap_or_default();
    for score in scores {
        *score = if largest == 0 { 0 } else { MAX_SCORE * *score / largest };
        if reverse {
            *score = MAX_SCORE - *score;
        }
    }
}
