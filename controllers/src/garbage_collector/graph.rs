//! Who owns whom, over every object of every kind that can be deleted.
//!
//! Only what ownership needs is kept of an object. Owners are known by uid; an owner that was never seen has dependents
//! all the same.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::discovery::Kind;
use crate::view::Key;

pub(super) type Uid = Arc<str>;

pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";
/// So many uids of deleted owners are remembered.
const REMEMBERED: usize = 2000;

/// One owner, as a dependent names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: Uid,
    pub(super) api_version: Arc<str>,
    pub(super) kind: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) blocks: bool,
}

/// How an object that is being deleted goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Going {
    No,
    /// Its dependents are not looked at before it is gone.
    Background,
    /// Waits until the dependents that block it are gone.
    Foreground,
    /// Waits until its dependents have been set free.
    Orphan,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) kind: Arc<Kind>,
    pub(super) key: Key,
    pub(super) owners: Box<[Owner]>,
    pub(super) going: Going,
}

#[derive(Default)]
pub(super) struct Graph {
    nodes: HashMap<Uid, Node>,
    dependents: HashMap<Uid, HashSet<Uid>>,
    /// Owners known to be gone for good; a uid never comes back.
    gone: HashSet<Uid>,
}

/// What an owner's state means for a dependent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Lives, or goes without waiting for the dependent.
    Solid,
    /// Is gone.
    Dangling,
    /// Waits for this dependent to go.
    Waiting,
    /// Not seen: the server must be asked.
    Unknown,
}

impl Going {
    pub(super) fn of(meta: &ObjectMeta) -> Self {
        let has = |name: &str| meta.finalizers.iter().flatten().any(|finalizer| finalizer == name);
        match &meta.deletion_timestamp {
            None => Self::No,
            Some(_) if has(ORPHAN) => Self::Orphan,
            Some(_) if has(FOREGROUND) => Self::Foreground,
            Some(_) => Self::Background,
        }
    }
}

impl Owner {
    pub(super) fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }

    /// What it means for the dependent that the owner goes like this, or stays.
    pub(super) fn standing_when(&self, going: Going) -> Standing {
        if going == Going::Foreground && self.blocks {
            Standing::Waiting
        } else {
            Standing::Solid
        }
    }
}

