//! Into nodes: container logs, exec, attach, port-forward and the node's own paths, through its kubelet.
//!
//! One TLS connection a request, as the kubelet client. Upgrades (SPDY, WebSocket) are checked and then copied as raw bytes; what the
//! kubelet refuses is answered as a Status. Redirects are never followed: a kubelet must not send us elsewhere.

mod connection;
mod pod;

pub(crate) use connection::Kubelets;
pub(crate) use pod::address as kubelet_address;

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use skiff_api::status::{Qualified, Status};

use crate::admission::{Operation, Review};
use crate::authorization::Attributes;
use crate::body::{Body, BoxError};
use crate::errors::Result;
use crate::registry::Scope;
use crate::registry::read::Freshness;
use crate::resources::Served;
use crate::server::{Call, Server};

/// The most that is read of a kubelet's refusal.
const REFUSAL: usize = 16 * 1024;

/// Answers a request that is for the kubelet.
pub(crate) async fn handle(server: &Server, served: &Served, call: Call) -> Result<Response<Body>> {
    let kubelets = server.kubelets.as_ref().ok_or_else(|| {
        Status::service_unavailable("the server has no kubelet client certificate: logs and exec are not served")
    })?;
    let info = &call.info;
    let scope = Scope {
        served,
        namespace: served.namespace(&info.namespace),
        user: &call.user,
    };
    let object = server
        .registry
        .get(scope, &info.name, Freshness::Consistent)
        .await?
        .value();
    let (node, path) = destination(server, scope, &object, &call)?;
    let nodes = server.registry.resources.any_version("", "nodes");
    let node = nodes
        .and_then(|nodes| nodes.cache.get("", &node))
        .ok_or_else(|| Status::not_found(Qualified::new("", "nodes"), &node))?
        .value();
    let address = pod::address(&node)?;
    if matches!(info.subresource.as_str(), "exec" | "attach" | "portforward") {
        upgrade(kubelets, &address, &path, call).await
    } else {
        forward(kubelets, &address, &path, call).await
    }
}

/// The node whose kubelet is asked, and the path there, for what may be done to `object`.
fn destination(server: &Server, scope: Scope<'_>, object: &Value, call: &Call) -> Result<(String, String)> {
    let info = &call.info;
    match (scope.served.resource.plural, info.subresource.as_str()) {
        ("pods", "log") => Ok((pod::node(object)?, pod::log(object, &call.query)?)),
        ("pods", kind @ ("exec" | "attach" | "portforward")) => {
            // A GET upgrades as well as a POST does, and must not need less.
            if info.verb == "get" {
                let attributes = Attributes {
                    verb: "create",
                    ..Attributes::of(info)
                };
                server.authorizer.authorize(&call.user, &attributes)?;
            }
            let review = Review {
                operation: Operation::Connect,
                scope,
                subresource: Some(kind),
                old: None,
                dry_run: false,
            };
            server.registry.admission.validate(&review, object)?;
            Ok((pod::node(object)?, pod::stream(kind, object, &call.query)?))
        }
        ("nodes", "proxy") => {
            let query = call.parts.uri.query();
            let query = query.map(|query| format!("?{query}")).unwrap_or_default();
            // As the client wrote it: what is decoded here could mean something else there.
            let raw = call.parts.uri.path();
            let rest = raw.split_once("/proxy").map_or("", |(_, rest)| rest);
            Ok((info.name.clone(), format!("/{}{query}", rest.trim_start_matches('/'))))
        }
        _ => Err(Status::unknown_path()),
    }
}

/// Sends a request on and streams the answer back.
async fn forward(kubelets: &Kubelets, address: &str, path: &str, mut call: Call) -> Result<Response<Body>> {
    let about = (Qualified::new("", "nodes"), address.to_owned());
    let method = call.parts.method.clone();
    let content_type = call.headers().get(header::CONTENT_TYPE).cloned();
    let proxied = call.info.subresource == "proxy";
    let payload = call.read_body().await?;
    let mut request = request(&method, address, path)?;
    if let Some(content_type) = content_type {
        request.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    let response = kubelets.send(address, request.map(|()| Full::new(payload))).await?;
    let (parts, incoming) = response.into_parts();
    if !proxied && !parts.status.is_success() {
        return Err(refusal(parts.status, incoming, about).await);
    }
    if parts.status.is_redirection() {
        return Err(Status::failure(
            502,
            "",
            "the kubelet answered with a redirect, which is not followed",
        ));
    }
    let mut response = Response::new(Body::stream(futures::TryStreamExt::map_err(
        http_body_util::BodyDataStream::new(incoming),
        |error| -> BoxError { Box::new(error) },
    )));
    *response.status_mut() = parts.status;
    let content_type = parts.headers.get(header::CONTENT_TYPE).cloned();
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        content_type.unwrap_or_else(|| HeaderValue::from_static("text/plain")),
    );
    Ok(response)
}

