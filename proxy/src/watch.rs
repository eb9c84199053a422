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
use crate::model;
use crate::wire::{self, EndpointSlice, Node, Service, ServiceCidr};

/// Feeds the loop until it is gone.
pub(crate) async fn watch(client: Client, node: String, to: mpsc::Sender<Change>) {
    let (for_ranges, for_node) = (client.clone(), client.clone());
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
    let rarer = stream::select(ranges(for_ranges), this_node(for_node, &node));
    let mut changes = pin!(stream::select(stream::select(services, slices), rarer));
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
    let read = |ranges: &mut Ranges, event| std::future::ready(Some(ranges.take(event)));
    events.scan(Ranges::default(), read).filter_map(std::future::ready)
}

/// This node. Where it is not (yet) there, or not to be read, it has neither zone nor range.
fn this_node(client: Client, name: &str) -> impl Stream<Item = Change> + use<> {
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let events = watcher(Api::<Node>::all(client), only).default_backoff();
    let read = |told: &mut Told, event| std::future::ready(Some(told.take(event)));
    events.scan(Told::default(), read).filter_map(std::future::ready)
}

/// What was told of this node last; `read` while its list is being read.
#[derive(Debug, Default)]
struct Told {
    known: Option<model::Node>,
    read: Option<model::Node>,
}

impl Told {
    /// Takes an event in. Tells of the node where it may have changed.
    fn take(&mut self, event: watcher::Result<Event<Node>>) -> Option<Change> {
        match event {
            Ok(Event::Init) => {
                self.read = None;
                return None;
            }
            Ok(Event::InitApply(node)) => {
                self.read = Some(node.reduce());
                return None;
            }
            Ok(Event::InitDone) => self.known = self.read.take(),
            Ok(Event::Apply(node)) => self.known = Some(node.reduce()),
            Ok(Event::Delete(_)) => self.known = None,
            // What was told before still holds.
            Err(error) => debug!(error = error_chain(&error), "the server does not tell of this node"),
        }
        Some(Change::Node(self.known.clone().unwrap_or_default()))
    }
}

/// The ranges by the names of their objects; a list that is being read replaces them at its end.
#[derive(Debug, Default)]
struct Ranges {
    known: BTreeMap<String, Vec<IpNet>>,
    reading: BTreeMap<String, Vec<IpNet>>,
}

impl Ranges {
    /// Takes an event in. Tells all ranges where they may have changed.
    fn take(&mut self, event: watcher::Result<Event<ServiceCidr>>) -> Option<Change> {
        match event {
            Ok(Event::Init) => {
                self.reading.clear();
                return None;
            }
            Ok(Event::InitApply(range)) => {
                self.reading.insert(range.name(), range.ranges());
                return None;
            }
            Ok(Event::InitDone) => self.known = std::mem::take(&mut self.reading),
            Ok(Event::Apply(range)) => drop(self.known.insert(range.name(), range.ranges())),
            Ok(Event::Delete(range)) => drop(self.known.remove(&range.name())),
            // What was told before still holds; nothing, where nothing ever was.
            Err(error) => debug!(
                error = error_chain(&error),
                "the server does not tell the ranges of services"
            ),
        }
        Some(Change::Ranges(self.known.values().flatten().copied().collect()))
    }
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
        refused: slice.refused(),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn range(name: &str, cidr: &str) -> ServiceCidr {
        let text = format!(r#"{{"metadata":{{"name":"{name}"}},"spec":{{"cidrs":["{cidr}"]}}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    fn told(ranges: &mut Ranges, event: watcher::Result<Event<ServiceCidr>>) -> Option<Vec<String>> {
        match ranges.take(event) {
            Some(Change::Ranges(all)) => Some(all.iter().map(ToString::to_string).collect()),
            _ => None,
        }
    }

    #[test]
    fn an_outage_of_the_server_takes_no_range_away() {
        let mut ranges = Ranges::default();
        let failure = || Err(watcher::Error::NoResourceVersion);
        assert_eq!(told(&mut ranges, failure()), Some(vec![]));
        assert_eq!(told(&mut ranges, Ok(Event::Init)), None);
        assert_eq!(
            told(&mut ranges, Ok(Event::InitApply(range("a", "10.96.0.0/12")))),
            None
        );
        let known = Some(vec!["10.96.0.0/12".to_owned()]);
        assert_eq!(told(&mut ranges, Ok(Event::InitDone)), known);
        assert_eq!(told(&mut ranges, Ok(Event::Init)), None);
        assert_eq!(told(&mut ranges, failure()), known);
        assert_eq!(told(&mut ranges, Ok(Event::Init)), None);
        assert_eq!(told(&mut ranges, Ok(Event::InitDone)), Some(vec![]));
    }

    #[test]
    fn an_outage_of_the_server_takes_no_zone_away() {
        let node: Node =
            serde_json::from_str(r#"{"metadata":{"labels":{"topology.kubernetes.io/zone":"a"}}}"#).unwrap();
        let zone = |told: &mut Told, event| match told.take(event) {
            Some(Change::Node(node)) => Some(node.zone.map(String::from)),
            _ => None,
        };
        let failure = || Err(watcher::Error::NoResourceVersion);
        let mut told = Told::default();
        assert_eq!(zone(&mut told, failure()), Some(None));
        assert_eq!(zone(&mut told, Ok(Event::Init)), None);
        assert_eq!(zone(&mut told, Ok(Event::InitApply(node.clone()))), None);
        assert_eq!(zone(&mut told, Ok(Event::InitDone)), Some(Some("a".into())));
        assert_eq!(zone(&mut told, Ok(Event::Init)), None);
        assert_eq!(zone(&mut told, failure()), Some(Some("a".into())));
        assert_eq!(zone(&mut told, Ok(Event::Delete(node))), Some(None));
    }
}
