//! What people do with kubectl.

use crate::cluster::{Cluster, text};

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

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: "web:1", env: [{name: A, value: a}]}
      - {name: side, image: "side:1"}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_merges_and_scale_counts() {
    let cluster = Cluster::start().await;
    let get = async |path: &str| cluster.kubectl(&["get", "deployment", "web", "-o", path]).await;
    assert_eq!(cluster.apply(WEB).await.trim(), "deployment.apps/web created");
    assert_eq!(cluster.apply(WEB).await.trim(), "deployment.apps/web unchanged");
    cluster.kubectl(&["scale", "deployment", "web", "--replicas=5"]).await;
    assert_eq!(get("jsonpath={.spec.replicas} {.metadata.generation}").await, "5 2");
    let refused = cluster
        .kubectl_fails(&["scale", "deployment", "web", "--replicas=3", "--current-replicas=2"])
        .await;
    assert!(refused.contains("Expected replicas to be 2, was 5"), "{refused}");
    // A container's image changes by its name; what others set stays, what left the manifest goes.
    cluster
        .kubectl(&["set", "env", "deployment/web", "-c", "side", "B=b"])
        .await;
    let next = WEB
        .replace("web:1", "web:2")
        .replace(", env: [{name: A, value: a}]", "");
    assert_eq!(cluster.apply(&next).await.trim(), "deployment.apps/web configured");
    let containers = "jsonpath={range .spec.template.spec.containers[*]}{.image}:{.env[*].name} {end}";
    assert_eq!(get(containers).await, "web:2: side:1:B ");
    let typo = cluster
        .kubectl_fails_with(&["apply", "-f", "-"], &WEB.replace("replicas: 2", "replicsa: 2"))
        .await;
    assert!(typo.contains("unknown field \"spec.replicsa\""), "{typo}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_end_when_they_are_empty_and_budgets_hold_pods() {
    let cluster = Cluster::start().await;
    cluster.kubectl(&["create", "namespace", "n"]).await;
    cluster
        .kubectl(&["create", "serviceaccount", "default", "-n", "n"])
        .await;
    cluster
        .kubectl(&["run", "p", "-n", "n", "--image=i", "--labels=a=b"])
        .await;
    cluster
        .kubectl(&["create", "pdb", "b", "-n", "n", "--selector=a=b", "--min-available=1"])
        .await;
    let running = r#"{"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}"#;
    cluster
        .kubectl(&["patch", "pod", "p", "-n", "n", "--subresource=status", "-p", running])
        .await;
    let budget = r#"{"status": {"observedGeneration": 1, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1, "disruptionsAllowed": 0}}"#;
    cluster
        .kubectl(&[
            "patch",
            "pdb",
            "b",
            "-n",
            "n",
            "--subresource=status",
            "--type=merge",
            "-p",
            budget,
        ])
        .await;
    let eviction = r#"{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p", "namespace": "n"}}"#;
    let raw = ["create", "--raw", "/api/v1/namespaces/n/pods/p/eviction", "-f", "-"];
    let refused = cluster.kubectl_fails_with(&raw, eviction).await;
    assert!(refused.contains("violate the pod's disruption budget"), "{refused}");
    let allowed = budget.replace("\"disruptionsAllowed\": 0", "\"disruptionsAllowed\": 1");
    cluster
        .kubectl(&[
            "patch",
            "pdb",
            "b",
            "-n",
            "n",
            "--subresource=status",
            "--type=merge",
            "-p",
            &allowed,
        ])
        .await;
    // A node that may not evict the pod uses up nothing of its budget.
    cluster.kubeconfig("system:node:elsewhere", &["system:nodes"]);
    let refused = text(&cluster.run("system:node:elsewhere", &raw, eviction).await);
    assert!(
        refused.contains("can only evict pods with spec.nodeName set to itself"),
        "{refused}"
    );
    cluster.kubectl_with(&raw, eviction).await;
    assert!(
        cluster
            .kubectl_fails(&["get", "pod", "p", "-n", "n"])
            .await
            .contains("not found")
    );

    cluster.kubectl(&["delete", "namespace", "n", "--wait=false"]).await;
    assert_eq!(
        cluster
            .kubectl(&["get", "namespace", "n", "-o", "jsonpath={.status.phase}"])
            .await,
        "Terminating"
    );
    let refused = cluster.kubectl_fails(&["create", "configmap", "late", "-n", "n"]).await;
    assert!(refused.contains("because it is being terminated"), "{refused}");
    let last = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}, "spec": {"finalizers": []}}"#;
    cluster
        .kubectl_with(&["replace", "--raw", "/api/v1/namespaces/n/finalize", "-f", "-"], last)
        .await;
    assert!(
        cluster
            .kubectl_fails(&["get", "namespace", "n"])
            .await
            .contains("not found")
    );
    assert!(
        cluster
            .kubectl_fails(&["delete", "namespace", "default"])
            .await
            .contains("may not be deleted")
    );
}
