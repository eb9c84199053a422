//! What is known of the cluster: Services with their slices, and which of them changed. Owned by one task.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{Node, Service, Slice};

/// `namespace/name` of a Service.
pub(crate) type Key = Arc<str>;

/// A change as a watch tells it, reduced to what is kept.
#[derive(Debug)]
pub(crate) enum Change {
    /// The list of all Services begins.
    ServicesBegin,
    /// A Service, changed or listed; without rules of its own when absent.
    Service {
        name: String,
        service: Option<Service>,
        listed: bool,
    },
    /// A Service is gone.
    ServiceGone(String),
    /// The list of all Services is complete.
    ServicesDone,
    /// The list of all slices begins.
    SlicesBegin,
    /// A slice of a Service, changed or listed.
    Slice {
        name: String,
        service: Option<String>,
        slice: Slice,
        /// Addresses in it that nothing is sent to.
        refused: Vec<String>,
        listed: bool,
        triggered: Option<f64>,
    },
    /// A slice is gone.
    SliceGone(String),
    /// The list of all slices is complete.
    SlicesDone,
    /// Where Services get their addresses from, or nothing when the server does not say.
    Ranges(Vec<IpNet>),
    /// This node, as far as the server tells of it.
    Node(Node),
}

/// A Service and its slices; either may come first.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub(crate) service: Option<Service>,
    slices: BTreeMap<Box<str>, Slice>,
}

impl Entry {
    pub(crate) fn slices(&self) -> impl Iterator<Item = &Slice> + Clone {
        self.slices.values()
    }
}

/// All Services.
#[derive(Debug, Default)]
pub(crate) struct Index {
    entries: HashMap<Key, Entry>,
    /// Which Service each slice was last a part of.
    owners: HashMap<Box<str>, Key>,
    dirty: HashSet<Key>,
    /// When the changes in `dirty` began, as far as their slices say so.
    triggers: Vec<f64>,
    services_listed: Option<HashSet<String>>,
    slices_listed: Option<HashSet<String>>,
    services_known: bool,
    slices_known: bool,
    ranges: Option<Vec<IpNet>>,
    node: Option<Node>,
}

impl Index {
    /// Whether all lists have been read: before, rules would be made of half of the truth.
    pub(crate) fn is_complete(&self) -> bool {
        self.services_known && self.slices_known && self.ranges.is_some() && self.node.is_some()
    }

    /// Where Services get their addresses from.
    pub(crate) fn ranges(&self) -> &[IpNet] {
        self.ranges.as_deref().unwrap_or_default()
    }

    /// This node, once the server has told of it.
    pub(crate) fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Whether all that changed are Services without any slice yet.
    pub(crate) fn waits_for_endpoints(&self) -> bool {
        self.dirty
            .iter()
            .all(|key| self.entries.get(key).is_some_and(|entry| entry.slices.is_empty()))
    }

    /// Services that changed, no more than `limit` of them, and when the changes since the last call began.
    pub(crate) fn take_dirty(&mut self, limit: usize) -> (Vec<Key>, Vec<f64>) {
        let keys: Vec<_> = self.dirty.iter().take(limit).cloned().collect();
        keys.iter().for_each(|key| drop(self.dirty.take(key)));
        (keys, std::mem::take(&mut self.triggers))
    }

    /// A Service that has rules, with its slices.
    pub(crate) fn get(&self, key: &str) -> Option<(&Service, &Entry)> {
        let entry = self.entries.get(key)?;
        Some((entry.service.as_ref()?, entry))
    }

    /// All Services that have rules, by name.
    pub(crate) fn all(&self) -> Vec<(&Key, &Service, &Entry)> {
        let mut all: Vec<_> = self
            .entries
            .iter()
            .filter_map(|(key, entry)| Some((key, entry.service.as_ref()?, entry)))
            .collect();
        all.sort_by_key(|(key, ..)| *key);
        all
    }

