//! `skiff join`: a bare machine becomes a worker of a cluster that it knows by a token and the hash of an authority.

mod discovery;
mod identity;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::api::{Client, code};
use crate::config::{Endpoint, Join};
use crate::files::Wanted;
use crate::init::{self, ClusterInfo, Node, configuration, runtime, start};
use crate::preflight;
use crate::record::{Record, Role};
use crate::services::Service;
use crate::{Error, Machine, address};

pub use discovery::Failure as DiscoveryFailure;

/// How long the kubelet may take to get its certificate: kubeadm's.
const BOOTSTRAP_WITHIN: Duration = Duration::from_secs(300);

/// What a person is told at the end.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Joined {
    /// The node's name.
    pub node: String,
    /// Its address.
    pub address: IpAddr,
    /// The cluster that it belongs to now.
    pub server: String,
}

/// Joins the cluster.
///
/// # Errors
/// The first step that failed; the same command goes on from there.
pub async fn join(machine: &Machine<'_>, wish: Join) -> Result<Joined, Error> {
    let _lock = machine.lock()?;
    let former = Record::read(&machine.layout)?;
    init::refuse_second(former.as_ref(), Role::Worker, "")?;
    let node = resolve_node(machine, &wish, &wish.endpoint).await?;
    let endpoint = wish
        .node
        .runtime_endpoint
        .clone()
        .unwrap_or_else(|| machine.layout.runtime_endpoint());
    check(machine, &node, &endpoint, &wish).await?;

    let info = discovery::run(machine, &wish).await?;
    let api = Client::with_token(&info.server, Some(&info.ca_pem), Some(&wish.bootstrap_token))?;
    check_name(machine, &api, &node).await?;
    let shared = Shared::read(machine, &api).await?;

    let mut record = init::begin(machine, former, Role::Worker, &node.name, &endpoint)?;
    init::mend(machine, &wish.node.ignore)?;
    let found = runtime::observe(&endpoint).await?;
    runtime::apply(machine, &found, &mut record)?;
    let mut files = vec![Wanted::public(machine.layout.ca_certificate(), info.ca_pem.clone())];
    files.extend(configuration::node(
        &machine.layout,
        &node,
        &found,
        &shared.kubelet,
        &shared.proxy,
        &shared.network,
    ));
    init::write_all(machine, "kubelet-start", files)?;
    crate::files::directory(&machine.layout.static_pods())?;
    bootstrap(machine, &info, &wish).await?;
    identity::proxy(machine, &api, &info).await?;
    machine.services.start(Service::Proxy)?;
    start::wait_for_node(machine, &api, &node.name, shared.network != "none").await?;
    remove_bootstrap_kubeconfig(machine)?;
    init::complete(machine, record)?;
    Ok(Joined {
        node: node.name,
        address: node.address,
        server: info.server,
    })
}

/// This machine's name, and the address from which it reaches the cluster.
async fn resolve_node(machine: &Machine<'_>, wish: &Join, endpoint: &Endpoint) -> Result<Node, Error> {
    let server = resolve(endpoint).await?;
    let network = address::observe()?;
    let choice = address::of_joining(&network, wish.node.ip, server, address::source_toward(server)?)?;
    if let Some(warning) = choice.warning {
        machine.say("preflight", format!("WARNING: {warning}"));
    }
    Node::new(&wish.node, choice.ip)
}

async fn resolve(endpoint: &Endpoint) -> Result<IpAddr, Error> {
    let found = tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port)).await;
    let first = found.ok().and_then(|mut addresses| addresses.next());
    first.as_ref().map(SocketAddr::ip).ok_or_else(|| Error::UnknownHost {
        host: endpoint.host.clone(),
    })
}

async fn check(machine: &Machine<'_>, node: &Node, endpoint: &str, wish: &Join) -> Result<(), Error> {
    machine.say("preflight", "Running pre-flight checks");
    // Whether swap may be on stands in the cluster's configuration, which is not read yet: the kubelet will tell.
    let facts = preflight::observe(machine, Role::Worker, &node.name, endpoint, wish.endpoint.port, false).await;
    init::settle(machine, preflight::judge(&facts, &wish.node.ignore))
}

/// Two machines with one name would take each other's pods.
async fn check_name(machine: &Machine<'_>, api: &Client, node: &Node) -> Result<(), Error> {
    let found = match api.get(&format!("/api/v1/nodes/{}", node.name)).await {
        Err(Error::Api { source, .. }) if code(&source) == Some(401) => return Err(Error::TokenRefused),
        found => found?,
    };
    if let Some(other) = found.and_then(|found| other_owner(&found, node.address)) {
        return Err(Error::NameTaken {
            name: node.name.clone(),
            address: other,
        });
    }
    machine.say("discovery", format!("The name {:?} is free in the cluster", node.name));
    Ok(())
}

