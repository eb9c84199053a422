//! Where pods come from: the API server's pods of this node, and manifests in a directory ([`manifests`]).

pub(crate) mod manifests;

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use skiff_api::k8s_openapi::api::core::v1::Pod;
use skiff_daemon::Shutdown;
use tokio::sync::mpsc;

use crate::hop::hop;
use crate::pod;

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

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// Watches the pods bound to `node` until shutdown; nothing is lost while the API server is away: it is listed again.
pub(crate) async fn api(client: kube::Client, node: String, updates: mpsc::Sender<Update>, shutdown: Shutdown) {
    let api: Api<Pod> = Api::all(client);
    let mut stream = watcher(api, watcher::Config::default().fields(&format!("spec.nodeName={node}"))).boxed();
    let mut fresh = Vec::new();
    let mut delay = FIRST_RETRY;
    loop {
        let event = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            event = stream.try_next() => event,
        };
        let update = match event {
            Ok(Some(Event::Init)) => {
                fresh.clear();
                continue;
            }
            Ok(Some(Event::InitApply(pod))) => {
                fresh.push(slim(pod));
                continue;
            }
            Ok(Some(Event::InitDone)) => Update::All(Source::Api, std::mem::take(&mut fresh)),
            Ok(Some(Event::Apply(pod))) => Update::Apply(slim(pod)),
            Ok(Some(Event::Delete(pod))) => Update::Remove(slim(pod)),
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(
                    error = skiff_daemon::error_chain(&error),
                    "cannot watch the pods of this node"
                );
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(LAST_RETRY);
                continue;
            }
        };
        delay = FIRST_RETRY;
        if updates.send(update).await.is_err() {
            return;
        }
    }
}

/// Without what the kubelet never reads.
fn slim(mut pod: Pod) -> Arc<Pod> {
    if pod::status(&pod).start_time.is_none() {
        hop(&pod, "seen");
    }
    pod.metadata.managed_fields = None;
    Arc::new(pod)
}
