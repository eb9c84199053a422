//! The loop: changes in, transactions out.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use kube::Client;
use skiff_daemon::{Check, Context, error_chain};
use skiff_net::iptables::{self, Family, Iptables, Restore};
use skiff_net::netlink::Netlink;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::config::Config;
use crate::events::Events;
use crate::express::Express;
use crate::healthz::{self, Health};
use crate::index::{Change, Index, Key};
use crate::metrics::{Metrics, Policy, Table};
use crate::model::Protocol;
use crate::plan::{self, Base, NodePorts, Settings, plan};
use crate::service_health::ServiceHealth;
use crate::stale_flows::StaleFlows;
use crate::sync::Applied;
use crate::{Error, kernel, watch};

mod agenda;
mod express;
mod look;
mod tell;

use agenda::Agenda;

/// Changes between the watch and the loop.
const QUEUE: usize = 1024;
/// Costly removals wait until nothing has changed for this long …
const QUIET: Duration = Duration::from_millis(500);
/// … but no longer than this.
const WASTE_AGE: Duration = Duration::from_secs(10);
/// Services whose rules go into one transaction: a larger one would cost more than two.
const BURST: usize = 250;
/// How long the rules of a Service without endpoints may wait for these, to go out together.
const FIRST_ENDPOINTS: Duration = Duration::from_millis(10);
/// The longest rest after a transaction.
const REST: Duration = Duration::from_millis(15);
/// The first pause after a failed transaction; each further one is twice as long, up to the sync period.
const RETRY: Duration = Duration::from_millis(500);

/// Keeps the rules of this node as Services and EndpointSlices ask, until shutdown. Rules stay when it ends.
///
/// It acts in the network namespace of the process. systemd is told that the process is ready when all rules are in force
/// for the first time.
///
/// # Errors
/// When it cannot go on; everything that may pass is repeated instead.
pub async fn run(config: Config, client: Client, daemon: Context) -> Result<(), Error> {
    let health = Health::new(config.sync_period * 2);
    let metrics = Metrics::register(&daemon.metrics);
    healthz::serve(&config, &daemon, health.clone(), metrics.clone()).await?;
    let lock_file = config.lock_file.clone();
    let iptables = blocking(move || {
        let found = Iptables::detect(Family::V4)?;
        Ok(match lock_file {
            Some(path) => found.with_lock_file(path),
            None => found,
        })
    });
    let iptables = iptables.await.map_err(Error::Iptables)?;
    info!(backend = ?iptables.backend(), node = config.node_name, "service proxy starts");
    kernel::set_oom_score(config.oom_score_adj);
    let (tracking, cores) = (
        config.conntrack,
        std::thread::available_parallelism().map_or(1, usize::from),
    );
    blocking(move || kernel::set_up_tracking(&tracking, cores)).await;
    let events = Events::start(client.clone(), &config.node_name, &daemon.shutdown);
    events.started();
    let (sender, mut changes) = mpsc::channel(QUEUE);
    let watching = tokio::spawn(watch::watch(client, config.node_name.clone(), sender));
    let service_health = ServiceHealth::new(&config.node_name, health.clone(), events.clone(), &daemon.shutdown);
    let mut proxy = Proxy {
        settings: config.settings.clone(),
        base: plan::base(&config.settings),
        metrics,
        ready: daemon.health.readiness("proxy"),
        unannounced: Some(daemon.clone()),
        failing: false,
        config,
        iptables,
        health,
        service_health,
        events,
        index: Index::default(),
        applied: Applied::default(),
        node_ports: HashSet::new(),
        refused: HashMap::new(),
        node_addresses: Vec::new(),
        invalid_dropped: 0,
        express: Express::default(),
        express_works: false,
        express_left: false,
        moving: BTreeSet::new(),
        in_force: false,
        agenda: Agenda::default(),
    };
    let outcome = loop {
        tokio::select! {
            biased;
            () = daemon.shutdown.cancelled() => break Ok(()),
            change = changes.recv() => match change {
                Some(change) => {
                    proxy.take(change);
                    // What is there already goes into the same transaction.
                    while let Ok(change) = changes.try_recv() {
                        proxy.take(change);
                    }
                }
                None => break Err(Error::WatchEnded),
            },
            () = proxy.agenda.due() => proxy.act().await,
        }
    };
    watching.abort();
    outcome
}

