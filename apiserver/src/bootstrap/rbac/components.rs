//! What the cluster's own parts may do, each under an identity of its own.

use super::Line;

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";
const CERTIFICATES: &str = "certificates.k8s.io";
const COORDINATION: &str = "coordination.k8s.io";
const DISCOVERY: &str = "discovery.k8s.io";
const NETWORKING: &str = "networking.k8s.io";
const STORAGE: &str = "storage.k8s.io";

/// A role's name and its rules.
type Component = (&'static str, &'static [Line]);

/// Every part with a role for the whole cluster, by name.
pub(super) const COMPONENTS: &[Component] = &[
    // What informers of all controllers read; each acts under an identity of its own.
    (
        "system:kube-controller-manager",
        &[
            Line::new("list watch", "*", "*"),
            Line::new("create", COORDINATION, "leases"),
            Line::new("get patch update", COORDINATION, "leases").only("kube-controller-manager"),
            Line::new("get", "", "configmaps namespaces secrets serviceaccounts"),
            Line::new("create", "", "serviceaccounts serviceaccounts/token"),
            Line::new("create", AUTHENTICATION, "tokenreviews"),
            Line::new("create", AUTHORIZATION, "subjectaccessreviews"),
            Line::new("create patch update", "", "events"),
            Line::new("create patch update", "events.k8s.io", "events"),
        ],
    ),
    (
        "system:kube-scheduler",
        &[
            Line::new(
                "get list watch",
                "",
                "namespaces nodes persistentvolumeclaims persistentvolumes pods replicationcontrollers services",
            ),
            Line::new("delete", "", "pods"),
            Line::new("create", "", "bindings pods/binding"),
            Line::new("patch update", "", "pods/status"),
            Line::new("get list watch", "apps", "replicasets statefulsets"),
            Line::new("get list watch", "policy", "poddisruptionbudgets"),
            Line::new("create", COORDINATION, "leases"),
            Line::new("get list patch update watch", COORDINATION, "leases").only("kube-scheduler"),
            Line::new(
                "get list watch",
                STORAGE,
                "csidrivers csinodes csistoragecapacities storageclasses volumeattachments",
            ),
            Line::new("create", AUTHENTICATION, "tokenreviews"),
            Line::new("create", AUTHORIZATION, "subjectaccessreviews"),
            Line::new("create patch update", "", "events"),
            Line::new("create patch update", "events.k8s.io", "events"),
        ],
    ),
    (
        "system:node",
        &[
            Line::new("create", AUTHENTICATION, "tokenreviews"),
            Line::new(
                "create",
                AUTHORIZATION,
                "localsubjectaccessreviews subjectaccessreviews",
            ),
            Line::new("get list watch", "", "services"),
            Line::new("create get list watch", "", "nodes"),
            Line::new("patch update", "", "nodes/status"),
            Line::new("patch update", "", "nodes"),
            Line::new("get list watch", "", "pods"),
            Line::new("create delete", "", "pods"),
            Line::new("patch update", "", "pods/status"),
            Line::new("create", "", "pods/eviction"),
            Line::new("get list watch", "", "configmaps secrets"),
            Line::new("get", "", "persistentvolumeclaims persistentvolumes"),
            Line::new("get", "", "endpoints"),
            Line::new("create get list watch", CERTIFICATES, "certificatesigningrequests"),
            Line::new("create delete get patch update", COORDINATION, "leases"),
            Line::new("get", STORAGE, "volumeattachments"),
            Line::new("create", "", "serviceaccounts/token"),
            Line::new("get", "", "serviceaccounts"),
            Line::new("get list watch", STORAGE, "csidrivers"),
            Line::new("create delete get patch update", STORAGE, "csinodes"),
            Line::new("get list watch", "node.k8s.io", "runtimeclasses"),
            Line::new("create patch update", "", "events"),
            Line::new("create patch update", "events.k8s.io", "events"),
        ],
    ),
    (
        "system:node-proxier",
        &[
            Line::new("list watch", "", "endpoints services"),
            Line::new("get list watch", "", "nodes"),
            Line::new("list watch", DISCOVERY, "endpointslices"),
            Line::new("list watch", NETWORKING, "servicecidrs"),
            Line::new("create patch update", "", "events"),
            Line::new("create patch update", "events.k8s.io", "events"),
        ],
    ),
    // What a kubelet needs to provision volumes on its node; admission keeps it to its own.
    (
        "system:node:local-path-provisioner",
        &[
            Line::new("get list watch", "", "persistentvolumeclaims"),
            Line::new("create delete get list patch watch", "", "persistentvolumes"),
            Line::new("get", STORAGE, "storageclasses"),
        ],
    ),
    // CoreDNS's own role.
    (
        "system:skiff-dns",
        &[
            Line::new("list watch", "", "endpoints namespaces pods services"),
            Line::new("list watch", DISCOVERY, "endpointslices"),
        ],
    ),
    // It reads Secrets by a field selector, which roles cannot ask for.
    (
        "system:skiff-ingress",
        &[
            Line::new("list watch", "", "secrets services"),
            Line::new("list watch", DISCOVERY, "endpointslices"),
            Line::new("list watch", NETWORKING, "ingresses"),
            Line::new("create list watch", NETWORKING, "ingressclasses"),
            Line::new("patch", NETWORKING, "ingresses/status"),
            Line::new("patch", NETWORKING, "ingressclasses").only("skiff"),
            Line::new("create", "", "events"),
        ],
    ),
    (
        "system:volume-scheduler",
        &[
            Line::new(
                "get list patch update watch",
                "",
                "persistentvolumeclaims persistentvolumes",
            ),
            Line::new("get list watch", STORAGE, "storageclasses"),
        ],
    ),
];

/// Parts that have a role in `kube-system`, too: the user and the rules.
pub(super) const IN_KUBE_SYSTEM: &[Component] = &[
    // What it takes to publish where cluster DNS is.
    (
        "system:skiff-dns",
        &[
            Line::new("create get", "", "services"),
            Line::new("create delete get patch", DISCOVERY, "endpointslices"),
            Line::new("create delete get patch", COORDINATION, "leases"),
        ],
    ),
];

#[cfg(test)]
mod tests {
    use super::{COMPONENTS, COORDINATION, DISCOVERY};

    #[test]
    fn no_part_changes_the_leases_and_slices_of_all() {
        for (name, lines) in COMPONENTS {
            for line in *lines {
                let shared = [COORDINATION, DISCOVERY].contains(&line.group);
                let changes = ["delete", "patch", "update"]
                    .iter()
                    .any(|verb| line.verbs.contains(verb));
                // Admission keeps nodes to their own.
                let allowed = !line.names.is_empty() || *name == "system:node";
                assert!(!shared || !changes || allowed, "{name}: {line:?}");
            }
        }
    }
}
