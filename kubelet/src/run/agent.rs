//! What the workers of all pods share, put together.

use std::net::IpAddr;
use std::sync::Arc;

use skiff_cri::Runtime;
use tokio::sync::{mpsc, watch};

use super::{Error, machine};
use crate::agent::{Agent, Ids};
use crate::cgroups::{Cgroups, Rules};
use crate::config::Config;
use crate::events::Recorder;
use crate::eviction::Pressure;
use crate::images::Images;
use crate::metrics::Measures;
use crate::node::facts;
use crate::objects::Objects;
use crate::services::Services;
use crate::turns::Turns;
use crate::volumes::{Tokens, Volumes};
use crate::{admission, dns, node};

/// What the workers tell, and what they are told.
pub(super) struct Voices {
    pub(super) events: Recorder,
    pub(super) measures: Arc<Measures>,
    pub(super) pressure: watch::Receiver<Pressure>,
    /// UIDs of pods whose objects have changed.
    pub(super) wake: mpsc::UnboundedSender<String>,
}

pub(super) async fn build(
    config: Config,
    client: kube::Client,
    (runtime, runtime_name): (Arc<dyn Runtime>, String),
    node_ips: Vec<IpAddr>,
    voices: Voices,
) -> Result<Agent, Error> {
    let node_name = config.node_name();
    let root = &config.flags.root_dir;
    let facts = facts::read(root);
    let cgroups = machine::open_cgroups(&config, &runtime).await?;
    let objects = Objects::new(client.clone(), voices.wake);
    let tokens = Tokens::new(client.clone());
    let volumes = Volumes::new(
        root,
        (client.clone(), &node_name),
        voices.events.clone(),
        objects.clone(),
        tokens,
    );
    let kubelet = &config.kubelet;
    let sysctls = kubelet.allowed_unsafe_sysctls.clone();
    Ok(Agent {
        images: Images::new(runtime.clone(), voices.events.clone(), voices.measures.clone(), &config),
        rules: rules(&config, &facts, &cgroups),
        dns: dns_node(&config),
        allocatable: node::allocatable(&config, &facts),
        host: admission::Host::read(sysctls, keeps_groups(&runtime).await),
        turns: Turns::of(facts.cpus),
        seen: Arc::default(),
        ids: Ids::default(),
        services: Services::new(),
        machine: facts,
        events: voices.events,
        measures: voices.measures,
        pressure: voices.pressure,
        node_name,
        node_ips,
        runtime,
        runtime_name,
        client,
        volumes,
        objects,
        cgroups,
        config,
    })
}

/// The node's addresses: those that were given, else that of the default route.
pub(super) fn node_ips(config: &Config) -> Result<Vec<IpAddr>, Error> {
    match config.flags.node_ips.as_slice() {
        [] => Ok(vec![facts::default_ip().ok_or(Error::NoAddress)?]),
        given => Ok(given.to_vec()),
    }
}

/// Whether the runtime keeps to a pod's policy of supplemental groups. One that is too busy to answer now is taken to know as little
/// as an old one: pods are refused, never run wider.
async fn keeps_groups(runtime: &Arc<dyn Runtime>) -> bool {
    let status = runtime.status().await.ok();
    status
        .and_then(|status| status.supplemental_groups_policy)
        .unwrap_or(false)
}

fn rules(config: &Config, facts: &facts::Facts, cgroups: &Cgroups) -> Rules {
    let unified = cgroups.is_unified();
    let limited = config.kubelet.memory_swap.swap_behavior == "LimitedSwap";
    Rules {
        quota: config.kubelet.cpu_cfs_quota,
        period: config.kubelet.cpu_cfs_quota_period.0,
        pids: config.kubelet.pod_pids_limit,
        memory_capacity: facts.memory,
        oom_group: unified && !config.kubelet.single_process_oom_kill.unwrap_or(false),
        page_sizes: facts.hugepages.keys().cloned().collect(),
        swap: cgroups.swap(limited.then_some(facts.swap)),
    }
}

fn dns_node(config: &Config) -> dns::Node {
    let kubelet = &config.kubelet;
    let host = kubelet
        .resolv_conf
        .as_deref()
        .filter(|path| !path.as_os_str().is_empty());
    dns::Node {
        servers: kubelet.cluster_dns.clone(),
        domain: kubelet.cluster_domain.clone(),
        host: host.map(dns::read).unwrap_or_default(),
    }
}
