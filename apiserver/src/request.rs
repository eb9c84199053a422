//! What a request asks for, read off its method, path and query: the attributes that authorization and the registry go by.

use http::Method;
use percent_encoding::percent_decode_str;
use skiff_api::selector::FieldSelector;

use crate::query::Query;

/// What a request asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether the path names a resource of an API group (else it is `/version`, `/livez` and the like).
    pub is_resource: bool,
    /// The decoded path.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, ... for a resource; the method in lower case otherwise.
    pub verb: &'static str,
    /// API group; empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace; empty when the request has none.
    pub namespace: String,
    /// Plural name of the resource.
    pub resource: String,
    /// Part of the object that is meant, `status` for example.
    pub subresource: String,
    /// Name of the object; empty for a collection.
    pub name: String,
    /// What follows the subresource (proxied paths).
    pub rest: String,
    /// Which objects of a collection are meant; empty for all.
    pub field_selector: String,
    /// Whether the path names no object (`name` may still be set, from a field selector).
    pub is_collection: bool,
}

impl RequestInfo {
    /// Reads the attributes off a request line.
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let mut info = Self {
            path: percent_decode_str(path).decode_utf8_lossy().into_owned(),
            verb: plain_verb(method),
            ..Self::default()
        };
        let segments: Vec<String> = path
            .trim_matches('/')
            .split('/')
            .map(|segment| percent_decode_str(segment).decode_utf8_lossy().into_owned())
            .collect();
        let mut parts = match segments.first().map(String::as_str) {
            Some("api") if segments.len() > 2 => {
                info.version.clone_from(&segments[1]);
                &segments[2..]
            }
            Some("apis") if segments.len() > 3 => {
                info.group.clone_from(&segments[1]);
                info.version.clone_from(&segments[2]);
                &segments[3..]
            }
            _ => return info,
        };
        info.is_resource = true;
        info.verb = resource_verb(method);
        // The old way to watch: /api/v1/watch/...
        if parts[0] == "watch" && parts.len() > 1 {
            info.verb = "watch";
            parts = &parts[1..];
        }
        if parts[0] == "namespaces" && parts.len() > 1 {
            info.namespace.clone_from(&parts[1]);
            // Behind a namespace stands a resource, unless it is a subresource of the namespace itself.
            if parts.len() > 2 && !matches!(parts[2].as_str(), "status" | "finalize") {
                parts = &parts[2..];
            }
        }
        info.resource.clone_from(&parts[0]);
        if let Some(name) = parts.get(1) {
            info.name.clone_from(name);
        }
        if let Some(subresource) = parts.get(2) {
            info.subresource.clone_from(subresource);
        }
        if parts.len() > 3 {
            info.rest = parts[3..].join("/");
        }
        info.is_collection = info.name.is_empty();
        info.verb = match info.verb {
            "get" if query.flag("watch") && info.subresource.is_empty() => "watch",
            "get" if info.is_collection => "list",
            "delete" if info.is_collection => "deletecollection",
            verb => verb,
        };
        if info.is_collection && matches!(info.verb, "list" | "watch" | "deletecollection") {
            // A selector for one name is a request for that name: lets a rule with resourceNames allow it.
            if let Some(selector) = query.get("fieldSelector") {
                info.name = single_name(selector).unwrap_or_default();
                selector.clone_into(&mut info.field_selector);
            }
        }
        info
    }

    /// Whether the request only reads.
    pub fn is_read_only(&self) -> bool {
        matches!(self.verb, "get" | "list" | "watch" | "head" | "options")
    }

    /// Whether the request lasts as long as its client likes: watches and streams into containers.
    pub fn is_long_running(&self) -> bool {
        self.verb == "watch"
            || matches!(
                self.subresource.as_str(),
                "attach" | "exec" | "proxy" | "log" | "portforward"
            )
    }
}

fn plain_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "",
    }
}

