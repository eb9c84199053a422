//! Bootstrap tokens and certificate signing requests: who may come, ask, decide and sign.

use serde_json::{Value, json};
use skiff_api::defaults::base64;
use skiff_pki::{BootstrapToken, Request, SigningRequest};

use crate::cluster::{Cluster, text};

/// A Secret of a token, as `kubeadm token create` writes it.
fn token_secret(token: &BootstrapToken, expiration: &str, groups: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": token.secret_name(), "namespace": "kube-system"},
        "stringData": {
            "token-id": token.id(), "token-secret": token.secret(), "expiration": expiration,
            "usage-bootstrap-authentication": "true", "auth-extra-groups": groups,
        },
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bootstrap_tokens_are_good_until_they_end() {
    let cluster = Cluster::start().await;
    cluster.anonymous();
    let ask = async |token: &str, arguments: &[&str]| {
        let token = format!("--token={token}");
        text(
            &cluster
                .run("anonymous", &[&[token.as_str()], arguments].concat(), "")
                .await,
        )
    };
    const LIST: [&str; 3] = [
        "get",
        "--raw",
        "/apis/certificates.k8s.io/v1/certificatesigningrequests",
    ];
    let token = BootstrapToken::generate().unwrap();
    assert!(ask(&token.reveal(), &LIST).await.contains("Unauthorized"));
    const GROUPS: &str = "system:bootstrappers:kubeadm:default-node-token";
    cluster
        .apply(&token_secret(&token, "2100-01-01T00:00:00Z", GROUPS))
        .await;
    let who = ask(&token.reveal(), &["auth", "whoami"]).await;
    assert!(
        who.contains(&format!("system:bootstrap:{}", token.id())) && who.contains(GROUPS),
        "{who}"
    );
    assert!(ask(&token.reveal(), &LIST).await.contains("\"items\":[]"));
    assert!(
        ask(&token.reveal(), &["get", "secrets", "-n", "kube-system"])
            .await
            .contains("forbidden")
    );
    let wrong = format!("{}.{}", token.id(), "0".repeat(16));
    assert!(ask(&wrong, &LIST).await.contains("Unauthorized"));
    // From one request to the next.
    cluster
        .apply(&token_secret(&token, "2020-01-01T00:00:00Z", GROUPS))
        .await;
    assert!(ask(&token.reveal(), &LIST).await.contains("Unauthorized"));
    cluster.apply(&token_secret(&token, "", GROUPS)).await;
    assert!(ask(&token.reveal(), &LIST).await.contains("\"items\":[]"));
    // Nobody becomes a master by a Secret in kube-system.
    cluster.apply(&token_secret(&token, "", "system:masters")).await;
    assert!(ask(&token.reveal(), &LIST).await.contains("Unauthorized"));
    cluster.apply(&token_secret(&token, "", GROUPS)).await;
    cluster
        .kubectl(&["delete", "secret", "-n", "kube-system", &token.secret_name()])
        .await;
    assert!(ask(&token.reveal(), &LIST).await.contains("Unauthorized"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_reviewed_for_the_servers_own_audience() {
    let cluster = Cluster::start().await;
    let token = BootstrapToken::generate().unwrap();
    cluster.apply(&token_secret(&token, "", "")).await;
    let review = async |audiences: &[&str]| -> Value {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": token.reveal(), "audiences": audiences},
        });
        let answer = cluster
            .kubectl_with(&["create", "-o", "json", "-f", "-"], &review.to_string())
            .await;
        serde_json::from_str(&answer).unwrap()
    };
    let own = review(&[]).await;
    assert_eq!(
        own["status"]["user"]["username"],
        format!("system:bootstrap:{}", token.id())
    );
    assert_eq!(
        own["status"]["user"]["groups"],
        json!(["system:bootstrappers", "system:authenticated"])
    );
    let other = review(&["vault"]).await;
    assert_eq!(other["status"]["authenticated"], Value::Null, "{other}");
    assert!(!other["status"].to_string().contains(token.secret()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_may_read_which_cluster_this_is_and_nothing_beside() {
    let cluster = Cluster::start().await;
    for name in ["cluster-info", "other"] {
        cluster
            .kubectl(&[
                "create",
                "configmap",
                name,
                "-n",
                "kube-public",
                "--from-literal=kubeconfig=x",
            ])
            .await;
    }
    let path = "/api/v1/namespaces/kube-public/configmaps";
    let info = cluster.get_as_nobody(&format!("{path}/cluster-info")).await;
    assert!(
        info.starts_with("HTTP/1.1 200") && info.contains("\"kubeconfig\":\"x\""),
        "{info}"
    );
    for path in [&format!("{path}/other"), path, &format!("{path}?watch=1")] {
        let refused = cluster.get_as_nobody(path).await;
        assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    }
}

fn request(name: &str, signer: &str, wanted: &Request) -> Value {
    let pem = SigningRequest::make(wanted, &SigningRequest::generate_key().unwrap()).unwrap();
    json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {
            "request": base64(pem.as_bytes()), "signerName": signer, "usages": ["client auth"],
            // What the server knows better.
            "username": "root", "groups": ["system:masters"], "uid": "0", "extra": {"a": ["b"]},
        },
        "status": {"conditions": [{"type": "Approved", "status": "True"}]},
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_decide_about_certificates_as_far_as_they_are_let() {
    let cluster = Cluster::start().await;
    cluster.kubeconfig("joe", &["dev"]);
    let joe = async |arguments: &[&str], input: &str| text(&cluster.run("joe", arguments, input).await);
    cluster
        .kubectl(&[
            "create",
            "clusterrole",
            "ask",
            "--verb=create,get,list,update,patch",
            "--resource=csr,csr/approval,csr/status",
        ])
        .await;
    cluster
        .kubectl(&["create", "clusterrolebinding", "ask", "--clusterrole=ask", "--user=joe"])
        .await;
    let wanted = Request::client("jane", &["dev"]);
    for name in ["one", "two"] {
        let created = joe(
            &["create", "-f", "-"],
            &request(name, "example.com/people", &wanted).to_string(),
        )
        .await;
        assert!(created.contains("created"), "{created}");
    }
    let one: Value = serde_json::from_str(&cluster.kubectl(&["get", "csr", "one", "-o", "json"]).await).unwrap();
    assert_eq!(one["spec"]["username"], "joe");
    assert_eq!(one["spec"]["groups"], json!(["dev", "system:authenticated"]));
    assert_eq!(
        (&one["spec"]["uid"], &one["spec"]["extra"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(one["status"], json!({}));

    let refused = joe(&["certificate", "approve", "one"], "").await;
    assert!(
        refused.contains("user not permitted to approve requests with signerName \"example.com/people\""),
        "{refused}"
    );
    let status = r#"{"status": {"certificate": "eA=="}}"#;
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests/one/status";
    let refused = cluster.patch_as("joe", path, status).await;
    assert!(refused.contains("user not permitted to sign requests"), "{refused}");
    // The right for a whole domain of signers.
    let rule = r#"{verbs: [approve], apiGroups: [certificates.k8s.io], resources: [signers], resourceNames: ["example.com/*"]}"#;
    cluster
        .apply(&format!(
            "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {{name: approve}}\nrules: [{rule}]\n"
        ))
        .await;
    cluster
        .kubectl(&[
            "create",
            "clusterrolebinding",
            "approve",
            "--clusterrole=approve",
            "--user=joe",
        ])
        .await;
    let approved = joe(&["certificate", "approve", "one"], "").await;
    assert!(approved.contains("one approved"), "{approved}");
    assert!(joe(&["certificate", "deny", "two"], "").await.contains("two denied"));
    let table = cluster.kubectl(&["get", "csr"]).await;
    assert!(table.contains("Approved") && table.contains("Denied"), "{table}");
    let refused = joe(&["certificate", "deny", "one"], "").await;
    assert!(refused.contains("is already Approved"), "{refused}");
    // The status is not the way to an approval.
    let refused = cluster.patch_as("joe", path, status).await;
    assert!(refused.contains("user not permitted to sign requests"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_none_are_refused() {
    let cluster = Cluster::start().await;
    let client = "kubernetes.io/kube-apiserver-client";
    let refuse = async |change: &dyn Fn(&mut Value)| {
        let mut asked = request("bad", client, &Request::client("jane", &[]));
        change(&mut asked);
        cluster
            .kubectl_fails_with(&["create", "-f", "-"], &asked.to_string())
            .await
    };
    let garbled = refuse(&|asked| asked["spec"]["request"] = base64(b"nonsense").into()).await;
    assert!(
        garbled.contains("PEM block type must be CERTIFICATE REQUEST"),
        "{garbled}"
    );
    let empty = b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n";
    let empty = refuse(&|asked| asked["spec"]["request"] = base64(empty).into()).await;
    assert!(empty.contains("spec.request: Invalid value"), "{empty}");
    let legacy = refuse(&|asked| asked["spec"]["signerName"] = "kubernetes.io/legacy-unknown".into()).await;
    assert!(legacy.contains("is not allowed via this API version"), "{legacy}");
    let brief = refuse(&|asked| asked["spec"]["expirationSeconds"] = 5.into()).await;
    assert!(
        brief.contains("may not specify a duration less than 600 seconds"),
        "{brief}"
    );
    let master = request("master", client, &Request::client("jane", &["system:masters"]));
    let refused = cluster
        .kubectl_fails_with(&["create", "-f", "-"], &master.to_string())
        .await;
    assert!(
        refused.contains("use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"),
        "{refused}"
    );
}
