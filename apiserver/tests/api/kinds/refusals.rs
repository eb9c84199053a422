//! What is refused or warned of, in upstream's words.

use super::{SAMPLES, start};

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
