//! exec, attach and port-forward: the runtime has a streaming server of its own on loopback; the client's upgraded connection
//! is joined to one that we upgrade there, byte for byte, and the runtime's URL never leaves this process.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use skiff_cri::{AttachRequest, ExecRequest};
use tokio::net::TcpStream;

use super::{Body, Query, Refusal, flag, full, runtime_refusal, text_response};
use crate::agent::Agent;
use crate::pod;
use crate::pods::Entry;

/// Asks the runtime for an exec; the answer is its URL.
pub(super) async fn exec(agent: &Agent, id: &str, query: &Query) -> Result<String, Refusal> {
    let tty = flag(query, &["tty"]);
    let request = ExecRequest {
        container_id: id.to_owned(),
        command: query.get("command").cloned().unwrap_or_default(),
        tty,
        stdin: flag(query, &["input", "stdin"]),
        stdout: flag(query, &["output", "stdout"]),
        stderr: flag(query, &["error", "stderr"]) && !tty,
    };
    if request.command.is_empty() {
        return Err(Refusal::bad_request("you must specify at least 1 command for exec"));
    }
    if !(request.stdin || request.stdout || request.stderr) {
        return Err(Refusal::bad_request(
            "you must specify at least 1 of stdin, stdout, stderr",
        ));
    }
    agent
        .runtime
        .exec(&request)
        .await
        .map_err(|error| runtime_refusal(&error))
}

/// Asks the runtime for an attach.
pub(super) async fn attach(
    agent: &Agent,
    entry: &Entry,
    container: &str,
    id: &str,
    query: &Query,
) -> Result<String, Refusal> {
    // The terminal is the container's, whatever the client says.
    let tty = pod::container(&entry.pod, container)
        .and_then(|(_, spec)| spec.tty)
        .unwrap_or(false);
    let request = AttachRequest {
        container_id: id.to_owned(),
        tty,
        stdin: flag(query, &["input", "stdin"]),
        stdout: flag(query, &["output", "stdout"]),
        stderr: flag(query, &["error", "stderr"]) && !tty,
    };
    if !(request.stdin || request.stdout || request.stderr) {
        return Err(Refusal::bad_request(
            "you must specify at least 1 of stdin, stdout, stderr",
        ));
    }
    agent
        .runtime
        .attach(&request)
        .await
        .map_err(|error| runtime_refusal(&error))
}

/// Asks the runtime for port forwarding; SPDY clients name the ports in the stream, WebSocket clients in the query.
pub(super) async fn port_forward(agent: &Agent, sandbox: &str, query: &Query) -> Result<String, Refusal> {
    let ports = query.get("port").map(Vec::as_slice).unwrap_or_default();
    let ports: Result<Vec<u16>, _> = ports.iter().flat_map(|list| list.split(',')).map(str::parse).collect();
    let ports = ports.map_err(|_| Refusal::bad_request("port must be a number between 1 and 65535"))?;
    agent
        .runtime
        .port_forward(sandbox, &ports)
        .await
        .map_err(|error| runtime_refusal(&error))
}

/// `/run`: a command's output in one answer.
pub(super) async fn run(agent: &Agent, id: &str, query: &Query) -> Result<Response<Body>, Refusal> {
    let command = query
        .get("cmd")
        .and_then(|values| values.first())
        .cloned()
        .unwrap_or_default();
    let command: Vec<String> = command
        .split(' ')
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect();
    let output = agent
        .runtime
        .exec_sync(id, &command, Duration::ZERO)
        .await
        .map_err(|error| runtime_refusal(&error))?;
    let mut text = output.stdout;
    text.extend(output.stderr);
    let text = String::from_utf8_lossy(&text).into_owned();
    let status = if output.exit_code == 0 {
        StatusCode::OK
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    };
    Ok(text_response(status, text))
}

/// Repeats the request at `url` and joins the two connections.
pub(super) async fn proxy(mut request: Request<Incoming>, url: &str) -> Result<Response<Body>, Refusal> {
    if !request.headers().contains_key(header::UPGRADE) {
        return Err(Refusal::bad_request("Upgrade request required"));
    }
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Refusal::internal(format!("cannot {what} the runtime's streaming server: {error}"))
    };
    let url: Uri = url
        .parse()
        .map_err(|error| failed("understand the address of", &error))?;
    let (host, port) = (url.host().unwrap_or("127.0.0.1"), url.port_u16().unwrap_or(80));
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|error| failed("reach", &error))?;
    stream.set_nodelay(true).ok();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed("reach", &error))?;
    tokio::spawn(connection.with_upgrades());
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let mut onward = Request::builder().method(request.method()).uri(path);
    if let Some(headers) = onward.headers_mut() {
        for (name, value) in request.headers() {
            // Credentials are for us alone.
            if *name != header::HOST && *name != header::AUTHORIZATION && *name != header::CONTENT_LENGTH {
                headers.append(name, value.clone());
            }
        }
        if let Ok(value) = http::HeaderValue::try_from(format!("{host}:{port}")) {
            headers.insert(header::HOST, value);
        }
    }
    let onward = onward
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed("ask", &error))?;
    let mut answer = sender
        .send_request(onward)
        .await
        .map_err(|error| failed("ask", &error))?;
    let (status, headers) = (answer.status(), answer.headers().clone());
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let body = answer
            .into_body()
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        return Err(Refusal::new(
            status,
            String::from_utf8_lossy(&body).trim_end().to_owned(),
        ));
    }
    let theirs = hyper::upgrade::on(&mut answer);
    let ours = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match tokio::try_join!(ours, theirs) {
            Ok((ours, theirs)) => {
                let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
                if let Err(error) = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await {
                    tracing::debug!(%error, "a stream ended early");
                }
            }
            Err(error) => tracing::debug!(%error, "an upgrade did not happen"),
        }
    });
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}
