//! Watches: nothing lost, nothing doubled, selectors, bookmarks, 410.

use std::collections::BTreeMap;

use futures::{AsyncBufReadExt as _, StreamExt as _};
use http::Request;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::core::v1::ConfigMap;

use crate::cluster::Cluster;

fn config_map(name: &str, label: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"l": label}}})).unwrap()
}

/// The events of a watch, as they come.
async fn events(client: &Client, query: &str) -> futures::stream::BoxStream<'static, Value> {
    let uri = format!("/api/v1/namespaces/default/configmaps?watch=true&{query}");
    let request = Request::get(uri).body(Vec::new()).unwrap();
    let lines = client.request_stream(request).await.unwrap().lines();
    lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).boxed()
}

fn summary(event: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
}

fn pair(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_from_a_list_misses_and_repeats_nothing() {
    let cluster = Cluster::start().await;
    let client = cluster.server.client("admin", &["system:masters"]);
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let writer = tokio::spawn({
        let api = api.clone();
        async move {
            for number in 0..300 {
                api.create(&PostParams::default(), &config_map(&format!("c-{number}"), "x"))
                    .await
                    .unwrap();
            }
        }
    });
    // Lists in the middle of the writing, each followed from its revision to the end: together they see each object once.
    let mut watchers = Vec::new();
    for _ in 0..20 {
        let list = api.list(&ListParams::default()).await.unwrap();
        let mut seen: BTreeMap<String, u32> = BTreeMap::new();
        for object in list.items {
            *seen.entry(object.metadata.name.unwrap()).or_default() += 1;
        }
        let version = list.metadata.resource_version.unwrap();
        let mut stream = events(&client, &format!("resourceVersion={version}&timeoutSeconds=60")).await;
        watchers.push(tokio::spawn(async move {
            while seen.len() < 300 {
                let (kind, name) = summary(&stream.next().await.unwrap());
                assert_eq!(kind, "ADDED");
                *seen.entry(name).or_default() += 1;
            }
            assert!(seen.values().all(|count| *count == 1), "{seen:?}");
        }));
    }
    writer.await.unwrap();
    for watcher in watchers {
        watcher.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn selectors_turn_changes_into_arrivals_and_departures() {
    let cluster = Cluster::start().await;
    let client = cluster.server.client("admin", &["system:masters"]);
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let mut stream = events(&client, "labelSelector=l%3Dx").await;
    api.create(&PostParams::default(), &config_map("a", "y")).await.unwrap();
    let label = |value: &str| Patch::Merge(json!({"metadata": {"labels": {"l": value}}}));
    for value in ["x", "x2", "x"] {
        api.patch("a", &PatchParams::default(), &label(value)).await.unwrap();
    }
    api.patch("a", &PatchParams::default(), &Patch::Merge(json!({"data": {"k": "v"}})))
        .await
        .unwrap();
    let last = api.delete("a", &DeleteParams::default()).await.unwrap();
    assert!(last.is_right(), "a deleted ConfigMap is answered with a Status");
    let seen: Vec<Value> = (&mut stream).take(5).collect().await;
    let kinds: Vec<(String, String)> = seen.iter().map(summary).collect();
    assert_eq!(
        kinds,
        [
            pair("ADDED", "a"),
            pair("DELETED", "a"),
            pair("ADDED", "a"),
            pair("MODIFIED", "a"),
            pair("DELETED", "a")
        ]
    );
    let versions: Vec<u64> = seen
        .iter()
        .map(|event| {
            event["object"]["metadata"]["resourceVersion"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
    assert_eq!(seen[1]["object"]["metadata"]["labels"]["l"], "x", "as it was last seen");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn initial_events_end_with_a_bookmark_and_a_watch_may_start_from_it() {
    let cluster = Cluster::start().await;
    let client = cluster.server.client("admin", &["system:masters"]);
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    api.create(&PostParams::default(), &config_map("a", "x")).await.unwrap();
    let mut stream = events(
        &client,
        "sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan",
    )
    .await;
    assert_eq!(summary(&stream.next().await.unwrap()), pair("ADDED", "a"));
    let bookmark = stream.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(
        bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    let version = bookmark["object"]["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    api.create(&PostParams::default(), &config_map("b", "x")).await.unwrap();
    let mut later = events(&client, &format!("resourceVersion={version}")).await;
    assert_eq!(summary(&later.next().await.unwrap()), pair("ADDED", "b"));
    assert_eq!(summary(&stream.next().await.unwrap()), pair("ADDED", "b"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_are_of_one_revision() {
    let cluster = Cluster::start().await;
    let client = cluster.server.client("admin", &["system:masters"]);
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    for number in 0..7 {
        api.create(&PostParams::default(), &config_map(&format!("c-{number}"), "x"))
            .await
            .unwrap();
    }
    let mut parameters = ListParams::default().limit(3);
    let first = api.list(&parameters).await.unwrap();
    assert_eq!(first.items.len(), 3);
    assert_eq!(first.metadata.remaining_item_count, Some(4));
    // What happens in between is not seen by the pages that follow.
    api.delete("c-5", &DeleteParams::default()).await.unwrap();
    api.create(&PostParams::default(), &config_map("d", "x")).await.unwrap();
    let mut names: Vec<String> = Vec::new();
    let mut page = first;
    loop {
        names.extend(page.items.iter().map(|object| object.metadata.name.clone().unwrap()));
        let Some(token) = page.metadata.continue_.clone().filter(|token| !token.is_empty()) else {
            break;
        };
        parameters = ListParams::default().limit(3).continue_token(&token);
        page = api.list(&parameters).await.unwrap();
    }
    assert_eq!(names, (0..7).map(|number| format!("c-{number}")).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_watchers_see_the_same() {
    let cluster = Cluster::start().await;
    let client = cluster.server.client("admin", &["system:masters"]);
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let mut watchers = Vec::new();
    for _ in 0..1000 {
        let stream = events(&client, "resourceVersion=0").await;
        watchers.push(tokio::spawn(
            stream.take(30).map(|event| summary(&event)).collect::<Vec<_>>(),
        ));
    }
    let mut expected = Vec::new();
    for number in 0..10 {
        let name = format!("c-{number}");
        api.create(&PostParams::default(), &config_map(&name, "x"))
            .await
            .unwrap();
        let patch = Patch::Merge(json!({"data": {"k": "v"}}));
        api.patch(&name, &PatchParams::default(), &patch).await.unwrap();
        api.delete(&name, &DeleteParams::default()).await.unwrap();
        expected.extend([pair("ADDED", &name), pair("MODIFIED", &name), pair("DELETED", &name)]);
    }
    for watcher in watchers {
        assert_eq!(watcher.await.unwrap(), expected);
    }
}
