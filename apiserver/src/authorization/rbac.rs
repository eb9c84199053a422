//! Roles and bindings, compiled from the watch cache into what each user and group may do.
//!
//! Compiled anew when one of the four resources changed; parsed roles are kept by revision. A request then costs a few hash lookups
//! and a walk over the rules of the user's own bindings.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use skiff_api::selector::LabelSelector;

use super::Attributes;
use crate::authentication::User;
use crate::cache::{Cache, Object};

/// One rule of a role.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// What may be done.
    pub verbs: Vec<String>,
    /// In these API groups,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// to these resources,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// of these names (all when empty);
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// or to these paths.
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

/// Rules that come from one binding.
#[derive(Debug, Clone)]
pub struct Rules(pub Arc<[Rule]>);

impl Rules {
    /// Everything.
    pub fn everything() -> Self {
        let all = || vec!["*".to_owned()];
        Self(Arc::new([
            Rule {
                verbs: all(),
                api_groups: all(),
                resources: all(),
                ..Rule::default()
            },
            Rule {
                verbs: all(),
                non_resource_urls: all(),
                ..Rule::default()
            },
        ]))
    }
}

/// What one binding grants.
#[derive(Debug)]
struct Grant {
    /// Where; `None` for everywhere.
    namespace: Option<Box<str>>,
    rules: Arc<[Rule]>,
    why: Box<str>,
}

/// The four resources that roles live in.
#[derive(Debug)]
pub struct Sources {
    /// `roles`
    pub roles: Arc<Cache>,
    /// `clusterroles`
    pub cluster_roles: Arc<Cache>,
    /// `rolebindings`
    pub role_bindings: Arc<Cache>,
    /// `clusterrolebindings`
    pub cluster_role_bindings: Arc<Cache>,
}

#[derive(Debug, Default)]
struct Compiled {
    revisions: [u64; 4],
    users: HashMap<String, Vec<Arc<Grant>>>,
    groups: HashMap<String, Vec<Arc<Grant>>>,
}

/// Evaluates roles.
#[derive(Debug)]
pub struct Rbac {
    sources: Sources,
    compiled: ArcSwap<Compiled>,
    parsed: Mutex<Parsed>,
}

