//! Manifests in a directory of the server's machine: applied, kept, pruned.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::Context as _;
use serde_json::json;
use skiff_tests::wait::until;

use crate::servers::{LIMIT, Place, Server};

const WEB: &str = "---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop}, spec: {replicas: 2, selector: {matchLabels: {app: web}},
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: main, image: example.local/web:1}]}}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
# More than anybody but an administrator may hand out.
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: shop}, rules: [{verbs: ['*'], apiGroups: ['*'], resources: ['*']}]}
";
const MAP: &str = "---
{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: ConfigMap, metadata: {name: one}, data: {a: b}}]}
";
const SET: [&str; 4] = [
    "configmaps",
    "-n",
    "kube-system",
    "--selector=applyset.kubernetes.io/id",
];
const NAMES: &str = "{.items[*].metadata.name}";

fn write(directory: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = directory.join(name);
    std::fs::write(&path, text)?;
    Ok(std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?)
}

/// Waits until `kubectl get` prints what is wanted; an object that is not there prints nothing.
async fn until_is(server: &Server, what: &[&str], path: &str, wanted: &str) -> anyhow::Result<()> {
    let look = async || server.kubectl.field(&[what, &["--ignore-not-found"]].concat(), path);
    let reached = until(&format!("{what:?} is {wanted:?}"), LIMIT, look, |text| text == wanted).await;
    reached.with_context(|| server.report()).map(drop)
}

