//! What machines join by: bootstrap tokens, signed cluster-info, certificates that are asked for, approved, signed and used.

use std::time::Duration;

use jiff::Timestamp;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use skiff_api::defaults::{base64, from_base64};
use skiff_pki::{BootstrapToken, Request, SigningRequest};

use crate::cluster::{Cluster, eventually, text};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const SERVING: &str = "kubernetes.io/kubelet-serving";
const CLIENT: &[&str] = &["digital signature", "client auth"];
const SERVER: &[&str] = &["digital signature", "server auth"];

/// A client that goes over HTTPS with these credentials.
async fn remote(cluster: &Cluster, user: Value) -> kube::Client {
    let config = json!({
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {
            "server": cluster.url, "certificate-authority-data": base64(cluster.ca_pem.as_bytes()),
        }}],
        "users": [{"name": "c", "user": user}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    });
    let config: Kubeconfig = serde_json::from_value(config).unwrap();
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(config, &options).await.unwrap();
    kube::Client::try_from(config).unwrap()
}

fn with_token(token: &BootstrapToken) -> Value {
    json!({"token": token.reveal()})
}

fn with_certificate(certificate: &str, key: &str) -> Value {
    json!({
        "client-certificate-data": base64(certificate.as_bytes()),
        "client-key-data": base64(key.as_bytes()),
    })
}

async fn send(client: &kube::Client, method: &str, path: &str, body: Value) -> Result<Value, kube::Error> {
    let body = if body.is_null() {
        Vec::new()
    } else {
        body.to_string().into_bytes()
    };
    let request = http::Request::builder().method(method).uri(path);
    let request = request.header("content-type", "application/json").body(body).unwrap();
    client.request(request).await
}

async fn create_token(cluster: &Cluster, token: &BootstrapToken, expiration: &str) {
    let data = [
        ("token-id", token.id()),
        ("token-secret", token.secret()),
        ("expiration", expiration),
        ("usage-bootstrap-authentication", "true"),
        ("usage-bootstrap-signing", "true"),
        ("auth-extra-groups", "system:bootstrappers:kubeadm:default-node-token"),
    ]
    .map(|(key, value)| (key.to_owned(), value.into()));
    let secret = json!({
        "metadata": {"name": token.secret_name()},
        "type": "bootstrap.kubernetes.io/token",
        "stringData": serde_json::Map::from_iter(data),
    });
    cluster.post("/api/v1/namespaces/kube-system/secrets", secret).await;
}

/// Asks for a certificate; returns the key.
async fn ask(client: &kube::Client, name: &str, signer: &str, usages: &[&str], wanted: &Request) -> String {
    let key = SigningRequest::generate_key().unwrap();
    let pem = SigningRequest::make(wanted, &key).unwrap();
    let request = json!({
        "metadata": {"name": name},
        "spec": {"request": base64(pem.as_bytes()), "signerName": signer, "usages": usages},
    });
    send(client, "POST", REQUESTS, request).await.unwrap();
    key
}

async fn certificate(cluster: &Cluster, name: &str) -> String {
    let path = format!("{REQUESTS}/{name}");
    eventually(&format!("{name} is issued"), async || {
        cluster.get(&path).await["status"]["certificate"].is_string()
    })
    .await;
    let issued = cluster.get(&path).await;
    assert_eq!(issued["status"]["conditions"][0]["reason"], "AutoApproved");
    String::from_utf8(from_base64(text(&issued["status"]["certificate"])).unwrap()).unwrap()
}

