//! Where pods come from: the API server's pods of this node, and manifests in a directory ([`manifests`]).

pub(crate) mod manifests;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use skiff_api::k8s_openapi::api::core::v1::Pod;
use skiff_daemon::Shutdown;
use tokio::sync::mpsc;

use crate::hop::hop;
use crate::pod;
use crate::watching::{Failures, patiently};

/// A place that pods come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// The API server.
    Api,
    /// A directory of manifests: static pods.
    Manifests,
}

/// A change of what should run here.
#[derive(Clone, Debug)]
pub(crate) enum Update {
    /// All pods of the source: what is not among them is gone.
    All(Source, Vec<Arc<Pod>>),
    /// A pod of the API is new or has changed.
    Apply(Arc<Pod>),
    /// A pod of the API is gone.
    Remove(Arc<Pod>),
}

/// Nothing runs here while the API server refuses to tell what should.
const LONGEST: Duration = Duration::from_secs(10);

/// Watches the pods bound to `node` until shutdown; nothing is lost while the API server is away: it is listed again.
pub(crate) async fn api(client: kube::Client, node: String, updates: mpsc::Sender<Update>, shutdown: Shutdown) {
    let api: Api<Pod> = Api::all(client);
    let events = watcher(api, watcher::Config::default().fields(&format!("spec.nodeName={node}")));
    let mut stream = patiently(Failures::of("pods of this node", LONGEST), events);
    let mut fresh = Vec::new();
    loop {
        let event = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            event = stream.next() => event,
        };
        let update = match event {
            Some(Event::Init) => {
                fresh.clear();
                continue;
            }
            Some(Event::InitApply(pod)) => {
                fresh.push(taken(pod));
                continue;
            }
            Some(Event::InitDone) => Update::All(Source::Api, std::mem::take(&mut fresh)),
            Some(Event::Apply(pod)) => Update::Apply(taken(pod)),
            Some(Event::Delete(pod)) => Update::Remove(taken(pod)),
            None => return,
        };
        if updates.send(update).await.is_err() {
            return;
        }
    }
}

/// As the kubelet reads it: marked with its source, and without what is never read.
fn taken(mut pod: Pod) -> Arc<Pod> {
    if pod::status(&pod).start_time.is_none() {
        hop(&pod, "seen");
    }
    pod.metadata.managed_fields = None;
    pod::mark_as_api(&mut pod);
    Arc::new(pod)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::{CONFIG_HASH, CONFIG_SOURCE, MIRROR};

    #[test]
    fn what_a_user_writes_makes_no_static_pod() {
        for annotations in [
            json!({}),
            json!({CONFIG_SOURCE: "file", CONFIG_HASH: "u1", MIRROR: "u1"}),
        ] {
            let mut pod = pod::tests::pod(&json!({}));
            pod.metadata.annotations = serde_json::from_value(annotations.clone()).ok();
            let pod = taken(pod);
            assert!(!pod::is_static(&pod), "{annotations}");
            assert_eq!(pod::annotation(&pod, CONFIG_SOURCE), Some("api"), "{annotations}");
            assert!(!crate::eviction::is_critical(&pod), "{annotations}");
        }
    }
}
