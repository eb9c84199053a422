//! kubectl's commands, of which many are clients of their own.

use super::{PATIENCE, SAMPLES, get, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn imperative_commands() {
    let cluster = start().await;
    let mut failures = Vec::new();
    for arguments in [
        &["create", "namespace", "a"][..],
        &[
            "create",
            "deployment",
            "web",
            "--image=nginx",
            "--replicas=2",
            "--port=80",
        ],
        &["expose", "deployment", "web", "--type=NodePort"],
        &["autoscale", "deployment", "web", "--max=4", "--cpu-percent=50"],
        &["create", "configmap", "c", "--from-literal=a=b"],
        &["create", "secret", "generic", "s", "--from-literal=a=b"],
        &["create", "serviceaccount", "bot"],
        &["create", "role", "r", "--verb=get", "--resource=pods"],
        &[
            "create",
            "rolebinding",
            "rb",
            "--role=r",
            "--serviceaccount=default:bot",
        ],
        &["create", "clusterrole", "cr", "--verb=list", "--resource=nodes"],
        &["create", "job", "j", "--image=busybox"],
        &["create", "cronjob", "cj", "--image=busybox", "--schedule=* * * * *"],
        &["create", "job", "from", "--from=cronjob/cj"],
        &["create", "ingress", "i", "--rule=example.com/*=web:80"],
        &["create", "pdb", "p", "--selector=app=web", "--min-available=1"],
        &["create", "quota", "q", "--hard=pods=5"],
        &["create", "priorityclass", "pc", "--value=10"],
        &["run", "one", "--image=nginx", "--restart=Never"],
        &["annotate", "deployment", "web", "note=x"],
        &["set", "env", "deployment/web", "A=b"],
    ] {
        let output = cluster.run("admin", arguments, "").await;
        if !output.status.success() {
            failures.push(format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    // Both versions show the one that was stored.
    for (resource, path) in [
        (
            "horizontalpodautoscalers.v1.autoscaling",
            "{.apiVersion} {.spec.targetCPUUtilizationPercentage}",
        ),
        (
            "horizontalpodautoscalers.v2.autoscaling",
            "{.apiVersion} {.spec.metrics[0].resource.target.averageUtilization}",
        ),
    ] {
        let shown = cluster
            .kubectl(&["get", resource, "web", "-o", &format!("jsonpath={path}")])
            .await;
        assert!(shown.ends_with(" 50"), "{resource}: {shown}");
    }
    assert_eq!(
        get(&cluster, &["deployment", "web", "--no-headers"]).await,
        ["web|0/2|0|0|AGE"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everyday_commands() {
    let cluster = start().await;
    cluster.kubectl_with(&["create", "-f", "-"], SAMPLES).await;
    let mut failures = Vec::new();
    for arguments in [
        &["get", "all"][..],
        &["cordon", "n1"],
        &["uncordon", "n1"],
        &["taint", "nodes", "n1", "key=value:NoSchedule"],
        &["taint", "nodes", "n1", "key-"],
        &["certificate", "approve", "jane"],
        &["create", "token", "builder"],
        &["rollout", "restart", "deployment/web"],
        &["rollout", "pause", "deployment/web"],
        &["rollout", "resume", "deployment/web"],
        &["set", "resources", "deployment/web", "--limits=cpu=200m"],
        &["set", "serviceaccount", "deployment/web", "builder"],
        &["set", "selector", "service/web", "app=other"],
        &[
            "patch",
            "deployment",
            "web",
            "-p",
            r#"{"spec":{"template":{"spec":{"containers":[{"name":"web","imagePullPolicy":"Never"}]}}}}"#,
        ],
        &[
            "patch",
            "deployment",
            "web",
            "--type=json",
            "-p",
            r#"[{"op":"replace","path":"/spec/replicas","value":1}]"#,
        ],
        &["scale", "statefulset/db", "replicaset/frontend", "--replicas=4"],
        &["scale", "rc/old", "--replicas=2", "--current-replicas=1"],
        &["debug", "busy", "--image=busybox", "-c", "look", "--attach=false"],
        &["label", "pods", "--all", "seen=yes"],
        &["annotate", "--overwrite", "pods", "busy", "a=b"],
        &[
            "wait",
            "pod/busy",
            "--for=jsonpath={.status.phase}=Pending",
            "--timeout=5s",
        ],
        &["auth", "can-i", "create", "pods"],
        &["delete", "job", "pi", "--cascade=orphan", "--wait=false"],
        &["delete", "pods", "--all", "--now"],
        &["delete", "deployment", "web", "--cascade=foreground", "--wait=false"],
    ] {
        match tokio::time::timeout(PATIENCE, cluster.run("admin", arguments, "")).await {
            Err(_) => failures.push(format!("{arguments:?} takes too long")),
            Ok(output) if output.status.success() => {}
            Ok(output) => failures.push(format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr))),
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    let request = get(&cluster, &["csr", "jane", "--no-headers"]).await;
    assert_eq!(request, ["jane|AGE|example.com/users|admin|<none>|Approved"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_can_be_described() {
    let cluster = start().await;
    let created = cluster.kubectl_with(&["create", "-f", "-"], SAMPLES).await;
    let names = created.lines().filter_map(|line| line.strip_suffix(" created"));
    let arguments: Vec<&str> = std::iter::once("describe").chain(names).collect();
    let text = cluster.kubectl(&arguments).await;
    for line in [
        "QoS Class:                   Burstable",
        "StrategyType:           RollingUpdate",
        "RollingUpdateStrategy:  25% max unavailable, 25% max surge",
        "Restart Policy:",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}
