//! The servers that live, as the endpoints of the Service `kubernetes`.
//!
//! Where several servers use one store, each keeps a key of its own under `masterleases` and writes it anew every ten seconds, as
//! upstream's lease reconciler. All watch these keys. One that has not changed for fifteen seconds by an observer's own clock is removed
//! by whoever sees it first; whenever a key comes or goes, every server brings the endpoints to what is there, each address with the
//! port that its key tells. A server that is alone writes its address once, at its start.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::{Value, json};
use skiff_api::meta;
use skiff_daemon::{Shutdown, error_chain};
use skiff_store::{Entry, Error as StoreError, Event, Revision, Store, Watch, Write};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::bootstrap::{self, Present, Resource};
use crate::config::Config;
use crate::registry::Registry;
use crate::start::Error;

/// Upstream's place for the keys.
const PREFIX: &str = "/registry/masterleases";
/// How often each server writes its key.
const PERIOD: Duration = Duration::from_secs(10);
/// A key that has not changed for so long belongs to a server that is gone.
const SILENCE: Duration = Duration::from_secs(15);
/// Before a failed step is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long leaving may take.
const LEAVE: Duration = Duration::from_secs(3);

/// Their Service, and what belongs to it.
const SERVICE: &str = "kubernetes";
const NAMESPACE: &str = "default";
const ENDPOINTS: Resource = ("", "endpoints");
const SLICES: Resource = ("discovery.k8s.io", "endpointslices");

/// This server among the others.
#[derive(Debug)]
pub(crate) struct Servers {
    registry: Arc<Registry>,
    place: SocketAddr,
    /// Nothing is written about us any more.
    left: Shutdown,
}

/// The keys of all servers.
#[derive(Debug, Default)]
struct Living {
    seen: BTreeMap<Arc<str>, Sign>,
}

/// A sign of life.
#[derive(Clone, Copy, Debug)]
struct Sign {
    revision: Revision,
    /// When this revision was first seen here.
    since: Instant,
    /// Where the server is reached, unless its key is garbled.
    place: Option<SocketAddr>,
}

impl Living {
    /// A key was written.
    fn hear(&mut self, entry: Entry, now: Instant) {
        match self.seen.get(&entry.key) {
            Some(known) if known.revision >= entry.mod_revision => {}
            _ => {
                let sign = Sign {
                    revision: entry.mod_revision,
                    since: now,
                    place: place(&entry.value),
                };
                self.seen.insert(entry.key, sign);
            }
        }
    }

    /// All that there are.
    fn replace(&mut self, entries: Vec<Entry>, now: Instant) {
        let listed: BTreeSet<Arc<str>> = entries.iter().map(|entry| Arc::clone(&entry.key)).collect();
        self.seen.retain(|key, _| listed.contains(key));
        for entry in entries {
            self.hear(entry, now);
        }
    }

    /// Those that were silent for too long, but for our own.
    fn silent(&self, own: &str, now: Instant) -> Vec<(Arc<str>, Revision)> {
        let others = self.seen.iter().filter(|(key, _)| &***key != own);
        others
            .filter(|(_, sign)| now >= sign.since + SILENCE)
            .map(|(key, sign)| (Arc::clone(key), sign.revision))
            .collect()
    }

    /// When the next of them will have been silent for too long.
    fn next_silence(&self, own: &str) -> Option<Instant> {
        let others = self.seen.iter().filter(|(key, _)| &***key != own);
        others.map(|(_, sign)| sign.since + SILENCE).min()
    }

    /// Where they are reached.
    fn places(&self) -> BTreeSet<SocketAddr> {
        self.seen.values().filter_map(|sign| sign.place).collect()
    }
}

/// What a key tells of its server.
fn place(value: &[u8]) -> Option<SocketAddr> {
    let told: Value = serde_json::from_slice(value).ok()?;
    let address: IpAddr = told["address"].as_str()?.parse().ok()?;
    let port = u16::try_from(told["port"].as_u64()?).ok()?;
    Some(SocketAddr::new(address, port))
}

impl Servers {
    pub(crate) fn new(registry: Arc<Registry>, config: &Config) -> Self {
        Self {
            registry,
            place: SocketAddr::new(config.advertise_address, config.advertise_port),
            left: Shutdown::new(),
        }
    }

