//! What was started, kept in `cluster.json` so that exactly that can be ended.

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};
use skiff_cri::containerd::RUNC;

use crate::process::Process;
use crate::{Error, Result};

/// What a process is for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// containerd.
    Containerd,
    /// `skiff server`.
    Server,
    /// `skiff kubelet`.
    Kubelet,
    /// `skiff proxy`.
    Proxy,
    /// `skiff ingress`.
    Ingress,
}

/// A cluster: its nodes, the port of its API server, its processes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The nodes' names; the first one runs the server.
    pub nodes: Vec<String>,
    /// The API server's port on the machine's loopback.
    pub api_port: u16,
    /// How many segments the LAN has.
    #[serde(default = "one")]
    pub segments: usize,
    /// How packets get to other nodes' pods (`skiff proxy --network`).
    #[serde(default = "auto")]
    pub network: String,
    /// The OCI runtime of every node's containerd.
    #[serde(default = "runc")]
    pub oci_runtime: String,
    /// Nodes that have another address than their number says.
    #[serde(default)]
    pub moved: BTreeMap<String, IpAddr>,
    /// What was started last in each role.
    pub processes: Vec<Started>,
}

/// One process and what it is for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    /// What it is for.
    pub role: Role,
    /// Where it runs.
    pub node: String,
    /// The process.
    #[serde(flatten)]
    pub process: Process,
}

// === impl Role ===

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Containerd => "containerd",
            Self::Server => "server",
            Self::Kubelet => "kubelet",
            Self::Proxy => "proxy",
            Self::Ingress => "ingress",
        })
    }
}

// === impl Record ===

fn one() -> usize {
    1
}

fn auto() -> String {
    "auto".to_owned()
}

fn runc() -> String {
    RUNC.to_owned()
}

impl Default for Record {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            api_port: 0,
            segments: one(),
            network: auto(),
            oci_runtime: runc(),
            moved: BTreeMap::new(),
            processes: Vec::new(),
        }
    }
}

impl Record {
    /// Reads the file; `None` when there is none.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::file("read", path)(error)),
        };
        serde_json::from_slice(&text).map(Some).map_err(|source| Error::Record {
            path: path.to_owned(),
            source,
        })
    }

    /// Writes the file, whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(|source| Error::Record {
            path: path.to_owned(),
            source,
        })?;
        let new = path.with_extension("json.new");
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, path))
            .map_err(Error::file("write", path))
    }

    /// What was started last in this role on this node.
    pub fn process(&self, role: Role, node: &str) -> Option<Process> {
        self.processes
            .iter()
            .find(|started| started.role == role && started.node == node)
            .map(|started| started.process)
    }

    pub(crate) fn set(&mut self, role: Role, node: &str, process: Process) {
        self.processes
            .retain(|started| started.role != role || started.node != node);
        self.processes.push(Started {
            role,
            node: node.to_owned(),
            process,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{Process, Record, Role};

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.json");
        assert_eq!(Record::read(&path).unwrap(), None);
        let mut record = Record {
            nodes: vec!["node-1".into()],
            api_port: 4242,
            ..Record::default()
        };
        record.set(Role::Server, "node-1", Process { pid: 7, start_time: 8 });
        record.set(Role::Server, "node-1", Process { pid: 9, start_time: 10 });
        record.write(&path).unwrap();
        assert_eq!(Record::read(&path).unwrap(), Some(record.clone()));
        assert_eq!(record.processes.len(), 1);
    }

    #[test]
    fn a_record_of_an_earlier_version_is_read() {
        let record: Record = serde_json::from_str(r#"{"nodes":["node-1"],"apiPort":1,"processes":[]}"#).unwrap();
        assert_eq!((record.segments, record.network.as_str()), (1, "auto"));
        assert_eq!(record.oci_runtime, "runc");
    }

    #[test]
    fn a_garbled_record_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.json");
        std::fs::write(&path, "{").unwrap();
        assert!(Record::read(&path).is_err());
    }
}
