//! `skiff join`: a bare machine becomes a node of a cluster that it knows by a token and the hash of an authority: a worker, or a
//! further control plane.

mod control_plane;
mod discovery;
mod former;
mod identity;
mod others;

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::api::Client;
use crate::config::{Endpoint, Join};
use crate::files::Wanted;
use crate::init::kubeconfig::{has_ended, serves};
use crate::init::{self, ClusterInfo, Node, configuration, containerd, runtime, start};
use crate::preflight::{self, Facts};
use crate::record::{Record, Role};
use crate::services::Service;
use crate::{Error, Machine, address};

use former::Former;

pub use discovery::Failure as DiscoveryFailure;

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
    /// Whether it serves it.
    pub control_plane: bool,
}

/// What is known before anything is changed.
struct Plan {
    former: Option<Record>,
    /// Whether this node joins once more: what it has of files stays.
    again: bool,
    node: Node,
    /// The container runtime's socket.
    endpoint: String,
    info: ClusterInfo,
    /// As the holder of the token.
    api: Client,
    shared: Shared,
}

impl Plan {
    /// The files that this node's processes read, as far as they are to be written.
    fn files(&self, machine: &Machine<'_>, runtime: &configuration::Runtime) -> Vec<Wanted> {
        let mut files = self.shared.files(machine, &self.node, runtime);
        if self.again {
            files.retain(|file| !file.path.exists());
        }
        let authority = Wanted::public(machine.layout.ca_certificate(), self.info.ca_pem.clone());
        files.insert(0, authority);
        files
    }
}

/// Joins the cluster.
///
/// # Errors
/// The first step that failed; the same command goes on from there.
pub async fn join(machine: &Machine<'_>, wish: Join) -> Result<Joined, Error> {
    let _lock = machine.lock()?;
    let mut plan = look(machine, &wish).await?;
    if wish.control_plane.is_some() {
        return control_plane::join(machine, &wish, plan).await;
    }
    let former = plan.former.take();
    let Plan {
        node,
        info,
        api,
        shared,
        ..
    } = &plan;
    let mut record = init::begin(machine, former, Role::Worker, &node.name, &plan.endpoint)?;
    init::mend(machine, &wish.node.ignore)?;
    containerd::mend(machine, &plan.endpoint, &mut record).await?;
    let found = runtime::observe(&plan.endpoint).await?;
    runtime::apply(machine, &found, &mut record)?;
    init::write_all(machine, "kubelet-start", plan.files(machine, &found))?;
    crate::files::directory(&machine.layout.static_pods())?;
    bootstrap(machine, info, &wish, node).await?;
    if node.proxy {
        identity::proxy(machine, api, info).await?;
        machine.services.start(Service::Proxy)?;
    }
    let network = shared.network != "none";
    start::wait_for_node(machine, api, &node.name, network, wish.timeouts.kubelet).await?;
    remove_bootstrap_kubeconfig(machine)?;
    init::complete(machine, record)?;
    Ok(Joined {
        node: node.name.clone(),
        address: node.address,
        server: info.server.clone(),
        control_plane: false,
    })
}

/// What `join` would do, told and not done; the cluster is asked what it would tell this machine.
///
/// # Errors
/// What keeps `join` from being run at all.
pub async fn dry_run(machine: &Machine<'_>, wish: Join) -> Result<Value, Error> {
    let plan = look(machine, &wish).await?;
    let found = runtime::observe(&plan.endpoint).await?;
    let mut files = Vec::new();
    if let Some(wanted) = &wish.control_plane {
        let cluster = control_plane::cluster(&plan, wanted).await?;
        files.push(configuration::server(&machine.layout, &cluster, &plan.node));
    }
    files.extend(plan.files(machine, &found));
    let steps = steps(machine, &plan, wish.control_plane.is_some(), &found).await?;
    init::dry_run::tell(machine, &steps);
    let files = init::dry_run::tell_files(machine, &files);
    let node = &plan.node;
    Ok(json!({
        "node": node.name, "nodeIP": node.address, "server": plan.info.server, "steps": steps, "files": files,
    }))
}

/// What would be done beside the files.
async fn steps(
    machine: &Machine<'_>,
    plan: &Plan,
    control_plane: bool,
    runtime: &configuration::Runtime,
) -> Result<Vec<String>, Error> {
    let node = &plan.node;
    let kubeconfigs = match (control_plane, node.proxy) {
        (true, _) => init::kubeconfig::names(node),
        (false, true) => vec!["proxy", "kubelet"],
        (false, false) => vec!["kubelet"],
    };
    let services = init::dry_run::services(node, control_plane, true);
    let mut steps = init::dry_run::prepare(machine, &plan.endpoint).await?;
    steps.extend(init::dry_run::kubeconfigs(machine, &kubeconfigs));
    steps.extend(init::dry_run::link(machine, runtime));
    steps.extend(init::dry_run::start(&services));
    Ok(steps)
}

