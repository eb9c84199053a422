//! Cluster DNS on loopback over a cluster that is told from memory, for `bench/dns.sh`: how much CPU an answer takes.
//!
//! `NAMES_PORT` says where to answer, `NAMES_SERVICES` how many Services there are, each with five endpoints; every tenth
//! is headless. Each line on standard input is answered with the CPU time used so far, in microseconds.

#![allow(clippy::unwrap_used, reason = "a measurement fails by panicking")]

use std::convert::Infallible;
use std::io::BufRead as _;
use std::net::Ipv4Addr;

use bytes::Bytes;
use futures::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use kube::client::Body;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use serde_json::{Value, json};
use skiff_api::config::ServerConfiguration;
use skiff_daemon::Context;

/// As in the product.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn main() {
    let (port, count) = (setting("NAMES_PORT", 5300), setting("NAMES_SERVICES", 10_000));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let server = ServerConfiguration::new("/data".into(), "/pki".into(), Ipv4Addr::LOCALHOST.into());
    let mut config = skiff_dns::Config::new(&server).unwrap();
    config.address.set_port(port);
    (config.health, config.ready, config.metrics) = (None, None, None);
    config.upstreams.resolv_conf = "/nonexistent".into();
    let context = Context::default();
    let client = {
        let _inside = runtime.enter();
        kube::Client::new(tower::service_fn(move |request| answer(request, count)), "default")
    };
    runtime.spawn(skiff_dns::run(config, client, context.clone()));
    for _ in std::io::stdin().lock().lines() {
        let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
        println!(
            "{}",
            usage.user_time().num_microseconds() + usage.system_time().num_microseconds()
        );
    }
    context.shutdown.cancel();
}

async fn answer(request: Request<Body>, count: u32) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
    let whole = |value: &Value| Full::new(Bytes::from(value.to_string())).boxed_unsync();
    let query = request.uri().query().unwrap_or_default();
    if query.contains("watch=true") {
        let nothing = stream::pending::<Result<Frame<Bytes>, Infallible>>();
        return Ok(Response::new(StreamBody::new(nothing).boxed_unsync()));
    }
    let (kind, items) = match request.uri().path() {
        "/api/v1/namespaces" => ("NamespaceList", vec![json!({"metadata": {"name": "bench"}})]),
        "/api/v1/services" => ("ServiceList", (0..count).map(service).collect()),
        "/apis/discovery.k8s.io/v1/endpointslices" => ("EndpointSliceList", (0..count).map(slice).collect()),
        // What is published, or asked for one by one.
        _ => {
            let status = json!({"kind": "Status", "status": "Failure", "code": 503, "reason": "", "message": ""});
            let mut response = Response::new(whole(&status));
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            return Ok(response);
        }
    };
    let list: Value = json!({"kind": kind, "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
    Ok(Response::new(whole(&list)))
}

fn service(number: u32) -> Value {
    let ip = match number % 10 {
        0 => "None".to_owned(),
        _ => Ipv4Addr::from(0x0a60_0000 + number).to_string(),
    };
    json!({
        "metadata": {"name": format!("service-{number}"), "namespace": "bench"},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"name": "http", "port": 80}]},
    })
}

fn slice(number: u32) -> Value {
    let endpoints: Vec<Value> = (0..5)
        .map(|endpoint| json!({"addresses": [Ipv4Addr::from(0x0af4_0000 + number * 5 + endpoint).to_string()]}))
        .collect();
    json!({
        "metadata": {
            "name": format!("service-{number}-1"),
            "namespace": "bench",
            "labels": {"kubernetes.io/service-name": format!("service-{number}")},
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080}],
    })
}
