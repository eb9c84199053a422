//! The loop: changes in, routing tables out.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use kube::Client;
use skiff_daemon::{Check, Context, health};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch as latest};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::config::IngressConfiguration;
use crate::index::{Change, Index};
use crate::metrics::Metrics;
use crate::model::Key;
use crate::plan::{Plan, plan};
use crate::pool::Pool;
use crate::proxy::Proxy;
use crate::publish::{Found, Publisher};
use crate::server::Server;
use crate::table::Table;
use crate::{CONTROLLER, Error, certificate, socket, watch};

/// Changes between the watches and the loop.
const QUEUE: usize = 256;
/// Clients wait so long for the first table; from then on they are told that there is none.
const FIRST_TABLE: Duration = Duration::from_secs(10);
/// The longest rest after a table was made.
const REST: Duration = Duration::from_millis(100);

/// Serves Ingresses until shutdown, and then until the open requests have ended.
///
/// # Errors
/// When it cannot listen or cannot go on; everything that may pass is repeated instead.
pub async fn run(config: IngressConfiguration, client: Client, daemon: Context) -> Result<(), Error> {
    config.check().map_err(Error::Config)?;
    let (files, connections) = (socket::raise_open_files(), config.limits.max_connections as u64);
    if files < connections.saturating_mul(2) {
        warn!(
            files,
            connections, "fewer files may be open than all connections and their requests need: raise LimitNOFILE"
        );
    }
    let metrics = Metrics::register(&daemon.metrics);
    let ready = daemon.health.readiness("ingress");
    serve_health(&config, &daemon).await?;
    let table = Arc::new(ArcSwap::from_pointee(Table::default()));
    let pool = Pool::new(&config.limits);
    let proxy = Proxy::new(&config, Arc::clone(&table), pool.clone(), metrics.clone());
    let server = Server::new(Arc::new(proxy), daemon.shutdown.clone());
    let plain = listen(&config, config.http_port).await?;
    let secure = listen(&config, config.https_port).await?;
    let tls = certificate::server_config(Arc::clone(&table)).map_err(Error::Tls)?;
    let acceptor = TlsAcceptor::from(Arc::new(tls));

    let (changes_in, changes) = mpsc::channel(QUEUE);
    let watching = tokio::spawn(watch::watch(client.clone(), changes_in));
    let (found, found_last) = latest::channel(Arc::default());
    let publisher = Publisher::new(client, &config);
    let tasks = TaskTracker::new();
    tasks.spawn(publisher.run(found_last, daemon.shutdown.clone()));
    tasks.spawn(pool.clone().tidy(daemon.shutdown.clone()));
    let listeners = [(plain, None), (secure, Some(acceptor))];
    let synced = daemon.health.readiness("informer-sync");
    let (first, first_table) = latest::channel(false);
    for (listener, tls) in listeners {
        let Some(listener) = listener else { continue };
        let (server, mut first_table) = (server.clone(), first_table.clone());
        tasks.spawn(async move {
            tokio::select! {
                _ = first_table.wait_for(|there| *there) => {}
                () = sleep(FIRST_TABLE) => {}
            }
            server.accept(listener, tls).await;
        });
    }
    info!(
        class = config.ingress_class,
        http = config.http_port,
        https = config.https_port,
        "ingress controller starts"
    );
    ready.pass();
    daemon.serving();
    let controller = Controller {
        class: config.ingress_class,
        index: Index::default(),
        last: Plan::default(),
        table,
        pool,
        metrics,
        found,
        first,
        synced,
    };
    let outcome = tokio::select! {
        () = daemon.shutdown.cancelled() => Ok(()),
        () = controller.run(changes) => Err(Error::WatchEnded),
    };
    ready.fail("shutting down");
    watching.abort();
    daemon.shutdown.cancel();
    server.drain().await;
    tasks.close();
    tasks.wait().await;
    outcome
}

struct Controller {
    class: String,
    index: Index,
    /// Its table is in force, not here.
    last: Plan,
    table: Arc<ArcSwap<Table>>,
    pool: Pool,
    metrics: Metrics,
    found: latest::Sender<Arc<Found>>,
    first: latest::Sender<bool>,
    synced: Check,
}

impl Controller {
    /// Ends only when the watches do.
    async fn run(mut self, mut changes: mpsc::Receiver<Change>) {
        let mut stale = true;
        let mut not_before = Instant::now();
        loop {
            let wait = async {
                match stale && self.index.is_complete() {
                    true => sleep_until(not_before).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                change = changes.recv() => {
                    let Some(change) = change else { return };
                    stale |= self.index.apply(change, &self.last);
                    // What is there already goes into the same table.
                    while let Ok(change) = changes.try_recv() {
                        stale |= self.index.apply(change, &self.last);
                    }
                    if !(stale && self.index.is_complete() && not_before <= Instant::now()) {
                        continue;
                    }
                }
                () = wait => {}
            }
            let began = Instant::now();
            self.renew();
            stale = false;
            // Work and rest in turns: a storm of changes is put together, a single change waits for nothing.
            let now = Instant::now();
            not_before = now + ((now - began) * 2).min(REST);
        }
    }

    /// Makes a table of what is known and puts it in force.
    fn renew(&mut self) {
        let mut made = plan(self.index.objects(), &self.class);
        let table = Arc::new(std::mem::take(&mut made.table));
        let places = table.endpoints();
        self.pool.admit(&places);
        let before = self.table.swap(Arc::clone(&table));
        self.pool.retain(&places);
        self.metrics.replaced(&before, &table);
        self.metrics.reloads.inc();
        self.metrics.routes.set(i64::try_from(table.len()).unwrap_or(i64::MAX));
        self.metrics
            .problems
            .set(i64::try_from(made.problems.len()).unwrap_or(i64::MAX));
        debug!(
            routes = table.len(),
            ingresses = made.ours.len(),
            endpoints = places.len(),
            "routes are in force"
        );
        self.first.send_if_modified(|there| !std::mem::replace(there, true));
        self.synced.pass();
        self.found.send_replace(Arc::new(self.found(&made)));
        self.last = made;
    }

    fn found(&self, plan: &Plan) -> Found {
        let objects = self.index.objects();
        let others = objects.ingresses.iter().filter(|(key, _)| !plan.ours.contains_key(key));
        let class = Key::new("", &self.class);
        if objects.classes.get(&class).is_some_and(|class| !class.ours) {
            warn!(
                class = self.class,
                "the IngressClass names another controller than {CONTROLLER}: it is left to that one"
            );
        }
        Found {
            ours: plan.ours.clone(),
            others: others
                .map(|(key, ingress)| (key.clone(), ingress.published.clone()))
                .collect(),
            problems: plan.problems.clone(),
            class: objects.classes.get(&class).cloned(),
        }
    }
}

async fn listen(config: &IngressConfiguration, port: u16) -> Result<Option<TcpListener>, Error> {
    if port == 0 {
        return Ok(None);
    }
    let address = (config.bind_address, port).into();
    let listener = TcpListener::bind(address).await;
    listener.map(Some).map_err(|source| Error::Listen { address, source })
}

async fn serve_health(config: &IngressConfiguration, daemon: &Context) -> Result<(), Error> {
    let Some(address) = config.health_address().map_err(Error::Config)? else {
        return Ok(());
    };
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|source| Error::Listen { address, source })?;
    let daemon = daemon.clone();
    tokio::spawn(async move {
        if let Err(error) = health::serve(listener, daemon.health, daemon.metrics, daemon.shutdown).await {
            warn!(%error, "the health server ended");
        }
    });
    Ok(())
}
