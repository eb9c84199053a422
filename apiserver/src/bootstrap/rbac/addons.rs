//! Upstream's roles for programs that come from elsewhere.

use serde_json::Value;

use super::{Line, Resource, Subjects, binding, role};

const WATCH: &str = "get list watch";

const ROLES: &[(&str, &[Line])] = &[
    (
        "system:heapster",
        &[
            Line::new(WATCH, "", "events namespaces nodes pods"),
            Line::new(WATCH, "extensions", "deployments"),
        ],
    ),
    ("system:kube-aggregator", &[Line::new(WATCH, "", "endpoints services")]),
    ("system:kube-dns", &[Line::new("list watch", "", "endpoints services")]),
    (
        "system:node-problem-detector",
        &[
            Line::new("get", "", "nodes"),
            Line::new("patch", "", "nodes/status"),
            Line::new("create patch update", "", "events"),
            Line::new("create patch update", "events.k8s.io", "events"),
        ],
    ),
    (
        "system:persistent-volume-provisioner",
        &[
            Line::new("create delete get list watch", "", "persistentvolumes"),
            Line::new("get list update watch", "", "persistentvolumeclaims"),
            Line::new(WATCH, "storage.k8s.io", "storageclasses"),
            Line::new("create patch update watch", "", "events"),
            Line::new("create patch update", "events.k8s.io", "events"),
        ],
    ),
];

pub(super) fn objects() -> Vec<(Resource, Value)> {
    const DNS: &str = "system:kube-dns";
    let roles = ROLES.iter().map(|(name, lines)| {
        let rules = lines.iter().map(Line::rule).collect();
        (super::ROLES, role(name, rules))
    });
    let dns = (super::BINDINGS, binding(DNS, DNS, &Subjects::Account("kube-dns")));
    roles.chain([dns]).collect()
}
