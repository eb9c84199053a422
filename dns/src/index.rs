//! What is known of the cluster, in the shape that names are looked up in. A change costs its own size: one Service or one
//! slice is replaced, and the addresses that lead back to it.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use hickory_proto::rr::Name;
use rand::RngExt as _;

use crate::names;

/// A Service, as far as names are concerned.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Service {
    pub(crate) kind: Kind,
    pub(crate) ports: Vec<Port>,
    pub(crate) publish_not_ready: bool,
}

/// Where a Service's name leads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// To its cluster IPs.
    ClusterIps(Vec<IpAddr>),
    /// To each endpoint.
    Headless,
    /// To another name.
    External(Name),
    /// Nowhere: an ExternalName that is no name, a Service without an address yet.
    Nowhere,
}

/// A named port; `number` is absent in slices that mean all ports.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Port {
    pub(crate) name: Box<str>,
    /// `tcp`, `udp`, `sctp`.
    pub(crate) protocol: Box<str>,
    pub(crate) number: Option<u16>,
}

/// A part of a Service's endpoints.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Slice {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) ports: Vec<Port>,
}

/// An address behind a Service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Endpoint {
    pub(crate) ip: IpAddr,
    pub(crate) hostname: Option<Box<str>>,
    pub(crate) ready: bool,
}

/// `namespace` and `name` of a Service.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Key {
    pub(crate) namespace: Box<str>,
    pub(crate) name: Box<str>,
}

/// A Service with its slices, of which either may come first.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub(crate) service: Option<Service>,
    slices: BTreeMap<Box<str>, Slice>,
}

#[derive(Debug, Default)]
struct Namespace {
    exists: bool,
    services: HashMap<Box<str>, Entry>,
}

/// All that can be asked for.
#[derive(Debug, Default)]
pub(crate) struct Index {
    namespaces: HashMap<Box<str>, Namespace>,
    /// Of which Service a slice is: a slice that goes, or changes its label, says nothing about its former one.
    slices: HashMap<Key, Box<str>>,
    by_cluster_ip: HashMap<IpAddr, Key>,
    /// Endpoints with a hostname by their address, one entry for each slice that has them.
    by_endpoint: HashMap<IpAddr, Vec<(Key, Box<str>)>>,
    /// Seconds since 1970 of the last change: the serial of the zone.
    pub(crate) serial: u32,
    /// What a list that is being read has told so far, for each kind.
    listed: [Option<HashSet<Key>>; 3],
}

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Watched {
    Namespaces,
    Services,
    Slices,
}

/// A change, as a watch tells it.
#[derive(Debug)]
pub(crate) enum Change {
    /// A list begins: what it does not mention is gone at its end.
    Begin(Watched),
    /// A list is complete.
    Done(Watched),
    Namespace(Key),
    Service(Key, Service),
    Slice {
        key: Key,
        service: Option<Box<str>>,
        slice: Slice,
    },
    Gone(Watched, Key),
}

// === impl Key ===

impl Key {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

// === impl Service ===

impl Service {
    /// The ports that a question is about; `None` asks for all.
    pub(crate) fn ports<'a>(&'a self, wanted: Option<(&'a str, &'a str)>) -> impl Iterator<Item = &'a Port> {
        self.ports.iter().filter(move |port| port.is(wanted))
    }
}

impl Port {
    /// Whether it is the one of this name and protocol.
    pub(crate) fn is(&self, wanted: Option<(&str, &str)>) -> bool {
        wanted.is_none_or(|(name, protocol)| *self.name == *name && *self.protocol == *protocol)
    }
}

impl Endpoint {
    /// The first label of the endpoint's own name.
    pub(crate) fn label(&self) -> Cow<'_, str> {
        match &self.hostname {
            Some(hostname) => Cow::Borrowed(hostname),
            None => Cow::Owned(names::dashed(self.ip)),
        }
    }

    fn is_called(&self, label: &str, ip: Option<IpAddr>) -> bool {
        match &self.hostname {
            Some(hostname) => **hostname == *label,
            None => ip == Some(self.ip),
        }
    }
}

