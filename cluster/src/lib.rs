//! A whole cluster on one machine, each node a network namespace with its own containerd.
//!
//! What `skiff up` and every end-to-end test stand on. [`Cluster::up`] lays out directories ([`layout`]), builds the
//! network ([`network`]), writes credentials and configuration files, and starts the processes ([`process`]): for each node
//! a containerd, a kubelet and a proxy, and on the first node the server. What was started is recorded in `cluster.json`
//! ([`record`]), so that [`Cluster::down`] ends exactly that. No task is left behind in the calling process.

mod configuration;
mod credentials;
mod down;
mod error;
mod images;
pub mod layout;
mod leftovers;
mod network;
pub mod process;
pub mod progress;
pub mod record;
pub mod testing;
mod up;

pub use configuration::cni_program;
pub use error::{Error, Result};
pub use layout::{Layout, NodeLayout};
pub use progress::{Progress, Silent};
pub use record::{Record, Role};
pub use up::Options;

/// A cluster that exists on this machine, running or not.
#[derive(Debug)]
pub struct Cluster {
    layout: Layout,
    record: Record,
}

// === impl Cluster ===

impl Cluster {
    /// The cluster called `name` under `home`.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(home: &std::path::Path, name: &str) -> Result<Self> {
        let layout = Layout::new(home, name)?;
        let record = Record::read(&layout.record())?.ok_or_else(|| Error::NoSuchCluster {
            name: name.to_owned(),
            home: home.to_owned(),
        })?;
        Ok(Self::new(layout, record))
    }

    pub(crate) fn new(layout: Layout, record: Record) -> Self {
        Self {
            layout: layout.with_segments(record.segments),
            record,
        }
    }

    /// The names of all clusters under `home`, in order.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(home: &std::path::Path) -> Result<Vec<String>> {
        layout::names(home)
    }

    /// Where the cluster's files are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What was started.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Whether the server is running.
    pub fn is_running(&self) -> bool {
        self.record
            .process(Role::Server, &self.record.nodes[0])
            .is_some_and(|process| process.is_alive())
    }

    /// A node by its name.
    ///
    /// # Errors
    /// When the cluster has no such node.
    pub fn node(&self, name: &str) -> Result<NodeLayout> {
        self.record
            .nodes
            .iter()
            .position(|node| node == name)
            .map(|index| self.node_at(index))
            .ok_or_else(|| Error::NoSuchNode {
                name: name.to_owned(),
                nodes: self.record.nodes.join(", "),
            })
    }

    /// All nodes, the one with the server first.
    pub fn nodes(&self) -> Vec<NodeLayout> {
        (0..self.record.nodes.len()).map(|index| self.node_at(index)).collect()
    }

    fn node_at(&self, index: usize) -> NodeLayout {
        let mut node = self.layout.node(index);
        node.address = self.record.moved.get(&node.name).copied().unwrap_or(node.address);
        node
    }
}
