//! Others' names: which servers are asked, in which order, for how long; each question once, however many wait for it.

mod resolv_conf;
mod upstream;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, WeakShared};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use parking_lot::{Mutex, RwLock};
use rand::seq::SliceRandom as _;
use skiff_api::config::UpstreamPolicy;
use skiff_daemon::{Shutdown, error_chain};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use crate::answer::Answer;
use crate::cache::{Cache, Key};
use crate::metrics::Metrics;

use resolv_conf::ResolvConf;
pub(crate) use resolv_conf::server;
use upstream::Upstream;

/// How long a server that others' questions loop through is left alone.
const LOOP_REST: Duration = Duration::from_secs(60);

/// Bounds of what forwarding takes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For one server.
    pub attempt: Duration,
    /// For all of them.
    pub total: Duration,
    /// Questions at once; kubeadm's `max_concurrent`.
    pub concurrent: usize,
    /// Between two looks whether a dead server lives again.
    pub probe_every: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            attempt: Duration::from_secs(2),
            total: Duration::from_secs(5),
            concurrent: 1000,
            probe_every: Duration::from_millis(500),
        }
    }
}

/// Where others' names are asked.
#[derive(Clone, Debug)]
pub struct Upstreams {
    /// For all names, in place of the resolv.conf's.
    pub servers: Vec<SocketAddr>,
    /// Whose name servers are asked where `servers` is empty.
    pub resolv_conf: PathBuf,
    /// Domains with servers of their own.
    pub stubs: Vec<(Name, Vec<SocketAddr>)>,
    /// In which order.
    pub policy: UpstreamPolicy,
}

/// The servers of one domain.
#[derive(Debug)]
struct Group {
    domain: Name,
    servers: RwLock<Vec<Arc<Upstream>>>,
    file: Option<Mutex<ResolvConf>>,
    turn: AtomicUsize,
}

type Asking = BoxFuture<'static, Arc<Answer>>;

/// A question that is being asked, for as long as somebody waits for its answer.
#[derive(Debug)]
struct Waiting {
    number: u64,
    answer: WeakShared<Asking>,
}

/// What a server says.
struct Told {
    answer: Answer,
    /// Its bytes on the wire.
    size: usize,
}

/// Asks other servers.
#[derive(Debug)]
pub(crate) struct Forwarder {
    groups: Vec<Group>,
    /// Addresses at which this server is reached: to ask there would never end.
    own: Vec<SocketAddr>,
    policy: UpstreamPolicy,
    limits: Limits,
    permits: Semaphore,
    cache: Arc<Cache>,
    waiting: Mutex<HashMap<Key, Waiting>>,
    /// How many were asked: each has a number of its own.
    asked: AtomicU64,
    /// The names of our own loop probes on their way.
    probes: Mutex<HashMap<Name, Arc<Upstream>>>,
    metrics: Metrics,
    shutdown: Shutdown,
    this: Weak<Self>,
}

/// Takes a question off the list of those that are waited for, however its asking ends: answered, or given up by all.
struct Asked {
    forwarder: Arc<Forwarder>,
    key: Key,
    number: u64,
}

impl Drop for Asked {
    fn drop(&mut self) {
        let mut all = self.forwarder.waiting.lock();
        // Somebody may have asked the same anew since all gave it up.
        if all.get(&self.key).is_some_and(|waiting| waiting.number == self.number) {
            all.remove(&self.key);
        }
    }
}

// === impl Group ===

impl Group {
    fn new(domain: Name, servers: &[SocketAddr], own: &[SocketAddr], file: Option<ResolvConf>) -> Self {
        let group = Self {
            domain,
            servers: RwLock::default(),
            file: file.map(Mutex::new),
            turn: AtomicUsize::new(0),
        };
        group.set(servers, own);
        group
    }

    /// Sets the servers; one that was known keeps what is known of it.
    fn set(&self, addresses: &[SocketAddr], own: &[SocketAddr]) {
        let mut servers = self.servers.write();
        let known = std::mem::take(&mut *servers);
        for &address in addresses {
            if own.contains(&address) {
                warn!(%address, domain = %self.domain, "a server for others' names is this server itself: it is left out");
                continue;
            }
            let former = known.iter().find(|server| server.address == address);
            servers.push(former.cloned().unwrap_or_else(|| Arc::new(Upstream::new(address))));
        }
    }

