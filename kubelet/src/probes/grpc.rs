//! The gRPC health check: one unary call, too small to need a gRPC library here.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::dial_error;

/// `SERVING` of grpc.health.v1.
const SERVING: u8 = 1;

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
        let collected = response
            .into_body()
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        let refused = collected
            .trailers()
            .and_then(|trailers| trailers.get("grpc-status"))
            .is_some_and(|code| code != "0");
        let message = collected
            .trailers()
            .and_then(|trailers| trailers.get("grpc-message"))
            .cloned();
        let body = collected.to_bytes();
        if refused {
            return Err(format!(
                "error: rpc failed: {}",
                message
                    .and_then(|m| m.to_str().ok().map(str::to_owned))
                    .unwrap_or_default()
            ));
        }
        match status(&body) {
            SERVING => Ok(()),
            other => Err(format!("service unhealthy (responded with {:?})", name(other))),
        }
    };
    let result = result.await;
    driver.abort();
    result
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
    use super::*;

    #[test]
    fn frames() {
        assert_eq!(&frame("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&frame("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(status(&[0, 0, 0, 0, 2, 8, 1]), 1);
        assert_eq!(status(&[0, 0, 0, 0, 0]), 0);
    }
}
