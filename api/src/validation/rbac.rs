//! Roles and bindings.

use serde_json::Value;

use super::Errors;
use super::read::{get, is_empty, list, text};
use crate::field::{Error, Path};
use crate::names;

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn role(object: &Value, errors: &mut Errors) {
    rules(object, true, errors);
}

pub(super) fn cluster_role(object: &Value, errors: &mut Errors) {
    rules(object, false, errors);
}

fn rules(object: &Value, namespaced: bool, errors: &mut Errors) {
    let root = Path::root("rules");
    for (i, rule) in list(object, "rules").iter().enumerate() {
        let path = root.index(i);
        if is_empty(rule, "verbs") {
            errors.push(Error::required(
                &path.child("verbs"),
                "verbs must contain at least one value",
            ));
        }
        if !is_empty(rule, "nonResourceURLs") {
            let urls = path.child("nonResourceURLs");
            if namespaced {
                let detail = "namespaced rules cannot apply to non-resource URLs";
                errors.push(Error::invalid(&urls, get(rule, "nonResourceURLs").clone(), detail));
            }
            if ["apiGroups", "resources", "resourceNames"]
                .iter()
                .any(|key| !is_empty(rule, key))
            {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(Error::invalid(&urls, get(rule, "nonResourceURLs").clone(), detail));
            }
            continue;
        }
        if is_empty(rule, "apiGroups") {
            let detail = "resource rules must supply at least one api group";
            errors.push(Error::required(&path.child("apiGroups"), detail));
        }
        if is_empty(rule, "resources") {
            let detail = "resource rules must supply at least one resource";
            errors.push(Error::required(&path.child("resources"), detail));
        }
    }
}

pub(super) fn role_binding(object: &Value, errors: &mut Errors) {
    binding(object, &["Role", "ClusterRole"], true, errors);
}

pub(super) fn cluster_role_binding(object: &Value, errors: &mut Errors) {
    binding(object, &["ClusterRole"], false, errors);
}

fn binding(object: &Value, kinds: &[&str], namespaced: bool, errors: &mut Errors) {
    let path = Path::root("roleRef");
    let role = get(object, "roleRef");
    if text(role, "apiGroup") != GROUP {
        errors.push(Error::not_supported(
            &path.child("apiGroup"),
            text(role, "apiGroup"),
            &[GROUP],
        ));
    }
    if !kinds.contains(&text(role, "kind")) {
        errors.push(Error::not_supported(&path.child("kind"), text(role, "kind"), kinds));
    }
    if text(role, "name").is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    } else {
        super::read::complain(
            &path.child("name"),
            text(role, "name"),
            names::path_segment(text(role, "name")),
            errors,
        );
    }
    let root = Path::root("subjects");
    for (i, subject) in list(object, "subjects").iter().enumerate() {
        one_subject(&root.index(i), subject, namespaced, errors);
    }
}

fn one_subject(path: &Path<'_>, subject: &Value, namespaced: bool, errors: &mut Errors) {
    let (name, group) = (text(subject, "name"), text(subject, "apiGroup"));
    if name.is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    }
    match text(subject, "kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                super::read::complain(&path.child("name"), name, names::dns1123_subdomain(name), errors);
            }
            if !group.is_empty() {
                errors.push(Error::not_supported(&path.child("apiGroup"), group, &[""]));
            }
            if !namespaced && text(subject, "namespace").is_empty() {
                errors.push(Error::required(&path.child("namespace"), ""));
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errors.push(Error::not_supported(&path.child("apiGroup"), group, &[GROUP]));
            }
        }
        kind => errors.push(Error::not_supported(
            &path.child("kind"),
            kind,
            &["ServiceAccount", "User", "Group"],
        )),
    }
}

pub(super) fn binding_update(new: &Value, old: &Value, errors: &mut Errors) {
    if get(new, "roleRef") != get(old, "roleRef") {
        errors.push(Error::invalid(
            &Path::root("roleRef"),
            get(new, "roleRef").clone(),
            "cannot change roleRef",
        ));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{created, updated};
    use super::*;

    #[test]
    fn roles() {
        let role = json!({"metadata": {"name": "system:a", "namespace": "b"}, "rules": [{"verbs": ["get"]}, {"apiGroups": [""], "resources": ["pods"]}]});
        assert_eq!(
            created(GROUP, "Role", &role),
            [
                "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[0].resources: Required value: resource rules must supply at least one resource",
                "rules[1].verbs: Required value: verbs must contain at least one value",
            ]
        );
    }

    #[test]
    fn bindings() {
        let binding = |role: &str| {
            json!({"metadata": {"name": "a"}, "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": "s", "namespace": "n"}]})
        };
        assert_eq!(created(GROUP, "ClusterRoleBinding", &binding("r")), [""; 0]);
        assert_eq!(
            updated(GROUP, "ClusterRoleBinding", &binding("r"), &binding("q")),
            [
                "roleRef: Invalid value: {\"apiGroup\":\"rbac.authorization.k8s.io\",\"kind\":\"ClusterRole\",\"name\":\"r\"}: cannot change roleRef"
            ]
        );
    }
}
