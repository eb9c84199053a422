//! Roles as people look at them and change them; impersonation; keys that others verify tokens with.

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;

use crate::cluster::{Cluster, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_are_listed_and_reconciled() {
    let cluster = Cluster::start().await;
    cluster.kubeconfig("joe", &["dev"]);
    cluster
        .kubectl(&[
            "create",
            "clusterrolebinding",
            "dev",
            "--clusterrole=edit",
            "--group=dev",
        ])
        .await;
    let rights = text(&cluster.run("joe", &["auth", "can-i", "--list"], "").await);
    for line in [
        "selfsubjectaccessreviews.authorization.k8s.io",
        "deployments.apps",
        "/healthz",
        "pods/log",
    ] {
        assert!(rights.contains(line), "{line}: {rights}");
    }
    assert!(!rights.contains("clusterroles.rbac"), "{rights}");
    // edit holds what view does, by way of the roles that they are made of.
    let yes = text(
        &cluster
            .run("joe", &["auth", "can-i", "list", "resourcequotas"], "")
            .await,
    );
    assert_eq!(yes.trim(), "yes");
    let who = text(&cluster.run("joe", &["auth", "whoami"], "").await);
    assert!(who.contains("joe") && who.contains("dev"), "{who}");

    let roles = "---\n\
        {apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: r}, rules: [{verbs: [get], apiGroups: [\"\"], resources: [pods]}]}\n---\n\
        {apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: r}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: r}, subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: joe}]}\n";
    let made = cluster.kubectl_with(&["auth", "reconcile", "-f", "-"], roles).await;
    assert!(made.contains("reconciled"), "{made}");
    let more = roles.replace("verbs: [get]", "verbs: [get, watch]");
    cluster.kubectl_with(&["auth", "reconcile", "-f", "-"], &more).await;
    let role = cluster
        .kubectl(&["get", "clusterrole", "r", "-o", "jsonpath={.rules[*].verbs}"])
        .await;
    assert!(role.contains("watch") && role.contains("get"), "{role}");
    // Whoever may not do it does not hand it out this way either.
    let all = more.replace("resources: [pods]", "resources: [\"*\"]");
    let refused = text(&cluster.run("joe", &["auth", "reconcile", "-f", "-"], &all).await);
    assert!(refused.contains("forbidden"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_acts_as_another_is_let_to_be_all_of_it() {
    let cluster = Cluster::start().await;
    let rule = "{verbs: [impersonate], apiGroups: [\"\"], resources: [users], resourceNames: [jane]}";
    let extra = "{verbs: [impersonate], apiGroups: [authentication.k8s.io], resources: [userextras/example.com%2fscope], resourceNames: [a]}";
    let extra = extra.replace("%2f", "/");
    cluster
        .apply(&format!(
            "---\n{{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {{name: act}}, rules: [{rule}, {extra}]}}\n"
        ))
        .await;
    cluster
        .kubectl(&["create", "clusterrolebinding", "act", "--clusterrole=act", "--user=joe"])
        .await;
    let joe = cluster
        .authority
        .issue(&skiff_pki::Request::client("joe", &[]))
        .unwrap();
    let ask = async |headers: &str| {
        let body = r#"{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}"#;
        let request = format!(
            "POST /apis/authentication.k8s.io/v1/selfsubjectreviews HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n{headers}\r\n{body}",
            body.len()
        );
        cluster.exchange(Some(&joe), &request).await
    };
    let jane = ask("impersonate-user: jane\r\n").await;
    assert!(jane.contains("\"username\":\"jane\""), "{jane}");
    let scoped = ask("impersonate-user: jane\r\nimpersonate-extra-example.com%2Fscope: a\r\n").await;
    assert!(scoped.contains("\"example.com/scope\":[\"a\"]"), "{scoped}");
    for (headers, why) in [
        (
            "impersonate-user: root\r\n",
            "cannot impersonate resource \\\"users\\\"",
        ),
        (
            "impersonate-user: jane\r\nimpersonate-group: system:masters\r\n",
            "cannot impersonate resource \\\"groups\\\"",
        ),
        (
            "impersonate-user: jane\r\nimpersonate-uid: 7\r\n",
            "cannot impersonate resource \\\"uids\\\"",
        ),
        (
            "impersonate-user: jane\r\nimpersonate-extra-example.com%2Fscope: b\r\n",
            "cannot impersonate resource \\\"userextras/example.com/scope\\\"",
        ),
        ("impersonate-group: dev\r\n", "Impersonate-User"),
    ] {
        let refused = ask(headers).await;
        assert!(refused.contains(why), "{headers}: {refused}");
    }
}

/// SubjectAccessReview and its kin: what others may ask of the server about third parties.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_are_reviewed_for_others() {
    let cluster = Cluster::start().await;
    cluster.kubeconfig("joe", &["dev"]);
    cluster
        .kubectl(&[
            "create",
            "rolebinding",
            "dev",
            "--clusterrole=view",
            "--group=dev",
            "-n",
            "default",
        ])
        .await;
    let review = |kind: &str, namespace: &str, verb: &str| {
        let place = match kind {
            "LocalSubjectAccessReview" => "default",
            _ => "",
        };
        serde_json::json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": kind, "metadata": {"namespace": place},
            "spec": {
                "user": "joe", "groups": ["dev"],
                "resourceAttributes": {"namespace": namespace, "verb": verb, "resource": "pods"},
            },
        })
    };
    let ask = async |review: Value| -> Value {
        let answer = cluster
            .kubectl_with(&["create", "-o", "json", "-f", "-"], &review.to_string())
            .await;
        serde_json::from_str::<Value>(&answer).unwrap()["status"].clone()
    };
    for (kind, namespace, verb, allowed) in [
        ("SubjectAccessReview", "default", "list", true),
        ("SubjectAccessReview", "default", "delete", false),
        ("SubjectAccessReview", "kube-system", "list", false),
        ("LocalSubjectAccessReview", "default", "list", true),
        ("LocalSubjectAccessReview", "default", "delete", false),
    ] {
        let status = ask(review(kind, namespace, verb)).await;
        assert_eq!(
            status["allowed"].as_bool().unwrap_or(false),
            allowed,
            "{kind} {namespace} {verb}: {status}"
        );
        if allowed {
            let reason = status["reason"].as_str().unwrap_or_default();
            assert!(reason.contains("RoleBinding \"dev/default\""), "{reason}");
        }
    }
    let elsewhere = review("LocalSubjectAccessReview", "kube-system", "list").to_string();
    let refused = cluster.kubectl_fails_with(&["create", "-f", "-"], &elsewhere).await;
    assert!(refused.contains("must match the namespace of the review"), "{refused}");
    let mut nobodys = review("SubjectAccessReview", "default", "list");
    nobodys["spec"]
        .as_object_mut()
        .unwrap()
        .retain(|key, _| key == "resourceAttributes");
    let refused = cluster
        .kubectl_fails_with(&["create", "-f", "-"], &nobodys.to_string())
        .await;
    assert!(
        refused.contains("at least one of user or group must be specified"),
        "{refused}"
    );
    // Not everybody may ask about others.
    let asked = review("SubjectAccessReview", "default", "list").to_string();
    let refused = text(
        &cluster
            .run("joe", &["create", "--validate=false", "-f", "-"], &asked)
            .await,
    );
    assert!(
        refused.contains("cannot create resource \"subjectaccessreviews\""),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_verify_tokens_with_the_published_key() {
    let cluster = Cluster::start().await;
    let document =
        async |path: &str| -> Value { serde_json::from_str(&cluster.kubectl(&["get", "--raw", path]).await).unwrap() };
    let configuration = document("/.well-known/openid-configuration").await;
    assert_eq!(configuration["issuer"], "https://kubernetes.default.svc.cluster.local");
    let uri = configuration["jwks_uri"].as_str().unwrap();
    assert!(
        uri.starts_with("https://198.51.100.1:") && uri.ends_with("/openid/v1/jwks"),
        "{uri}"
    );
    let keys = document("/openid/v1/jwks").await;
    let key = &keys["keys"][0];
    cluster.kubectl(&["create", "serviceaccount", "robot"]).await;
    let token = cluster.kubectl(&["create", "token", "robot", "--audience=vault"]).await;
    let header = jsonwebtoken::decode_header(token.trim()).unwrap();
    assert_eq!(header.kid.as_deref(), key["kid"].as_str());
    let part = |name: &str| key[name].as_str().unwrap();
    let verifying = DecodingKey::from_ec_components(part("x"), part("y")).unwrap();
    let mut validation = Validation::new(Algorithm::ES256);
    validation.set_audience(&["vault"]);
    let claims = jsonwebtoken::decode::<Value>(token.trim(), &verifying, &validation)
        .unwrap()
        .claims;
    assert_eq!(claims["sub"], "system:serviceaccount:default:robot");
    // Service accounts may look; nobody in particular may not, as upstream's default.
    let refused = cluster.get_as_nobody("/openid/v1/jwks").await;
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
}
