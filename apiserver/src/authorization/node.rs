//! What a node's agent may do: work for its own node, and read what the pods bound to that node name.
//!
//! The documented Node authorization mode. Who a pod belongs to is looked up in the watch cache at the moment of the request: there
//! is no second record of it that could lag behind.

use std::sync::Arc;

pub use skiff_api::nodes::GROUP as NODES;
use skiff_api::nodes::node_of;
use skiff_api::selector::FieldSelector;

use super::Attributes;
use crate::authentication::User;
use crate::cache::{Cache, Object};
use crate::pod_references::{Referenced, refers};

/// Where nodes keep their leases.
pub const LEASES: &str = "kube-node-lease";

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["patch", "update"];
const EVENT: &[&str] = &["create", "patch", "update"];
const REQUEST: &[&str] = &["create", "get", "list", "watch"];
const OWN: &[&str] = &["create", "delete", "get", "patch", "update"];

/// What every node may do; admission (`NodeRestriction`) narrows the writes to the node's own objects.
const RULES: &[(&str, &str, &[&str])] = &[
    ("authentication.k8s.io", "tokenreviews", &["create"]),
    ("authorization.k8s.io", "subjectaccessreviews", &["create"]),
    ("authorization.k8s.io", "localsubjectaccessreviews", &["create"]),
    ("", "services", READ),
    ("", "endpoints", &["get"]),
    ("", "nodes", &["create", "patch", "update"]),
    ("", "nodes/status", WRITE),
    ("", "pods", &["create", "delete"]),
    ("", "pods/status", WRITE),
    ("", "pods/eviction", &["create"]),
    ("", "events", EVENT),
    ("events.k8s.io", "events", EVENT),
    ("certificates.k8s.io", "certificatesigningrequests", REQUEST),
    ("storage.k8s.io", "csidrivers", READ),
    ("node.k8s.io", "runtimeclasses", READ),
];

/// The caches that tell what belongs to a node.
#[derive(Debug)]
pub struct NodeSources {
    /// `pods`
    pub pods: Arc<Cache>,
    /// `persistentvolumes`
    pub volumes: Arc<Cache>,
}

/// Decides for nodes.
#[derive(Debug)]
pub(super) struct NodeAuthorizer {
    sources: NodeSources,
}

/// The node whose agent a user is.
pub fn node_name(user: &User) -> Option<&str> {
    node_of(&user.name, &user.groups)
}

/// Whether a pod, as cached, is bound to a node.
fn is_on(pods: &Cache, pod: &Object, node: &str) -> bool {
    pod.field(pods.strategy(), "spec.nodeName")
        .is_some_and(|name| name == node)
}

impl NodeAuthorizer {
    pub(super) fn new(sources: NodeSources) -> Self {
        Self { sources }
    }

    /// Whether a node's agent may; false for everybody else.
    pub(super) fn is_allowed(&self, user: &User, attributes: &Attributes<'_>) -> bool {
        let Some(node) = node_name(user).filter(|_| attributes.is_resource) else {
            return false;
        };
        let Attributes { verb, name, .. } = *attributes;
        let reads = READ.contains(&verb);
        match (attributes.group, attributes.resource, attributes.subresource) {
            ("", "secrets", "") => reads && self.named(node, attributes, Referenced::Secret),
            ("", "configmaps", "") => reads && self.named(node, attributes, Referenced::ConfigMap),
            ("", "persistentvolumeclaims", "") => verb == "get" && self.named(node, attributes, Referenced::Claim),
            ("", "persistentvolumes", "") => verb == "get" && self.claimed(node, name),
            ("", "serviceaccounts", "token") => {
                verb == "create" && self.named(node, attributes, Referenced::ServiceAccount)
            }
            ("", "serviceaccounts", "") => verb == "get" && self.named(node, attributes, Referenced::ServiceAccount),
            ("", "nodes", "") if reads => name == node,
            ("", "pods", "") if reads => self.reads_pods(node, attributes),
            ("coordination.k8s.io", "leases", "") => {
                attributes.namespace == LEASES && OWN.contains(&verb) && (name == node || verb == "create")
            }
            ("storage.k8s.io", "csinodes", "") => OWN.contains(&verb) && (name == node || verb == "create"),
            _ => by_rule(attributes),
        }
    }

    /// Whether a pod of the node names the one object that is asked for.
    fn named(&self, node: &str, attributes: &Attributes<'_>, kind: Referenced) -> bool {
        let Attributes { namespace, name, .. } = *attributes;
        !namespace.is_empty() && !name.is_empty() && self.has_pod(node, namespace, kind, name)
    }

    fn has_pod(&self, node: &str, namespace: &str, kind: Referenced, name: &str) -> bool {
        let pods = &self.sources.pods;
        (pods.all(namespace).iter())
            .filter(|pod| is_on(pods, pod, node))
            .any(|pod| refers(&pod.value(), kind, name))
    }

    /// Whether a pod of the node names the claim that a volume is bound to.
    fn claimed(&self, node: &str, volume: &str) -> bool {
        let Some(volume) = self.sources.volumes.get("", volume) else {
            return false;
        };
        let volume = volume.value();
        let [namespace, name] =
            ["namespace", "name"].map(|key| volume["spec"]["claimRef"][key].as_str().unwrap_or_default());
        !namespace.is_empty() && self.has_pod(node, namespace, Referenced::Claim, name)
    }

