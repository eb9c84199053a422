//! Packets between nodes.
//!
//! One loop watches the Nodes and the kernel, and makes this node match: a direct route to each other node's pod range
//! on a shared segment, a VXLAN tunnel to the nodes of other segments, its own pod range in the CNI configuration
//! (written once it is known: the node is NotReady before), and rules that forward pods' packets and masquerade those that
//! leave the cluster.
//! [`plan`](plan()) decides from the Nodes and this machine's addresses; [`apply`] alone touches the machine. The loop owns all
//! state; a failed application is repeated, a link that comes back is seen at once ([`watch`]), and everything is
//! looked over now and then, since others may have removed it.

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
use skiff_daemon::{Check, Context, error_chain};
use tokio::time::Instant;
use tracing::{info, warn};

mod apply;
mod conflist;
mod mode;
mod node;
mod plan;
mod watch;

pub use apply::{Error as ApplyError, clean};
pub use mode::{Mode, ModeError};
pub use node::{Node, NodeNetwork};
pub use plan::{Interface, Peer, Plan, Tunnel, Via, plan};
pub use watch::Error as WatchError;

use apply::{Applied, Extent, apply};

/// The VXLAN link. The name is ours alone: what has it and does not fit is replaced.
pub const TUNNEL_LINK: &str = "skiff.vxlan";

/// How often everything is looked over without a reason.
const RESYNC: Duration = Duration::from_secs(60);
/// The first pause after a failure; each further one is twice as long, up to [`RESYNC`].
const RETRY: Duration = Duration::from_millis(500);
/// A link that comes back tells of it in several steps: this long after the first they are acted upon.
const SETTLE: Duration = Duration::from_millis(20);

/// What the overlay of one node needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The name of this node's Node object.
    pub node_name: String,
    /// How packets get to other nodes' pods.
    pub mode: Mode,
    /// The range of all pods: traffic to it is never masqueraded. Without one, only the nodes' own ranges are spared.
    pub cluster_cidr: Vec<IpNet>,
    /// Where the container runtime looks for its network configuration.
    pub cni_config_dir: PathBuf,
    /// Where address leases are kept.
    pub cni_data_dir: PathBuf,
    /// The bridge that this node's pods are joined to.
    pub bridge: String,
    /// The largest packet of pods; what the link to the other nodes leaves room for when absent.
    pub mtu: Option<u32>,
}