/// The address of a live node of that name, unless it is this machine, joined by a run that was interrupted.
fn other_owner(found: &Value, own: IpAddr) -> Option<String> {
    let addresses = found["status"]["addresses"].as_array();
    let internal = addresses
        .into_iter()
        .flatten()
        .find(|address| address["type"] == "InternalIP");
    let internal = internal
        .and_then(|address| address["address"].as_str())
        .unwrap_or("an unknown address");
    (start::is_ready(found) && internal.parse() != Ok(own)).then(|| internal.to_owned())
}

/// What all nodes of the cluster share.
struct Shared {
    kubelet: Value,
    proxy: Value,
    network: String,
}

impl Shared {
    async fn read(machine: &Machine<'_>, api: &Client) -> Result<Self, Error> {
        machine.say(
            "preflight",
            "Reading configuration from the \"kubelet-config\" ConfigMap in namespace \"kube-system\"...",
        );
        let kubelet = config_map(api, "kubelet-config").await?;
        machine.say(
            "preflight",
            "Reading configuration from the \"kube-proxy\" ConfigMap in namespace \"kube-system\"...",
        );
        let proxy = config_map(api, "kube-proxy").await?;
        let mut shared = Self {
            kubelet: document("kubelet-config", &kubelet["kubelet"])?,
            proxy: document("kube-proxy", &proxy["config.conf"])?,
            network: proxy["network"].as_str().unwrap_or("auto").to_owned(),
        };
        shared.make_local(machine);
        Ok(shared)
    }

    /// Paths in it are those of the machine that began the cluster; where they are kubeadm's, they are the same everywhere.
    fn make_local(&mut self, machine: &Machine<'_>) {
        let layout = &machine.layout;
        self.kubelet["authentication"]["x509"]["clientCAFile"] = json!(layout.ca_certificate());
        self.kubelet["staticPodPath"] = json!(layout.static_pods());
        self.proxy["clientConnection"]["kubeconfig"] = json!(layout.kubeconfig("proxy"));
    }
}

async fn config_map(api: &Client, name: &str) -> Result<Value, Error> {
    let found = api
        .get(&format!("/api/v1/namespaces/kube-system/configmaps/{name}"))
        .await?;
    let data = found.map(|mut map| map["data"].take());
    data.filter(Value::is_object)
        .ok_or_else(|| Error::NoConfiguration { name: name.to_owned() })
}

fn document(map: &str, text: &Value) -> Result<Value, Error> {
    let read = serde_saphyr::from_str(text.as_str().unwrap_or_default()).ok();
    read.filter(Value::is_object)
        .ok_or_else(|| Error::NoConfiguration { name: map.to_owned() })
}

/// Has the kubelet get its certificate with the token.
async fn bootstrap(machine: &Machine<'_>, info: &ClusterInfo, wish: &Join) -> Result<(), Error> {
    let kubeconfig = machine.layout.kubeconfig("kubelet");
    if !kubeconfig.exists() {
        let bootstrap = skiff_pki::Kubeconfig::with_token(
            &info.server,
            &info.ca_pem,
            "tls-bootstrap-token-user",
            &wish.bootstrap_token.to_string(),
        );
        bootstrap.write(&machine.layout.kubeconfig("bootstrap-kubelet"))?;
    }
    machine.say("kubelet-start", "Starting the kubelet");
    machine.services.start(Service::Kubelet)?;
    machine.say("kubelet-start", "Waiting for the kubelet to perform the TLS Bootstrap");
    let there = async || kubeconfig.exists().then_some(());
    machine
        .wait(
            "the kubelet got no certificate",
            BOOTSTRAP_WITHIN,
            &[Service::Kubelet],
            there,
        )
        .await
}

/// It has served; the token in it is nobody's business.
fn remove_bootstrap_kubeconfig(machine: &Machine<'_>) -> Result<(), Error> {
    let path = machine.layout.kubeconfig("bootstrap-kubelet");
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_live_node_elsewhere_holds_a_name() {
        let node = |address: &str, ready: &str| {
            json!({"status": {
                "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": address}],
                "conditions": [{"type": "Ready", "status": ready}],
            }})
        };
        let own: IpAddr = "10.0.0.2".parse().unwrap();
        assert_eq!(other_owner(&node("10.0.0.3", "True"), own).as_deref(), Some("10.0.0.3"));
        assert_eq!(other_owner(&node("10.0.0.2", "True"), own), None);
        assert_eq!(other_owner(&node("10.0.0.3", "Unknown"), own), None);
        assert_eq!(other_owner(&json!({}), own), None);
    }
}