    /// The servers in the order in which to ask them: the living first, none that leads back here.
    fn order(&self, policy: UpstreamPolicy) -> Vec<Arc<Upstream>> {
        let mut servers = self.servers.read().clone();
        match policy {
            UpstreamPolicy::Random => servers.shuffle(&mut rand::rng()),
            UpstreamPolicy::RoundRobin if !servers.is_empty() => {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed) % servers.len();
                servers.rotate_left(turn);
            }
            _ => {}
        }
        servers.retain(|server| !server.is_looped());
        servers.sort_by_key(|server| !server.is_alive());
        servers
    }
}

// === impl Forwarder ===

impl Forwarder {
    pub(crate) fn new(
        upstreams: Upstreams,
        own: Vec<SocketAddr>,
        limits: Limits,
        cache: Arc<Cache>,
        metrics: Metrics,
        shutdown: Shutdown,
    ) -> Arc<Self> {
        let file = upstreams
            .servers
            .is_empty()
            .then(|| ResolvConf::new(upstreams.resolv_conf));
        let stubs = upstreams.stubs.into_iter();
        let mut groups: Vec<Group> = stubs
            .map(|(domain, servers)| Group::new(domain, &servers, &own, None))
            .collect();
        groups.push(Group::new(Name::root(), &upstreams.servers, &own, file));
        // The longest domain that a name lies in is the one that counts.
        groups.sort_by_key(|group| std::cmp::Reverse(group.domain.num_labels()));
        Arc::new_cyclic(|this| Self {
            groups,
            own,
            policy: upstreams.policy,
            limits,
            permits: Semaphore::new(limits.concurrent),
            cache,
            waiting: Mutex::default(),
            asked: AtomicU64::default(),
            probes: Mutex::default(),
            metrics,
            shutdown,
            this: this.clone(),
        })
    }

    /// Reads the resolv.conf, and finds out whether a server asks us what it is asked.
    pub(crate) fn start(&self) {
        for group in &self.groups {
            self.refresh(group);
            let servers = group.servers.read().clone();
            servers.into_iter().for_each(|server| self.probe_for_loop(server));
        }
    }

    /// Asks, or waits for the answer to the same question of somebody else.
    pub(crate) async fn ask(&self, key: Key) -> Arc<Answer> {
        let Some(this) = self.this.upgrade() else {
            return refused();
        };
        let waiting = {
            let mut all = self.waiting.lock();
            match all.get(&key).and_then(|waiting| waiting.answer.upgrade()) {
                Some(waiting) => waiting,
                None => {
                    let number = self.asked.fetch_add(1, Ordering::Relaxed);
                    let asked = Asked {
                        forwarder: this,
                        key: key.clone(),
                        number,
                    };
                    let asking = async move {
                        let answer = asked.forwarder.ask_servers(&asked.key).await;
                        Arc::new(answer)
                    };
                    let waiting = asking.boxed().shared();
                    // Nobody has polled it, so that it is not over.
                    if let Some(answer) = waiting.downgrade() {
                        all.insert(key, Waiting { number, answer });
                    }
                    waiting
                }
            }
        };
        waiting.await
    }

    /// Whether a question is one that we sent out ourselves: then its server leads back here.
    pub(crate) fn is_own_probe(&self, name: &Name, kind: RecordType) -> bool {
        if kind != RecordType::HINFO {
            return false;
        }
        let Some(server) = self.probes.lock().get(name).cloned() else {
            return false;
        };
        if !server.is_looped() {
            warn!(address = %server.address, "a server for others' names asks this server in turn: it is left out; \
                   point resolvConf or upstreamNameservers at one that does not");
        }
        server.set_looped(true);
        true
    }

