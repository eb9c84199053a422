//! API server and controller manager on a store of their own, and nodes that run pods in name only.

use std::future::Future;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use http::Request;
use kube::Api;
use kube::api::{DeleteParams, WatchEvent, WatchParams};
use kube::client::Body;
use kube::core::DynamicObject;
use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::core::v1::{Node, Pod};
use skiff_apiserver::ApiServer;
use skiff_controllers::{Clients, ClusterSigning};
use skiff_daemon::{Context, Shutdown};
use skiff_pki::{CertificateAuthority, Request as CertificateRequest, ServiceAccountKey};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::{mpsc, oneshot};

/// A label that keeps a played pod from becoming ready.
pub(crate) const NEVER_READY: &str = "never-ready";

pub(crate) struct Cluster {
    pub(crate) client: kube::Client,
    pub(crate) server: ApiServer,
    pub(crate) url: String,
    pub(crate) ca_pem: String,
    config: skiff_controllers::Config,
    manager: Shutdown,
    context: Context,
    directory: tempfile::TempDir,
    /// Requests of the test itself that are to be refused.
    pub(crate) refusals_expected: u32,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// Starts with a changed configuration of the manager.
    pub(crate) async fn with(change: impl FnOnce(&mut skiff_controllers::Config)) -> Self {
        skiff_daemon::install_crypto();
        let log = tracing_subscriber::fmt().with_test_writer();
        // A process that runs several tests logs for all of them.
        log.with_env_filter("info,skiff_controllers=debug,skiff_apiserver::server=debug")
            .try_init()
            .ok();
        let directory = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        authority.save(directory.path(), "ca").unwrap();
        let loopback: std::net::IpAddr = [127, 0, 0, 1].into();
        let request = CertificateRequest::server("kube-apiserver", &["localhost"], &[loopback]);
        let identity = authority.issue(&request).unwrap();
        let listener = TcpListener::bind((loopback, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let store = skiff_store::sqlite::open(
            directory.path().join("state.db"),
            skiff_store::sqlite::Options::default(),
        );
        let config = skiff_apiserver::Config::new(
            identity,
            authority.certificate_pem(),
            ServiceAccountKey::generate().unwrap(),
            ("192.0.2.1".parse().unwrap(), port),
        );
        let context = Context::default();
        let server = ApiServer::start(config, Arc::new(store.unwrap()), context.clone())
            .await
            .unwrap();
        let serving = server.clone();
        tokio::spawn(async move { serving.serve(vec![listener]).await });
        let admin = authority
            .issue(&CertificateRequest::client("admin", &["system:masters"]))
            .unwrap();
        let url = format!("https://127.0.0.1:{port}");
        let kubeconfig = skiff_pki::Kubeconfig::embedded("skiff", &url, authority.certificate_pem(), "admin", &admin);
        kubeconfig.write(&directory.path().join("admin.conf")).unwrap();

        let mut manager = skiff_controllers::Config {
            cluster_cidr: vec!["10.244.0.0/16".parse().unwrap()],
            service_cluster_ip_range: vec!["10.96.0.0/12".parse().unwrap()],
            root_ca_pem: skiff_controllers::fixed(authority.certificate_pem().to_owned()),
            cluster_signing: Some(ClusterSigning::new(
                CertificateAuthority::load(directory.path(), "ca").unwrap(),
            )),
            ..skiff_controllers::Config::default()
        };
        change(&mut manager);
        let client = server.client("admin", &["system:masters"]);
        let mut cluster = Self {
            url,
            ca_pem: authority.certificate_pem().to_owned(),
            client,
            server,
            config: manager,
            manager: Shutdown::new(),
            context,
            directory,
            refusals_expected: 0,
        };
        cluster.restart_manager();
        // Without it no pod is admitted.
        let account = "/api/v1/namespaces/default/serviceaccounts/default";
        eventually("the default account is there", async || {
            !cluster.get(account).await.is_null()
        })
        .await;
        cluster
    }

    /// A client that goes the way of a manager in another process: kubeconfig, HTTPS, certificate.
    pub(crate) async fn remote_client(&self) -> kube::Client {
        let kubeconfig = kube::config::Kubeconfig::read_from(self.directory.path().join("admin.conf")).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default())
            .await
            .unwrap();
        kube::Client::try_from(config).unwrap()
    }

    /// Stops the manager and starts one with this client.
    pub(crate) fn restart_manager_with(&mut self, clients: impl Into<Clients>) {
        let clients = clients.into();
        self.manager.cancel();
        let context = Context {
            shutdown: self.context.shutdown.child_token(),
            ..Context::default()
        };
        self.manager = context.shutdown.clone();
        tokio::spawn(skiff_controllers::run(self.config.clone(), clients, context));
    }

    /// Stops the manager wherever it is, and starts another that knows nothing of it.
    pub(crate) fn restart_manager(&mut self) {
        let server = self.server.clone();
        let manager = server.client("system:kube-controller-manager", &["system:authenticated"]);
        self.restart_manager_with(Clients::each(manager, move |name| {
            server.account_client("kube-system", name)
        }));
    }

    /// Restarts the manager; answers to the requests of one controller's account that `picked` takes wait for the test.
    pub(crate) fn restart_manager_tapped(&mut self, account: &'static str, picked: fn(&str) -> bool) -> Tap {
        let server = self.server.clone();
        let manager = server.client("system:kube-controller-manager", &["system:authenticated"]);
        let (sender, tap) = mpsc::unbounded_channel();
        self.restart_manager_with(Clients::each(manager, move |name| {
            let client = server.account_client("kube-system", name);
            if name == account {
                tapped(client, picked, sender.clone())
            } else {
                client
            }
        }));
        Tap(tap)
    }

    /// Restarts the manager; its requests pass a `gate` first: it may do something in between, and answer itself.
    pub(crate) fn restart_manager_behind<G>(
        &mut self,
        gate: impl Fn(String, String) -> G + Clone + Send + Sync + 'static,
    ) where
        G: Future<Output = Option<Value>> + Send + 'static,
    {
        let server = self.server.clone();
        let behind = move |client: kube::Client| {
            let gate = gate.clone();
            let service = tower::service_fn(move |request: Request<Body>| {
                let answer = gate(request.method().to_string(), request.uri().path().to_owned());
                let client = client.clone();
                async move {
                    let Some(status) = answer.await else {
                        return client.send(request).await;
                    };
                    let code = u16::try_from(status["code"].as_u64().unwrap()).unwrap();
                    let body = Body::from(status.to_string().into_bytes());
                    Ok(http::Response::builder().status(code).body(body).unwrap())
                }
            });
            kube::Client::new(service, "default")
        };
        let manager = behind(server.client("system:kube-controller-manager", &["system:authenticated"]));
        let each = move |name: &str| behind(server.account_client("kube-system", name));
        self.restart_manager_with(Clients::each(manager, each));
    }

    /// Plays `count` nodes: pods are bound in turn, run at once, and end when deleted.
    pub(crate) async fn play_nodes(&self, count: usize) {
        for number in 0..count {
            self.post("/api/v1/nodes", json!({"metadata": {"name": format!("node-{number}")}}))
                .await;
            self.set_node_ready(number, "True").await;
        }
        let client = self.client.clone();
        let shutdown = self.context.shutdown.clone();
        tokio::spawn(async move { shutdown.run_until_cancelled(play_pods(client, count)).await });
    }

    pub(crate) async fn set_node_ready(&self, number: usize, status: &str) {
        let now = "2026-01-01T00:00:00Z";
        let condition = json!({"type": "Ready", "status": status, "reason": "Test", "message": "", "lastHeartbeatTime": now, "lastTransitionTime": now});
        self.patch(
            &format!("/api/v1/nodes/node-{number}/status"),
            json!({"status": {"conditions": [condition]}}),
        )
        .await;
    }

    // === requests ===

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: Value,
    ) -> Result<Value, kube::Error> {
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type)
            .body(body)
            .unwrap();
        self.client.request(request).await
    }

    /// The object, or null when it does not exist.
    pub(crate) async fn get(&self, path: &str) -> Value {
        match self.send("GET", path, "application/json", Value::Null).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Value::Null,
            other => other.unwrap_or_else(|error| panic!("GET {path}: {error}")),
        }
    }

    pub(crate) async fn list(&self, path: &str) -> Vec<Value> {
        self.get(path).await["items"].as_array().cloned().unwrap_or_default()
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        self.send("POST", path, "application/json", body)
            .await
            .unwrap_or_else(|error| panic!("POST {path}: {error}"))
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Value {
        let content_type = "application/merge-patch+json";
        self.send("PATCH", path, content_type, body)
            .await
            .unwrap_or_else(|error| panic!("PATCH {path}: {error}"))
    }

    pub(crate) async fn delete(&self, path: &str, policy: &str) {
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy});
        self.send("DELETE", path, "application/json", options)
            .await
            .unwrap_or_else(|error| panic!("DELETE {path}: {error}"));
    }

    /// What the real kubectl prints.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> String {
        let output = Command::new("kubectl")
            .env("HOME", self.directory.path())
            .arg("--kubeconfig")
            .arg(self.directory.path().join("admin.conf"))
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    // === common objects ===

    pub(crate) async fn create_deployment(&self, name: &str, replicas: u32, extra: Value) -> Value {
        let mut body = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template(name, "one")},
        });
        merge(&mut body, extra);
        self.post("/apis/apps/v1/namespaces/default/deployments", body).await
    }

    pub(crate) async fn pods(&self, app: &str) -> Vec<Value> {
        self.list(&format!("/api/v1/namespaces/default/pods?labelSelector=app%3D{app}"))
            .await
    }

    pub(crate) async fn replica_sets(&self, app: &str) -> Vec<Value> {
        self.list(&format!(
            "/apis/apps/v1/namespaces/default/replicasets?labelSelector=app%3D{app}"
        ))
        .await
    }

    /// `reason: message` of the events about an object.
    pub(crate) async fn events(&self, kind: &str, name: &str) -> Vec<String> {
        let events = self.list("/api/v1/namespaces/default/events").await;
        let about = events
            .iter()
            .filter(|event| event["involvedObject"]["kind"] == kind && event["involvedObject"]["name"] == name);
        about
            .map(|event| format!("{}: {}", text(&event["reason"]), text(&event["message"])))
            .collect()
    }

    pub(crate) async fn wait_deployed(&self, name: &str, replicas: u64) {
        let path = format!("/apis/apps/v1/namespaces/default/deployments/{name}");
        eventually(
            &format!("{name} has {replicas} available replicas and no other"),
            async || {
                let object = self.get(&path).await;
                let status = &object["status"];
                let is = |field: &str| status[field].as_u64().unwrap_or_default() == replicas;
                is("availableReplicas")
                    && is("replicas")
                    && is("updatedReplicas")
                    && status["observedGeneration"] == object["metadata"]["generation"]
            },
        )
        .await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.context.shutdown.cancel();
        // Whatever a test had the controllers do: their own roles were enough for it.
        let metrics = self.context.metrics.encode();
        let refused = "apiserver_authorization_attempts_total{result=\"no-opinion\"}";
        let count = metrics
            .lines()
            .find_map(|line| line.strip_prefix(refused))
            .map(str::trim);
        if !std::thread::panicking() {
            let expected = self.refusals_expected.to_string();
            assert_eq!(
                count,
                Some(expected.as_str()),
                "requests that no role allowed; the log has them"
            );
        }
    }
}

