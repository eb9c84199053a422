//! `skiff init`: a bare machine becomes the first of a cluster, in phases that are told as kubeadm tells them.
//!
//! Each phase makes only what is missing, so that an interrupted run is completed by the next one.

pub(crate) mod certs;
mod cluster_info;
pub(crate) mod configuration;
pub(crate) mod containerd;
pub(crate) mod dry_run;
pub(crate) mod kubeconfig;
mod objects;
pub(crate) mod runtime;
pub(crate) mod start;
pub mod upload_certs;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Serialize;
use serde_json::{Value, json};

use crate::api::Client;
use crate::certificate_key::CertificateKey;
use crate::config::{Argument, Cluster, Endpoint, Init, NodeWish};
use crate::files::Wanted;
use crate::preflight::{self, Level};
use crate::record::{self, Host, Record, Role};
use crate::services::Service;
use crate::token::{self, Token};
use crate::{Error, Machine, address};

pub use cluster_info::{ClusterInfo, cluster_info, join_command};
pub use dry_run::dry_run;

/// Phases, in their order: what `--skip-phases` takes.
pub const PHASES: [&str; 12] = [
    "preflight",
    "certs",
    "kubeconfig",
    "control-plane",
    "runtime",
    "kubelet-start",
    "upload-config",
    "upload-certs",
    "mark-control-plane",
    "bootstrap-token",
    "addon",
    NO_PROXY,
];
/// kubeadm's name for what those leave out who have another bring Services and the network of pods.
const NO_PROXY: &str = "addon/kube-proxy";

/// This machine as a node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    pub(crate) taints: Vec<Value>,
    pub(crate) kubelet_args: Vec<Argument>,
    /// Whether the ingress controller runs here.
    pub(crate) ingress: bool,
    /// Whether the proxy does.
    pub(crate) proxy: bool,
}

/// What a person is told at the end.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Initialized {
    /// The node's name.
    pub node: String,
    /// Where clients reach the API server.
    pub server: String,
    /// The administrator's kubeconfig.
    pub kubeconfig: std::path::PathBuf,
    /// What another machine runs to join.
    pub join_command: String,
    /// What another machine runs to become a further control plane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_plane_join_command: Option<String>,
}

/// Runs all phases.
///
/// # Errors
/// The first step that failed; the same command goes on from there.
pub async fn init(machine: &Machine<'_>, wish: Init) -> Result<Initialized, Error> {
    check_phases(&wish.skip_phases)?;
    let _lock = machine.lock()?;
    let (former, endpoint, node) = look(machine, &wish).await?;

    let run = |phase: &str| !wish.skip_phases.contains(phase);
    let mut record = begin(machine, former, Role::ControlPlane, &node.name, &endpoint)?;
    if run("preflight") {
        mend(machine, &wish.node.ignore)?;
        containerd::mend(machine, &endpoint, &mut record).await?;
    }
    let server = server_url(&wish.cluster, &node);
    let local = local_url(wish.cluster.port, &node);
    let authority = if run("certs") {
        certs::apply(machine, &wish.cluster, &node)?
    } else {
        certs::load(machine)?
    };
    if run("kubeconfig") {
        kubeconfig::apply(machine, &authority, &server, &local, &node)?;
    }
    if run("control-plane") {
        start::server(machine, &wish.cluster, &node).await?;
    }
    // Whatever the cluster's address leads to: this machine's own server is asked.
    let api = Client::from_file_at(&machine.layout.kubeconfig("super-admin"), &local).await?;
    start::wait_for_api(machine, &api, wish.timeouts.control_plane).await?;
    apply_objects(&api, objects::identities()).await?;

    let runtime = runtime::observe(&endpoint).await?;
    if run("runtime") {
        runtime::apply(machine, &runtime, &mut record)?;
    }
    let kubelet = configuration::kubelet_of_all(&machine.layout, &wish.cluster);
    let proxy = configuration::proxy_of_all(&machine.layout, &wish.cluster);
    if run("kubelet-start") {
        let network = &wish.cluster.network;
        let files = configuration::node(&machine.layout, &node, &runtime, &kubelet, &proxy, network);
        start::node(machine, files, node.proxy)?;
    }
    let configuration = objects::configuration(&wish.cluster, &kubelet, node.proxy.then_some(&proxy));
    let (token, key) = share(
        machine,
        &api,
        &wish,
        &server,
        authority.certificate_pem(),
        configuration,
    )
    .await?;
    if run("addon") {
        addon(machine, &node)?;
    }
    if run("kubelet-start") {
        let network = node.proxy && wish.cluster.network != "none";
        start::wait_for_node(machine, &api, &node.name, network, wish.timeouts.kubelet).await?;
    }
    if run("addon") {
        start::wait_for_ingress(machine).await;
    }
    if run("mark-control-plane") {
        start::mark_control_plane(machine, &api, &node, &endpoint).await?;
    }
    if wish.cluster.endpoint.is_some() {
        check_endpoint(machine, &server).await?;
    }
    complete(machine, record)?;
    let pin = skiff_pki::public_key_pin(authority.certificate_pem())?;
    let line = |key| join_command(&server, token.as_ref(), &pin, key);
    Ok(Initialized {
        node: node.name,
        kubeconfig: machine.layout.kubeconfig("admin"),
        join_command: line(None),
        control_plane_join_command: key.as_ref().map(|key| line(Some(key))),
        server,
    })
}

