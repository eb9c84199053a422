//! Both watches, reduced on the way: one task that hands changes to the loop.

use std::pin::pin;

use futures::{Stream, StreamExt};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use skiff_daemon::error_chain;
use tokio::sync::mpsc;
use tracing::warn;

use crate::index::Change;
use crate::wire::{self, EndpointSlice, Service};

/// Feeds the loop until it is gone.
pub(crate) async fn watch(client: Client, node: String, to: mpsc::Sender<Change>) {
    let services = watcher(
        Api::<Service>::all(client.clone()),
        watcher::Config::default().labels(wire::SERVICES),
    );
    let slices = watcher(
        Api::<EndpointSlice>::all(client),
        watcher::Config::default().labels(wire::SLICES),
    );
    let services = told("services", services.default_backoff()).map(service_change);
    let slices = told("endpointslices", slices.default_backoff()).map(|event| slice_change(event, &node));
    let mut changes = pin!(futures::stream::select(services, slices));
    while let Some(change) = changes.next().await {
        if to.send(change).await.is_err() {
            return;
        }
    }
}

/// Failures pass: the watch is begun again by itself, with pauses.
fn told<K>(what: &'static str, events: impl Stream<Item = watcher::Result<Event<K>>>) -> impl Stream<Item = Event<K>> {
    events.filter_map(move |event| {
        std::future::ready(match event {
            Ok(event) => Some(event),
            Err(error) => {
                warn!(
                    error = error_chain(&error),
                    "cannot watch {what}: repeated until it works"
                );
                None
            }
        })
    })
}

fn service_change(event: Event<Service>) -> Change {
    match event {
        Event::Init => Change::ServicesBegin,
        Event::InitDone => Change::ServicesDone,
        Event::InitApply(service) => Change::Service {
            name: service.full_name(),
            service: service.reduce(),
            listed: true,
        },
        Event::Apply(service) => Change::Service {
            name: service.full_name(),
            service: service.reduce(),
            listed: false,
        },
        Event::Delete(service) => Change::ServiceGone(service.full_name()),
    }
}

fn slice_change(event: Event<EndpointSlice>, node: &str) -> Change {
    let set = |slice: EndpointSlice, listed| Change::Slice {
        name: slice.full_name(),
        service: slice.service(),
        slice: slice.reduce(node),
        listed,
        triggered: slice.triggered(),
    };
    match event {
        Event::Init => Change::SlicesBegin,
        Event::InitDone => Change::SlicesDone,
        Event::InitApply(slice) => set(slice, true),
        Event::Apply(slice) => set(slice, false),
        Event::Delete(slice) => Change::SliceGone(slice.full_name()),
    }
}
