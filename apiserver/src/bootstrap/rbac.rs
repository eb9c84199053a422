//! The roles and bindings that upstream's clusters begin with.

use serde_json::{Value, json};

use super::Resource;

const GROUP: &str = "rbac.authorization.k8s.io";
const ROLES: Resource = (GROUP, "clusterroles");
const BINDINGS: Resource = (GROUP, "clusterrolebindings");

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
const ALL: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
const ANY: &[&str] = &["*"];

/// Every role and binding.
pub(super) fn objects() -> Vec<(Resource, Value)> {
    let roles = general().into_iter().chain(users()).chain(components());
    let roles = roles.map(|object| (ROLES, object));
    roles
        .chain(bindings().into_iter().map(|object| (BINDINGS, object)))
        .collect()
}

fn rule(verbs: &[&str], group: &str, resources: &[&str]) -> Value {
    json!({"verbs": verbs, "apiGroups": [group], "resources": resources})
}

/// A rule for the one object of a name.
fn named(verbs: &[&str], group: &str, resource: &str, name: &str) -> Value {
    json!({"verbs": verbs, "apiGroups": [group], "resources": [resource], "resourceNames": [name]})
}

fn urls(verbs: &[&str], urls: &[&str]) -> Value {
    json!({"verbs": verbs, "nonResourceURLs": urls})
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    })
}

fn role(name: &str, rules: Vec<Value>) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": metadata(name), "rules": rules})
}

/// A role whose rules become part of the roles that it names by label.
fn part(name: &str, of: &[&str], rules: Vec<Value>) -> Value {
    let mut role = role(name, rules);
    for target in of {
        role["metadata"]["labels"][format!("rbac.authorization.k8s.io/aggregate-to-{target}")] = "true".into();
    }
    role
}

/// A role made of the parts that name it, and of what is given here.
fn whole(name: &str, rules: Vec<Value>) -> Value {
    let mut role = role(name, rules);
    let label = format!("rbac.authorization.k8s.io/aggregate-to-{name}");
    role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
    role
}

fn general() -> Vec<Value> {
    let health = ["/healthz", "/livez", "/readyz", "/version", "/version/"];
    let discovery = ["/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*"];
    let monitoring = [
        "/healthz",
        "/healthz/*",
        "/livez",
        "/livez/*",
        "/metrics",
        "/metrics/slis",
        "/readyz",
        "/readyz/*",
    ];
    vec![
        role("cluster-admin", vec![rule(ANY, "*", ANY), urls(ANY, ANY)]),
        role(
            "system:discovery",
            vec![urls(&["get"], &[&discovery[..], &health[..]].concat())],
        ),
        role("system:public-info-viewer", vec![urls(&["get"], &health)]),
        role("system:monitoring", vec![urls(&["get"], &monitoring)]),
        role(
            "system:basic-user",
            vec![
                rule(
                    &["create"],
                    "authorization.k8s.io",
                    &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
                ),
                rule(&["create"], "authentication.k8s.io", &["selfsubjectreviews"]),
            ],
        ),
        role(
            "system:auth-delegator",
            vec![
                rule(&["create"], "authentication.k8s.io", &["tokenreviews"]),
                rule(&["create"], "authorization.k8s.io", &["subjectaccessreviews"]),
            ],
        ),
        role(
            "system:kubelet-api-admin",
            vec![
                rule(READ, "", &["nodes"]),
                rule(&["proxy"], "", &["nodes"]),
                rule(ANY, "", &["nodes/log", "nodes/metrics", "nodes/proxy", "nodes/stats"]),
            ],
        ),
    ]
}

