//! Cluster DNS: the names of Services and pods from memory, others' names through other servers.
//!
//! One task ([`watch`]) owns the watches and writes the [`index`]; everybody else reads it. The sockets' tasks
//! ([`server`]) hand each packet to the [`resolver`]: what memory or the cache can answer is answered in the same breath,
//! by [`answer`], a pure function of the index; the rest waits in a task of its own for the [`forward`]er, which asks each
//! question once however many wait. One more task ([`publish`]) keeps the Service under which pods find all this.
//!
//! Names follow the Kubernetes DNS specification 1.1; where it is silent, CoreDNS's `kubernetes` plugin as kubeadm sets it
//! up.

mod answer;
mod cache;
mod config;
mod forward;
mod health;
mod index;
mod message;
mod metrics;
mod names;
mod publish;
mod resolver;
mod server;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kube::Client;
use skiff_daemon::{Context, Shutdown};
use tokio::sync::Notify;
use tracing::{info, warn};

pub use config::{Config, Error as ConfigError};
pub use forward::{Limits, Upstreams};

use answer::Zone;
use cache::Cache;
use forward::Forwarder;
use health::Readiness;
use metrics::Metrics;
use publish::Publisher;
use resolver::Resolver;
use server::Listener;

/// How long to wait for a port that somebody else has, between two tries.
const PORT_RETRY: Duration = Duration::from_secs(2);

/// Why cluster DNS cannot work at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The domain is too long.
    #[error("use the cluster's domain")]
    Domain(#[source] hickory_proto::ProtoError),
    /// A task died.
    #[error("a task of cluster DNS ended")]
    Ended,
}

/// Serves names until shutdown.
///
/// # Errors
/// When the configuration cannot work. A port that is taken is waited for.
pub async fn run(config: Config, client: Client, daemon: Context) -> Result<(), Error> {
    // A registry of its own: what the rest of the process measures is not for everybody who reaches this port.
    let registry = skiff_daemon::Metrics::default();
    let resolver = resolver(&config, &registry, &daemon.shutdown)?;
    let readiness = Readiness {
        resolver: Arc::clone(&resolver),
        listening: Arc::new(AtomicBool::new(false)),
    };
    health::serve(&config, registry, readiness.clone(), &daemon.shutdown).await;
    let (changed, synced) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let watching = watch::watch(
        client.clone(),
        Arc::clone(&resolver),
        Arc::clone(&changed),
        Arc::clone(&synced),
    );
    let watching = tokio::spawn(daemon.shutdown.clone().run_until_cancelled_owned(watching));

    let work = async {
        let listener = listen(&config).await;
        info!(address = %listener.address, "cluster DNS answers");
        readiness.listening.store(true, Ordering::Release);
        let serving = listener.serve(Arc::clone(&resolver), daemon.shutdown.clone());
        let publishing = async {
            // Nobody is led here before there is something to say.
            if daemon.shutdown.run_until_cancelled(synced.notified()).await.is_some() {
                let publisher = Publisher::new(&config, client, Arc::clone(&resolver));
                publisher.run(changed, daemon.shutdown.clone()).await;
            }
        };
        tokio::join!(serving, publishing);
    };
    tokio::select! {
        () = work => {}
        () = ended(&daemon.shutdown) => {}
    }
    watching.abort();
    if daemon.shutdown.is_cancelled() {
        Ok(())
    } else {
        Err(Error::Ended)
    }
}

/// What may not outlive shutdown for long: a port that never comes free.
async fn ended(shutdown: &Shutdown) {
    shutdown.cancelled().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
}

fn resolver(config: &Config, registry: &skiff_daemon::Metrics, shutdown: &Shutdown) -> Result<Arc<Resolver>, Error> {
    let zone = Zone::new(config.domain.clone(), config.ttl).map_err(Error::Domain)?;
    let metrics = Metrics::register(registry);
    let cache = Arc::new(Cache::new(config.cache));
    let own = vec![config.address, (config.service_ip, config.address.port()).into()];
    let (upstreams, limits) = (config.upstreams.clone(), config.limits);
    let forwarder = Forwarder::new(
        upstreams,
        own,
        limits,
        Arc::clone(&cache),
        metrics.clone(),
        shutdown.clone(),
    );
    forwarder.start();
    Ok(Arc::new(Resolver::new(
        zone,
        cache,
        forwarder,
        metrics,
        config.clients.clone(),
    )))
}

/// Binds the port, however long that takes: the rest of the process is no worse without names.
async fn listen(config: &Config) -> Listener {
    let mut told = false;
    loop {
        match server::listen(config.address) {
            Ok(listener) => return listener,
            Err(error) => {
                if !told {
                    warn!(address = %config.address, %error, "cannot answer DNS: another server may have the port; repeated until it works");
                    told = true;
                }
                tokio::time::sleep(PORT_RETRY).await;
            }
        }
    }
}
