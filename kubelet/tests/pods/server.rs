//! The server on its own port: who may ask, and what is answered.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::scene::Scene;

/// A connection that has shaken hands; with `user` a client certificate for it was shown.
async fn connect(scene: &Scene, user: Option<&str>) -> TlsStream<TcpStream> {
    shake(scene, user).await.expect("a handshake")
}

/// Whether the server's certificate is of its present authority.
async fn trusts(scene: &Scene) -> bool {
    shake(scene, None).await.is_ok()
}

async fn shake(scene: &Scene, user: Option<&str>) -> std::io::Result<TlsStream<TcpStream>> {
    let authority = &scene.authority;
    let identity = user.map(|user| {
        authority
            .issue(&skiff_pki::Request::client(user, &["g"]))
            .expect("an identity")
    });
    let server = std::fs::read_to_string(scene.dir.path().join("kubelet/pki/kubelet-ca.crt")).expect("its authority");
    let mut config = skiff_pki::client_config(identity.as_ref(), &server).expect("a client");
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = TcpStream::connect(("127.0.0.1", scene.port)).await.expect("a server");
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").expect("a name");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await
}

/// One request over TLS; with `user` a client certificate for it. Returns status and body.
pub(crate) async fn ask(scene: &Scene, user: Option<&str>, header: &str, path: &str) -> (u16, String) {
    let mut stream = connect(scene, user).await;
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n{header}\r\n");
    stream.write_all(request.as_bytes()).await.expect("a request");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok();
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or(0);
    (
        status,
        text.split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned())
            .unwrap_or_default(),
    )
}

#[tokio::test]
async fn every_path_asks_who_and_whether_they_may() {
    let scene = Scene::with_server();
    scene.create("p", &json!({}));
    scene.until_ready("p").await;
    for path in [
        "/healthz",
        "/pods",
        "/metrics",
        "/containerLogs/ns/p/c",
        "/exec/ns/p/c?command=id&output=1",
        "/configz",
        "/runningpods/",
        "/stats/summary",
        "/metrics/cadvisor",
        "/metrics/resource",
        "/metrics/probes",
        "/logs/",
        "/run/ns/p/c",
        "/attach/ns/p/c",
        "/portForward/ns/p",
        "/nothing",
    ] {
        assert_eq!(ask(&scene, None, "", path).await.0, 401, "{path}");
        assert_eq!(
            ask(&scene, None, "Authorization: Bearer bad\r\n", path).await.0,
            401,
            "{path}"
        );
        assert_eq!(ask(&scene, Some("nobody"), "", path).await.0, 403, "{path}");
        let status = ask(&scene, Some("admin"), "", path).await.0;
        assert!(status != 401 && status != 403, "{path}: {status}");
    }
    assert_eq!(
        ask(&scene, None, "Authorization: Bearer good\r\n", "/healthz").await,
        (200, "ok".into())
    );
    let (_, pods) = ask(&scene, Some("admin"), "", "/pods").await;
    assert!(pods.contains("uid-p"), "{pods}");
}

/// A scraper is allowed what it reads, and not everything below `nodes/proxy`.
#[tokio::test]
async fn a_right_for_one_subresource_is_enough() {
    let scene = Scene::with_server();
    scene.until_event("Starting: Starting kubelet.").await;
    let status = async |user: &str, path: &str| ask(&scene, Some(user), "", path).await.0;
    for (user, path) in [
        ("pods-reader", "/pods"),
        ("pods-reader", "/runningpods/"),
        ("healthz-reader", "/healthz"),
        ("configz-reader", "/configz"),
        ("metrics-reader", "/metrics/cadvisor"),
        ("stats-reader", "/stats/summary"),
        ("log-reader", "/logs/"),
        ("proxy-reader", "/pods"),
    ] {
        assert_eq!(status(user, path).await, 200, "{user} of {path}");
    }
    for (user, path) in [
        ("pods-reader", "/healthz"),
        ("healthz-reader", "/pods"),
        ("configz-reader", "/exec/ns/p/c"),
        ("proxy-reader", "/metrics"),
    ] {
        assert_eq!(status(user, path).await, 403, "{user} of {path}");
    }
    // What else is known of a user may decide.
    let header = "Authorization: Bearer scoped\r\n";
    assert_eq!(ask(&scene, None, header, "/stats/summary").await.0, 200);
    assert_eq!(ask(&scene, None, header, "/metrics").await.0, 403);
}

/// Nodes run on while the cluster's authority is replaced.
#[tokio::test]
async fn the_clients_authority_and_the_certificate_are_read_anew() {
    let mut scene = Scene::idle();
    let (own, pki) = (scene.dir.path().join("own"), scene.dir.path().join("kubelet/pki"));
    for dir in [&own, &pki] {
        std::fs::create_dir_all(dir).expect("a directory");
    }
    let next = skiff_pki::CertificateAuthority::generate("next").expect("an authority");
    let show = |authority: &skiff_pki::CertificateAuthority| {
        let names = skiff_pki::Request::server("node-1", &["node-1"], &[std::net::Ipv4Addr::LOCALHOST.into()]);
        let identity = authority.issue(&names).expect("an identity");
        identity.save(&own, "kubelet").expect("files");
        // Where the test looks for whom to trust.
        std::fs::write(pki.join("kubelet-ca.crt"), authority.certificate_pem()).expect("a file");
    };
    show(&scene.authority);
    let config = &mut scene.config.kubelet;
    config.enable_server = true;
    config.tls_cert_file = Some(own.join("kubelet.crt"));
    config.tls_private_key_file = Some(own.join("kubelet.key"));
    config.tls_min_version = "VersionTLS13".into();
    scene.start();
    scene.until_event("Starting: Starting kubelet.").await;
    assert_eq!(ask(&scene, Some("admin"), "", "/healthz").await.0, 200);
    show(&next);
    std::fs::write(scene.dir.path().join("clients.crt"), next.certificate_pem()).expect("a file");
    scene.authority = next;
    // As systemd asks a service to reload; files are looked at once a minute otherwise.
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).expect("a signal");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !trusts(&scene).await {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the former certificate is still shown"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ask(&scene, Some("admin"), "", "/healthz").await.0, 200);
}