struct Proxy {
    config: Config,
    /// The configuration's, completed by what the API tells.
    settings: Settings,
    iptables: Iptables,
    base: Base,
    metrics: Metrics,
    health: Health,
    service_health: ServiceHealth,
    events: Events,
    ready: Check,
    /// Until all rules have been in force once.
    unannounced: Option<Context>,
    /// Whether a failure has been told of that lasts.
    failing: bool,
    index: Index,
    applied: Applied,
    /// Node ports that were looked at: whether a program holds them.
    node_ports: HashSet<(Protocol, u16)>,
    /// Addresses that nothing is sent to, by the slices that hold them.
    refused: HashMap<String, Vec<String>>,
    /// This node's addresses that node ports answer at; empty for all.
    node_addresses: Vec<IpAddr>,
    /// Packets that the rule against invalid ones has dropped, as it was last read.
    invalid_dropped: u64,
    /// What is in force by the quick way.
    express: Express,
    /// Whether there is one.
    express_works: bool,
    /// Whether its table may be there and could not be removed.
    express_left: bool,
    /// The Services that took it and are to move in with the others.
    moving: BTreeSet<Key>,
    /// Whether `applied` is what is in the kernel.
    in_force: bool,
    agenda: Agenda,
}

impl Proxy {
    fn take(&mut self, change: Change) {
        match &change {
            Change::Service { .. } | Change::ServiceGone(_) => {
                self.metrics.service_changes.inc();
                self.metrics.services_pending.inc();
            }
            Change::Slice { .. } | Change::SliceGone(_) => {
                self.metrics.endpoint_changes.inc();
                self.metrics.endpoints_pending.inc();
                self.tell_of_addresses_refused(&change);
            }
            _ => {}
        }
        self.index.apply(change);
        if let Some(node) = self.index.node() {
            self.health.set_eligible(node.eligible);
            let settings = self.config.settings.on(node, self.index.ranges());
            if settings != self.settings {
                self.settings = settings;
                self.base = plan::base(&self.settings);
                self.write_anew();
            }
        }
        if self.index.is_complete() && (self.index.is_dirty() || !self.in_force) && self.agenda.pause.is_zero() {
            self.health.queued();
            self.metrics.last_queued.set(seconds_now());
            // A Service comes before its endpoints: until then there is nothing to send anywhere.
            let wait = if self.in_force && self.index.waits_for_endpoints() {
                FIRST_ENDPOINTS
            } else {
                Duration::ZERO
            };
            self.agenda.sync_soon(Instant::now() + wait);
        }
    }

    /// What is in the kernel is not what is remembered: the next sync writes everything, and nothing else is done before.
    fn write_anew(&mut self) {
        self.in_force = false;
        self.agenda.collect = None;
        self.agenda.stay();
    }

    async fn act(&mut self) {
        let now = Instant::now();
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(self.agenda.sync) {
            self.agenda.sync = None;
            let result = if self.in_force {
                self.sync_changed(false).await
            } else {
                self.sync_all().await
            };
            self.conclude(result, now);
        } else if is_due(self.agenda.moving) {
            let result = self.sync_changed(true).await;
            self.conclude(result, now);
        } else if is_due(self.agenda.collect) {
            self.agenda.collect = None;
            let mut changes = Restore::new();
            self.applied.collect(&mut changes);
            let result = self.apply(changes).await;
            self.conclude(result, now);
        } else if is_due(self.agenda.look) {
            self.agenda.look = Some(now + self.config.sync_period);
            self.look().await;
        }
    }