/// Looks at this machine and at the cluster; changes neither.
async fn look(machine: &Machine<'_>, wish: &Join) -> Result<Plan, Error> {
    let role = match wish.control_plane {
        Some(_) => Role::ControlPlane,
        None => Role::Worker,
    };
    let former = Record::read(&machine.layout)?;
    let again = match once_more(machine, former.as_ref(), role) {
        Some(record) => Some(Former::read(record, &machine.layout)?),
        None => {
            let admin = machine.layout.kubeconfig("admin");
            init::refuse_second(former.as_ref(), role, &admin.display().to_string())?;
            None
        }
    };
    let mut node = resolve_node(machine, wish, again.as_ref()).await?;
    let mut endpoint = machine.layout.runtime_endpoint();
    if let Some(again) = &again {
        again.check(&machine.layout, wish)?;
        let text = format!(
            "The cluster does not believe this node's certificates any more: joining again as {:?}, with the settings that it has: what flags or --config say of its kubelet and its proxy changes none",
            again.name
        );
        machine.say("preflight", text);
        again.name.clone_into(&mut node.name);
        again.endpoint.clone_into(&mut endpoint);
    }
    if let Some(wanted) = &wish.node.runtime_endpoint {
        wanted.clone_into(&mut endpoint);
    }
    let mut facts = check(machine, role, &node, &endpoint, wish).await?;

    let info = discovery::run(machine, wish).await?;
    if again.is_some() {
        former::check_cluster(&machine.layout, &info.ca_pem)?;
    }
    let api = Client::with_token(&info.server, Some(&info.ca_pem), Some(&wish.bootstrap_token))?;
    others::check(machine, &api, &node).await?;
    let mut shared = Shared::read(machine, &api, wish).await?;
    if let Some(own) = again.as_ref().filter(|former| former.kubelet.is_object()) {
        own.kubelet.clone_into(&mut shared.kubelet);
    }
    node.proxy = shared.proxy.is_some();
    // Whether swap may be on is only known now.
    facts.swap_allowed = preflight::observe::swap_allowed(&shared.kubelet);
    let mut findings = preflight::judge(&facts, &wish.node.ignore);
    findings.retain(|finding| finding.check == preflight::SWAP);
    init::settle(machine, findings)?;
    Ok(Plan {
        former,
        again: again.is_some(),
        node,
        endpoint,
        info,
        api,
        shared,
    })
}

/// What a worker was joined as that has nothing left to show to its cluster: a new token is its only way back.
fn once_more<'a>(machine: &Machine<'_>, former: Option<&'a Record>, role: Role) -> Option<&'a Record> {
    let former = former.filter(|former| former.completed.is_some() && former.role == Role::Worker)?;
    let ended = |name| has_ended(&machine.layout.kubeconfig(name), (machine.now)());
    // Without a proxy of ours there is no kubeconfig of its own.
    let proxy = machine.layout.kubeconfig("proxy").exists() && ended("proxy");
    (role == Role::Worker && (ended("kubelet") || proxy)).then_some(former)
}

