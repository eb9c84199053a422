//! The plugins of the default profile, and how a pod is put to them.

use std::sync::Arc;

use kube::Client;

use super::{
    Bind, ClusterEvent, Diagnosis, Filter, Permit, PostBind, PostFilter, PostFiltered, PreBind, PreEnqueue, PreFilter,
    PreFiltered, PreScore, QueueSort, Rejection, Reserve,
};
use crate::cache::Snapshot;
use crate::model::{Node, Pod};
use crate::plugins::{
    DefaultBinder, DefaultPreemption, ImageLocality, InterPodAffinity, NodeAffinity, NodeName, NodePorts,
    NodeResourcesBalancedAllocation, NodeResourcesFit, NodeUnschedulable, PodTopologySpread, PrioritySort,
    SchedulingGates, TaintToleration, VolumeBinding, VolumeRestrictions, VolumeZone,
};

/// The plugins, by extension point, each list in the order that they run in.
pub(crate) struct Framework {
    pub(crate) pre_enqueue: Vec<Arc<dyn PreEnqueue>>,
    pub(crate) queue_sort: Arc<dyn QueueSort>,
    pre_filter: Vec<Arc<dyn PreFilter>>,
    post_filter: Vec<Arc<dyn PostFilter>>,
    /// With their weights.
    score: Vec<(Arc<dyn PreScore>, i64)>,
    reserve: Vec<Arc<dyn Reserve>>,
    permit: Vec<Arc<dyn Permit>>,
    pre_bind: Vec<Arc<dyn PreBind>>,
    bind: Vec<Arc<dyn Bind>>,
    post_bind: Vec<Arc<dyn PostBind>>,
}

/// Everything that a node has to pass to take one pod.
pub(crate) struct Filters<'a> {
    filters: Vec<Box<dyn Filter + 'a>>,
    /// The only nodes worth looking at, and the plugins that said so.
    pub(crate) only: Option<(Vec<String>, Vec<&'static str>)>,
}

impl Framework {
    /// Upstream's default plugins in upstream's order: the first to refuse a node is the one that is named.
    pub(crate) fn new(binder: Client) -> Self {
        let affinity = Arc::new(NodeAffinity);
        let taints = Arc::new(TaintToleration);
        let fit = Arc::new(NodeResourcesFit);
        let spread = Arc::new(PodTopologySpread);
        let pods = Arc::new(InterPodAffinity);
        let volumes = Arc::new(VolumeBinding::new(binder.clone()));
        Self {
            pre_enqueue: vec![Arc::new(SchedulingGates)],
            queue_sort: Arc::new(PrioritySort),
            pre_filter: vec![
                Arc::new(NodeUnschedulable),
                Arc::new(NodeName),
                taints.clone(),
                affinity.clone(),
                Arc::new(NodePorts),
                fit.clone(),
                Arc::new(VolumeRestrictions),
                volumes.clone(),
                Arc::new(VolumeZone),
                spread.clone(),
                pods.clone(),
            ],
            post_filter: vec![Arc::new(DefaultPreemption)],
            score: vec![
                (taints, 3),
                (affinity, 2),
                (fit, 1),
                (spread, 2),
                (pods, 2),
                (Arc::new(NodeResourcesBalancedAllocation), 1),
                (Arc::new(ImageLocality), 1),
            ],
            reserve: vec![volumes.clone()],
            permit: Vec::new(),
            pre_bind: vec![volumes.clone()],
            bind: vec![Arc::new(DefaultBinder::new(binder))],
            post_bind: vec![volumes],
        }
    }

    /// Whether `event` may let in a pod that the plugin of this name kept out.
    pub(crate) fn hint(&self, plugin: &str, pod: &Pod, event: &ClusterEvent<'_>) -> bool {
        let found = self.pre_filter.iter().find(|known| known.name() == plugin);
        found.is_some_and(|plugin| plugin.hint(pod, event))
    }