fn resource_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// The name that a field selector pins its objects to. Read by the parser that the list goes by: what is authorized must be what
/// is shown.
fn single_name(selector: &str) -> Option<String> {
    let selector = FieldSelector::parse(selector).ok()?;
    selector
        .exact("metadata.name")
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::RequestInfo;
    use crate::query::Query;

    fn parse(method: Method, uri: &str) -> RequestInfo {
        let (path, query) = uri
            .split_once('?')
            .map_or((uri, None), |(path, query)| (path, Some(query)));
        RequestInfo::parse(&method, path, &Query::parse(query))
    }

    #[test]
    fn attributes_are_read_off_the_request_line() {
        // method, uri, verb, group, version, namespace, resource, subresource, name
        type Case = (Method, &'static str, [&'static str; 7]);
        let cases: &[Case] = &[
            (
                Method::GET,
                "/api/v1/namespaces",
                ["list", "", "v1", "", "namespaces", "", ""],
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a",
                ["get", "", "v1", "a", "namespaces", "", "a"],
            ),
            (
                Method::PUT,
                "/api/v1/namespaces/a/finalize",
                ["update", "", "v1", "a", "namespaces", "finalize", "a"],
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a/pods",
                ["list", "", "v1", "a", "pods", "", ""],
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a/pods?watch=true",
                ["watch", "", "v1", "a", "pods", "", ""],
            ),
            (
                Method::GET,
                "/api/v1/watch/namespaces/a/pods/x",
                ["watch", "", "v1", "a", "pods", "", "x"],
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a/pods/x/log",
                ["get", "", "v1", "a", "pods", "log", "x"],
            ),
            (
                Method::POST,
                "/api/v1/namespaces/a/pods",
                ["create", "", "v1", "a", "pods", "", ""],
            ),
            (
                Method::DELETE,
                "/api/v1/namespaces/a/pods",
                ["deletecollection", "", "v1", "a", "pods", "", ""],
            ),
            (
                Method::DELETE,
                "/api/v1/namespaces/a/pods/x",
                ["delete", "", "v1", "a", "pods", "", "x"],
            ),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/a/deployments/x/scale",
                ["patch", "apps", "v1", "a", "deployments", "scale", "x"],
            ),
            (
                Method::GET,
                "/api/v1/nodes?fieldSelector=metadata.name%3Dn1",
                ["list", "", "v1", "", "nodes", "", "n1"],
            ),
            (
                Method::GET,
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                [
                    "get",
                    "rbac.authorization.k8s.io",
                    "v1",
                    "",
                    "clusterroles",
                    "",
                    "system:node",
                ],
            ),
        ];
        for (method, uri, expected) in cases {
            let info = parse(method.clone(), uri);
            let actual = [
                info.verb,
                &info.group,
                &info.version,
                &info.namespace,
                &info.resource,
                &info.subresource,
                &info.name,
            ];
            assert!(info.is_resource, "{uri}");
            assert_eq!(actual, *expected, "{method} {uri}");
        }
    }

    #[test]
    fn a_name_inside_of_another_value_is_none() {
        let info = parse(
            Method::GET,
            "/api/v1/pods?fieldSelector=spec.nodeName!%3Dx%5C%2Cmetadata.name%3Da",
        );
        assert_eq!(info.name, "");
    }

    #[test]
    fn other_paths_are_no_resources() {
        for uri in [
            "/",
            "/api",
            "/api/v1",
            "/apis/apps",
            "/apis/apps/v1",
            "/livez",
            "/version",
        ] {
            assert!(!parse(Method::GET, uri).is_resource, "{uri}");
        }
    }

    #[test]
    fn proxied_paths_keep_their_rest() {
        let info = parse(Method::GET, "/api/v1/nodes/n1/proxy/logs/a/b");
        assert_eq!((info.subresource.as_str(), info.rest.as_str()), ("proxy", "logs/a/b"));
    }
}
