//! The servers that live, as the endpoints of the Service `kubernetes`.
//!
//! Where several servers use one store, each keeps a key of its own under `masterleases` and writes it anew every ten seconds, as
//! upstream's lease reconciler. All watch these keys. One that has not changed for fifteen seconds by an observer's own clock is removed
//! by whoever sees it first; whenever a key comes or goes, every server brings the endpoints to what is there. A server that is alone
//! writes its address once, at its start.

use std::collections::BTreeMap;
use std::net::IpAddr;
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

/// This server among the others.
#[derive(Debug)]
pub(crate) struct Servers {
    registry: Arc<Registry>,
    address: IpAddr,
    port: u16,
    /// Nothing is written about us any more.
    left: Shutdown,
}

/// The keys of all servers, each with its revision and when that was first seen here.
#[derive(Debug, Default)]
struct Living {
    seen: BTreeMap<Arc<str>, (Revision, Instant)>,
}

impl Living {
    /// A key was written.
    fn hear(&mut self, key: Arc<str>, revision: Revision, now: Instant) {
        match self.seen.get(&key) {
            Some((known, _)) if *known >= revision => {}
            _ => {
                self.seen.insert(key, (revision, now));
            }
        }
    }

    /// All that there are.
    fn replace(&mut self, entries: Vec<Entry>, now: Instant) {
        let listed: BTreeMap<Arc<str>, Revision> = entries
            .into_iter()
            .map(|entry| (entry.key, entry.mod_revision))
            .collect();
        self.seen.retain(|key, _| listed.contains_key(key));
        for (key, revision) in listed {
            self.hear(key, revision, now);
        }
    }

    /// Those that were silent for too long, but for our own.
    fn silent(&self, own: &str, now: Instant) -> Vec<(Arc<str>, Revision)> {
        let others = self.seen.iter().filter(|(key, _)| &***key != own);
        others
            .filter(|(_, (_, since))| now >= *since + SILENCE)
            .map(|(key, (revision, _))| (Arc::clone(key), *revision))
            .collect()
    }

    /// When the next of them will have been silent for too long.
    fn next_silence(&self, own: &str) -> Option<Instant> {
        let others = self.seen.iter().filter(|(key, _)| &***key != own);
        others.map(|(_, (_, since))| *since + SILENCE).min()
    }

    /// Their addresses.
    fn addresses(&self) -> Vec<IpAddr> {
        let names = self.seen.keys().filter_map(|key| key.rsplit('/').next());
        names.filter_map(|name| name.parse().ok()).collect()
    }
}

impl Servers {
    pub(crate) fn new(registry: Arc<Registry>, config: &Config) -> Self {
        Self {
            registry,
            address: config.advertise_address,
            port: config.advertise_port,
            left: Shutdown::new(),
        }
    }

    fn store(&self) -> &dyn Store {
        &*self.registry.store
    }

    fn key(&self) -> String {
        format!("{PREFIX}/{}", self.address)
    }

    /// Joins the endpoints; from then on clients of the Service come here too.
    pub(crate) async fn join(&self) -> Result<(), Error> {
        if !self.store().is_shared() {
            return self.publish(vec![self.address]).await;
        }
        let failed = |source: StoreError| Error::Join(source);
        self.renew().await.map_err(failed)?;
        let page = self.store().list(PREFIX, None, None, 0).await.map_err(failed)?;
        let mut living = Living::default();
        living.replace(page.entries, Instant::now());
        self.publish(living.addresses()).await
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
            let before = living.seen.len();
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
                            Event::Put { entry, .. } => living.hear(entry.key, entry.mod_revision, Instant::now()),
                            Event::Delete { previous, .. } => {
                                living.seen.remove(&previous.key);
                            }
                        }
                    }
                }
            }
            if living.seen.len() != before {
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
        let value =
            Bytes::from(json!({"address": self.address, "port": self.port, "renewed": meta::now()}).to_string());
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
        if let Err(error) = self.publish(living.addresses()).await {
            tracing::warn!(
                error = error_chain(&error),
                "cannot write the endpoints of the Service kubernetes; trying again"
            );
        }
    }

    /// Makes the endpoints what they should be; nothing is written when they are.
    async fn publish(&self, mut addresses: Vec<IpAddr>) -> Result<(), Error> {
        // A slice holds one family: the Service's.
        addresses.retain(|address| address.is_ipv4() == self.address.is_ipv4());
        addresses.sort_unstable();
        let user = bootstrap::user();
        for (resource, mut object) in endpoints(&addresses, self.port) {
            object["metadata"]["namespace"] = "default".into();
            bootstrap::ensure(&self.registry, &user, resource, object, Present::Follows).await?;
        }
        Ok(())
    }
}

fn update(entry: &Entry, value: &Bytes) -> Write {
    Write::Update {
        key: Arc::clone(&entry.key),
        value: value.clone(),
        expected: entry.mod_revision,
    }
}

/// What leads to these addresses.
fn endpoints(addresses: &[IpAddr], port: u16) -> [(Resource, Value); 2] {
    let family = if addresses.iter().all(IpAddr::is_ipv4) {
        "IPv4"
    } else {
        "IPv6"
    };
    let port = json!({"name": "https", "port": port, "protocol": "TCP"});
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let subset: Vec<Value> = texts.iter().map(|ip| json!({"ip": ip})).collect();
    let each: Vec<Value> = texts
        .iter()
        .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}}))
        .collect();
    let legacy = json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": subset, "ports": [port]}],
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family,
        "endpoints": each,
        "ports": [port],
    });
    [
        (("", "endpoints"), legacy),
        (("discovery.k8s.io", "endpointslices"), slice),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(address: &str, revision: u64) -> Entry {
        Entry {
            key: format!("{PREFIX}/{address}").into(),
            value: Bytes::new(),
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
        living.hear(entry("10.0.0.2", 9).key, Revision(9), later(15));
        assert_eq!(living.silent(&own, later(29)), []);
        assert_eq!(
            living.silent(&own, later(30)),
            [(entry("10.0.0.2", 9).key, Revision(9))]
        );
    }

    #[test]
    fn endpoints_list_every_server() {
        let mut living = Living::default();
        living.replace(vec![entry("10.0.0.2", 6), entry("10.0.0.1", 5)], Instant::now());
        let [(_, legacy), (_, slice)] = endpoints(&living.addresses(), 6443);
        assert_eq!(
            legacy["subsets"][0]["addresses"],
            json!([{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}])
        );
        assert_eq!(slice["endpoints"].as_array().map(Vec::len), Some(2));
        assert_eq!(slice["addressType"], "IPv4");
    }
}
