//! Every kind through the real kubectl: accepted, defaulted, printed, refused as upstream does.

mod commands;
mod refusals;
mod tables;

use std::time::Duration;

use serde_json::Value;

use crate::cluster::Cluster;

/// One valid manifest of every kind that users create, with what `kubectl get` calls it.
const SAMPLES: &str = include_str!("kinds/samples.yaml");

/// How long one command may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server with the account that pods run as; a controller makes it in a whole cluster.
async fn start() -> Cluster {
    let cluster = Cluster::start().await;
    cluster.kubectl(&["create", "serviceaccount", "default"]).await;
    cluster
}

/// Columns of a line, with ages made equal: `12s` -> `AGE`.
fn cells(line: &str) -> Vec<String> {
    let age = |word: &str| {
        word.len() > 1 && word.ends_with('s') && word[..word.len() - 1].bytes().all(|byte| byte.is_ascii_digit())
    };
    line.split("  ")
        .map(str::trim)
        .filter(|cell| !cell.is_empty())
        .map(|cell| if age(cell) { "AGE".to_owned() } else { cell.to_owned() })
        .collect()
}

/// Output of `kubectl get`, a line a row, columns joined by bars.
async fn get(cluster: &Cluster, arguments: &[&str]) -> Vec<String> {
    let mut all = vec!["get"];
    all.extend_from_slice(arguments);
    cluster
        .kubectl(&all)
        .await
        .lines()
        .map(|line| cells(line).join("|"))
        .collect()
}

