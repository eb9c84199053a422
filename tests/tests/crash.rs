//! Any process is killed at any moment and simply started again: nothing that runs is disturbed.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use skiff_cluster::Role;
use skiff_cri::{Client, Runtime as _, SandboxFilter};
use skiff_tests::traffic::Traffic;
use skiff_tests::wait::until;
use skiff_tests::{Fixture, on_cluster};

const LIMIT: Duration = Duration::from_secs(60);
const HELLO: &str = include_str!("../../examples/hello.yaml");

/// Container ids and restart counts of all pods: equal while nothing was restarted.
fn containers(fixture: &Fixture) -> anyhow::Result<String> {
    let each = "{range .items[*]}{.metadata.name} {.status.podIP} {.status.containerStatuses[*].containerID} {.status.containerStatuses[*].restartCount}{\"\\n\"}{end}";
    fixture.kubectl.field(&["pods", "-A"], each)
}

/// A power cut leaves the file empty in which the runtime's CNI library has noted what its plugins said.
async fn a_pod_ends_whose_network_was_noted_badly(fixture: &Fixture) -> anyhow::Result<()> {
    let place = r#"{"spec":{"nodeName":"node-1","terminationGracePeriodSeconds":1}}"#;
    let image = "--image=docker.io/library/busybox:1.36";
    let kubectl = &fixture.kubectl;
    kubectl.run(&["run", "torn", image, "--overrides", place, "--", "sleep", "3600"])?;
    kubectl.run(&["wait", "pod/torn", "--for=condition=Ready", "--timeout=40s"])?;
    let socket = fixture.cluster.layout().node(0).containerd_socket();
    let filter = SandboxFilter {
        labels: [("io.kubernetes.pod.name".to_owned(), "torn".to_owned())].into(),
        ..SandboxFilter::default()
    };
    let runtime = Client::new(&format!("unix://{}", socket.display()));
    let sandboxes = runtime.list_sandboxes(&filter).await?;
    let note = format!("/var/lib/cni/results/skiff-{}-eth0", sandboxes[0].id);
    anyhow::ensure!(
        !std::fs::read(&note)?.is_empty(),
        "{note} is empty before it is emptied"
    );
    std::fs::write(&note, "")?;
    kubectl.run(&["delete", "pod", "torn", "--timeout=40s"])?;
    anyhow::ensure!(!std::path::Path::new(&note).exists(), "{note} is left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_each_process_in_turn_loses_no_request_and_restarts_no_container() -> anyhow::Result<()> {
    on_cluster(2, async |fixture| {
        fixture.kubectl.apply(HELLO)?;
        fixture
            .kubectl
            .run(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
        let ip = fixture.kubectl.field(&["service", "hello"], "{.spec.clusterIP}")?;
        let service = SocketAddr::new(ip.parse().context("the cluster IP")?, 80);
        let before = containers(fixture)?;
        let traffic = Traffic::start(fixture.cluster.namespace("node-1")?, service)?;

        for (round, (role, node)) in [
            (Role::Kubelet, "node-1"),
            (Role::Proxy, "node-1"),
            (Role::Server, "node-1"),
            (Role::Kubelet, "node-2"),
        ]
        .into_iter()
        .enumerate()
        {
            fixture.cluster.kill(role, node)?;
            fixture.cluster.restart(role, node)?;
            fixture.cluster.wait_until_ready().await?;
            // It works again, not only runs: a new pod goes all the way.
            let name = format!("after-{round}");
            let run = async || {
                let ran = fixture.kubectl.run(&[
                    "run",
                    &name,
                    "--image=docker.io/library/busybox:1.36",
                    "--image-pull-policy=Never",
                    "--restart=Never",
                    "--overrides",
                    &format!(r#"{{"spec":{{"nodeName":"{node}","terminationGracePeriodSeconds":0}}}}"#),
                    "--",
                    "sleep",
                    "3600",
                ]);
                // A connection to a server that is just starting may be refused; the pod is then not there yet.
                if ran.is_err() {
                    fixture.kubectl.run(&["get", "pod", &name])?;
                }
                Ok(())
            };
            until(
                &format!("a pod can be created after {role} of {node} was killed"),
                LIMIT,
                run,
                |()| true,
            )
            .await?;
            fixture
                .kubectl
                .run(&["wait", &format!("pod/{name}"), "--for=condition=Ready", "--timeout=40s"])?;
            fixture.kubectl.run(&["delete", "pod", &name, "--now"])?;
        }

        a_pod_ends_whose_network_was_noted_badly(fixture).await?;

        let outcome = traffic.stop()?;
        assert_eq!(
            outcome.failures,
            Vec::<String>::new(),
            "requests lost while processes were killed"
        );
        assert!(outcome.answered > 100, "too few requests to tell: {}", outcome.answered);
        assert_eq!(containers(fixture)?, before, "containers were restarted");
        Ok(())
    })
    .await
}
