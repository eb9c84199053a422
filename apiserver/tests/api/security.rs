//! Lessons of past vulnerabilities that touch who may do what: each a test.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use skiff_pki::{BootstrapToken, Request};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use crate::cluster::{Cluster, text};

/// CVE-2019-11247: a right in one namespace reached all objects of the cluster through a path with that namespace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_in_a_namespace_ends_there() {
    let cluster = Cluster::start().await;
    cluster.kubeconfig("joe", &[]);
    let role = r#"{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: all, namespace: default}, rules: [{verbs: ["*"], apiGroups: ["*"], resources: ["*"]}]}"#;
    cluster.apply(&format!("---\n{role}\n")).await;
    cluster
        .kubectl(&[
            "create",
            "rolebinding",
            "all",
            "-n",
            "default",
            "--role=all",
            "--user=joe",
        ])
        .await;
    cluster
        .apply("---\n{apiVersion: v1, kind: Node, metadata: {name: n1}}\n")
        .await;
    for path in [
        "/api/v1/namespaces/default/nodes",
        "/api/v1/namespaces/default/nodes/n1",
        "/api/v1/namespaces/default/persistentvolumes",
        "/apis/rbac.authorization.k8s.io/v1/namespaces/default/clusterroles",
        "/apis/rbac.authorization.k8s.io/v1/namespaces/default/clusterroles/cluster-admin",
        "/apis/certificates.k8s.io/v1/namespaces/default/certificatesigningrequests",
        "/apis/metrics.k8s.io/v1beta1/namespaces/default/nodes",
    ] {
        let answer = text(&cluster.run("joe", &["get", "--raw", path], "").await);
        assert!(
            answer.contains("NotFound") || answer.contains("could not find"),
            "{path}: {answer}"
        );
    }
    let own = text(
        &cluster
            .run("joe", &["get", "--raw", "/api/v1/namespaces/default/pods"], "")
            .await,
    );
    assert!(own.contains("PodList"), "{own}");
    let delete = ["delete", "--raw", "/api/v1/namespaces/default/nodes/n1"];
    let refused = text(&cluster.run("joe", &delete, "").await);
    assert!(
        refused.contains("could not find") || refused.contains("NotFound"),
        "{refused}"
    );
    assert!(cluster.kubectl(&["get", "nodes"]).await.contains("n1"));
}

/// A connection outlives its client's certificate: what comes over it then is from nobody who may come in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_ends_in_the_middle_of_a_connection() {
    let cluster = Cluster::start().await;
    let wanted = Request::client("joe", &[]).lifetime(Duration::from_secs(3));
    let identity = cluster.authority.issue(&wanted).unwrap();
    let mut stream = BufReader::new(cluster.connect_as(Some(&identity)).await);
    // Everybody may read it, people without a name, too.
    let mut ask = async || {
        stream
            .write_all(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let (mut status, mut length) = (String::new(), 0);
        stream.read_line(&mut status).await.unwrap();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            match line.trim().split_once(": ") {
                Some(("content-length", value)) => length = value.parse().unwrap(),
                Some(_) => {}
                None => break,
            }
        }
        stream.read_exact(&mut vec![0; length]).await.unwrap();
        status
    };
    assert!(ask().await.starts_with("HTTP/1.1 200"));
    let refused = async {
        loop {
            let status = ask().await;
            if !status.starts_with("HTTP/1.1 200") {
                break status;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let refused = tokio::time::timeout(Duration::from_secs(20), refused).await.unwrap();
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
}

/// CVE-2019-11248: profiles and variables on a port that everybody reaches.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_profiles_the_server() {
    let cluster = Cluster::start().await;
    for path in [
        "/debug/pprof/",
        "/debug/pprof/heap",
        "/debug/pprof/profile",
        "/debug/vars",
        "/logs",
    ] {
        let refused = cluster.get_as_nobody(path).await;
        assert!(refused.starts_with("HTTP/1.1 403"), "{path}: {refused}");
        let admin = cluster.kubectl_fails(&["get", "--raw", path]).await;
        assert!(
            admin.contains("could not find") || admin.contains("NotFound"),
            "{path}: {admin}"
        );
    }
}

/// Where a test's log goes.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// CVE-2019-11250, CVE-2020-8563 to 8566: tokens and passwords in logs of a high verbosity.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_logged_at_any_verbosity() {
    let log = Log::default();
    let to = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false);
    // One process a test: nobody else listens.
    let Ok(()) = subscriber.with_writer(move || to.clone()).try_init() else {
        panic!("the log is somebody else's already: run the tests with nextest");
    };
    let cluster = Cluster::start().await;
    cluster.anonymous();
    let token = BootstrapToken::generate().unwrap();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": token.secret_name(), "namespace": "kube-system"},
        "stringData": {
            "token-id": token.id(), "token-secret": token.secret(), "usage-bootstrap-authentication": "true",
            "password": "correct-horse-battery",
        },
    });
    cluster.kubectl_with(&["create", "-f", "-"], &secret.to_string()).await;
    cluster
        .kubectl(&["get", "secret", "-n", "kube-system", "-o", "json", &token.secret_name()])
        .await;
    cluster.kubectl(&["create", "serviceaccount", "robot"]).await;
    let robot = cluster.kubectl(&["create", "token", "robot"]).await.trim().to_owned();
    let wrong = format!("{}.{}", token.id(), "1".repeat(16));
    let forged = format!("{}x", robot);
    for bearer in [&token.reveal(), &robot, &wrong, &forged] {
        cluster
            .run("anonymous", &[&format!("--token={bearer}"), "get", "--raw", "/api"], "")
            .await;
    }
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": forged}});
    cluster.kubectl_with(&["create", "-f", "-"], &review.to_string()).await;
    let log = String::from_utf8_lossy(&log.0.lock()).into_owned();
    assert!(
        log.contains("TRACE") && log.contains("bearer token refused"),
        "the log has everything"
    );
    let encoded = skiff_api::defaults::base64(token.secret().as_bytes());
    let signature = robot.rsplit('.').next().unwrap();
    let password = "correct-horse-battery";
    for kept in [
        token.secret(),
        &encoded,
        signature,
        password,
        &"1".repeat(16),
        "BEGIN PRIVATE KEY",
    ] {
        let line = log.lines().find(|line| line.contains(kept));
        assert!(line.is_none(), "{line:?}");
    }
}