/// This machine's name, and the address from which it reaches the cluster.
async fn resolve_node(machine: &Machine<'_>, wish: &Join, again: Option<&Former>) -> Result<Node, Error> {
    let server = resolve(&wish.endpoint).await?;
    let network = address::observe()?;
    let former = again.and_then(|former| former.address);
    let kept = former.filter(|ip| network.has(*ip));
    if let (Some(gone), None) = (former, kept) {
        let file = machine.layout.environment_file("kubelet");
        let text = format!(
            "WARNING: {} names the address {gone}, which this machine does not have",
            file.display()
        );
        machine.say("preflight", text);
    }
    let choice = address::of_joining(&network, wish.node.ip.or(kept), server, address::source_toward(server)?)?;
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

async fn check(machine: &Machine<'_>, role: Role, node: &Node, endpoint: &str, wish: &Join) -> Result<Facts, Error> {
    machine.say("preflight", "Running pre-flight checks");
    let port = wish
        .control_plane
        .as_ref()
        .map_or(wish.endpoint.port, |wanted| wanted.port);
    let facts = preflight::observe(machine, role, &node.name, endpoint, port, true, Some(node)).await;
    init::settle(machine, preflight::judge(&facts, &wish.node.ignore))?;
    Ok(facts)
}

/// What all nodes of the cluster share.
struct Shared {
    kubelet: Value,
    /// `None` where another brings Services and the network of pods.
    proxy: Option<Value>,
    network: String,
}

impl Shared {
    async fn read(machine: &Machine<'_>, api: &Client, wish: &Join) -> Result<Self, Error> {
        machine.say(
            "preflight",
            "Reading configuration from the \"kubelet-config\" ConfigMap in namespace \"kube-system\"...",
        );
        let kubelet = config_map(api, "kubelet-config").await?;
        machine.say(
            "preflight",
            "Reading configuration from the \"kube-proxy\" ConfigMap in namespace \"kube-system\"...",
        );
        let mut shared = Self {
            kubelet: document("kubelet-config", &kubelet["kubelet"])?,
            proxy: None,
            network: "none".to_owned(),
        };
        match find_config_map(api, "kube-proxy").await? {
            Some(proxy) => {
                shared.proxy = Some(document("kube-proxy", &proxy["config.conf"])?);
                proxy["network"]
                    .as_str()
                    .unwrap_or("auto")
                    .clone_into(&mut shared.network);
            }
            None => machine.say(
                "preflight",
                "There is none: another brings Services and the network of pods, and skiff-proxy does not run here",
            ),
        }
        shared.make_local(machine, &wish.kubelet, &wish.proxy);
        Ok(shared)
    }

    /// The files of this node.
    fn files(&self, machine: &Machine<'_>, node: &Node, runtime: &configuration::Runtime) -> Vec<Wanted> {
        configuration::node(
            &machine.layout,
            node,
            runtime,
            &self.kubelet,
            self.proxy.as_ref().unwrap_or(&Value::Null),
            &self.network,
        )
    }

    /// Paths in it are those of the machine that began the cluster; where they are kubeadm's, they are the same everywhere.
    /// What a person wishes for this machine goes before all.
    fn make_local(&mut self, machine: &Machine<'_>, kubelet: &Map<String, Value>, proxy: &Map<String, Value>) {
        let layout = &machine.layout;
        self.kubelet["authentication"]["x509"]["clientCAFile"] = json!(layout.ca_certificate());
        self.kubelet["staticPodPath"] = json!(layout.static_pods());
        configuration::lay_over(&mut self.kubelet, kubelet);
        if let Some(shared) = &mut self.proxy {
            shared["clientConnection"]["kubeconfig"] = json!(layout.kubeconfig("proxy"));
            configuration::lay_over(shared, proxy);
        }
    }
}

async fn config_map(api: &Client, name: &str) -> Result<Value, Error> {
    let found = find_config_map(api, name).await?;
    found.ok_or_else(|| Error::NoConfiguration { name: name.to_owned() })
}

async fn find_config_map(api: &Client, name: &str) -> Result<Option<Value>, Error> {
    let found = api
        .get(&format!("/api/v1/namespaces/kube-system/configmaps/{name}"))
        .await?;
    let data = found.map(|mut map| map["data"].take());
    Ok(data.filter(Value::is_object))
}

fn document(map: &str, text: &Value) -> Result<Value, Error> {
    let read = serde_saphyr::from_str(text.as_str().unwrap_or_default()).ok();
    read.filter(Value::is_object)
        .ok_or_else(|| Error::NoConfiguration { name: map.to_owned() })
}

/// Has the kubelet get its certificate with the token.
async fn bootstrap(machine: &Machine<'_>, info: &ClusterInfo, wish: &Join, node: &Node) -> Result<(), Error> {
    let kubeconfig = machine.layout.kubeconfig("kubelet");
    if !serves(machine, &kubeconfig, &info.server, &info.ca_pem, &node.user()) {
        if kubeconfig.exists() {
            machine.say(
                "kubelet-start",
                "Removing the kubelet's certificates: they are another cluster's or another node's, or end soon",
            );
            // One of a former run would go on with them.
            machine.services.stop(Service::Kubelet)?;
            identity::forget_kubelet(&machine.layout)?;
        }
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
            wish.timeouts.tls_bootstrap,
            &[Service::Kubelet],
            there,
        )
        .await
}

/// It has served; the token in it is nobody's business.
fn remove_bootstrap_kubeconfig(machine: &Machine<'_>) -> Result<(), Error> {
    crate::files::remove(&machine.layout.kubeconfig("bootstrap-kubelet"))
}
