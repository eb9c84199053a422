//! The roles and bindings that upstream's clusters begin with.

mod addons;
mod certificates;
mod components;
mod controllers;

use serde_json::{Value, json};
use skiff_api::meta;

use super::Resource;
use crate::authorization::{Rule, Rules, all_held};
use components::{COMPONENTS, IN_KUBE_SYSTEM};
use controllers::{CONTROLLERS, NAMESPACED};

const GROUP: &str = "rbac.authorization.k8s.io";
const ROLES: Resource = (GROUP, "clusterroles");
const BINDINGS: Resource = (GROUP, "clusterrolebindings");
const ROLES_OF_NAMESPACES: Resource = (GROUP, "roles");
const ROLE_BINDINGS: Resource = (GROUP, "rolebindings");

const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

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
    let roles = roles.chain(certificates::roles());
    let roles = roles.map(|object| (ROLES, object));
    roles
        .chain(bindings().into_iter().map(|object| (BINDINGS, object)))
        .chain(certificates::bindings())
        .chain(addons::objects())
        .chain(certificates::cluster_info())
        .chain(controller_roles())
        .chain(IN_KUBE_SYSTEM.iter().flat_map(|(user, lines)| {
            let binding = binding(user, user, &Subjects::User(user));
            of_namespace("kube-system", binding, lines)
        }))
        .collect()
}

/// A default role or binding with what it lacks of the wanted one; `None` when it lacks nothing, or is not to be touched.
pub(super) fn completed(current: &Value, wanted: &Value) -> Option<Value> {
    if meta::annotation(current, AUTOUPDATE) == Some("false") {
        return None;
    }
    let mut completed = current.clone();
    for key in ["rules", "subjects"] {
        let Some(wanted) = wanted[key].as_array() else { continue };
        let held = current[key].as_array().map_or(&[][..], Vec::as_slice);
        let missing = wanted.iter().filter(|item| !holds(key, held, item));
        let missing: Vec<Value> = missing.cloned().collect();
        if !missing.is_empty() {
            completed[key] = [held, &missing].concat().into();
        }
    }
    (completed != *current).then_some(completed)
}

fn holds(key: &str, held: &[Value], wanted: &Value) -> bool {
    if key == "subjects" {
        let same = |field: &str, held: &Value| held[field] == wanted[field];
        return held
            .iter()
            .any(|held| ["kind", "name", "namespace"].iter().all(|field| same(field, held)));
    }
    let parse = |rule: &Value| serde_json::from_value::<Rule>(rule.clone()).unwrap_or_default();
    all_held(&[Rules(held.iter().map(parse).collect())], &parse(wanted))
}

/// One rule of a table: verbs and resources are words.
#[derive(Clone, Copy, Debug)]
struct Line {
    verbs: &'static str,
    group: &'static str,
    resources: &'static str,
    names: &'static str,
}

impl Line {
    const fn new(verbs: &'static str, group: &'static str, resources: &'static str) -> Self {
        Self {
            verbs,
            group,
            resources,
            names: "",
        }
    }

    /// The same for objects of these names.
    const fn only(self, names: &'static str) -> Self {
        Self { names, ..self }
    }

    fn rule(&self) -> Value {
        let words = |text: &'static str| text.split_whitespace().collect::<Vec<_>>();
        let mut rule = rule(&words(self.verbs), self.group, &words(self.resources));
        if !self.names.is_empty() {
            rule["resourceNames"] = words(self.names).into();
        }
        rule
    }
}

/// Whom a binding is for.
enum Subjects<'a> {
    Groups(&'a [&'a str]),
    User(&'a str),
    Account(&'a str),
}

fn binding(name: &str, role: &str, subjects: &Subjects<'_>) -> Value {
    let subjects: Vec<Value> = match *subjects {
        Subjects::Groups(groups) => groups
            .iter()
            .map(|group| json!({"apiGroup": GROUP, "kind": "Group", "name": group}))
            .collect(),
        Subjects::User(user) => vec![json!({"apiGroup": GROUP, "kind": "User", "name": user})],
        Subjects::Account(account) => {
            vec![json!({"kind": "ServiceAccount", "name": account, "namespace": "kube-system"})]
        }
    };
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": metadata(name),
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
        "subjects": subjects,
    })
}

/// Makes a cluster's role or binding one of a namespace.
fn in_namespace(object: &mut Value, kind: &str, namespace: &str) {
    object["kind"] = kind.into();
    object["metadata"]["namespace"] = namespace.into();
}

/// A role and a binding for each controller.
fn controller_roles() -> Vec<(Resource, Value)> {
    let mut objects = Vec::new();
    for (name, lines) in CONTROLLERS {
        let full = format!("system:controller:{name}");
        let rules = lines.iter().map(Line::rule).chain(events()).collect();
        objects.push((ROLES, role(&full, rules)));
        objects.push((BINDINGS, binding(&full, &full, &Subjects::Account(name))));
    }
    for (namespace, name, lines) in NAMESPACED {
        let full = format!("system:controller:{name}");
        let binding = binding(&full, &full, &Subjects::Account(name));
        objects.extend(of_namespace(namespace, binding, lines));
    }
    objects
}

/// A role of a namespace, under the name of the binding that is made one of the namespace with it.
fn of_namespace(namespace: &str, mut binding: Value, lines: &[Line]) -> [(Resource, Value); 2] {
    let mut role = role(meta::name(&binding), lines.iter().map(Line::rule).collect());
    binding["roleRef"]["kind"] = "Role".into();
    in_namespace(&mut role, "Role", namespace);
    in_namespace(&mut binding, "RoleBinding", namespace);
    [(ROLES_OF_NAMESPACES, role), (ROLE_BINDINGS, binding)]
}

