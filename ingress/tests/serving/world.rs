//! A controller at 10.0.0.100, endpoints at other addresses, a client: all in one network namespace.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use skiff_daemon::{Context, Health, Metrics, Shutdown};
use skiff_ingress::IngressConfiguration;
use skiff_net::netlink::Netlink;
use skiff_net::netns::Namespace;
use skiff_pki::{CertificateAuthority, Identity, Request as CertificateRequest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use crate::api::Api;

pub(crate) const HTTP: &str = "10.0.0.100:8080";
pub(crate) const HTTPS: &str = "10.0.0.100:8443";
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) api: Api,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: Shutdown,
    health: Health,
    controller: Option<JoinHandle<Result<(), skiff_ingress::Error>>>,
    endpoints: JoinSet<()>,
}

/// Runs a test in a network namespace that has the addresses that it needs.
pub(crate) fn in_world(
    adjust: impl FnOnce(&mut IngressConfiguration),
    test: impl AsyncFnOnce(&mut World) + Send + 'static,
) {
    skiff_daemon::install_crypto();
    let namespace = Namespace::anonymous().unwrap();
    let mut netlink = Netlink::open_in(&namespace).unwrap();
    let loopback = netlink.need_link("lo").unwrap().index;
    netlink.set_up(loopback).unwrap();
    for host in [1, 2, 3, 4, 100] {
        netlink
            .add_address(loopback, format!("10.0.0.{host}/32").parse().unwrap())
            .unwrap();
    }
    let mut config = IngressConfiguration {
        http_port: 8080,
        https_port: 8443,
        healthz_bind_address: String::new(),
        publish_addresses: vec!["10.0.0.100".parse().unwrap()],
        ..IngressConfiguration::default()
    };
    adjust(&mut config);
    let thread = namespace.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            world.start(config);
            timeout(LIMIT * 2, test(&mut world))
                .await
                .expect("the test takes too long");
            world.stop().await;
        });
    });
    thread.unwrap().join().unwrap().unwrap();
}

impl World {
    fn new() -> Self {
        Self {
            api: Api::new(),
            metrics: Metrics::default(),
            shutdown: Shutdown::new(),
            health: Health::default(),
            controller: None,
            endpoints: JoinSet::new(),
        }
    }

    fn start(&mut self, config: IngressConfiguration) {
        let daemon = Context {
            shutdown: self.shutdown.clone(),
            metrics: self.metrics.clone(),
            health: self.health.clone(),
        };
        self.controller = Some(tokio::spawn(skiff_ingress::run(config, self.api.client(), daemon)));
    }

    pub(crate) async fn stop(&mut self) {
        self.shutdown.cancel();
        if let Some(controller) = self.controller.take() {
            timeout(LIMIT, controller).await.expect("it ends").unwrap().unwrap();
        }
    }

    /// The host `one.test`, answered by an [echo](Self::echo); it is served.
    pub(crate) async fn one_site(&mut self) {
        self.echo(1);
        self.service("a", None, &[1]);
        self.ingress("web", &[("one.test", "/", "a")], json!({}));
        self.until(&get("one.test", "/"), |answer| code(answer) == 200).await;
    }

    /// A Service with one port and endpoints at 10.0.0.x:80.
    pub(crate) fn service(&self, name: &str, app_protocol: Option<&str>, hosts: &[u8]) {
        let port = json!({"port": 80, "protocol": "TCP", "appProtocol": app_protocol});
        self.api.put(
            "services",
            json!({"metadata": {"namespace": "n", "name": name}, "spec": {"ports": [port]}}),
        );
        self.endpoints(name, hosts);
    }

    pub(crate) fn endpoints(&self, service: &str, hosts: &[u8]) {
        let endpoints: Vec<Value> = hosts
            .iter()
            .map(|host| json!({"addresses": [format!("10.0.0.{host}")]}))
            .collect();
        let labels = json!({"kubernetes.io/service-name": service});
        self.api.put(
            "endpointslices",
            json!({"metadata": {"namespace": "n", "name": format!("{service}-1"), "labels": labels},
                   "addressType": "IPv4", "ports": [{"name": "", "port": 80, "protocol": "TCP"}], "endpoints": endpoints}),
        );
    }

