//! `--dry-run`: what would be done, told and not done, and returned for programs.

use serde_json::{Value, json};

use super::{Node, check_phases, configuration, containerd, kubeconfig, look, objects, runtime, server_url};
use crate::config::Init;
use crate::files::Wanted;
use crate::preflight::mend;
use crate::services::Service;
use crate::{Error, Machine};

/// What `init` would do.
///
/// # Errors
/// What keeps `init` from being run at all.
pub async fn dry_run(machine: &Machine<'_>, wish: Init) -> Result<Value, Error> {
    check_phases(&wish.skip_phases)?;
    let (_, endpoint, node) = look(machine, &wish).await?;
    let runtime = runtime::observe(&endpoint).await?;
    let run = |phase: &str| !wish.skip_phases.contains(phase);
    let kubelet = configuration::kubelet_of_all(&machine.layout, &wish.cluster);
    let proxy = configuration::proxy_of_all(&machine.layout, &wish.cluster);

    let mut steps = Vec::new();
    if run("preflight") {
        steps.extend(prepare(machine, &endpoint).await?);
    }
    if run("kubeconfig") {
        steps.extend(kubeconfigs(machine, &kubeconfig::names(&node)));
    }
    if run("runtime") {
        steps.extend(link(machine, &runtime));
    }
    steps.extend(start(&services(&node, run)));
    tell(machine, &steps);

    let mut wanted = vec![configuration::server(&machine.layout, &wish.cluster, &node)];
    let network = &wish.cluster.network;
    wanted.extend(configuration::node(
        &machine.layout,
        &node,
        &runtime,
        &kubelet,
        &proxy,
        network,
    ));
    wanted.extend(configuration::ingress(&machine.layout, &node));
    let server = server_url(&wish.cluster, &node);
    let mut files = vec![json!({ "path": machine.layout.pki(), "content": "authorities, certificates and keys" })];
    files.extend(tell_files(machine, &wanted));
    let all = [
        objects::identities(),
        objects::configuration(&wish.cluster, &kubelet, node.proxy.then_some(&proxy)),
        objects::joining(&server, ""),
    ]
    .concat();
    for (_, object) in &all {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let kind = object["kind"].as_str().unwrap_or_default();
        machine.say("dryrun", format!("Would create {kind} {name:?}"));
    }
    let objects: Vec<_> = all.into_iter().map(|(_, object)| object).collect();
    Ok(json!({
        "node": node.name, "nodeIP": node.address, "server": server,
        "steps": steps, "files": files, "objects": objects,
    }))
}

/// What `init` starts.
fn services(node: &Node, run: impl Fn(&str) -> bool) -> Vec<Service> {
    let wanted = |service: &Service| match service {
        Service::Server => run("control-plane"),
        Service::Kubelet => run("kubelet-start"),
        Service::Proxy => run("kubelet-start") && node.proxy,
        Service::Ingress => run("addon"),
    };
    Service::ALL.into_iter().filter(wanted).collect()
}

/// What the machine would be given, so that it can be a node.
pub(crate) async fn prepare(machine: &Machine<'_>, endpoint: &str) -> Result<Vec<String>, Error> {
    let mut steps = mend::plan();
    if let Some((path, _)) = containerd::plan(machine, endpoint).await? {
        steps.push(format!(
            "set SystemdCgroup = true in {:?} and start containerd anew",
            path.display().to_string()
        ));
    }
    Ok(steps)
}

/// The credentials that would be written: what is in them does not exist yet.
pub(crate) fn kubeconfigs(machine: &Machine<'_>, names: &[&str]) -> Vec<String> {
    let paths = names
        .iter()
        .map(|name| machine.layout.kubeconfig(name).display().to_string());
    paths.map(|path| format!("write {path:?}")).collect()
}

/// The runtime's missing plugins.
pub(crate) fn link(machine: &Machine<'_>, runtime: &configuration::Runtime) -> Option<String> {
    let (folder, missing) = runtime::missing_plugins(machine, runtime);
    let (names, folder) = (missing.join(", "), folder.display().to_string());
    (!missing.is_empty()).then(|| format!("link the CNI plugins {names} in {folder:?}"))
}

/// The processes that would be started.
pub(crate) fn start(services: &[Service]) -> Vec<String> {
    let start = services
        .iter()
        .map(|service| format!("start {service}, now and at every boot"));
    start.collect()
}

/// Tells steps.
pub(crate) fn tell(machine: &Machine<'_>, steps: &[String]) {
    for step in steps {
        machine.say("dryrun", format!("Would {step}"));
    }
}

/// Tells what would be written, and returns it.
pub(crate) fn tell_files(machine: &Machine<'_>, files: &[Wanted]) -> Vec<Value> {
    let mut told = Vec::new();
    for file in files {
        let path = file.path.display().to_string();
        machine.say("dryrun", format!("Would write {path:?} with:\n{}", file.content));
        told.push(json!({ "path": path, "content": file.content }));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_skipped_is_not_started() {
        let node = |proxy: bool| Node {
            proxy,
            ..Node::for_test("n", "10.0.0.1")
        };
        let cases = [
            (node(true), "", "server kubelet proxy ingress"),
            (node(false), "addon/kube-proxy", "server kubelet ingress"),
            (node(false), "addon", "server kubelet"),
            (node(true), "kubelet-start", "server ingress"),
            (node(true), "control-plane", "kubelet proxy ingress"),
        ];
        for (node, skipped, wanted) in cases {
            let started: Vec<_> = services(&node, |phase| phase != skipped)
                .into_iter()
                .map(Service::name)
                .collect();
            assert_eq!(started.join(" "), wanted, "without {skipped}");
        }
    }
}
