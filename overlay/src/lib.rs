//! Packets between nodes.
//!
//! One loop watches the Nodes and makes this node match them: a direct route to each other node's pod range, its own
//! pod range in the CNI configuration (written once it is known: the node is NotReady before), and a masquerade for
//! what pods send out of the cluster. [`plan`] decides, without looking at the machine; [`apply`] alone touches it.
//! The loop owns all state; a failed application is repeated, and everything is looked over now and then, since others
//! may have removed it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use ipnet::IpNet;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use skiff_daemon::{Context, error_chain};
use tracing::{info, warn};

mod apply;
mod conflist;
mod node;
mod plan;

pub use apply::Error as ApplyError;
pub use node::{Node, NodeNetwork};
pub use plan::{Plan, plan};

/// How often everything is looked over without a reason.
const RESYNC: Duration = Duration::from_secs(60);
/// The first pause after a failure; each further one is twice as long, up to [`RESYNC`].
const RETRY: Duration = Duration::from_millis(500);

/// What the overlay of one node needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The name of this node's Node object.
    pub node_name: String,
    /// The range of all pods: traffic to it is never masqueraded. Without one, only the nodes' own ranges are spared.
    pub cluster_cidr: Vec<IpNet>,
    /// Where the container runtime looks for its network configuration.
    pub cni_config_dir: PathBuf,
    /// Where address leases are kept.
    pub cni_data_dir: PathBuf,
    /// The bridge that this node's pods are joined to.
    pub bridge: String,
    /// The largest packet of pods; the kernel's default when absent.
    pub mtu: Option<u32>,
}

impl Config {
    /// The usual places, for a node of this name.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            node_name: node_name.into(),
            cluster_cidr: Vec::new(),
            cni_config_dir: PathBuf::from("/etc/cni/net.d"),
            cni_data_dir: PathBuf::from("/var/lib/cni/networks"),
            bridge: "cni0".to_owned(),
            mtu: None,
        }
    }
}

/// Why the overlay cannot work at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The watch ended although it is endless.
    #[error("the watch of nodes ended")]
    WatchEnded,
}

/// Keeps this node's routes, rules and CNI configuration as the cluster's Nodes ask, until shutdown.
///
/// It acts in the network namespace of the process.
///
/// # Errors
/// When it cannot go on; everything that may pass is repeated instead.
pub async fn run(config: Config, client: Client, daemon: Context) -> Result<(), Error> {
    let ready = daemon.health.readiness("overlay");
    let mut events = pin!(watcher(Api::<Node>::all(client), watcher::Config::default()).default_backoff());
    let mut nodes = Nodes::default();
    let mut pause = Duration::ZERO;
    let mut due: Option<tokio::time::Instant> = None;
    loop {
        let wait = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = daemon.shutdown.cancelled() => return Ok(()),
            event = events.next() => match event {
                // Applied when the ready events are all in: a burst costs one application.
                Some(Ok(event)) => {
                    if nodes.take(event) {
                        due = Some(tokio::time::Instant::now());
                    }
                }
                Some(Err(error)) => warn!(error = error_chain(&error), "cannot watch nodes: repeated until it works"),
                None => return Err(Error::WatchEnded),
            },
            () = wait => {
                let plan = plan(&config, &nodes.known);
                match apply::apply(&config, plan.clone()).await {
                    Ok(changed) => {
                        if changed {
                            info!(pod_ranges = ?plan.own, routes = plan.routes.len(), "network between nodes is set up");
                        }
                        if plan.own.is_empty() {
                            ready.fail(format!("node {} has no podCIDR yet", config.node_name));
                        } else {
                            ready.pass();
                        }
                        pause = Duration::ZERO;
                        due = Some(tokio::time::Instant::now() + RESYNC);
                    }
                    Err(error) => {
                        pause = (pause * 2).clamp(RETRY, RESYNC);
                        let error = error_chain(&error);
                        warn!(error, retry_after = ?pause, "cannot set up the network between nodes");
                        ready.fail(error);
                        due = Some(tokio::time::Instant::now() + pause);
                    }
                }
            }
        }
    }
}

/// The nodes as far as they are known; a list that is being read replaces them at its end.
#[derive(Debug, Default)]
struct Nodes {
    known: BTreeMap<String, NodeNetwork>,
    reading: Option<BTreeMap<String, NodeNetwork>>,
}

impl Nodes {
    /// Takes an event in. Returns whether something is to be applied.
    fn take(&mut self, event: watcher::Event<Node>) -> bool {
        match event {
            watcher::Event::Init => {
                self.reading = Some(BTreeMap::new());
                false
            }
            watcher::Event::InitApply(node) => {
                let (name, network) = node.network();
                self.reading.get_or_insert_default().insert(name, network);
                false
            }
            watcher::Event::InitDone => {
                self.known = self.reading.take().unwrap_or_default();
                true
            }
            watcher::Event::Apply(node) => {
                let (name, network) = node.network();
                self.known.insert(name, network.clone()) != Some(network)
            }
            watcher::Event::Delete(node) => self.known.remove(&node.network().0).is_some(),
        }
    }
}

/// Whether two addresses are of one family.
fn same_family(net: IpNet, ip: IpAddr) -> bool {
    net.addr().is_ipv4() == ip.is_ipv4()
}
