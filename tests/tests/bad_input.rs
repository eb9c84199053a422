//! What people get wrong, and what they are told.

use std::time::Duration;

use skiff_tests::wait::until;
use skiff_tests::{Fixture, on_cluster};

const LIMIT: Duration = Duration::from_secs(45);

fn pod(name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 0, containers: [{{name: main, {spec}}}]}}}}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_manifest_is_refused_with_the_field_that_is_wrong() -> anyhow::Result<()> {
    on_cluster(1, async |fixture| {
        let busybox = "image: docker.io/library/busybox:1.36";
        let cases = [
            (
                "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, dat: {}}",
                "unknown field \"dat\"",
            ),
            (
                "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: A_b}}",
                "metadata.name: Invalid value: \"A_b\"",
            ),
            (
                "---\n{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {}}",
                "spec.containers: Required value",
            ),
            (
                "---\n{apiVersion: v1, kind: Nonsense, metadata: {name: a}}",
                "no matches for kind \"Nonsense\"",
            ),
            (
                &pod(
                    "a",
                    &format!("{busybox}, resources: {{requests: {{memory: 2Gi}}, limits: {{memory: 1Gi}}}}"),
                ),
                "must be less than or equal to memory limit",
            ),
            (
                &pod("a", &format!("{busybox}, imagePullPolicy: Sometimes")),
                "Unsupported value: \"Sometimes\"",
            ),
            (
                &pod("a", &format!("{busybox}, ports: [{{containerPort: 99999}}]")),
                "must be between 1 and 65535",
            ),
            (
                &pod("a", &format!("{busybox}, command: sleep")),
                "cannot unmarshal string into Go struct field",
            ),
        ];
        for (manifest, wanted) in cases {
            let printed = fixture.kubectl.attempt(&["create", "-f", "-"], manifest)?;
            assert!(
                !printed.success && printed.stderr.contains(wanted),
                "{manifest}\nwanted {wanted:?}, got: {}",
                printed.stderr
            );
        }
        assert_eq!(
            fixture.kubectl.run(&["get", "pods", "-o", "name"])?,
            "",
            "nothing of it was created"
        );
        Ok(())
    })
    .await
}

/// The reason in the waiting or terminated state of a pod's container, or of its scheduling.
async fn reason(fixture: &Fixture, pod: &str, path: &str, wanted: &str) -> anyhow::Result<String> {
    let what = format!("pod {pod} says {wanted}");
    until(
        &what,
        LIMIT,
        async || fixture.kubectl.field(&["pod", pod], path),
        |seen| seen.contains(wanted),
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_cannot_run_says_why() -> anyhow::Result<()> {
    on_cluster(1, async |fixture| {
        let kubectl = &fixture.kubectl;
        const WAITING: &str = "{.status.containerStatuses[0].state.waiting.reason}";
        let busybox = "image: docker.io/library/busybox:1.36, imagePullPolicy: IfNotPresent";

        kubectl.apply(&pod(
            "huge",
            &format!("{busybox}, resources: {{requests: {{cpu: 1000}}}}"),
        ))?;
        kubectl.apply(&pod(
            "absent",
            "image: skiff.local/no-such-image:1, imagePullPolicy: Never",
        ))?;
        kubectl.apply(&pod("unpullable", "image: registry.invalid/no-such-image:1"))?;
        kubectl.apply(&pod("garbled", "image: \"UPPER/case::\""))?;
        kubectl.apply(&pod("brief", &format!("{busybox}, command: [\"false\"]")))?;
        kubectl.apply(&pod(
            "lost",
            &format!("{busybox}, env: [{{name: A, valueFrom: {{configMapKeyRef: {{name: none, key: a}}}}}}]"),
        ))?;
        kubectl.apply(&pod("mistyped", &format!("{busybox}, command: [/no/such/program]")))?;

        reason(
            fixture,
            "huge",
            "{.status.conditions[?(@.type==\"PodScheduled\")].message}",
            "0/1 nodes are available: 1 Insufficient cpu.",
        )
        .await?;
        reason(
            fixture,
            "huge",
            "{.status.conditions[?(@.type==\"PodScheduled\")].reason}",
            "Unschedulable",
        )
        .await?;
        reason(fixture, "absent", WAITING, "ErrImageNeverPull").await?;
        reason(fixture, "unpullable", WAITING, "ImagePullBackOff").await?;
        reason(fixture, "garbled", WAITING, "InvalidImageName").await?;
        reason(fixture, "brief", WAITING, "CrashLoopBackOff").await?;
        reason(fixture, "lost", WAITING, "CreateContainerConfigError").await?;
        reason(
            fixture,
            "lost",
            "{.status.containerStatuses[0].state.waiting.message}",
            "configmap \"none\" not found",
        )
        .await?;
        reason(fixture, "mistyped", "{.status.containerStatuses[0]}", "StartError").await?;

        let events = async || kubectl.run(&["get", "events", "--field-selector=involvedObject.name=huge"]);
        until("FailedScheduling is recorded", LIMIT, events, |text| {
            text.contains("FailedScheduling")
        })
        .await?;
        let events = async || kubectl.run(&["get", "events", "--field-selector=involvedObject.name=brief"]);
        until("BackOff is recorded", LIMIT, events, |text| {
            text.contains("Back-off restarting failed container")
        })
        .await?;

        // What was missing appears: the pod goes on by itself.
        kubectl.run(&["create", "configmap", "none", "--from-literal=a=b"])?;
        reason(fixture, "lost", "{.status.containerStatuses[0]}", "Completed")
            .await
            .map(|_| ())
    })
    .await
}