async fn until_told(server: &Server, wanted: &[&str]) -> anyhow::Result<()> {
    let look = async || {
        let events = [
            "events",
            "-n",
            "kube-system",
            "--field-selector=reason=ApplyManifestFailed",
        ];
        server
            .kubectl
            .field(&events, "{range .items[*]}{.message}{\"\\n\"}{end}")
    };
    let all = |text: &String| wanted.iter().all(|part| text.contains(part));
    let reached = until(&format!("events say {wanted:?}"), LIMIT, look, all).await;
    reached.with_context(|| server.report()).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_in_the_directory_is_in_the_cluster_and_nothing_else() -> anyhow::Result<()> {
    let mut place = Place::new(0)?;
    let directory = place.path().join("manifests");
    place.more = json!({"manifestsDir": directory});
    let mut server = place.start_with(1, &[], &[])?;
    server.ready().await?;
    let made = async || Ok(std::fs::metadata(&directory)?.mode() & 0o777);
    until("the directory is made", LIMIT, made, |mode| *mode == 0o700).await?;
    assert_eq!(
        server.kubectl.field(&SET, NAMES)?,
        "",
        "an empty directory costs nothing"
    );

    const DEPLOYMENT: [&str; 4] = ["deployment", "web", "-n", "shop"];
    write(&directory, "web.yaml", WEB)?;
    until_is(&server, &DEPLOYMENT, "{.status.replicas}", "2").await?;
    until_is(&server, &["clusterrole", "shop"], "{.metadata.name}", "shop").await?;
    let uid = server.kubectl.field(&DEPLOYMENT, "{.metadata.uid}")?;

    // Mistakes are told with their file and cause; the rest goes on.
    write(&directory, "broken.yaml", "kind: [ConfigMap")?;
    write(
        &directory,
        "typo.yaml",
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: typo}, dta: {a: b}}",
    )?;
    write(
        &directory,
        "unknown.yaml",
        "{apiVersion: example.com/v1, kind: Thing, metadata: {name: t}}",
    )?;
    write(&directory, "map.yaml", MAP)?;
    until_is(&server, &["configmap", "one"], "{.data.a}", "b").await?;
    until_told(
        &server,
        &[
            "broken.yaml",
            "typo.yaml",
            "unknown field \"dta\"",
            "unknown.yaml",
            "no such kind in example.com/v1",
        ],
    )
    .await?;
    // And in the log, for whom no API answers.
    let log = server.report();
    anyhow::ensure!(
        log.contains("broken.yaml") && log.contains("no such kind in example.com/v1"),
        "{log}"
    );
    // A file that breaks keeps what it asked for; one that others may write is not believed.
    write(&directory, "web.yaml", "kind: [")?;
    let map = directory.join("map.yaml");
    std::fs::set_permissions(&map, std::fs::Permissions::from_mode(0o666))?;
    until_told(&server, &["manifest web.yaml failed", "chmod go-w"]).await?;
    assert_eq!(server.kubectl.field(&DEPLOYMENT, "{.metadata.uid}")?, uid);
    assert_eq!(server.kubectl.field(&["configmap", "one"], "{.data.a}")?, "b");
    std::fs::set_permissions(&map, std::fs::Permissions::from_mode(0o600))?;

    // A document goes, another changes, and what others added stays.
    server
        .kubectl
        .run(&["annotate", "deployment", "web", "-n", "shop", "theirs=1"])?;
    let (less, _) = WEB.split_once("---\n# More").context("three documents")?;
    write(&directory, "web.yaml", &less.replace("replicas: 2", "replicas: 3"))?;
    until_is(
        &server,
        &DEPLOYMENT,
        "{.spec.replicas} {.metadata.annotations.theirs}",
        "3 1",
    )
    .await?;
    until_is(&server, &["clusterrole", "shop"], "{.metadata.name}", "").await?;

    // While nobody looks.
    server.kill()?;
    std::fs::remove_file(&map)?;
    write(&directory, "late.yaml", &MAP.replace("one", "two"))?;
    let server = place.start_with(1, &[], &[])?;
    server.ready().await?;
    until_is(&server, &["configmap", "two"], "{.data.a}", "b").await?;
    until_is(&server, &["configmap", "one"], "{.data.a}", "").await?;
    assert_eq!(
        server.kubectl.field(&DEPLOYMENT, "{.metadata.uid}")?,
        uid,
        "it is still the same"
    );

    for entry in std::fs::read_dir(&directory)? {
        std::fs::remove_file(entry?.path())?;
    }
    until_is(&server, &["namespace", "shop"], "{.metadata.name}", "").await?;
    until_is(&server, &["configmap", "two"], "{.data.a}", "").await?;
    until_is(&server, &SET, NAMES, "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_server_keeps_its_own_directory() -> anyhow::Result<()> {
    let mut place = Place::new(1)?;
    let directories = [1, 2].map(|number| place.path().join(format!("manifests-{number}")));
    let mut servers = Vec::new();
    for (number, directory) in (1..).zip(&directories) {
        place.more = json!({"manifestsDir": directory});
        let server = place.start(number)?;
        server.ready().await?;
        servers.push(server);
        let made = async || Ok(directory.is_dir());
        until("the directory is made", LIMIT, made, |made| *made).await?;
    }
    let [first, second] = &servers[..] else {
        anyhow::bail!("two servers")
    };
    // One that both have is the first's; each has one of its own.
    write(&directories[0], "both.yaml", MAP)?;
    until_is(second, &["configmap", "one"], "{.data.a}", "b").await?;
    write(&directories[1], "both.yaml", MAP)?;
    write(&directories[1], "own.yaml", &MAP.replace("one", "own"))?;
    until_is(first, &["configmap", "own"], "{.data.a}", "b").await?;
    write(
        &directories[1],
        "other.yaml",
        &MAP.replace("{a: b}", "{a: c}").replace("one", "clash"),
    )?;
    until_is(first, &["configmap", "clash"], "{.data.a}", "c").await?;
    write(&directories[0], "other.yaml", &MAP.replace("one", "clash"))?;
    until_told(first, &["other.yaml", "belongs to another set of manifests"]).await?;
    assert!(
        !second.report().contains("both.yaml failed"),
        "the same twice is no mistake"
    );
    std::fs::remove_file(directories[1].join("other.yaml"))?;
    until_is(first, &["configmap", "clash"], "{.data.a}", "b").await?;
    assert_eq!(first.kubectl.field(&["configmap", "own"], "{.data.a}")?, "b");
    Ok(())
}
