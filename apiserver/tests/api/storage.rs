//! What claims and volumes get when they are made, and who may make which.

use serde_json::{Value, json};

use crate::cluster::Cluster;

fn claim(name: &str, more: Value) -> String {
    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec});
    format!("---\n{claim}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_gets_the_default_class_and_grows_only_where_it_can() {
    let cluster = Cluster::start().await;
    let classes = cluster.kubectl(&["get", "storageclass"]).await;
    assert!(classes.contains("local-path (default)"), "{classes}");
    assert!(classes.contains("WaitForFirstConsumer"), "{classes}");

    cluster.apply(&claim("plain", json!({}))).await;
    cluster
        .apply(&claim("classless", json!({"storageClassName": ""})))
        .await;
    let field = async |name: &str, path: &str| {
        cluster
            .kubectl(&["get", "pvc", name, "-o", &format!("jsonpath={path}")])
            .await
    };
    assert_eq!(field("plain", "{.spec.storageClassName}").await, "local-path");
    assert_eq!(field("classless", "{.spec.storageClassName}").await, "");
    assert_eq!(
        field("plain", "{.metadata.finalizers[*]}").await,
        "kubernetes.io/pvc-protection"
    );

    let larger = r#"{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}"#;
    let refused = cluster.kubectl_fails(&["patch", "pvc", "plain", "-p", larger]).await;
    assert!(refused.contains("spec is immutable after creation"), "{refused}");
    let bound = r#"{"status":{"phase":"Bound","capacity":{"storage":"1Gi"}}}"#;
    cluster
        .kubectl(&["patch", "pvc", "plain", "--subresource=status", "-p", bound])
        .await;
    let refused = cluster.kubectl_fails(&["patch", "pvc", "plain", "-p", larger]).await;
    let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
    assert!(refused.contains(why), "{refused}");
    cluster
        .kubectl(&[
            "patch",
            "storageclass",
            "local-path",
            "-p",
            r#"{"allowVolumeExpansion":true}"#,
        ])
        .await;
    cluster.kubectl(&["patch", "pvc", "plain", "-p", larger]).await;

    cluster.kubectl(&["delete", "storageclass", "local-path"]).await;
    cluster.apply(&claim("later", json!({}))).await;
    assert_eq!(field("later", "{.spec.storageClassName}").await, "");
}

fn volume(name: &str, uid: &str, host: &str, source: &Value) -> String {
    let term = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [host]});
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": "1Gi"},
        "storageClassName": "local-path",
        "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "default", "name": "data", "uid": uid},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [term]}]}},
    });
    for (key, value) in source.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let metadata = json!({"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": "skiff/local-path"}});
    format!(
        "---\n{}",
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": spec})
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_has_to_do_with_its_own_volumes_only() {
    let cluster = Cluster::start().await;
    for node in ["n1", "n2"] {
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": {"kubernetes.io/hostname": node}}});
        cluster.apply(&format!("---\n{object}")).await;
        cluster.kubeconfig(&format!("system:node:{node}"), &["system:nodes"]);
    }
    cluster.apply(&claim("data", json!({}))).await;
    let uid = cluster
        .kubectl(&["get", "pvc", "data", "-o", "jsonpath={.metadata.uid}"])
        .await;
    let as_node = async |node: &str, arguments: &[&str], input: &str| {
        let output = cluster.run(&format!("system:node:{node}"), arguments, input).await;
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let local = json!({"local": {"path": "/data"}});
    let create = ["create", "-f", "-"];

    let said = as_node("n1", &create, &volume("v", &uid, "n1", &local)).await;
    assert!(
        said.contains("a node can only provision volumes for claims that wait for it"),
        "{said}"
    );
    for (key, value) in [
        ("volume.kubernetes.io/selected-node", "n1"),
        ("volume.kubernetes.io/storage-provisioner", "skiff/local-path"),
    ] {
        cluster
            .kubectl(&["annotate", "pvc", "data", &format!("{key}={value}")])
            .await;
    }
    let cases = [
        (
            "n2",
            volume("v", &uid, "n1", &local),
            "a node can only have to do with volumes on itself",
        ),
        ("n2", volume("v", &uid, "n2", &local), "for claims that wait for it"),
        ("n1", volume("v", "other", "n1", &local), "for claims that wait for it"),
        (
            "n1",
            volume("v", &uid, "n1", &json!({"hostPath": {"path": "/"}})),
            "a node can only have to do with local volumes",
        ),
        (
            "n1",
            volume("v", &uid, "n1", &local).replace("skiff/local-path", "x/y"),
            "volumes that it provisioned",
        ),
    ];
    for (node, manifest, expected) in cases {
        let said = as_node(node, &create, &manifest).await;
        assert!(said.contains(expected), "{node}: {said}");
    }
    let said = as_node("n1", &create, &volume("v", &uid, "n1", &local)).await;
    assert!(said.contains("created"), "{said}");
    let moved = r#"{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}"#;
    let said = as_node("n1", &["patch", "pv", "v", "-p", moved], "").await;
    assert!(
        said.contains("a node can only change what holds a volume back"),
        "{said}"
    );
    const OTHERS: &str = "a node can only have to do with volumes on itself";
    let delete = ["delete", "pv", "v", "--wait=false"];
    let said = as_node("n2", &delete, "").await;
    assert!(said.contains(OTHERS), "{said}");
    // A node may call itself by another's hostname: that makes the volume none of its own.
    let relabel = ["label", "node", "n2", "kubernetes.io/hostname=n1", "--overwrite"];
    let said = as_node("n2", &relabel, "").await;
    assert!(said.contains("labeled"), "{said}");
    let said = as_node("n2", &delete, "").await;
    assert!(said.contains(OTHERS), "{said}");
    // While the claim is there, it says whose volume it is.
    let selected = |node: &str| format!("volume.kubernetes.io/selected-node={node}");
    cluster
        .kubectl(&["annotate", "--overwrite", "pvc", "data", &selected("n2")])
        .await;
    let said = as_node("n1", &delete, "").await;
    assert!(said.contains("volumes of claims that were sent to it"), "{said}");
    cluster
        .kubectl(&["annotate", "--overwrite", "pvc", "data", &selected("n1")])
        .await;
    let said = as_node(
        "n1",
        &["patch", "pv", "v", "-p", r#"{"metadata":{"finalizers":null}}"#],
        "",
    )
    .await;
    assert!(said.contains("patched"), "{said}");
    let said = as_node("n1", &["delete", "pv", "v"], "").await;
    assert!(said.contains("deleted"), "{said}");
}
