//! Certificates that end or are replaced while the server runs.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use skiff_api::defaults::{base64, from_base64};
use skiff_pki::{Identity, LEAF_LIFETIME, Request, SigningRequest};
use skiff_tests::Kubectl;
use skiff_tests::wait::until;

use crate::servers::{LIMIT, Place};

/// What nobody in particular may.
const LOOK: [&str; 3] = ["get", "namespaces", "--no-headers"];

/// What it says when it is refused.
fn refused(kubectl: &Kubectl) -> anyhow::Result<String> {
    let printed = kubectl.attempt(&LOOK, "")?;
    anyhow::ensure!(!printed.success, "it was let in");
    Ok(printed.stderr)
}

/// What ended while no server ran, or was half renewed when it was killed, needs nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_renews_its_own_certificates() -> anyhow::Result<()> {
    let place = Place::new(0)?;
    let pki = place.path().join("pki");
    for spoil in [&|| place.renew_certificate(Duration::ZERO), &|| {
        std::fs::copy(pki.join("ca.key"), pki.join("apiserver.key"))?;
        Ok(())
    }] as [&dyn Fn() -> anyhow::Result<()>; 2]
    {
        spoil()?;
        let admin = place.admin(Duration::ZERO)?;
        place.kubectl_as(1, "admin", place.ca_pem(), &admin)?;
        let mut server = place.start_with(1, &[], &[])?;
        server.ready().await?;
        Kubectl::new(place.path().join("admin.conf")).run(&LOOK)?;
        server.kill()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_shows_and_trusts_what_its_files_say() -> anyhow::Result<()> {
    let mut place = Place::new(0)?;
    let server = place.start_with(1, &[], &[])?;
    let old = server.kubectl.clone();
    server.ready().await?;
    // One that has ended: the server runs, nobody believes it, and its log says what to do.
    place.renew_certificate(Duration::ZERO)?;
    server.signal("HUP")?;
    let told = async || Ok(server.report());
    let remedy = |text: &String| text.contains("not valid any more") && text.contains("skiff certs renew apiserver");
    until("the end is told", LIMIT, told, remedy).await?;
    let expired = async || refused(&old);
    until("clients see it", LIMIT, expired, |text| {
        text.contains("certificate has expired")
    })
    .await?;
    place.renew_certificate(LEAF_LIFETIME)?;
    server.signal("HUP")?;
    server.ready().await?;
    // A client's that has ended.
    let late = place.kubectl_with(1, "late", Duration::ZERO)?;
    let ended = async || refused(&late);
    until("an old client is refused", LIMIT, ended, |text| {
        text.contains("expired certificate")
    })
    .await?;

    // A key without its certificate, as between two steps of a renewal: the server goes on with what it has.
    let key = place.path().join("pki/apiserver.key");
    let former = std::fs::read(&key)?;
    std::fs::copy(place.path().join("pki/ca.key"), &key)?;
    server.signal("HUP")?;
    let kept = |text: &String| text.contains("still using the former certificates");
    until("the server refuses half a renewal", LIMIT, told, kept).await?;
    old.run(&LOOK)?;
    std::fs::write(&key, former)?;

    // Everything from another authority: nothing of the old may work on.
    place.renew_authority()?;
    let new = place.kubectl(1)?;
    refused(&new).context("the server knew the new authority before it was told")?;
    server.signal("HUP")?;
    let published = async || new.field(&["configmap", "kube-root-ca.crt"], "{.data.ca\\.crt}");
    until(
        "the new is shown, trusted, and given to pods",
        LIMIT,
        published,
        |pem| pem == place.ca_pem(),
    )
    .await
    .with_context(|| server.report())?;
    refused(&old).context("the old authority still counts")?;
    Ok(())
}

/// As Kubernetes' documentation has it: both are trusted, the new one signs, the old one goes.
#[tokio::test(flavor = "multi_thread")]
async fn one_authority_takes_over_from_another_without_a_break() -> anyhow::Result<()> {
    let mut place = Place::new(0)?;
    let server = place.start_with(1, &[], &[])?;
    server.ready().await?;
    let (former, old) = (place.ca_pem().to_owned(), place.admin(LEAF_LIFETIME)?);

    place.hand_over_authority()?;
    let both = place.ca_pem().to_owned() + &former;
    let old = place.kubectl_as(1, "old", &both, &old)?;
    let new = place.kubectl_as(1, "new", &both, &place.admin(LEAF_LIFETIME)?)?;
    old.run(&LOOK).context("nothing has changed yet")?;
    server.signal("HUP")?;
    let published = async || new.field(&["configmap", "kube-root-ca.crt"], "{.data.ca\\.crt}");
    until("pods trust both", LIMIT, published, |pem| *pem == both)
        .await
        .with_context(|| server.report())?;
    old.run(&LOOK)?;
    let signed = place.kubectl_as(1, "signed", &both, &signed(&new).await?)?;

    place.renew_certificate(LEAF_LIFETIME)?;
    let strict = place.kubectl(1)?;
    refused(&strict).context("the server's own certificate is the former's yet")?;
    server.signal("HUP")?;
    let look = async || strict.run(&LOOK);
    until("the server's own is the new one's", LIMIT, look, |_| true).await?;
    old.run(&LOOK)?;

    place.trust(place.ca_pem())?;
    server.signal("HUP")?;
    let ended = async || refused(&old);
    until("the former counts no more", LIMIT, ended, |_| true).await?;
    for kubectl in [&strict, &signed] {
        kubectl.run(&["auth", "whoami"])?;
    }
    Ok(())
}

/// A certificate that somebody asked for, and got after the authority that signs was replaced.
async fn signed(kubectl: &Kubectl) -> anyhow::Result<Identity> {
    let key = SigningRequest::generate_key()?;
    let request = SigningRequest::make(&Request::client("robot", &[]), &key)?;
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "robot"},
        "spec": {
            "request": base64(request.as_bytes()), "signerName": "kubernetes.io/kube-apiserver-client",
            "usages": ["digital signature", "client auth"],
        },
    });
    kubectl.apply(&object.to_string())?;
    kubectl.run(&["certificate", "approve", "robot"])?;
    let issued = async || kubectl.field(&["csr", "robot"], "{.status.certificate}");
    let issued = until("it is signed", LIMIT, issued, |text| !text.is_empty()).await?;
    let issued = from_base64(&issued).context("base64")?;
    Ok(Identity::from_pem(String::from_utf8(issued)?, key)?)
}
