//! `--dry-run`: what would be done, told and not done, and returned for programs.

use serde_json::{Value, json};

use super::{Node, check_phases, configuration, containerd, kubeconfig, look, objects, runtime, server_url};
use crate::config::Init;
use crate::files::Wanted;
use crate::preflight::mend;
use crate::services::Service;
use crate::{Error, Layout, Machine};

/// What `init` would do.
///
/// # Errors
/// What keeps `init` from being run at all.
pub async fn dry_run(machine: &Machine<'_>, wish: Init) -> Result<Value, Error> {
    check_phases(&wish.skip_phases)?;
    let (_, endpoint, node) = look(machine, &wish).await?;
    let runtime = runtime::observe(&endpoint).await?;
    let run = |phase: &str| !wish.skip_phases.contains(phase);

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
    steps.extend(start(&services(&node, run("control-plane"), run("kubelet-start"))));
    tell(machine, &steps);

    let server = server_url(&wish.cluster, &node);
    let mut files = Vec::new();
    if run("certs") {
        files.push(json!({ "path": machine.layout.pki(), "content": "authorities, certificates and keys" }));
    }
    files.extend(tell_files(machine, &files_of(&machine.layout, &wish, &node, &runtime)));
    let objects = objects_of(&machine.layout, &wish, &node, &server);
    for object in &objects {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let kind = object["kind"].as_str().unwrap_or_default();
        machine.say("dryrun", format!("Would create {kind} {name:?}"));
    }
    Ok(json!({
        "node": node.name, "nodeIP": node.address, "server": server,
        "steps": steps, "files": files, "objects": objects,
    }))
}

/// Files of the phases that would run.
fn files_of(layout: &Layout, wish: &Init, node: &Node, runtime: &configuration::Runtime) -> Vec<Wanted> {
    let run = |phase: &str| !wish.skip_phases.contains(phase);
    let cluster = &wish.cluster;
    let mut files = Vec::new();
    if run("control-plane") {
        files.push(configuration::server(layout, cluster, node));
    }
    if run("kubelet-start") {
        let kubelet = configuration::kubelet_of_all(layout, cluster);
        let proxy = configuration::proxy_of_all(layout, cluster);
        files.extend(configuration::node(
            layout,
            node,
            runtime,
            &kubelet,
            &proxy,
            &cluster.network,
        ));
    }
    if run("addon") {
        files.extend(configuration::ingress(layout, node));
    }
    files
}

/// Objects of the phases that would run.
fn objects_of(layout: &Layout, wish: &Init, node: &Node, server: &str) -> Vec<Value> {
    let run = |phase: &str| !wish.skip_phases.contains(phase);
    let mut objects = objects::identities();
    if run("upload-config") {
        let kubelet = configuration::kubelet_of_all(layout, &wish.cluster);
        let proxy = node.proxy.then(|| configuration::proxy_of_all(layout, &wish.cluster));
        objects.extend(objects::configuration(&wish.cluster, &kubelet, proxy.as_ref()));
    }
    if run("bootstrap-token") {
        objects.extend(objects::joining(server, ""));
    }
    objects.into_iter().map(|(_, object)| object).collect()
}

/// What a node runs, where its server and its kubelet are to be started.
pub(crate) fn services(node: &Node, server: bool, kubelet: bool) -> Vec<Service> {
    let wanted = |service: &Service| match service {
        Service::Server => server,
        Service::Kubelet => kubelet,
        Service::Proxy => kubelet && node.proxy,
        Service::Ingress => node.ingress,
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
    use crate::config::InitFlags;

    #[test]
    fn what_is_not_wanted_is_not_started() {
        let node = |proxy: bool, ingress: bool| Node {
            proxy,
            ingress,
            ..Node::for_test("n", "10.0.0.1")
        };
        let cases = [
            (node(true, true), true, true, "server kubelet proxy ingress"),
            (node(false, true), true, true, "server kubelet ingress"),
            (node(false, false), true, true, "server kubelet"),
            (node(true, true), true, false, "server ingress"),
            (node(true, true), false, true, "kubelet proxy ingress"),
            // Those of a worker.
            (node(true, false), false, true, "kubelet proxy"),
        ];
        for (node, server, kubelet, wanted) in cases {
            let started: Vec<_> = services(&node, server, kubelet)
                .into_iter()
                .map(Service::name)
                .collect();
            assert_eq!(started.join(" "), wanted);
        }
    }

    #[test]
    fn what_is_skipped_is_not_told() {
        const FILES: &str = "server.yaml kubelet.yaml kubelet.env proxy.yaml proxy.env ingress.yaml ingress.env";
        let cases = [
            ("preflight", FILES, true, true),
            (
                "control-plane",
                "kubelet.yaml kubelet.env proxy.yaml proxy.env ingress.yaml ingress.env",
                true,
                true,
            ),
            ("kubelet-start", "server.yaml ingress.yaml ingress.env", true, true),
            (
                "addon",
                "server.yaml kubelet.yaml kubelet.env proxy.yaml proxy.env",
                true,
                true,
            ),
            ("upload-config", FILES, false, true),
            ("bootstrap-token", FILES, true, false),
        ];
        for (skipped, wanted, has_configuration, has_token) in cases {
            let flags = InitFlags {
                skip_phases: vec![skipped.to_owned()],
                ..InitFlags::default()
            };
            let wish = Init::new(flags, None).unwrap();
            let (layout, node) = (Layout::default(), Node::for_test("n", "10.0.0.1"));
            let files = files_of(&layout, &wish, &node, &configuration::Runtime::default());
            let names: Vec<_> = files
                .iter()
                .map(|file| file.path.file_name().unwrap().to_str().unwrap())
                .collect();
            assert_eq!(names.join(" "), wanted, "without {skipped}");
            let objects = objects_of(&layout, &wish, &node, "https://10.0.0.1:6443");
            let has = |name: &str| objects.iter().any(|object| object["metadata"]["name"] == name);
            assert_eq!(
                (has("kubeadm-config"), has("cluster-info")),
                (has_configuration, has_token),
                "without {skipped}"
            );
        }
    }
}