/// Connections of nobody known that say nothing keep nobody out who is known.
#[tokio::test]
async fn strangers_are_bounded() {
    let scene = Scene::with_server();
    scene.create("p", &json!({}));
    scene.until_ready("p").await;
    let mut strangers = Vec::new();
    for _ in 0..100 {
        strangers.push(connect(&scene, None).await);
    }
    let mut late = connect(&scene, None).await;
    let closed = tokio::time::timeout(Duration::from_secs(5), late.read(&mut [0])).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    assert_eq!(ask(&scene, Some("admin"), "", "/healthz").await.0, 200);
}

#[tokio::test]
async fn logs_are_served_and_refused_in_upstreams_words() {
    let scene = Scene::with_server();
    scene.create("p", &json!({}));
    scene.until_ready("p").await;
    let dir = scene.dir.path().join("logs/ns_p_uid-p/c");
    std::fs::write(
        dir.join("0.log"),
        "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stdout F two\n",
    )
    .expect("a log");
    let get = |path: &'static str| ask(&scene, Some("admin"), "", path);
    let (status, body) = get("/containerLogs/ns/p/c").await;
    assert!(status == 200 && body.contains("one\ntwo\n"), "{status} {body:?}");
    let (_, body) = get("/containerLogs/ns/p/c?tailLines=1").await;
    assert!(body.contains("two\n") && !body.contains("one"), "{body:?}");
    assert_eq!(
        get("/containerLogs/ns/p/x").await,
        (400, "container x is not valid for pod p".into())
    );
    let absent = "previous terminated container \"c\" in pod \"p\" not found";
    assert_eq!(get("/containerLogs/ns/p/c?previous=true").await, (400, absent.into()));
    assert_eq!(get("/containerLogs/ns/absent/c").await.0, 404);
    assert_eq!(get("/nothing").await.0, 404);
}

/// Whether there is a line that begins so: names are also in those that only describe.
fn has_line(text: &str, beginning: &str) -> bool {
    text.lines().any(|line| line.starts_with(beginning))
}

#[tokio::test]
async fn figures_are_served_under_upstreams_names() {
    let scene = Scene::with_server();
    scene.create(
        "p",
        &json!({"containers": [{
            "name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent",
            "readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1},
        }]}),
    );
    scene.until_ready("p").await;
    for id in scene.running("c").await {
        scene.runtime.set_stats(skiff_cri::ContainerStats {
            id,
            ..Default::default()
        });
    }
    let get = async |path: &str| {
        let (status, body) = ask(&scene, Some("admin"), "", path).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    };
    let metrics = get("/metrics").await;
    for line in [
        "kubelet_node_name{node=\"node-1\"} 1",
        "kubelet_running_pods 1",
        "kubelet_running_containers{container_state=\"running\"} 1",
        "kubelet_runtime_operations_total{operation_type=\"run_podsandbox\"} 1",
        "kubelet_started_pods_total 1",
        "kubelet_pleg_relist_duration_seconds_count ",
        "process_resident_memory_bytes ",
        "kubelet_pleg_last_seen_seconds ",
        "kubelet_server_expiration_renew_errors 0",
        "kubelet_cgroup_manager_duration_seconds_count{operation_type=\"create\"} 1",
        "kubernetes_build_info{git_version=\"v1.36.0\"",
        "kubelet_http_requests_total{method=\"GET\",path=\"metrics\"",
    ] {
        assert!(has_line(&metrics, line), "{line} in {metrics}");
    }
    let probes = get("/metrics/probes").await;
    assert!(
        probes.contains("prober_probe_total{probe_type=\"Readiness\",result=\"successful\",container=\"c\",pod=\"p\""),
        "{probes}"
    );
    let cadvisor = get("/metrics/cadvisor").await;
    for line in [
        "container_oom_events_total{container=\"c\"",
        "container_fs_limit_bytes{id=\"/\"",
        "container_memory_failcnt{container=\"\"",
        "container_spec_cpu_shares{container=\"c\"",
        "container_spec_cpu_period{container=\"c\"",
        "container_cpu_user_seconds_total{id=\"/\"}",
    ] {
        assert!(has_line(&cadvisor, line), "{line} in {cadvisor}");
    }
    let resource = get("/metrics/resource").await;
    assert!(has_line(&resource, "node_memory_working_set_bytes "), "{resource}");
    let summary: serde_json::Value = serde_json::from_str(get("/stats/summary").await.trim()).expect("JSON");
    assert_eq!(summary["node"]["nodeName"], "node-1");
    assert!(summary["node"]["fs"]["capacityBytes"].as_u64() > Some(0), "{summary}");
    assert_eq!(summary["pods"][0]["podRef"]["name"], "p");
    assert!(get("/runningpods/").await.contains("uid-p"));
    assert!(get("/logs/").await.contains("logs/"), "the parent of the pods' logs");
}