/// CVE-2019-11253 and 11254, CVE-2019-1002100: bodies that are small and cost much.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_swell_are_refused() {
    let cluster = Cluster::start().await;
    cluster
        .kubectl(&["create", "configmap", "c", "--from-literal=a=b"])
        .await;
    let bomb: String = (0..9)
        .map(|level| {
            let inner = if level == 0 {
                "lol".to_owned()
            } else {
                format!("*a{}", level - 1)
            };
            format!("a{level}: &a{level} [{}]\n", vec![inner; 9].join(","))
        })
        .collect();
    let body = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: bomb}}\n{bomb}");
    let admin = cluster
        .authority
        .issue(&Request::client("admin", &["system:masters"]))
        .unwrap();
    let send = async |method: &str, path: &str, kind: &str, body: &str| {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = cluster.exchange(Some(&admin), &request);
        tokio::time::timeout(Duration::from_secs(10), answer)
            .await
            .expect("refused within ten seconds")
    };
    let maps = "/api/v1/namespaces/default/configmaps";
    let refused = send("POST", maps, "application/yaml", &body).await;
    assert!(
        refused.starts_with("HTTP/1.1 4"),
        "{}",
        &refused[..refused.len().min(300)]
    );
    let operation = r#"{"op":"add","path":"/data/a","value":"b"}"#;
    let many = format!("[{}]", vec![operation; 10_001].join(","));
    let refused = send("PATCH", &format!("{maps}/c"), "application/json-patch+json", &many).await;
    assert!(
        refused.contains("The allowed maximum operations in a JSON patch is 10000, got 10001"),
        "{refused}"
    );
    // Copies of copies.
    let doubling: Vec<String> =
        std::iter::once(r#"{"op":"add","path":"/data/x","value":["xxxxxxxxxxxxxxxx"]}"#.to_owned())
            .chain((0..40).map(|_| r#"{"op":"copy","from":"/data/x","path":"/data/x/0"}"#.to_owned()))
            .collect();
    let refused = send(
        "PATCH",
        &format!("{maps}/c"),
        "application/json-patch+json",
        &format!("[{}]", doubling.join(",")),
    )
    .await;
    assert!(
        refused.starts_with("HTTP/1.1 4"),
        "{}",
        &refused[..refused.len().min(300)]
    );
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep = format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"d"}},"data":{deep}}}"#);
    let refused = send("POST", maps, "application/json", &deep).await;
    assert!(
        refused.starts_with("HTTP/1.1 4"),
        "{}",
        &refused[..refused.len().min(300)]
    );
    let huge = format!(r#"{{"data":{{"a":"{}"}}}}"#, "x".repeat(4 << 20));
    let refused = send("PATCH", &format!("{maps}/c"), "application/merge-patch+json", &huge).await;
    // The connection may end before the answer is read: most of the body was never taken.
    let short = &refused[..refused.len().min(300)];
    assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 413"), "{short}");
    assert!(
        cluster
            .kubectl(&["get", "configmap", "c", "-o", "json"])
            .await
            .contains("\"a\": \"b\"")
    );
}