    fn conclude(&mut self, result: Result<(), iptables::Error>, began: Instant) {
        let now = Instant::now();
        let took = now - began;
        self.metrics.sync.observe(took.as_secs_f64());
        match result {
            Ok(()) => {
                self.agenda.pause = Duration::ZERO;
                // Work and rest in turns: a storm of changes is put together, a single change waits for nothing.
                self.agenda.not_before = Some((began + self.config.min_sync_period).max(now + (took / 2).min(REST)));
                self.metrics.last_sync.set(seconds_now());
                if self.index.is_dirty() {
                    self.agenda.sync_soon(now);
                } else {
                    self.health.updated();
                    self.ready.pass();
                    self.failing = false;
                    if let Some(process) = self.unannounced.take() {
                        process.serving();
                    }
                    self.metrics.services_pending.set(0);
                    self.metrics.endpoints_pending.set(0);
                }
                self.plan_collection(now);
                self.agenda.look.get_or_insert(now + self.config.sync_period);
                self.count_rules();
            }
            Err(error) => {
                self.metrics.failures.inc();
                if self.in_force {
                    self.metrics.partial_failures.inc();
                }
                self.write_anew();
                self.agenda.pause = (self.agenda.pause * 2).clamp(RETRY, self.config.sync_period.max(RETRY));
                self.agenda.sync = Some(now + self.agenda.pause);
                let error = error_chain(&error);
                warn!(error, retry_after = ?self.agenda.pause, "cannot write the rules of services; all are written anew");
                self.tell_of_a_failure(&error);
                self.ready.fail(error);
            }
        }
    }

    fn plan_collection(&mut self, now: Instant) {
        if self.applied.has_waste() {
            let since = *self.agenda.waste_since.get_or_insert(now);
            self.agenda.collect = Some((now + QUIET).min(since + WASTE_AGE));
        } else {
            self.agenda.waste_since = None;
            self.agenda.collect = None;
        }
    }

    /// Writes the rules of the Services that changed, and of those that took the quick way before.
    async fn sync_changed(&mut self, all_move: bool) -> Result<(), iptables::Error> {
        let began = Instant::now();
        let (mut dirty, triggers) = self.index.take_dirty(BURST);
        if !all_move && self.express(&dirty).await {
            self.metrics.partial_sync.observe(began.elapsed().as_secs_f64());
            self.observe(&triggers);
            return Ok(());
        }
        let moved = std::mem::take(&mut self.moving);
        dirty.extend(moved.into_iter().filter(|key| !dirty.contains(key)).collect::<Vec<_>>());
        let mut changes = Restore::new();
        let mut flows = StaleFlows::default();
        let mut health_checks = Vec::with_capacity(dirty.len());
        for key in &dirty {
            let found = self.index.get(key);
            let rules = found.map(|(service, entry)| plan(&self.settings, key, service, entry.slices()));
            health_checks.push((key.clone(), rules.as_ref().and_then(|rules| rules.health_check)));
            if let Some(before) = self.applied.update(&mut changes, key, rules) {
                before.iter().for_each(|port| flows.before(port));
                self.applied.udp_ports_of(key).iter().for_each(|port| flows.now(port));
            }
        }
        self.applied.collect_cheap(&mut changes);
        debug!(services = dirty.len(), "writing the rules of services that changed");
        self.apply(changes).await?;
        self.end_express().await;
        self.forget(flows).await;
        self.metrics.partial_sync.observe(began.elapsed().as_secs_f64());
        self.observe(&triggers);
        // Load balancers are told when it is true.
        self.service_health.update(&health_checks, &self.node_addresses).await;
        self.tell_of_ports_taken(&dirty).await;
        Ok(())
    }

