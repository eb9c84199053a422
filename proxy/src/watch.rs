//! The watches, reduced on the way: one task that hands changes to the loop.

use std::collections::BTreeMap;
use std::pin::pin;

use futures::{Stream, StreamExt, stream};
use ipnet::IpNet;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use skiff_daemon::error_chain;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::index::Change;
use crate::wire::{self, EndpointSlice, Service, ServiceCidr};

/// Feeds the loop until it is gone.
pub(crate) async fn watch(client: Client, node: String, to: mpsc::Sender<Change>) {
    let for_ranges = client.clone();
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
    let mut changes = pin!(stream::select(stream::select(services, slices), ranges(for_ranges)));
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

/// The ranges of Services. A server that does not tell (an old one) is no failure: nothing is refused by range then.
fn ranges(client: Client) -> impl Stream<Item = Change> {
    let events = watcher(Api::<ServiceCidr>::all(client), watcher::Config::default()).default_backoff();
    let read = |known: &mut BTreeMap<String, Vec<IpNet>>, event: watcher::Result<Event<ServiceCidr>>| {
        let complete = match event {
            Ok(Event::Init) => {
                known.clear();
                false
            }
            Ok(Event::InitApply(range)) => {
                known.insert(range.name(), range.ranges());
                false
            }
            Ok(Event::Apply(range)) => {
                known.insert(range.name(), range.ranges());
                true
            }
            Ok(Event::Delete(range)) => {
                known.remove(&range.name());
                true
            }
            Ok(Event::InitDone) => true,
            Err(error) => {
                debug!(
                    error = error_chain(&error),
                    "the server does not tell the ranges of services"
                );
                true
            }
        };
        let change = complete.then(|| Change::Ranges(known.values().flatten().copied().collect()));
        std::future::ready(Some(change))
    };
    events.scan(BTreeMap::new(), read).filter_map(std::future::ready)
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
