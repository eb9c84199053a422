//! What upstream's proxy of 1.20 needs: its configuration, and an API that speaks as its client expects.

use std::path::Path;
use std::process::{Command, Stdio};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, Response, StatusCode, header};
use axum::response::IntoResponse;
use futures::StreamExt as _;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::api::{self, Api};

/// The proxy of `path`, with files of its own in `home`.
pub(crate) fn command(path: &str, url: &str, home: &Path) -> Command {
    let (kubeconfig, config) = (home.join("kubeconfig"), home.join("config"));
    let entry = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "bench",
        "clusters": [{"name": "bench", "cluster": {"server": url}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
        "users": [{"name": "bench", "user": {}}],
    });
    let settings = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": kubeconfig, "contentType": "application/json",
                             "acceptContentTypes": "application/json", "qps": 1000, "burst": 1000},
        "clusterCIDR": "10.244.0.0/16", "hostnameOverride": "here", "mode": "iptables",
        // These settings are the machine's, not a namespace's.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s"},
    });
    std::fs::write(&kubeconfig, entry.to_string()).unwrap();
    std::fs::write(&config, settings.to_string()).unwrap();
    let mut command = Command::new(path);
    command.arg("--config").arg(config);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Answers as the scripted API does, with the kinds and versions that its client wants to read.
pub(crate) async fn answer(api: &Api, request: Request) -> Response<Body> {
    let json = [(header::CONTENT_TYPE, "application/json")];
    if request.method() == Method::POST {
        return (StatusCode::CREATED, json, request.into_body()).into_response();
    }
    let path = request.uri().path();
    if path.ends_with("/nodes/here") {
        return (
            json,
            with_kind(api::node("", "10.244.0.0/24"), "v1", "Node").to_string(),
        )
            .into_response();
    }
    let (version, kind) = match path.rsplit('/').next() {
        Some("services") => ("v1", "Service"),
        Some("endpointslices") => ("discovery.k8s.io/v1beta1", "EndpointSlice"),
        Some("nodes") => ("v1", "Node"),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let lines = api.answer(request.uri()).into_body().into_data_stream();
    let lines = lines.map(move |line| {
        let mut line: Value = serde_json::from_slice(&line.unwrap()).unwrap();
        if line.get("items").is_some() {
            line = with_kind(line, version, &format!("{kind}List"));
        } else {
            line["object"] = with_kind(line["object"].take(), version, kind);
        }
        Ok::<_, std::convert::Infallible>(format!("{line}\n"))
    });
    (json, Body::from_stream(lines)).into_response()
}

fn with_kind(mut object: Value, version: &str, kind: &str) -> Value {
    object["apiVersion"] = version.into();
    object["kind"] = kind.into();
    object
}
