//! How long events stay.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_store::sqlite::{self, Options};
use skiff_store::{Revision, Store as _, Write};
use tokio::time::Instant;

use crate::cluster::Cluster;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_goes_an_hour_after_it_was_written_whatever_its_writer_says() {
    let directory = tempfile::tempdir().unwrap();
    let store = sqlite::open(directory.path().join("state.db"), Options::default()).unwrap();
    let write = async |key: &str, value: Value| {
        let write = Write::Create {
            key: key.into(),
            value: value.to_string().into(),
        };
        store.write(write).await.unwrap()
    };
    let event = |name: &str, time: &str| {
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": "default", "uid": name, "creationTimestamp": time},
            "lastTimestamp": time,
        })
    };
    // The store had come to this event two hours ago, and to the other one since.
    let Revision(then) = write(
        "/registry/core/events/default/old",
        event("old", "9999-12-31T23:59:59Z"),
    )
    .await;
    let second = Timestamp::now().as_second() - 2 * 3600;
    write("/registry/ages/events", json!([{"revision": then, "second": second}])).await;
    write(
        "/registry/core/events/default/new",
        event("new", "1999-12-31T23:59:59Z"),
    )
    .await;
    let cluster = Cluster::over(store).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let names = cluster.kubectl(&["get", "events", "-o", "name"]).await;
        if !names.contains("event/old") {
            assert!(names.contains("event/new"), "{names}");
            return;
        }
        assert!(Instant::now() < deadline, "{names}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