/// What the cluster keeps for those who join: its configuration, a token, and maybe the keys of the control plane.
async fn share(
    machine: &Machine<'_>,
    api: &Client,
    wish: &Init,
    server: &str,
    ca_pem: &str,
    configuration: Vec<objects::Object>,
) -> Result<(Option<Token>, Option<CertificateKey>), Error> {
    let run = |phase: &str| !wish.skip_phases.contains(phase);
    if run("upload-config") {
        machine.say("upload-config", "Storing the configuration used in ConfigMap \"kubeadm-config\", \"kubelet-config\" and \"kube-proxy\" in the \"kube-system\" Namespace");
        apply_objects(api, configuration).await?;
    }
    let key = if wish.upload_certs && run("upload-certs") {
        let key = wish.certificate_key.clone();
        let key = key.map_or_else(CertificateKey::generate, Ok)?;
        upload_certs::apply(machine, api, &wish.cluster, &key).await?;
        Some(key)
    } else {
        machine.say("upload-certs", "Skipping phase. Please see --upload-certs");
        None
    };
    let token = if run("bootstrap-token") {
        bootstrap_tokens(machine, api, wish, server, ca_pem).await?
    } else {
        None
    };
    Ok((token, key))
}

/// Others will come by the cluster's address; that it leads nowhere yet does not keep this machine from working.
async fn check_endpoint(machine: &Machine<'_>, server: &str) -> Result<(), Error> {
    let api = Client::from_file(&machine.layout.kubeconfig("super-admin")).await?;
    if let Err(error) = api.text("/readyz").await {
        let reason = skiff_daemon::error_chain(&error);
        machine.say(
            "wait-control-plane",
            format!("WARNING: nobody answers at {server}, the cluster's address ({reason}): others cannot join before it leads here"),
        );
    }
    Ok(())
}

fn check_phases(skip: &BTreeSet<String>) -> Result<(), Error> {
    match skip.iter().find(|name| !PHASES.contains(&name.as_str())) {
        Some(name) => Err(Error::NoSuchPhase {
            name: name.clone(),
            phases: PHASES.join(", "),
        }),
        None => Ok(()),
    }
}

/// What was completed is not done again: another cluster would come of it.
pub(crate) fn refuse_second(former: Option<&Record>, role: Role, kubeconfig: &str) -> Result<(), Error> {
    let Some(former) = former else { return Ok(()) };
    let hint = match former.role {
        Role::ControlPlane => format!("Use it with: export KUBECONFIG={kubeconfig}. To begin anew: skiff reset"),
        Role::Worker => "To leave its cluster: skiff reset".to_owned(),
    };
    match &former.completed {
        None if former.role == role => Ok(()),
        since => Err(Error::Already {
            role: former.role.name(),
            since: since.clone().unwrap_or_else(|| former.begun.clone()),
            hint,
        }),
    }
}

/// What both begin with, before anything is changed: what was done here before, the runtime's endpoint, the node to be.
async fn look(machine: &Machine<'_>, wish: &Init) -> Result<(Option<Record>, String, Node), Error> {
    let former = Record::read(&machine.layout)?;
    refuse_second(
        former.as_ref(),
        Role::ControlPlane,
        &machine.layout.kubeconfig("admin").display().to_string(),
    )?;
    let endpoint = wish
        .node
        .runtime_endpoint
        .clone()
        .unwrap_or_else(|| machine.layout.runtime_endpoint());
    let node = resolve_node(machine, wish)?;
    if !wish.skip_phases.contains("preflight") {
        check(machine, &node, &endpoint, wish).await?;
    }
    Ok((former, endpoint, node))
}

