//! What is served: `/api`, `/apis`, `/apis/<group>`, `/apis/<group>/<version>`, plain and aggregated, and `/version`.
//!
//! Documents are made once; the aggregated ones carry an ETag, so that clients need not fetch them again.

use std::collections::HashMap;
use std::fmt::Write as _;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use skiff_api::resource::Resource;

use crate::body::Body;
use crate::negotiate;
use crate::resources::Resources;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The version of Kubernetes whose behaviour this server has.
const VERSION: (&str, &str) = ("1", "36");

/// The documents.
#[derive(Debug)]
pub struct Discovery {
    plain: HashMap<String, Bytes>,
    aggregated: HashMap<&'static str, (Bytes, String)>,
}

impl Discovery {
    /// Describes `resources`, and `more` that are not stored; `address` is where clients reach the server.
    pub fn new(resources: &Resources, more: &'static [Resource], address: &str) -> Self {
        let all = Described { resources, more };
        let mut plain = HashMap::new();
        let mut put = |path: String, value: &Value| {
            plain.insert(path, to_bytes(value));
        };
        put(
            "/api".to_owned(),
            &json!({
                "kind": "APIVersions",
                "versions": ["v1"],
                "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
            }),
        );
        let mut groups = Vec::new();
        for (group, versions) in all.group_versions() {
            for version in &versions {
                let path = group_version_path(group, version);
                put(path, &resource_list(&all, group, version));
            }
            if group.is_empty() {
                continue;
            }
            let document = group_document(group, &versions);
            let mut single = document.clone();
            single["kind"] = "APIGroup".into();
            single["apiVersion"] = "v1".into();
            put(format!("/apis/{group}"), &single);
            groups.push(document);
        }
        put(
            "/apis".to_owned(),
            &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}),
        );
        put("/version".to_owned(), &version());
        let aggregated = [("/api", true), ("/apis", false)]
            .into_iter()
            .map(|(path, core)| {
                let bytes = to_bytes(&aggregated(&all, core));
                let tag = etag(&bytes);
                (path, (bytes, tag))
            })
            .collect();
        Self { plain, aggregated }
    }

    /// The answer to a discovery path; `None` when the path is none.
    pub fn answer(&self, path: &str, headers: &HeaderMap) -> Option<Response<Body>> {
        let path = if path.len() > 1 {
            path.trim_end_matches('/')
        } else {
            path
        };
        let wants_aggregated = negotiate::wants(
            headers,
            "application/json",
            &[
                ("g", "apidiscovery.k8s.io"),
                ("v", "v2"),
                ("as", "APIGroupDiscoveryList"),
            ],
        );
        if wants_aggregated && let Some((bytes, tag)) = self.aggregated.get(path) {
            let known = headers
                .get(header::IF_NONE_MATCH)
                .is_some_and(|own| own.as_bytes() == tag.as_bytes());
            let mut response = Response::new(if known { Body::Empty } else { Body::from(bytes.clone()) });
            if known {
                *response.status_mut() = StatusCode::NOT_MODIFIED;
            }
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(AGGREGATED));
            headers.insert(header::VARY, HeaderValue::from_static("Accept"));
            if let Ok(tag) = HeaderValue::from_str(tag) {
                headers.insert(header::ETAG, tag);
            }
            return Some(response);
        }
        let bytes = self.plain.get(path)?;
        let mut response = Response::new(Body::from(bytes.clone()));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::VARY, HeaderValue::from_static("Accept"));
        Some(response)
    }
}

/// The path under which a version of a group is served.
pub fn group_version_path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("/api/{version}")
    } else {
        format!("/apis/{group}/{version}")
    }
}

fn etag(bytes: &[u8]) -> String {
    let mut tag = String::from("\"");
    for byte in Sha256::digest(bytes) {
        // Writing into a string does not fail.
        write!(tag, "{byte:02X}").ok();
    }
    tag.push('"');
    tag
}

fn to_bytes(value: &Value) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}

fn version() -> Value {
    let (major, minor) = VERSION;
    json!({
        "major": major,
        "minor": minor,
        "gitVersion": format!("v{major}.{minor}.0+skiff{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, architecture()),
    })
}

/// The architecture as Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// All that is described.
struct Described<'a> {
    resources: &'a Resources,
    more: &'static [Resource],
}

impl Described<'_> {
    fn group_versions(&self) -> Vec<(&'static str, Vec<&'static str>)> {
        let mut groups = self.resources.group_versions();
        for resource in self.more {
            match groups.iter_mut().find(|(group, _)| *group == resource.group) {
                Some((_, versions)) if versions.contains(&resource.version) => {}
                Some((_, versions)) => versions.push(resource.version),
                None => groups.push((resource.group, vec![resource.version])),
            }
        }
        groups
    }

    /// The resources of a version, each with whether it is stored.
    fn of_version(&self, group: &str, version: &str) -> impl Iterator<Item = (&'static Resource, bool)> {
        let served = self.resources.all().iter();
        let served = served.map(|served| (served.resource, served.is_stored()));
        let more = self.more.iter().map(|resource| (resource, false));
        served
            .chain(more)
            .filter(move |(resource, _)| resource.group == group && resource.version == version)
    }
}

fn group_document(group: &str, versions: &[&str]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions.first()})
}

fn resource_list(all: &Described<'_>, group: &str, version: &str) -> Value {
    let mut list = Vec::new();
    for (resource, stored) in all.of_version(group, version) {
        let mut entry = json!({
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": resource.verbs,
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        if stored {
            entry["storageVersionHash"] = etag(resource.api_version().as_bytes())[1..13].into();
        }
        list.push(entry);
        for subresource in resource.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", resource.plural, subresource.name),
                "singularName": "",
                "namespaced": resource.namespaced,
                "kind": subresource.kind,
                "verbs": subresource.verbs,
            });
            if (subresource.group, subresource.version) != (resource.group, resource.version) {
                entry["group"] = subresource.group.into();
                entry["version"] = subresource.version.into();
            }
            list.push(entry);
        }
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list})
}

fn aggregated(all: &Described<'_>, core: bool) -> Value {
    let items: Vec<Value> = all
        .group_versions()
        .into_iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .into_iter()
                .map(|version| {
                    let list: Vec<Value> = all
                        .of_version(group, version)
                        .map(|(resource, _)| aggregated_resource(resource))
                        .collect();
                    json!({"version": version, "resources": list, "freshness": "Current"})
                })
                .collect();
            let metadata = if group.is_empty() {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": group, "creationTimestamp": null})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resource(resource: &Resource) -> Value {
    let subresources: Vec<Value> = resource
        .subresources
        .iter()
        .map(|subresource| {
            json!({
                "subresource": subresource.name,
                "responseKind": {"group": subresource.group, "version": subresource.version, "kind": subresource.kind},
                "verbs": subresource.verbs,
            })
        })
        .collect();
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": {"group": resource.group, "version": resource.version, "kind": resource.kind},
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs,
    });
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    if !subresources.is_empty() {
        entry["subresources"] = subresources.into();
    }
    entry
}
