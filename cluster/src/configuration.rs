//! The configuration files of a cluster's processes, as text; and the links that containerd executes as CNI plugins.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use skiff_api::config::ServerConfiguration;
use skiff_cri::{containerd, pause};

use crate::credentials::kubelet_serving;
use crate::layout::{self, Layout, NodeLayout};
use crate::{Error, Result};

/// Where the program that is every one of them lies, from the directory of `skiff`: built by cargo, installed.
const CNI_PROGRAMS: [&str; 2] = ["skiff-cni", "../lib/skiff/skiff-cni"];
/// The plugins that pods' networks are made with.
const CNI_PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];

/// The program of the CNI plugins that belongs to a `skiff` binary.
///
/// # Errors
/// When it is in none of its places.
pub fn cni_program(skiff: &Path) -> Result<PathBuf> {
    let mut programs = CNI_PROGRAMS
        .iter()
        .filter_map(|place| skiff.with_file_name(place).canonicalize().ok());
    programs.find(|path| path.is_file()).ok_or_else(|| Error::NoPlugins {
        path: skiff.with_file_name(CNI_PROGRAMS[0]),
    })
}

/// Writes every file; what a former version wrote is replaced.
pub(crate) fn write(layout: &Layout, nodes: &[NodeLayout], cni_program: &Path, oci_runtime: &str) -> Result<()> {
    write_json(&layout.server_config(), &server(layout, &nodes[0]))?;
    for node in nodes {
        for directory in [node.cni_data(), node.kubelet_root(), node.manifests(), node.pod_logs()] {
            fs::create_dir_all(&directory).map_err(Error::file("create", &directory))?;
        }
        write_runtime(node, oci_runtime)?;
        write_json(&node.kubelet_config(), &kubelet(layout, node))?;
        write_json(&node.proxy_config(), &proxy(node))?;
        for plugin in CNI_PLUGINS {
            link(cni_program, &node.cni_bin().join(plugin))?;
        }
    }
    Ok(())
}

/// The files of a node's container runtime.
pub(crate) fn write_runtime(node: &NodeLayout, oci_runtime: &str) -> Result<()> {
    for directory in [node.cni_bin(), node.cni_config()] {
        fs::create_dir_all(&directory).map_err(Error::file("create", &directory))?;
    }
    write_text(&node.containerd_config(), &containerd(node, oci_runtime).render())
}

fn server(layout: &Layout, node: &NodeLayout) -> Value {
    let configuration = ServerConfiguration::new(layout.server_data(), layout.pki(), node.address);
    serde_json::to_value(configuration).unwrap_or_default()
}

fn containerd(node: &NodeLayout, oci_runtime: &str) -> containerd::Config {
    containerd::Config {
        root: node.containerd_root(),
        state: node.containerd_state(),
        socket: node.containerd_socket(),
        cni_conf_dir: node.cni_config(),
        cni_bin_dir: node.cni_bin(),
        registry_dir: node.registries(),
        sandbox_image: pause::IMAGE.to_owned(),
        oci_runtime: oci_runtime.to_owned(),
        restrict_oom_score: containerd::must_restrict_oom_score(),
    }
}

fn kubelet(layout: &Layout, node: &NodeLayout) -> Value {
    let pki = layout.pki();
    let serving = kubelet_serving(node);
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "0.0.0.0",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": pki.join("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": node.cgroup(),
        "clusterDNS": [layout::dns_service()],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": format!("unix://{}", node.containerd_socket().display()),
        // Many nodes share one disk that is also the machine's own: only when it is nearly full is that a node's trouble.
        "evictionHard": { "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
        "imageGCHighThresholdPercent": 99,
        "failSwapOn": false,
        "podLogsDir": node.pod_logs(),
        "serializeImagePulls": false,
        "staticPodPath": node.manifests(),
        "tlsCertFile": pki.join(format!("{serving}.crt")),
        "tlsPrivateKeyFile": pki.join(format!("{serving}.key")),
    })
}

fn proxy(node: &NodeLayout) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": { "kubeconfig": node.proxy_kubeconfig() },
        "clusterCIDR": "10.244.0.0/16",
        "hostnameOverride": node.name,
        "mode": "iptables",
    })
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    // JSON is YAML; the names say what people expect to find.
    write_text(path, &format!("{value:#}\n"))
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::file("write", path))
}

fn link(target: &Path, path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::file("replace", path)(error)),
        _ => {}
    }
    symlink(target, path).map_err(Error::file("link", path))
}

#[cfg(test)]
mod tests {
    use skiff_cri::containerd::RUNC;

    use super::*;

    #[test]
    fn the_plugins_belong_to_the_binary() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let skiff = root.join("bin/skiff");
        let (beside, installed) = (root.join("bin/skiff-cni"), root.join("lib/skiff/skiff-cni"));
        let error = cni_program(&skiff).unwrap_err().to_string();
        assert!(error.contains(&beside.display().to_string()), "{error}");
        for program in [installed, beside] {
            fs::create_dir_all(root.join("bin")).unwrap();
            fs::create_dir_all(program.parent().unwrap()).unwrap();
            fs::write(&program, "").unwrap();
            assert_eq!(cni_program(&skiff).unwrap(), program);
        }
    }

    #[test]
    fn no_path_of_a_node_is_shared_with_another() {
        let layout = Layout::new(Path::new("/home"), "dev").unwrap();
        let first = containerd(&layout.node(0), RUNC).render() + &kubelet(&layout, &layout.node(0)).to_string();
        assert!(!first.contains("/var/") && !first.contains("/run/"), "{first}");
        assert!(!first.contains("node-2"));
    }
}