/// The answers that wait for the test.
pub(crate) struct Tap(mpsc::UnboundedReceiver<Answer>);

/// An answer that its client gets when this is dropped.
pub(crate) struct Answer {
    /// `METHOD /path`.
    pub(crate) to: String,
    pub(crate) status: u16,
    _go: oneshot::Sender<()>,
}

impl Tap {
    pub(crate) async fn next(&mut self) -> Answer {
        let next = tokio::time::timeout(Duration::from_secs(20), self.0.recv());
        next.await.expect("a request within 20 s").expect("the manager runs")
    }
}

/// The same client; an answer to what `picked` takes (`METHOD /path`) goes through `tap`, until nobody is there.
fn tapped(client: kube::Client, picked: fn(&str) -> bool, tap: mpsc::UnboundedSender<Answer>) -> kube::Client {
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let (client, tap) = (client.clone(), tap.clone());
        async move {
            let to = format!("{} {}", request.method(), request.uri().path());
            let answer = client.send(request).await?;
            if picked(&to) {
                let (go, gone) = oneshot::channel();
                let status = answer.status().as_u16();
                tap.send(Answer { to, status, _go: go }).ok();
                gone.await.ok();
            }
            Ok::<_, kube::Error>(answer)
        }
    });
    kube::Client::new(service, "default")
}

