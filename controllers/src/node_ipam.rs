//! Gives each node a range of pod addresses, and no range to two nodes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ipnet::IpNet;
use parking_lot::Mutex;
use serde_json::json;

use crate::config::Config;
use crate::events::{Recorder, Regarding};
use crate::informer::{Change, Informer};
use crate::manager::Shared;
use crate::queue::Queue;
use crate::view::{Key, Node, View};
use crate::write::{Error, Merge, Writer};

mod range;

use range::Range;

struct Controller {
    nodes: Arc<Informer<Node>>,
    writer: Writer,
    recorder: Recorder,
    queue: Arc<Queue<Key>>,
    ranges: Mutex<Ranges>,
}

/// One range an IP family, and what each node (by uid) has been given.
struct Ranges {
    families: Vec<Range>,
    held: HashMap<String, Vec<IpNet>>,
    /// What nodes hold of the families; by mistake several nodes may hold the same.
    taken: HashSet<IpNet>,
}

/// What a node is to get.
#[derive(Debug, PartialEq)]
enum Promise {
    Given(Vec<IpNet>),
    NoneLeft,
    /// It is no more, so nobody would give back what it got.
    Gone,
}

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let controller = Arc::new(Controller {
        nodes: shared.informers.nodes.want(),
        writer: shared.writer("node-controller"),
        recorder: shared.recorder("cidrAllocator"),
        queue: shared.queue("node_ipam"),
        ranges: Mutex::new(Ranges::new(&shared.config)),
    });
    controller.nodes.tell(&controller, Controller::node_changed);
    let synced = [controller.nodes.synced()];
    let queue = Arc::clone(&controller.queue);
    // Only now is every range that is in use known: none is given out before.
    shared.work(&queue, 1, synced, move |key| {
        let this = Arc::clone(&controller);
        async move { this.sync(key).await }
    })
}

impl Controller {
    fn node_changed(&self, change: &Change<'_, Node>) {
        let node = change.object();
        let mut ranges = self.ranges.lock();
        if change.is_deletion() {
            ranges.release(node.uid());
            return;
        }
        if node.spec.pod_cidrs.is_empty() && node.spec.pod_cidr.is_none() {
            drop(ranges);
            self.queue.add(node.key());
        } else if let Err(cidr) = ranges.occupy(node) {
            tracing::warn!(node = node.name(), %cidr, "the node's pod range is also another node's, or outside of --cluster-cidr");
        }
    }

    async fn sync(&self, key: Key) -> Result<(), Error> {
        let Some(node) = self.nodes.get(&key) else {
            return Ok(());
        };
        if !node.spec.pod_cidrs.is_empty() || node.is_being_deleted() {
            return Ok(());
        }
        let cidrs = match self.promise(&node) {
            Promise::Given(cidrs) => cidrs,
            Promise::NoneLeft => {
                let message = format!("Node {} status is now: CIDRNotAvailable", node.name());
                self.recorder.normal(Regarding::of(&*node), "CIDRNotAvailable", message);
                tracing::warn!(
                    node = node.name(),
                    "no pod range is left in --cluster-cidr; a deleted node frees one"
                );
                self.queue.add_after(key, std::time::Duration::from_secs(30));
                return Ok(());
            }
            Promise::Gone => return Ok(()),
        };
        // The resource version makes sure that nobody has given it another range meanwhile. The reservation stays when
        // the request fails: it may have been carried out.
        let patch = json!({
            "metadata": {"uid": node.uid(), "resourceVersion": node.resource_version()},
            "spec": {"podCIDR": cidrs.first().map(IpNet::to_string), "podCIDRs": cidrs},
        });
        match self.writer.patch::<Node>(&key, Merge::Json, &patch).await {
            Err(error) if error.is_not_found() => {
                self.ranges.lock().release(node.uid());
                Ok(())
            }
            other => other.map(drop),
        }
    }

    /// Reserves for the node, if it is still there: the handler of its end takes the lock after the store has lost it.
    fn promise(&self, node: &Node) -> Promise {
        let mut ranges = self.ranges.lock();
        let is_there = |now: Arc<Node>| now.uid() == node.uid();
        if !self.nodes.get(&node.key()).is_some_and(is_there) {
            return Promise::Gone;
        }
        match ranges.reserve(node.uid()) {
            Some(cidrs) => Promise::Given(cidrs),
            None => Promise::NoneLeft,
        }
    }
}

// === impl Ranges ===

impl Ranges {
    fn new(config: &Config) -> Self {
        let mut families: Vec<_> = config
            .cluster_cidr
            .iter()
            .map(|cidr| Range::new(*cidr, config.mask_for(cidr)))
            .collect();
        for family in &mut families {
            config
                .service_cluster_ip_range
                .iter()
                .for_each(|services| family.exclude(services));
        }
        Self {
            families,
            held: HashMap::new(),
            taken: HashSet::new(),
        }
    }