/// Parsed roles by key, each with the revision that it was parsed at; those that are gone are left out when all is compiled anew.
type Parsed = HashMap<Arc<str>, (u64, Arc<Role>)>;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Role {
    rules: Option<Vec<Rule>>,
    aggregation_rule: Option<Aggregation>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Aggregation {
    cluster_role_selectors: Vec<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Binding {
    subjects: Option<Vec<Subject>>,
    role_ref: RoleRef,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RoleRef {
    kind: String,
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

impl Rbac {
    /// Evaluates the roles in these caches.
    pub fn new(sources: Sources) -> Self {
        Self {
            sources,
            compiled: ArcSwap::default(),
            parsed: Mutex::default(),
        }
    }

    /// Why it is allowed; `None` when it is not.
    pub fn allows(&self, user: &User, attributes: &Attributes<'_>) -> Option<String> {
        let compiled = self.compiled();
        compiled
            .grants(user, attributes.namespace)
            .find(|(grant, _)| grant.rules.iter().any(|rule| covers(rule, attributes)))
            .map(|(grant, group)| match group {
                Some(group) => format!("RBAC: allowed by {} to Group \"{group}\"", grant.why),
                None => format!("RBAC: allowed by {} to User \"{}\"", grant.why, user.name),
            })
    }

    /// Whether it is allowed.
    pub fn is_allowed(&self, user: &User, attributes: &Attributes<'_>) -> bool {
        self.compiled()
            .grants(user, attributes.namespace)
            .any(|(grant, _)| grant.rules.iter().any(|rule| covers(rule, attributes)))
    }

    /// All rules of a user in a namespace.
    pub fn rules(&self, user: &User, namespace: &str) -> Vec<Rules> {
        self.compiled()
            .grants(user, namespace)
            .map(|(grant, _)| Rules(Arc::clone(&grant.rules)))
            .collect()
    }

    /// The rules of a role; `None` when it does not exist. `namespace` is that of a Role, and empty for a ClusterRole.
    pub fn role(&self, namespace: &str, name: &str) -> Option<Rules> {
        let mut parsed = self.parsed.lock();
        let rules = if namespace.is_empty() {
            let role = self.sources.cluster_roles.get("", name)?;
            rules_of(&role, &self.sources.cluster_roles.all(""), &mut parsed)
        } else {
            rules_of(&self.sources.roles.get(namespace, name)?, &[], &mut parsed)
        };
        Some(Rules(rules))
    }

    fn revisions(&self) -> [u64; 4] {
        [
            self.sources.roles.revision(),
            self.sources.cluster_roles.revision(),
            self.sources.role_bindings.revision(),
            self.sources.cluster_role_bindings.revision(),
        ]
    }

    fn compiled(&self) -> arc_swap::Guard<Arc<Compiled>> {
        let compiled = self.compiled.load();
        if compiled.revisions == self.revisions() {
            return compiled;
        }
        let mut parsed = self.parsed.lock();
        let revisions = self.revisions();
        if self.compiled.load().revisions != revisions {
            self.compiled.store(Arc::new(self.compile(revisions, &mut parsed)));
        }
        self.compiled.load()
    }

    fn compile(&self, revisions: [u64; 4], parsed: &mut Parsed) -> Compiled {
        let cluster_roles = self.sources.cluster_roles.all("");
        let roles = self.sources.roles.all("");
        let there: HashSet<&str> = cluster_roles.iter().chain(&roles).map(|role| &**role.key()).collect();
        parsed.retain(|key, _| there.contains(&**key));
        let mut compiled = Compiled {
            revisions,
            ..Compiled::default()
        };
        let mut cluster_rules: HashMap<String, Arc<[Rule]>> = HashMap::new();
        for object in &cluster_roles {
            let rules = rules_of(object, &cluster_roles, parsed);
            cluster_rules.insert(object.name().to_owned(), rules);
        }
        for object in self.sources.cluster_role_bindings.all("") {
            let binding: Binding = parse(&object);
            if let Some(rules) = cluster_rules.get(&binding.role_ref.name) {
                let why = format!(
                    "ClusterRoleBinding \"{}\" of ClusterRole \"{}\"",
                    object.name(),
                    binding.role_ref.name
                );
                compiled.add(binding, None, "", Arc::clone(rules), why);
            }
        }
        for object in self.sources.role_bindings.all("") {
            let binding: Binding = parse(&object);
            let namespace = object.namespace();
            let rules = match binding.role_ref.kind.as_str() {
                "ClusterRole" => cluster_rules.get(&binding.role_ref.name).cloned(),
                _ => self
                    .sources
                    .roles
                    .get(namespace, &binding.role_ref.name)
                    .map(|role| rules_of(&role, &[], parsed)),
            };
            if let Some(rules) = rules {
                let why = format!(
                    "RoleBinding \"{}/{namespace}\" of {} \"{}\"",
                    object.name(),
                    binding.role_ref.kind,
                    binding.role_ref.name
                );
                compiled.add(binding, Some(namespace), namespace, rules, why);
            }
        }
        compiled
    }
}

impl Compiled {
    fn add(&mut self, binding: Binding, scope: Option<&str>, namespace: &str, rules: Arc<[Rule]>, why: String) {
        let grant = Arc::new(Grant {
            namespace: scope.map(Into::into),
            rules,
            why: why.into(),
        });
        for subject in binding.subjects.into_iter().flatten() {
            let grants = match subject.kind.as_str() {
                "Group" => self.groups.entry(subject.name).or_default(),
                "User" => self.users.entry(subject.name).or_default(),
                "ServiceAccount" => {
                    let namespace = if subject.namespace.is_empty() {
                        namespace
                    } else {
                        &subject.namespace
                    };
                    let name = format!("system:serviceaccount:{namespace}:{}", subject.name);
                    self.users.entry(name).or_default()
                }
                _ => continue,
            };
            grants.push(Arc::clone(&grant));
        }
    }

    /// The grants of a user that hold in a namespace, each with the group that it was given to, if it was one.
    fn grants<'a>(&'a self, user: &'a User, namespace: &'a str) -> impl Iterator<Item = (&'a Grant, Option<&'a str>)> {
        let own = self
            .users
            .get(&user.name)
            .into_iter()
            .flatten()
            .map(|grant| (grant, None));
        let groups = user.groups.iter().flat_map(|group| {
            self.groups
                .get(group)
                .into_iter()
                .flatten()
                .map(move |grant| (grant, Some(group.as_str())))
        });
        own.chain(groups)
            .filter(move |(grant, _)| grant.namespace.as_deref().is_none_or(|scope| scope == namespace))
            .map(|(grant, group)| (&**grant, group))
    }
}

fn parse<T: DeserializeOwned + Default>(object: &Object) -> T {
    serde_json::from_slice(&object.bytes).unwrap_or_default()
}

fn rules_of(object: &Arc<Object>, all: &[Arc<Object>], parsed: &mut Parsed) -> Arc<[Rule]> {
    let mut rules = Vec::new();
    let mut seen = Vec::new();
    collect(object, all, parsed, &mut seen, &mut rules);
    rules.into()
}

/// Adds the rules of a role, and of the roles that it is made of: those of their parts too, so that nothing waits for the
/// controller that writes them down.
fn collect(
    object: &Arc<Object>,
    all: &[Arc<Object>],
    parsed: &mut Parsed,
    seen: &mut Vec<Arc<Object>>,
    rules: &mut Vec<Rule>,
) {
    if seen.iter().any(|other| Arc::ptr_eq(other, object)) {
        return;
    }
    seen.push(Arc::clone(object));
    let role = match parsed.get(object.key()) {
        Some((revision, role)) if *revision == object.revision => Arc::clone(role),
        _ => {
            let role = Arc::new(parse::<Role>(object));
            parsed.insert(Arc::clone(object.key()), (object.revision, Arc::clone(&role)));
            role
        }
    };
    for rule in role.rules.iter().flatten() {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    let selectors = role
        .aggregation_rule
        .iter()
        .flat_map(|rule| &rule.cluster_role_selectors);
    for selector in selectors.filter_map(|selector| LabelSelector::from_label_selector(Some(selector)).ok()) {
        for other in all.iter().filter(|other| selector.matches_with(|key| other.label(key))) {
            collect(other, all, parsed, seen, rules);
        }
    }
}

/// Whether `held` together allow all that `wanted` does.
pub fn all_held(held: &[Rules], wanted: &Rule) -> bool {
    // What is wanted for objects of any name must be held so: `""` in a list of names is a name, too.
    let names: Vec<Option<&String>> = match wanted.resource_names.as_slice() {
        [] => vec![None],
        names => names.iter().map(Some).collect(),
    };
    let held = || held.iter().flat_map(|rules| rules.0.iter());
    wanted.verbs.iter().all(|verb| {
        let urls = wanted.non_resource_urls.iter().all(|url| {
            held().any(|rule| {
                has(&rule.verbs, verb)
                    && rule.non_resource_urls.iter().any(|own| match own.strip_suffix('*') {
                        Some(prefix) => url.starts_with(prefix),
                        None => own == url,
                    })
            })
        });
        let resources = wanted.api_groups.iter().all(|group| {
            wanted.resources.iter().all(|resource| {
                names.iter().all(|name| {
                    held().any(|rule| {
                        has(&rule.verbs, verb)
                            && has(&rule.api_groups, group)
                            && holds_resource(&rule.resources, resource)
                            && (rule.resource_names.is_empty()
                                || name.is_some_and(|name| rule.resource_names.contains(name)))
                    })
                })
            })
        });
        urls && resources
    })
}

fn holds_resource(held: &[String], wanted: &str) -> bool {
    held.iter().any(|own| {
        own == "*"
            || own == wanted
            || match (own.strip_prefix("*/"), wanted.split_once('/')) {
                (Some(own), Some((_, subresource))) => own == subresource,
                _ => false,
            }
    })
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|entry| entry == "*" || entry == wanted)
}

/// Whether a rule covers what somebody wants to do.
fn covers(rule: &Rule, attributes: &Attributes<'_>) -> bool {
    if !has(&rule.verbs, attributes.verb) {
        return false;
    }
    if !attributes.is_resource {
        return rule.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
            Some(prefix) => attributes.path.starts_with(prefix),
            None => url == attributes.path,
        });
    }
    has(&rule.api_groups, attributes.group)
        && covers_resource(&rule.resources, attributes)
        && (rule.resource_names.is_empty() || rule.resource_names.iter().any(|name| name == attributes.name))
}

fn covers_resource(resources: &[String], attributes: &Attributes<'_>) -> bool {
    let Attributes {
        resource, subresource, ..
    } = *attributes;
    resources.iter().any(|entry| {
        if entry == "*" {
            return true;
        }
        // Taken apart from its end: a resource's place may be taken by a token's audience, which may hold slashes.
        match subresource {
            "" => entry == resource,
            _ => entry
                .strip_suffix(subresource)
                .and_then(|rest| rest.strip_suffix('/'))
                .is_some_and(|own| own == "*" || own == resource),
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Rbac, Rule, Rules, Sources, all_held, covers};
    use crate::authentication::User;
    use crate::authorization::Attributes;
    use crate::cache::tests::{fill, filled};

    fn list(items: &[&str]) -> Vec<String> {
        items.iter().map(|&item| item.to_owned()).collect()
    }

    #[test]
    fn rules_cover_what_they_name() {
        let get = |resource, subresource, name| Attributes {
            verb: "get",
            is_resource: true,
            resource,
            subresource,
            name,
            namespace: "n",
            ..Attributes::default()
        };
        let rule = |resources: &[&str], names: &[&str]| Rule {
            verbs: list(&["get"]),
            api_groups: list(&[""]),
            resources: list(resources),
            resource_names: list(names),
            ..Rule::default()
        };
        assert!(covers(&rule(&["pods"], &[]), &get("pods", "", "a")));
        assert!(!covers(&rule(&["pods"], &[]), &get("pods", "log", "a")));
        assert!(covers(&rule(&["pods/log"], &[]), &get("pods", "log", "a")));
        assert!(covers(&rule(&["*/log"], &[]), &get("pods", "log", "a")));
        assert!(covers(&rule(&["*"], &[]), &get("pods", "log", "a")));
        assert!(!covers(&rule(&["pods/log"], &[]), &get("pods", "", "a")));
        assert!(!covers(&rule(&["pods/log"], &[]), &get("nodes", "log", "a")));
        assert!(covers(&rule(&["https://a/b"], &[]), &get("https://a/b", "", "a")));
        assert!(covers(&rule(&["pods"], &["a"]), &get("pods", "", "a")));
        assert!(!covers(&rule(&["pods"], &["a"]), &get("pods", "", "b")));
        assert!(!covers(&rule(&["pods"], &["a"]), &get("pods", "", "")));
    }

    #[test]
    fn nobody_grants_what_they_do_not_hold() {
        let rule = |verbs: &[&str], resources: &[&str]| Rule {
            verbs: list(verbs),
            api_groups: list(&["apps"]),
            resources: list(resources),
            ..Rule::default()
        };
        let held = [
            Rules([rule(&["get", "list"], &["deployments"])].into()),
            Rules([rule(&["get"], &["replicasets", "*/status"])].into()),
        ];
        assert!(all_held(&held, &rule(&["get"], &["deployments", "replicasets"])));
        assert!(all_held(&held, &rule(&["get"], &["deployments/status"])));
        assert!(!all_held(
            &held,
            &rule(&["get", "list"], &["deployments", "replicasets"])
        ));
        assert!(!all_held(&held, &rule(&["*"], &["deployments"])));
        assert!(all_held(&[Rules::everything()], &rule(&["*"], &["*"])));
        let named = |names: &[&str]| Rule {
            resource_names: list(names),
            ..rule(&["get"], &["deployments"])
        };
        let held = |names: &[&str]| [Rules([named(names)].into())];
        for (own, wanted, are_held) in [
            (&["a", "b"][..], &["a"][..], true),
            (&["a"], &["a", "b"], false),
            (&[], &["a"], true),
            (&["a"], &[], false),
            (&[""], &[], false),
            (&[""], &[""], true),
        ] {
            assert_eq!(all_held(&held(own), &named(wanted)), are_held, "{wanted:?} by {own:?}");
        }
    }

    #[test]
    fn roles_that_are_gone_are_not_kept() {
        let cache = |plural| filled("rbac.authorization.k8s.io", plural, &[]);
        let sources = || Sources {
            roles: cache("roles"),
            cluster_roles: cache("clusterroles"),
            role_bindings: cache("rolebindings"),
            cluster_role_bindings: cache("clusterrolebindings"),
        };
        let rbac = Rbac::new(sources());
        let role = |name: &str| {
            let rules = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
            json!({"metadata": {"namespace": "n", "name": name}, "rules": rules})
        };
        let read = || {
            let get = Attributes {
                verb: "get",
                is_resource: true,
                resource: "pods",
                namespace: "n",
                ..Attributes::default()
            };
            rbac.is_allowed(&User::new("joe", ["dev"]), &get)
        };
        let bound = json!({
            "metadata": {"namespace": "n", "name": "b"},
            "roleRef": {"kind": "Role", "name": "r0"},
            "subjects": [{"kind": "User", "name": "joe"}],
        });
        fill(&rbac.sources.role_bindings, 2, &[bound]);
        for revision in 2..5 {
            let names = [format!("r{}", revision - 2), format!("s{revision}")];
            fill(&rbac.sources.roles, revision, &names.map(|name| role(&name)));
            assert_eq!(read(), revision == 2, "at {revision}");
            // As the check of who grants it reads it.
            assert!(rbac.role("n", &format!("s{revision}")).is_some());
            assert!(
                rbac.parsed.lock().len() <= 3,
                "at {revision}: {:?}",
                rbac.parsed.lock().keys()
            );
        }
    }

    #[test]
    fn paths_may_end_in_a_star() {
        let rule = Rule {
            verbs: list(&["get"]),
            non_resource_urls: list(&["/healthz", "/openapi/*"]),
            ..Rule::default()
        };
        let get = |path| Attributes {
            verb: "get",
            path,
            ..Attributes::default()
        };
        assert!(covers(&rule, &get("/healthz")));
        assert!(covers(&rule, &get("/openapi/v3/apis")));
        assert!(!covers(&rule, &get("/healthz/etcd")));
    }
}