pub(crate) fn template(app: &str, image: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {"containers": [{"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}]}})
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(crate) fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// Waits until the condition holds; a test that waits for longer than 20 s has failed.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Watches for `time` that the condition goes on holding.
pub(crate) async fn holds_for(time: Duration, what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + time;
    while tokio::time::Instant::now() < deadline {
        assert!(condition().await, "no longer: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn play_pods(client: kube::Client, nodes: usize) {
    let pods: Api<Pod> = Api::all(client.clone());
    let mut next = 0;
    loop {
        let Ok(stream) = pods.watch(&WatchParams::default(), "0").await else {
            return;
        };
        let mut stream = std::pin::pin!(stream);
        while let Some(Ok(event)) = stream.next().await {
            if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event {
                next += 1;
                let mut node = format!("node-{}", next % nodes);
                if Api::<Node>::all(client.clone())
                    .get_opt(&node)
                    .await
                    .is_ok_and(|node| node.is_none())
                {
                    node = "node-0".to_owned();
                }
                play(&client, &pod, &node, next).await;
            }
        }
    }
}

async fn play(client: &kube::Client, pod: &Pod, node: &str, number: usize) {
    let name = pod.metadata.name.clone().unwrap();
    let api: Api<Pod> = Api::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap());
    if pod.metadata.deletion_timestamp.is_some() {
        api.delete(&name, &DeleteParams::default().grace_period(0)).await.ok();
        return;
    }
    let bound = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
    let runs = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
    if bound.is_none() {
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node", "name": node}});
        api.create_subresource::<Value, Value>("binding", &name, &Default::default(), &binding)
            .await
            .ok();
    } else if !runs {
        let now = "2026-01-01T00:00:00Z";
        let never = pod
            .metadata
            .labels
            .iter()
            .flatten()
            .any(|(label, _)| label == NEVER_READY);
        let ready = json!({"type": "Ready", "status": if never { "False" } else { "True" }, "lastTransitionTime": now});
        let ip = format!("10.244.{}.{}", number / 250, number % 250 + 1);
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "startTime": now, "conditions": [ready]}});
        api.patch_status(&name, &Default::default(), &kube::api::Patch::Merge(&status))
            .await
            .ok();
    }
}

/// Every object of a resource that was ever added, by name, from now on.
pub(crate) async fn additions(
    cluster: &Cluster,
    resource: &kube::core::ApiResource,
) -> impl Future<Output = Vec<String>> + use<> {
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), resource);
    let stream = api.watch(&WatchParams::default(), "0").await.unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let collecting = tokio::spawn(async move {
        let mut stream = std::pin::pin!(stream.take_until(stopped));
        let mut names = Vec::new();
        while let Some(Ok(event)) = stream.next().await {
            if let WatchEvent::Added(object) = event {
                names.push(object.metadata.name.unwrap_or_default());
            }
        }
        names
    });
    async move {
        stop.send(()).ok();
        collecting.await.unwrap()
    }
}
