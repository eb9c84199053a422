//! The cluster's keys and certificates, under kubeadm's names, and the kubeconfigs that hold them.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use skiff_pki::{CertificateAuthority, Identity, Kubeconfig, Request, ServiceAccountKey};

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
    let authority = authority(&pki)?;
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let api_addresses = [nodes[0].address, layout::kubernetes_service(), loopback];
    let config = Credentials {
        authority,
        pki: &pki,
        cluster: layout.name(),
    };
    let server = Request::server("kube-apiserver", &API_NAMES, &api_addresses);
    config.issue("apiserver", &server)?;
    let client = Request::client("kube-apiserver-kubelet-client", &[]);
    config.issue("apiserver-kubelet-client", &client)?;

    let outside = format!("https://127.0.0.1:{api_port}");
    let inside = format!("https://{}:6443", nodes[0].address);
    let admin = Request::client("kubernetes-admin", &["system:masters"]);
    config.write(&layout.admin_kubeconfig(), &outside, "admin", &admin)?;
    config.write(&layout.cluster_kubeconfig(), &inside, "admin", &admin)?;
    let ingress = Request::client("system:skiff-ingress", &[]);
    config.write(&layout.ingress_kubeconfig(), &inside, "ingress", &ingress)?;
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
        config.issue(&kubelet_serving(node), &serving)?;
    }
    Ok(())
}

/// The authority and the key that signs service accounts' tokens. They come into their place together: were one of two files
/// missing after a crash, nobody could tell whether something still trusts the lost one.
fn authority(pki: &Path) -> Result<CertificateAuthority> {
    if !pki.exists() {
        let new = pki.with_extension("new");
        if new.exists() {
            std::fs::remove_dir_all(&new).map_err(Error::file("remove", &new))?;
        }
        CertificateAuthority::generate("kubernetes")?.save(&new, "ca")?;
        ServiceAccountKey::load_or_generate(&new)?;
        std::fs::rename(&new, pki).map_err(Error::file("rename", &new))?;
    }
    Ok(CertificateAuthority::load(pki, "ca")?)
}

/// The file name of a node's serving certificate, without its ending.
pub(crate) fn kubelet_serving(node: &NodeLayout) -> String {
    format!("kubelet-serving-{}", node.name)
}

struct Credentials<'a> {
    authority: CertificateAuthority,
    pki: &'a Path,
    cluster: &'a str,
}

impl Credentials<'_> {
    fn issue(&self, name: &str, request: &Request) -> Result<Identity> {
        Ok(self.authority.load_or_issue(self.pki, name, request)?)
    }

    fn write(&self, path: &Path, server: &str, identity_name: &str, request: &Request) -> Result<()> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(Error::file("create", directory))?;
        }
        let identity = self.issue(identity_name, request)?;
        let cluster = format!("skiff-{}", self.cluster);
        let authority = self.authority.certificate_pem();
        Kubeconfig::embedded(&cluster, server, authority, &request.common_name, &identity).write(path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_between_two_files_is_repaired() {
        let home = tempfile::tempdir().unwrap();
        let layout = Layout::new(home.path(), "dev").unwrap();
        let nodes = [layout.node(0)];
        std::fs::create_dir_all(layout.pki().with_extension("new")).unwrap();
        std::fs::write(layout.pki().with_extension("new").join("ca.key"), "half").unwrap();
        ensure(&layout, &nodes, 1).unwrap();
        let authority = std::fs::read(layout.pki().join("ca.crt")).unwrap();
        std::fs::remove_file(layout.pki().join("apiserver.crt")).unwrap();
        ensure(&layout, &nodes, 2).unwrap();
        assert!(layout.pki().join("apiserver.crt").exists());
        assert_eq!(std::fs::read(layout.pki().join("ca.crt")).unwrap(), authority);
    }
}
