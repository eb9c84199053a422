//! The watches, reduced on the way: one task that hands changes to the loop.

use std::fmt::Debug;
use std::pin::pin;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use skiff_api::k8s_openapi::api::core::v1::{Secret, Service};
use skiff_api::k8s_openapi::api::discovery::v1::EndpointSlice;
use skiff_api::k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use skiff_daemon::error_chain;
use tokio::sync::mpsc;
use tracing::warn;

use crate::index::{Change, Told};
use crate::wire;

/// The Secrets that are read; no other ones even come.
const SECRETS: &str = "type=kubernetes.io/tls";

/// Feeds the loop until it is gone.
pub(crate) async fn watch(client: Client, to: mpsc::Sender<Change>) {
    let all = watcher::Config::default;
    let changes: [BoxStream<'static, Change>; 5] = [
        told::<Ingress, _>(&client, all(), wire::ingress)
            .map(Change::Ingress)
            .boxed(),
        told::<IngressClass, _>(&client, all(), |class| wire::class(&class))
            .map(Change::Class)
            .boxed(),
        told::<Service, _>(&client, all(), wire::service)
            .map(Change::Service)
            .boxed(),
        told::<EndpointSlice, _>(&client, all(), wire::slice)
            .map(Change::Slice)
            .boxed(),
        told::<Secret, _>(&client, all().fields(SECRETS), wire::secret)
            .map(Change::Secret)
            .boxed(),
    ];
    let mut changes = pin!(stream::select_all(changes));
    while let Some(change) = changes.next().await {
        if to.send(change).await.is_err() {
            return;
        }
    }
}

/// One kind's changes. Failures pass: the watch is begun again by itself, with pauses.
fn told<K, T>(
    client: &Client,
    config: watcher::Config,
    reduce: impl Fn(K) -> T + Send + 'static,
) -> BoxStream<'static, Told<T>>
where
    K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    T: Send + 'static,
{
    // A box: the type of what is inside would otherwise carry that of the closure.
    let events = watcher(Api::<K>::all(client.clone()), config).default_backoff().boxed();
    events
        .filter_map(move |event| {
            let put = |object: K, listed| Told::Put {
                key: wire::key(&object),
                object: reduce(object),
                listed,
            };
            std::future::ready(match event {
                Ok(Event::Init) => Some(Told::Begin),
                Ok(Event::InitApply(object)) => Some(put(object, true)),
                Ok(Event::InitDone) => Some(Told::Done),
                Ok(Event::Apply(object)) => Some(put(object, false)),
                Ok(Event::Delete(object)) => Some(Told::Gone(wire::key(&object))),
                Err(error) => {
                    warn!(
                        error = error_chain(&error),
                        "cannot watch {}: repeated until it works",
                        K::plural(&())
                    );
                    None
                }
            })
        })
        .boxed()
}
