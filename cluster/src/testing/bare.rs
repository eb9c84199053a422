//! Machines before they are nodes: each a network namespace with a containerd of its own, and nothing else.

use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;

use skiff_cri::containerd::RUNC;
use skiff_net::netns::Namespace;

use super::COUNTER;
use crate::process::{self, Process};
use crate::up::{check_machine, check_oci_runtime};
use crate::{Cluster, Layout, NodeLayout, Record, Result, Role, configuration, network};

/// Machines on one segment; they go when this is dropped, with whatever runs on them.
#[derive(Debug)]
pub struct BareMachines {
    cluster: Cluster,
    home: tempfile::TempDir,
}

impl BareMachines {
    /// Starts so many.
    ///
    /// # Errors
    /// When a container runtime does not come up.
    pub async fn start(machines: usize) -> Result<Self> {
        check_machine()?;
        check_oci_runtime(RUNC)?;
        let home = tempfile::Builder::new().prefix("skiff-").tempdir();
        let home = home.map_err(crate::Error::file("create a directory in", std::env::temp_dir()))?;
        let name = format!("m{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let layout = Layout::new(home.path(), &name)?;
        let record = Record {
            nodes: (0..machines).map(|index| layout.node(index).name).collect(),
            network: "none".to_owned(),
            ..Record::default()
        };
        std::fs::create_dir_all(layout.directory()).map_err(crate::Error::file("create", layout.directory()))?;
        record.write(&layout.record())?;
        let mut bare = Self {
            cluster: Cluster::new(layout, record),
            home,
        };
        let nodes = bare.machines();
        network::build(bare.cluster.layout(), &nodes)?;
        for node in &nodes {
            configuration::write_runtime(node, RUNC)?;
            bare.start_runtime(node).await?;
        }
        Ok(bare)
    }

    /// All of them.
    pub fn machines(&self) -> Vec<NodeLayout> {
        self.cluster.nodes()
    }

    /// The namespace of a machine's network.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn namespace(&self, machine: &NodeLayout) -> Result<Namespace> {
        network::open(machine)
    }

    /// Runs a program beside the machines, in the namespace that joins them; they reach it at [`Self::lan_address`].
    ///
    /// # Errors
    /// When the system refuses.
    pub fn spawn_beside(&self, command: &mut Command, log: &Path) -> io::Result<Process> {
        let lan = network::open_lan(self.cluster.layout()).map_err(io::Error::other)?;
        process::spawn(&lan, command, log)
    }

    /// Where the machines reach what runs beside them.
    pub fn lan_address() -> std::net::IpAddr {
        crate::layout::gateway(0)
    }

    /// Gives a machine another address beside its own, or takes it away: what a keeper of a shared address does.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn share_address(&self, machine: &NodeLayout, address: std::net::IpAddr, here: bool) -> Result<()> {
        network::share_address(machine, address, here)
    }

    /// Runs a program on a machine.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn spawn(&self, machine: &NodeLayout, command: &mut Command, log: &Path) -> io::Result<Process> {
        let namespace = self.namespace(machine).map_err(io::Error::other)?;
        command.env("XTABLES_LOCKFILE", machine.iptables_lock());
        process::spawn(&namespace, command, log)
    }

    /// Starts a machine's container runtime, with the configuration that is there.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_runtime(&mut self, machine: &NodeLayout) -> Result<()> {
        self.cluster.ensure(Role::Containerd, machine, Path::new(""))?;
        self.cluster.wait_for_socket(machine).await
    }

    /// Ends a machine's container runtime.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn stop_runtime(&self, machine: &NodeLayout) -> io::Result<()> {
        match self.cluster.record().process(Role::Containerd, &machine.name) {
            Some(process) => process.stop(std::time::Duration::from_secs(10)),
            None => Ok(()),
        }
    }
}

impl Drop for BareMachines {
    fn drop(&mut self) {
        super::take_down(self.home.path(), self.cluster.layout().name());
    }
}