// === impl Entry ===

impl Entry {
    fn is_empty(&self) -> bool {
        self.service.is_none() && self.slices.is_empty()
    }

    /// Endpoints that may be told, with the ports of their slice, beginning at a random one: clients take the first.
    pub(crate) fn endpoints<'a>(
        &'a self,
        label: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Endpoint, &'a [Port])> + 'a {
        let all = self.service.as_ref().is_some_and(|service| service.publish_not_ready);
        let ip = label.and_then(names::dashed_ip);
        let count: usize = self.slices.values().map(|slice| slice.endpoints.len()).sum();
        let first = if count > 1 {
            rand::rng().random_range(0..count)
        } else {
            0
        };
        let told = || {
            let slices = self.slices.values();
            slices.flat_map(|slice| {
                slice
                    .endpoints
                    .iter()
                    .map(|endpoint| (endpoint, slice.ports.as_slice()))
            })
        };
        told()
            .skip(first)
            .chain(told().take(first))
            .filter(move |(endpoint, _)| {
                (all || endpoint.ready) && label.is_none_or(|label| endpoint.is_called(label, ip))
            })
    }
}

// === impl Index ===

impl Index {
    /// Whether the namespace exists.
    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.get(namespace).is_some_and(|found| found.exists)
    }

    /// A Service with its endpoints.
    pub(crate) fn service(&self, namespace: &str, name: &str) -> Option<(&Service, &Entry)> {
        let entry = self.namespaces.get(namespace)?.services.get(name)?;
        Some((entry.service.as_ref()?, entry))
    }

    /// The Service of a cluster IP.
    pub(crate) fn by_cluster_ip(&self, ip: IpAddr) -> Option<&Key> {
        self.by_cluster_ip.get(&ip)
    }

    /// The endpoints with a hostname at an address.
    pub(crate) fn by_endpoint(&self, ip: IpAddr) -> &[(Key, Box<str>)] {
        self.by_endpoint.get(&ip).map_or(&[], Vec::as_slice)
    }

    /// The names of a Service's slices, whether or not the Service exists.
    pub(crate) fn slice_names(&self, namespace: &str, name: &str) -> Vec<Box<str>> {
        let entry = self
            .namespaces
            .get(namespace)
            .and_then(|found| found.services.get(name));
        entry
            .map(|entry| entry.slices.keys().cloned().collect())
            .unwrap_or_default()
    }

    /// Takes a change in.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Begin(kind) => self.listed[kind as usize] = Some(HashSet::new()),
            Change::Done(kind) => self.sweep(kind),
            Change::Namespace(key) => {
                self.namespaces.entry(key.name.clone()).or_default().exists = true;
                self.mention(Watched::Namespaces, key);
            }
            Change::Service(key, service) => {
                self.set_service(&key, Some(service));
                self.mention(Watched::Services, key);
            }
            Change::Slice { key, service, slice } => {
                self.set_slice(&key, service.map(|service| (service, slice)));
                self.mention(Watched::Slices, key);
            }
            Change::Gone(kind, key) => self.forget(kind, &key),
        }
    }

    fn mention(&mut self, kind: Watched, key: Key) {
        if let Some(listed) = &mut self.listed[kind as usize] {
            listed.insert(key);
        }
    }

    /// Forgets what a complete list did not mention.
    fn sweep(&mut self, kind: Watched) {
        let Some(listed) = self.listed[kind as usize].take() else {
            return;
        };
        let known: Vec<Key> = match kind {
            Watched::Namespaces => {
                let existing = self.namespaces.iter().filter(|(_, namespace)| namespace.exists);
                existing.map(|(name, _)| Key::new("", name)).collect()
            }
            Watched::Services => {
                let all = self.namespaces.iter().flat_map(|(namespace, content)| {
                    let services = content.services.iter().filter(|(_, entry)| entry.service.is_some());
                    services.map(|(name, _)| Key::new(namespace, name))
                });
                all.collect()
            }
            Watched::Slices => self.slices.keys().cloned().collect(),
        };
        for key in known {
            if !listed.contains(&key) {
                self.forget(kind, &key);
            }
        }
    }

    fn forget(&mut self, kind: Watched, key: &Key) {
        match kind {
            Watched::Namespaces => {
                if let Some(namespace) = self.namespaces.get_mut(&key.name) {
                    namespace.exists = false;
                    if namespace.services.is_empty() {
                        self.namespaces.remove(&key.name);
                    }
                }
            }
            Watched::Services => self.set_service(key, None),
            Watched::Slices => self.set_slice(key, None),
        }
    }

    /// Changes an entry, and drops it when nothing is left in it.
    fn change<T>(&mut self, key: &Key, change: impl FnOnce(&mut Entry) -> T) -> T {
        let namespace = self.namespaces.entry(key.namespace.clone()).or_default();
        let entry = namespace.services.entry(key.name.clone()).or_default();
        let result = change(entry);
        if entry.is_empty() {
            namespace.services.remove(&key.name);
            if namespace.services.is_empty() && !namespace.exists {
                self.namespaces.remove(&key.namespace);
            }
        }
        result
    }

    fn set_service(&mut self, key: &Key, service: Option<Service>) {
        let ips = service.as_ref().map(|service| service.cluster_ips().to_vec());
        let former = self.change(key, |entry| std::mem::replace(&mut entry.service, service));
        for ip in former.iter().flat_map(Service::cluster_ips) {
            // Another Service may have been given the address before this one's end was told.
            if self.by_cluster_ip.get(ip) == Some(key) {
                self.by_cluster_ip.remove(ip);
            }
        }
        for ip in ips.into_iter().flatten() {
            self.by_cluster_ip.insert(ip, key.clone());
        }
    }

    fn set_slice(&mut self, key: &Key, told: Option<(Box<str>, Slice)>) {
        if let Some(service) = self.slices.remove(key) {
            let owner = Key::new(&key.namespace, &service);
            let former = self.change(&owner, |entry| entry.slices.remove(&key.name));
            for (ip, hostname) in former.iter().flat_map(Slice::hosts) {
                self.forget_host(ip, &owner, hostname);
            }
        }
        let Some((service, slice)) = told else { return };
        let owner = Key::new(&key.namespace, &service);
        for (ip, hostname) in slice.hosts() {
            let hosts = self.by_endpoint.entry(ip).or_default();
            hosts.push((owner.clone(), hostname.clone()));
        }
        self.change(&owner, |entry| entry.slices.insert(key.name.clone(), slice));
        self.slices.insert(key.clone(), service);
    }

    fn forget_host(&mut self, ip: IpAddr, owner: &Key, hostname: &str) {
        let Some(hosts) = self.by_endpoint.get_mut(&ip) else {
            return;
        };
        let same = |(key, name): &(Key, Box<str>)| key == owner && **name == *hostname;
        if let Some(position) = hosts.iter().position(same) {
            hosts.swap_remove(position);
        }
        if hosts.is_empty() {
            self.by_endpoint.remove(&ip);
        }
    }
}

impl Service {
    fn cluster_ips(&self) -> &[IpAddr] {
        match &self.kind {
            Kind::ClusterIps(ips) => ips,
            _ => &[],
        }
    }
}

impl Slice {
    /// Endpoints with a hostname: those that an address leads back to.
    fn hosts(&self) -> impl Iterator<Item = (IpAddr, &Box<str>)> {
        self.endpoints
            .iter()
            .filter_map(|endpoint| Some((endpoint.ip, endpoint.hostname.as_ref()?)))
    }
}

#[cfg(test)]
mod tests;
