//! Server-side tables: what `kubectl get` prints, columns and cells as upstream's printers give them.
//!
//! A kind has a [`Printer`]; those without one show their name and when they were made.

mod age;
mod autoscaling;
mod batch;
mod config;
mod event;
mod extension;
mod network;
mod node;
mod pod;
mod policy;
mod read;
mod security;
mod service;
mod storage;
mod usage;
mod workload;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use skiff_api::meta;
use skiff_api::resource::Resource;

pub use age::human_duration;
#[cfg(test)]
use tests::check;

/// A column of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Column {
    /// Heading.
    pub name: &'static str,
    /// `string`, `integer`, `boolean`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `name` on the column that names the object, else empty.
    pub format: &'static str,
    /// What the column says.
    pub description: &'static str,
    /// Zero for columns that are always shown, one for those of `-o wide`.
    pub priority: u8,
}

impl Column {
    const fn text(name: &'static str) -> Self {
        Column {
            name,
            kind: "string",
            format: "",
            description: "",
            priority: 0,
        }
    }

    const fn integer(name: &'static str) -> Self {
        Column {
            kind: "integer",
            ..Column::text(name)
        }
    }

    const fn boolean(name: &'static str) -> Self {
        Column {
            kind: "boolean",
            ..Column::text(name)
        }
    }

    const fn wide(name: &'static str) -> Self {
        Column {
            priority: 1,
            ..Column::text(name)
        }
    }
}

const NAME: Column = Column {
    format: "name",
    description: "Name of the object.",
    ..Column::text("Name")
};
const AGE: Column = Column {
    description: "Time since the object was created.",
    ..Column::text("Age")
};
const CREATED_AT: Column = Column {
    kind: "date",
    description: "When the object was created.",
    ..Column::text("Created At")
};

/// How one kind is printed.
struct Printer {
    columns: &'static [Column],
    row: fn(&Value, Timestamp) -> Vec<Value>,
}

static FALLBACK: Printer = Printer {
    columns: &[NAME, CREATED_AT],
    row: name_and_creation,
};

fn name_and_creation(object: &Value, _now: Timestamp) -> Vec<Value> {
    vec![meta::name(object).into(), meta::creation_timestamp(object).into()]
}

/// The columns of a resource.
pub fn columns(resource: &Resource) -> &'static [Column] {
    printer(resource.group, resource.plural).columns
}

/// The cells of an object, one a column.
pub fn row(resource: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    (printer(resource.group, resource.plural).row)(object, now)
}

fn printer(group: &str, plural: &str) -> &'static Printer {
    match (group, plural) {
        ("", "pods") => &pod::PODS,
        ("", "podtemplates") => &workload::POD_TEMPLATES,
        ("", "replicationcontrollers") => &workload::REPLICATION_CONTROLLERS,
        ("", "services") => &service::SERVICES,
        ("", "endpoints") => &service::ENDPOINTS,
        ("", "nodes") => &node::NODES,
        ("", "namespaces") => &config::NAMESPACES,
        ("", "configmaps") => &config::CONFIG_MAPS,
        ("", "secrets") => &config::SECRETS,
        ("", "serviceaccounts") => &config::SERVICE_ACCOUNTS,
        ("", "resourcequotas") => &config::QUOTAS,
        ("", "persistentvolumes") => &storage::VOLUMES,
        ("", "persistentvolumeclaims") => &storage::CLAIMS,
        ("" | "events.k8s.io", "events") => &event::EVENTS,
        ("apps", "deployments") => &workload::DEPLOYMENTS,
        ("apps", "replicasets") => &workload::REPLICA_SETS,
        ("apps", "statefulsets") => &workload::STATEFUL_SETS,
        ("apps", "daemonsets") => &workload::DAEMON_SETS,
        ("apps", "controllerrevisions") => &workload::REVISIONS,
        ("batch", "jobs") => &batch::JOBS,
        ("batch", "cronjobs") => &batch::CRON_JOBS,
        ("autoscaling", "horizontalpodautoscalers") => &autoscaling::AUTOSCALERS,
        ("policy", "poddisruptionbudgets") => &policy::BUDGETS,
        ("discovery.k8s.io", "endpointslices") => &service::SLICES,
        ("networking.k8s.io", "ingresses") => &network::INGRESSES,
        ("networking.k8s.io", "ingressclasses") => &network::INGRESS_CLASSES,
        ("networking.k8s.io", "networkpolicies") => &network::POLICIES,
        ("networking.k8s.io", "servicecidrs") => &network::SERVICE_CIDRS,
        ("networking.k8s.io", "ipaddresses") => &network::ADDRESSES,
        ("coordination.k8s.io", "leases") => &policy::LEASES,
        ("scheduling.k8s.io", "priorityclasses") => &policy::PRIORITY_CLASSES,
        ("node.k8s.io", "runtimeclasses") => &policy::RUNTIME_CLASSES,
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => &security::BINDINGS,
        ("certificates.k8s.io", "certificatesigningrequests") => &security::SIGNING_REQUESTS,
        ("storage.k8s.io", "storageclasses") => &storage::CLASSES,
        ("storage.k8s.io", "csidrivers") => &storage::DRIVERS,
        ("storage.k8s.io", "csinodes") => &storage::DRIVER_NODES,
        ("storage.k8s.io", "volumeattachments") => &storage::ATTACHMENTS,
        ("storage.k8s.io", "csistoragecapacities") => &storage::CAPACITIES,
        ("admissionregistration.k8s.io", "validatingwebhookconfigurations" | "mutatingwebhookconfigurations") => {
            &extension::WEBHOOKS
        }
        ("admissionregistration.k8s.io", "validatingadmissionpolicies") => &extension::POLICIES,
        ("admissionregistration.k8s.io", "validatingadmissionpolicybindings") => &extension::POLICY_BINDINGS,
        ("metrics.k8s.io", _) => &usage::USAGE,
        _ => &FALLBACK,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skiff_api::resource;

    use super::*;

    /// Headings and cells as one line each, wide columns after a bar.
    fn printed(group: &str, plural: &str, object: &Value) -> (String, String) {
        let printer = printer(group, plural);
        let cells = (printer.row)(object, "2026-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(cells.len(), printer.columns.len(), "{group}/{plural}");
        let headings: Vec<String> = printer
            .columns
            .iter()
            .map(|column| column.name.to_uppercase())
            .collect();
        let cells: Vec<String> = cells
            .iter()
            .map(|cell| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned))
            .collect();
        (headings.join(" | "), cells.join(" | "))
    }

    /// Shared by the tests of each file.
    pub(super) fn check(group: &str, plural: &str, object: &Value, headings: &str, cells: &str) {
        let (found_headings, found_cells) = printed(group, plural, object);
        assert_eq!(found_headings, headings);
        assert_eq!(found_cells, cells);
    }

    #[test]
    fn every_resource_has_as_many_cells_as_columns() {
        for resource in resource::builtin() {
            for object in [
                json!({}),
                json!({"metadata": {"name": "x"}, "spec": {}, "status": {}, "data": {}}),
            ] {
                let (_, cells) = printed(resource.group, resource.plural, &object);
                assert!(!cells.is_empty(), "{}", resource.plural);
            }
        }
    }

    #[test]
    fn fallback() {
        let role = json!({"metadata": {"name": "r", "creationTimestamp": "2025-01-01T00:00:00Z"}});
        check(
            "rbac.authorization.k8s.io",
            "roles",
            &role,
            "NAME | CREATED AT",
            "r | 2025-01-01T00:00:00Z",
        );
    }
}