fn resolve_node(machine: &Machine<'_>, wish: &Init) -> Result<Node, Error> {
    let network = address::observe()?;
    let choice = address::of_first(&network, wish.node.ip)?;
    if let Some(warning) = choice.warning {
        machine.say("preflight", format!("WARNING: {warning}"));
    }
    let mut node = Node::new(&wish.node, choice.ip)?;
    node.taints = wish.node.taints.clone().unwrap_or_else(control_plane_taints);
    node.ingress = !wish.skip_phases.contains("addon");
    node.proxy = node.ingress && !wish.skip_phases.contains(NO_PROXY);
    Ok(node)
}

pub(crate) fn control_plane_taints() -> Vec<Value> {
    vec![json!({ "key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule" })]
}

impl Node {
    /// A node of this wish, with this address.
    pub(crate) fn new(wish: &NodeWish, address: IpAddr) -> Result<Self, Error> {
        let name = match &wish.name {
            Some(name) => name.clone(),
            None => host_name()?,
        };
        Ok(Self {
            name,
            address,
            taints: wish.taints.clone().unwrap_or_default(),
            kubelet_args: wish.kubelet_args.clone(),
            ingress: false,
            proxy: true,
        })
    }

    /// Whom its kubelet is known as.
    pub(crate) fn user(&self) -> String {
        format!("system:node:{}", self.name)
    }

    #[cfg(test)]
    pub(crate) fn for_test(name: &str, address: &str) -> Self {
        Self {
            name: name.to_owned(),
            address: address.parse().unwrap(),
            taints: Vec::new(),
            kubelet_args: Vec::new(),
            ingress: true,
            proxy: true,
        }
    }
}

/// The host's name as upstream takes it: in small letters, without spaces around it.
fn host_name() -> Result<String, Error> {
    let path = "/proc/sys/kernel/hostname";
    let name = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
    Ok(name.trim().to_lowercase())
}

/// Where others find the cluster.
pub(crate) fn server_url(cluster: &Cluster, node: &Node) -> String {
    let endpoint = cluster.endpoint.as_ref();
    endpoint.map_or_else(|| local_url(cluster.port, node), Endpoint::url)
}

/// Where this machine's own parts find its own server, whichever others there are.
pub(crate) fn local_url(port: u16, node: &Node) -> String {
    let host = node.address.to_string();
    Endpoint { host, port }.url()
}

async fn check(machine: &Machine<'_>, node: &Node, endpoint: &str, wish: &Init) -> Result<(), Error> {
    machine.say("preflight", "Running pre-flight checks");
    let kubelet = configuration::kubelet_of_all(&machine.layout, &wish.cluster);
    let swap_allowed = preflight::observe::swap_allowed(&kubelet);
    let (role, port) = (Role::ControlPlane, wish.cluster.port);
    let mut facts = preflight::observe(machine, role, &node.name, endpoint, port, swap_allowed, Some(node)).await;
    facts.etcd_files = preflight::observe::etcd_files(wish.cluster.etcd.as_ref());
    settle(machine, preflight::judge(&facts, &wish.node.ignore))
}

pub(crate) fn mend(machine: &Machine<'_>, ignore: &BTreeSet<String>) -> Result<(), Error> {
    let mut findings = preflight::mend::apply(machine);
    for finding in &mut findings {
        if ignore.contains("all") || ignore.contains(&finding.check.to_lowercase()) {
            finding.level = Level::Warning;
        }
    }
    settle(machine, findings)
}

/// Tells the warnings, and stops at errors.
pub(crate) fn settle(machine: &Machine<'_>, findings: Vec<preflight::Finding>) -> Result<(), Error> {
    let (errors, warnings): (Vec<_>, Vec<_>) = findings.into_iter().partition(|finding| finding.level == Level::Error);
    for warning in warnings {
        machine.say("preflight", warning.to_string());
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Error::Preflight(preflight::Failed(errors)))
    }
}

