//! Every kind through the real kubectl: accepted, defaulted, printed, refused as upstream does.

use serde_json::Value;

use crate::cluster::Cluster;

/// One valid manifest of every kind that users create, with what `kubectl get` calls it.
const SAMPLES: &str = include_str!("kinds/samples.yaml");

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
async fn everyday_tables() {
    let cluster = start().await;
    cluster.kubectl_with(&["create", "-f", "-"], SAMPLES).await;
    for (arguments, lines) in [
        (
            &["deployments", "web", "-o", "wide"][..],
            [
                "NAME|READY|UP-TO-DATE|AVAILABLE|AGE|CONTAINERS|IMAGES|SELECTOR",
                "web|0/3|0|0|AGE|web|nginx:1.27|app=web",
            ],
        ),
        (
            &["rs", "frontend"],
            ["NAME|DESIRED|CURRENT|READY|AGE", "frontend|2|0|0|AGE"],
        ),
        (&["sts", "db"], ["NAME|READY|AGE", "db|0/1|AGE"]),
        (
            &["ds", "agent"],
            [
                "NAME|DESIRED|CURRENT|READY|UP-TO-DATE|AVAILABLE|NODE SELECTOR|AGE",
                "agent|0|0|0|0|0|<none>|AGE",
            ],
        ),
        (
            &["jobs", "pi"],
            ["NAME|STATUS|COMPLETIONS|DURATION|AGE", "pi|Running|0/1|AGE"],
        ),
        (
            &["cj", "report"],
            [
                "NAME|SCHEDULE|TIMEZONE|SUSPEND|ACTIVE|LAST SCHEDULE|AGE",
                "report|*/5 * * * *|<none>|False|0|<none>|AGE",
            ],
        ),
        (
            &["pods", "busy", "-o", "wide"],
            [
                "NAME|READY|STATUS|RESTARTS|AGE|IP|NODE|NOMINATED NODE|READINESS GATES",
                "busy|0/1|Pending|0|AGE|<none>|<none>|<none>|<none>",
            ],
        ),
        (
            &["svc", "headless", "-o", "wide"],
            [
                "NAME|TYPE|CLUSTER-IP|EXTERNAL-IP|PORT(S)|AGE|SELECTOR",
                "headless|ClusterIP|None|<none>|80/TCP|AGE|app=web",
            ],
        ),
        (
            &["svc", "elsewhere"],
            [
                "NAME|TYPE|CLUSTER-IP|EXTERNAL-IP|PORT(S)|AGE",
                "elsewhere|ExternalName|<none>|example.com|<none>|AGE",
            ],
        ),
        (&["cm", "settings"], ["NAME|DATA|AGE", "settings|2|AGE"]),
        (&["secrets", "token"], ["NAME|TYPE|DATA|AGE", "token|Opaque|1|AGE"]),
        (&["ns", "team"], ["NAME|STATUS|AGE", "team|Active|AGE"]),
        (&["sa", "builder"], ["NAME|SECRETS|AGE", "builder|0|AGE"]),
        (
            &["nodes", "n1"],
            ["NAME|STATUS|ROLES|AGE|VERSION", "n1|Ready|<none>|AGE|v1.36.0"],
        ),
        (
            &["pvc", "data"],
            [
                "NAME|STATUS|VOLUME|CAPACITY|ACCESS MODES|STORAGECLASS|VOLUMEATTRIBUTESCLASS|AGE",
                "data|Pending|fast|<unset>|AGE",
            ],
        ),
        (
            &["sc", "fast"],
            [
                "NAME|PROVISIONER|RECLAIMPOLICY|VOLUMEBINDINGMODE|ALLOWVOLUMEEXPANSION|AGE",
                "fast|example.com/disk|Delete|Immediate|false|AGE",
            ],
        ),
        (
            &["ing", "web"],
            ["NAME|CLASS|HOSTS|ADDRESS|PORTS|AGE", "web|<none>|example.com|80|AGE"],
        ),
        (&["netpol", "deny"], ["NAME|POD-SELECTOR|AGE", "deny|<none>|AGE"]),
        (
            &["hpa", "web"],
            [
                "NAME|REFERENCE|TARGETS|MINPODS|MAXPODS|REPLICAS|AGE",
                "web|Deployment/web|cpu: <unknown>/80%|1|5|0|AGE",
            ],
        ),
        (
            &["pdb", "web"],
            [
                "NAME|MIN AVAILABLE|MAX UNAVAILABLE|ALLOWED DISRUPTIONS|AGE",
                "web|50%|N/A|0|AGE",
            ],
        ),
        (
            &["endpointslices", "web-1"],
            ["NAME|ADDRESSTYPE|PORTS|ENDPOINTS|AGE", "web-1|IPv4|80|10.244.0.5|AGE"],
        ),
        (
            &["endpoints", "manual"],
            ["NAME|ENDPOINTS|AGE", "manual|10.244.0.9:80|AGE"],
        ),
        (&["leases", "leader"], ["NAME|HOLDER|AGE", "leader|me|AGE"]),
        (&["rolebindings", "read"], ["NAME|ROLE|AGE", "read|Role/read|AGE"]),
        (
            &["events"],
            [
                "LAST SEEN|TYPE|REASON|OBJECT|MESSAGE",
                "<unknown>|Normal|Testing|pod/busy|It works",
            ],
        ),
    ] {
        assert_eq!(get(&cluster, arguments).await, lines, "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_show_what_kubelets_say() {
    let cluster = start().await;
    cluster.kubectl_with(&["create", "-f", "-"], SAMPLES).await;
    let row = async |status: &str| {
        cluster
            .kubectl(&[
                "patch",
                "pod",
                "busy",
                "--subresource=status",
                "--type=merge",
                "-p",
                status,
            ])
            .await;
        get(&cluster, &["pod", "busy", "--no-headers"]).await.remove(0)
    };
    let container = |state: &str| {
        format!(
            r#"{{"status":{{"phase":"Running","containerStatuses":[{{"name":"c","image":"i","imageID":"","ready":false,"restartCount":3,"state":{state}}}]}}}}"#
        )
    };
    for (state, expected) in [
        (
            r#"{"waiting":{"reason":"ImagePullBackOff"}}"#,
            "busy|0/1|ImagePullBackOff|3|AGE",
        ),
        (
            r#"{"waiting":{"reason":"CrashLoopBackOff"}}"#,
            "busy|0/1|CrashLoopBackOff|3|AGE",
        ),
        (
            r#"{"waiting":null,"terminated":{"exitCode":137,"reason":"OOMKilled"}}"#,
            "busy|0/1|OOMKilled|3|AGE",
        ),
        (
            r#"{"terminated":{"exitCode":0,"reason":"Completed"}}"#,
            "busy|0/1|Completed|3|AGE",
        ),
    ] {
        assert_eq!(row(&container(state)).await, expected);
    }
    // A pod that no node has goes at once.
    cluster.kubectl(&["delete", "pod", "busy"]).await;
    assert!(
        cluster
            .kubectl_fails(&["get", "pod", "busy"])
            .await
            .contains("NotFound")
    );
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_selectors() {
    let cluster = start().await;
    cluster.kubectl_with(&["create", "-f", "-"], SAMPLES).await;
    for (resource, selector, found) in [
        ("pods", "status.phase=Pending", "pod/busy"),
        ("pods", "status.phase!=Pending", ""),
        ("pods", "spec.nodeName=", "pod/busy"),
        ("pods", "metadata.name=busy,spec.restartPolicy=Always", "pod/busy"),
        (
            "events",
            "involvedObject.kind=Pod,involvedObject.name=busy",
            "event/busy.1",
        ),
        ("events", "reason=Other", ""),
        ("nodes", "spec.unschedulable=true", ""),
        ("nodes", "spec.unschedulable=false", "node/n1"),
        ("secrets", "type=Opaque", "secret/token"),
        ("rs", "status.replicas=0", "replicaset.apps/frontend"),
        ("jobs", "status.successful=0", "job.batch/pi"),
    ] {
        let names = cluster
            .kubectl(&["get", resource, "--field-selector", selector, "-o", "name"])
            .await;
        assert_eq!(names.trim(), found, "{resource} {selector}");
    }
    let error = cluster
        .kubectl_fails(&["get", "pods", "--field-selector", "spec.hostname=x"])
        .await;
    assert_eq!(
        error.trim(),
        r#"Error from server (BadRequest): Unable to find "/v1, Resource=pods" that match label selector "", field selector "spec.hostname=x": field label not supported: spec.hostname"#
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistakes_are_named_as_upstream_names_them() {
    let cluster = start().await;
    for (manifest, error) in [
        (
            r#"{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "other"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}}}"#,
            r#"The Deployment "web" is invalid: spec.template.metadata.labels: Invalid value: {"app":"other"}: `selector` does not match template `labels`"#,
        ),
        (
            r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}, {"image": "x"}]}}"#,
            "The Pod \"p\" is invalid: \n* spec.containers[0].image: Required value\n* spec.containers[1].name: Required value",
        ),
        (
            r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}]}}"#,
            r#"The Pod "p" is invalid: spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1"#,
        ),
        (
            r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"selector": {"a": "b"}}}"#,
            r#"The Service "s" is invalid: spec.ports: Required value"#,
        ),
        (
            r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}], "clusterIP": "1.2"}}"#,
            r#"The Service "s" is invalid: spec.clusterIPs[0]: Invalid value: "1.2": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"#,
        ),
        (
            r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a/b": ""}}"#,
            r#"The ConfigMap "c" is invalid: data[a/b]: Invalid value: "a/b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"#,
        ),
        (
            r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "Upper"}}"#,
            r#"The ConfigMap "Upper" is invalid: metadata.name: Invalid value: "Upper": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"#,
        ),
    ] {
        let found = cluster
            .kubectl_fails_with(&["create", "--validate=false", "-f", "-"], manifest)
            .await;
        assert_eq!(found.trim(), error);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_change_does_not() {
    let cluster = start().await;
    cluster.kubectl_with(&["create", "-f", "-"], SAMPLES).await;
    for (arguments, error) in [
        (
            [
                "deployment",
                "web",
                r#"{"spec":{"selector":{"matchLabels":{"app":"x"}},"template":{"metadata":{"labels":{"app":"x"}}}}}"#,
            ],
            r#"The Deployment "web" is invalid: spec.selector: Invalid value: {"matchLabels":{"app":"x"}}: field is immutable"#,
        ),
        (
            ["pod", "busy", r#"{"spec":{"nodeName":"n1"}}"#],
            r#"The Pod "busy" is invalid: spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"#,
        ),
        (
            [
                "service",
                "web",
                r#"{"spec":{"clusterIP":"10.96.200.200","clusterIPs":["10.96.200.200"]}}"#,
            ],
            r#"The Service "web" is invalid: spec.clusterIPs[0]: Invalid value: ["10.96.200.200"]: may not change once set"#,
        ),
        (
            ["secret", "token", r#"{"type":"a/b"}"#],
            r#"The Secret "token" is invalid: type: Invalid value: "a/b": field is immutable"#,
        ),
        (
            ["job", "pi", r#"{"spec":{"completions":3}}"#],
            r#"The Job "pi" is invalid: spec.completions: Invalid value: 3: field is immutable"#,
        ),
        (
            ["sts", "db", r#"{"spec":{"serviceName":"x"}}"#],
            r#"The StatefulSet "db" is invalid: spec: Forbidden: updates to statefulset spec for fields other than"#,
        ),
        (
            ["rolebinding", "read", r#"{"roleRef":{"name":"x"}}"#],
            r#"The RoleBinding "read" is invalid: roleRef: Invalid value: {"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"x"}: cannot change roleRef"#,
        ),
    ] {
        let [kind, name, patch] = arguments;
        let found = cluster
            .kubectl_fails(&["patch", kind, name, "--type=merge", "-p", patch])
            .await;
        assert!(found.starts_with(error), "{found}");
    }
}

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
        &["delete", "job", "pi", "--cascade=orphan"],
        &["delete", "pods", "--all", "--now"],
        &["delete", "deployment", "web", "--cascade=foreground", "--wait=false"],
    ] {
        let output = cluster.run("admin", arguments, "").await;
        if !output.status.success() {
            failures.push(format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)));
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
        "QoS Class:                   Guaranteed",
        "StrategyType:           RollingUpdate",
        "RollingUpdateStrategy:  25% max unavailable, 25% max surge",
        "Restart Policy:",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn likely_mistakes_are_said() {
    let cluster = start().await;
    let pod = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x", "resources": {"limits": {"memory": "100m"}}}]}}"#;
    let output = cluster.run("admin", &["create", "-f", "-"], pod).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains(r#"Warning: spec.containers[0].resources.limits[memory]: fractional byte value "100m" is invalid, must be an integer"#),
        "{said}"
    );
}
