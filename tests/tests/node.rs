//! What a node tells of itself and its pods: figures, `kubectl top`, who may read them.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use skiff_tests::on_cluster;
use skiff_tests::wait::until;

const LIMIT: Duration = Duration::from_secs(60);

/// Uses a fifth of a core, and says that it does so.
const BUSY: &str = "---
apiVersion: v1
kind: Pod
metadata: {name: busy, labels: {app: busy}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: docker.io/library/busybox:1.36
    imagePullPolicy: Never
    command: [sh, -c, 'while true; do true; done']
    resources: {limits: {cpu: 200m, memory: 32Mi}}
  - name: idle
    image: docker.io/library/busybox:1.36
    imagePullPolicy: Never
    command: [sh, -c, 'trap exit TERM; while true; do sleep 1; done']
";

const READER: &str = "---
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: ServiceAccount, name: reader, namespace: default}]
";

/// The second column of the line that begins with `name`: `200m`.
fn cpu(table: &str, name: &str) -> Option<u64> {
    let line = table
        .lines()
        .find(|line| line.split_whitespace().any(|word| word == name))?;
    let text = line.split_whitespace().find(|word| word.ends_with('m'))?;
    text.trim_end_matches('m').parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_top_shows_what_nodes_and_pods_use() -> anyhow::Result<()> {
    on_cluster(1, async |fixture| {
        let kubectl = &fixture.kubectl;
        kubectl.apply(BUSY)?;
        kubectl.apply(READER)?;
        // The first question has no look before it: it takes two by itself.
        let top = |words: &[&str]| -> anyhow::Result<String> {
            let printed = kubectl.attempt(words, "")?;
            Ok(if printed.success {
                printed.stdout
            } else {
                printed.stderr
            })
        };
        let table = until(
            "kubectl top pod shows the pod's CPU",
            LIMIT,
            async || top(&["top", "pod", "busy", "--containers"]),
            |table| cpu(table, "main").is_some_and(|cpu| cpu > 50),
        )
        .await?;
        assert!(cpu(&table, "main") < Some(400), "a limit of 200m: {table}");
        assert!(cpu(&table, "idle") < cpu(&table, "main"), "{table}");
        let nodes = kubectl.run(&["top", "node"])?;
        let name = kubectl.field(&["node"], "{.items[0].metadata.name}")?;
        assert!(cpu(&nodes, &name) > Some(50), "{nodes}");
        assert!(nodes.contains('%'), "shares of what is allocatable: {nodes}");
        let one = kubectl.run(&["top", "pod", "-l", "app=busy", "--no-headers", "-A"])?;
        assert_eq!(one.lines().count(), 1, "{one}");
        let other = kubectl.attempt(&["top", "pod", "-l", "app=other"], "")?;
        assert!(other.stderr.contains("No resources found"), "{other:?}");
        let absent = kubectl.attempt(&["top", "pod", "absent"], "")?;
        assert!(!absent.success && absent.stderr.contains("not found"), "{absent:?}");
        let table = kubectl.run(&["get", "podmetrics.metrics.k8s.io"])?;
        assert!(table.starts_with("NAME") && table.contains("WINDOW"), "{table}");
        let kinds = kubectl.run(&["api-resources", "--api-group", "metrics.k8s.io", "--no-headers"])?;
        assert_eq!(kinds.lines().count(), 2, "{kinds}");
        // Who may view a namespace may see what its pods use, but not what the nodes do.
        let reader = ["--as", "system:serviceaccount:default:reader"];
        let read = |what: &str| kubectl.attempt(&[&["get", "--raw", what], &reader[..]].concat(), "");
        assert!(read("/apis/metrics.k8s.io/v1beta1/namespaces/default/pods")?.success);
        for elsewhere in ["pods", "nodes", "namespaces/kube-system/pods"] {
            let refused = read(&format!("/apis/metrics.k8s.io/v1beta1/{elsewhere}"))?;
            assert!(
                !refused.success && refused.stderr.contains("forbidden"),
                "{elsewhere}: {refused:?}"
            );
        }
        figures_of_the_kubelet(fixture, &name)
    })
    .await
}

/// The kubelet's own paths, through the API server's proxy.
fn figures_of_the_kubelet(fixture: &skiff_tests::Fixture, node: &str) -> anyhow::Result<()> {
    let get = |path: &str| {
        fixture
            .kubectl
            .run(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/{path}")])
    };
    let summary: Value = serde_json::from_str(&get("stats/summary")?).context("the summary is JSON")?;
    let pods = summary["pods"].as_array().context("pods")?;
    let busy = pods
        .iter()
        .find(|pod| pod["podRef"]["name"] == "busy")
        .context("the pod")?;
    let main = busy["containers"].as_array().into_iter().flatten();
    let main = main
        .clone()
        .find(|container| container["name"] == "main")
        .context("the container")?;
    assert!(main["cpu"]["usageNanoCores"].as_u64() > Some(50_000_000), "{main}");
    assert!(main["memory"]["workingSetBytes"].as_u64() > Some(0), "{main}");
    assert!(busy["network"]["interfaces"][0]["name"] == "eth0", "{busy}");
    assert!(busy["ephemeral-storage"]["usedBytes"].as_u64() > Some(0), "{busy}");
    let cadvisor = get("metrics/cadvisor")?;
    assert!(
        cadvisor.contains("container_network_receive_bytes_total{container=\"\",id="),
        "{cadvisor}"
    );
    assert!(cadvisor.contains("pod=\"busy\""), "{cadvisor}");
    let metrics = get("metrics")?;
    assert!(metrics.contains("kubelet_running_pods "), "{metrics}");
    let config: Value = serde_json::from_str(&get("configz")?).context("configz is JSON")?;
    assert_eq!(config["kubeletconfig"]["kind"], "KubeletConfiguration");
    Ok(())
}
