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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// As `kubectl api-resources -o wide` shows them, with subresources.
    #[test]
    fn table() {
        let mut lines = Vec::new();
        for r in builtin() {
            let names = r.short_names.join(",");
            let categories = r.categories.join(",");
            let scope = if r.namespaced { "namespaced" } else { "cluster" };
            let verbs = r.verbs.join(",");
            lines.push(format!(
                "{} {} {} {} [{names}] [{categories}] {scope} {verbs}",
                r.api_version(),
                r.plural,
                r.singular,
                r.kind
            ));
            for s in r.subresources {
                let gv = if s.group.is_empty() {
                    s.version.to_owned()
                } else {
                    format!("{}/{}", s.group, s.version)
                };
                lines.push(format!("  /{} {gv} {} {}", s.name, s.kind, s.verbs.join(",")));
            }
        }
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn lookups() {
        assert_eq!(lookup("apps", "v1", "deployments").unwrap().kind, "Deployment");
        assert_eq!(for_kind("", "v1", "Pod").unwrap().plural, "pods");
        assert_eq!(lookup("", "v1", "deployments"), None);
        let pods = lookup("", "v1", "pods").unwrap();
        assert_eq!(pods.subresource("eviction").unwrap().group, "policy");
        assert!(pods.allows("watch") && !lookup("", "v1", "bindings").unwrap().allows("get"));
        let mut seen = HashSet::new();
        for r in builtin() {
            assert!(seen.insert((r.group, r.version, r.plural)), "{} twice", r.plural);
            assert!(
                r.verbs.is_sorted() && r.subresources.iter().all(|s| s.verbs.is_sorted()),
                "{}",
                r.plural
            );
            assert!(r.subresources.is_sorted_by_key(|s| s.name), "{}", r.plural);
        }
    }
}
