//! Starting the processes, waiting for what they bring about, and marking the node.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Node, configuration, write_all};
use crate::api::Client;
use crate::config::Cluster;
use crate::files::Wanted;
use crate::services::{Service, State};
use crate::{Error, Machine};

/// It begins together with the node, and waits for the same server.
const INGRESS_WITHIN: Duration = Duration::from_secs(30);

const LABELS: [&str; 2] = [
    "node-role.kubernetes.io/control-plane",
    "node.kubernetes.io/exclude-from-external-load-balancers",
];

/// Writes the server's file and starts it.
pub(crate) async fn server(machine: &Machine<'_>, cluster: &Cluster, node: &Node) -> Result<(), Error> {
    write_all(
        machine,
        "control-plane",
        vec![configuration::server(&machine.layout, cluster, node)],
    )?;
    crate::files::directory(&machine.layout.server_data())?;
    machine.say(
        "control-plane",
        "Starting skiff-server: API server, scheduler, controllers and cluster DNS",
    );
    Ok(machine.services.start(Service::Server)?)
}

pub(crate) async fn wait_for_api(machine: &Machine<'_>, api: &Client, limit: Duration) -> Result<(), Error> {
    let begin = tokio::time::Instant::now();
    machine.say(
        "wait-control-plane",
        format!(
            "Waiting for a healthy API server at {}/readyz. This can take up to {}s",
            api.server(),
            limit.as_secs()
        ),
    );
    let ready = async || api.text("/readyz").await.ok();
    machine
        .wait(
            "the API server did not become healthy",
            limit,
            &[Service::Server],
            ready,
        )
        .await?;
    let took = begin.elapsed().as_secs_f64();
    machine.say(
        "wait-control-plane",
        format!("The API server is healthy after {took:.1}s"),
    );
    Ok(())
}

/// Writes a node's files and starts the kubelet, and the proxy where it is wanted.
pub(crate) fn node(machine: &Machine<'_>, files: Vec<Wanted>, proxy: bool) -> Result<(), Error> {
    write_all(machine, "kubelet-start", files)?;
    crate::files::directory(&machine.layout.static_pods())?;
    machine.say("kubelet-start", "Starting the kubelet");
    machine.services.start(Service::Kubelet)?;
    if proxy {
        machine.services.start(Service::Proxy)?;
    }
    Ok(())
}

/// Waits until the node is there, and Ready where its network is ours.
pub(crate) async fn wait_for_node(
    machine: &Machine<'_>,
    api: &Client,
    name: &str,
    until_ready: bool,
    limit: Duration,
) -> Result<(), Error> {
    let begin = tokio::time::Instant::now();
    let what = if until_ready { "Ready" } else { "registered" };
    machine.say(
        "kubelet-check",
        format!(
            "Waiting for node {name:?} to be {what}. This can take up to {}s",
            limit.as_secs()
        ),
    );
    let path = format!("/api/v1/nodes/{name}");
    let found = async || {
        let node = api.get(&path).await.ok()??;
        (!until_ready || is_ready(&node)).then_some(())
    };
    let services = if until_ready {
        &[Service::Kubelet, Service::Proxy][..]
    } else {
        &[Service::Kubelet]
    };
    machine
        .wait(&format!("node {name} did not become {what}"), limit, services, found)
        .await?;
    machine.say(
        "kubelet-check",
        format!("The node is {what} after {:.1}s", begin.elapsed().as_secs_f64()),
    );
    Ok(())
}

/// Waits until the ingress controller serves. The cluster works without it: that it does not is only told.
pub(crate) async fn wait_for_ingress(machine: &Machine<'_>) {
    let serves = async || (machine.services.state(Service::Ingress).ok()? == State::Running).then_some(());
    let what = "the ingress controller does not serve";
    let told = match machine.wait(what, INGRESS_WITHIN, &[Service::Ingress], serves).await {
        Ok(()) => "Applied addon: ingress controller (skiff-ingress)".to_owned(),
        Err(error) => format!(
            "WARNING: the ingress controller does not run yet, and is tried again and again (are its ports, 80 and 443, somebody else's? `ss -lntp`): {}",
            skiff_daemon::error_chain(&error)
        ),
    };
    machine.say("addon", told);
}

pub(crate) fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Labels and taints the node as a control plane's.
pub(crate) async fn mark_control_plane(
    machine: &Machine<'_>,
    api: &Client,
    node: &Node,
    endpoint: &str,
) -> Result<(), Error> {
    let path = format!("/api/v1/nodes/{}", node.name);
    let found = api.get(&path).await?.unwrap_or_default();
    machine.say(
        "mark-control-plane",
        format!(
            "Marking the node {} as control-plane by adding the labels: [{}]",
            node.name,
            LABELS.join(" ")
        ),
    );
    let taints = plan_taints(&found, &node.taints);
    if !node.taints.is_empty() {
        let shown: Vec<_> = node.taints.iter().map(show_taint).collect();
        machine.say(
            "mark-control-plane",
            format!(
                "Marking the node {} as control-plane by adding the taints [{}]",
                node.name,
                shown.join(" ")
            ),
        );
    }
    let labels: serde_json::Map<_, _> = LABELS.into_iter().map(|label| (label.to_owned(), json!(""))).collect();
    let patch = json!({
        "metadata": {
            "labels": labels,
            "annotations": { "kubeadm.alpha.kubernetes.io/cri-socket": endpoint },
        },
        "spec": { "taints": taints },
    });
    api.merge(&path, &patch).await
}

/// The node's taints with those that are wanted; others, such as the one of a node that is not Ready, stay.
fn plan_taints(node: &Value, wanted: &[Value]) -> Vec<Value> {
    let mut taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    for taint in wanted {
        let same = |found: &Value| found["key"] == taint["key"] && found["effect"] == taint["effect"];
        if !taints.iter().any(same) {
            taints.push(taint.clone());
        }
    }
    taints
}

fn show_taint(taint: &Value) -> String {
    let text = |field: &str| taint[field].as_str().unwrap_or_default();
    match text("value") {
        "" => format!("{}:{}", text("key"), text("effect")),
        value => format!("{}={value}:{}", text("key"), text("effect")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_of_others_stay() {
        let wanted = [json!({"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"})];
        let node = json!({"spec": {"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]}});
        let once = plan_taints(&node, &wanted);
        assert_eq!(once.len(), 2);
        assert_eq!(plan_taints(&json!({"spec": {"taints": once}}), &wanted), once);
        assert_eq!(plan_taints(&json!({}), &[]), Vec::<Value>::new());
        assert_eq!(
            show_taint(&wanted[0]),
            "node-role.kubernetes.io/control-plane:NoSchedule"
        );
        assert_eq!(
            show_taint(&json!({"key": "a", "value": "b", "effect": "NoExecute"})),
            "a=b:NoExecute"
        );
    }

    #[test]
    fn a_node_is_ready_when_it_says_so() {
        let node = |status: &str| json!({"status": {"conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": status}]}});
        assert!(is_ready(&node("True")));
        assert!(!is_ready(&node("Unknown")) && !is_ready(&json!({})));
    }
}
