//! Upstream's semantic validation: what is wrong with an object beyond its shape, under upstream's field paths and texts.
//!
//! One file a kind or small family. Shape (types, unknown fields) is decoding's business; values here may still be of any shape, and
//! what is malformed reads as unset.

mod admission;
mod apps;
mod authorization;
mod autoscaling;
mod batch;
mod certificates;
mod claims;
mod config;
mod coordination;
mod core;
mod definition;
mod endpoints;
mod event;
mod metadata;
mod networking;
mod node;
mod pod;
mod rbac;
mod read;
mod selector;
mod service;
mod storage;

pub use authorization::validate_access_review;

use serde_json::Value;

use crate::field::Error;
use crate::names;
use metadata::NameRule;

/// Mistakes found so far.
type Errors = Vec<Error>;

/// How one kind is validated.
#[derive(Clone, Copy)]
struct Rules {
    name: NameRule,
    namespaced: bool,
    create: fn(&Value, &mut Errors),
    /// Beyond `create`'s rules, which hold for the new object too.
    update: fn(&Value, &Value, &mut Errors),
    /// Changes through a subresource; `create`'s rules are not run for these.
    subresource: fn(&str, &Value, &Value, &mut Errors),
}

impl Rules {
    const fn new(name: NameRule, create: fn(&Value, &mut Errors)) -> Self {
        Rules {
            name,
            namespaced: true,
            create,
            update: no_update,
            subresource: no_subresource,
        }
    }

    const fn cluster(self) -> Self {
        Rules {
            namespaced: false,
            ..self
        }
    }

    const fn on_update(self, update: fn(&Value, &Value, &mut Errors)) -> Self {
        Rules { update, ..self }
    }

    const fn on_subresource(self, subresource: fn(&str, &Value, &Value, &mut Errors)) -> Self {
        Rules { subresource, ..self }
    }
}

fn nothing(_: &Value, _: &mut Errors) {}
fn no_update(_: &Value, _: &Value, _: &mut Errors) {}
fn no_subresource(_: &str, _: &Value, _: &Value, _: &mut Errors) {}

/// Every mistake in a new object, in upstream's order: metadata first.
pub fn validate_create(group: &str, _version: &str, kind: &str, object: &Value) -> Vec<Error> {
    let rules = rules(group, kind);
    let mut errors = Errors::new();
    metadata::create(object, rules.name, rules.namespaced, &mut errors);
    (rules.create)(object, &mut errors);
    errors
}

/// Every mistake in an update of `old` to `new`, through `subresource` or (`None`) of the object itself.
pub fn validate_update(
    group: &str,
    _version: &str,
    kind: &str,
    new: &Value,
    old: &Value,
    subresource: Option<&str>,
) -> Vec<Error> {
    let rules = rules(group, kind);
    let mut errors = Errors::new();
    metadata::update(new, old, &mut errors);
    match subresource {
        None | Some("scale") => {
            (rules.update)(new, old, &mut errors);
            (rules.create)(new, &mut errors);
        }
        Some(name) => (rules.subresource)(name, new, old, &mut errors),
    }
    errors
}

fn rules(group: &str, kind: &str) -> Rules {
    let subdomain: NameRule = names::dns1123_subdomain;
    match group {
        "" => core_rules(kind),
        "apps" => match kind {
            "Deployment" => Rules::new(subdomain, apps::deployment).on_update(apps::selector_update),
            "ReplicaSet" => Rules::new(subdomain, apps::replica_set).on_update(apps::selector_update),
            "DaemonSet" => Rules::new(subdomain, apps::daemon_set).on_update(apps::selector_update),
            "StatefulSet" => Rules::new(subdomain, apps::stateful_set).on_update(apps::stateful_set_update),
            "ControllerRevision" => Rules::new(subdomain, nothing).on_update(apps::revision_update),
            _ => fallback(group, kind),
        },
        "batch" => match kind {
            "Job" => Rules::new(subdomain, batch::job).on_update(batch::job_update),
            "CronJob" => Rules::new(batch::cron_job_name, batch::cron_job),
            _ => fallback(group, kind),
        },
        "autoscaling" => Rules::new(subdomain, autoscaling::autoscaler),
        "policy" => Rules::new(subdomain, autoscaling::disruption_budget),
        "networking.k8s.io" => match kind {
            "Ingress" => Rules::new(subdomain, networking::ingress),
            "IngressClass" => Rules::new(subdomain, networking::ingress_class)
                .cluster()
                .on_update(networking::ingress_class_update),
            "NetworkPolicy" => Rules::new(subdomain, networking::policy),
            _ => fallback(group, kind),
        },
        "discovery.k8s.io" => Rules::new(subdomain, endpoints::slice).on_update(endpoints::slice_update),
        "events.k8s.io" => Rules::new(subdomain, event::event),
        "coordination.k8s.io" => Rules::new(subdomain, coordination::lease),
        "rbac.authorization.k8s.io" => match kind {
            "Role" => Rules::new(names::path_segment, rbac::role),
            "ClusterRole" => Rules::new(names::path_segment, rbac::cluster_role).cluster(),
            "RoleBinding" => Rules::new(names::path_segment, rbac::role_binding).on_update(rbac::binding_update),
            _ => Rules::new(names::path_segment, rbac::cluster_role_binding)
                .cluster()
                .on_update(rbac::binding_update),
        },
        "storage.k8s.io" | "scheduling.k8s.io" | "node.k8s.io" => storage_rules(group, kind),
        "certificates.k8s.io" => Rules::new(names::path_segment, certificates::request)
            .cluster()
            .on_subresource(certificates::subresource),
        "admissionregistration.k8s.io" => Rules::new(subdomain, admission::any).cluster(),
        "apiextensions.k8s.io" => Rules::new(names::dns1123_subdomain, definition::definition)
            .cluster()
            .on_update(definition::update),
        _ => fallback(group, kind),
    }
}

