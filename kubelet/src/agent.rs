//! What all pods' workers share: the node's hands (runtime, volumes, cgroups, images) and voice (API, events).

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use skiff_api::k8s_openapi::api::core::v1::{Node, Pod};
use skiff_api::quantity::Quantity;
use skiff_cri::Runtime;
use tokio::sync::watch;

use crate::admission;
use crate::cgroups::{Cgroups, Rules};
use crate::config::Config;
use crate::dns;
use crate::env::Facts;
use crate::events::Recorder;
use crate::eviction::Pressure;
use crate::images::Images;
use crate::metrics::Measures;
use crate::node::{Seen, facts};
use crate::objects::Objects;
use crate::services::Services;
use crate::turns::Turns;
use crate::volumes::Volumes;

/// How long the API server may take to tell what it has of the node.
const NODE_WITHIN: Duration = Duration::from_secs(5);

/// The node, as a pod's worker sees it.
pub(crate) struct Agent {
    pub(crate) config: Config,
    pub(crate) node_name: String,
    pub(crate) node_ips: Vec<IpAddr>,
    pub(crate) runtime: Arc<dyn Runtime>,
    /// `containerd`: the scheme of container ids in statuses.
    pub(crate) runtime_name: String,
    pub(crate) client: kube::Client,
    pub(crate) events: Recorder,
    pub(crate) images: Images,
    pub(crate) objects: Arc<Objects>,
    pub(crate) services: Arc<Services>,
    pub(crate) volumes: Volumes,
    pub(crate) cgroups: Cgroups,
    pub(crate) rules: Rules,
    pub(crate) dns: dns::Node,
    pub(crate) allocatable: BTreeMap<String, Quantity>,
    /// What this machine is and has.
    pub(crate) machine: facts::Facts,
    pub(crate) measures: Arc<Measures>,
    /// What the node runs short of.
    pub(crate) pressure: watch::Receiver<Pressure>,
    /// What the host can keep of what pods ask for.
    pub(crate) host: admission::Host,
    pub(crate) ids: Ids,
    /// The node in the API.
    pub(crate) seen: Arc<Seen>,
    /// Who may make a sandbox now.
    pub(crate) turns: Turns,
}

/// Which pod a container or sandbox id belongs to: events name only ids.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    pods: RwLock<HashMap<String, Arc<str>>>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent")
            .field("node_name", &self.node_name)
            .finish_non_exhaustive()
    }
}

impl Agent {
    /// What downward references of a pod with these addresses read.
    pub(crate) fn facts(&self, pod_ips: &[String], host_network: bool) -> Facts {
        let node = || self.node_ips.iter().map(ToString::to_string).collect();
        Facts {
            pod_ips: if host_network { node() } else { pod_ips.to_vec() },
            node_ips: self.node_ips.clone(),
            node_name: self.node_name.clone(),
            allocatable: self.allocatable.clone(),
        }
    }

    /// The node as the API has it; while the API server is away, as it was seen last, or with the labels that it is registered with.
    pub(crate) async fn node(&self) -> Arc<Node> {
        let api: kube::Api<Node> = kube::Api::all(self.client.clone());
        match tokio::time::timeout(NODE_WITHIN, api.get(&self.node_name)).await {
            Ok(Ok(node)) => Arc::new(node),
            _ => self.seen.get().unwrap_or_else(|| Arc::new(self.own_labels())),
        }
    }

    fn own_labels(&self) -> Node {
        let mut labels = self.config.flags.node_labels.clone();
        labels.insert("kubernetes.io/hostname".into(), self.node_name.clone());
        labels.insert("kubernetes.io/os".into(), "linux".into());
        let mut node = Node::default();
        node.metadata.labels = Some(labels);
        node
    }

    /// Directory of a pod's log files.
    pub(crate) fn log_dir(&self, pod: &Pod) -> PathBuf {
        let (namespace, name, uid) = (crate::pod::namespace(pod), crate::pod::name(pod), crate::pod::uid(pod));
        self.config
            .kubelet
            .pod_logs_dir
            .join(format!("{namespace}_{name}_{uid}"))
    }
}

impl Ids {
    pub(crate) fn insert(&self, id: &str, uid: &str) {
        if self.pods.read().get(id).is_some_and(|known| **known == *uid) {
            return;
        }
        self.pods.write().insert(id.to_owned(), Arc::from(uid));
    }

    pub(crate) fn pod(&self, id: &str) -> Option<Arc<str>> {
        self.pods.read().get(id).cloned()
    }

    pub(crate) fn forget(&self, uid: &str) {
        self.pods.write().retain(|_, known| **known != *uid);
    }

    /// Keeps of one pod only what `keep` says.
    pub(crate) fn retain(&self, uid: &str, keep: impl Fn(&str) -> bool) {
        self.pods.write().retain(|id, known| **known != *uid || keep(id));
    }
}