async fn json(cluster: &Cluster, kind: &str, name: &str) -> Value {
    serde_json::from_str(&cluster.kubectl(&["get", kind, name, "-o", "json"]).await).expect("kubectl prints JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_is_accepted_and_printed() {
    let cluster = start().await;
    let created = cluster.kubectl_with(&["create", "-f", "-"], SAMPLES).await;
    let names: Vec<&str> = created
        .lines()
        .filter_map(|line| line.strip_suffix(" created"))
        .collect();
    assert_eq!(names.len(), SAMPLES.matches("\nkind: ").count(), "{created}");
    let all = |verb: &[&'static str], options: &[&'static str]| {
        let arguments = verb
            .iter()
            .copied()
            .chain(names.iter().copied())
            .chain(options.iter().copied());
        arguments.map(str::to_owned).collect::<Vec<String>>()
    };
    let run = async |arguments: Vec<String>, input: &str| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        cluster.kubectl_with(&arguments, input).await
    };
    let table = run(all(&["get"], &["--no-headers"]), "").await;
    assert_eq!(
        table.lines().filter(|line| !line.is_empty()).count(),
        names.len(),
        "{table}"
    );
    run(all(&["get"], &["-o", "wide"]), "").await;
    // What is stored passes validation again, unchanged.
    let stored = run(all(&["get"], &["-o", "yaml"]), "").await;
    let replaced = cluster
        .kubectl_with(&["replace", "--validate=false", "-f", "-"], &stored)
        .await;
    assert_eq!(
        replaced.lines().filter(|line| line.ends_with(" replaced")).count(),
        names.len(),
        "{replaced}"
    );
    let labelled = run(all(&["label"], &["touched=yes"]), "").await;
    assert_eq!(
        labelled.lines().filter(|line| line.ends_with(" labeled")).count(),
        names.len(),
        "{labelled}"
    );
    run(all(&["delete"], &["--wait=false"]), "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_applied_again_does_not_change() {
    let cluster = start().await;
    let count = |output: &str, word: &str| output.lines().filter(|line| line.ends_with(word)).count();
    let all = SAMPLES.matches("\nkind: ").count();
    let first = cluster.apply(SAMPLES).await;
    assert_eq!(count(&first, " created"), all, "{first}");
    let names: Vec<&str> = first.lines().filter_map(|line| line.strip_suffix(" created")).collect();
    let mut arguments = vec!["get", "-o", "jsonpath={.items[*].metadata.resourceVersion}"];
    arguments.extend(&names);
    let versions = cluster.kubectl(&arguments).await;
    assert_eq!(versions.split(' ').count(), all);

    // Clients write these each time: lists that are replaced as a whole and get defaults, and what can only be written.
    let rewritten = [
        "endpoints/manual",
        "endpointslice.discovery.k8s.io/web-1",
        "limitrange/small",
        "pod/busy",
        "poddisruptionbudget.policy/web",
        "rolebinding.rbac.authorization.k8s.io/read",
        "secret/token",
        "statefulset.apps/db",
    ];
    let second = cluster.apply(SAMPLES).await;
    let mut configured: Vec<&str> = second
        .lines()
        .filter_map(|line| line.strip_suffix(" configured"))
        .collect();
    configured.sort_unstable();
    assert_eq!(configured, rewritten);
    assert_eq!(count(&second, " unchanged"), all - rewritten.len(), "{second}");
    // Yet nothing is different, so nothing is stored.
    assert_eq!(cluster.kubectl(&arguments).await, versions);

    let third = cluster.apply(&SAMPLES.replace("nginx:1.27", "nginx:1.28")).await;
    assert!(third.contains("deployment.apps/web configured"), "{third}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defaults_are_upstreams() {
    let cluster = start().await;
    cluster.kubectl_with(&["create", "-f", "-"], SAMPLES).await;
    let pod = json(&cluster, "pod", "busy").await;
    assert_eq!(pod["status"]["phase"], "Pending");
    assert_eq!(pod["status"]["qosClass"], "Burstable");
    assert_eq!(pod["spec"]["restartPolicy"], "Always");
    assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 30);
    assert_eq!(pod["spec"]["containers"][0]["resources"]["requests"]["memory"], "64Mi");
    assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], "Always");
    let deployment = json(&cluster, "deployment", "web").await;
    assert_eq!(deployment["metadata"]["generation"], 1);
    assert_eq!(deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");
    let service = json(&cluster, "service", "web").await;
    assert_eq!(service["spec"]["clusterIP"], service["spec"]["clusterIPs"][0]);
    assert!(
        service["spec"]["ports"][0]["nodePort"]
            .as_i64()
            .is_some_and(|port| (30000..=32767).contains(&port))
    );
    let namespace = json(&cluster, "namespace", "team").await;
    assert_eq!(namespace["metadata"]["labels"]["kubernetes.io/metadata.name"], "team");
    let secret = json(&cluster, "secret", "token").await;
    assert_eq!(secret["data"]["key"], "aGVsbG8=");
    let job = json(&cluster, "job", "pi").await;
    assert_eq!(
        job["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"],
        job["metadata"]["uid"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generations_count_changes_of_the_specification() {
    let cluster = start().await;
    cluster.kubectl_with(&["create", "-f", "-"], SAMPLES).await;
    let generation = async || json(&cluster, "deployment", "web").await["metadata"]["generation"].clone();
    cluster.kubectl(&["scale", "deployment", "web", "--replicas=5"]).await;
    assert_eq!(generation().await, 2);
    cluster.kubectl(&["label", "deployment", "web", "a=b"]).await;
    assert_eq!(generation().await, 2);
    cluster
        .kubectl(&[
            "patch",
            "deployment",
            "web",
            "--subresource=status",
            "--type=merge",
            "-p",
            r#"{"status":{"replicas":5},"spec":{"replicas":9}}"#,
        ])
        .await;
    let deployment = json(&cluster, "deployment", "web").await;
    assert_eq!(
        (&deployment["spec"]["replicas"], &deployment["status"]["replicas"]),
        (&5.into(), &5.into())
    );
    assert_eq!(generation().await, 2);
    cluster
        .kubectl(&["set", "image", "deployment/web", "web=nginx:1.28"])
        .await;
    assert_eq!(generation().await, 3);
}
