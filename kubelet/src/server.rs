//! The kubelet's HTTPS server on :10250: logs, exec, attach, port-forward, pods, metrics.
//!
//! Every path asks who (a client certificate of the trusted authority, or a bearer token that the API server knows) and
//! whether they may (a SubjectAccessReview), health included. One task a connection; what strangers can make the kubelet hold is
//! bounded by [`skiff_daemon::serve`].

mod auth;
mod logs;
mod node_logs;
mod streams;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde_json::json;
use skiff_daemon::serve::{Bounds, Door};
use skiff_daemon::{Files, Metrics, Shutdown, error_chain};
use tokio::net::{TcpListener, TcpStream};

use crate::agent::Agent;
use crate::certificates::{Serving, least_tls};
use crate::config::KubeletConfiguration;
use crate::pod;
use crate::pods::{Directory, Entry};
use crate::stats::{self, Stats};
use auth::{Access, User};

/// Connections without a client certificate: whoever scrapes figures with a token, and some more.
const STRANGERS: Bounds = Bounds { each: 100, all: 1_000 };

/// How long connections take to end that are cut off at the shutdown.
const CUT: Duration = Duration::from_secs(1);

/// How long the dispatcher may be busy with one round: a runtime that stalls holds it up for its timeout, twice a minute.
const ROUND_WITHIN: Duration = Duration::from_secs(300);

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Why the server cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Certificates.
    #[error("cannot use the server's certificate or the clients' authority; check tlsCertFile and clientCAFile")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The authority's file.
    #[error("cannot read the clients' authority {path}; check authentication.x509.clientCAFile")]
    Authority {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

/// The server.
pub(crate) struct Server {
    agent: Arc<Agent>,
    directory: Directory,
    access: Access,
    door: Door,
    tls: Serving,
    stats: Arc<Stats>,
    metrics: Metrics,
    /// What is shown at `/metrics/probes`.
    probes: Metrics,
    /// Who writes metrics out: one at a time, since volumes are looked at for it, and a disk may hang.
    encoding: Arc<tokio::sync::Mutex<()>>,
}

/// A request's answer when it is refused.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    text: String,
}

impl Refusal {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
        }
    }

    fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }

    fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    fn internal(text: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }
}

// === impl Server ===

impl Server {
    pub(crate) fn new(
        agent: Arc<Agent>,
        directory: Directory,
        stats: Arc<Stats>,
        (metrics, probes): (&Metrics, Metrics),
    ) -> Result<Self, Error> {
        let kubelet = &agent.config.kubelet;
        let authority = authority(kubelet)?;
        let oldest = least_tls(&kubelet.tls_min_version).unwrap_or_default();
        let tls = Serving::new(oldest, authority.as_deref());
        let own = (!kubelet.server_tls_bootstrap).then(|| identity(&agent)).transpose();
        own.and_then(|identity| tls.replace(identity, None))
            .map_err(|error| Error::Tls(Box::new(error)))?;
        Ok(Self {
            access: Access::new(agent.client.clone(), kubelet, &agent.node_name),
            door: Door::new(STRANGERS),
            tls,
            metrics: metrics.clone(),
            probes,
            encoding: Arc::default(),
            stats,
            directory,
            agent,
        })
    }

    /// Serves until shutdown.
    pub(crate) async fn run(self, listener: TcpListener, shutdown: Shutdown) {
        let server = Arc::new(self);
        if server.agent.config.kubelet.server_tls_bootstrap {
            tokio::spawn(Arc::clone(&server).keep_certificate(shutdown.clone()));
        }
        let files = Files::new(files(&server.agent.config.kubelet));
        tokio::spawn(Arc::clone(&server).keep_files(files, shutdown.clone()));
        let connection = |stream, from| {
            let connection = server.clone().connection(stream, from, shutdown.clone());
            let shutdown = shutdown.clone();
            async move {
                shutdown.run_until_cancelled(connection).await;
            }
        };
        skiff_daemon::serve::listen(listener, &shutdown, CUT, connection).await;
    }