    fn store(&self) -> &dyn Store {
        &*self.registry.store
    }

    fn key(&self) -> String {
        format!("{PREFIX}/{}", self.place.ip())
    }

    /// Joins the endpoints; from then on clients of the Service come here too.
    pub(crate) async fn join(&self) -> Result<(), Error> {
        if !self.store().is_shared() {
            return self.publish([self.place].into()).await;
        }
        let failed = |source: StoreError| Error::Join(source);
        self.renew().await.map_err(failed)?;
        let page = self.store().list(PREFIX, None, None, 0).await.map_err(failed)?;
        let mut living = Living::default();
        living.replace(page.entries, Instant::now());
        self.publish(living.places()).await
    }

    /// Leaves the endpoints, so that nobody is sent here any more.
    pub(crate) async fn leave(&self) {
        self.left.cancel();
        if !self.store().is_shared() {
            return;
        }
        let leave = async {
            let delete = Write::Delete {
                key: self.key().into(),
                expected: None,
            };
            match self.store().write(delete).await {
                Ok(_) | Err(StoreError::Conflict { .. }) => {}
                Err(error) => return tracing::debug!(error = error_chain(&error), "cannot leave the other servers"),
            }
            match self.store().list(PREFIX, None, None, 0).await {
                Ok(page) => {
                    let mut living = Living::default();
                    living.replace(page.entries, Instant::now());
                    // The last one leaves its address: where nobody serves, it is as good as none.
                    if !living.seen.is_empty() {
                        self.try_publish(&living).await;
                    }
                }
                Err(error) => tracing::debug!(error = error_chain(&error), "cannot see the other servers"),
            }
        };
        if timeout(LEAVE, leave).await.is_err() {
            tracing::debug!("leaving the other servers takes too long");
        }
    }

