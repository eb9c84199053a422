//! Empties a namespace that is being deleted, and lets it go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use kube::Client;
use kube::core::params::{DeleteParams, ListParams};
use kube::core::{ObjectList, PartialObjectMeta, Request as ApiRequest};
use serde_json::{Value, json};

use crate::discovery::{Kind, discover};
use crate::informer::Informer;
use crate::manager::Shared;
use crate::queue::{Queue, Retriable};
use crate::view::{Key, Namespace, Pod, View};
use crate::write::{self, Merge, Writer};

mod conditions;

use conditions::Found;

const WORKERS: usize = 5;
const FINALIZER: &str = "kubernetes";

/// What keeps a namespace from being emptied.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("discover what kinds the namespace may hold")]
    Discover(#[source] kube::Error),
    #[error("{failures} kinds of content could not be deleted from the namespace; its conditions say which")]
    Content { failures: usize },
    #[error("content remains in the namespace")]
    Remaining,
    #[error("finalize the namespace")]
    Finalize(#[source] kube::Error),
    #[error("update the namespace")]
    Update(#[from] write::Error),
}

impl Retriable for Error {
    fn is_expected(&self) -> bool {
        match self {
            Self::Remaining => true,
            Self::Update(error) => error.is_expected(),
            Self::Finalize(kube::Error::Api(status)) => matches!(status.code, 404 | 409),
            _ => false,
        }
    }
}

struct Controller {
    namespaces: Arc<Informer<Namespace>>,
    writer: Writer,
    queue: Arc<Queue<Key>>,
}

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let controller = Arc::new(Controller {
        namespaces: shared.informers.namespaces.want(),
        writer: shared.writer("namespace-controller"),
        queue: shared.queue("namespace"),
    });
    let queue = Arc::clone(&controller.queue);
    controller.namespaces.on_change(move |change| {
        if change.object().is_being_deleted() {
            queue.add(change.object().key());
        }
    });
    let pods: Arc<Informer<Pod>> = shared.informers.pods.want();
    let this = Arc::clone(&controller);
    // The last pod that goes is what most deletions wait for.
    pods.on_change(move |change| {
        let namespace = Key::cluster(change.object().namespace());
        if change.is_deletion()
            && this
                .namespaces
                .get(&namespace)
                .is_some_and(|namespace| namespace.is_being_deleted())
        {
            this.queue.add(namespace);
        }
    });
    let synced = [controller.namespaces.synced()];
    let queue = Arc::clone(&controller.queue);
    shared.work(&queue, WORKERS, synced, move |key| {
        let this = Arc::clone(&controller);
        async move { this.sync(key).await }
    })
}

impl Controller {
    async fn sync(&self, key: Key) -> Result<(), Error> {
        let Some(namespace) = self
            .namespaces
            .get(&key)
            .filter(|namespace| namespace.is_being_deleted())
        else {
            return Ok(());
        };
        if !namespace.spec.finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            return Ok(());
        }
        let found = self.delete_content(&namespace).await?;
        self.write_conditions(&namespace, &found).await?;
        if !found.failures.is_empty() || !found.stale_groups.is_empty() {
            return Err(Error::Content {
                failures: found.failures.len() + found.stale_groups.len(),
            });
        }
        if let Some(estimate) = found.estimate {
            // Most content goes at once, so look again soon; and at the latest after half of the longest grace period.
            self.queue.add_after(key, Duration::from_secs(estimate / 2 + 1));
            return Err(Error::Remaining);
        }
        self.finalize(&namespace).await
    }

    /// Deletes pods first: what they use must not go before them.
    async fn delete_content(&self, namespace: &Namespace) -> Result<Found, Error> {
        let discovered = discover(self.writer.client()).await.map_err(Error::Discover)?;
        let deletable = |kind: &&Arc<Kind>| kind.namespaced && kind.allows("delete") && kind.allows("list");
        let (pods, rest): (Vec<_>, Vec<_>) = discovered
            .kinds
            .iter()
            .filter(deletable)
            .partition(|kind| kind.group.is_empty() && kind.plural == "pods");
        let mut found = Found::new(discovered.stale);
        for kind in pods {
            self.delete_kind(namespace, kind, &mut found).await;
        }
        if found.estimate.is_some() {
            return Ok(found);
        }
        for kind in rest {
            self.delete_kind(namespace, kind, &mut found).await;
        }
        Ok(found)
    }

    async fn delete_kind(&self, namespace: &Namespace, kind: &Kind, found: &mut Found) {
        if let Err(error) = self.try_delete_kind(namespace, kind, found).await {
            // Kinds that forbid it have nothing that must go.
            let status = if let kube::Error::Api(status) = &error {
                status.code
            } else {
                0
            };
            if !matches!(status, 404 | 405) {
                found
                    .failures
                    .push(format!("{}: {}", kind.plural, skiff_daemon::error_chain(&error)));
            }
        }
    }

    async fn try_delete_kind(&self, namespace: &Namespace, kind: &Kind, found: &mut Found) -> Result<(), kube::Error> {
        let request = ApiRequest::new(kind.path(namespace.name()));
        let items = self.list(&request).await?.items;
        if items.is_empty() {
            return Ok(());
        }
        if items.iter().all(|item| item.metadata.deletion_timestamp.is_some()) {
            // All have been asked to go.
            items.iter().for_each(|item| found.remains(kind, &item.metadata));
            return Ok(());
        }
        let client = self.writer.client();
        if kind.allows("deletecollection") {
            let delete = request.delete_collection(&DeleteParams::background(), &ListParams::default());
            client
                .request::<serde::de::IgnoredAny>(delete.map_err(kube::Error::BuildRequest)?)
                .await?;
        } else {
            delete_each(client, &request, items).await?;
        }
        for item in self.list(&request).await?.items {
            found.remains(kind, &item.metadata);
        }
        Ok(())
    }

    async fn list(&self, request: &ApiRequest) -> Result<ObjectList<PartialObjectMeta>, kube::Error> {
        let list = request
            .list_metadata(&ListParams::default())
            .map_err(kube::Error::BuildRequest)?;
        self.writer.client().request(list).await
    }

    async fn write_conditions(&self, namespace: &Namespace, found: &Found) -> Result<(), Error> {
        let before: BTreeMap<_, _> = namespace
            .status
            .conditions
            .iter()
            .map(|condition| (condition.type_.as_str(), condition))
            .collect();
        let conditions = conditions::conditions(&before, found, jiff::Timestamp::now());
        let terminating = namespace.status.phase.as_deref() == Some("Terminating");
        // Nothing to say about a namespace that is emptied in one go.
        let Some(conditions) =
            conditions.filter(|_| found.estimate.is_some() || !found.is_clean() || !before.is_empty())
        else {
            return Ok(());
        };
        let mut status = json!({"conditions": conditions});
        if !terminating {
            status["phase"] = json!("Terminating");
        }
        let patch = json!({"metadata": {"uid": namespace.uid()}, "status": status});
        self.writer
            .patch_status::<Namespace>(&namespace.key(), Merge::Json, &patch)
            .await?;
        Ok(())
    }

    /// Takes our finalizer away; the server then removes the namespace.
    async fn finalize(&self, namespace: &Namespace) -> Result<(), Error> {
        let path = format!("/api/v1/namespaces/{}", namespace.name());
        let client = self.writer.client();
        let get = Request::get(&path)
            .body(Vec::new())
            .map_err(|error| Error::Finalize(kube::Error::HttpError(error)))?;
        let mut live: Value = match client.request(get).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            other => other.map_err(Error::Finalize)?,
        };
        if live["metadata"]["uid"] != json!(namespace.uid()) {
            return Ok(());
        }
        if let Some(finalizers) = live["spec"]["finalizers"].as_array_mut() {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        let put = Request::put(format!("{path}/finalize"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(live.to_string().into_bytes())
            .map_err(|error| Error::Finalize(kube::Error::HttpError(error)))?;
        match client.request::<serde::de::IgnoredAny>(put).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop).map_err(Error::Finalize),
        }
    }
}