fn core_rules(kind: &str) -> Rules {
    let subdomain: NameRule = names::dns1123_subdomain;
    match kind {
        "Pod" => Rules::new(subdomain, pod::create)
            .on_update(pod::update)
            .on_subresource(pod::subresource),
        "PodTemplate" => Rules::new(subdomain, pod::template_object),
        "ReplicationController" => Rules::new(subdomain, apps::replication_controller),
        "Service" => Rules::new(names::dns1035_label, service::service).on_update(service::update),
        "Endpoints" => Rules::new(subdomain, endpoints::endpoints),
        "Namespace" => Rules::new(names::dns1123_label, core::namespace)
            .cluster()
            .on_subresource(core::namespace_subresource),
        "Node" => Rules::new(subdomain, node::node).cluster().on_update(node::update),
        "ConfigMap" => Rules::new(subdomain, config::config_map).on_update(config::config_map_update),
        "Secret" => Rules::new(subdomain, config::secret).on_update(config::secret_update),
        "ServiceAccount" => Rules::new(subdomain, nothing),
        "Event" => Rules::new(names::path_segment, event::event),
        "PersistentVolume" => Rules::new(subdomain, claims::volume)
            .cluster()
            .on_update(claims::volume_update),
        "PersistentVolumeClaim" => Rules::new(subdomain, claims::claim).on_update(claims::claim_update),
        "LimitRange" => Rules::new(subdomain, core::limit_range),
        "ResourceQuota" => Rules::new(subdomain, core::resource_quota),
        _ => fallback("", kind),
    }
}

fn storage_rules(group: &str, kind: &str) -> Rules {
    let subdomain: NameRule = names::dns1123_subdomain;
    match kind {
        "StorageClass" => Rules::new(subdomain, storage::class)
            .cluster()
            .on_update(storage::class_update),
        "VolumeAttachment" => Rules::new(subdomain, storage::attachment).cluster(),
        "CSIDriver" | "CSINode" => Rules::new(subdomain, nothing).cluster(),
        "PriorityClass" => Rules::new(subdomain, storage::priority_class)
            .cluster()
            .on_update(storage::priority_update),
        "RuntimeClass" => Rules::new(subdomain, storage::runtime_class)
            .cluster()
            .on_update(storage::runtime_update),
        _ => fallback(group, kind),
    }
}

/// Kinds without rules of their own: a name that fits a path, and the scope that the schema of resources gives.
fn fallback(group: &str, kind: &str) -> Rules {
    let namespaced = crate::resource::builtin()
        .iter()
        .find(|resource| *resource.group == *group && *resource.kind == *kind)
        .is_some_and(|resource| resource.namespaced);
    let rules = Rules::new(names::path_segment, nothing);
    if namespaced { rules } else { rules.cluster() }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Messages of a create, for table tests.
    pub(crate) fn created(group: &str, kind: &str, object: &Value) -> Vec<String> {
        validate_create(group, "v1", kind, object)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    /// Messages of an update of the object itself.
    pub(crate) fn updated(group: &str, kind: &str, new: &Value, old: &Value) -> Vec<String> {
        validate_update(group, "v1", kind, new, old, None)
            .iter()
            .map(ToString::to_string)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Field names that lead deep into the kinds, so that random objects reach their rules.
    const NAMES: &[&str] = &[
        "metadata",
        "labels",
        "annotations",
        "finalizers",
        "ownerReferences",
        "name",
        "namespace",
        "generateName",
        "spec",
        "template",
        "selector",
        "matchLabels",
        "matchExpressions",
        "key",
        "operator",
        "values",
        "containers",
        "initContainers",
        "volumes",
        "volumeMounts",
        "mountPath",
        "image",
        "ports",
        "port",
        "targetPort",
        "protocol",
        "env",
        "valueFrom",
        "fieldRef",
        "fieldPath",
        "resources",
        "limits",
        "requests",
        "cpu",
        "memory",
        "livenessProbe",
        "httpGet",
        "exec",
        "tolerations",
        "affinity",
        "nodeAffinity",
        "type",
        "clusterIP",
        "clusterIPs",
        "externalIPs",
        "rules",
        "subjects",
        "roleRef",
        "metrics",
        "resource",
        "schedule",
        "jobTemplate",
        "strategy",
        "rollingUpdate",
        "maxSurge",
        "subsets",
        "addresses",
        "endpoints",
        "data",
        "stringData",
        "status",
        "conditions",
        "versions",
        "names",
        "webhooks",
        "hard",
    ];

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z0-9é%./*: -]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 48, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec((proptest::sample::select(NAMES), inner), 0..6)
                    .prop_map(|fields| fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_comes_is_answered(new in any_json(), old in any_json()) {
            for resource in crate::resource::builtin() {
                let (group, version, kind) = (resource.group, resource.version, resource.kind);
                let mut object = json!({"metadata": new["metadata"], "spec": new});
                for (key, value) in new.as_object().into_iter().flatten() {
                    object[key] = value.clone();
                }
                crate::defaults::apply(group, version, kind, &mut object);
                let mut again = object.clone();
                crate::defaults::apply(group, version, kind, &mut again);
                prop_assert_eq!(&again, &object, "defaults of {} are not stable", kind);
                validate_create(group, version, kind, &object);
                for subresource in [None, Some("status"), Some("ephemeralcontainers"), Some("approval"), Some("finalize")] {
                    validate_update(group, version, kind, &object, &old, subresource);
                }
            }
        }
    }
}
