//! Which kinds the API server serves, for the controllers that act on all of them.

use std::sync::Arc;

use kube::Client;
use kube::core::discovery::v2::APIGroupDiscoveryList;

/// A kind in the version that the server prefers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) plural: String,
    pub(crate) namespaced: bool,
    pub(crate) verbs: Vec<String>,
}

/// What a discovery found.
#[derive(Debug, Default)]
pub(crate) struct Discovered {
    pub(crate) kinds: Vec<Arc<Kind>>,
    /// Groups whose server did not answer: kinds may be missing.
    pub(crate) stale: Vec<String>,
}

impl Kind {
    pub(crate) fn allows(&self, verb: &str) -> bool {
        self.verbs.iter().any(|allowed| allowed == verb)
    }

    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    pub(crate) fn resource(&self) -> kube::core::ApiResource {
        kube::core::ApiResource {
            group: self.group.clone(),
            version: self.version.clone(),
            api_version: self.api_version(),
            kind: self.kind.clone(),
            plural: self.plural.clone(),
        }
    }

    /// `/apis/apps/v1/namespaces/ns/deployments`.
    pub(crate) fn path(&self, namespace: &str) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis" };
        let api_version = self.api_version();
        if self.namespaced && !namespace.is_empty() {
            format!("{root}/{api_version}/namespaces/{namespace}/{}", self.plural)
        } else {
            format!("{root}/{api_version}/{}", self.plural)
        }
    }
}

/// Asks the server, in two requests.
pub(crate) async fn discover(client: &Client) -> Result<Discovered, kube::Error> {
    let core = client.list_core_api_versions_aggregated().await?;
    let groups = client.list_api_groups_aggregated().await?;
    let mut found = Discovered::default();
    collect(core, &mut found);
    collect(groups, &mut found);
    Ok(found)
}

fn collect(list: APIGroupDiscoveryList, found: &mut Discovered) {
    for item in list.items {
        let group = item.metadata.and_then(|meta| meta.name).unwrap_or_default();
        for served in item.versions {
            let version = served.version.unwrap_or_default();
            if served.freshness.as_deref() == Some("Stale") {
                found.stale.push(format!("{group}/{version}"));
            }
            for resource in served.resources {
                let plural = resource.resource.unwrap_or_default();
                // Versions come in the server's order of preference: the first that has the resource counts.
                if found
                    .kinds
                    .iter()
                    .any(|known| known.group == group && known.plural == plural)
                {
                    continue;
                }
                found.kinds.push(Arc::new(Kind {
                    group: group.clone(),
                    version: version.clone(),
                    kind: resource.response_kind.and_then(|kind| kind.kind).unwrap_or_default(),
                    plural,
                    namespaced: resource.scope.as_deref() == Some("Namespaced"),
                    verbs: resource.verbs,
                }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Discovered, collect};

    #[test]
    fn the_preferred_version_counts() {
        let resource = |name: &str| json!({"resource": name, "responseKind": {"kind": name}, "scope": "Namespaced", "verbs": ["list"]});
        let list = json!({"items": [{"metadata": {"name": "g"}, "versions": [
            {"version": "v2", "resources": [resource("a")]},
            {"version": "v1", "resources": [resource("a"), resource("b")], "freshness": "Stale"},
        ]}]});
        let mut found = Discovered::default();
        collect(serde_json::from_value(list).unwrap(), &mut found);
        let paths: Vec<_> = found.kinds.iter().map(|kind| kind.path("ns")).collect();
        assert_eq!(paths, ["/apis/g/v2/namespaces/ns/a", "/apis/g/v1/namespaces/ns/b"]);
        assert_eq!(found.stale, ["g/v1"]);
    }
}
