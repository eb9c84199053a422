//! Namespaces, configuration, accounts, quotas.

use jiff::Timestamp;
use serde_json::Value;
use skiff_api::meta;

use super::read::{at, list, shown, text};
use super::{AGE, Column, NAME, Printer, age};

pub(super) static NAMESPACES: Printer = Printer {
    columns: &[NAME, Column::text("Status"), AGE],
    row: |object, now| {
        vec![
            meta::name(object).into(),
            text(object, "status.phase").into(),
            age::of(object, now),
        ]
    },
};

pub(super) static CONFIG_MAPS: Printer = Printer {
    columns: &[NAME, Column::integer("Data"), AGE],
    row: |object, now| {
        let keys = size(object, "data") + size(object, "binaryData");
        vec![meta::name(object).into(), keys.into(), age::of(object, now)]
    },
};

pub(super) static SECRETS: Printer = Printer {
    columns: &[NAME, Column::text("Type"), Column::integer("Data"), AGE],
    row: |object, now| {
        vec![
            meta::name(object).into(),
            text(object, "type").into(),
            size(object, "data").into(),
            age::of(object, now),
        ]
    },
};

pub(super) static SERVICE_ACCOUNTS: Printer = Printer {
    columns: &[NAME, Column::integer("Secrets"), AGE],
    row: |object, now| {
        vec![
            meta::name(object).into(),
            list(object, "secrets").len().into(),
            age::of(object, now),
        ]
    },
};

fn size(object: &Value, key: &str) -> usize {
    at(object, key).as_object().map_or(0, serde_json::Map::len)
}

pub(super) static QUOTAS: Printer = Printer {
    columns: &[NAME, Column::text("Request"), Column::text("Limit"), AGE],
    row: quota,
};

fn quota(object: &Value, now: Timestamp) -> Vec<Value> {
    let hard = at(object, "status.hard").as_object();
    let mut names: Vec<&String> = hard.into_iter().flatten().map(|(name, _)| name).collect();
    names.sort();
    let entry = |name: &&String| {
        let used = at(object, "status.used")
            .get(name.as_str())
            .map_or_else(|| "0".to_owned(), shown);
        let hard = hard
            .and_then(|hard| hard.get(name.as_str()))
            .map_or_else(String::new, shown);
        format!("{name}: {used}/{hard}")
    };
    let (limits, requests): (Vec<&String>, Vec<&String>) =
        names.into_iter().partition(|name| name.starts_with("limits"));
    let column = |names: &[&String]| names.iter().map(entry).collect::<Vec<_>>().join(", ").into();
    vec![
        meta::name(object).into(),
        column(&requests),
        column(&limits),
        age::of(object, now),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::check;

    #[test]
    fn counted() {
        let object = json!({"metadata": {"name": "x", "creationTimestamp": "2025-12-31T00:00:00Z"}, "data": {"a": "", "b": ""}, "binaryData": {"c": ""},
            "type": "Opaque", "secrets": [{}], "status": {"phase": "Active"}});
        check("", "configmaps", &object, "NAME | DATA | AGE", "x | 3 | 24h");
        check(
            "",
            "secrets",
            &object,
            "NAME | TYPE | DATA | AGE",
            "x | Opaque | 2 | 24h",
        );
        check("", "serviceaccounts", &object, "NAME | SECRETS | AGE", "x | 1 | 24h");
        check("", "namespaces", &object, "NAME | STATUS | AGE", "x | Active | 24h");
    }

    #[test]
    fn quotas() {
        let quota = json!({"metadata": {"name": "q"}, "status": {"hard": {"pods": "10", "limits.cpu": "4", "requests.cpu": "2"},
            "used": {"pods": "3", "requests.cpu": "500m"}}});
        check(
            "",
            "resourcequotas",
            &quota,
            "NAME | REQUEST | LIMIT | AGE",
            "q | pods: 3/10, requests.cpu: 500m/2 | limits.cpu: 0/4 | <unknown>",
        );
    }
}
