//! A node's agent changes its own node, its own pods and its own lease, and nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;
use skiff_api::meta;
use skiff_api::pods::MIRROR;
use skiff_api::status::Status;

use super::{Operation, Plugin, Review};
use crate::authorization::{Attributes, Authorizer, LEASES, NODES, node_name};
use crate::cache::Cache;
use crate::errors::Result;
use crate::pod_references::{Referenced, names, refers_to_any};

/// Labels of Kubernetes itself that a node may give itself, beside those under `kubelet.kubernetes.io` and `node.kubernetes.io`.
const OWN_LABELS: &[&str] = &[
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

/// See the module. The documented `NodeRestriction` admission plugin.
#[derive(Debug)]
pub(super) struct NodeRestriction {
    pub(super) authorizer: Arc<Authorizer>,
    pub(super) nodes: Arc<Cache>,
    pub(super) pods: Arc<Cache>,
    pub(super) claims: Arc<Cache>,
    pub(super) volumes: Arc<Cache>,
    pub(super) drivers: Arc<Cache>,
}

impl Plugin for NodeRestriction {
    fn validate(&self, review: &Review<'_>, object: &Value) -> Result<()> {
        let user = review.scope.user;
        if !user.is_in(NODES) {
            return Ok(());
        }
        let resource = review.scope.served.resource;
        let decision = match (resource.group, resource.plural) {
            ("", "pods" | "nodes" | "serviceaccounts")
            | ("coordination.k8s.io", "leases")
            | ("storage.k8s.io", "csinodes") => match node_name(user) {
                Some(node) => self.decide(review, object, node),
                None => Err(format!("could not determine node from user {:?}", user.name)),
            },
            _ => Ok(()),
        };
        decision.map_err(|why| Status::forbidden(resource.qualified(), meta::name(object), &why))
    }
}

type Decision = std::result::Result<(), String>;

fn refuse_if(refused: bool, why: impl FnOnce() -> String) -> Decision {
    if refused { Err(why()) } else { Ok(()) }
}

impl NodeRestriction {
    fn decide(&self, review: &Review<'_>, object: &Value, node: &str) -> Decision {
        let resource = review.scope.served.resource;
        match (resource.plural, review.subresource) {
            ("pods", None) => self.pod(review, object, node),
            ("pods", Some("status")) => pod_status(review, object, node),
            ("pods", Some("eviction")) => refuse_if(!review.old.is_some_and(|pod| is_on(pod, node)), || {
                format!("node {node} can only evict pods with spec.nodeName set to itself")
            }),
            ("pods", Some(other)) => Err(format!("unexpected pod subresource {other:?}")),
            ("nodes", None | Some("status")) => own_node(review, object, node),
            ("serviceaccounts", Some("token")) => self.token(review, object, node),
            ("leases", _) => own_lease(review, object, node),
            ("csinodes", _) => refuse_if(meta::name(object) != node, || {
                "can only access CSINode with the same name as the requesting node".to_owned()
            }),
            _ => Ok(()),
        }
    }

    fn pod(&self, review: &Review<'_>, pod: &Value, node: &str) -> Decision {
        match review.operation {
            Operation::Create => self.mirror_pod(pod, node),
            Operation::Delete => refuse_if(!is_on(pod, node), || {
                format!("node {node:?} can only delete pods with spec.nodeName set to itself")
            }),
            Operation::Update | Operation::Connect => Err(format!(
                "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
                "UPDATE"
            )),
        }
    }

    fn mirror_pod(&self, pod: &Value, node: &str) -> Decision {
        refuse_if(meta::annotation(pod, MIRROR).is_none(), || {
            format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods")
        })?;
        refuse_if(!is_on(pod, node), || {
            format!("node {node:?} can only create pods with spec.nodeName set to itself")
        })?;
        self.owned_by_node(pod, node)?;
        for (kind, what) in [
            (Referenced::ServiceAccount, "a service account"),
            (Referenced::Secret, "secrets"),
            (Referenced::ConfigMap, "configmaps"),
            (Referenced::Claim, "persistentvolumeclaims"),
        ] {
            refuse_if(refers_to_any(pod, kind), || {
                format!("node {node:?} can not create pods that reference {what}")
            })?;
        }
        Ok(())
    }

    /// A mirror pod goes with its node.
    fn owned_by_node(&self, pod: &Value, node: &str) -> Decision {
        let owners = pod["metadata"]["ownerReferences"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let [owner] = owners else {
            return refuse_if(owners.len() > 1, || {
                format!("node {node:?} can only create pods with a single owner reference set to itself")
            });
        };
        let is_node = owner["apiVersion"] == "v1" && owner["kind"] == "Node" && owner["name"] == node;
        refuse_if(!is_node || owner["controller"] != true, || {
            format!("node {node:?} can only create pods with an owner reference set to itself")
        })?;
        refuse_if(owner["blockOwnerDeletion"] == true, || {
            format!("node {node:?} must not set blockOwnerDeletion on an owner reference")
        })?;
        let known = self.nodes.get("", node).map(|node| node.value());
        let uid = known.as_ref().map(meta::uid).unwrap_or_default();
        refuse_if(owner["uid"] != uid, || {
            format!("node {node:?} UID mismatch: expected {uid:?} got {}", owner["uid"])
        })
    }

    /// A token for a service account is for a pod of the node.
    fn token(&self, review: &Review<'_>, request: &Value, node: &str) -> Decision {
        let spec = &request["spec"];
        let reference = &spec["boundObjectRef"];
        refuse_if(reference["kind"] != "Pod" || reference["apiVersion"] != "v1", || {
            "node requested token not bound to a pod".to_owned()
        })?;
        let uid = reference["uid"].as_str().unwrap_or_default();
        refuse_if(uid.is_empty(), || {
            "node requested token with a pod binding without a uid".to_owned()
        })?;
        let name = reference["name"].as_str().unwrap_or_default();
        let Some(pod) = self.pods.get(review.scope.namespace, name).map(|pod| pod.value()) else {
            return Err(format!("pod {name:?} not found"));
        };
        refuse_if(meta::uid(&pod) != uid, || {
            format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            )
        })?;
        refuse_if(!is_on(&pod, node), || {
            "node requested token bound to a pod scheduled on a different node".to_owned()
        })?;
        let audience = audience(spec)?;
        refuse_if(
            !projects(&pod, audience)
                && !self.has_driver_for(review.scope.namespace, &pod, audience)
                && !self.may_ask_for(review, meta::name(request), audience),
            || {
                format!(
                    "audience {audience:?} not found in pod spec volume, system:node:{node} is not authorized to request tokens for this audience"
                )
            },
        )
    }

    /// Whether a CSI driver of the pod's volumes, or of the volumes that its claims are bound to, wants tokens for an audience.
    fn has_driver_for(&self, namespace: &str, pod: &Value, audience: &str) -> bool {
        let named = volumes(pod).filter_map(|volume| volume["csi"]["driver"].as_str().map(str::to_owned));
        let claims = names(pod, Referenced::Claim).into_iter();
        let claimed = claims.filter_map(|claim| self.driver_of(namespace, &claim));
        named.chain(claimed).any(|driver| {
            let driver = self.drivers.get("", &driver).map(|driver| driver.value());
            let requests = driver
                .as_ref()
                .and_then(|driver| driver["spec"]["tokenRequests"].as_array());
            requests
                .into_iter()
                .flatten()
                .any(|request| request["audience"] == audience)
        })
    }

    fn driver_of(&self, namespace: &str, claim: &str) -> Option<String> {
        let claim = self.claims.get(namespace, claim)?.value();
        let volume = self.volumes.get("", claim["spec"]["volumeName"].as_str()?)?.value();
        volume["spec"]["csi"]["driver"].as_str().map(str::to_owned)
    }

    /// Whether a role lets the node ask for an audience in the name of a service account: the audience takes the resource's place.
    fn may_ask_for(&self, review: &Review<'_>, account: &str, audience: &str) -> bool {
        let attributes = Attributes {
            verb: "request-serviceaccounts-token-audience",
            is_resource: true,
            resource: audience,
            namespace: review.scope.namespace,
            name: account,
            ..Attributes::default()
        };
        self.authorizer.is_allowed(review.scope.user, &attributes)
    }
}

/// Whom a token is asked for; empty for this server.
fn audience(spec: &Value) -> std::result::Result<&str, String> {
    match spec["audiences"].as_array().map_or(&[][..], Vec::as_slice) {
        [] => Ok(""),
        [one] => Ok(one.as_str().unwrap_or_default()),
        _ => Err("node may only request 0 or 1 audiences".to_owned()),
    }
}

/// Whether a volume of the pod wants a token for an audience.
fn projects(pod: &Value, audience: &str) -> bool {
    let sources = volumes(pod).flat_map(|volume| volume["projected"]["sources"].as_array().into_iter().flatten());
    let mut tokens = sources.filter_map(|source| source["serviceAccountToken"].as_object());
    tokens.any(|token| token.get("audience").and_then(Value::as_str).unwrap_or_default() == audience)
}

fn volumes(pod: &Value) -> impl Iterator<Item = &Value> {
    pod["spec"]["volumes"].as_array().into_iter().flatten()
}

fn is_on(pod: &Value, node: &str) -> bool {
    pod["spec"]["nodeName"] == node
}

fn pod_status(review: &Review<'_>, pod: &Value, node: &str) -> Decision {
    let old = review.old.unwrap_or(pod);
    refuse_if(!is_on(old, node), || {
        format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself")
    })?;
    refuse_if(meta::labels(old) != meta::labels(pod), || {
        format!("node {node:?} cannot update labels through pod status")
    })
}

fn own_lease(review: &Review<'_>, lease: &Value, node: &str) -> Decision {
    refuse_if(review.scope.namespace != LEASES, || {
        format!("can only access leases in the {LEASES:?} system namespace")
    })?;
    refuse_if(meta::name(lease) != node, || {
        "can only access node lease with the same name as the requesting node".to_owned()
    })
}

fn own_node(review: &Review<'_>, object: &Value, node: &str) -> Decision {
    let name = meta::name(object);
    refuse_if(name != node, || {
        format!("node {node:?} is not allowed to modify node {name:?}")
    })?;
    refuse_if(review.operation == Operation::Delete, || {
        format!("node {node:?} is not allowed to delete itself")
    })?;
    let changed = changed_labels(review.old, object);
    let forbidden: Vec<&str> = changed.into_iter().filter(|label| !is_own_label(label)).collect();
    let Some(old) = review.old.filter(|_| review.operation == Operation::Update) else {
        return refuse_if(!forbidden.is_empty(), || {
            format!(
                "node {node:?} is not allowed to set the following labels: {}",
                forbidden.join(", ")
            )
        });
    };
    let differs = |pointer: &str| {
        let empty =
            |value: Option<&Value>| value.is_none_or(|value| value.is_null() || value == &Value::Array(Vec::new()));
        let (old, new) = (old.pointer(pointer), object.pointer(pointer));
        old != new && !(empty(old) && empty(new))
    };
    refuse_if(differs("/metadata/ownerReferences"), || {
        format!("node {node:?} is not allowed to modify ownerReferences")
    })?;
    refuse_if(differs("/spec/taints"), || {
        format!("node {node:?} is not allowed to modify taints")
    })?;
    refuse_if(!forbidden.is_empty(), || {
        format!("is not allowed to modify labels: {}", forbidden.join(", "))
    })
}

fn changed_labels<'a>(old: Option<&'a Value>, new: &'a Value) -> BTreeSet<&'a str> {
    let labels = |object: Option<&'a Value>| object.and_then(|object| object["metadata"]["labels"].as_object());
    let (old, new) = (labels(old), labels(Some(new)));
    let keys = |map: Option<&'a serde_json::Map<String, Value>>| {
        map.into_iter().flat_map(|map| map.keys().map(String::as_str))
    };
    keys(old)
        .chain(keys(new))
        .filter(|key| old.and_then(|map| map.get(*key)) != new.and_then(|map| map.get(*key)))
        .collect()
}

