//! What the kubelet asks of containers over the network, and in which time: probes and hooks.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::api::Api;
use crate::kubelet::is_ready;
use crate::scene::Scene;

/// A pod with the node's network, which is the test's own, so that the kubelet reaches what the test serves.
fn on_node(more: &Value) -> Value {
    let mut container = json!({"name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent"});
    for (key, value) in more.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    json!({"hostNetwork": true, "containers": [container]})
}

/// A server that notes the first lines of what it is asked, and answers each with this, or never.
struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn new(answer: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = seen.clone();
        let task = tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 1024];
                let length = stream.read(&mut buffer).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
                noted.lock().push(request.lines().next().unwrap_or_default().to_owned());
                match answer {
                    Some(answer) => drop(stream.write_all(answer.as_bytes()).await),
                    None => open.push(stream),
                }
            }
        });
        Self { port, seen, task }
    }

    fn seen(&self, line: &str) -> bool {
        self.seen.lock().iter().any(|seen| seen == line)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn pre_stop_hooks_over_the_network() {
    let server = Server::new(Some("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")).await;
    let cases = [
        (
            json!({"httpGet": {"port": server.port, "path": "/drain"}}),
            "GET /drain HTTP/1.1",
        ),
        (json!({"tcpSocket": {"port": server.port}}), ""),
    ];
    let scene = Scene::new();
    for (name, (hook, line)) in ["p", "q"].into_iter().zip(cases) {
        scene.create(name, &on_node(&json!({"lifecycle": {"preStop": hook}})));
        scene.until_ready(name).await;
        assert!(!server.seen(line), "{hook}: not before its time");
        scene.delete(name, 5);
        scene.until_gone(name).await;
        scene.api.until("the hook", |_| server.seen(line).then_some(())).await;
    }
    let events = scene.api.events();
    assert!(
        !events.iter().any(|event| event.starts_with("FailedPreStopHook")),
        "{events:?}"
    );
}

/// Of each kind of probe: what is told when no answer comes in its time.
#[tokio::test]
async fn a_probe_has_its_time() {
    let scene = Scene::new();
    scene.runtime.delay_exec("late 'x'", Duration::from_secs(60));
    let server = Server::new(None).await;
    let port = server.port;
    let address = format!("127.0.0.1:{port}");
    let cases = [
        (
            json!({"exec": {"command": ["late", "'x'"]}}),
            r#"command timed out: "late 'x'" timed out after 1s"#.to_owned(),
        ),
        (
            json!({"httpGet": {"port": port, "path": "/h"}}),
            format!(
                "Get \"http://{address}/h\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
            ),
        ),
        (
            json!({"grpc": {"port": port}}),
            format!("timeout: failed to connect service \"{address}\" within 1s: context deadline exceeded"),
        ),
    ];
    for (index, (probe, _)) in cases.iter().enumerate() {
        let mut probe = probe.clone();
        probe["timeoutSeconds"] = 1.into();
        scene.create(&format!("p{index}"), &on_node(&json!({"readinessProbe": probe})));
    }
    for (_, text) in &cases {
        scene
            .until_event(&format!("Unhealthy: Readiness probe failed: {text}"))
            .await;
    }
}

/// A redirect to another host is not followed, and somebody should look.
#[tokio::test]
async fn a_redirect_elsewhere_is_a_warning() {
    let away = "HTTP/1.1 302 Found\r\nLocation: http://elsewhere.invalid/\r\nContent-Length: 4\r\n\r\naway";
    let server = Server::new(Some(away)).await;
    let scene = Scene::new();
    let probe = json!({"httpGet": {"port": server.port}, "periodSeconds": 1});
    scene.create("p", &on_node(&json!({"readinessProbe": probe})));
    scene.until_ready("p").await;
    let text = "ProbeWarning: Readiness probe warning: Probe terminated redirects, Response body: away";
    scene.until_event(text).await;
}

#[tokio::test(start_paused = true)]
async fn a_first_probe_waits_for_its_delay() {
    let scene = Scene::new();
    let begun = tokio::time::Instant::now();
    let probe = json!({"exec": {"command": ["probe"]}, "initialDelaySeconds": 15, "periodSeconds": 1});
    scene.create("p", &on_node(&json!({"readinessProbe": probe})));
    let runs = |status: &Value| !status["containerStatuses"][0]["state"]["running"].is_null();
    let status = scene.until_status("p", "running container", runs).await;
    assert!(!is_ready(&status));
    let probed = |_: &Api| {
        scene
            .runtime
            .calls()
            .iter()
            .any(|call| call.starts_with("ExecSync "))
            .then_some(())
    };
    scene.api.until("a probe", probed).await;
    assert!((14..17).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    scene.until_ready("p").await;
}
