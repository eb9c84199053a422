//! Removes pods that no kubelet will: of nodes that are gone or out of service, never bound, or ended and too many.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::informer::{Change, Informer};
use crate::manager::Shared;
use crate::queue::Queue;
use crate::view::{Index, Key, Node, Pod, View};
use crate::write::{Error, Merge, Writer};

const WORKERS: usize = 2;
/// Ended pods are counted at most so often.
const COUNT_AFTER: Duration = Duration::from_secs(20);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// What to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Work {
    Node(Arc<str>),
    Unbound(Key),
    Ended,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node {name}"),
            Self::Unbound(pod) => write!(f, "pod {pod}"),
            Self::Ended => f.write_str("ended pods"),
        }
    }
}

struct Controller {
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    writer: Writer,
    queue: Arc<Queue<Work>>,
    threshold: usize,
    quarantine: Duration,
}

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let controller = Arc::new(Controller {
        nodes: shared.informers.nodes.want(),
        pods: shared.informers.pods.want(),
        writer: shared.writer("pod-garbage-collector"),
        queue: shared.queue("pod_garbage_collector"),
        threshold: shared.config.terminated_pod_gc_threshold,
        quarantine: shared.config.node_quarantine,
    });
    controller.nodes.tell(&controller, Controller::node_changed);
    controller.pods.tell(&controller, Controller::pod_changed);
    let synced = [controller.nodes.synced(), controller.pods.synced()];
    let queue = Arc::clone(&controller.queue);
    shared.work(&queue, WORKERS, synced, move |work| {
        let this = Arc::clone(&controller);
        async move { this.sync(work).await }
    })
}

fn is_out_of_service(node: &Node) -> bool {
    let ready = node.condition("Ready").is_some_and(|ready| ready.status == "True");
    !ready && node.spec.taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

impl Controller {
    fn node_changed(&self, change: &Change<'_, Node>) {
        let node = change.object();
        if change.is_deletion() {
            self.queue.add_after(Work::Node(node.name().into()), self.quarantine);
        } else if is_out_of_service(node) {
            self.queue.add(Work::Node(node.name().into()));
        }
    }

    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let Some(pod) = change.new else { return };
        match pod.spec.node_name.as_deref() {
            None if pod.is_being_deleted() => self.queue.add(Work::Unbound(pod.key())),
            None => {}
            Some(node) => match self.nodes.get(&Key::cluster(node)) {
                None => self.queue.add_after(Work::Node(node.into()), self.quarantine),
                Some(found) if pod.is_terminating() && is_out_of_service(&found) => {
                    self.queue.add(Work::Node(node.into()))
                }
                Some(_) => {}
            },
        }
        let ended = pod.is_terminal() && change.old.is_none_or(|old| !old.is_terminal());
        if ended && self.threshold > 0 {
            self.queue.add_after(Work::Ended, COUNT_AFTER);
        }
    }

    async fn sync(&self, work: Work) -> Result<(), Error> {
        match work {
            Work::Node(name) => self.sync_node(&name).await,
            Work::Unbound(key) => match self.pods.get(&key) {
                Some(pod) if pod.is_being_deleted() && pod.spec.node_name.is_none() => self.remove(&pod, None).await,
                _ => Ok(()),
            },
            Work::Ended => self.remove_ended().await,
        }
    }

    async fn sync_node(&self, name: &str) -> Result<(), Error> {
        let pods = self.pods.by_index(&Index::Node(name.to_owned()));
        let key = Key::cluster(name);
        if let Some(node) = self.nodes.get(&key) {
            if is_out_of_service(&node) {
                for pod in pods.iter().filter(|pod| pod.is_terminating()) {
                    self.remove(pod, Some("PodGC: node is out of service")).await?;
                }
            }
            return Ok(());
        }
        // The store may have missed it; only the server knows for sure.
        if pods.is_empty() || self.writer.get::<Node>(&key).await?.is_some() {
            return Ok(());
        }
        for pod in &pods {
            tracing::info!(pod = %pod.key(), node = name, "removing a pod of a node that is gone");
            self.remove(pod, Some("PodGC: node no longer exists")).await?;
        }
        Ok(())
    }

    /// Deletes at once. With a `reason` the pod is marked as failed first, so that its owner knows what became of it.
    async fn remove(&self, pod: &Pod, reason: Option<&str>) -> Result<(), Error> {
        if let Some(message) = reason {
            let patch =
                json!({"metadata": {"uid": pod.uid()}, "status": failed_status(pod, message, Timestamp::now())});
            match self
                .writer
                .patch_status::<Pod>(&pod.key(), Merge::Strategic, &patch)
                .await
            {
                Err(error) if error.is_not_found() || error.is_conflict() => return Ok(()),
                other => drop(other?),
            }
        }
        match self
            .writer
            .delete::<Pod>(&pod.key(), pod.uid(), DeleteParams::default().grace_period(0))
            .await
        {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    async fn remove_ended(&self) -> Result<(), Error> {
        let ended = self
            .pods
            .list()
            .into_iter()
            .filter(|pod| pod.is_terminal() && !pod.is_being_deleted())
            .collect();
        for pod in surplus(ended, self.threshold) {
            self.remove(&pod, None).await?;
        }
        Ok(())
    }
}

fn failed_status(pod: &Pod, message: &str, now: Timestamp) -> Value {
    let mut status = json!({"conditions": [{
        "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "message": message,
        "lastTransitionTime": now.round(jiff::Unit::Second).unwrap_or(now).to_string(),
    }]});
    if !pod.is_terminal() {
        status["phase"] = json!("Failed");
    }
    status
}

/// The oldest of the ended pods beyond the threshold.
fn surplus(mut ended: Vec<Arc<Pod>>, threshold: usize) -> Vec<Arc<Pod>> {
    ended.sort_by(|a, b| {
        let age = |pod: &Pod| pod.metadata.creation_timestamp.clone();
        age(a).cmp(&age(b)).then_with(|| a.name().cmp(b.name()))
    });
    ended.truncate(ended.len().saturating_sub(threshold));
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, created: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(
                json!({"metadata": {"name": name, "creationTimestamp": created}, "status": {"phase": "Running"}}),
            )
            .unwrap(),
        )
    }

    #[test]
    fn the_oldest_ended_pods_go() {
        let ended = vec![
            pod("b", "2026-01-02T00:00:00Z"),
            pod("c", "2026-01-03T00:00:00Z"),
            pod("a", "2026-01-01T00:00:00Z"),
        ];
        let names = |threshold| {
            surplus(ended.clone(), threshold)
                .iter()
                .map(|pod| pod.name().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(1), ["a", "b"]);
        assert!(names(5).is_empty());
    }

    #[test]
    fn a_pod_of_a_gone_node_has_failed() {
        let status = failed_status(
            &pod("a", "2026-01-01T00:00:00Z"),
            "PodGC: node no longer exists",
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(status["phase"], "Failed");
        assert_eq!(status["conditions"][0]["reason"], "DeletionByPodGC");
    }
}