    async fn keep_certificate(self: Arc<Self>, shutdown: Shutdown) {
        let (agent, dir) = (&self.agent, self.agent.config.cert_dir());
        let serving = self.tls.clone();
        serving
            .keep(agent.client.clone(), &dir, &agent.node_name, &agent.node_ips, shutdown)
            .await;
    }

    /// Uses what the files of the configuration hold, whenever they change: the authority of clients is replaced while nodes run.
    async fn keep_files(self: Arc<Self>, mut files: Files, shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = files.changed() => {}
            }
            match self.read_files() {
                Ok(()) => {
                    tracing::info!("the kubelet's server has read its certificate and its clients' authority anew")
                }
                Err(error) => {
                    tracing::warn!(
                        error = error_chain(&error),
                        "still serving with the former certificate and clients' authority"
                    );
                    files.retry();
                }
            }
        }
    }

    fn read_files(&self) -> Result<(), Error> {
        let kubelet = &self.agent.config.kubelet;
        let tls = |error| Error::Tls(Box::new(error));
        let authority = authority(kubelet)?;
        let own = own_files(kubelet).map(|(certificate, key)| skiff_pki::Identity::load_files(certificate, key));
        let identity = own.transpose().map_err(tls)?;
        self.tls.replace(identity, authority.as_deref()).map_err(tls)
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, from: IpAddr, shutdown: Shutdown) {
        let Some(tls) = self.tls.acceptor() else {
            tracing::debug!("no serving certificate available for the kubelet");
            return;
        };
        let Some((stream, place)) = self.door.enter(stream, from, tls, &shutdown).await else {
            return;
        };
        let certificates = stream.get_ref().1.peer_certificates();
        let peer = certificates
            .and_then(|list| list.first())
            .and_then(|leaf| skiff_pki::peer_identity(leaf).ok());
        let peer = peer.map(|peer| User::certified(peer.common_name, peer.organizations));
        let answer = |request| {
            let (server, peer) = (self.clone(), peer.clone());
            async move { server.respond(request, peer).await }
        };
        skiff_daemon::serve::converse(stream, answer, place, &shutdown).await;
    }

    async fn respond(&self, request: Request<Incoming>, peer: Option<User>) -> Response<Body> {
        let wants_upgrade = request.headers().contains_key("upgrade");
        match self.route(request, peer).await {
            Ok(response) => response,
            // A refused upgrade is shown by clients if it is a Status.
            Err(refusal) if wants_upgrade => json_response(
                refusal.status,
                &json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": refusal.text, "code": refusal.status.as_u16(),
                }),
            ),
            Err(refusal) => text_response(refusal.status, refusal.text),
        }
    }

    async fn open_metrics(&self, metrics: &Metrics) -> Response<Body> {
        let (turn, metrics) = (self.encoding.clone().lock_owned().await, metrics.clone());
        let encode = move || {
            let _turn = turn;
            metrics.encode()
        };
        let text = tokio::task::spawn_blocking(encode).await.unwrap_or_default();
        with_type(text, skiff_daemon::metrics::CONTENT_TYPE)
    }

    async fn route(&self, request: Request<Incoming>, peer: Option<User>) -> Result<Response<Body>, Refusal> {
        let path = request.uri().path().to_owned();
        self.access.check(&request, peer, &path).await?;
        let query = query(request.uri().query().unwrap_or_default());
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let get = request.method() == Method::GET || request.method() == Method::HEAD;
        let first = parts.first().copied().unwrap_or_default();
        self.count(request.method(), first, &query);
        if let Some(text) = disabled(first, &self.agent.config.kubelet) {
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, text));
        }
        match parts.as_slice() {
            ["healthz", "ping" | "log"] if get => Ok(text_response(StatusCode::OK, "ok")),
            ["healthz"] | ["healthz", "syncloop"] if get => self.healthz(flag(&query, &["verbose"])),
            ["pods"] if get => Ok(self.pods()),
            ["runningpods"] if get => Ok(self.running_pods()),
            ["metrics"] if get => Ok(self.open_metrics(&self.metrics).await),
            ["metrics", "probes"] if get => Ok(self.open_metrics(&self.probes).await),
            ["metrics", "resource"] if get => Ok(exposition(stats::resource(&*self.stats.snapshot().await))),
            ["metrics", "cadvisor"] if get => {
                let machine = &self.agent.machine;
                let snapshot = self.stats.snapshot().await;
                Ok(exposition(stats::cadvisor(
                    &snapshot,
                    (machine.cpus, machine.memory),
                    self.stats.node_disk(),
                )))
            }
            ["stats", "summary"] if get => {
                let short = flag(&query, &["only_cpu_and_memory"]);
                Ok(json_response(StatusCode::OK, &stats::summary(&self.stats, short).await))
            }
            ["logs", ..] if get => {
                let root = self.agent.config.kubelet.pod_logs_dir.parent();
                let rest = path.trim_start_matches('/').trim_start_matches("logs");
                node_logs::serve(root.unwrap_or(Path::new("/var/log")), rest)
            }
            ["configz"] if get => Ok(json_response(
                StatusCode::OK,
                &json!({"kubeletconfig": self.agent.config.kubelet}),
            )),
            ["containerLogs", namespace, pod, container] if get => {
                let entry = self.find(namespace, pod, None)?;
                logs::serve(&entry, container, &query)
            }
            [kind @ ("exec" | "attach"), namespace, pod, rest @ ..] => {
                let (uid, container) = match rest {
                    [container] => (None, *container),
                    [uid, container] => (Some(*uid), *container),
                    _ => return Err(not_found()),
                };
                let entry = self.find(namespace, pod, uid)?;
                let id = running(&entry, container)?;
                let url = if *kind == "exec" {
                    streams::exec(&self.agent, id, &query).await?
                } else {
                    streams::attach(&self.agent, &entry, container, id, &query).await?
                };
                streams::proxy(request, &url).await
            }
            ["run", namespace, pod, container] if request.method() == Method::POST => {
                let entry = self.find(namespace, pod, None)?;
                streams::run(&self.agent, running(&entry, container)?, &query).await
            }
            ["portForward", namespace, pod, rest @ ..] if rest.len() <= 1 => {
                let entry = self.find(namespace, pod, rest.first().copied())?;
                let sandbox = entry.observed.ready_sandbox();
                let sandbox =
                    sandbox.ok_or_else(|| Refusal::internal(format!("pod {pod:?} has no running sandbox")))?;
                let url = streams::port_forward(&self.agent, &sandbox.id, &query).await?;
                streams::proxy(request, &url).await
            }
            _ => Err(not_found()),
        }
    }

    fn find(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<Entry, Refusal> {
        self.directory
            .find(namespace, name, uid)
            .ok_or_else(|| Refusal::not_found(format!("pod {name:?} not found in namespace {namespace:?}")))
    }

    fn pods(&self) -> Response<Body> {
        let pods: Vec<_> = self.directory.all().into_iter().map(|entry| entry.pod).collect();
        let items: Vec<_> = pods
            .iter()
            .map(|pod| serde_json::to_value(&**pod).unwrap_or_default())
            .collect();
        json_response(
            StatusCode::OK,
            &json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}),
        )
    }

    /// Whether the kubelet still looks after its pods.
    fn healthz(&self, verbose: bool) -> Result<Response<Body>, Refusal> {
        let late = self.directory.last_round().is_none_or(|ago| ago > ROUND_WITHIN);
        match (late, verbose) {
            (false, false) => Ok(text_response(StatusCode::OK, "ok")),
            (false, true) => {
                let text = "[+]ping ok\n[+]log ok\n[+]syncloop ok\nhealthz check passed\n";
                Ok(text_response(StatusCode::OK, text))
            }
            (true, _) => Err(Refusal::internal(
                "[+]ping ok\n[+]log ok\n[-]syncloop failed: sync Loop took longer than expected\nhealthz check failed\n",
            )),
        }
    }

    /// The pods that the runtime knows, as far as it knows them.
    fn running_pods(&self) -> Response<Body> {
        let entries = self.directory.all();
        let items = entries.iter().filter(|entry| entry.observed.ready_sandbox().is_some()).map(|entry| {
            let containers: Vec<_> = entry
                .observed
                .running()
                .map(|container| json!({"name": container.name, "image": container.image, "resources": {}}))
                .collect();
            json!({
                "metadata": {
                    "name": pod::name(&entry.pod), "namespace": pod::namespace(&entry.pod), "uid": pod::uid(&entry.pod),
                },
                "spec": {"containers": containers},
                "status": {},
            })
        });
        json_response(
            StatusCode::OK,
            &json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items.collect::<Vec<_>>()}),
        )
    }

    /// Counts a request that was let in.
    fn count(&self, method: &Method, first: &str, query: &Query) {
        // Only names that are served become labels: clients cannot make more up.
        let Some(path) = PATHS.iter().find(|path| **path == first) else {
            return;
        };
        let method = match *method {
            Method::GET => "GET",
            Method::POST => "POST",
            _ => "other",
        };
        let long = matches!(first, "exec" | "attach" | "portForward") || flag(query, &["follow"]);
        self.agent.measures.requested(method, path, long);
    }
}