    /// Notes what a node has; the range that is not its alone is the error.
    fn occupy(&mut self, node: &Node) -> Result<(), String> {
        let written = node
            .spec
            .pod_cidrs
            .iter()
            .chain(node.spec.pod_cidr.iter().filter(|_| node.spec.pod_cidrs.is_empty()));
        let cidrs: Vec<IpNet> = written.filter_map(|cidr| cidr.parse().ok()).collect();
        if self.held.get(node.uid()) == Some(&cidrs) {
            return Ok(());
        }
        self.release(node.uid());
        let mut result = Ok(());
        for cidr in &cidrs {
            if self.families.iter_mut().any(|family| family.occupy(cidr)) {
                self.taken.insert(*cidr);
            } else {
                result = Err(cidr.to_string());
            }
        }
        // Also what is another's: it must not be given away when only that one goes.
        self.held.insert(node.uid().to_owned(), cidrs);
        result
    }

    /// What the node has been promised, or the next free range of each family.
    fn reserve(&mut self, uid: &str) -> Option<Vec<IpNet>> {
        if let Some(held) = self.held.get(uid).filter(|held| !held.is_empty()) {
            return Some(held.clone());
        }
        let mut taken = Vec::new();
        for family in &mut self.families {
            match family.take() {
                Some(cidr) => taken.push(cidr),
                None => break,
            }
        }
        if taken.is_empty() || taken.len() < self.families.len() {
            self.free(&taken);
            return None;
        }
        self.taken.extend(&taken);
        self.held.insert(uid.to_owned(), taken.clone());
        Some(taken)
    }

    fn release(&mut self, uid: &str) {
        let mut free = self.held.remove(uid).unwrap_or_default();
        free.retain(|cidr| !self.held.values().any(|others| others.contains(cidr)) && self.taken.remove(cidr));
        self.free(&free);
    }

    fn free(&mut self, cidrs: &[IpNet]) {
        for cidr in cidrs {
            self.families.iter_mut().for_each(|family| family.free(cidr));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges() -> Ranges {
        Ranges::new(&Config {
            cluster_cidr: vec!["10.244.0.0/23".parse().unwrap()],
            ..Config::default()
        })
    }

    #[tokio::test]
    async fn a_node_that_is_no_more_gets_no_range() {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, std::io::Error>>()
        });
        let controller = Controller {
            nodes: Informer::new(kube::Api::all, None),
            writer: Writer::new(kube::Client::new(service, "default")),
            recorder: crate::events::Broadcaster::new().recorder("test"),
            queue: Queue::new(crate::metrics::WorkqueueMetrics::default().queue("test")),
            ranges: Mutex::new(ranges()),
        };
        // It was there when the worker began; the store has lost it since.
        assert_eq!(controller.promise(&node("a", "")), Promise::Gone);
        assert!(controller.ranges.lock().held.is_empty());
    }

    #[test]
    fn a_range_of_two_nodes_is_free_when_both_are_gone() {
        let mut ranges = ranges();
        assert_eq!(ranges.occupy(&node("first", "10.244.0.0/24")), Ok(()));
        assert!(ranges.occupy(&node("second", "10.244.0.0/24")).is_err());
        ranges.release("first");
        let other = ranges.reserve("a").unwrap();
        assert_eq!(other, ["10.244.1.0/24".parse().unwrap()]);
        assert_eq!(ranges.reserve("b"), None, "the second has the other one");
        ranges.release("second");
        assert!(ranges.reserve("b").is_some());
    }

    fn node(uid: &str, cidr: &str) -> Node {
        serde_json::from_value(
            json!({"metadata": {"name": uid, "uid": uid}, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}}),
        )
        .unwrap()
    }

    #[test]
    fn no_range_is_given_twice() {
        let mut ranges = ranges();
        assert_eq!(ranges.occupy(&node("old", "10.244.0.0/24")), Ok(()));
        let first = ranges.reserve("a").unwrap();
        assert_eq!(first, ["10.244.1.0/24".parse().unwrap()]);
        assert_eq!(
            ranges.reserve("a"),
            Some(first),
            "asked again after a failed write: the same"
        );
        assert_eq!(ranges.reserve("b"), None, "all are given");
        assert!(ranges.occupy(&node("thief", "10.244.1.0/24")).is_err());
        ranges.release("thief");
        assert_eq!(ranges.reserve("b"), None, "what the thief had was not its own to free");
        ranges.release("old");
        assert_eq!(ranges.reserve("b").unwrap(), ["10.244.0.0/24".parse().unwrap()]);
    }
}
