//! Cluster IPs and node ports of Services.
//!
//! What is taken is read from the cache of Services, followed change by change; what was just given out, and has not come back through the
//! cache yet, is held in `pending`. So a restart, or a Service written by someone else, needs no repair. Where other servers use the same
//! store, what is picked is reserved there too ([`reservations`]).

mod reservations;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_api::field::{Error, Path};
use skiff_api::meta;
use skiff_api::status::Status;
use skiff_daemon::Shutdown;
use skiff_store::Store;
use tokio::time::Instant;

use crate::cache::{Cache, Caches, Object};
use crate::errors::{self, Result};
use crate::resources::Served;
use reservations::{Reservations, Reserved};

/// Gives out cluster IPs and node ports.
#[derive(Debug)]
pub struct Allocator {
    range: IpNet,
    ports: RangeInclusive<u16>,
    services: Arc<Cache>,
    state: Mutex<State>,
    /// Where other servers give out the same.
    shared: Option<Shared>,
}

#[derive(Debug)]
struct Shared {
    reservations: Reservations,
    caches: Arc<Caches>,
}

/// An address or a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Item {
    Ip(IpAddr),
    Port(u16),
}

#[derive(Debug, Default)]
struct State {
    /// Revision of the cache that the following is read up to.
    seen: u64,
    by_service: HashMap<Arc<str>, Vec<Item>>,
    taken: HashSet<Item>,
    pending: Vec<Pending>,
    next_ticket: u64,
}

#[derive(Debug)]
struct Pending {
    item: Item,
    ticket: u64,
    /// The revision with which the cache shows it; unknown before it is written.
    written: Option<u64>,
    /// When it is given up, where nobody learned whether it was written.
    expires: Option<Instant>,
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Port(port) => port.fmt(f),
        }
    }
}

/// How often others may be faster before a request is given up.
const ATTEMPTS: usize = 20;
/// What another server has reserved is not looked at again for this long.
const AVOIDED: Duration = Duration::from_secs(2);

/// A write whose outcome nobody learned has reached the cache, or never will, after this time.
const UNCERTAIN: Duration = Duration::from_secs(10);

/// What an object was given; taken back when it is dropped before [`Allocation::keep`].
///
/// A request may be cancelled while its write is on the way. From [`Allocation::writing`] to the write's outcome a drop therefore holds
/// what was given a little longer: it must not go to somebody else.
#[derive(Debug)]
pub struct Allocation<'a> {
    allocator: &'a Allocator,
    ticket: Option<u64>,
    acquired: Vec<Item>,
    reserved: Reserved,
    uncertain: bool,
}

impl Allocation<'_> {
    /// The object's write begins.
    pub fn writing(&mut self) {
        self.uncertain = true;
    }

    /// The object was certainly not written.
    pub fn refused(&mut self) {
        self.uncertain = false;
    }

    /// The object was written at `revision`.
    pub fn keep(mut self, revision: u64) {
        if let Some(ticket) = self.ticket.take() {
            let mut state = self.allocator.state.lock();
            for pending in state.pending.iter_mut().filter(|pending| pending.ticket == ticket) {
                pending.written = Some(revision);
            }
        }
    }
}

impl Drop for Allocation<'_> {
    fn drop(&mut self) {
        if let Some(shared) = &self.allocator.shared {
            let delay = if self.uncertain && self.ticket.is_some() {
                UNCERTAIN
            } else {
                Duration::ZERO
            };
            let reserved = std::mem::take(&mut self.reserved);
            shared.reservations.release(reserved, delay);
        }
        let Some(ticket) = self.ticket else { return };
        let mut state = self.allocator.state.lock();
        if self.uncertain {
            let expires = Instant::now() + UNCERTAIN;
            for pending in state.pending.iter_mut().filter(|pending| pending.ticket == ticket) {
                pending.expires = Some(expires);
            }
        } else {
            state.pending.retain(|pending| pending.ticket != ticket);
        }
    }
}