    /// An Ingress of our class; `more` goes into its spec.
    pub(crate) fn ingress(&self, name: &str, rules: &[(&str, &str, &str)], more: Value) {
        let rules: Vec<Value> = rules
            .iter()
            .map(|(host, path, service)| {
                let backend = json!({"service": {"name": service, "port": {"number": 80}}});
                let path = json!({"path": path, "pathType": "Prefix", "backend": backend});
                json!({"host": host, "http": {"paths": [path]}})
            })
            .collect();
        let mut spec = json!({"ingressClassName": "skiff", "rules": rules});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let metadata =
            json!({"namespace": "n", "name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"});
        self.api.put("ingresses", json!({"metadata": metadata, "spec": spec}));
    }

    pub(crate) fn secret(&self, name: &str, certificate: &str, key: &str) {
        let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let data = json!({"tls.crt": base64(certificate), "tls.key": base64(key)});
        let metadata = json!({"namespace": "n", "name": name});
        self.api.put(
            "secrets",
            json!({"metadata": metadata, "type": "kubernetes.io/tls", "data": data}),
        );
    }

    /// An endpoint that tells what it was asked: its own number first, then the request, then its body.
    pub(crate) fn echo(&mut self, host: u8) {
        self.handle(host, move |request: Request<Incoming>| async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let mut headers: Vec<String> = parts
                .headers
                .iter()
                .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
                .collect();
            headers.sort();
            let target = format!("{} {} {:?}", parts.method, parts.uri, parts.version);
            let text = format!(
                "endpoint {host}\n{target}\n{}\n{}",
                headers.join("\n"),
                String::from_utf8_lossy(&body)
            );
            Response::new(Full::new(text.into()))
        });
    }

    /// An endpoint that answers HTTP/1.1 and h2c with `answer`.
    pub(crate) fn handle<F, B>(&mut self, host: u8, answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Response<B>> + Send + 'static,
        B: http_body::Body<Data = bytes::Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    {
        let answer = Arc::new(answer);
        self.accept(host, move |stream| {
            let answer = Arc::clone(&answer);
            async move {
                let service = service_fn(move |request| {
                    let answer = answer(request);
                    async move { Ok::<_, std::convert::Infallible>(answer.await) }
                });
                let builder = auto::Builder::new(TokioExecutor::new());
                // A client that goes away is no failure of the test.
                builder
                    .serve_connection_with_upgrades(TokioIo::new(stream), service)
                    .await
                    .ok();
            }
        });
    }

    /// An endpoint that does with each connection what it is told.
    pub(crate) fn accept<F>(&mut self, host: u8, serve: impl Fn(TcpStream) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = std::net::TcpListener::bind(format!("10.0.0.{host}:80")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        self.endpoints.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
    }

    /// Ends all endpoints' listeners.
    pub(crate) async fn close_listeners(&mut self) {
        self.endpoints.shutdown().await;
    }

    /// Asks until the answer is as wanted: routes come as soon as the API told of them.
    pub(crate) async fn until(&self, request: &str, wanted: impl Fn(&str) -> bool) -> String {
        let begin = Instant::now();
        loop {
            let answer = ask(request).await;
            if wanted(&answer) {
                return answer;
            }
            assert!(begin.elapsed() < LIMIT, "not so after {LIMIT:?}: {answer}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits for an object that the controller writes.
    pub(crate) async fn written(&self, plural: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let begin = Instant::now();
        loop {
            let all = self.api.all(plural);
            if let Some(found) = all.iter().find(|object| wanted(object)) {
                return found.clone();
            }
            assert!(begin.elapsed() < LIMIT, "not so after {LIMIT:?}: {all:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// `GET path` of `host` on a connection of its own.
pub(crate) fn get(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

/// Sends `request` and reads to the end; nothing when the connection is refused or reset.
pub(crate) async fn ask(request: &str) -> String {
    let mut stream = match TcpStream::connect(HTTP).await {
        Ok(stream) => stream,
        Err(_) => return String::new(),
    };
    let mut answer = Vec::new();
    let talk = async {
        stream.write_all(request.as_bytes()).await.ok();
        stream.read_to_end(&mut answer).await.ok();
    };
    timeout(LIMIT, talk).await.expect("an answer in time");
    String::from_utf8_lossy(&answer).into_owned()
}

/// The status code of an answer; 0 when there is none.
pub(crate) fn code(answer: &str) -> u16 {
    answer
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_default()
}

/// A connection to the plain port.
pub(crate) async fn connect() -> TcpStream {
    let address: SocketAddr = HTTP.parse().unwrap();
    TcpStream::connect(address).await.unwrap()
}

/// A certificate for `name`.
pub(crate) fn identity(name: &str) -> Identity {
    let authority = CertificateAuthority::generate("test").unwrap();
    authority
        .issue(&CertificateRequest::server(name, &[name], &[]))
        .unwrap()
}