    /// Keeps this server among the others, and those that are gone out, until shutdown.
    pub(crate) async fn keep(&self, shutdown: Shutdown) {
        if !self.store().is_shared() {
            return;
        }
        let follow = async {
            let mut living = Living::default();
            let mut renewal = Instant::now() + PERIOD;
            loop {
                if let Err(error) = self.follow(&mut living, &mut renewal).await {
                    tracing::warn!(
                        error = error_chain(&error),
                        "cannot see the other servers; trying again"
                    );
                }
                sleep(RETRY).await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.left.cancelled() => {}
            () = follow => {}
        }
    }

    /// Until the watch breaks.
    async fn follow(&self, living: &mut Living, renewal: &mut Instant) -> Result<(), StoreError> {
        let page = self.store().list(PREFIX, None, None, 0).await?;
        living.replace(page.entries, Instant::now());
        let mut news: Watch = self.store().watch(PREFIX, page.revision).await?;
        let own = self.key();
        self.try_publish(living).await;
        loop {
            let silence = living.next_silence(&own).unwrap_or(*renewal);
            let before = living.places();
            tokio::select! {
                () = sleep_until(*renewal) => {
                    match self.renew().await {
                        Ok(()) => *renewal = Instant::now() + PERIOD,
                        Err(error) => {
                            *renewal = Instant::now() + RETRY;
                            tracing::warn!(error = error_chain(&error), "cannot tell the other servers that this one lives");
                        }
                    }
                }
                () = sleep_until(silence) => {
                    for (key, revision) in living.silent(&own, Instant::now()) {
                        tracing::info!(key = &*key, "a server is gone: it leaves the endpoints");
                        self.remove(Arc::clone(&key), revision).await?;
                        living.seen.remove(&key);
                    }
                }
                batch = news.next() => {
                    let Some(batch) = batch else { return Ok(()) };
                    for event in batch? {
                        match event {
                            Event::Put { entry, .. } => living.hear(entry, Instant::now()),
                            Event::Delete { previous, .. } => {
                                living.seen.remove(&previous.key);
                            }
                        }
                    }
                }
            }
            if living.places() != before {
                if !living.seen.contains_key(own.as_str()) {
                    // Whoever took us for gone was cut off from us, or we from the store.
                    self.renew().await?;
                }
                self.try_publish(living).await;
            }
        }
    }

    /// Writes our key anew, whatever is in it.
    async fn renew(&self) -> Result<(), StoreError> {
        let key: Arc<str> = self.key().into();
        let told = json!({"address": self.place.ip(), "port": self.place.port(), "renewed": meta::now()});
        let value = Bytes::from(told.to_string());
        let create = Write::Create {
            key: Arc::clone(&key),
            value: value.clone(),
        };
        let mut write = match self.store().get(&key).await? {
            None => create.clone(),
            Some(entry) => update(&entry, &value),
        };
        for _ in 0..3 {
            match self.store().write(write).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict { current: Some(entry) }) => write = update(&entry, &value),
                Err(StoreError::Conflict { current: None }) => write = create.clone(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn remove(&self, key: Arc<str>, revision: Revision) -> Result<(), StoreError> {
        let delete = Write::Delete {
            key,
            expected: Some(revision),
        };
        match self.store().write(delete).await {
            // It lives after all, or another server removed it.
            Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn try_publish(&self, living: &Living) {
        if let Err(error) = self.publish(living.places()).await {
            tracing::warn!(
                error = error_chain(&error),
                "cannot write the endpoints of the Service kubernetes; trying again"
            );
        }
    }

    /// Makes the endpoints what they should be; nothing is written when they are.
    async fn publish(&self, mut places: BTreeSet<SocketAddr>) -> Result<(), Error> {
        // A slice holds one family: the Service's.
        places.retain(|place| place.is_ipv4() == self.place.is_ipv4());
        let groups = by_port(&places);
        let user = bootstrap::user();
        bootstrap::ensure(&self.registry, &user, ENDPOINTS, endpoints(&groups), Present::Follows).await?;
        let slices: Vec<Value> = groups.iter().enumerate().map(slice).collect();
        let mut former = self.slices();
        for slice in slices {
            former.remove(meta::name(&slice));
            bootstrap::ensure(&self.registry, &user, SLICES, slice, Present::Follows).await?;
        }
        for name in former {
            bootstrap::remove(&self.registry, &user, SLICES, (NAMESPACE, &name)).await?;
        }
        Ok(())
    }

    /// The names of the slices that were written for further ports.
    fn slices(&self) -> BTreeSet<String> {
        let served = self.registry.resources.any_version(SLICES.0, SLICES.1);
        let objects = served.map(|served| served.cache.all(NAMESPACE)).unwrap_or_default();
        let names = objects.iter().map(|object| object.name());
        names.filter(|name| is_further(name)).map(str::to_owned).collect()
    }
}

fn update(entry: &Entry, value: &Bytes) -> Write {
    Write::Update {
        key: Arc::clone(&entry.key),
        value: value.clone(),
        expected: entry.mod_revision,
    }
}

/// The servers of each port: a list of endpoints has one port for all of its addresses.
fn by_port(places: &BTreeSet<SocketAddr>) -> Vec<(u16, Vec<IpAddr>)> {
    let mut groups: BTreeMap<u16, Vec<IpAddr>> = BTreeMap::new();
    for place in places {
        groups.entry(place.port()).or_default().push(place.ip());
    }
    groups.into_iter().collect()
}

fn port(number: u16) -> Value {
    json!({"name": "https", "port": number, "protocol": "TCP"})
}

fn endpoints(groups: &[(u16, Vec<IpAddr>)]) -> Value {
    let subset = |(number, addresses): &(u16, Vec<IpAddr>)| {
        let each: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        json!({"addresses": each, "ports": [port(*number)]})
    };
    let subsets: Vec<Value> = groups.iter().map(subset).collect();
    let skip_mirror = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
    json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": SERVICE, "namespace": NAMESPACE, "labels": skip_mirror},
        "subsets": subsets,
    })
}

/// The slice of a port; that of the first has the Service's name, as upstream's only one.
fn slice((index, (number, addresses)): (usize, &(u16, Vec<IpAddr>))) -> Value {
    let name = match index {
        0 => SERVICE.to_owned(),
        _ => format!("{SERVICE}-{number}"),
    };
    let family = if addresses.iter().all(IpAddr::is_ipv4) {
        "IPv4"
    } else {
        "IPv6"
    };
    let each: Vec<Value> = addresses
        .iter()
        .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": SERVICE}},
        "addressType": family,
        "endpoints": each,
        "ports": [port(*number)],
    })
}

/// Whether a slice has the name of one for a further port.
fn is_further(name: &str) -> bool {
    let number = name.strip_prefix(SERVICE).and_then(|rest| rest.strip_prefix('-'));
    number.is_some_and(|number| number.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(address: &str, revision: u64) -> Entry {
        at(address, 6443, revision)
    }

    fn at(address: &str, port: u16, revision: u64) -> Entry {
        Entry {
            key: format!("{PREFIX}/{address}").into(),
            value: json!({"address": address, "port": port}).to_string().into(),
            create_revision: Revision(1),
            mod_revision: Revision(revision),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_silent_are_found_by_our_own_clock() {
        let start = Instant::now();
        let own = format!("{PREFIX}/10.0.0.1");
        let mut living = Living::default();
        living.replace(vec![entry("10.0.0.1", 5), entry("10.0.0.2", 6)], start);
        let later = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(living.next_silence(&own), Some(later(15)));
        assert_eq!(living.silent(&own, later(14)), []);
        // Listed again, unchanged: no sign of life. Written again: one.
        living.replace(vec![entry("10.0.0.1", 5), entry("10.0.0.2", 6)], later(10));
        assert_eq!(living.silent(&own, later(15)).len(), 1);
        living.hear(entry("10.0.0.2", 9), later(15));
        assert_eq!(living.silent(&own, later(29)), []);
        assert_eq!(
            living.silent(&own, later(30)),
            [(entry("10.0.0.2", 9).key, Revision(9))]
        );
    }

    /// Endpoints as `ADDRESSES:PORT`, slices as `NAME ADDRESSES:PORT`.
    fn shown(entries: &[Entry]) -> (Vec<String>, Vec<String>) {
        let mut living = Living::default();
        living.replace(entries.to_vec(), Instant::now());
        let groups = by_port(&living.places());
        let endpoints = endpoints(&groups);
        let subsets = endpoints["subsets"].as_array().unwrap();
        let subsets = subsets
            .iter()
            .map(|subset| format!("{}:{}", subset["addresses"], subset["ports"][0]["port"]));
        let slices = groups.iter().enumerate().map(slice).map(|slice| {
            assert_eq!(slice["addressType"], "IPv4");
            let each: Vec<_> = slice["endpoints"].as_array().unwrap().iter().collect();
            let addresses: Vec<_> = each.iter().map(|one| one["addresses"][0].as_str().unwrap()).collect();
            format!(
                "{} {}:{}",
                meta::name(&slice),
                addresses.join(","),
                slice["ports"][0]["port"]
            )
        });
        (subsets.collect(), slices.collect())
    }

    #[test]
    fn endpoints_list_every_server() {
        let (endpoints, slices) = shown(&[entry("10.0.0.2", 6), entry("10.0.0.1", 5)]);
        assert_eq!(endpoints, [r#"[{"ip":"10.0.0.1"},{"ip":"10.0.0.2"}]:6443"#]);
        assert_eq!(slices, ["kubernetes 10.0.0.1,10.0.0.2:6443"]);
    }

    #[test]
    fn each_server_has_its_own_port() {
        let servers = [entry("10.0.0.2", 6), at("10.0.0.1", 7443, 5), entry("10.0.0.3", 7)];
        let (endpoints, slices) = shown(&servers);
        assert_eq!(
            endpoints,
            [
                r#"[{"ip":"10.0.0.2"},{"ip":"10.0.0.3"}]:6443"#,
                r#"[{"ip":"10.0.0.1"}]:7443"#
            ]
        );
        assert_eq!(
            slices,
            ["kubernetes 10.0.0.2,10.0.0.3:6443", "kubernetes-7443 10.0.0.1:7443"]
        );
        for (name, further) in [
            ("kubernetes-7443", true),
            ("kubernetes", false),
            ("kubernetes-mine", false),
        ] {
            assert_eq!(is_further(name), further, "{name}");
        }
    }

    #[test]
    fn a_server_that_comes_back_on_another_port_is_seen() {
        let mut living = Living::default();
        living.replace(vec![entry("10.0.0.1", 5)], Instant::now());
        let before = living.places();
        living.hear(at("10.0.0.1", 7443, 6), Instant::now());
        assert_ne!(living.places(), before);
        assert_eq!(place(b"no JSON"), None);
    }
}