/// Sends an upgrade on; when the kubelet agrees, both sides are copied into each other until one ends.
async fn upgrade(kubelets: &Kubelets, address: &str, path: &str, mut call: Call) -> Result<Response<Body>> {
    let Some(client) = call.parts.extensions.remove::<OnUpgrade>() else {
        return Err(Status::bad_request("Upgrade request required"));
    };
    if !call.headers().contains_key(header::UPGRADE) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let mut request = request(&call.parts.method, address, path)?;
    copy_upgrade_headers(call.headers(), request.headers_mut())?;
    let mut response = kubelets
        .send(address, request.map(|()| Full::new(bytes::Bytes::new())))
        .await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (parts, incoming) = response.into_parts();
        return Err(refusal(parts.status, incoming, (Qualified::new("", "pods"), call.info.name)).await);
    }
    let backend = hyper::upgrade::on(&mut response);
    let mut answer = Response::new(Body::Empty);
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in response.headers() {
        if *name != header::CONTENT_LENGTH && *name != header::TRANSFER_ENCODING {
            answer.headers_mut().append(name.clone(), value.clone());
        }
    }
    tokio::spawn(async move {
        let (client, backend) = match tokio::try_join!(client, backend) {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(%error, "upgrade failed");
                return;
            }
        };
        let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut backend).await {
            tracing::debug!(%error, "stream ended");
        }
    });
    Ok(answer)
}

fn request(method: &Method, address: &str, path: &str) -> Result<Request<()>> {
    Request::builder()
        .method(method.clone())
        .uri(path)
        .header(header::HOST, address)
        .body(())
        .map_err(|_| Status::bad_request("the path cannot be sent to a kubelet"))
}

/// Only what the upgrade needs goes on: never the client's credentials.
fn copy_upgrade_headers(from: &HeaderMap, to: &mut HeaderMap) -> Result<()> {
    for name in [
        "connection",
        "upgrade",
        "x-stream-protocol-version",
        "sec-websocket-key",
        "sec-websocket-version",
        "sec-websocket-extensions",
    ] {
        for value in from.get_all(name) {
            to.append(http::HeaderName::from_static(name), value.clone());
        }
    }
    let offered: Vec<&str> = from
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    if offered.is_empty() {
        return Ok(());
    }
    let usable: Vec<&str> = offered.iter().copied().filter(|name| is_spoken(name)).collect();
    if usable.is_empty() {
        // Clients that can then fall back on SPDY.
        return Err(Status::bad_request(format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts [\"v4.channel.k8s.io\"]"
        )));
    }
    if let Ok(value) = HeaderValue::from_str(&usable.join(", ")) {
        to.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
    Ok(())
}

/// The WebSocket protocols that container runtimes of today speak; v5 and tunnelled SPDY they do not.
fn is_spoken(protocol: &str) -> bool {
    matches!(
        protocol,
        "v4.channel.k8s.io" | "v4.base64.channel.k8s.io" | "channel.k8s.io" | "base64.channel.k8s.io"
    )
}

/// A kubelet's refusal as a Status.
async fn refusal(code: StatusCode, incoming: hyper::body::Incoming, about: (Qualified<'static>, String)) -> Status {
    let text = match http_body_util::Limited::new(incoming, REFUSAL).collect().await {
        Ok(collected) => String::from_utf8_lossy(&collected.to_bytes()).trim().to_owned(),
        Err(_) => "unknown".to_owned(),
    };
    if code.is_redirection() {
        return Status::failure(502, "", "the kubelet answered with a redirect, which is not followed");
    }
    // A kubelet may answer with a Status itself.
    if let Ok(status) = serde_json::from_str::<Status>(&text)
        && !status.message.is_empty()
    {
        return status;
    }
    let reason = match code.as_u16() {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "",
    };
    Status::failure(code.as_u16(), reason, text).about(about.0, &about.1)
}