/// The first parts of paths that are served.
const PATHS: &[&str] = &[
    "attach",
    "configz",
    "containerLogs",
    "exec",
    "healthz",
    "logs",
    "metrics",
    "pods",
    "portForward",
    "run",
    "runningpods",
    "stats",
];

fn exposition(text: String) -> Response<Body> {
    with_type(text, stats::exposition::CONTENT_TYPE)
}

fn with_type(text: String, kind: &'static str) -> Response<Body> {
    let mut response = text_response(StatusCode::OK, text);
    let kind = http::HeaderValue::from_static(kind);
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

/// The configured certificate, or one of our own making, kept below the root directory as upstream keeps its own.
fn identity(agent: &Agent) -> Result<skiff_pki::Identity, skiff_pki::Error> {
    if let Some((certificate, key)) = own_files(&agent.config.kubelet) {
        return skiff_pki::Identity::load_files(certificate, key);
    }
    let dir = agent.config.flags.root_dir.join("pki");
    self_signed(&dir, &agent.node_name, &agent.node_ips)
}

/// The certificate that the configuration names, and its key, where they are what is shown.
fn own_files(kubelet: &KubeletConfiguration) -> Option<(&Path, &Path)> {
    let files = kubelet
        .tls_cert_file
        .as_deref()
        .zip(kubelet.tls_private_key_file.as_deref());
    files.filter(|_| !kubelet.server_tls_bootstrap)
}

/// Whom clients are vouched for by, PEM.
fn authority(kubelet: &KubeletConfiguration) -> Result<Option<String>, Error> {
    let path = kubelet.authentication.x509.client_ca_file.as_ref();
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|source| Error::Authority {
            path: path.clone(),
            source,
        })
    };
    path.map(read).transpose()
}

