//! What `init` or `join` found on a machine and did there, for a second run and for `reset`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub(crate) mod host;

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
    /// Kernel settings when it ended well: who changes them afterwards is somebody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sysctls_after: Option<BTreeMap<String, String>>,
}

/// What becomes of a kernel setting that is not as it was.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Setting<'a> {
    /// It goes back to this.
    Restore(&'a str),
    /// Somebody has changed it since: it is theirs.
    Theirs,
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

    /// The kernel settings that are not as they were, of those that there are `now`.
    pub(crate) fn settings<'a>(&'a self, now: &BTreeMap<String, String>) -> Vec<(&'a str, Setting<'a>)> {
        let mut differing = Vec::new();
        for (name, before) in &self.before.sysctls {
            let Some(found) = now.get(name).filter(|found| *found != before) else {
                continue;
            };
            // An interrupted run has not noted what it had set.
            let left_by_skiff = self
                .sysctls_after
                .as_ref()
                .is_none_or(|after| after.get(name) == Some(found));
            let becomes = if left_by_skiff {
                Setting::Restore(before)
            } else {
                Setting::Theirs
            };
            differing.push((name.as_str(), becomes));
        }
        differing
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

    impl Record {
        pub(crate) fn for_test(role: Role, completed: Option<&str>) -> Self {
            Self {
                role,
                node: "n".to_owned(),
                begun: "2026-01-01T00:00:00Z".to_owned(),
                completed: completed.map(str::to_owned),
                runtime_endpoint: "unix:///x".to_owned(),
                made: BTreeSet::new(),
                replaced: BTreeMap::new(),
                before: Host::default(),
                sysctls_after: None,
            }
        }
    }

    #[test]
    fn settings_go_back_while_they_are_as_skiff_left_them() {
        let one = |value: &str| BTreeMap::from([("a".to_owned(), value.to_owned())]);
        let cases = [
            (None, "0", None),
            (None, "1", Some(Setting::Restore("0"))),
            (Some("1"), "1", Some(Setting::Restore("0"))),
            (Some("1"), "0", None),
            // Somebody has set it since, whether skiff had or not.
            (Some("1"), "2", Some(Setting::Theirs)),
            (Some("0"), "2", Some(Setting::Theirs)),
        ];
        for (after, now, wanted) in cases {
            let mut record = Record::for_test(Role::Worker, None);
            record.before.sysctls = one("0");
            record.sysctls_after = after.map(one);
            let wanted: Vec<_> = wanted.into_iter().map(|setting| ("a", setting)).collect();
            assert_eq!(record.settings(&one(now)), wanted, "{after:?} {now}");
        }
        // The module that had it is gone.
        let mut record = Record::for_test(Role::Worker, None);
        record.before.sysctls = one("0");
        assert_eq!(record.settings(&BTreeMap::new()), []);
    }

    #[test]
    fn a_record_survives_the_disk() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        assert_eq!(Record::read(&layout).unwrap(), None);
        let mut record = Record::for_test(Role::Worker, None);
        record.note(Path::new("/opt/cni/bin/bridge"), &layout).unwrap();
        assert_eq!(Record::read(&layout).unwrap(), Some(record));
        std::fs::write(layout.record(), "{").unwrap();
        assert!(Record::read(&layout).unwrap_err().to_string().contains("skiff reset"));
    }
}
