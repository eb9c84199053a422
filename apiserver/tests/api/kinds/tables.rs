//! What `kubectl get` prints and selects.

use super::{SAMPLES, get, start};

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