impl Allocator {
    /// Gives out addresses of `range` and ports of `ports`; `services` shows which are taken.
    pub fn new(range: IpNet, ports: RangeInclusive<u16>, services: Arc<Cache>) -> Self {
        Self {
            range,
            ports,
            services,
            state: Mutex::default(),
            shared: None,
        }
    }

    /// The same where other servers use `store` too.
    pub fn sharing(self, store: Arc<dyn Store>, caches: Arc<Caches>) -> Self {
        let reservations = Reservations::new(store);
        Self {
            shared: Some(Shared { reservations, caches }),
            ..self
        }
    }

    /// Clears up after other servers that were killed, until shutdown.
    pub fn sweep(&self, shutdown: Shutdown) -> impl Future<Output = ()> + Send + use<> {
        let reservations = self.shared.as_ref().map(|shared| shared.reservations.clone());
        async move {
            if let Some(reservations) = reservations {
                reservations.sweep(shutdown).await;
            }
        }
    }

    /// Gives a Service what it needs and does not have; other objects need nothing.
    pub async fn assign(
        &self,
        served: &Served,
        object: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Result<Allocation<'_>> {
        if served.resource.plural != "services" || !served.resource.group.is_empty() {
            return Ok(self.nothing());
        }
        let Some(shared) = self.shared.as_ref().filter(|_| !dry_run) else {
            return self.pick(served, object, old);
        };
        for _ in 0..ATTEMPTS {
            let mut candidate = object.clone();
            let mut allocation = self.pick(served, &mut candidate, old)?;
            let made = shared.reservations.make(&allocation.acquired).await;
            match made.map_err(|error| errors::store(&error))? {
                Ok(reserved) => {
                    shared.caches.reach(reserved.newest()).await?;
                    allocation.reserved = reserved;
                    if self.is_still_free(&allocation.acquired) {
                        *object = candidate;
                        return Ok(allocation);
                    }
                }
                Err(item) => self.avoid(item),
            }
        }
        Err(Status::too_many_requests(
            "other servers are giving out all addresses or ports that were tried, please try again later",
            1,
        ))
    }

    fn nothing(&self) -> Allocation<'_> {
        Allocation {
            allocator: self,
            ticket: None,
            acquired: Vec::new(),
            reserved: Reserved::default(),
            uncertain: false,
        }
    }

    /// Whether no Service of another server has any of them, as far as the cache has come.
    fn is_still_free(&self, items: &[Item]) -> bool {
        let mut state = self.state.lock();
        self.catch_up(&mut state);
        !items.iter().any(|item| state.taken.contains(item))
    }

    /// Another server is about to give this out.
    fn avoid(&self, item: Item) {
        let mut state = self.state.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.pending.push(Pending {
            item,
            ticket,
            written: None,
            expires: Some(Instant::now() + AVOIDED),
        });
    }

    fn pick(&self, served: &Served, object: &mut Value, old: Option<&Value>) -> Result<Allocation<'_>> {
        let mut allocation = self.nothing();
        let mut state = self.state.lock();
        self.catch_up(&mut state);
        let mut grant = Grant {
            allocator: self,
            held: old.map(held).unwrap_or_default(),
            acquired: Vec::new(),
            state: &state,
        };
        let outcome = grant.addresses(object).and_then(|()| grant.ports(object));
        let acquired = grant.acquired;
        if let Err(error) = outcome {
            return Err(Status::invalid(
                served.resource.qualified_kind(),
                meta::name(object),
                &[error],
            ));
        }
        if !acquired.is_empty() {
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.pending.extend(acquired.iter().map(|item| Pending {
                item: *item,
                ticket,
                written: None,
                expires: None,
            }));
            // The lock goes first: dropping an allocation takes it.
            drop(state);
            allocation.ticket = Some(ticket);
            allocation.acquired = acquired;
        }
        Ok(allocation)
    }

    /// Learns what the cache has learned.
    fn catch_up(&self, state: &mut State) {
        match self.services.since(state.seen, usize::MAX) {
            Ok(changes) if state.seen != 0 => {
                for change in changes {
                    state.seen = change.revision;
                    if let Some(previous) = &change.previous {
                        state.forget(previous.key());
                    }
                    if let Some(current) = &change.current {
                        state.learn(current);
                    }
                }
            }
            _ => {
                let listing = self.services.list("", None, 0, 0, |_| true);
                state.by_service.clear();
                state.taken.clear();
                state.seen = listing.revision;
                for object in &listing.objects {
                    state.learn(object);
                }
            }
        }
        let (seen, now) = (state.seen, Instant::now());
        state.pending.retain(|pending| {
            pending.written.is_none_or(|revision| revision > seen)
                && pending.expires.is_none_or(|expires| expires > now)
        });
    }
}