    /// Asks whether a pod may enter the queue.
    pub(crate) fn may_enqueue(&self, pod: &Pod) -> Result<(), Rejection> {
        self.pre_enqueue.iter().try_for_each(|plugin| plugin.pre_enqueue(pod))
    }

    /// Prepares the filters for a pod.
    pub(crate) fn filters<'a>(&'a self, pod: &'a Pod, snapshot: &'a Snapshot) -> Result<Filters<'a>, Rejection> {
        let mut prepared = Filters {
            filters: Vec::with_capacity(self.pre_filter.len()),
            only: None,
        };
        for plugin in &self.pre_filter {
            match plugin.pre_filter(pod, snapshot) {
                PreFiltered::Skip => {}
                PreFiltered::Reject(rejection) => return Err(rejection),
                PreFiltered::Filter(filter) => prepared.filters.push(filter),
                PreFiltered::Only(names, filter) => {
                    prepared.filters.push(filter);
                    prepared.restrict(names, plugin.name());
                }
            }
        }
        Ok(prepared)
    }

    /// Rates each node; higher is better.
    pub(crate) fn score<'a>(&'a self, pod: &'a Pod, snapshot: &'a Snapshot, nodes: &[&'a Node]) -> Vec<i64> {
        let mut totals = vec![0; nodes.len()];
        for (plugin, weight) in &self.score {
            let Some(scorer) = plugin.pre_score(pod, snapshot, nodes) else {
                continue;
            };
            let mut scores: Vec<i64> = nodes.iter().map(|node| scorer.score(node)).collect();
            scorer.normalize(nodes, &mut scores);
            for (total, score) in totals.iter_mut().zip(scores) {
                *total += score * weight;
            }
        }
        totals
    }

    /// Tries to make room; the first plugin that finds a way ends the search.
    pub(crate) fn post_filter(&self, pod: &Pod, snapshot: &Snapshot, diagnosis: &Diagnosis) -> PostFiltered {
        let mut messages = Vec::new();
        let mut keeps_nomination = false;
        for plugin in &self.post_filter {
            let found = plugin.post_filter(self, pod, snapshot, diagnosis);
            if found.preemption.is_some() {
                return found;
            }
            messages.push(found.message);
            keeps_nomination |= found.keeps_nomination;
        }
        PostFiltered {
            message: messages.join(", "),
            preemption: None,
            keeps_nomination,
        }
    }

    /// Takes what the pod needs besides the node, and asks for the last time.
    pub(crate) fn reserve(&self, pod: &Pod, node: &str, snapshot: &Snapshot) -> Result<(), Rejection> {
        let mut plugins = self.reserve.iter();
        let reserved = plugins.try_for_each(|plugin| plugin.reserve(pod, node, snapshot));
        let permitted = reserved.and_then(|()| self.permit.iter().try_for_each(|plugin| plugin.permit(pod, node)));
        permitted.inspect_err(|_| self.unreserve(pod, node))
    }

    /// Gives it back.
    pub(crate) fn unreserve(&self, pod: &Pod, node: &str) {
        for plugin in self.reserve.iter().rev() {
            plugin.unreserve(pod, node);
        }
    }

    /// Prepares the node and tells the API server.
    pub(crate) async fn bind(&self, pod: &Pod, node: &str) -> Result<(), crate::Error> {
        for plugin in &self.pre_bind {
            plugin.pre_bind(pod, node).await?;
        }
        for plugin in &self.bind {
            plugin.bind(pod, node).await?;
        }
        for plugin in &self.post_bind {
            plugin.post_bind(pod, node);
        }
        Ok(())
    }
}

impl Filters<'_> {
    /// The first refusal, if any.
    pub(crate) fn check(&self, node: &Node) -> Result<(), Rejection> {
        self.filters.iter().try_for_each(|filter| filter.filter(node))
    }

    fn restrict(&mut self, names: Vec<String>, plugin: &'static str) {
        let (allowed, plugins) = self.only.get_or_insert_with(|| (names.clone(), Vec::new()));
        allowed.retain(|name| names.contains(name));
        plugins.push(plugin);
    }
}