    async fn ask_servers(&self, key: &Key) -> Answer {
        let Ok(Ok(_permit)) = timeout(self.limits.total, self.permits.acquire()).await else {
            self.metrics.rejects.inc();
            return Answer::of(ResponseCode::Refused);
        };
        let Some(group) = self.groups.iter().find(|group| group.domain.zone_of(&key.name)) else {
            return Answer::of(ResponseCode::Refused);
        };
        self.refresh(group);
        let order = group.order(self.policy);
        if order.is_empty() {
            let any = !group.servers.read().is_empty();
            return Answer::of(if any {
                ResponseCode::ServFail
            } else {
                ResponseCode::Refused
            });
        }
        if order.iter().all(|server| !server.is_alive()) {
            self.metrics.all_dead.inc();
        }
        let end = Instant::now() + self.limits.total;
        let mut refusal = None;
        // Twice: a datagram may be lost, and there may be one server only.
        for server in order.iter().chain(&order) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match self.ask_server(server, key, left.min(self.limits.attempt)).await {
                Some(told) if may_ask_another(told.answer.code) => {
                    // Each has its say once.
                    if order.len() == 1 || refusal.is_some() {
                        return self.keep(key, told);
                    }
                    refusal = Some(told);
                }
                Some(told) => return self.keep(key, told),
                None => {}
            }
        }
        match refusal {
            Some(told) => self.keep(key, told),
            None => Answer::of(ResponseCode::ServFail),
        }
    }

    /// Keeps what is answered in the end: what a server failed at, another may know.
    fn keep(&self, key: &Key, told: Told) -> Answer {
        let (says, evicted) = self.cache.insert(key.clone(), &told.answer, told.size);
        self.metrics.cached(says, evicted, &self.cache);
        told.answer
    }

    async fn ask_server(&self, server: &Arc<Upstream>, key: &Key, limit: Duration) -> Option<Told> {
        let begin = Instant::now();
        match server.ask(key, limit).await {
            Ok(response) => {
                server.succeeded();
                let answer = answer_of(response.message);
                self.metrics.forwarded(server.address, answer.code, begin.elapsed());
                Some(Told {
                    answer,
                    size: response.size,
                })
            }
            Err(error) => {
                debug!(name = %key.name, error = error_chain(&error), "a server for others' names gives no answer");
                self.metrics.unanswered(server.address);
                if server.failed() {
                    self.watch(server);
                }
                None
            }
        }
    }

    /// Looks whether a dead server lives again, until it does.
    fn watch(&self, server: &Arc<Upstream>) {
        if server.probed.swap(true, Ordering::Relaxed) {
            return;
        }
        warn!(address = %server.address, "a server for others' names does not answer: others are asked first");
        let (server, every, this) = (Arc::clone(server), self.limits.probe_every, self.this.clone());
        let (shutdown, metrics) = (self.shutdown.clone(), self.metrics.clone());
        let watch = async move {
            // A server that is configured no more is held by this task alone.
            while this.upgrade().is_some() && Arc::strong_count(&server) > 1 {
                if server.lives(every.max(Duration::from_millis(100)) * 2).await {
                    info!(address = %server.address, "a server for others' names answers again");
                    server.succeeded();
                    break;
                }
                metrics.health_failed(server.address);
                sleep(every).await;
            }
            server.probed.store(false, Ordering::Relaxed);
        };
        tokio::spawn(async move { shutdown.run_until_cancelled(watch).await });
    }

    fn refresh(&self, group: &Group) {
        let Some(file) = &group.file else { return };
        let Some(servers) = file.lock().changed() else { return };
        info!(?servers, "others' names are asked of");
        group.set(&servers, &self.own);
        let servers = group.servers.read().clone();
        servers.into_iter().for_each(|server| self.probe_for_loop(server));
    }

    /// Sends a question that nobody else would ask. If it comes in again, the server leads back here; it is tried
    /// again after a while.
    fn probe_for_loop(&self, server: Arc<Upstream>) {
        let this = self.this.clone();
        let watch = async move {
            while let Some(forwarder) = this.upgrade() {
                let label = || rand::random::<u64>().to_string();
                let Ok(name) = Name::from_labels([label(), label()]) else {
                    break;
                };
                forwarder.probes.lock().insert(name.clone(), Arc::clone(&server));
                let before = server.is_looped();
                server.set_looped(false);
                let key = Key {
                    name: name.clone(),
                    kind: RecordType::HINFO,
                    dnssec_ok: false,
                    checking_disabled: false,
                };
                timeout(forwarder.limits.attempt, server.ask(&key, forwarder.limits.attempt))
                    .await
                    .ok();
                forwarder.probes.lock().remove(&name);
                drop(forwarder);
                if !server.is_looped() {
                    if before {
                        info!(address = %server.address, "a server for others' names leads back here no more");
                    }
                    break;
                }
                sleep(LOOP_REST).await;
            }
        };
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move { shutdown.run_until_cancelled(watch).await });
    }
}

fn refused() -> Arc<Answer> {
    Arc::new(Answer::of(ResponseCode::Refused))
}

/// A server that cannot, or will not: another one may.
fn may_ask_another(code: ResponseCode) -> bool {
    matches!(
        code,
        ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp
    )
}

fn answer_of(message: hickory_proto::op::Message) -> Answer {
    Answer {
        code: message.metadata.response_code,
        cut: message.metadata.truncation,
        answers: message.answers,
        authorities: message.authorities,
        additionals: message.additionals,
        alias: None,
    }
}

#[cfg(test)]
mod tests;