impl Graph {
    pub(super) fn node(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    pub(super) fn dependents(&self, uid: &str) -> Vec<(Uid, Node)> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| self.nodes.get(uid).map(|node| (Arc::clone(uid), node.clone())))
            .collect()
    }

    pub(super) fn has_dependents(&self, uid: &str) -> bool {
        self.dependents.contains_key(uid)
    }

    /// Takes an object as it is now; returns the uids that have something to do because of it.
    pub(super) fn put(&mut self, kind: &Arc<Kind>, meta: &ObjectMeta) -> Vec<Uid> {
        let Some(uid) = meta.uid.as_deref() else {
            return Vec::new();
        };
        let uid: Uid = self
            .nodes
            .get_key_value(uid)
            .map_or_else(|| uid.into(), |(known, _)| Arc::clone(known));
        let node = Node {
            kind: Arc::clone(kind),
            key: Key::of(meta),
            owners: self.owners(meta),
            going: Going::of(meta),
        };
        let old = self.nodes.remove(&uid);
        let mut work = Vec::new();
        let before = old.as_ref().map(|old| &*old.owners).unwrap_or_default();
        for owner in before
            .iter()
            .filter(|owner| !node.owners.iter().any(|kept| kept.uid == owner.uid))
        {
            self.unlink(&owner.uid, &uid);
            // One dependent less to wait for.
            work.push(Arc::clone(&owner.uid));
        }
        for owner in &node.owners {
            self.dependents
                .entry(Arc::clone(&owner.uid))
                .or_default()
                .insert(Arc::clone(&uid));
        }
        if before
            .iter()
            .any(|owner| owner.blocks && node.owners.iter().any(|now| now.uid == owner.uid && !now.blocks))
        {
            work.extend(before.iter().map(|owner| Arc::clone(&owner.uid)));
        }
        let owners_changed = *before != *node.owners;
        if owners_changed && node.owners.iter().any(|owner| self.standing(owner) != Standing::Solid) {
            work.push(Arc::clone(&uid));
        }
        let was = old.as_ref().map_or(Going::No, |old| old.going);
        if was != node.going && matches!(node.going, Going::Foreground | Going::Orphan) {
            work.push(Arc::clone(&uid));
        }
        self.nodes.insert(uid, node);
        work
    }

    /// Takes the object's end; its dependents have something to do, and owners that waited for it.
    pub(super) fn remove(&mut self, uid: &str) -> Vec<Uid> {
        let Some((uid, node)) = self.nodes.remove_entry(uid) else {
            return Vec::new();
        };
        let mut work: Vec<Uid> = self.dependents.get(&uid).into_iter().flatten().cloned().collect();
        for owner in &node.owners {
            self.unlink(&owner.uid, &uid);
            if self
                .nodes
                .get(&owner.uid)
                .is_some_and(|owner| owner.going == Going::Foreground)
            {
                work.push(Arc::clone(&owner.uid));
            }
        }
        if !work.is_empty() {
            self.remember_gone(uid);
        }
        work
    }

    /// Whether and how the owner stands, as far as is known here.
    pub(super) fn standing(&self, owner: &Owner) -> Standing {
        match self.nodes.get(&owner.uid) {
            Some(node) => owner.standing_when(node.going),
            None if self.gone.contains(&owner.uid) => Standing::Dangling,
            None => Standing::Unknown,
        }
    }

    pub(super) fn remember_gone(&mut self, uid: Uid) {
        if self.gone.len() >= REMEMBERED {
            // Forgetting costs a request for each owner asked about again.
            self.gone.clear();
        }
        self.gone.insert(uid);
    }

    /// The uids of a kind's objects.
    pub(super) fn of_kind(&self, kind: &Arc<Kind>) -> Vec<Uid> {
        self.nodes
            .iter()
            .filter(|(_, node)| Arc::ptr_eq(&node.kind, kind))
            .map(|(uid, _)| Arc::clone(uid))
            .collect()
    }

    /// Who has an owner of this kind that was never seen.
    pub(super) fn missing_owner_of(&self, kind: &Kind) -> Vec<Uid> {
        let is_missing = |owner: &Owner| {
            *owner.kind == *kind.kind && owner.group() == kind.group && !self.nodes.contains_key(&owner.uid)
        };
        self.nodes
            .iter()
            .filter(|(_, node)| node.owners.iter().any(is_missing))
            .map(|(uid, _)| Arc::clone(uid))
            .collect()
    }

    /// The owners that the metadata name.
    pub(super) fn owners(&self, meta: &ObjectMeta) -> Box<[Owner]> {
        meta.owner_references
            .iter()
            .flatten()
            .map(|owner| self.owner(owner))
            .collect()
    }

    fn owner(&self, owner: &OwnerReference) -> Owner {
        let uid = match self.dependents.get_key_value(owner.uid.as_str()) {
            Some((known, _)) => Arc::clone(known),
            None => owner.uid.as_str().into(),
        };
        Owner {
            uid,
            api_version: owner.api_version.as_str().into(),
            kind: owner.kind.as_str().into(),
            name: owner.name.as_str().into(),
            blocks: owner.block_owner_deletion == Some(true),
        }
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn kind() -> Arc<Kind> {
        let (group, version, kind, plural) = ("apps".into(), "v1".into(), "ReplicaSet".into(), "replicasets".into());
        Arc::new(Kind {
            group,
            version,
            kind,
            plural,
            namespaced: true,
            verbs: vec![],
        })
    }

    fn meta(uid: &str, owners: &[(&str, bool)], extra: Value) -> ObjectMeta {
        let owners: Vec<_> = owners
            .iter()
            .map(|(uid, blocks)| json!({"apiVersion": "v1", "kind": "K", "name": uid, "uid": uid, "blockOwnerDeletion": blocks}))
            .collect();
        let mut meta = json!({"name": uid, "namespace": "ns", "uid": uid, "ownerReferences": owners});
        meta.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        serde_json::from_value(meta).unwrap()
    }

    fn going(finalizer: &str) -> Value {
        json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [finalizer]})
    }

    fn sorted(mut uids: Vec<Uid>) -> Vec<String> {
        uids.sort();
        uids.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_end_of_an_owner_is_work_for_its_dependents() {
        let (mut graph, kind) = (Graph::default(), kind());
        assert!(graph.put(&kind, &meta("owner", &[], json!({}))).is_empty());
        assert!(graph.put(&kind, &meta("a", &[("owner", true)], json!({}))).is_empty());
        assert!(graph.put(&kind, &meta("b", &[("owner", true)], json!({}))).is_empty());
        assert_eq!(sorted(graph.remove("owner")), ["a", "b"]);
        let owner = graph.node("a").unwrap().owners[0].clone();
        assert_eq!(graph.standing(&owner), Standing::Dangling);
    }

    #[test]
    fn an_owner_never_seen_must_be_asked_for() {
        let (mut graph, kind) = (Graph::default(), kind());
        assert_eq!(
            sorted(graph.put(&kind, &meta("a", &[("ghost", false)], json!({})))),
            ["a"]
        );
        let owner = graph.node("a").unwrap().owners[0].clone();
        assert_eq!(graph.standing(&owner), Standing::Unknown);
        graph.put(&kind, &meta("ghost", &[], json!({})));
        assert_eq!(graph.standing(&owner), Standing::Solid);
    }

    #[test]
    fn a_foreground_deletion_waits_for_blocking_dependents() {
        let (mut graph, kind) = (Graph::default(), kind());
        graph.put(&kind, &meta("owner", &[], json!({})));
        graph.put(&kind, &meta("a", &[("owner", true)], json!({})));
        graph.put(&kind, &meta("b", &[("owner", false)], json!({})));
        assert_eq!(
            sorted(graph.put(&kind, &meta("owner", &[], going(FOREGROUND)))),
            ["owner"]
        );
        assert!(
            graph.put(&kind, &meta("owner", &[], going(FOREGROUND))).is_empty(),
            "told once"
        );
        let standing = |uid: &str| graph.standing(&graph.node(uid).unwrap().owners[0]);
        assert_eq!((standing("a"), standing("b")), (Standing::Waiting, Standing::Solid));
        assert_eq!(sorted(graph.remove("a")), ["owner"]);
    }

    #[test]
    fn a_reference_taken_away_frees_the_owner() {
        let (mut graph, kind) = (Graph::default(), kind());
        graph.put(&kind, &meta("owner", &[], going(ORPHAN)));
        graph.put(&kind, &meta("a", &[("owner", true)], json!({})));
        assert!(graph.has_dependents("owner"));
        assert_eq!(sorted(graph.put(&kind, &meta("a", &[], json!({})))), ["owner"]);
        assert!(!graph.has_dependents("owner"));
        assert_eq!(graph.of_kind(&kind).len(), 2);
    }
}