const CORE_SHOWN: &[&str] = &[
    "configmaps",
    "endpoints",
    "persistentvolumeclaims",
    "persistentvolumeclaims/status",
    "pods",
    "replicationcontrollers",
    "replicationcontrollers/scale",
    "serviceaccounts",
    "services",
    "services/status",
];
const CORE_STATES: &[&str] = &[
    "bindings",
    "events",
    "limitranges",
    "namespaces/status",
    "pods/log",
    "pods/status",
    "replicationcontrollers/status",
    "resourcequotas",
    "resourcequotas/status",
];
const APPS: &[&str] = &[
    "daemonsets",
    "deployments",
    "deployments/scale",
    "replicasets",
    "replicasets/scale",
    "statefulsets",
    "statefulsets/scale",
];
const APPS_STATES: &[&str] = &[
    "controllerrevisions",
    "daemonsets/status",
    "deployments/status",
    "replicasets/status",
    "statefulsets/status",
];

fn users() -> Vec<Value> {
    let view = vec![
        rule(READ, "", CORE_SHOWN),
        rule(READ, "", CORE_STATES),
        rule(READ, "", &["namespaces"]),
        rule(READ, "discovery.k8s.io", &["endpointslices"]),
        rule(READ, "apps", APPS),
        rule(READ, "apps", APPS_STATES),
        rule(
            READ,
            "autoscaling",
            &["horizontalpodautoscalers", "horizontalpodautoscalers/status"],
        ),
        rule(READ, "batch", &["cronjobs", "cronjobs/status", "jobs", "jobs/status"]),
        rule(READ, "policy", &["poddisruptionbudgets", "poddisruptionbudgets/status"]),
        rule(
            READ,
            "networking.k8s.io",
            &["ingresses", "ingresses/status", "networkpolicies"],
        ),
    ];
    let edit = vec![
        rule(
            READ,
            "",
            &[
                "pods/attach",
                "pods/exec",
                "pods/portforward",
                "pods/proxy",
                "secrets",
                "services/proxy",
            ],
        ),
        rule(&["impersonate"], "", &["serviceaccounts"]),
        rule(
            WRITE,
            "",
            &["pods", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy"],
        ),
        rule(&["create"], "", &["pods/eviction"]),
        rule(
            WRITE,
            "",
            &[
                "configmaps",
                "events",
                "persistentvolumeclaims",
                "replicationcontrollers",
                "replicationcontrollers/scale",
                "secrets",
                "serviceaccounts",
                "services",
                "services/proxy",
            ],
        ),
        rule(&["create"], "", &["serviceaccounts/token"]),
        rule(WRITE, "apps", &[APPS, &["deployments/rollback"]].concat()),
        rule(WRITE, "autoscaling", &["horizontalpodautoscalers"]),
        rule(WRITE, "batch", &["cronjobs", "jobs"]),
        rule(WRITE, "policy", &["poddisruptionbudgets"]),
        rule(WRITE, "networking.k8s.io", &["ingresses", "networkpolicies"]),
        rule(ALL, "coordination.k8s.io", &["leases"]),
    ];
    let admin = vec![
        rule(&["create"], "authorization.k8s.io", &["localsubjectaccessreviews"]),
        rule(ALL, GROUP, &["rolebindings", "roles"]),
    ];
    vec![
        whole("view", Vec::new()),
        whole("edit", Vec::new()),
        whole("admin", Vec::new()),
        part("system:aggregate-to-view", &["view", "edit", "admin"], view),
        part("system:aggregate-to-edit", &["edit", "admin"], edit),
        part("system:aggregate-to-admin", &["admin"], admin),
        part(
            "system:aggregated-metrics-reader",
            &["view", "edit", "admin"],
            vec![rule(READ, "metrics.k8s.io", &["nodes", "pods"])],
        ),
    ]
}

fn events() -> [Value; 2] {
    let verbs = &["create", "patch", "update"];
    [rule(verbs, "", &["events"]), rule(verbs, "events.k8s.io", &["events"])]
}

fn components() -> Vec<Value> {
    let node = vec![
        rule(&["create"], "authentication.k8s.io", &["tokenreviews"]),
        rule(
            &["create"],
            "authorization.k8s.io",
            &["localsubjectaccessreviews", "subjectaccessreviews"],
        ),
        rule(READ, "", &["services"]),
        rule(&["create", "get", "list", "watch"], "", &["nodes"]),
        rule(&["patch", "update"], "", &["nodes/status"]),
        rule(&["patch", "update"], "", &["nodes"]),
        rule(READ, "", &["pods"]),
        rule(&["create", "delete"], "", &["pods"]),
        rule(&["patch", "update"], "", &["pods/status"]),
        rule(&["create"], "", &["pods/eviction"]),
        rule(READ, "", &["configmaps", "secrets"]),
        rule(&["get"], "", &["persistentvolumeclaims", "persistentvolumes"]),
        rule(&["get"], "", &["endpoints"]),
        rule(
            &["create", "get", "list", "watch"],
            "certificates.k8s.io",
            &["certificatesigningrequests"],
        ),
        rule(
            &["create", "delete", "get", "patch", "update"],
            "coordination.k8s.io",
            &["leases"],
        ),
        rule(&["get"], "storage.k8s.io", &["volumeattachments"]),
        rule(&["create"], "", &["serviceaccounts/token"]),
        rule(&["get"], "", &["serviceaccounts"]),
        rule(READ, "storage.k8s.io", &["csidrivers"]),
        rule(
            &["create", "delete", "get", "patch", "update"],
            "storage.k8s.io",
            &["csinodes"],
        ),
        rule(READ, "node.k8s.io", &["runtimeclasses"]),
    ];
    let proxier = vec![
        rule(&["list", "watch"], "", &["endpoints", "services"]),
        rule(READ, "", &["nodes"]),
        rule(&["list", "watch"], "discovery.k8s.io", &["endpointslices"]),
        rule(&["list", "watch"], "networking.k8s.io", &["servicecidrs"]),
    ];
    // It reads Secrets by a field selector, which roles cannot ask for.
    let ingress = vec![
        rule(&["list", "watch"], "", &["secrets", "services"]),
        rule(&["list", "watch"], "discovery.k8s.io", &["endpointslices"]),
        rule(&["list", "watch"], "networking.k8s.io", &["ingresses"]),
        rule(&["create", "list", "watch"], "networking.k8s.io", &["ingressclasses"]),
        rule(&["patch"], "networking.k8s.io", &["ingresses/status"]),
        named(&["patch"], "networking.k8s.io", "ingressclasses", "skiff"),
        rule(&["create"], "", &["events"]),
    ];
    let scheduler = vec![
        rule(
            READ,
            "",
            &[
                "namespaces",
                "nodes",
                "persistentvolumeclaims",
                "persistentvolumes",
                "pods",
                "replicationcontrollers",
                "services",
            ],
        ),
        rule(&["delete"], "", &["pods"]),
        rule(&["create"], "", &["bindings", "pods/binding"]),
        rule(&["patch", "update"], "", &["pods/status"]),
        rule(READ, "apps", &["replicasets", "statefulsets"]),
        rule(READ, "policy", &["poddisruptionbudgets"]),
        rule(
            &["create", "get", "list", "patch", "update", "watch"],
            "coordination.k8s.io",
            &["leases"],
        ),
        rule(
            READ,
            "storage.k8s.io",
            &[
                "csidrivers",
                "csinodes",
                "csistoragecapacities",
                "storageclasses",
                "volumeattachments",
            ],
        ),
        rule(&["create"], "authentication.k8s.io", &["tokenreviews"]),
        rule(&["create"], "authorization.k8s.io", &["subjectaccessreviews"]),
    ];
    // CoreDNS's own role, and what it takes to publish where cluster DNS is.
    let dns = vec![
        rule(&["list", "watch"], "", &["endpoints", "namespaces", "pods", "services"]),
        rule(&["list", "watch"], "discovery.k8s.io", &["endpointslices"]),
        rule(&["create", "get"], "", &["services"]),
        rule(
            &["create", "delete", "get", "patch"],
            "discovery.k8s.io",
            &["endpointslices"],
        ),
        rule(
            &["create", "delete", "get", "patch"],
            "coordination.k8s.io",
            &["leases"],
        ),
    ];
    vec![
        role("system:skiff-dns", dns),
        role("system:node", [node, events().to_vec()].concat()),
        role("system:node-proxier", [proxier, events().to_vec()].concat()),
        role("system:skiff-ingress", ingress),
        role("system:kube-scheduler", [scheduler, events().to_vec()].concat()),
        role(
            "system:volume-scheduler",
            vec![
                rule(
                    &["get", "list", "patch", "update", "watch"],
                    "",
                    &["persistentvolumeclaims", "persistentvolumes"],
                ),
                rule(READ, "storage.k8s.io", &["storageclasses"]),
            ],
        ),
        // What a kubelet needs to provision volumes on its node; admission keeps it to its own.
        role(
            "system:node:local-path-provisioner",
            vec![
                rule(READ, "", &["persistentvolumeclaims"]),
                rule(
                    &["create", "delete", "get", "list", "patch", "watch"],
                    "",
                    &["persistentvolumes"],
                ),
                rule(&["get"], "storage.k8s.io", &["storageclasses"]),
            ],
        ),
        // One identity for all controllers until each gets its own: the garbage collector alone needs nearly everything.
        role(
            "system:kube-controller-manager",
            vec![rule(ANY, "*", ANY), urls(&["get"], ANY)],
        ),
        role(
            "system:node-bootstrapper",
            vec![rule(
                &["create", "get", "list", "watch"],
                "certificates.k8s.io",
                &["certificatesigningrequests"],
            )],
        ),
        role(
            "system:service-account-issuer-discovery",
            vec![urls(
                &["get"],
                &[
                    "/.well-known/openid-configuration",
                    "/.well-known/openid-configuration/",
                    "/openid/v1/jwks",
                    "/openid/v1/jwks/",
                ],
            )],
        ),
    ]
}

fn bindings() -> Vec<Value> {
    const GROUP_KIND: &str = "Group";
    const USER: &str = "User";
    [
        ("cluster-admin", "cluster-admin", GROUP_KIND, &["system:masters"][..]),
        (
            "system:discovery",
            "system:discovery",
            GROUP_KIND,
            &["system:authenticated"],
        ),
        (
            "system:basic-user",
            "system:basic-user",
            GROUP_KIND,
            &["system:authenticated"],
        ),
        (
            "system:public-info-viewer",
            "system:public-info-viewer",
            GROUP_KIND,
            &["system:authenticated", "system:unauthenticated"],
        ),
        (
            "system:monitoring",
            "system:monitoring",
            GROUP_KIND,
            &["system:monitoring"],
        ),
        // As upstream: there for those who want it; nodes are authorized by what they run.
        ("system:node", "system:node", GROUP_KIND, &[]),
        (
            "system:node:local-path-provisioner",
            "system:node:local-path-provisioner",
            GROUP_KIND,
            &["system:nodes"],
        ),
        (
            "system:node-proxier",
            "system:node-proxier",
            USER,
            &["system:kube-proxy"],
        ),
        ("system:skiff-dns", "system:skiff-dns", USER, &["system:skiff-dns"]),
        (
            "system:skiff-ingress",
            "system:skiff-ingress",
            USER,
            &["system:skiff-ingress"],
        ),
        (
            "system:kube-scheduler",
            "system:kube-scheduler",
            USER,
            &["system:kube-scheduler"],
        ),
        (
            "system:volume-scheduler",
            "system:volume-scheduler",
            USER,
            &["system:kube-scheduler"],
        ),
        (
            "system:kube-controller-manager",
            "system:kube-controller-manager",
            USER,
            &["system:kube-controller-manager"],
        ),
        (
            "system:service-account-issuer-discovery",
            "system:service-account-issuer-discovery",
            GROUP_KIND,
            &["system:serviceaccounts"],
        ),
    ]
    .map(|(name, role, kind, subjects)| {
        let subjects: Vec<Value> = subjects
            .iter()
            .map(|subject| json!({"apiGroup": GROUP, "kind": kind, "name": subject}))
            .collect();
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": metadata(name),
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
            "subjects": subjects,
        })
    })
    .into()
}
