//! The identities of the node: its proxy's is asked of the cluster by a certificate signing request, its kubelet asks for its own.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use skiff_pki::{Identity, Kubeconfig, Request, SigningRequest};

use crate::api::Client;
use crate::init::ClusterInfo;
use crate::init::kubeconfig::serves;
use crate::{Error, Layout, Machine, files};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const USER: &str = "system:kube-proxy";
const SIGNED_WITHIN: Duration = Duration::from_secs(60);

/// Writes `proxy.conf`, unless it is there and serves.
pub(super) async fn proxy(machine: &Machine<'_>, api: &Client, info: &ClusterInfo) -> Result<(), Error> {
    let path = machine.layout.kubeconfig("proxy");
    if serves(machine, &path, &info.server, &info.ca_pem, USER) {
        return Ok(());
    }
    machine.say("kubeconfig", "Asking for a client certificate of the proxy");
    let key = SigningRequest::generate_key()?;
    let request = SigningRequest::make(&Request::client(USER, &[]), &key)?;
    let certificate = sign(machine, api, &request).await?;
    let identity = Identity::from_pem(certificate, key)?;
    machine.say("kubeconfig", "Writing \"proxy.conf\" kubeconfig file");
    Ok(Kubeconfig::embedded("kubernetes", &info.server, &info.ca_pem, USER, &identity).write(&path)?)
}

/// Has the kubelet ask for its certificates anew. The kubeconfig goes last: while it is there, this is not done.
pub(super) fn forget_kubelet(layout: &Layout) -> Result<(), Error> {
    for name in ["server", "client"] {
        files::remove(&layout.kubelet_pki().join(format!("kubelet-{name}-current.pem")))?;
    }
    files::remove(&layout.kubeconfig("kubelet"))
}

/// Has the cluster sign a request; its approver knows what a joining machine may have.
async fn sign(machine: &Machine<'_>, api: &Client, request: &str) -> Result<String, Error> {
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": { "generateName": "skiff-proxy-" },
        "spec": {
            "request": STANDARD.encode(request),
            "signerName": "kubernetes.io/kube-apiserver-client",
            "usages": ["digital signature", "client auth"],
        },
    });
    let made = api.create(REQUESTS, &object).await?;
    let name = made["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let path = format!("{REQUESTS}/{name}");
    let signed = async || {
        let found = api.get(&path).await.ok()??;
        let encoded = found["status"]["certificate"].as_str()?;
        String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
    };
    let what = format!(
        "the certificate signing request {name} was not signed (kubectl get csr; kubectl certificate approve {name})"
    );
    machine.wait(&what, SIGNED_WITHIN, &[], signed).await
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_kubelet_that_is_forgotten_has_no_certificate() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let pki = layout.kubelet_pki();
        std::fs::create_dir_all(&pki).unwrap();
        std::fs::create_dir_all(layout.kubernetes()).unwrap();
        let links = ["server", "client"].map(|name| pki.join(format!("kubelet-{name}-current.pem")));
        for link in &links {
            // What it leads to may be gone.
            symlink("kubelet-then.pem", link).unwrap();
        }
        std::fs::write(layout.kubeconfig("kubelet"), "x").unwrap();
        forget_kubelet(&layout).unwrap();
        assert!(links.iter().all(|link| !link.is_symlink()) && !layout.kubeconfig("kubelet").exists());
        forget_kubelet(&layout).unwrap();
    }
}
