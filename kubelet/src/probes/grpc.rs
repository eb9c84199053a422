//! The gRPC health check: one unary call, too small to need a gRPC library here.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::dial_error;

/// `SERVING` of grpc.health.v1.
const SERVING: u8 = 1;
/// More than any answer to this question.
const LONGEST_BODY: usize = 10 * 1024;
/// gRPC's codes, as messages name them.
const CODES: &[&str] = &[
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Asks `grpc.health.v1.Health/Check` about `service`.
pub(super) async fn check(host: &str, port: u16, service: &str) -> Result<(), String> {
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|error| dial_error(host, port, &error))?;
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let driver = tokio::spawn(connection);
    let request = Request::post(format!("http://{host}:{port}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36")
        .body(Full::new(frame(service)))
        .map_err(|error| error.to_string())?;
    let result = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| skiff_daemon::error_chain(&error))?;
        let (head, body) = response.into_parts();
        // A server that has nothing else to say puts its trailers into the head.
        refusal(&head.headers)?;
        let body = Limited::new(body, LONGEST_BODY);
        let collected = body.collect().await.map_err(|error| error.to_string())?;
        collected.trailers().map_or(Ok(()), refusal)?;
        match status(&collected.to_bytes()) {
            SERVING => Ok(()),
            other => Err(format!("service unhealthy (responded with {:?})", name(other))),
        }
    };
    let result = result.await;
    driver.abort();
    result
}

/// The error that gRPC's headers tell of, in upstream's words.
fn refusal(headers: &HeaderMap) -> Result<(), String> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let (code, message) = (text("grpc-status"), text("grpc-message"));
    match code {
        "" | "0" => Ok(()),
        "12" => Err(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
        )),
        code => {
            let known = code.parse().ok().and_then(|code: usize| CODES.get(code));
            let code = known.copied().unwrap_or(code);
            Err(format!(
                "error: health rpc probe failed: rpc error: code = {code} desc = {message}"
            ))
        }
    }
}

/// A HealthCheckRequest (field 1: the service) with gRPC's five byte header.
fn frame(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
            length >>= 7;
        }
        message.put_u8(u8::try_from(length).unwrap_or(0));
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(0));
    frame.extend(message);
    frame.freeze()
}

/// Field 1 of a HealthCheckResponse; absent is UNKNOWN.
fn status(body: &[u8]) -> u8 {
    match body.get(5..) {
        Some([0x08, status, ..]) => *status,
        _ => 0,
    }
}

fn name(status: u8) -> &'static str {
    match status {
        1 => "SERVING",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use hyper::service::service_fn;

    use super::*;

    type Answer = Vec<Result<Frame<Bytes>, std::convert::Infallible>>;

    /// A server that answers every question so, in HTTP/2.
    async fn serve(headers: &'static [(&'static str, &'static str)], answer: fn() -> Answer) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let service = service_fn(move |request: Request<hyper::body::Incoming>| async move {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let asked = request.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(asked, frame("db"));
                let mut response = http::Response::builder().header("content-type", "application/grpc");
                for (name, value) in headers {
                    response = response.header(*name, *value);
                }
                let body = StreamBody::new(futures::stream::iter(answer()));
                Ok::<_, std::convert::Infallible>(response.body(body).unwrap())
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder.serve_connection(TokioIo::new(stream), service).await.ok();
        });
        port
    }

    fn told(status: u8) -> Answer {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let body = Bytes::from(vec![0, 0, 0, 0, 2, 8, status]);
        vec![Ok(Frame::data(body)), Ok(Frame::trailers(trailers))]
    }

    fn unknown() -> Answer {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "5".parse().unwrap());
        trailers.insert("grpc-message", "unknown service".parse().unwrap());
        vec![Ok(Frame::trailers(trailers))]
    }

    #[tokio::test]
    async fn servers_are_asked_and_their_refusals_read_as_upstreams() {
        let ask = async |port: u16| check("127.0.0.1", port, "db").await;
        assert_eq!(ask(serve(&[], || told(1)).await).await, Ok(()));
        let unhealthy = "service unhealthy (responded with \"NOT_SERVING\")";
        assert_eq!(ask(serve(&[], || told(2)).await).await, Err(unhealthy.into()));
        let failed = "error: health rpc probe failed: rpc error: code = NotFound desc = unknown service";
        assert_eq!(ask(serve(&[], unknown).await).await, Err(failed.into()));
        let headers = &[("grpc-status", "12"), ("grpc-message", "what is that")];
        let absent =
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): what is that";
        assert_eq!(ask(serve(headers, Vec::new).await).await, Err(absent.into()));
    }

    #[test]
    fn frames() {
        assert_eq!(&frame("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&frame("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(status(&[0, 0, 0, 0, 2, 8, 1]), 1);
        assert_eq!(status(&[0, 0, 0, 0, 0]), 0);
    }
}