/// Labels of users are a node's own affair; of Kubernetes' own it may only set what says what it is.
fn is_own_label(label: &str) -> bool {
    let Some((domain, _)) = label.split_once('/') else {
        return true;
    };
    let within = |parent: &str| domain == parent || domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'));
    if within("node-restriction.kubernetes.io") {
        return false;
    }
    let kubernetes = within("kubernetes.io") || within("k8s.io");
    !kubernetes || within("kubelet.kubernetes.io") || within("node.kubernetes.io") || OWN_LABELS.contains(&label)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{audience, is_own_label, projects};

    #[test]
    fn one_audience_at_a_time_that_a_volume_wants() {
        let pod = |sources: serde_json::Value| json!({"spec": {"volumes": [{"name": "v", "projected": {"sources": sources}}]}});
        let api_access = pod(json!([
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt"}},
        ]));
        let vault = pod(json!([{"serviceAccountToken": {"audience": "vault", "path": "token"}}]));
        let config = pod(json!([{"configMap": {"name": "c"}}]));
        for (pod, audiences, allowed) in [
            (&api_access, json!(null), Ok(true)),
            (&api_access, json!([]), Ok(true)),
            (&api_access, json!([""]), Ok(true)),
            (&api_access, json!(["vault"]), Ok(false)),
            (&vault, json!(["vault"]), Ok(true)),
            (&vault, json!([]), Ok(false)),
            (&vault, json!([""]), Ok(false)),
            (
                &vault,
                json!(["vault", "vault"]),
                Err("node may only request 0 or 1 audiences".to_owned()),
            ),
            (&config, json!([]), Ok(false)),
            (&json!({"spec": {}}), json!([]), Ok(false)),
        ] {
            let spec = json!({"audiences": audiences});
            let decided = audience(&spec).map(|audience| projects(pod, audience));
            assert_eq!(decided, allowed, "{audiences} {pod}");
        }
    }

    #[test]
    fn labels_that_steer_pods_are_not_the_nodes_to_set() {
        for (label, own) in [
            ("team", true),
            ("example.com/team", true),
            ("kubernetes.io/hostname", true),
            ("topology.kubernetes.io/zone", true),
            ("node.kubernetes.io/instance-type", true),
            ("kubelet.kubernetes.io/anything", true),
            ("sub.kubelet.kubernetes.io/anything", true),
            ("node-role.kubernetes.io/control-plane", false),
            ("node-restriction.kubernetes.io/pci", false),
            ("sub.node-restriction.kubernetes.io/pci", false),
            ("kubernetes.io/other", false),
            ("other.k8s.io/thing", false),
            ("notkubernetes.io/thing", true),
        ] {
            assert_eq!(is_own_label(label), own, "{label}");
        }
    }
}