/// Notes what the machine is like, before the first change.
pub(crate) fn begin(
    machine: &Machine<'_>,
    former: Option<Record>,
    role: Role,
    node: &str,
    endpoint: &str,
) -> Result<Record, Error> {
    let mut record = former.unwrap_or_else(|| Record {
        role,
        node: String::new(),
        begun: (machine.now)().to_string(),
        completed: None,
        runtime_endpoint: String::new(),
        made: BTreeSet::new(),
        replaced: BTreeMap::new(),
        before: Host::observe(&machine.layout),
        sysctls_after: None,
    });
    node.clone_into(&mut record.node);
    endpoint.clone_into(&mut record.runtime_endpoint);
    record.write(&machine.layout)?;
    Ok(record)
}

pub(crate) fn complete(machine: &Machine<'_>, mut record: Record) -> Result<(), Error> {
    record.completed = Some((machine.now)().to_string());
    record.sysctls_after = Some(record::host::sysctls());
    record.write(&machine.layout)
}

pub(crate) fn write_all(machine: &Machine<'_>, phase: &str, files: Vec<Wanted>) -> Result<(), Error> {
    for file in files {
        if file.write()? {
            machine.say(phase, format!("Writing {:?}", file.path.display().to_string()));
        }
    }
    Ok(())
}

pub(crate) async fn apply_objects(api: &Client, objects: Vec<objects::Object>) -> Result<(), Error> {
    for (collection, object) in objects {
        api.apply(&collection, &object).await?;
    }
    Ok(())
}

/// Makes the tokens known; returns the first one.
async fn bootstrap_tokens(
    machine: &Machine<'_>,
    api: &Client,
    wish: &Init,
    server: &str,
    ca_pem: &str,
) -> Result<Option<Token>, Error> {
    let mut tokens = Vec::new();
    for wanted in &wish.tokens {
        let token = wanted.token.clone().map_or_else(Token::generate, Ok)?;
        machine.say("bootstrap-token", format!("Using token: {token}"));
        tokens.push((token, &wanted.purpose));
    }
    machine.say(
        "bootstrap-token",
        "Configuring bootstrap tokens, cluster-info ConfigMap, RBAC Roles",
    );
    apply_objects(api, objects::joining(server, ca_pem)).await?;
    for (token, purpose) in &tokens {
        token::set(api, token, purpose).await?;
    }
    Ok(tokens.into_iter().next().map(|(token, _)| token))
}

/// Proxy and ingress controller: kubeadm's add-ons run beside the kubelet here. Cluster DNS is part of the server.
fn addon(machine: &Machine<'_>, node: &Node) -> Result<(), Error> {
    machine.say("addon", "Cluster DNS is served by skiff-server");
    if node.proxy {
        machine.say("addon", "Applied essential addon: kube-proxy (skiff-proxy)");
    }
    write_all(machine, "addon", configuration::ingress(&machine.layout, node))?;
    Ok(machine.services.start(Service::Ingress)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(role: Role, completed: bool) -> Record {
        Record::for_test(role, completed.then_some("2026-01-01T00:01:00Z"))
    }

    #[test]
    fn only_what_was_interrupted_goes_on() {
        let cases = [
            (None, None),
            (Some(record(Role::ControlPlane, false)), None),
            (
                Some(record(Role::ControlPlane, true)),
                Some("a control plane already, since 2026-01-01T00:01:00Z"),
            ),
            (
                Some(record(Role::Worker, true)),
                Some("To leave its cluster: skiff reset"),
            ),
            (Some(record(Role::Worker, false)), Some("a worker of a cluster already")),
        ];
        for (former, wanted) in cases {
            let refused = refuse_second(former.as_ref(), Role::ControlPlane, "/etc/kubernetes/admin.conf");
            match (refused, wanted) {
                (Ok(()), None) => {}
                (Err(error), Some(wanted)) => assert!(error.to_string().contains(wanted), "{error}"),
                (refused, _) => panic!("{former:?}: {refused:?}"),
            }
        }
    }

    #[test]
    fn phases_that_do_not_exist_are_refused() {
        check_phases(&BTreeSet::from(["addon".to_owned()])).unwrap();
        let error = check_phases(&BTreeSet::from(["addons".to_owned()])).unwrap_err();
        assert!(
            error.to_string().contains("bootstrap-token, addon, addon/kube-proxy"),
            "{error}"
        );
    }
}
