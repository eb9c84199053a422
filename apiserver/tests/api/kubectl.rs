//! What people do with kubectl.

use crate::cluster::Cluster;

const CONFIG_MAP: &str =
    r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"l": "x"}}, "data": {"k": "v"}}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_config_map_lives() {
    let cluster = Cluster::start().await;
    cluster.kubectl_with(&["create", "-f", "-"], CONFIG_MAP).await;
    assert_eq!(
        cluster.kubectl(&["get", "cm", "a", "-o", "jsonpath={.data.k}"]).await,
        "v"
    );
    cluster
        .kubectl(&["patch", "cm", "a", "--type=merge", "-p", r#"{"data":{"k":"w"}}"#])
        .await;
    assert_eq!(
        cluster
            .kubectl(&["get", "cm", "-l", "l=x", "-o", "jsonpath={.items[*].data.k}"])
            .await,
        "w"
    );
    cluster.kubectl(&["delete", "cm", "a"]).await;
    let error = cluster.kubectl_fails(&["get", "cm", "a"]).await;
    assert_eq!(
        error.trim(),
        r#"Error from server (NotFound): configmaps "a" not found"#
    );
}
