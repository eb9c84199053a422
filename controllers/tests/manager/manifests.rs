//! Manifests on the server's disk, beside controllers that copy labels.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use skiff_controllers::Manifests;
use skiff_daemon::Shutdown;

use crate::cluster::{Cluster, eventually};

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const OF_WEB: &str = "?labelSelector=kubernetes.io%2Fservice-name%3Dweb";
const SERVICE: &str =
    "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80}]}}";
/// Of the kinds that controllers make of a Service; last in every list.
const OWN: &str = "---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: zz}, addressType: IPv4, endpoints: [], ports: []}
---
{apiVersion: v1, kind: Service, metadata: {name: zz}, spec: {ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Endpoints, metadata: {name: zz}}
";

fn write(directory: &Path, name: &str, text: &str) {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_controllers_make_of_a_manifests_object_is_not_pruned() {
    let cluster = Cluster::start().await;
    let (directory, shutdown) = (tempfile::tempdir().unwrap(), Shutdown::new());
    let manifests = Manifests {
        directory: directory.path().to_owned(),
        server: "192.0.2.1".parse().unwrap(),
    };
    tokio::spawn(manifests.run(cluster.client.clone(), shutdown.clone()));
    let endpoints = "/api/v1/namespaces/default/endpoints";
    let of_web = async || {
        let mut found = cluster.list(&format!("{SLICES}{OF_WEB}")).await;
        found.push(cluster.get(&format!("{endpoints}/web")).await);
        let part = "applyset.kubernetes.io/part-of";
        let labelled = found
            .iter()
            .filter(|object| object["metadata"]["labels"][part].is_string());
        let uids = labelled.map(|object| object["metadata"]["uid"].to_string());
        uids.collect::<Vec<_>>()
    };
    let is_there = async |path: &str| !cluster.get(path).await.is_null();

    write(directory.path(), "service.yaml", SERVICE);
    eventually("controllers have copied the label", async || of_web().await.len() == 2).await;
    let made = of_web().await;
    write(directory.path(), "own.yaml", OWN);
    let own = [format!("{SLICES}/zz"), format!("{endpoints}/zz")];
    for path in &own {
        eventually("the manifest's own is there", async || is_there(path).await).await;
    }
    std::fs::remove_file(directory.path().join("own.yaml")).unwrap();
    for path in &own {
        eventually("the manifest's own is gone", async || !is_there(path).await).await;
    }
    assert_eq!(of_web().await, made, "controllers' objects are theirs");
    shutdown.cancel();
}
