//! The identity of the node's proxy, asked of the cluster by a certificate signing request.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use skiff_pki::{Identity, Kubeconfig, Request, SigningRequest};

use crate::api::Client;
use crate::init::ClusterInfo;
use crate::{Error, Machine};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const USER: &str = "system:kube-proxy";
const SIGNED_WITHIN: Duration = Duration::from_secs(60);

/// Writes `proxy.conf`, unless it is there and serves.
pub(super) async fn proxy(machine: &Machine<'_>, api: &Client, info: &ClusterInfo) -> Result<(), Error> {
    let path = machine.layout.kubeconfig("proxy");
    let serves = Kubeconfig::load(&path).is_ok_and(|found| {
        let lasts = found.identity.and_then(|identity| identity.validity().ok());
        found.ca_pem == info.ca_pem && lasts.is_some_and(|validity| !validity.should_renew((machine.now)()))
    });
    if serves {
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