/// What the approver has seen and left to people.
async fn is_left_alone(cluster: &Cluster, name: &str) {
    // Requests are looked at one after another: a later one that was approved says that this one was looked at.
    let request = cluster.get(&format!("{REQUESTS}/{name}")).await;
    assert!(request["status"]["conditions"].is_null(), "{request}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_with_a_token_becomes_a_node_and_no_more() {
    let mut cluster = Cluster::start().await;
    let token = BootstrapToken::generate().unwrap();
    create_token(&cluster, &token, "").await;
    let machine = remote(&cluster, with_token(&token)).await;

    let node = Request::client("system:node:n1", &["system:nodes"]);
    let key = ask(&machine, "csr-node", NODE_CLIENT, CLIENT, &node).await;
    let issued = certificate(&cluster, "csr-node").await;
    let seen = cluster.get(&format!("{REQUESTS}/csr-node")).await;
    assert_eq!(seen["spec"]["username"], format!("system:bootstrap:{}", token.id()));

    // The certificate is good, and is the node's.
    let kubelet = remote(&cluster, with_certificate(&issued, &key)).await;
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let who = send(
        &kubelet,
        "POST",
        "/apis/authentication.k8s.io/v1/selfsubjectreviews",
        review,
    )
    .await
    .unwrap();
    assert_eq!(who["status"]["userInfo"]["username"], "system:node:n1");
    send(&kubelet, "POST", "/api/v1/nodes", json!({"metadata": {"name": "n1"}}))
        .await
        .unwrap();

    // Its next one it gets by itself, the one it serves with when its addresses are registered.
    ask(&kubelet, "csr-next", NODE_CLIENT, CLIENT, &node).await;
    certificate(&cluster, "csr-next").await;
    let mut serving = Request::server("system:node:n1", &["n1"], &["192.0.2.11".parse().unwrap()]);
    serving.organizations = vec!["system:nodes".to_owned()];
    ask(&kubelet, "csr-early", SERVING, SERVER, &serving).await;
    let mut stolen = serving.clone();
    stolen.ip_addresses = vec!["192.0.2.1".parse().unwrap()];
    ask(&kubelet, "csr-stolen", SERVING, SERVER, &stolen).await;
    let proxy = Request::client("system:kube-proxy", &[]);
    let proxy_key = ask(&kubelet, "csr-proxy", API_CLIENT, CLIENT, &proxy).await;
    let proxy_issued = certificate(&cluster, "csr-proxy").await;
    // The proxy renews its own from then on, and gets nothing else.
    let running = remote(&cluster, with_certificate(&proxy_issued, &proxy_key)).await;
    ask(&running, "csr-proxy-as-node", NODE_CLIENT, CLIENT, &node).await;
    ask(&running, "csr-proxy-next", API_CLIENT, CLIENT, &proxy).await;
    certificate(&cluster, "csr-proxy-next").await;
    is_left_alone(&cluster, "csr-proxy-as-node").await;
    is_left_alone(&cluster, "csr-early").await;
    let addresses =
        json!([{"type": "InternalIP", "address": "192.0.2.11"}, {"type": "InternalIP", "address": "192.0.2.1"}]);
    cluster
        .patch("/api/v1/nodes/n1/status", json!({"status": {"addresses": addresses}}))
        .await;
    certificate(&cluster, "csr-early").await;
    // The API server's address: the node may call it its own, and is not believed.
    is_left_alone(&cluster, "csr-stolen").await;

    // What reads all Secrets is for whom somebody said so.
    let ingress = Request::client("system:skiff-ingress", &[]);
    ask(&kubelet, "csr-ingress", API_CLIENT, CLIENT, &ingress).await;
    ask(
        &kubelet,
        "csr-scheduler",
        API_CLIENT,
        CLIENT,
        &Request::client("system:kube-scheduler", &[]),
    )
    .await;
    ask(&machine, "csr-proxy-too", API_CLIENT, CLIENT, &proxy).await;
    certificate(&cluster, "csr-proxy-too").await;
    is_left_alone(&cluster, "csr-ingress").await;
    is_left_alone(&cluster, "csr-scheduler").await;
    // Somebody may say so later.
    let roles = "/apis/rbac.authorization.k8s.io/v1";
    let rules = json!([{
        "apiGroups": ["certificates.k8s.io"], "verbs": ["create"],
        "resources": ["certificatesigningrequests/skiffingressclient"],
    }]);
    let role = json!({"metadata": {"name": "ingress-here"}, "rules": rules});
    cluster.post(&format!("{roles}/clusterroles"), role).await;
    let binding = json!({
        "metadata": {"name": "ingress-here"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "ingress-here"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:node:n1"}],
    });
    cluster.post(&format!("{roles}/clusterrolebindings"), binding).await;
    certificate(&cluster, "csr-ingress").await;
    is_left_alone(&cluster, "csr-scheduler").await;

    // A node's identity is no way to others' rights.
    for (client, path) in [(&machine, "/api/v1/nodes"), (&kubelet, "/api/v1/secrets")] {
        let refused = send(client, "GET", path, Value::Null).await.unwrap_err();
        assert!(
            matches!(&refused, kube::Error::Api(status) if status.code == 403),
            "{refused}"
        );
        cluster.refusals_expected += 1;
    }
    let masters = Request::client("joe", &["system:masters"]);
    let pem = SigningRequest::make(&masters, &SigningRequest::generate_key().unwrap()).unwrap();
    let request = json!({"metadata": {"name": "m"}, "spec": {"request": base64(pem.as_bytes()), "signerName": API_CLIENT, "usages": CLIENT}});
    let refused = send(&machine, "POST", REQUESTS, request).await.unwrap_err().to_string();
    assert!(
        refused.contains("with system:masters group is not allowed"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_replaces_a_dead_one_at_its_address_needs_nobody() {
    let cluster = Cluster::start().await;
    for name in ["dead", "next"] {
        cluster.post("/api/v1/nodes", json!({"metadata": {"name": name}})).await;
        let addresses = json!([{"type": "InternalIP", "address": "192.0.2.11"}]);
        let path = format!("/api/v1/nodes/{name}/status");
        cluster.patch(&path, json!({"status": {"addresses": addresses}})).await;
    }
    let user = "system:node:next";
    let kubelet = cluster.server.client(user, &["system:nodes", "system:authenticated"]);
    let mut serving = Request::server(user, &["next"], &["192.0.2.11".parse().unwrap()]);
    serving.organizations = vec!["system:nodes".to_owned()];
    ask(&kubelet, "csr-address", SERVING, SERVER, &serving).await;
    serving.ip_addresses.clear();
    ask(&kubelet, "csr-name", SERVING, SERVER, &serving).await;
    certificate(&cluster, "csr-name").await;
    is_left_alone(&cluster, "csr-address").await;
    let silent = json!([{"type": "Ready", "status": "Unknown", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    cluster
        .patch("/api/v1/nodes/dead/status", json!({"status": {"conditions": silent}}))
        .await;
    certificate(&cluster, "csr-address").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_info_is_signed_with_every_token_until_it_ends() {
    let cluster = Cluster::start().await;
    let path = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
    let map = json!({"metadata": {"name": "cluster-info"}, "data": {"kubeconfig": "which cluster this is"}});
    cluster.post("/api/v1/namespaces/kube-public/configmaps", map).await;
    let (long, short) = (BootstrapToken::generate().unwrap(), BootstrapToken::generate().unwrap());
    create_token(&cluster, &long, "2100-01-01T00:00:00Z").await;
    let soon = Timestamp::now() + Duration::from_secs(2);
    create_token(&cluster, &short, &skiff_api::meta::time(soon)).await;
    let nobody = remote(&cluster, json!({})).await;
    let signature = async |token: &BootstrapToken| {
        let info = send(&nobody, "GET", path, Value::Null).await.unwrap();
        info["data"][format!("jws-kubeconfig-{}", token.id())]
            .as_str()
            .map(str::to_owned)
    };
    eventually("both have signed", async || {
        signature(&long).await.is_some() && signature(&short).await.is_some()
    })
    .await;
    assert!(long.verifies("which cluster this is", &signature(&long).await.unwrap()));
    let used = remote(&cluster, with_token(&short)).await;
    let short_secret = format!("/api/v1/namespaces/kube-system/secrets/{}", short.secret_name());
    eventually("the short one is gone with its signature", async || {
        signature(&short).await.is_none() && cluster.get(&short_secret).await.is_null()
    })
    .await;
    let refused = send(&used, "GET", REQUESTS, Value::Null).await.unwrap_err();
    assert!(
        matches!(&refused, kube::Error::Api(status) if status.code == 401),
        "{refused}"
    );
    cluster.patch(path, json!({"data": {"kubeconfig": "another"}})).await;
    eventually("the new content is signed", async || {
        signature(&long)
            .await
            .is_some_and(|signature| long.verifies("another", &signature))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_are_made_of_their_parts() {
    let cluster = Cluster::start().await;
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let has = async |role: &str| {
        let role = cluster.get(&format!("{roles}/{role}")).await;
        role["rules"]
            .as_array()
            .is_some_and(|rules| rules.iter().any(|rule| rule["apiGroups"] == json!(["example.com"])))
    };
    let label = "rbac.authorization.k8s.io/aggregate-to-view";
    let part = json!({
        "metadata": {"name": "crontabs", "labels": {label: "true"}},
        "rules": [{"apiGroups": ["example.com"], "resources": ["crontabs"], "verbs": ["get"]}],
    });
    cluster.post(roles, part).await;
    eventually("view has it, and what is made of view", async || {
        has("view").await && has("edit").await && has("admin").await
    })
    .await;
    cluster.delete(&format!("{roles}/crontabs"), "Background").await;
    eventually("it is gone with its part", async || {
        !has("view").await && !has("admin").await
    })
    .await;
}