/// The files that the server goes by.
fn files(kubelet: &KubeletConfiguration) -> Vec<PathBuf> {
    let own = own_files(kubelet).map(|(certificate, key)| [certificate.to_owned(), key.to_owned()]);
    let authority = kubelet.authentication.x509.client_ca_file.clone();
    own.into_iter().flatten().chain(authority).collect()
}

fn self_signed(dir: &Path, name: &str, ips: &[std::net::IpAddr]) -> Result<skiff_pki::Identity, skiff_pki::Error> {
    let authority = skiff_pki::CertificateAuthority::load_or_generate(dir, "kubelet-ca", &format!("{name}-ca"))?;
    authority.load_or_issue(dir, "kubelet", &skiff_pki::Request::server(name, &[name], ips))
}

fn not_found() -> Refusal {
    Refusal::not_found("404 page not found\n")
}

/// The id of a container that runs.
fn running<'a>(entry: &'a Entry, container: &str) -> Result<&'a str, Refusal> {
    let pod = crate::pod::name(&entry.pod);
    let found = entry.observed.latest(container).filter(|found| found.is_running());
    found
        .map(|found| found.id.as_str())
        .ok_or_else(|| Refusal::not_found(format!("container not found ({container:?}) in pod {pod:?}")))
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn text_response(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(full(text.into()));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

fn json_response(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(full(value.to_string()));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

/// A query's parameters, each with all its values.
type Query = HashMap<String, Vec<String>>;

/// What the configuration has turned off, in upstream's words, by a path's first part.
fn disabled(first: &str, config: &KubeletConfiguration) -> Option<&'static str> {
    const DEBUGGING: &[&str] = &[
        "attach",
        "containerLogs",
        "debug",
        "exec",
        "logs",
        "portForward",
        "run",
        "runningpods",
    ];
    if !config.enable_debugging_handlers && DEBUGGING.contains(&first) {
        return Some("Debug endpoints are disabled.");
    }
    (first == "logs" && !config.enable_system_log_handler).then_some("logs endpoint is disabled.")
}

fn query(text: &str) -> Query {
    let mut query = Query::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        query.entry(decode(key)).or_default().push(decode(value));
    }
    query
}

