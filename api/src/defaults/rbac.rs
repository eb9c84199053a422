//! Role bindings.

use serde_json::Value;

use super::{Fields, child, items, text};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn apply(kind: &str, object: &mut Fields) {
    match kind {
        "RoleBinding" | "ClusterRoleBinding" => {
            if let Some(role) = child(object, "roleRef") {
                text(role, "apiGroup", GROUP);
            }
            for subject in items(object, "subjects") {
                if matches!(subject.get("kind").and_then(Value::as_str), Some("User" | "Group")) {
                    text(subject, "apiGroup", GROUP);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::applied;

    #[test]
    fn groups_of_subjects() {
        let binding = json!({"roleRef": {"kind": "Role", "name": "r"},
            "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}]});
        assert_eq!(
            applied("rbac.authorization.k8s.io", "RoleBinding", binding),
            json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}]})
        );
    }
}
