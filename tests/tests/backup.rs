//! A cluster's state is saved while it runs, lost, and put back: what it ran runs again.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use skiff_cluster::Role;
use skiff_tests::wait::until;
use skiff_tests::{binary, on_cluster};

const LIMIT: Duration = Duration::from_secs(60);
const WEB: &str = r#"---
{apiVersion: v1, kind: List, items: [
  {apiVersion: v1, kind: Secret, metadata: {name: key}, stringData: {word: sesame}},
  {apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 2, selector: {matchLabels: {app: web}},
    template: {metadata: {labels: {app: web}}, spec: {terminationGracePeriodSeconds: 0,
      containers: [{name: main, image: "docker.io/library/busybox:1.36", command: [sleep, "3600"]}]}}}}]}
"#;

fn skiff(command: &str, file: &Path, data: &Path, more: &[&str]) -> anyhow::Result<Output> {
    Command::new(binary()?)
        .arg(command)
        .arg(file)
        .arg("--data-dir")
        .arg(data)
        .args(more)
        .output()
        .with_context(|| format!("run skiff {command}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_saved_runs_again() -> anyhow::Result<()> {
    on_cluster(1, async |fixture| {
        let kubectl = fixture.kubectl.clone();
        let ready = async || kubectl.field(&["deployment", "web"], "{.status.readyReplicas}");
        kubectl.apply(WEB)?;
        until("the pods run", LIMIT, ready, |text| text == "2").await?;

        let directory = tempfile::tempdir()?;
        let file = directory.path().join("state");
        let data = fixture.cluster.layout().server_data();
        let saved = skiff("backup", &file, &data, &["--output", "json"])?;
        anyhow::ensure!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
        let summary: Value = serde_json::from_slice(&saved.stdout)?;
        anyhow::ensure!(summary["objects"].as_u64() > Some(100), "{summary}");
        assert_eq!(std::fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);

        kubectl.run(&["delete", "deployment/web", "secret/key"])?;
        let pods = async || kubectl.field(&["pods", "-l", "app=web"], "{.items[*].metadata.name}");
        until("the pods are gone", LIMIT, pods, String::is_empty).await?;

        let refused = |more: &[&str], why: &str| {
            let output = skiff("restore", &file, &data, more)?;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            anyhow::ensure!(!output.status.success() && text.contains(why), "{text}");
            Ok(())
        };
        refused(&["--force"], "in use by another process")?;
        fixture.cluster.kill(Role::Server, "node-1")?;
        refused(&[], "is not empty")?;
        let restored = skiff("restore", &file, &data, &["--force", "--output", "json"])?;
        anyhow::ensure!(
            restored.status.success(),
            "{}",
            String::from_utf8_lossy(&restored.stderr)
        );
        let summary: Value = serde_json::from_slice(&restored.stdout)?;
        anyhow::ensure!(
            summary["newRevision"].as_u64() > summary["revision"].as_u64(),
            "{summary}"
        );
        fixture.cluster.restart(Role::Server, "node-1")?;

        let word = async || kubectl.field(&["secret", "key"], "{.data.word}");
        until("the Secret is back", LIMIT, word, |text| text == "c2VzYW1l").await?;
        let running = async || {
            let each = "{range .items[*]}{.status.containerStatuses[0].state.running.startedAt}{\"\\n\"}{end}";
            kubectl.field(&["pods", "-l", "app=web"], each)
        };
        // They ran when they were saved: only what the kubelet tells of them now counts.
        let before = running().await?;
        let again = |text: &String| {
            text.lines().count() == 2 && text.lines().all(|line| !line.is_empty() && !before.contains(line))
        };
        until("the pods run again", LIMIT, running, again).await?;
        until("the Deployment is ready again", LIMIT, ready, |text| text == "2")
            .await
            .map(drop)
    })
    .await
}
