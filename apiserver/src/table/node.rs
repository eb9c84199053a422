//! Nodes.

use jiff::Timestamp;
use serde_json::Value;
use skiff_api::meta;

use super::read::{NONE, at, list, or, text};
use super::{AGE, Column, NAME, Printer, age};

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";

pub(super) static NODES: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Status"),
        Column::text("Roles"),
        AGE,
        Column::text("Version"),
        Column::wide("Internal-IP"),
        Column::wide("External-IP"),
        Column::wide("OS-Image"),
        Column::wide("Kernel-Version"),
        Column::wide("Container-Runtime"),
    ],
    row,
};

fn row(node: &Value, now: Timestamp) -> Vec<Value> {
    let info = |key: &str| or(text(node, &format!("status.nodeInfo.{key}")), "<unknown>").into();
    vec![
        meta::name(node).into(),
        status(node).into(),
        roles(node).into(),
        age::of(node, now),
        text(node, "status.nodeInfo.kubeletVersion").into(),
        address(node, "InternalIP").into(),
        address(node, "ExternalIP").into(),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn status(node: &Value) -> String {
    let ready = list(node, "status.conditions")
        .iter()
        .find(|condition| text(condition, "type") == "Ready");
    let word = match ready.map(|condition| text(condition, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let cordoned = at(node, "spec.unschedulable") == &Value::Bool(true);
    if cordoned {
        format!("{word},SchedulingDisabled")
    } else {
        word.to_owned()
    }
}

fn roles(node: &Value) -> String {
    let mut roles: Vec<&str> = meta::labels(node)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix(ROLE_PREFIX) {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() {
        NONE.to_owned()
    } else {
        roles.join(",")
    }
}

fn address<'a>(node: &'a Value, kind: &str) -> &'a str {
    list(node, "status.addresses")
        .iter()
        .find(|address| text(address, "type") == kind)
        .map_or(NONE, |address| text(address, "address"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::check;

    #[test]
    fn nodes() {
        let mut node = json!({
            "metadata": {"name": "n1", "creationTimestamp": "2025-12-30T00:00:00Z", "labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "edge"}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "172.30.0.2"}],
                "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Debian", "kernelVersion": "6.1", "containerRuntimeVersion": "containerd://1.6.20"}},
        });
        let headings = "NAME | STATUS | ROLES | AGE | VERSION | INTERNAL-IP | EXTERNAL-IP | OS-IMAGE | KERNEL-VERSION | CONTAINER-RUNTIME";
        check(
            "",
            "nodes",
            &node,
            headings,
            "n1 | Ready | control-plane,edge | 2d | v1.36.0 | 172.30.0.2 | <none> | Debian | 6.1 | containerd://1.6.20",
        );
        node["spec"] = json!({"unschedulable": true});
        node["status"] = json!({"conditions": [{"type": "Ready", "status": "Unknown"}]});
        node["metadata"]["labels"] = json!({});
        check(
            "",
            "nodes",
            &node,
            headings,
            "n1 | NotReady,SchedulingDisabled | <none> | 2d |  | <none> | <none> | <unknown> | <unknown> | <unknown>",
        );
    }
}
