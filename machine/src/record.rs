//! What `init` or `join` found on a machine and did there, for a second run and for `reset`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

mod host;

use crate::{Error, Layout};

/// What a machine is in its cluster.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It began a cluster, or serves one.
    ControlPlane,
    /// It joined one.
    Worker,
}

impl Role {
    /// For a sentence.
    pub fn name(self) -> &'static str {
        match self {
            Self::ControlPlane => "a control plane",
            Self::Worker => "a worker of a cluster",
        }
    }
}

/// `/var/lib/skiff/machine.json`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// What the machine is, or was to become.
    pub role: Role,
    /// The node's name.
    pub node: String,
    /// When the command was first begun, and, once it has, when it ended well.
    pub begun: String,
    /// When it ended well; without it, it was interrupted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed: Option<String>,
    /// The container runtime's socket.
    pub runtime_endpoint: String,
    /// Files and links outside of skiff's own directories that were made.
    #[serde(default)]
    pub made: BTreeSet<PathBuf>,
    /// Files of others that were changed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub replaced: BTreeMap<PathBuf, Replaced>,
    /// What the machine was like before.
    pub before: Host,
}

/// A file of others that was changed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replaced {
    /// What was in it; `None` where there was no file.
    pub before: Option<String>,
    /// What was written.
    pub after: String,
}

/// What a machine holds, as far as skiff may change it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Host {
    /// Network interfaces.
    pub links: BTreeSet<String>,
    /// Named network namespaces.
    pub namespaces: BTreeSet<String>,
    /// Chains of iptables, as `table/chain`.
    pub chains: BTreeSet<String>,
    /// Rules of iptables in others' chains, as `table CHAIN rule`.
    pub rules: BTreeSet<String>,
    /// Routes that skiff's proxy made.
    pub routes: BTreeSet<String>,
    /// Mounts below directories that skiff uses.
    pub mounts: BTreeSet<PathBuf>,
    /// Kernel settings that skiff's processes change.
    pub sysctls: BTreeMap<String, String>,
    /// Directories that skiff would make.
    pub directories: BTreeSet<PathBuf>,
    /// Files in directories that skiff uses, and links of enabled units.
    pub files: BTreeSet<PathBuf>,
}

impl Record {
    /// Reads it; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read or is garbled.
    pub fn read(layout: &Layout) -> Result<Option<Self>, Error> {
        let path = layout.record();
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|source| Error::Record { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file("read", path)(error)),
        }
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, layout: &Layout) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
        Ok(skiff_pki::files::write_private(&layout.record(), text.as_bytes())?)
    }

    /// Notes a file or link that is about to be made outside of skiff's own directories.
    pub(crate) fn note(&mut self, path: &Path, layout: &Layout) -> Result<(), Error> {
        if self.made.insert(path.to_owned()) {
            self.write(layout)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_disk() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        assert_eq!(Record::read(&layout).unwrap(), None);
        let mut record = Record {
            role: Role::Worker,
            node: "n".to_owned(),
            begun: "2026-01-01T00:00:00Z".to_owned(),
            completed: None,
            runtime_endpoint: "unix:///x".to_owned(),
            made: BTreeSet::new(),
            replaced: BTreeMap::new(),
            before: Host::default(),
        };
        record.note(Path::new("/opt/cni/bin/bridge"), &layout).unwrap();
        assert_eq!(Record::read(&layout).unwrap(), Some(record));
        std::fs::write(layout.record(), "{").unwrap();
        assert!(Record::read(&layout).unwrap_err().to_string().contains("skiff reset"));
    }
}
