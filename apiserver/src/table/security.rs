//! Bindings of roles, certificate signing requests.

use jiff::Timestamp;
use serde_json::Value;
use skiff_api::meta;

use super::read::{NONE, at, list, or, text};
use super::{AGE, Column, NAME, Printer, age};

pub(super) static BINDINGS: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Role"),
        AGE,
        Column::wide("Users"),
        Column::wide("Groups"),
        Column::wide("ServiceAccounts"),
    ],
    row: binding,
};

fn binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let subjects = |kind: &str| {
        let names = list(object, "subjects")
            .iter()
            .filter(|subject| text(subject, "kind") == kind)
            .map(|subject| match (kind, text(subject, "namespace")) {
                ("ServiceAccount", namespace) if !namespace.is_empty() => {
                    format!("{namespace}/{}", text(subject, "name"))
                }
                _ => text(subject, "name").to_owned(),
            });
        names.collect::<Vec<_>>().join(", ").into()
    };
    vec![
        meta::name(object).into(),
        format!("{}/{}", text(object, "roleRef.kind"), text(object, "roleRef.name")).into(),
        age::of(object, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

pub(super) static SIGNING_REQUESTS: Printer = Printer {
    columns: &[
        NAME,
        AGE,
        Column::text("SignerName"),
        Column::text("Requestor"),
        Column::text("RequestedDuration"),
        Column::text("Condition"),
    ],
    row: |object, now| {
        let duration = at(object, "spec.expirationSeconds").as_i64().map(age::human_duration);
        vec![
            meta::name(object).into(),
            age::of(object, now),
            or(text(object, "spec.signerName"), NONE).into(),
            text(object, "spec.username").into(),
            duration.unwrap_or_else(|| NONE.to_owned()).into(),
            state(object).into(),
        ]
    },
};

fn state(request: &Value) -> String {
    // These conditions count by being there.
    let has = |kind: &str| {
        list(request, "status.conditions")
            .iter()
            .any(|condition| text(condition, "type") == kind)
    };
    let mut state = if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if has("Failed") {
        state.push_str(",Failed");
    }
    if !text(request, "status.certificate").is_empty() {
        state.push_str(",Issued");
    }
    state
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::check;

    #[test]
    fn bindings() {
        let binding = json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "admin"},
            "subjects": [{"kind": "User", "name": "jane"}, {"kind": "User", "name": "joe"}, {"kind": "ServiceAccount", "namespace": "n", "name": "s"}]});
        check(
            "rbac.authorization.k8s.io",
            "rolebindings",
            &binding,
            "NAME | ROLE | AGE | USERS | GROUPS | SERVICEACCOUNTS",
            "b | ClusterRole/admin | <unknown> | jane, joe |  | n/s",
        );
    }

    #[test]
    fn requests() {
        let headings = "NAME | AGE | SIGNERNAME | REQUESTOR | REQUESTEDDURATION | CONDITION";
        let mut request = json!({"metadata": {"name": "c"}, "spec": {"signerName": "a/b", "username": "jane", "expirationSeconds": 86400}});
        check(
            "certificates.k8s.io",
            "certificatesigningrequests",
            &request,
            headings,
            "c | <unknown> | a/b | jane | 24h | Pending",
        );
        request["status"] = json!({"conditions": [{"type": "Approved"}], "certificate": "x"});
        check(
            "certificates.k8s.io",
            "certificatesigningrequests",
            &request,
            headings,
            "c | <unknown> | a/b | jane | 24h | Approved,Issued",
        );
    }
}
