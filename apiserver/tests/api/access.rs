//! Who may do what: certificates, tokens, roles, impersonation, nobody.

use crate::cluster::{Cluster, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_open_doors_and_nobody_hands_out_keys_they_lack() {
    let cluster = Cluster::start().await;
    cluster.kubeconfig("joe", &["dev"]);
    let joe = async |arguments: &[&str]| text(&cluster.run("joe", arguments, "").await);
    assert_eq!(
        joe(&["get", "pods"]).await.trim(),
        "Error from server (Forbidden): pods is forbidden: User \"joe\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    cluster
        .kubectl(&[
            "create",
            "rolebinding",
            "dev",
            "--clusterrole=admin",
            "--group=dev",
            "-n",
            "default",
        ])
        .await;
    assert_eq!(
        joe(&["get", "pods"]).await.trim(),
        "No resources found in default namespace."
    );
    assert!(
        joe(&["get", "pods", "-n", "kube-system"])
            .await
            .contains("is forbidden")
    );
    assert!(joe(&["get", "nodes"]).await.contains("at the cluster scope"));
    assert!(
        joe(&["create", "role", "r", "--verb=get", "--resource=pods"])
            .await
            .contains("created")
    );
    let refused = joe(&["create", "role", "r2", "--verb=get", "--resource=nodes"]).await;
    assert!(
        refused.contains("is attempting to grant RBAC permissions not currently held"),
        "{refused}"
    );
    let refused = joe(&[
        "create",
        "rolebinding",
        "b",
        "--clusterrole=cluster-admin",
        "--user=joe",
    ])
    .await;
    assert!(refused.contains("not currently held"), "{refused}");
    assert_eq!(joe(&["auth", "can-i", "delete", "pods"]).await.trim(), "yes");
    assert!(joe(&["auth", "can-i", "delete", "nodes"]).await.contains("no"));
    assert!(joe(&["auth", "whoami"]).await.contains("joe"));
    assert!(
        joe(&["get", "pods", "--as=admin"])
            .await
            .contains("cannot impersonate resource \"users\"")
    );
    let as_joe = cluster.kubectl_fails(&["get", "nodes", "--as=joe"]).await;
    assert!(
        as_joe.contains("User \"joe\" cannot list resource \"nodes\""),
        "{as_joe}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_live_as_long_as_what_they_are_bound_to() {
    let cluster = Cluster::start().await;
    cluster.kubectl(&["create", "serviceaccount", "robot"]).await;
    cluster
        .kubectl(&[
            "create",
            "clusterrolebinding",
            "robots",
            "--clusterrole=view",
            "--serviceaccount=default:robot",
        ])
        .await;
    let token = cluster.kubectl(&["create", "token", "robot"]).await;
    let token = format!("--token={}", token.trim());
    // No client certificate: the token alone.
    cluster.anonymous();
    let ask = async |arguments: &[&str]| text(&cluster.run("anonymous", arguments, "").await);
    assert_eq!(
        ask(&[&token, "get", "pods"]).await.trim(),
        "No resources found in default namespace."
    );
    assert!(
        ask(&[&token, "get", "secrets"])
            .await
            .contains("User \"system:serviceaccount:default:robot\"")
    );
    assert!(
        ask(&[&token, "auth", "whoami"])
            .await
            .contains("system:serviceaccounts:default")
    );
    let other = cluster.kubectl(&["create", "token", "robot", "--audience=vault"]).await;
    let other = format!("--token={}", other.trim());
    assert!(ask(&[&other, "get", "pods"]).await.contains("Unauthorized"));
    assert!(ask(&["--token=nonsense", "get", "pods"]).await.contains("Unauthorized"));
    cluster.kubectl(&["delete", "serviceaccount", "robot"]).await;
    assert!(ask(&[&token, "get", "pods"]).await.contains("Unauthorized"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anybody_may_ask_whether_the_server_lives() {
    let cluster = Cluster::start().await;
    for path in ["/livez", "/readyz", "/healthz"] {
        let response = cluster.get_as_nobody(path).await;
        assert!(
            response.starts_with("HTTP/1.1 200") && response.ends_with("\r\n\r\nok"),
            "{response}"
        );
    }
    assert!(cluster.get_as_nobody("/readyz?verbose").await.contains("[+]ping ok\n"));
    assert!(cluster.get_as_nobody("/version").await.contains("\"major\""));
    for path in ["/metrics", "/api", "/api/v1/namespaces", "/"] {
        let response = cluster.get_as_nobody(path).await;
        assert!(response.starts_with("HTTP/1.1 403"), "{response}");
        assert!(response.contains("system:anonymous"), "{response}");
    }
    let metrics = cluster.kubectl(&["get", "--raw", "/metrics"]).await;
    assert!(metrics.contains("apiserver_request_total{"), "{metrics}");
}
