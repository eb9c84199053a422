//! `skiff server` alone: without nodes, on SQLite or etcd, with other servers beside it.

mod manifests;
#[path = "../../../store/tests/conformance/member.rs"]
#[allow(dead_code, reason = "not all that a member can do is needed here")]
mod member;
mod notify;
mod renewal;
mod secrecy;
mod servers;
mod several;

use servers::{LIMIT, Place};
use skiff_tests::wait::until;

use anyhow::Context as _;

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_in_etcd_and_outlives_the_server() -> anyhow::Result<()> {
    let place = Place::new(1)?;
    let mut server = place.start(1)?;
    server.ready().await?;
    let create = [
        "create",
        "deployment",
        "web",
        "--image=example.local/web:1",
        "--replicas=3",
    ];
    server.kubectl.run(&create)?;
    let kubectl = server.kubectl.clone();
    let pods = async || kubectl.field(&["pods", "-l", "app=web"], "{.items[*].metadata.name}");
    let three = |names: &String| names.split_whitespace().count() == 3;
    let before = until("the controllers work", LIMIT, pods, three)
        .await
        .with_context(|| server.report())?;

    server.kill()?;
    let server = place.start(1)?;
    server.ready().await?;
    assert_eq!(pods().await?, before);
    server.kubectl.run(&["delete", "deployment", "web"])?;
    until("the controllers work on", LIMIT, pods, String::is_empty)
        .await
        .with_context(|| server.report())?;
    assert!(
        !place.path().join("data-1/state.db").exists(),
        "nothing is kept in SQLite"
    );
    Ok(())
}