/// CVE-2020-8554: whoever writes Services takes other addresses' traffic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn external_addresses_can_be_denied_and_ingress_addresses_are_not_for_everybody() {
    let service = |name: &str, ips: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{externalIPs: [{ips}], ports: [{{port: 80}}]}}}}\n"
        )
    };
    const DENIED: &str = "is forbidden: Use of external IPs is denied by admission control";
    // Upstream's default.
    let open = Cluster::start().await;
    open.apply(&service("old", "192.0.2.7, 192.0.2.8")).await;
    // The other way to the same: who edits a namespace does not write what load balancers answer at.
    open.kubeconfig("joe", &[]);
    open.kubectl(&[
        "create",
        "rolebinding",
        "joe",
        "--clusterrole=admin",
        "--user=joe",
        "-n",
        "default",
    ])
    .await;
    let patch = r#"{"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}}}"#;
    let refused = open
        .patch_as("joe", "/api/v1/namespaces/default/services/old/status", patch)
        .await;
    assert!(
        refused.contains("cannot patch resource \\\"services/status\\\""),
        "{refused}"
    );

    let cluster = Cluster::with_plugins(&["DenyServiceExternalIPs", "NodeRestriction"]).await;
    let refused = cluster
        .kubectl_fails_with(&["create", "-f", "-"], &service("new", "192.0.2.7"))
        .await;
    assert!(refused.contains(&format!("services \"new\" {DENIED}")), "{refused}");
    cluster.apply(&service("new", "")).await;
    let refused = cluster
        .kubectl_fails_with(&["apply", "-f", "-"], &service("new", "192.0.2.7"))
        .await;
    assert!(refused.contains(DENIED), "{refused}");
}

/// CVE-2019-1002100's cousin: names that clients make up must not become labels of metrics.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn made_up_paths_leave_nothing_behind() {
    let cluster = Cluster::start().await;
    let lines = async || cluster.kubectl(&["get", "--raw", "/metrics"]).await.lines().count();
    let ask = async |number: usize| {
        for path in [
            format!("/apis/group{number}.example.com/v1/things{number}"),
            format!("/api/v1/namespaces/n{number}/things{number}/x/part{number}"),
            format!("/made/up/{number}"),
        ] {
            cluster.get_as_nobody(&path).await;
        }
    };
    ask(0).await;
    let before = lines().await;
    for number in 1..20 {
        ask(number).await;
    }
    assert!(
        lines().await <= before + 2,
        "a few lines at most for the questions themselves"
    );
}

/// CVE-2023-44487: streams that are opened and reset without end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_end_their_connection_and_no_other() {
    let cluster = Cluster::start().await;
    let mut stream = cluster.connect_http2().await;
    let frame = |kind: u8, flags: u8, id: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(id.to_be_bytes());
        frame.extend(payload);
        frame
    };
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    // GET https://x/ out of the static table.
    let headers = [0x82, 0x87, 0x84, 0x41, 1, b'x'];
    let (mut reader, mut writer) = tokio::io::split({
        stream.write_all(&bytes).await.unwrap();
        stream
    });
    let flood = tokio::spawn(async move {
        for number in 0..1_000_000_u32 {
            let id = 2 * number + 1;
            let mut pair = frame(1, 5, id, &headers);
            pair.extend(frame(3, 0, id, &8_u32.to_be_bytes()));
            if writer.write_all(&pair).await.is_err() {
                return;
            }
        }
    });
    let goodbye = async {
        loop {
            let mut head = [0; 9];
            reader.read_exact(&mut head).await.expect("GOAWAY comes before the end");
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            reader.read_exact(&mut payload).await.unwrap();
            if head[3] == 7 {
                return payload[4..8].to_vec();
            }
        }
    };
    let goodbye = tokio::time::timeout(Duration::from_secs(30), goodbye)
        .await
        .expect("the server ends it");
    assert_eq!(goodbye, [0, 0, 0, 11], "ENHANCE_YOUR_CALM");
    flood.abort();
    assert!(cluster.kubectl(&["get", "--raw", "/readyz"]).await.contains("ok"));
}
