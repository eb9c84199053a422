//! The loop: changes in, transactions out.

use std::time::Duration;

use kube::Client;
use skiff_daemon::{Check, Context, error_chain};
use skiff_net::iptables::{self, Family, Iptables, Restore};
use skiff_net::sysctl;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::config::Config;
use crate::healthz::{self, Freshness};
use crate::index::{Change, Index};
use crate::metrics::{Metrics, Table};
use crate::plan::{self, Base, plan};
use crate::stale_flows::StaleFlows;
use crate::sync::Applied;
use crate::{Error, watch};

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
/// It acts in the network namespace of the process.
///
/// # Errors
/// When it cannot go on; everything that may pass is repeated instead.
pub async fn run(config: Config, client: Client, daemon: Context) -> Result<(), Error> {
    let freshness = Freshness::default();
    healthz::serve(&config, &daemon, freshness.clone()).await?;
    let iptables = blocking(|| Iptables::detect(Family::V4))
        .await
        .map_err(Error::Iptables)?;
    info!(backend = ?iptables.backend(), node = config.node_name, "service proxy starts");
    let (sender, mut changes) = mpsc::channel(QUEUE);
    let watching = tokio::spawn(watch::watch(client, config.node_name.clone(), sender));
    let mut proxy = Proxy {
        base: plan::base(&config.settings),
        metrics: Metrics::register(&daemon.metrics),
        ready: daemon.health.readiness("proxy"),
        config,
        iptables,
        freshness,
        index: Index::default(),
        applied: Applied::default(),
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

/// What is to be done, and when.
#[derive(Debug, Default)]
struct Agenda {
    /// Rules for what changed, or for everything.
    sync: Option<Instant>,
    /// Removal of what became waste.
    collect: Option<Instant>,
    /// Since when there is waste.
    waste_since: Option<Instant>,
    /// A look whether the rules are still there.
    look: Option<Instant>,
    /// The pause after the last failure.
    pause: Duration,
    /// No transaction before.
    not_before: Option<Instant>,
}

impl Agenda {
    async fn due(&self) {
        match [self.sync, self.collect, self.look].into_iter().flatten().min() {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Rules are to be written as soon as allowed.
    fn sync_soon(&mut self, now: Instant) {
        let allowed = self.not_before.map_or(now, |at| at.max(now));
        self.sync = Some(self.sync.map_or(allowed, |at| at.min(allowed)));
    }
}

struct Proxy {
    config: Config,
    iptables: Iptables,
    base: Base,
    metrics: Metrics,
    freshness: Freshness,
    ready: Check,
    index: Index,
    applied: Applied,
    /// Whether `applied` is what is in the kernel.
    in_force: bool,
    agenda: Agenda,
}

impl Proxy {
    fn take(&mut self, change: Change) {
        match &change {
            Change::Service { .. } | Change::ServiceGone(_) => drop(self.metrics.service_changes.inc()),
            Change::Slice { .. } | Change::SliceGone(_) => drop(self.metrics.endpoint_changes.inc()),
            _ => {}
        }
        self.index.apply(change);
        if self.index.ranges() != self.config.settings.service_ranges {
            self.config.settings.service_ranges = self.index.ranges().to_vec();
            self.base = plan::base(&self.config.settings);
            self.in_force = false;
        }
        if self.index.is_complete() && (self.index.is_dirty() || !self.in_force) && self.agenda.pause.is_zero() {
            self.freshness.queued();
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

    async fn act(&mut self) {
        let now = Instant::now();
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(self.agenda.sync) {
            self.agenda.sync = None;
            let result = if self.in_force {
                self.sync_changed().await
            } else {
                self.sync_all().await
            };
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
                    self.freshness.updated();
                    self.ready.pass();
                }
                self.plan_collection(now);
                self.agenda.look.get_or_insert(now + self.config.sync_period);
                for table in ["nat", "filter"] {
                    let rules = i64::try_from(self.applied.rules_in_hubs(table)).unwrap_or(i64::MAX);
                    self.metrics.rules.get_or_create(&Table { table }).set(rules);
                }
            }
            Err(error) => {
                self.metrics.failures.inc();
                self.in_force = false;
                self.agenda.collect = None;
                self.agenda.pause = (self.agenda.pause * 2).clamp(RETRY, self.config.sync_period.max(RETRY));
                self.agenda.sync = Some(now + self.agenda.pause);
                let error = error_chain(&error);
                warn!(error, retry_after = ?self.agenda.pause, "cannot write the rules of services; all are written anew");
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

    /// Writes the rules of the Services that changed.
    async fn sync_changed(&mut self) -> Result<(), iptables::Error> {
        let began = Instant::now();
        let (dirty, triggers) = self.index.take_dirty(BURST);
        let mut changes = Restore::new();
        let mut flows = StaleFlows::default();
        for key in &dirty {
            let found = self.index.get(key);
            let rules = found.map(|(service, entry)| plan(&self.config.settings, key, service, entry.slices()));
            if let Some(before) = self.applied.update(&mut changes, key, rules) {
                before.iter().for_each(|port| flows.before(port));
                self.applied.udp_ports_of(key).iter().for_each(|port| flows.now(port));
            }
        }
        self.applied.collect_cheap(&mut changes);
        debug!(services = dirty.len(), "writing the rules of services that changed");
        self.apply(changes).await?;
        self.forget(flows).await;
        self.metrics.partial_sync.observe(began.elapsed().as_secs_f64());
        self.observe(&triggers);
        Ok(())
    }

    /// Writes all rules, whatever is there.
    async fn sync_all(&mut self) -> Result<(), iptables::Error> {
        let began = Instant::now();
        let (_, triggers) = self.index.take_dirty(usize::MAX);
        self.prepare_kernel();
        let iptables = self.iptables.clone();
        let saved = blocking(move || iptables.save(None)).await?;
        let settings = &self.config.settings;
        let all = self.index.all();
        let count = all.len();
        let services = all
            .into_iter()
            .map(|(key, service, entry)| (key.clone(), plan(settings, key, service, entry.slices())));
        let (applied, transactions) = Applied::rebuild(&self.base, services, &saved);
        drop(saved);
        self.applied = applied;
        for changes in transactions {
            self.apply(changes).await?;
        }
        self.in_force = true;
        let mut flows = StaleFlows::default();
        self.applied.udp_ports().for_each(|port| flows.now(port));
        self.forget(flows).await;
        self.metrics.full_sync.observe(began.elapsed().as_secs_f64());
        self.observe(&triggers);
        info!(services = count, took = ?began.elapsed(), "all rules of services are in force");
        Ok(())
    }

    async fn apply(&self, changes: Restore) -> Result<(), iptables::Error> {
        let iptables = self.iptables.clone();
        blocking(move || iptables.apply(&changes)).await
    }

    /// Whether the rules are still there.
    async fn look(&mut self) {
        if !self.in_force {
            return;
        }
        let iptables = self.iptables.clone();
        let found = blocking(move || {
            let mut tables = plan::CANARY_TABLES.iter();
            tables.try_fold(true, |all, table| {
                Ok(all && iptables.rules(table, plan::CANARY)?.is_some())
            })
        });
        match found.await {
            Ok(true) => {}
            Ok(false) => {
                warn!("somebody removed the rules of services: they are written anew");
                self.in_force = false;
                self.freshness.queued();
                self.agenda.sync_soon(Instant::now());
            }
            Err::<bool, iptables::Error>(error) => {
                warn!(error = error_chain(&error), "cannot look at the rules of services")
            }
        }
    }

    async fn forget(&self, flows: StaleFlows) {
        if flows.is_empty() {
            return;
        }
        match blocking(move || flows.remove()).await {
            Ok(count) => drop(self.metrics.stale_flows.inc_by(count as u64)),
            Err(error) => warn!(
                error = error_chain(&error),
                "cannot forget UDP flows to endpoints that are gone"
            ),
        }
    }

    fn prepare_kernel(&self) {
        let localhost = self.config.settings.localhost_node_ports;
        let settings = [
            ("net.ipv4.conf.all.route_localnet", localhost),
            ("net.bridge.bridge-nf-call-iptables", true),
        ];
        for (name, _) in settings.iter().filter(|(_, wanted)| *wanted) {
            if let Err(error) = sysctl::set(name, "1") {
                warn!(error = error_chain(&error), "some traffic to services may not work");
            }
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
