//! What clients may not do.

use std::time::Duration;

use serde_json::json;
use skiff_ingress::IngressConfiguration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::world::{ask, code, connect, get, in_world};

fn small(config: &mut IngressConfiguration) {
    config.limits.max_header_bytes = 8192;
    config.limits.max_headers = 20;
    config.limits.max_body_bytes = 10;
    config.limits.request_header_timeout_seconds = 1;
    config.limits.request_body_timeout_seconds = 1;
    config.limits.max_connections = 3;
}

#[test]
fn headers_and_bodies_are_bounded() {
    in_world(small, async |world| {
        world.one_site().await;
        let with = |more: &str| format!("POST / HTTP/1.1\r\nHost: one.test\r\nConnection: close\r\n{more}");
        let many = "X-More: 1\r\n".repeat(20) + "\r\n";
        let long = format!("X-Long: {}\r\n\r\n", "x".repeat(9000));
        for (request, wanted) in [
            (with("Content-Length: 10\r\n\r\n0123456789"), 200),
            (with("Content-Length: 11\r\n\r\n0123456789a"), 413),
            (
                with("Transfer-Encoding: chunked\r\n\r\n6\r\n012345\r\n6\r\n012345\r\n0\r\n\r\n"),
                413,
            ),
            (with(&many), 431),
            (with(&long), 431),
            ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), 400),
            (
                "GET / HTTP/1.1\r\nHost: one.test\r\nHost: two.test\r\n\r\n".to_owned(),
                400,
            ),
            (with("Content-Length: 1\r\nContent-Length: 2\r\n\r\n00"), 400),
            (with("Content-Length: +1\r\n\r\n0"), 400),
            (with("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"), 400),
            (with("Content-Length : 1\r\n\r\n0"), 400),
            (with("Bad Name: 1\r\n\r\n"), 400),
        ] {
            let answer = ask(&request).await;
            assert_eq!(code(&answer), wanted, "{request:?}: {answer}");
        }
        let mut object = world.api.all("ingresses").remove(0);
        object["metadata"]["annotations"] = json!({"ingress.skiff/max-body-size": "11"});
        world.api.put("ingresses", object);
        world
            .until(&with("Content-Length: 11\r\n\r\n0123456789a"), |answer| {
                code(answer) == 200
            })
            .await;
    });
}

/// With both lengths, chunks count (RFC 9112 section 6.3), the other length goes no further, and the connection ends: what
/// follows is nobody's request.
#[test]
fn a_request_with_two_lengths_smuggles_nothing() {
    in_world(
        |_| {},
        async |world| {
            world.one_site().await;
            let smuggled = get("one.test", "/smuggled");
            for lengths in [
                "Content-Length: 4\r\nTransfer-Encoding: chunked",
                "Transfer-Encoding: chunked\r\nContent-Length: 4",
            ] {
                let request =
                    format!("POST / HTTP/1.1\r\nHost: one.test\r\n{lengths}\r\n\r\n3\r\nabc\r\n0\r\n\r\n{smuggled}");
                let answer = ask(&request).await;
                assert!(answer.contains("abc") && !answer.contains("smuggled"), "{answer}");
                assert!(!answer.contains("content-length: 4"), "{answer}");
                assert_eq!(answer.matches("HTTP/1.1 200").count(), 1, "{answer}");
            }
        },
    );
}

#[test]
fn slow_clients_are_sent_away_and_others_wait_their_turn() {
    in_world(small, async |world| {
        world.one_site().await;
        // All that may be there at once: one says nothing, one half of its headers, one half of its body.
        let (mut mute, mut half, mut body) = (connect().await, connect().await, connect().await);
        half.write_all(b"GET / HTTP/1.1\r\nHost: one").await.unwrap();
        body.write_all(b"POST / HTTP/1.1\r\nHost: one.test\r\nContent-Length: 9\r\n\r\n012")
            .await
            .unwrap();
        let waits = tokio::spawn(async { ask(&get("one.test", "/")).await });
        let mut answers = [String::new(), String::new(), String::new()];
        for (stream, answer) in [&mut mute, &mut half, &mut body].into_iter().zip(&mut answers) {
            let read = timeout(Duration::from_secs(5), stream.read_to_string(answer)).await;
            read.expect("it is sent away").ok();
        }
        assert_eq!(answers[0], "", "nothing was asked");
        assert_eq!(code(&answers[2]), 408, "{answers:?}");
        assert_eq!(code(&waits.await.unwrap()), 200, "it gets its turn");
    });
}

/// A frame of HTTP/2 (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [head.as_slice(), payload].concat()
}

/// CVE-2023-44487: requests that are reset at once cost the client nothing, so they must not cost us much either.
#[test]
fn a_client_that_resets_every_request_is_cut_off() {
    in_world(
        |_| {},
        async |world| {
            world.one_site().await;
            let mut stream = connect().await;
            let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            bytes.extend(frame(4, 0, 0, &[]));
            // GET http://one.test/ by HPACK's static table, END_STREAM and END_HEADERS; then RST_STREAM with CANCEL.
            let headers = [&[0x82, 0x86, 0x84, 0x41, 8][..], b"one.test"].concat();
            for stream in (1..4000).step_by(2) {
                bytes.extend(frame(1, 5, stream, &headers));
                bytes.extend(frame(3, 0, stream, &8u32.to_be_bytes()));
            }
            let (mut read, mut write) = stream.split();
            let sends = async {
                // It may be cut off before all is sent.
                write.write_all(&bytes).await.ok();
                std::future::pending::<()>().await;
            };
            let mut answer = Vec::new();
            tokio::select! {
                () = sends => {}
                ended = timeout(Duration::from_secs(10), read.read_to_end(&mut answer)) => drop(ended.expect("it is cut off")),
            }
            // GOAWAY with ENHANCE_YOUR_CALM, unless the reset was quicker.
            let told = answer.windows(4).any(|window| window == 11u32.to_be_bytes());
            assert!(told || answer.len() < 2000 * 13, "{} bytes came back", answer.len());
            let asked = world.metrics.encode();
            let line = asked
                .lines()
                .find(|line| line.contains(r#"host="one.test",code="4xx""#))
                .unwrap_or_default();
            let served: u32 = line
                .rsplit(' ')
                .next()
                .and_then(|count| count.parse().ok())
                .unwrap_or_default();
            assert!(served < 200, "{line}");
        },
    );
}

#[test]
fn a_connection_without_requests_is_closed() {
    in_world(
        |config| config.limits.idle_timeout_seconds = 1,
        async |world| {
            world.one_site().await;
            let mut stream = connect().await;
            stream
                .write_all(b"GET / HTTP/1.1\r\nHost: one.test\r\n\r\n")
                .await
                .unwrap();
            let mut answer = String::new();
            let read = timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await;
            read.expect("it is closed").unwrap();
            assert_eq!(code(&answer), 200, "{answer}");
        },
    );
}
