//! Volumes that outlive their pods: a claim gets a directory of the node that its first pod came to, and keeps it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use skiff_tests::wait::until;
use skiff_tests::{Fixture, on_cluster};

const LIMIT: Duration = Duration::from_secs(45);
const BUSYBOX: &str = "docker.io/library/busybox:1.36";

/// A pod that runs `script` with the claim at `/data`.
fn pod(name: &str, claim: &str, script: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: {BUSYBOX}
    imagePullPolicy: Never
    command: [sh, -c, "{script}; sleep 3600"]
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes:
  - {{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}
"#
    )
}

fn claim(name: &str, more: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec:
  accessModes: [ReadWriteOnce]
  resources: {{requests: {{storage: 1Mi}}}}
{more}
"#
    )
}

async fn wait_field(fixture: &Fixture, object: &[&str], path: &str, wanted: &str) -> anyhow::Result<()> {
    let what = format!("{path} of {object:?} is {wanted:?}");
    let look = async || fixture.kubectl.field(object, path);
    until(&what, LIMIT, look, |seen| seen == wanted).await.map(drop)
}

async fn wait_gone(path: &Path) -> anyhow::Result<()> {
    let what = format!("{} is gone", path.display());
    until(&what, LIMIT, async || Ok(path.exists()), |exists| !exists)
        .await
        .map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_the_default_class_keeps_its_data_and_its_node() -> anyhow::Result<()> {
    on_cluster(2, async |fixture| {
        let kubectl = &fixture.kubectl;
        kubectl.apply(&claim("data", ""))?;
        assert_eq!(
            kubectl.field(&["pvc", "data"], "{.spec.storageClassName}")?,
            "local-path"
        );
        kubectl.apply(&pod("writer", "data", "echo kept > /data/file"))?;
        kubectl.run(&["wait", "pod/writer", "--for=condition=Ready", "--timeout=30s"])?;
        let node = kubectl.field(&["pod", "writer"], "{.spec.nodeName}")?;
        let volume = kubectl.field(&["pvc", "data"], "{.spec.volumeName}")?;
        // More than the claim asked for fits only where it was told that nobody counts.
        let dd = [
            "exec",
            "writer",
            "--",
            "dd",
            "if=/dev/zero",
            "of=/data/large",
            "bs=1M",
            "count=4",
        ];
        let fits = kubectl.attempt(&dd, "")?.success;
        let events = async || kubectl.run(&["get", "events", "--field-selector=involvedObject.name=data"]);
        let told = |text: &String| text.contains("ProvisioningSucceeded") && text.contains("SizeNotEnforced") == fits;
        until("the claim's events say what it got", LIMIT, events, told).await?;
        let directory = PathBuf::from(kubectl.field(&["pv", &volume], "{.spec.local.path}")?);
        assert!(
            directory.starts_with(fixture.cluster.node(&node)?.directory()),
            "{directory:?}"
        );
        let read = async || Ok(std::fs::read_to_string(directory.join("file")).unwrap_or_default());
        until("the pod's file is on the node", LIMIT, read, |text| text == "kept\n").await?;

        kubectl.run(&["delete", "pod", "writer"])?;
        // Round and round: it is never another node.
        for _ in 0..3 {
            kubectl.apply(&pod("reader", "data", "cat /data/file"))?;
            kubectl.run(&["wait", "pod/reader", "--for=condition=Ready", "--timeout=30s"])?;
            assert_eq!(kubectl.field(&["pod", "reader"], "{.spec.nodeName}")?, node);
            let said = async || kubectl.run(&["logs", "reader"]);
            until("the data is there", LIMIT, said, |text| text == "kept\n").await?;
            kubectl.run(&["delete", "pod", "reader"])?;
        }
        // Deleted while it is used, the claim stays until its pod is gone.
        kubectl.apply(&pod("last", "data", "true"))?;
        kubectl.run(&["wait", "pod/last", "--for=condition=Ready", "--timeout=30s"])?;
        kubectl.run(&["delete", "pvc", "data", "--wait=false"])?;
        let deleted = kubectl.field(&["pvc", "data"], "{.metadata.deletionTimestamp}")?;
        assert!(!deleted.is_empty() && directory.join("file").exists());
        kubectl.run(&["delete", "pod", "last"])?;
        kubectl.run(&["wait", "pvc/data", "--for=delete", "--timeout=30s"])?;
        kubectl.run(&["wait", &format!("pv/{volume}"), "--for=delete", "--timeout=30s"])?;
        wait_gone(&directory).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_made_by_hand_is_kept() -> anyhow::Result<()> {
    on_cluster(1, async |fixture| {
        let kubectl = &fixture.kubectl;
        let place = fixture.cluster.node("node-1")?.directory().join("by-hand");
        kubectl.apply(&format!(
            r#"
apiVersion: v1
kind: PersistentVolume
metadata: {{name: by-hand}}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {{storage: 1Gi}}
  persistentVolumeReclaimPolicy: Retain
  hostPath: {{path: {}, type: DirectoryOrCreate}}
"#,
            place.display()
        ))?;
        kubectl.apply(&claim("data", "  storageClassName: ''"))?;
        wait_field(fixture, &["pvc", "data"], "{.status.phase}", "Bound").await?;
        kubectl.apply(&pod("writer", "data", "echo kept > /data/file"))?;
        kubectl.run(&["wait", "pod/writer", "--for=condition=Ready", "--timeout=30s"])?;
        let file = place.join("file");
        let read = async || Ok(std::fs::read_to_string(&file).unwrap_or_default());
        until("the pod's file is on the node", LIMIT, read, |text| text == "kept\n").await?;
        kubectl.run(&["delete", "pod/writer", "pvc/data"])?;
        wait_field(fixture, &["pv", "by-hand"], "{.status.phase}", "Released").await?;
        kubectl.run(&["delete", "pv", "by-hand"])?;
        assert_eq!(std::fs::read_to_string(&file)?, "kept\n");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_cannot_be_had_says_why() -> anyhow::Result<()> {
    on_cluster(1, async |fixture| {
        let kubectl = &fixture.kubectl;
        let shared = claim("shared", "").replace("ReadWriteOnce", "ReadWriteMany");
        kubectl.apply(&shared)?;
        kubectl.apply(&pod("user", "shared", "true"))?;
        let events = async || kubectl.run(&["get", "events", "--field-selector=involvedObject.name=shared"]);
        let why = "access mode ReadWriteMany is not supported";
        until("the claim's events say why", LIMIT, events, |text| text.contains(why)).await?;
        kubectl.apply(&pod("lost", "nowhere", "true"))?;
        let path = "{.status.conditions[?(@.type==\"PodScheduled\")].message}";
        let told = async || kubectl.field(&["pod", "lost"], path);
        let why = "0/1 nodes are available: persistentvolumeclaim \"nowhere\" not found.";
        until("the pod says why", LIMIT, told, |text| text.starts_with(why)).await?;
        kubectl.run(&["delete", "pod", "--all"])?;
        Ok(())
    })
    .await
}
