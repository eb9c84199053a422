//! What the API has of this node, for whoever decides by its labels and taints.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use parking_lot::Mutex;
use skiff_api::k8s_openapi::api::core::v1::Node;
use skiff_daemon::Shutdown;

use crate::watching::{Failures, patiently};

/// Pods are let in by what was seen last, meanwhile.
const LONGEST: Duration = Duration::from_secs(10);

/// What the API was last seen to have of this node, but for its status.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<Option<Arc<Node>>>);

impl Seen {
    /// Nothing before the API has first answered.
    pub(crate) fn get(&self) -> Option<Arc<Node>> {
        self.0.lock().clone()
    }

    /// Watches the node until shutdown.
    pub(crate) async fn follow(self: Arc<Self>, client: kube::Client, name: String, shutdown: Shutdown) {
        let own = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut stream = patiently(
            Failures::of("this node", LONGEST),
            watcher(Api::<Node>::all(client), own),
        );
        let follow = async {
            while let Some(event) = stream.next().await {
                if let Event::InitApply(node) | Event::Apply(node) = event {
                    self.take(node);
                }
            }
        };
        shutdown.run_until_cancelled(follow).await;
    }

    fn take(&self, mut node: Node) {
        node.status = None;
        node.metadata.managed_fields = None;
        *self.0.lock() = Some(Arc::new(node));
    }
}
