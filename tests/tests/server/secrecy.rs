//! What a server keeps from others: its files, its log, old TLS.

use anyhow::Context as _;
use serde_json::json;
use skiff_pki::BootstrapToken;
use skiff_tests::wait::until;
use skiff_tests::{Kubectl, modes, tls};

use crate::servers::{LIMIT, Place};

/// Uses what must stay secret in the ways that it is used in; returns what no log may hold.
async fn use_secrets(place: &Place, kubectl: &Kubectl) -> anyhow::Result<Vec<String>> {
    let (token, password) = (BootstrapToken::generate()?, "correct-horse-battery");
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": token.secret_name(), "namespace": "kube-system"},
        "stringData": {
            "token-id": token.id(), "token-secret": token.secret(), "password": password,
            "usage-bootstrap-authentication": "true", "usage-bootstrap-signing": "true",
        },
    });
    let info = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cluster-info", "namespace": "kube-public"},
        "data": {"kubeconfig": "which cluster this is"},
    });
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [secret, info]});
    kubectl.apply(&list.to_string())?;
    // The controllers have it in their hands too.
    let signed = async || kubectl.field(&["configmap", "cluster-info", "-n", "kube-public"], "{.data}");
    until("cluster-info is signed", LIMIT, signed, |data| {
        data.contains("jws-kubeconfig-")
    })
    .await?;
    kubectl.run(&["create", "serviceaccount", "robot"])?;
    let robot = kubectl.run(&["create", "token", "robot"])?.trim().to_owned();
    let forged = format!("{robot}x");
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": forged}});
    kubectl.attempt(&["create", "-f", "-"], &review.to_string())?;
    kubectl.run(&["get", "secrets", "-A", "-o", "yaml"])?;
    let wrong = format!("{}.{}", token.id(), "0".repeat(16));
    for bearer in [&robot, &forged, &token.reveal(), &wrong] {
        place.kubectl_by_token(1, bearer)?.attempt(&["get", "nodes"], "")?;
    }
    let signature = robot.rsplit('.').next().context("a token has parts")?.to_owned();
    Ok(vec![token.secret().to_owned(), password.to_owned(), signature])
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_tokens_and_old_tls_stay_inside() -> anyhow::Result<()> {
    let mut place = Place::new(0)?;
    place.more = json!({"manifestsDir": place.path().join("manifests")});
    let server = place.start_with(1, &["--v", "10"], &[])?;
    server.ready().await?;

    let mut secrets = use_secrets(&place, &server.kubectl).await?;
    let pki = place.path().join("pki");
    for key in ["ca.key", "apiserver.key", "sa.key"] {
        let pem = std::fs::read_to_string(pki.join(key))?;
        secrets.push(pem.lines().nth(1).context("a key has lines")?.to_owned());
    }
    let log = server.report();
    anyhow::ensure!(log.contains("bearer token refused"), "the log holds everything: {log}");
    for secret in &secrets {
        let line = log.lines().find(|line| line.contains(secret.as_str()));
        anyhow::ensure!(line.is_none(), "{line:?}");
    }

    // As they are made, whatever the umask: only certificates and public keys are for everybody.
    let skip = |_: &std::path::Path| false;
    let mut found = Vec::new();
    for directory in ["pki", "data-1", "manifests"] {
        found.extend(modes::walk(&place.path().join(directory), &secrets, &skip)?);
    }
    for file in &found {
        let public = file
            .path
            .extension()
            .is_some_and(|ending| ending == "crt" || ending == "pub");
        let others = if public { 0o022 } else { 0o077 };
        anyhow::ensure!(file.mode & others == 0 && file.owner.0 == 0, "{file:?}");
    }
    for name in ["ca.key", "state.db"] {
        anyhow::ensure!(found.iter().any(|file| file.path.ends_with(name)), "{name}: {found:?}");
    }
    tls::modern_only(&place.host(1), |command| Ok(command.output()?))
}