    /// Writes all rules, whatever is there.
    async fn sync_all(&mut self) -> Result<(), iptables::Error> {
        let began = Instant::now();
        let (_, triggers) = self.index.take_dirty(usize::MAX);
        self.find_node_addresses().await;
        let iptables = self.iptables.clone();
        let saved = blocking(move || iptables.save(None)).await?;
        let settings = &self.settings;
        let all = self.index.all();
        let keys: Vec<Key> = all.iter().map(|(key, ..)| (*key).clone()).collect();
        let mut health_checks = Vec::new();
        let services = all.into_iter().map(|(key, service, entry)| {
            let rules = plan(settings, key, service, entry.slices());
            health_checks.extend(rules.health_check.map(|check| (key.clone(), Some(check))));
            (key.clone(), rules)
        });
        let (applied, transactions) = Applied::rebuild(&self.base, services, &saved);
        drop(saved);
        self.applied = applied;
        for changes in transactions {
            self.apply(changes).await?;
        }
        let localhost = self.settings.localhost_node_ports;
        blocking(move || kernel::open_ways(localhost)).await;
        self.reset_express().await;
        self.in_force = true;
        let mut flows = StaleFlows::default();
        self.applied.udp_ports().for_each(|port| flows.now(port));
        self.forget(flows).await;
        self.metrics.full_sync.observe(began.elapsed().as_secs_f64());
        self.observe(&triggers);
        self.service_health.replace(health_checks, &self.node_addresses).await;
        self.tell_of_ports_taken(&keys).await;
        info!(services = keys.len(), took = ?began.elapsed(), "all rules of services are in force");
        Ok(())
    }

    async fn apply(&self, changes: Restore) -> Result<(), iptables::Error> {
        let iptables = self.iptables.clone();
        for table in ["nat", "filter"] {
            let written = i64::try_from(changes.rules(table)).unwrap_or(i64::MAX);
            self.metrics.rules_written.get_or_create(&Table { table }).set(written);
        }
        blocking(move || iptables.apply(&changes)).await
    }

    async fn forget(&self, flows: StaleFlows) {
        if flows.is_empty() {
            return;
        }
        let began = Instant::now();
        let removed = blocking(move || flows.remove()).await;
        self.metrics.flows_took.observe(began.elapsed().as_secs_f64());
        match removed {
            Ok(count) => drop(self.metrics.stale_flows.inc_by(count as u64)),
            Err(error) => warn!(
                error = error_chain(&error),
                "cannot forget UDP flows to endpoints that are gone"
            ),
        }
    }

    fn count_rules(&self) {
        for table in ["nat", "filter"] {
            let base = self.base.chains.iter().filter(|(found, ..)| *found == table);
            let base: usize = base.map(|(.., rules)| rules.len()).sum();
            let rules = i64::try_from(base + self.applied.rules(table)).unwrap_or(i64::MAX);
            self.metrics.rules.get_or_create(&Table { table }).set(rules);
        }
        let stranded = self.applied.stranded();
        for (traffic_policy, ports) in [("internal", stranded.internal), ("external", stranded.external)] {
            let policy = Policy { traffic_policy };
            self.metrics.stranded.get_or_create(&policy).set(ports);
        }
    }

    /// Finds out at which addresses health check ports are to be opened.
    async fn find_node_addresses(&mut self) {
        let ports = self.settings.node_ports.clone();
        if ports == NodePorts::Any {
            self.node_addresses.clear();
            return;
        }
        match blocking(|| Netlink::open()?.addresses(None)).await {
            Ok(found) => {
                let own = found.iter().map(|address| address.net.addr());
                self.node_addresses = own.filter(|ip| ports.contain(*ip)).collect();
            }
            Err(error) => warn!(error = error_chain(&error), "cannot list this node's addresses"),
        }
    }

    fn observe(&self, triggers: &[f64]) {
        let now = seconds_now();
        for at in triggers {
            self.metrics.programming.observe((now - at).max(0.0));
        }
    }
}

fn seconds_now() -> f64 {
    jiff::Timestamp::now().as_duration().as_secs_f64()
}

/// Runs what blocks on a thread of its own, which is in the same network namespace.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
