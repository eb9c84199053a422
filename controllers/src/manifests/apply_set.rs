//! The set of objects that a directory's manifests made, as KEP-3659 writes it down.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use skiff_api::meta;

use super::merge;
use crate::discovery::{Discovered, Kind};

/// The label of every object of a set: the set's id.
pub(super) const PART_OF: &str = "applyset.kubernetes.io/part-of";
const ID: &str = "applyset.kubernetes.io/id";
const TOOLING: &str = "applyset.kubernetes.io/tooling";
const KINDS: &str = "applyset.kubernetes.io/contains-group-kinds";
const NAMESPACES: &str = "applyset.kubernetes.io/additional-namespaces";
const NAMESPACE: &str = "kube-system";
/// Where the ConfigMaps of sets are.
pub(super) const COLLECTION: &str = "/api/v1/namespaces/kube-system/configmaps";

/// A set, by the ConfigMap that stands for it.
#[derive(Debug)]
pub(super) struct ApplySet {
    name: String,
    id: String,
}

/// A kind in whatever version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GroupKind {
    pub(super) kind: String,
    pub(super) group: String,
}

impl ApplySet {
    /// The set of a server's directory.
    pub(super) fn of(server: IpAddr) -> Self {
        // A name may hold no colons.
        let name = format!("skiff-manifests-{}", server.to_string().replace(':', "-"));
        let digest = Sha256::digest(format!("{name}.{NAMESPACE}.ConfigMap."));
        let id = format!("applyset-{}-v1", URL_SAFE_NO_PAD.encode(digest));
        Self { name, id }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Whether an object with the set's label was made by the set. Controllers copy labels, a Service's to its slices for one: what
    /// counts is that the object's own manifest, noted on it, said so. What a controller has is the controller's.
    pub(super) fn made(&self, kind: &GroupKind, live: &Value) -> bool {
        let is_own = |said: Value| {
            GroupKind::of_object(&said) == *kind
                && meta::namespace(&said) == meta::namespace(live)
                && meta::name(&said) == meta::name(live)
                && meta::label(&said, PART_OF) == Some(&self.id)
        };
        meta::controller_of(live).is_none() && merge::said(live).is_some_and(is_own)
    }

    pub(super) fn path(&self) -> String {
        format!("{COLLECTION}/{}", self.name)
    }

    /// The ConfigMap, when the set holds these kinds in these namespaces.
    pub(super) fn object(&self, kinds: &BTreeSet<GroupKind>, namespaces: &BTreeSet<&str>) -> Value {
        let kinds: Vec<String> = kinds.iter().map(ToString::to_string).collect();
        let other = |namespace: &&str| !namespace.is_empty() && *namespace != NAMESPACE;
        let namespaces: Vec<&str> = namespaces.iter().copied().filter(other).collect();
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": self.name,
                "namespace": NAMESPACE,
                "labels": {ID: self.id},
                "annotations": {
                    TOOLING: "skiff/v1",
                    KINDS: kinds.join(","),
                    NAMESPACES: namespaces.join(","),
                },
            },
        })
    }
}

/// The kinds that a set holds, as its ConfigMap says.
pub(super) fn kinds(parent: &Value) -> BTreeSet<GroupKind> {
    let kinds = meta::annotation(parent, KINDS).unwrap_or_default();
    let named = kinds.split(',').filter(|name| !name.is_empty());
    named.map(GroupKind::parse).collect()
}

// === impl GroupKind ===

impl GroupKind {
    pub(super) fn of(kind: &Kind) -> Self {
        Self {
            kind: kind.kind.clone(),
            group: kind.group.clone(),
        }
    }

    pub(super) fn of_object(object: &Value) -> Self {
        let (group, _) = meta::group_version(meta::api_version(object));
        Self {
            kind: meta::kind(object).to_owned(),
            group: group.to_owned(),
        }
    }

    fn parse(text: &str) -> Self {
        let (kind, group) = text.split_once('.').unwrap_or((text, ""));
        Self {
            kind: kind.to_owned(),
            group: group.to_owned(),
        }
    }

    /// The kind as the server has it.
    pub(super) fn find(&self, served: &Discovered) -> Option<Arc<Kind>> {
        let is = |kind: &&Arc<Kind>| kind.kind == self.kind && kind.group == self.group;
        served.kinds.iter().find(is).cloned()
    }

    /// Whether the kind may be there, but its server does not answer.
    pub(super) fn is_stale(&self, served: &Discovered) -> bool {
        let of_group = |version: &String| version.split('/').next() == Some(self.group.as_str());
        self.find(served).is_none() && served.stale.iter().any(of_group)
    }

    /// Whether other objects cannot be made before it, nor left after it.
    pub(super) fn is_needed_by_others(&self) -> bool {
        matches!(self.kind.as_str(), "Namespace" | "CustomResourceDefinition")
    }
}

impl fmt::Display for GroupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_labels_and_annotations_make_nothing_the_sets() {
        let set = ApplySet::of("192.0.2.1".parse().unwrap());
        let kind = GroupKind::parse("EndpointSlice.discovery.k8s.io");
        let applied = |kind: &str, name: &str, set: &ApplySet| {
            let mut object = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": kind, "metadata": {"namespace": "shop", "name": name},
            });
            merge::label(&mut object, PART_OF, set.id());
            merge::noted(&object)
        };
        let with = |mut object: Value, field: &str, value: Value| {
            object["metadata"][field] = value;
            object
        };
        let own = applied("EndpointSlice", "web", &set);
        let owners =
            |controller: bool| json!([{"kind": "Service", "name": "web", "uid": "u", "controller": controller}]);
        let copied = own["metadata"]["annotations"].clone();
        let cases = [
            ("its own", own.clone(), true),
            ("the label alone", with(own.clone(), "annotations", json!({})), false),
            (
                "a controller's",
                with(own.clone(), "ownerReferences", owners(true)),
                false,
            ),
            ("somebody's", with(own.clone(), "ownerReferences", owners(false)), true),
            (
                "annotations and all",
                with(applied("EndpointSlice", "web-x", &set), "annotations", copied),
                false,
            ),
            ("noted for another kind", applied("Endpoints", "web", &set), false),
            (
                "another set's",
                applied("EndpointSlice", "web", &ApplySet::of("192.0.2.2".parse().unwrap())),
                false,
            ),
        ];
        for (what, mut object, wanted) in cases {
            // An item of a list does not say its kind.
            object["kind"].take();
            assert_eq!(set.made(&kind, &object), wanted, "{what}");
        }
    }

    #[test]
    fn a_set_says_what_it_holds() {
        let set = ApplySet::of("fd00::1".parse().unwrap());
        assert_eq!(set.path(), format!("{COLLECTION}/skiff-manifests-fd00--1"));
        assert!(set.id().len() < 64, "it is a label's value");
        let held = BTreeSet::from(["ConfigMap", "Deployment.apps"].map(GroupKind::parse));
        let object = set.object(&held, &BTreeSet::from(["", "default", "kube-system"]));
        assert_eq!(meta::annotation(&object, KINDS), Some("ConfigMap,Deployment.apps"));
        assert_eq!(meta::annotation(&object, NAMESPACES), Some("default"));
        assert_eq!(kinds(&object), held);
        assert_eq!(kinds(&json!({})), BTreeSet::new());
        // Each server has its own.
        assert_ne!(set.id(), ApplySet::of("fd00::2".parse().unwrap()).id());
    }
}
