//! Phase `control-plane` and `kubelet-start`: the configuration files of this machine's processes.
//!
//! What all nodes share ([`kubelet_of_all`], [`proxy_of_all`]) is also kept in the cluster, for those who join.

use std::net::IpAddr;

use serde_json::{Map, Value, json};
use skiff_api::config::{DnsConfiguration, ServerConfiguration};
use skiff_cri::{CgroupDriver, RuntimeSettings};

use super::Node;
use crate::Layout;
use crate::config::{Argument, Cluster};
use crate::files::Wanted;

/// What a runtime says of itself, as far as a node's files depend on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runtime {
    pub(crate) endpoint: String,
    pub(crate) settings: RuntimeSettings,
}

/// The server's file.
pub(crate) fn server(layout: &Layout, cluster: &Cluster, node: &Node) -> Wanted {
    let mut server = ServerConfiguration::new(layout.server_data(), layout.pki(), node.address);
    server.manifests_dir = Some(layout.manifests());
    server.secure_port = cluster.port;
    server.service_cluster_ip_range = cluster.service_subnet;
    server.cluster_cidr = cluster.pod_subnet;
    server.etcd.clone_from(&cluster.etcd);
    server.dns = DnsConfiguration {
        cluster_domain: cluster.dns_domain.clone(),
        ..DnsConfiguration::default()
    };
    let value = serde_json::to_value(server).unwrap_or_default();
    yaml(layout, "server", &value)
}

/// What every kubelet of the cluster is told; kubeadm's choices.
pub(crate) fn kubelet_of_all(layout: &Layout, cluster: &Cluster) -> Value {
    let dns: IpAddr = cluster.dns_address();
    let mut kubelet = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": layout.ca_certificate() },
        },
        "authorization": { "mode": "Webhook" },
        "clusterDNS": [dns],
        "clusterDomain": cluster.dns_domain,
        "rotateCertificates": true,
        "serverTLSBootstrap": true,
        "staticPodPath": layout.static_pods(),
    });
    lay_over(&mut kubelet, &cluster.kubelet);
    kubelet
}

/// What every proxy of the cluster is told.
pub(crate) fn proxy_of_all(layout: &Layout, cluster: &Cluster) -> Value {
    let mut proxy = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": { "kubeconfig": layout.kubeconfig("proxy") },
        "clusterCIDR": cluster.pod_subnet,
        "mode": "iptables",
    });
    lay_over(&mut proxy, &cluster.proxy);
    proxy
}

/// The files of a node's kubelet and proxy, made of what all nodes share and of what this one is.
pub(crate) fn node(
    layout: &Layout,
    node: &Node,
    runtime: &Runtime,
    kubelet: &Value,
    proxy: &Value,
    network: &str,
) -> Vec<Wanted> {
    let mut kubelet = kubelet.clone();
    kubelet["containerRuntimeEndpoint"] = runtime.endpoint.as_str().into();
    if let Some(driver) = runtime.settings.cgroup_driver {
        kubelet["cgroupDriver"] = match driver {
            CgroupDriver::Systemd => "systemd",
            CgroupDriver::Cgroupfs => "cgroupfs",
        }
        .into();
    }
    if !layout.is_whole_machine() {
        kubelet["podLogsDir"] = json!(layout.pod_logs());
    }
    if !node.taints.is_empty() {
        kubelet["registerWithTaints"] = json!(node.taints);
    }
    let mut files = vec![
        yaml(layout, "kubelet", &kubelet),
        environment(layout, "kubelet", "KUBELET_ARGS", &kubelet_arguments(layout, node)),
    ];
    if node.proxy {
        let mut proxy = proxy.clone();
        proxy["hostnameOverride"] = node.name.as_str().into();
        let arguments = proxy_arguments(layout, runtime, network);
        files.push(yaml(layout, "proxy", &proxy));
        files.push(environment(layout, "proxy", "PROXY_ARGS", &arguments));
    }
    files
}

/// The ingress controller's files.
pub(crate) fn ingress(layout: &Layout, node: &Node) -> Vec<Wanted> {
    let file = json!({ "apiVersion": "config.skiff/v1alpha1", "kind": "IngressConfiguration" });
    let arguments = [argument("publish-address", node.address)];
    vec![
        yaml(layout, "ingress", &file),
        environment(layout, "ingress", "INGRESS_ARGS", &arguments),
    ]
}

fn kubelet_arguments(layout: &Layout, node: &Node) -> Vec<Argument> {
    let mut arguments = vec![
        argument("node-ip", node.address),
        argument("hostname-override", &node.name),
        argument("image-dir", layout.images().display()),
    ];
    if !layout.is_whole_machine() {
        arguments.push(argument("root-dir", layout.kubelet().display()));
    }
    arguments.extend(node.kubelet_args.iter().cloned());
    arguments
}

