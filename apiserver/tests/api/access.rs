//! Who may do what: certificates, tokens, roles, impersonation, nobody.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

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
async fn a_bound_token_ends_with_its_object_and_its_time() {
    let cluster = Cluster::start().await;
    cluster.anonymous();
    cluster
        .apply(
            "---\n{apiVersion: v1, kind: ServiceAccount, metadata: {name: robot}}\n\
             ---\n{apiVersion: v1, kind: ServiceAccount, metadata: {name: default}}\n\
             ---\n{apiVersion: v1, kind: Secret, metadata: {name: s}}\n\
             ---\n{apiVersion: v1, kind: Node, metadata: {name: node-1}}\n\
             ---\n{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {serviceAccountName: robot, containers: [{name: c, image: c}]}}\n",
        )
        .await;
    let who = async |token: &str| {
        let token = format!("--token={token}");
        text(&cluster.run("anonymous", &[&token, "auth", "whoami"], "").await)
    };
    for (kind, object) in [("Pod", "pod/p"), ("Secret", "secret/s"), ("Node", "node/node-1")] {
        let (_, name) = object.split_once('/').unwrap();
        let bound = ["--bound-object-kind", kind, "--bound-object-name", name];
        let token = cluster
            .kubectl(&[&["create", "token", "robot"][..], &bound].concat())
            .await;
        let good = who(token.trim()).await;
        assert!(good.contains("system:serviceaccount:default:robot"), "{kind}: {good}");
        cluster.kubectl(&["delete", object, "--now"]).await;
        let ended = who(token.trim()).await;
        assert!(ended.contains("Unauthorized"), "{kind}: {ended}");
    }
    // The same token with another time: what is signed by the right key counts until then, and not a second longer.
    let token = cluster.kubectl(&["create", "token", "robot"]).await;
    let payload = token.trim().split('.').nth(1).unwrap();
    let claims = URL_SAFE_NO_PAD.decode(payload).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    let key = jsonwebtoken::EncodingKey::from_ec_pem(cluster.tokens_pem.as_bytes()).unwrap();
    let mut header = jsonwebtoken::decode_header(token.trim()).unwrap();
    header.typ = None;
    let now = jiff::Timestamp::now().as_second();
    for (begin, end, good) in [(-60, 60, true), (-3600, -1, false), (3600, 7200, false)] {
        let mut claims = claims.clone();
        claims["nbf"] = (now + begin).into();
        claims["exp"] = (now + end).into();
        let token = jsonwebtoken::encode(&header, &claims, &key).unwrap();
        let said = who(&token).await;
        assert_eq!(said.contains("Unauthorized"), !good, "{begin} {end}: {said}");
    }
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
