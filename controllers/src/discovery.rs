//! Which kinds the API server serves, for the controllers that act on all of them.

use std::sync::Arc;

use kube::Client;
use kube::core::discovery::v2::APIGroupDiscoveryList;
use skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;

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

/// Asks the server: in two requests, or one for each group version where it is older than aggregated discovery.
pub(crate) async fn discover(client: &Client) -> Result<Discovered, kube::Error> {
    let core = client.list_core_api_versions_aggregated().await?;
    if core.items.is_empty() {
        // Another document than the one asked for: no server is without core resources.
        return discover_one_by_one(client).await;
    }
    let groups = client.list_api_groups_aggregated().await?;
    let mut found = Discovered::default();
    collect(core, &mut found);
    collect(groups, &mut found);
    Ok(found)
}

async fn discover_one_by_one(client: &Client) -> Result<Discovered, kube::Error> {
    let mut found = Discovered::default();
    for version in client.list_core_api_versions().await?.versions {
        let resources = client.list_core_api_resources(&version).await?;
        collect_plain("", &version, resources, &mut found);
    }
    for group in client.list_api_groups().await?.groups {
        // The preferred version first, so that it counts.
        let mut versions = group.versions;
        let preferred = group.preferred_version.map(|preferred| preferred.version);
        versions.sort_by_key(|version| Some(&version.version) != preferred.as_ref());
        for version in versions {
            match client.list_api_group_resources(&version.group_version).await {
                Ok(resources) => collect_plain(&group.name, &version.version, resources, &mut found),
                Err(error) => {
                    tracing::debug!(group = version.group_version, error = %skiff_daemon::error_chain(&error), "a group does not answer");
                    found.stale.push(version.group_version);
                }
            }
        }
    }
    Ok(found)
}

fn collect_plain(group: &str, version: &str, list: APIResourceList, found: &mut Discovered) {
    // `pods/status` is no resource of its own.
    for resource in list
        .resources
        .into_iter()
        .filter(|resource| !resource.name.contains('/'))
    {
        found.add(Kind {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: resource.kind,
            plural: resource.name,
            namespaced: resource.namespaced,
            verbs: resource.verbs,
        });
    }
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
                found.add(Kind {
                    group: group.clone(),
                    version: version.clone(),
                    kind: resource.response_kind.and_then(|kind| kind.kind).unwrap_or_default(),
                    plural: resource.resource.unwrap_or_default(),
                    namespaced: resource.scope.as_deref() == Some("Namespaced"),
                    verbs: resource.verbs,
                });
            }
        }
    }
}

impl Discovered {
    /// Versions come in the server's order of preference: the first that has the resource counts.
    fn add(&mut self, kind: Kind) {
        let known = |known: &Arc<Kind>| known.group == kind.group && known.plural == kind.plural;
        if !self.kinds.iter().any(known) {
            self.kinds.push(Arc::new(kind));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Discovered, collect, collect_plain};

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
    #[test]
    fn an_older_server_says_the_same() {
        let list = json!({"groupVersion": "apps/v1", "resources": [
            {"name": "deployments", "singularName": "", "namespaced": true, "kind": "Deployment", "verbs": ["list"]},
            {"name": "deployments/status", "singularName": "", "namespaced": true, "kind": "Deployment", "verbs": ["get"]},
        ]});
        let mut found = Discovered::default();
        collect_plain("apps", "v1", serde_json::from_value(list).unwrap(), &mut found);
        let paths: Vec<_> = found.kinds.iter().map(|kind| kind.path("ns")).collect();
        assert_eq!(paths, ["/apis/apps/v1/namespaces/ns/deployments"]);
    }
}
