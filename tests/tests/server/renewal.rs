//! Certificates that are replaced while the server runs.

use anyhow::Context as _;
use skiff_tests::wait::until;

use crate::servers::{LIMIT, Place};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_shows_and_trusts_what_its_files_say() -> anyhow::Result<()> {
    let mut place = Place::new(0)?;
    let server = place.start_with(1, &[], &[])?;
    server.ready().await?;
    let old = server.kubectl.clone();
    // A key without its certificate, as between two steps of a renewal: the server goes on with what it has.
    let key = place.path().join("pki/apiserver.key");
    let former = std::fs::read(&key)?;
    std::fs::copy(place.path().join("pki/ca.key"), &key)?;
    server.signal("HUP")?;
    let told = async || Ok(server.report());
    let kept = |text: &String| text.contains("still using the former certificates");
    until("the server refuses half a renewal", LIMIT, told, kept).await?;
    assert_eq!(old.run(&["get", "--raw", "/readyz"])?, "ok");
    std::fs::write(&key, former)?;

    // Everything from another authority: nothing of the old may work on.
    place.renew_authority()?;
    let new = place.kubectl(1)?;
    let refused = new.attempt(&["get", "--raw", "/readyz"], "")?;
    anyhow::ensure!(!refused.success, "the server knew the new authority before it was told");
    server.signal("HUP")?;
    let ready = async || new.run(&["get", "namespaces"]);
    until("the server shows and trusts the new", LIMIT, ready, |text| {
        text.contains("kube-system")
    })
    .await
    .with_context(|| server.report())?;
    let refused = old.attempt(&["get", "namespaces"], "")?;
    anyhow::ensure!(!refused.success, "the old authority still counts");
    Ok(())
}