    fn reads_pods(&self, node: &str, attributes: &Attributes<'_>) -> bool {
        let pods = &self.sources.pods;
        if attributes.verb == "get" {
            // That a pod does not exist is no secret, and tells the agent to end it.
            return (pods.get(attributes.namespace, attributes.name)).is_none_or(|pod| is_on(pods, &pod, node));
        }
        FieldSelector::parse(attributes.field_selector)
            .is_ok_and(|selector| selector.exact("spec.nodeName") == Some(node))
    }
}

fn by_rule(attributes: &Attributes<'_>) -> bool {
    RULES.iter().any(|(group, resource, verbs)| {
        let (plural, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        *group == attributes.group
            && plural == attributes.resource
            && subresource == attributes.subresource
            && verbs.contains(&attributes.verb)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cache::tests::filled;

    /// A pod in `default`, bound to a node, that names one of each.
    fn pod(node: &str, named: &str) -> Value {
        json!({"metadata": {"namespace": "default", "name": format!("on-{node}")}, "spec": {
            "nodeName": node, "serviceAccountName": named,
            "containers": [{"name": "c", "envFrom": [{"configMapRef": {"name": named}}]}],
            "volumes": [
                {"name": "s", "secret": {"secretName": named}},
                {"name": "v", "persistentVolumeClaim": {"claimName": named}},
            ],
        }})
    }

    fn volume(name: &str, claim: Value) -> Value {
        json!({"metadata": {"name": name}, "spec": {"claimRef": claim}})
    }

    fn authorizer() -> NodeAuthorizer {
        let claim = |namespace: &str, name: &str| json!({"namespace": namespace, "name": name});
        let volumes = [
            volume("mine", claim("default", "mine")),
            volume("theirs", claim("default", "theirs")),
            volume("elsewhere", claim("other", "mine")),
            volume("nobodys", Value::Null),
        ];
        NodeAuthorizer::new(NodeSources {
            pods: filled("", "pods", &[pod("n1", "mine"), pod("n2", "theirs")]),
            volumes: filled("", "persistentvolumes", &volumes),
        })
    }

    fn asks(
        verb: &'static str,
        resource: &'static str,
        (namespace, name): (&'static str, &'static str),
    ) -> Attributes<'static> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            verb,
            is_resource: true,
            resource,
            subresource,
            namespace,
            name,
            ..Attributes::default()
        }
    }

    /// Without the roles that nodes hold beside it.
    #[test]
    fn a_node_reads_what_its_own_pods_name() {
        let authorizer = authorizer();
        let node = User::new("system:node:n1", [NODES]);
        for (verb, resource, named, allowed) in [
            ("get", "secrets", ("default", "mine"), true),
            ("watch", "secrets", ("default", "mine"), true),
            ("get", "secrets", ("default", "theirs"), false),
            ("get", "secrets", ("other", "mine"), false),
            ("list", "secrets", ("default", ""), false),
            ("update", "secrets", ("default", "mine"), false),
            ("get", "configmaps", ("default", "mine"), true),
            ("get", "configmaps", ("default", "theirs"), false),
            ("get", "persistentvolumeclaims", ("default", "mine"), true),
            ("get", "persistentvolumeclaims", ("default", "theirs"), false),
            ("get", "persistentvolumeclaims", ("other", "mine"), false),
            ("list", "persistentvolumeclaims", ("default", "mine"), false),
            ("update", "persistentvolumeclaims/status", ("default", "mine"), false),
            ("get", "persistentvolumes", ("", "mine"), true),
            ("get", "persistentvolumes", ("", "theirs"), false),
            ("get", "persistentvolumes", ("", "elsewhere"), false),
            ("get", "persistentvolumes", ("", "nobodys"), false),
            ("get", "persistentvolumes", ("", "absent"), false),
            ("list", "persistentvolumes", ("", "mine"), false),
            ("delete", "persistentvolumes", ("", "mine"), false),
            ("create", "serviceaccounts/token", ("default", "mine"), true),
            ("create", "serviceaccounts/token", ("default", "theirs"), false),
            ("get", "serviceaccounts", ("default", "theirs"), false),
            ("get", "pods", ("default", "on-n1"), true),
            ("get", "pods", ("default", "on-n2"), false),
            ("list", "pods", ("default", ""), false),
            ("get", "nodes", ("", "n1"), true),
            ("get", "nodes", ("", "n2"), false),
            ("delete", "nodes", ("", "n1"), false),
        ] {
            let attributes = asks(verb, resource, named);
            assert_eq!(
                authorizer.is_allowed(&node, &attributes),
                allowed,
                "{verb} {resource} {named:?}"
            );
            // Who only bears such a name, or only is in the group, is no node.
            for other in [User::new("system:node:n1", ["dev"]), User::new("joe", [NODES])] {
                assert!(
                    !authorizer.is_allowed(&other, &attributes),
                    "{other:?}: {verb} {resource} {named:?}"
                );
            }
        }
    }
}
