//! What passes through piece by piece: bodies both ways, trailers, upgraded connections.

use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::world::{ask, code, connect, get, in_world};

type Frames = StreamBody<ReceiverStream<Result<Frame<Bytes>, std::convert::Infallible>>>;

fn frames() -> (mpsc::Sender<Result<Frame<Bytes>, std::convert::Infallible>>, Frames) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, StreamBody::new(ReceiverStream::new(receiver)))
}

/// Sends every piece back as it comes, and the trailers at the end.
async fn echo(
    request: Request<Incoming>,
) -> Response<StreamBody<impl futures::Stream<Item = Result<Frame<Bytes>, hyper::Error>>>> {
    let mut response = Response::builder();
    for name in ["te", "content-type"] {
        if let Some(value) = request.headers().get(name) {
            response = response.header(format!("x-seen-{name}"), value);
        }
    }
    let seen = format!("{:?} {}", request.version(), request.uri());
    let frames = futures::stream::unfold(request.into_body(), |mut body| async move {
        body.frame().await.map(|frame| (frame, body))
    });
    response.header("x-seen", seen).body(StreamBody::new(frames)).unwrap()
}

#[test]
fn grpc_passes_with_its_trailers_and_each_message_at_once() {
    in_world(
        |_| {},
        async |world| {
            world.handle(1, echo);
            world.service("rpc", Some("kubernetes.io/h2c"), &[1]);
            world.ingress("web", &[("one.test", "/", "rpc")], json!({}));
            world.until(&get("one.test", "/"), |answer| code(answer) == 200).await;

            let (mut sender, connection) =
                http2::handshake::<_, _, Frames>(TokioExecutor::new(), TokioIo::new(connect().await))
                    .await
                    .unwrap();
            tokio::spawn(connection);
            let (body, stream) = frames();
            let request = Request::post("http://one.test/pkg.Service/Method").version(Version::HTTP_2);
            let request = request
                .header("te", "trailers")
                .header("content-type", "application/grpc")
                .body(stream)
                .unwrap();
            let mut response = sender.send_request(request).await.unwrap();
            assert_eq!(
                response.headers()["x-seen"],
                "HTTP/2.0 http://one.test/pkg.Service/Method"
            );
            assert_eq!(response.headers()["x-seen-te"], "trailers");
            assert_eq!(response.headers()["x-seen-content-type"], "application/grpc");
            // The next message is sent only when the one before has come back: nothing is gathered on the way.
            for text in ["one", "two", "three"] {
                body.send(Ok(Frame::data(text.into()))).await.unwrap();
                let frame = response.frame().await.unwrap().unwrap();
                assert_eq!(frame.data_ref().unwrap(), text);
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            body.send(Ok(Frame::trailers(trailers))).await.unwrap();
            let last = response.frame().await.unwrap().unwrap();
            assert_eq!(last.trailers_ref().unwrap()["grpc-status"], "0");
        },
    );
}

#[test]
fn cookies_that_http2_splits_are_one_for_http1_endpoints() {
    in_world(
        |_| {},
        async |world| {
            world.one_site().await;
            let (mut sender, connection) =
                http2::handshake::<_, _, Frames>(TokioExecutor::new(), TokioIo::new(connect().await))
                    .await
                    .unwrap();
            tokio::spawn(connection);
            let (_, nothing) = frames();
            let request = Request::get("http://one.test/").version(Version::HTTP_2);
            let request = ["session=1", "theme=dark; lang=en"]
                .into_iter()
                .fold(request, |request, cookie| request.header("cookie", cookie));
            let response = sender.send_request(request.body(nothing).unwrap()).await.unwrap();
            let seen = response.into_body().collect().await.unwrap().to_bytes();
            let seen = String::from_utf8_lossy(&seen);
            assert!(seen.contains("\ncookie: session=1; theme=dark; lang=en\n"), "{seen}");
        },
    );
}

#[test]
fn bodies_pass_piece_by_piece_to_http1_endpoints() {
    in_world(
        |_| {},
        async |world| {
            world.handle(1, echo);
            world.service("a", None, &[1]);
            world.ingress("web", &[("one.test", "/", "a")], json!({}));
            world.until(&get("one.test", "/"), |answer| code(answer) == 200).await;
            let mut stream = connect().await;
            let head = "POST /up HTTP/1.1\r\nHost: one.test\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut seen = String::new();
            for text in ["one", "two", "six"] {
                stream.write_all(format!("3\r\n{text}\r\n").as_bytes()).await.unwrap();
                while !seen.contains(&format!("\r\n{text}\r\n")) {
                    let mut buffer = [0; 1024];
                    let count = stream.read(&mut buffer).await.unwrap();
                    assert!(count > 0, "{seen}");
                    seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
                }
            }
            assert!(seen.contains("x-seen: HTTP/1.1 /up"), "{seen}");
            stream.write_all(b"0\r\n\r\n").await.unwrap();
            // The connection is kept for the next request.
            stream.write_all(get("one.test", "/again").as_bytes()).await.unwrap();
            let mut rest = String::new();
            stream.read_to_string(&mut rest).await.unwrap();
            assert!(rest.contains("x-seen: HTTP/1.1 /again"), "{rest}");
        },
    );
}

/// Reads a request's head, byte by byte: what follows it belongs to the next protocol.
async fn head(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[test]
fn an_upgraded_connection_carries_whatever_both_ends_say() {
    in_world(
        |_| {},
        async |world| {
            world.accept(1, |mut stream| async move {
            let asked = head(&mut stream).await;
            if !asked.to_ascii_lowercase().contains("upgrade: websocket") {
                stream.write_all(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                return;
            }
            let accept = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nX-Seen: yes\r\n\r\n";
            stream.write_all(accept.as_bytes()).await.unwrap();
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.ok();
        });
            world.service("ws", Some("kubernetes.io/ws"), &[1]);
            world.ingress("web", &[("one.test", "/", "ws")], json!({}));
            world.until(&get("one.test", "/"), |answer| code(answer) == 426).await;
            let mut stream = connect().await;
            let request = "GET /chat HTTP/1.1\r\nHost: one.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
            stream.write_all(request.as_bytes()).await.unwrap();
            let answer = head(&mut stream).await.to_ascii_lowercase();
            assert!(
                answer.starts_with("http/1.1 101 ") && answer.contains("upgrade: websocket"),
                "{answer}"
            );
            assert!(answer.contains("x-seen: yes"), "{answer}");
            for text in ["ping", "\0\u{1}pong"] {
                stream.write_all(text.as_bytes()).await.unwrap();
                let mut back = vec![0; text.len()];
                stream.read_exact(&mut back).await.unwrap();
                assert_eq!(back, text.as_bytes());
            }
            assert!(world.metrics.encode().contains("skiff_ingress_tunnels 1"));
            // Those that asked before are gone; this one is left.
            let open = "skiff_ingress_connections{scheme=\"http\"}";
            while !world.metrics.encode().contains(&format!("{open} 1\n")) {
                assert!(
                    !world.metrics.encode().contains(&format!("{open} 0\n")),
                    "it is not counted"
                );
                tokio::task::yield_now().await;
            }
            drop(stream);
            for none in ["skiff_ingress_tunnels 0".to_owned(), format!("{open} 0\n")] {
                while !world.metrics.encode().contains(&none) {
                    tokio::task::yield_now().await;
                }
            }
            // An upgrade to h2c would hide every request after it: it is not passed on.
            let smuggled = "GET / HTTP/1.1\r\nHost: one.test\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\n\
                        HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n";
            assert_eq!(code(&ask(smuggled).await), 426);
        },
    );
}

#[test]
fn an_upload_may_take_longer_than_an_answer_as_long_as_it_moves() {
    let short = |config: &mut skiff_ingress::IngressConfiguration| {
        config.limits.response_timeout_seconds = 1;
    };
    in_world(short, async |world| {
        world.handle(1, |request: Request<Incoming>| async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Response::new(http_body_util::Full::new(body))
        });
        world.service("a", None, &[1]);
        world.service("rpc", Some("kubernetes.io/h2c"), &[1]);
        world.ingress("web", &[("one.test", "/", "a"), ("two.test", "/", "rpc")], json!({}));
        world.until(&get("two.test", "/"), |answer| code(answer) == 200).await;
        world.until(&get("one.test", "/"), |answer| code(answer) == 200).await;
        for host in ["one.test", "two.test"] {
            let mut stream = connect().await;
            let head = format!("PUT / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 6\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            for piece in ["a", "b", "c", "d", "e", "f"] {
                // The client's pace is what is tried here, not waited for; one pause is longer than the limit, too.
                let pause = if piece == "f" { 1300 } else { 350 };
                tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
                stream.write_all(piece.as_bytes()).await.unwrap();
            }
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(code(&answer) == 200 && answer.ends_with("abcdef"), "{host}: {answer}");
        }
    });
}

#[test]
fn a_large_body_passes_in_pieces() {
    in_world(
        |_| {},
        async |world| {
            world.handle(1, |request: Request<Incoming>| async move {
                let pieces = request.into_body().into_data_stream();
                let count = pieces
                    .fold(
                        0,
                        |sum, piece| async move { sum + piece.map_or(0, |piece| piece.len()) },
                    )
                    .await;
                Response::new(http_body_util::Full::new(Bytes::from(count.to_string())))
            });
            world.service("a", None, &[1]);
            world.ingress("web", &[("one.test", "/", "a")], json!({}));
            world.until(&get("one.test", "/"), |answer| code(answer) == 200).await;
            let size = 8 << 20;
            let mut stream = connect().await;
            let head = format!(
                "PUT / HTTP/1.1\r\nHost: one.test\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: {size}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            assert!(self::head(&mut stream).await.starts_with("HTTP/1.1 100 "));
            stream.write_all(&vec![7; size]).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.ends_with(&format!("\r\n\r\n{size}")), "{answer}");
        },
    );
}