/// Percent-decoding, with `+` for a blank as forms write it.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        let hex = (first == b'%')
            .then(|| std::str::from_utf8(rest.get(..2)?).ok())
            .flatten();
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (_, Some(byte)) => {
                bytes.push(byte);
                rest = &rest[2..];
            }
            (b'+', None) => bytes.push(b' '),
            (byte, None) => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn flag(query: &Query, names: &[&str]) -> bool {
    names.iter().any(|name| {
        query
            .get(*name)
            .is_some_and(|values| values.iter().any(|v| v == "1" || v == "true"))
    })
}

fn runtime_refusal(error: &skiff_cri::Error) -> Refusal {
    Refusal::internal(error_chain(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_turned_off_is_refused() {
        let with = |debugging, logs| KubeletConfiguration {
            enable_debugging_handlers: debugging,
            enable_system_log_handler: logs,
            ..KubeletConfiguration::default()
        };
        let (debugging, logs) = (
            Some("Debug endpoints are disabled."),
            Some("logs endpoint is disabled."),
        );
        let cases = [
            ("exec", with(true, true), None),
            ("logs", with(true, true), None),
            ("exec", with(true, false), None),
            ("logs", with(true, false), logs),
            ("exec", with(false, true), debugging),
            ("attach", with(false, true), debugging),
            ("run", with(false, true), debugging),
            ("portForward", with(false, true), debugging),
            ("containerLogs", with(false, true), debugging),
            ("runningpods", with(false, true), debugging),
            ("logs", with(false, true), debugging),
            ("pods", with(false, false), None),
            ("healthz", with(false, false), None),
            ("metrics", with(false, false), None),
        ];
        for (first, config, expected) in cases {
            assert_eq!(disabled(first, &config), expected, "{first}");
        }
    }

    #[test]
    fn queries() {
        let query = query("command=echo&command=a%20b+c&tty=1&x");
        assert_eq!(query["command"], ["echo", "a b c"]);
        assert!(flag(&query, &["tty"]) && !flag(&query, &["x", "y"]));
        assert_eq!(decode("%zz%4"), "%zz%4");
    }
}