impl State {
    fn learn(&mut self, object: &Object) {
        let items: Vec<Item> = held(&object.value()).into_iter().collect();
        self.taken.extend(&items);
        self.by_service.insert(Arc::clone(object.key()), items);
    }

    fn forget(&mut self, key: &Arc<str>) {
        for item in self.by_service.remove(key).into_iter().flatten() {
            self.taken.remove(&item);
        }
    }

    fn is_taken(&self, item: Item) -> bool {
        self.taken.contains(&item) || self.pending.iter().any(|pending| pending.item == item)
    }
}

/// One Service's needs, filled one after the other.
struct Grant<'a> {
    allocator: &'a Allocator,
    /// What the Service has already.
    held: HashSet<Item>,
    acquired: Vec<Item>,
    state: &'a State,
}

impl Grant<'_> {
    fn is_free(&self, item: Item) -> bool {
        self.held.contains(&item) || (!self.acquired.contains(&item) && !self.state.is_taken(item))
    }

    fn acquire(&mut self, item: Item) {
        if !self.held.contains(&item) {
            self.acquired.push(item);
        }
    }

    fn addresses(&mut self, service: &mut Value) -> std::result::Result<(), Error> {
        let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else {
            return Ok(());
        };
        if spec.get("type").and_then(Value::as_str) == Some("ExternalName") {
            return Ok(());
        }
        let wanted = spec
            .get("clusterIP")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let range = self.allocator.range;
        let family = if range.addr().is_ipv4() { "IPv4" } else { "IPv6" };
        if spec
            .get("ipFamilies")
            .is_none_or(|families| families.as_array().is_none_or(Vec::is_empty))
        {
            spec.insert("ipFamilies".to_owned(), json!([family]));
        }
        if spec.get("ipFamilyPolicy").is_none_or(Value::is_null) {
            spec.insert("ipFamilyPolicy".to_owned(), json!("SingleStack"));
        }
        let ip = match wanted.as_str() {
            "None" => {
                spec.insert("clusterIPs".to_owned(), json!(["None"]));
                return Ok(());
            }
            "" => self.free_ip().ok_or_else(|| {
                Error::internal(
                    &Path::root("spec.clusterIPs"),
                    "failed to allocate a serviceIP: range is full",
                )
            })?,
            text => {
                let path = Path::root("spec.clusterIPs");
                let refuse =
                    |why: String| Error::invalid(&path, json!([text]), format!("failed to allocate IP {text}: {why}"));
                // What is no address is refused by validation, in its own words.
                let Ok(ip) = text.parse::<IpAddr>() else { return Ok(()) };
                if !range.contains(&ip) || ip == range.network() || ip == range.broadcast() {
                    return Err(refuse(format!(
                        "the provided IP ({text}) is not in the valid range. The range of valid IPs is {range}"
                    )));
                }
                if !self.is_free(Item::Ip(ip)) {
                    return Err(refuse("provided IP is already allocated".to_owned()));
                }
                ip
            }
        };
        self.acquire(Item::Ip(ip));
        spec.insert("clusterIP".to_owned(), json!(ip.to_string()));
        spec.insert("clusterIPs".to_owned(), json!([ip.to_string()]));
        Ok(())
    }

    /// A free address; from the upper part of the range first, the lower is kept for those who ask for one.
    fn free_ip(&self) -> Option<IpAddr> {
        let IpNet::V4(range) = self.allocator.range else {
            return None;
        };
        let first = u32::from(range.network()) + 1;
        let last = u32::from(range.broadcast()).saturating_sub(1);
        let size = last.checked_sub(first)? + 1;
        let lower = (size / 16).clamp(16, 256).min(size);
        let try_band = |start: u32, length: u32| {
            if length == 0 {
                return None;
            }
            let offset = rand::random_range(0..length);
            (0..length)
                .map(|step| start + (offset + step) % length)
                .map(|bits| IpAddr::V4(Ipv4Addr::from(bits)))
                .find(|ip| self.is_free(Item::Ip(*ip)))
        };
        try_band(first + lower, size - lower).or_else(|| try_band(first, lower))
    }

    fn ports(&mut self, service: &mut Value) -> std::result::Result<(), Error> {
        let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else {
            return Ok(());
        };
        let kind = spec.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        let wanted = match kind.as_str() {
            "NodePort" => true,
            "LoadBalancer" => spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
            _ => false,
        };
        let mut own: Vec<u16> = Vec::new();
        for (index, port) in spec
            .get_mut("ports")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
            .enumerate()
        {
            match number(port, "nodePort") {
                Some(asked) => {
                    if !own.contains(&asked) {
                        self.ask_port(asked, &format!("spec.ports[{index}].nodePort"))?;
                    }
                    own.push(asked);
                }
                None if wanted => {
                    let free = self.free_port("spec.ports")?;
                    port["nodePort"] = free.into();
                    own.push(free);
                }
                None => {}
            }
        }
        let local = spec.get("externalTrafficPolicy").and_then(Value::as_str) == Some("Local");
        if kind == "LoadBalancer" && local {
            match spec
                .get("healthCheckNodePort")
                .and_then(Value::as_u64)
                .filter(|port| *port != 0)
            {
                Some(asked) => self.ask_port(u16::try_from(asked).unwrap_or(0), "spec.healthCheckNodePort")?,
                None => {
                    let free = self.free_port("spec.healthCheckNodePort")?;
                    spec.insert("healthCheckNodePort".to_owned(), free.into());
                }
            }
        }
        Ok(())
    }

    fn ask_port(&mut self, port: u16, path: &str) -> std::result::Result<(), Error> {
        let path = Path::root(path);
        if self.held.contains(&Item::Port(port)) {
            return Ok(());
        }
        let range = &self.allocator.ports;
        if !range.contains(&port) {
            let why = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                range.start(),
                range.end()
            );
            return Err(Error::invalid(&path, port, why));
        }
        if !self.is_free(Item::Port(port)) {
            return Err(Error::invalid(&path, port, "provided port is already allocated"));
        }
        self.acquire(Item::Port(port));
        Ok(())
    }

    fn free_port(&mut self, path: &str) -> std::result::Result<u16, Error> {
        let (start, end) = (*self.allocator.ports.start(), *self.allocator.ports.end());
        let length = u32::from(end - start) + 1;
        let offset = rand::random_range(0..length);
        let free = (0..length)
            .filter_map(|step| u16::try_from(u32::from(start) + (offset + step) % length).ok())
            .find(|port| !self.held.contains(&Item::Port(*port)) && self.is_free(Item::Port(*port)));
        let port =
            free.ok_or_else(|| Error::internal(&Path::root(path), "failed to allocate a nodePort: range is full"))?;
        self.acquire(Item::Port(port));
        Ok(port)
    }
}

fn number(port: &Value, key: &str) -> Option<u16> {
    port.get(key)
        .and_then(Value::as_u64)
        .filter(|number| *number != 0)
        .map(|number| u16::try_from(number).unwrap_or(0))
}

/// The addresses and ports that a Service holds.
fn held(service: &Value) -> HashSet<Item> {
    let spec = &service["spec"];
    let single = spec["clusterIP"].as_str();
    let many = spec["clusterIPs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    let ips = single
        .into_iter()
        .chain(many)
        .filter_map(|ip| ip.parse().ok())
        .map(Item::Ip);
    let ports = spec["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|port| number(port, "nodePort"));
    let health = number(spec, "healthCheckNodePort");
    ips.chain(ports.chain(health).map(Item::Port)).collect()
}
