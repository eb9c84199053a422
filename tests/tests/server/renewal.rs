//! Certificates that end or are replaced while the server runs.

use std::time::Duration;

use anyhow::Context as _;
use skiff_pki::LEAF_LIFETIME;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_server_shows_and_trusts_what_its_files_say() -> anyhow::Result<()> {
    let mut place = Place::new(0)?;
    // One that has ended: the server runs, nobody believes it, and its log says what to do.
    place.renew_certificate(Duration::ZERO)?;
    let server = place.start_with(1, &[], &[])?;
    let old = server.kubectl.clone();
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
