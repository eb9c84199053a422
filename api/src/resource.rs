//! The resources that are served: what discovery shows, and how paths become kinds.

use crate::status::Qualified;

mod builtin;

/// A resource of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// API group; empty for core.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Name in paths.
    pub plural: &'static str,
    /// Name for people.
    pub singular: &'static str,
    /// Kind of its objects.
    pub kind: &'static str,
    /// What kubectl users may type instead.
    pub short_names: &'static [&'static str],
    /// Groups of resources that it belongs to, such as `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Subresources.
    pub subresources: &'static [Subresource],
    /// Verbs, sorted.
    pub verbs: &'static [&'static str],
}

/// A subresource, such as `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// Last part of the path.
    pub name: &'static str,
    /// Group of the kind that goes over the wire.
    pub group: &'static str,
    /// Version of that kind.
    pub version: &'static str,
    /// The kind.
    pub kind: &'static str,
    /// Verbs, sorted.
    pub verbs: &'static [&'static str],
}

impl Resource {
    /// `apps/v1`, or `v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The resource as statuses name it.
    pub fn qualified(&self) -> Qualified<'static> {
        Qualified::new(self.group, self.plural)
    }

    /// The kind as statuses name it.
    pub fn qualified_kind(&self) -> Qualified<'static> {
        Qualified::new(self.group, self.kind)
    }

    /// Whether the verb can be used.
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
}

/// Every built-in resource, in the order of discovery.
pub fn builtin() -> &'static [Resource] {
    builtin::RESOURCES
}

/// The built-in resource of that path.
pub fn lookup(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    builtin()
        .iter()
        .find(|r| r.plural == plural && r.group == group && r.version == version)
}

/// The built-in resource whose objects are of that kind.
pub fn for_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    builtin()
        .iter()
        .find(|r| r.kind == kind && r.group == group && r.version == version)
}
