//! The cluster's keys and certificates, under kubeadm's names, and the kubeconfigs that hold them.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use skiff_pki::{CertificateAuthority, Kubeconfig, Request, ServiceAccountKey};

use crate::layout::{self, Layout, NodeLayout};
use crate::{Error, Result};

const API_NAMES: [&str; 5] = [
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
];

/// Makes what is missing or near its end, and writes the kubeconfigs.
pub(crate) fn ensure(layout: &Layout, nodes: &[NodeLayout], api_port: u16) -> Result<()> {
    let pki = layout.pki();
    std::fs::create_dir_all(&pki).map_err(Error::file("create", &pki))?;
    let authority = CertificateAuthority::load_or_generate(&pki, "ca", "kubernetes")?;
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let api_addresses = [nodes[0].address, layout::kubernetes_service(), loopback];
    authority.load_or_issue(
        &pki,
        "apiserver",
        &Request::server("kube-apiserver", &API_NAMES, &api_addresses),
    )?;
    authority.load_or_issue(
        &pki,
        "apiserver-kubelet-client",
        &Request::client("kube-apiserver-kubelet-client", &["system:masters"]),
    )?;
    ServiceAccountKey::load_or_generate(&pki)?;

    let config = Kubeconfigs {
        authority,
        pki: &pki,
        cluster: layout.name(),
    };
    let outside = format!("https://127.0.0.1:{api_port}");
    let inside = format!("https://{}:6443", nodes[0].address);
    let admin = Request::client("kubernetes-admin", &["system:masters"]);
    config.write(&layout.admin_kubeconfig(), &outside, "admin", &admin)?;
    config.write(&layout.cluster_kubeconfig(), &inside, "admin", &admin)?;
    let proxy = Request::client("system:kube-proxy", &["system:node-proxier"]);
    for node in nodes {
        let user = format!("system:node:{}", node.name);
        let kubelet = Request::client(&user, &["system:nodes"]);
        config.write(
            &node.kubelet_kubeconfig(),
            &inside,
            &format!("kubelet-{}", node.name),
            &kubelet,
        )?;
        config.write(&node.proxy_kubeconfig(), &inside, "proxy", &proxy)?;
        let mut serving = Request::server(&user, &[node.name.as_str()], &[node.address]);
        serving.organizations = vec!["system:nodes".to_owned()];
        config.authority.load_or_issue(&pki, &kubelet_serving(node), &serving)?;
    }
    Ok(())
}

/// The file name of a node's serving certificate, without its ending.
pub(crate) fn kubelet_serving(node: &NodeLayout) -> String {
    format!("kubelet-serving-{}", node.name)
}

struct Kubeconfigs<'a> {
    authority: CertificateAuthority,
    pki: &'a Path,
    cluster: &'a str,
}

impl Kubeconfigs<'_> {
    fn write(&self, path: &Path, server: &str, identity_name: &str, request: &Request) -> Result<()> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(Error::file("create", directory))?;
        }
        let identity = self.authority.load_or_issue(self.pki, identity_name, request)?;
        let cluster = format!("skiff-{}", self.cluster);
        let authority = self.authority.certificate_pem();
        Kubeconfig::embedded(&cluster, server, authority, &request.common_name, &identity).write(path)?;
        Ok(())
    }
}