fn proxy_arguments(layout: &Layout, runtime: &Runtime, network: &str) -> Vec<Argument> {
    let config = runtime
        .settings
        .cni_config_dir
        .clone()
        .unwrap_or_else(|| layout.cni_config());
    let mut arguments = vec![argument("network", network), argument("cni-conf-dir", config.display())];
    if !layout.is_whole_machine() {
        arguments.push(argument("cni-data-dir", layout.cni_data().display()));
    }
    arguments
}

fn argument(name: &str, value: impl ToString) -> Argument {
    Argument {
        name: name.to_owned(),
        value: value.to_string(),
    }
}

fn yaml(layout: &Layout, process: &str, value: &Value) -> Wanted {
    let text = serde_saphyr::to_string(value).unwrap_or_else(|_| format!("{value:#}\n"));
    Wanted::public(layout.config_file(process), text)
}

/// A file that systemd reads as `EnvironmentFile`: what stands between the quotes is split at blanks.
fn environment(layout: &Layout, process: &str, variable: &str, arguments: &[Argument]) -> Wanted {
    let words: Vec<_> = arguments
        .iter()
        .map(|argument| format!("--{}={}", argument.name, argument.value))
        .collect();
    Wanted::public(
        layout.environment_file(process),
        format!("{variable}=\"{}\"\n", words.join(" ")),
    )
}

/// A person's fields replace ours, whole objects field by field.
pub(crate) fn lay_over(base: &mut Value, fields: &Map<String, Value>) {
    skiff_api::patch::json_merge(base, &Value::Object(fields.clone()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Init, InitFlags};

    fn cluster(file: &str) -> Cluster {
        Init::new(InitFlags::default(), Some(file)).unwrap().cluster
    }

    #[test]
    fn the_server_is_told_the_clusters_ranges() {
        let cluster = Cluster {
            pod_subnet: "10.9.0.0/16".parse().unwrap(),
            port: 7443,
            ..cluster("")
        };
        let file = server(&Layout::default(), &cluster, &Node::for_test("n", "192.168.56.10"));
        assert_eq!(file.path.to_str(), Some("/etc/skiff/server.yaml"));
        let read: ServerConfiguration = serde_saphyr::from_str(&file.content).unwrap();
        assert_eq!(
            (read.cluster_cidr.to_string().as_str(), read.secure_port),
            ("10.9.0.0/16", 7443)
        );
        assert_eq!(read.advertise_address.to_string(), "192.168.56.10");
        assert_eq!(read.data_dir.to_str(), Some("/var/lib/skiff/server"));
    }

    #[test]
    fn one_address_rules_the_nodes_files() {
        let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 7\nauthorization: {mode: AlwaysAllow}\n";
        let cluster = cluster(text);
        let layout = Layout::default();
        let runtime = Runtime {
            endpoint: "unix:///run/containerd/containerd.sock".to_owned(),
            settings: RuntimeSettings {
                cgroup_driver: Some(CgroupDriver::Systemd),
                cni_config_dir: Some("/etc/cni/net.d".into()),
                ..RuntimeSettings::default()
            },
        };
        let kubelet = kubelet_of_all(&layout, &cluster);
        assert_eq!(
            (&kubelet["maxPods"], &kubelet["authorization"]["mode"]),
            (&json!(7), &json!("AlwaysAllow"))
        );
        let proxy = proxy_of_all(&layout, &cluster);
        let files = node(
            &layout,
            &Node::for_test("n", "192.168.56.10"),
            &runtime,
            &kubelet,
            &proxy,
            "auto",
        );
        let content = |path: &str| {
            let file = files.iter().find(|file| file.path.to_str() == Some(path));
            file.map(|file| file.content.clone())
                .unwrap_or_else(|| panic!("no {path}"))
        };
        assert_eq!(
            content("/etc/skiff/kubelet.env"),
            "KUBELET_ARGS=\"--node-ip=192.168.56.10 --hostname-override=n --image-dir=/var/lib/skiff/images\"\n"
        );
        assert_eq!(
            content("/etc/skiff/proxy.env"),
            "PROXY_ARGS=\"--network=auto --cni-conf-dir=/etc/cni/net.d\"\n"
        );
        let without = Node {
            proxy: false,
            ..Node::for_test("n", "192.168.56.10")
        };
        let fewer = super::node(&layout, &without, &runtime, &kubelet, &Value::Null, "none");
        assert!(
            fewer.len() == 2
                && fewer
                    .iter()
                    .all(|file| file.path.to_string_lossy().contains("/kubelet.")),
            "{fewer:?}"
        );
        let kubelet: Value = serde_saphyr::from_str(&content("/etc/skiff/kubelet.yaml")).unwrap();
        assert_eq!(kubelet["cgroupDriver"], "systemd");
        assert_eq!(kubelet["clusterDNS"], json!(["10.96.0.10"]));
        assert!(kubelet.get("podLogsDir").is_none());
    }
}