impl Config {
    /// The usual places, for a node of this name.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            node_name: node_name.into(),
            mode: Mode::Auto,
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
    /// The kernel does not tell of changes.
    #[error("cannot watch this node's links")]
    Links(#[from] WatchError),
}

/// Keeps this node's routes, rules and CNI configuration as the cluster's Nodes ask, until shutdown.
///
/// It acts in the network namespace of the process. With [`Mode::None`] it removes what it made before, and leaves the
/// node to another CNI.
///
/// # Errors
/// When it cannot go on; everything that may pass is repeated instead.
pub async fn run(config: Config, client: Client, daemon: Context) -> Result<(), Error> {
    let ready = daemon.health.readiness("overlay");
    if config.mode == Mode::None {
        leave(&config, &ready, &daemon).await;
        return Ok(());
    }
    let mut links = watch::Watch::open()?;
    let mut events = pin!(watcher(Api::<Node>::all(client), watcher::Config::default()).default_backoff());
    let mut nodes = Nodes::default();
    let mut pace = Pace::default();
    loop {
        tokio::select! {
            biased;
            () = daemon.shutdown.cancelled() => return Ok(()),
            event = events.next() => match event {
                // Applied when the ready events are all in: a burst costs one application.
                Some(Ok(event)) => {
                    if nodes.take(event) {
                        pace.nodes_changed();
                    }
                }
                Some(Err(error)) => warn!(error = error_chain(&error), "cannot watch nodes: repeated until it works"),
                None => return Err(Error::WatchEnded),
            },
            changed = links.changed(pace.underlay) => {
                changed?;
                pace.links_changed();
            }
            () = pace.due() => {
                let applied = apply(&config, nodes.known.clone(), pace.extent()).await;
                report(&config, &ready, &applied, pace.applied(&applied));
            }
        }
    }
}

/// Removes what is there from an earlier time, and stays away until shutdown.
async fn leave(config: &Config, ready: &Check, daemon: &Context) {
    let mut pause = RETRY;
    loop {
        match clean(config).await {
            Ok(changed) => {
                info!(changed, "the network between nodes is left to another CNI");
                ready.pass();
                return daemon.shutdown.cancelled().await;
            }
            Err(error) => {
                let error = error_chain(&error);
                warn!(error, retry_after = ?pause, "cannot remove the network between nodes");
                ready.fail(error);
            }
        }
        tokio::select! {
            () = daemon.shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(RESYNC),
        }
    }
}

fn report(config: &Config, ready: &Check, applied: &Applied, pause: Duration) {
    let plan = &applied.plan;
    match &applied.result {
        Ok(changed) => {
            if *changed {
                let tunnelled = plan.tunnel.as_ref().map_or(0, |tunnel| tunnel.peers.len());
                info!(pod_ranges = ?plan.own, routes = plan.routes.len(), tunnelled, "network between nodes is set up");
            }
            if plan.own.is_empty() {
                ready.fail(format!("node {} has no podCIDR yet", config.node_name));
            } else if plan.mtu.is_none() {
                let name = &config.node_name;
                ready.fail(format!(
                    "no interface here has an InternalIP of node {name}: is its --node-ip right?"
                ));
            } else {
                ready.pass();
            }
        }
        Err(error) => {
            let error = error_chain(error);
            warn!(error, retry_after = ?pause, "cannot set up the network between nodes");
            ready.fail(error);
        }
    }
}

/// When the machine is looked at next, and how much of it.
#[derive(Debug, Default)]
struct Pace {
    /// Nothing is done before the nodes are known.
    at: Option<Instant>,
    /// When everything was looked at last; `None` when it must be now.
    looked_over: Option<Instant>,
    /// The pause after the last failure; zero after a success.
    pause: Duration,
    underlay: Option<u32>,
    /// The largest packet of pods when everything was looked at last.
    mtu: Option<u32>,
}

impl Pace {
    fn nodes_changed(&mut self) {
        self.at = Some(Instant::now());
        self.looked_over = None;
    }

    fn links_changed(&mut self) {
        self.at = self.at.map(|at| at.min(Instant::now() + SETTLE));
    }

    async fn due(&self) {
        match self.at {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    fn extent(&self) -> Extent {
        match self.looked_over {
            Some(at) if at.elapsed() < RESYNC => Extent::Links,
            _ => Extent::Everything,
        }
    }

    /// Takes the outcome in. Returns how long nothing is done without a reason.
    fn applied(&mut self, applied: &Applied) -> Duration {
        let (now, everything) = (Instant::now(), self.extent() == Extent::Everything);
        self.pause = match applied.result {
            Ok(_) => Duration::ZERO,
            Err(_) => (self.pause * 2).clamp(RETRY, RESYNC),
        };
        let mtu = applied.plan.mtu;
        if everything {
            // Without an address there is no CNI configuration yet: the address that comes must bring it.
            self.looked_over = Some(now).filter(|_| applied.result.is_ok() && mtu.is_some());
            self.mtu = mtu;
        }
        // What is unknown after a failure stays what it was: its link is what is waited for.
        self.underlay = applied.plan.underlay.or(self.underlay);
        let mut next = if self.pause.is_zero() { RESYNC } else { self.pause };
        if applied.result.is_ok() && mtu != self.mtu {
            // The link changed: the CNI configuration follows.
            self.looked_over = None;
            next = Duration::ZERO;
        }
        self.at = Some(now + next);
        next
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