/// Deletes one by one; what has gone meanwhile ends nothing.
async fn delete_each(client: &Client, request: &ApiRequest, items: Vec<PartialObjectMeta>) -> Result<(), kube::Error> {
    for item in items {
        let name = item.metadata.name.unwrap_or_default();
        let delete = request
            .delete(&name, &DeleteParams::background())
            .map_err(kube::Error::BuildRequest)?;
        match client.request::<serde::de::IgnoredAny>(delete).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => drop(other?),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::Response;
    use kube::client::Body;
    use parking_lot::Mutex;

    use super::*;

    /// A server that has no object called `gone` and writes down what it is asked to delete.
    fn server(asked: &Arc<Mutex<Vec<String>>>) -> Client {
        let asked = Arc::clone(asked);
        let service = tower::service_fn(move |request: Request<Body>| {
            let path = request.uri().path().to_owned();
            let code: u16 = if path.ends_with("/gone") { 404 } else { 200 };
            asked.lock().push(path);
            let body = json!({"kind": "Status", "apiVersion": "v1", "code": code}).to_string();
            let response = Response::builder().status(code).body(Body::from(body.into_bytes()));
            async move { response }
        });
        Client::new(service, "default")
    }

    #[tokio::test]
    async fn an_item_that_has_gone_by_itself_keeps_no_other() {
        let asked = Arc::default();
        let item = |name: &str| serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        let items = ["a", "gone", "z"].map(item).into();
        let request = ApiRequest::new("/api/v1/namespaces/team/things");
        delete_each(&server(&asked), &request, items).await.unwrap();
        assert_eq!(
            *asked.lock(),
            ["a", "gone", "z"].map(|name| format!("/api/v1/namespaces/team/things/{name}"))
        );
    }
}
