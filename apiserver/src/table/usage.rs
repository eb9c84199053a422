//! What nodes and pods use, as metrics-server prints it.

use jiff::Timestamp;
use serde_json::Value;
use skiff_api::meta;
use skiff_api::quantity::Quantity;

use super::read::{list, text};
use super::{Column, NAME, Printer};

pub(super) static USAGE: Printer = Printer {
    columns: &[
        NAME,
        Column {
            format: "quantity",
            ..Column::text("cpu")
        },
        Column {
            format: "quantity",
            ..Column::text("memory")
        },
        Column {
            format: "duration",
            ..Column::text("Window")
        },
    ],
    row,
};

fn row(object: &Value, _now: Timestamp) -> Vec<Value> {
    let total = |resource: &str| {
        let containers = list(object, "containers").iter().map(|container| &container["usage"]);
        let parts = containers.chain([&object["usage"]]);
        let sum = parts
            .filter_map(|usage| usage[resource].as_str()?.parse::<Quantity>().ok())
            .reduce(|a, b| a.checked_add(b).unwrap_or(a));
        sum.map(|sum| sum.to_string()).unwrap_or_default()
    };
    vec![
        meta::name(object).into(),
        total("cpu").into(),
        total("memory").into(),
        text(object, "window").into(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::check;

    #[test]
    fn a_pods_containers_are_added_up() {
        let headings = "NAME | CPU | MEMORY | WINDOW";
        let part = |cpu: &str| json!({"name": cpu, "usage": {"cpu": cpu, "memory": "10Ki"}});
        let pod = json!({"metadata": {"name": "p"}, "window": "5s", "containers": [part("1500000n"), part("500000n")]});
        check("metrics.k8s.io", "pods", &pod, headings, "p | 2m | 20Ki | 5s");
        let node = json!({"metadata": {"name": "n"}, "window": "5s", "usage": {"cpu": "7n", "memory": "1Ki"}});
        check("metrics.k8s.io", "nodes", &node, headings, "n | 7n | 1Ki | 5s");
    }
}