    /// Takes a change in.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::ServicesBegin => self.services_listed = Some(HashSet::new()),
            Change::SlicesBegin => self.slices_listed = Some(HashSet::new()),
            Change::Service { name, service, listed } => {
                if let (true, Some(seen)) = (listed, &mut self.services_listed) {
                    seen.insert(name.clone());
                }
                self.set_service(&name, service);
            }
            Change::ServiceGone(name) => self.set_service(&name, None),
            Change::Slice {
                name,
                service,
                slice,
                listed,
                triggered,
                ..
            } => {
                if let (true, Some(seen)) = (listed, &mut self.slices_listed) {
                    seen.insert(name.clone());
                }
                let changed = self.set_slice(&name, service.map(|service| (service, slice)));
                // A list tells of the past: how long ago says nothing of us.
                self.triggers.extend(triggered.filter(|_| changed && !listed));
            }
            Change::SliceGone(name) => {
                self.set_slice(&name, None);
            }
            Change::Ranges(ranges) => self.ranges = Some(ranges),
            Change::Node(node) => self.node = Some(node),
            Change::ServicesDone => {
                self.services_known = true;
                if let Some(seen) = self.services_listed.take() {
                    let known = self
                        .entries
                        .iter()
                        .filter(|(_, entry)| entry.service.is_some())
                        .map(|(key, _)| key.clone());
                    let gone: Vec<_> = known.filter(|key| !seen.contains(&**key)).collect();
                    gone.iter().for_each(|key| self.set_service(key, None));
                }
            }
            Change::SlicesDone => {
                self.slices_known = true;
                if let Some(seen) = self.slices_listed.take() {
                    let gone: Vec<_> = self
                        .owners
                        .keys()
                        .filter(|name| !seen.contains(&***name))
                        .cloned()
                        .collect();
                    for name in gone {
                        self.set_slice(&name, None);
                    }
                }
            }
        }
    }

    fn set_service(&mut self, name: &str, service: Option<Service>) {
        let present = self.entries.get(name).and_then(|entry| entry.service.as_ref());
        if present == service.as_ref() {
            return;
        }
        let key = self.key(name);
        self.entries.entry(key.clone()).or_default().service = service;
        self.forget_if_empty(&key);
        self.dirty.insert(key);
    }

    /// Puts a slice under its Service, and takes it from another. Returns whether something changed.
    fn set_slice(&mut self, name: &str, slice: Option<(String, Slice)>) -> bool {
        let mut changed = false;
        if let Some(owner) = self.owners.get(name).cloned()
            && slice.as_ref().is_none_or(|(service, _)| **service != *owner)
        {
            self.owners.remove(name);
            if let Some(entry) = self.entries.get_mut(&owner) {
                entry.slices.remove(name);
            }
            self.forget_if_empty(&owner);
            self.dirty.insert(owner);
            changed = true;
        }
        let Some((service, slice)) = slice else { return changed };
        let key = self.key(&service);
        let entry = self.entries.entry(key.clone()).or_default();
        if entry.slices.get(name) != Some(&slice) {
            entry.slices.insert(name.into(), slice);
            self.owners.insert(name.into(), key.clone());
            self.dirty.insert(key);
            changed = true;
        }
        changed
    }

    /// The one copy of a name.
    fn key(&self, name: &str) -> Key {
        self.entries
            .get_key_value(name)
            .map_or_else(|| name.into(), |(key, _)| key.clone())
    }

    fn forget_if_empty(&mut self, key: &Key) {
        if self
            .entries
            .get(key)
            .is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty())
        {
            self.entries.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(port: u16) -> Service {
        Service {
            cluster_ip: "10.96.0.1".parse().unwrap(),
            ports: [crate::model::Port {
                name: "".into(),
                protocol: crate::model::Protocol::Tcp,
                port,
                node_port: 0,
            }]
            .into(),
            affinity: None,
            external_local: false,
            internal_local: false,
            outside: None,
        }
    }

    fn put(index: &mut Index, name: &str, port: u16, listed: bool) {
        index.apply(Change::Service {
            name: name.into(),
            service: Some(service(port)),
            listed,
        });
    }

    fn slice(index: &mut Index, name: &str, owner: &str, ports: usize) {
        let port = crate::model::SlicePort {
            name: "".into(),
            protocol: crate::model::Protocol::Tcp,
            port: 80,
        };
        let slice = Slice {
            ports: vec![port; ports].into(),
            endpoints: [].into(),
        };
        index.apply(Change::Slice {
            name: name.into(),
            service: Some(owner.into()),
            slice,
            refused: Vec::new(),
            listed: false,
            triggered: None,
        });
    }

    fn dirty(index: &mut Index) -> Vec<String> {
        let mut keys: Vec<_> = index.take_dirty(usize::MAX).0.iter().map(ToString::to_string).collect();
        keys.sort();
        keys
    }

    #[test]
    fn only_real_changes_are_dirty() {
        let mut index = Index::default();
        put(&mut index, "n/a", 80, false);
        assert_eq!(dirty(&mut index), ["n/a"]);
        put(&mut index, "n/a", 80, false);
        slice(&mut index, "n/a-1", "n/a", 1);
        assert_eq!(dirty(&mut index), ["n/a"]);
        slice(&mut index, "n/a-1", "n/a", 1);
        assert!(dirty(&mut index).is_empty());
        // A slice that moves changes both.
        slice(&mut index, "n/a-1", "n/b", 1);
        assert_eq!(dirty(&mut index), ["n/a", "n/b"]);
        index.apply(Change::SliceGone("n/a-1".into()));
        index.apply(Change::ServiceGone("n/a".into()));
        assert_eq!(dirty(&mut index), ["n/a", "n/b"]);
        assert!(index.entries.is_empty() && index.owners.is_empty());
    }

    #[test]
    fn what_a_new_list_lacks_is_gone() {
        let mut index = Index::default();
        for (names, wanted) in [(vec!["n/a", "n/b"], vec!["n/a", "n/b"]), (vec!["n/b"], vec!["n/a"])] {
            index.apply(Change::ServicesBegin);
            names.iter().for_each(|name| put(&mut index, name, 80, true));
            index.apply(Change::ServicesDone);
            assert_eq!(dirty(&mut index), wanted);
        }
        assert!(!index.is_complete());
        index.apply(Change::SlicesBegin);
        index.apply(Change::SlicesDone);
        index.apply(Change::Ranges(Vec::new()));
        assert!(!index.is_complete());
        index.apply(Change::Node(Node::default()));
        assert!(index.is_complete());
        assert_eq!(index.all().len(), 1);
    }
}
