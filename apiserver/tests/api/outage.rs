//! What the server says of itself while its store is away.

use std::time::Duration;

use skiff_store::etcd::{self, Options};
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::member::Member;

/// Asks until the answer begins and goes on like that.
async fn until(cluster: &Cluster, path: &str, begin: &str, part: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = cluster.get_as_nobody(path).await;
        if answer.starts_with(begin) && answer.contains(part) {
            return;
        }
        assert!(Instant::now() < deadline, "{path}: {answer}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_its_etcd_is_not_ready_but_lives() {
    let directory = tempfile::tempdir().unwrap();
    let mut member = Member::new(directory.path(), "alone");
    let introduction = [member.introduction()];
    member.start(&introduction);
    let cluster = Cluster::over(etcd::connect(Options::new([member.url()])).await.unwrap()).await;
    until(&cluster, "/readyz", "HTTP/1.1 200", "ok").await;
    member.kill();
    until(
        &cluster,
        "/readyz",
        "HTTP/1.1 500",
        "[-]etcd failed: the store does not answer",
    )
    .await;
    // A restart would not bring etcd back.
    until(&cluster, "/livez", "HTTP/1.1 200", "ok").await;
    member.start(&introduction);
    until(&cluster, "/readyz", "HTTP/1.1 200", "ok").await;
}
