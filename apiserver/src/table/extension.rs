//! What extends the API server.

use serde_json::Value;
use skiff_api::meta;

use super::read::{UNSET, at, list, or, text};
use super::{AGE, Column, NAME, Printer, age};

pub(super) static WEBHOOKS: Printer = Printer {
    columns: &[NAME, Column::integer("Webhooks"), AGE],
    row: |object, now| {
        vec![
            meta::name(object).into(),
            list(object, "webhooks").len().into(),
            age::of(object, now),
        ]
    },
};

pub(super) static POLICIES: Printer = Printer {
    columns: &[NAME, Column::integer("Validations"), Column::text("ParamKind"), AGE],
    row: |object, now| {
        let kind = match at(object, "spec.paramKind") {
            Value::Null => UNSET.to_owned(),
            kind => format!("{}/{}", text(kind, "apiVersion"), text(kind, "kind")),
        };
        vec![
            meta::name(object).into(),
            list(object, "spec.validations").len().into(),
            kind.into(),
            age::of(object, now),
        ]
    },
};

pub(super) static POLICY_BINDINGS: Printer = Printer {
    columns: &[NAME, Column::text("PolicyName"), Column::text("ParamRef"), AGE],
    row: |object, now| {
        let reference = at(object, "spec.paramRef");
        let shown = match (text(reference, "namespace"), text(reference, "name")) {
            _ if reference.is_null() => UNSET.to_owned(),
            ("", name) => or(name, "*").to_owned(),
            (namespace, name) => format!("{namespace}/{}", or(name, "*")),
        };
        vec![
            meta::name(object).into(),
            text(object, "spec.policyName").into(),
            shown.into(),
            age::of(object, now),
        ]
    },
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::check;

    #[test]
    fn webhooks() {
        let hooks = json!({"metadata": {"name": "h"}, "webhooks": [{}, {}]});
        check(
            "admissionregistration.k8s.io",
            "validatingwebhookconfigurations",
            &hooks,
            "NAME | WEBHOOKS | AGE",
            "h | 2 | <unknown>",
        );
    }
}
