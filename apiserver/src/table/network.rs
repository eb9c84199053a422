//! Ingresses, network policies, address ranges.

use jiff::Timestamp;
use serde_json::Value;
use skiff_api::meta;

use super::read::{NONE, at, first_three, joined, list, or, selector, text};
use super::{AGE, Column, NAME, Printer, age};

pub(super) static INGRESSES: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Class"),
        Column::text("Hosts"),
        Column::text("Address"),
        Column::text("Ports"),
        AGE,
    ],
    row: ingress,
};

fn ingress(object: &Value, now: Timestamp) -> Vec<Value> {
    let class = or(
        text(object, "spec.ingressClassName"),
        meta::annotation(object, "kubernetes.io/ingress.class").unwrap_or_default(),
    );
    let hosts: Vec<String> = list(object, "spec.rules")
        .iter()
        .map(|rule| text(rule, "host").to_owned())
        .filter(|host| !host.is_empty())
        .collect();
    let hosts = if hosts.is_empty() {
        "*".to_owned()
    } else {
        first_three(&hosts)
    };
    let addresses = list(object, "status.loadBalancer.ingress")
        .iter()
        .map(|ingress| or(text(ingress, "ip"), text(ingress, "hostname")))
        .filter(|address| !address.is_empty());
    let ports = if list(object, "spec.tls").is_empty() {
        "80"
    } else {
        "80, 443"
    };
    vec![
        meta::name(object).into(),
        or(class, NONE).into(),
        hosts.into(),
        joined(addresses, "").into(),
        ports.into(),
        age::of(object, now),
    ]
}

pub(super) static INGRESS_CLASSES: Printer = Printer {
    columns: &[NAME, Column::text("Controller"), Column::text("Parameters"), AGE],
    row: |object, now| {
        let parameters = at(object, "spec.parameters");
        let shown = match (text(parameters, "kind"), text(parameters, "apiGroup")) {
            ("", _) => NONE.to_owned(),
            (kind, "") => format!("{kind}/{}", text(parameters, "name")),
            (kind, group) => format!("{kind}.{group}/{}", text(parameters, "name")),
        };
        vec![
            meta::name(object).into(),
            text(object, "spec.controller").into(),
            shown.into(),
            age::of(object, now),
        ]
    },
};

pub(super) static POLICIES: Printer = Printer {
    columns: &[NAME, Column::text("Pod-Selector"), AGE],
    row: |object, now| {
        vec![
            meta::name(object).into(),
            selector(at(object, "spec.podSelector")).into(),
            age::of(object, now),
        ]
    },
};

pub(super) static SERVICE_CIDRS: Printer = Printer {
    columns: &[NAME, Column::text("CIDRs"), AGE],
    row: |object, now| {
        let blocks = joined(list(object, "spec.cidrs").iter().filter_map(Value::as_str), "");
        vec![meta::name(object).into(), blocks.into(), age::of(object, now)]
    },
};

pub(super) static ADDRESSES: Printer = Printer {
    columns: &[NAME, Column::text("ParentRef")],
    row: |object, _now| {
        let parent = at(object, "spec.parentRef");
        let parts = [
            text(parent, "resource"),
            text(parent, "namespace"),
            text(parent, "name"),
        ];
        let shown = parts
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("/");
        vec![meta::name(object).into(), or(&shown, NONE).into()]
    },
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::check;

    #[test]
    fn ingresses() {
        let headings = "NAME | CLASS | HOSTS | ADDRESS | PORTS | AGE";
        let ingress = json!({"metadata": {"name": "i"}, "spec": {"ingressClassName": "nginx", "tls": [{}],
            "rules": [{"host": "a"}, {"host": "b"}, {"host": "c"}, {"host": "d"}]}, "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}});
        check(
            "networking.k8s.io",
            "ingresses",
            &ingress,
            headings,
            "i | nginx | a,b,c + 1 more... | 1.2.3.4 | 80, 443 | <unknown>",
        );
        check(
            "networking.k8s.io",
            "ingresses",
            &json!({"metadata": {"name": "i"}}),
            headings,
            "i | <none> | * |  | 80 | <unknown>",
        );
    }

    #[test]
    fn policies() {
        let policy = json!({"metadata": {"name": "p"}, "spec": {"podSelector": {"matchLabels": {"a": "b"}}}});
        check(
            "networking.k8s.io",
            "networkpolicies",
            &policy,
            "NAME | POD-SELECTOR | AGE",
            "p | a=b | <unknown>",
        );
        let class = json!({"metadata": {"name": "c"}, "spec": {"controller": "a/b", "parameters": {"apiGroup": "x.y", "kind": "K", "name": "n"}}});
        check(
            "networking.k8s.io",
            "ingressclasses",
            &class,
            "NAME | CONTROLLER | PARAMETERS | AGE",
            "c | a/b | K.x.y/n | <unknown>",
        );
    }
}
