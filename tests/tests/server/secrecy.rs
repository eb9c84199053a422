//! What a server keeps from others: its files, its log, old TLS.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use serde_json::json;
use skiff_pki::BootstrapToken;
use skiff_tests::Kubectl;
use skiff_tests::wait::until;

use crate::servers::{LIMIT, Place};

/// Everything below a directory, with its mode.
fn walk(directory: &Path, found: &mut Vec<(String, u32)>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        anyhow::ensure!(metadata.uid() == 0, "{} is not root's", entry.path().display());
        found.push((entry.path().display().to_string(), metadata.mode() & 0o7777));
        if metadata.is_dir() {
            walk(&entry.path(), found)?;
        }
    }
    Ok(())
}

/// Whether a handshake of this version succeeds, and what was said.
fn shakes_hands(host: &str, version: &str) -> anyhow::Result<(bool, String)> {
    let output = Command::new("openssl")
        .env("OPENSSL_CONF", "/dev/null")
        // Debian's own settings refuse old versions by themselves: it is the server that is asked here.
        .args(["s_client", "-connect", host, version, "-cipher", "ALL:@SECLEVEL=0"])
        .stdin(Stdio::null())
        .output()
        .context("run openssl (packaging/deps.sh test)")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Ok((output.status.success(), said))
}

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
    let mut found = Vec::new();
    for directory in ["pki", "data-1", "manifests"] {
        let directory = place.path().join(directory);
        walk(&directory, &mut found)?;
    }
    for (path, mode) in &found {
        let public = path.ends_with(".crt") || path.ends_with(".pub");
        anyhow::ensure!(
            mode & if public { 0o022 } else { 0o077 } == 0,
            "{path} has mode {mode:o}"
        );
    }
    for name in ["ca.key", "state.db"] {
        anyhow::ensure!(found.iter().any(|(path, _)| path.ends_with(name)), "{name}: {found:?}");
    }

    let host = place.host(1);
    for (version, welcome) in [
        ("-tls1", false),
        ("-tls1_1", false),
        ("-tls1_2", true),
        ("-tls1_3", true),
    ] {
        let (done, said) = shakes_hands(&host, version)?;
        anyhow::ensure!(done == welcome, "{version}: {said}");
        // It was the server that refused.
        anyhow::ensure!(welcome || said.contains(" alert "), "{version}: {said}");
    }
    Ok(())
}