fn rule(verbs: &[&str], group: &str, resources: &[&str]) -> Value {
    json!({"verbs": verbs, "apiGroups": [group], "resources": resources})
}

fn urls(verbs: &[&str], urls: &[&str]) -> Value {
    json!({"verbs": verbs, "nonResourceURLs": urls})
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {AUTOUPDATE: "true"},
    })
}

fn role(name: &str, rules: Vec<Value>) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": metadata(name), "rules": rules})
}

/// A role whose rules become part of the role that it names by label.
fn part(name: &str, of: &str, rules: Vec<Value>) -> Value {
    let mut role = role(name, rules);
    role["metadata"]["labels"][aggregate_to(of)] = "true".into();
    role
}

/// A role made of the parts that name it, and itself a part of a wider one.
fn whole(name: &str, of: Option<&str>) -> Value {
    let mut role = match of {
        Some(wider) => part(name, wider, Vec::new()),
        None => role(name, Vec::new()),
    };
    role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {aggregate_to(name): "true"}}]});
    role
}

fn aggregate_to(role: &str) -> String {
    format!("rbac.authorization.k8s.io/aggregate-to-{role}")
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
                rule(
                    ANY,
                    "",
                    &[
                        "nodes/configz",
                        "nodes/healthz",
                        "nodes/log",
                        "nodes/metrics",
                        "nodes/pods",
                        "nodes/proxy",
                        "nodes/stats",
                    ],
                ),
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
        whole("view", Some("edit")),
        whole("edit", Some("admin")),
        whole("admin", None),
        part("system:aggregate-to-view", "view", view),
        part("system:aggregate-to-edit", "edit", edit),
        part("system:aggregate-to-admin", "admin", admin),
        part(
            "system:aggregated-metrics-reader",
            "view",
            vec![rule(READ, "metrics.k8s.io", &["nodes", "pods"])],
        ),
    ]
}

fn events() -> [Value; 2] {
    let verbs = &["create", "patch", "update"];
    [rule(verbs, "", &["events"]), rule(verbs, "events.k8s.io", &["events"])]
}

fn components() -> Vec<Value> {
    let role_of = |(name, lines): &(&str, &[Line])| role(name, lines.iter().map(Line::rule).collect());
    let mut roles: Vec<Value> = COMPONENTS.iter().map(role_of).collect();
    roles.push(role(
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
    ));
    roles
}

fn bindings() -> Vec<Value> {
    const GROUP_KIND: &str = "Group";
    const USER: &str = "User";
    [
        ("cluster-admin", "cluster-admin", GROUP_KIND, &["system:masters"][..]),
        // Manifests on a server's disk may hold any kind of object, roles too. Not a master: whoever wants less narrows the binding.
        (
            "system:skiff-manifests",
            "cluster-admin",
            USER,
            &["system:skiff-manifests"],
        ),
        // How the servers reach kubelets: kubeadm's name of the identity.
        (
            "skiff:apiserver-kubelet-client",
            "system:kubelet-api-admin",
            USER,
            &["kube-apiserver-kubelet-client"],
        ),
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
    .map(|(name, role, kind, subjects)| match (kind, subjects) {
        (USER, [user]) => binding(name, role, &Subjects::User(user)),
        _ => binding(name, role, &Subjects::Groups(subjects)),
    })
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_bindings_lead_somewhere() {
        let objects = objects();
        let id = |resource: &Resource, object: &Value| {
            format!("{}/{}/{}", resource.1, meta::namespace(object), meta::name(object))
        };
        let mut ids: Vec<String> = objects.iter().map(|(resource, object)| id(resource, object)).collect();
        let count = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), count);
        for (_, binding) in objects.iter().filter(|(resource, _)| resource.1.ends_with("bindings")) {
            let (kind, name) = (
                &binding["roleRef"]["kind"],
                binding["roleRef"]["name"].as_str().unwrap(),
            );
            let role = match kind.as_str().unwrap() {
                "Role" => format!("roles/{}/{name}", meta::namespace(binding)),
                _ => format!("clusterroles//{name}"),
            };
            assert!(ids.contains(&role), "{role}");
        }
    }

    #[test]
    fn only_masters_may_do_everything() {
        let roles = objects()
            .into_iter()
            .filter(|(resource, _)| !resource.1.ends_with("bindings"));
        for (_, role) in roles {
            let everything = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]});
            let rules = role["rules"].as_array().map_or(&[][..], Vec::as_slice);
            let may = holds("rules", rules, &everything);
            assert_eq!(may, meta::name(&role) == "cluster-admin", "{}", meta::name(&role));
        }
    }

    #[test]
    fn what_is_there_gets_what_it_lacks() {
        let one = rule(&["get"], "", &["pods"]);
        let two = rule(&["get"], "", &["nodes"]);
        let wanted = role("r", vec![one.clone(), two.clone()]);
        let mut current = role("r", vec![rule(&["*"], "", &["pods"])]);
        let completed_rules = completed(&current, &wanted).unwrap()["rules"].clone();
        assert_eq!(completed_rules, json!([rule(&["*"], "", &["pods"]), two]));
        assert_eq!(completed(&wanted, &wanted), None);
        current["metadata"]["annotations"][AUTOUPDATE] = "false".into();
        assert_eq!(completed(&current, &wanted), None);
        let bound = binding("b", "r", &Subjects::User("u"));
        let mut unbound = bound.clone();
        unbound["subjects"] = json!([]);
        assert_eq!(completed(&unbound, &bound).unwrap(), bound);
    }
}
