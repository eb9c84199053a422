//! Endpoints that fail, leave, or answer too late; the end of the controller itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};

use crate::world::{HTTP, World, ask, code, connect, get, in_world};

/// The first endpoint says when it was asked, and answers when it is told to.
fn hold(world: &mut World, answer: &'static str) -> (Arc<Semaphore>, Arc<Notify>) {
    let (arrived, go) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let (told, wait) = (Arc::clone(&arrived), Arc::clone(&go));
    world.handle(1, move |_: Request<Incoming>| {
        let (told, wait) = (Arc::clone(&told), Arc::clone(&wait));
        async move {
            told.add_permits(1);
            wait.notified().await;
            Response::new(Full::<bytes::Bytes>::new(answer.into()))
        }
    });
    (arrived, go)
}

fn post(host: &str, body: &str) -> String {
    let length = body.len();
    format!("POST / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
}

#[test]
fn an_endpoint_that_refuses_is_passed_over_whatever_is_asked() {
    in_world(
        |_| {},
        async |world| {
            world.echo(1);
            world.service("a", None, &[1, 2, 3]);
            world.service("dead", None, &[2, 3]);
            world.ingress("web", &[("one.test", "/", "a"), ("dead.test", "/", "dead")], json!({}));
            world.until(&get("one.test", "/"), |answer| code(answer) == 200).await;
            for _ in 0..6 {
                assert_eq!(code(&ask(&get("one.test", "/")).await), 200);
                let answer = ask(&post("one.test", "precious")).await;
                assert!(code(&answer) == 200 && answer.ends_with("precious"), "{answer}");
            }
            assert_eq!(code(&ask(&get("dead.test", "/")).await), 502);
        },
    );
}

#[test]
fn only_what_may_be_repeated_is_sent_again() {
    in_world(
        |_| {},
        async |world| {
            let asked = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&asked);
            world.accept(2, move |mut stream| {
                count.fetch_add(1, Ordering::Relaxed);
                async move {
                    // It takes the request and goes away without a word.
                    let mut buffer = [0; 4096];
                    let read = stream.read(&mut buffer).await.unwrap_or(0);
                    assert!(read > 0);
                }
            });
            world.echo(1);
            world.service("bad", None, &[2]);
            world.service("mixed", None, &[1, 2]);
            world.ingress(
                "web",
                &[("bad.test", "/", "bad"), ("mixed.test", "/", "mixed")],
                json!({}),
            );
            world.until(&get("bad.test", "/"), |answer| code(answer) == 502).await;
            asked.store(0, Ordering::Relaxed);
            assert_eq!(code(&ask(&post("bad.test", "once")).await), 502);
            assert_eq!(asked.load(Ordering::Relaxed), 1, "a POST is sent once");
            for _ in 0..6 {
                let answer = ask(&get("mixed.test", "/")).await;
                assert!(answer.contains("endpoint 1\n"), "{answer}");
            }
            assert!(asked.load(Ordering::Relaxed) > 1, "the other endpoint had its turns");
        },
    );
}

#[test]
fn a_kept_connection_that_was_closed_meanwhile_costs_nothing() {
    in_world(
        |_| {},
        async |world| {
            // It keeps connections open by its words, and closes each after the first answer.
            world.accept(1, |mut stream| async move {
                let mut buffer = [0; 4096];
                let read = stream.read(&mut buffer).await.unwrap_or(0);
                assert!(read > 0);
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine")
                    .await
                    .unwrap();
            });
            world.service("a", None, &[1]);
            world.ingress("web", &[("one.test", "/", "a")], json!({}));
            world.until(&get("one.test", "/"), |answer| code(answer) == 200).await;
            for round in 0..50 {
                let request = if round % 2 == 0 {
                    get("one.test", "/")
                } else {
                    post("one.test", "body")
                };
                assert_eq!(code(&ask(&request).await), 200, "round {round}");
            }
        },
    );
}

#[test]
fn connections_to_endpoints_are_kept() {
    in_world(
        |_| {},
        async |world| {
            let connections = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&connections);
            world.accept(1, move |mut stream| {
                count.fetch_add(1, Ordering::Relaxed);
                async move {
                    let mut buffer = [0; 4096];
                    while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                        stream
                            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                            .await
                            .unwrap();
                    }
                }
            });
            world.service("a", None, &[1]);
            world.ingress("web", &[("one.test", "/", "a")], json!({}));
            world.until(&get("one.test", "/"), |answer| code(answer) == 200).await;
            for _ in 0..20 {
                assert_eq!(code(&ask(&get("one.test", "/")).await), 200);
            }
            assert!(
                connections.load(Ordering::Relaxed) < 5,
                "{connections:?} connections for 21 requests"
            );
        },
    );
}

#[test]
fn an_endpoint_that_leaves_ends_its_requests_in_peace() {
    in_world(
        |_| {},
        async |world| {
            let (arrived, go) = hold(world, "from the one that left");
            world.echo(2);
            world.service("a", None, &[1]);
            world.ingress("web", &[("one.test", "/", "a")], json!({}));
            let slow = tokio::spawn(async {
                loop {
                    let answer = ask(&get("one.test", "/slow")).await;
                    // Until the route is there.
                    if !matches!(code(&answer), 404 | 503) {
                        return answer;
                    }
                }
            });
            arrived.acquire().await.unwrap().forget();
            world.endpoints("a", &[2]);
            world
                .until(&get("one.test", "/"), |answer| answer.contains("endpoint 2\n"))
                .await;
            go.notify_one();
            assert!(slow.await.unwrap().ends_with("from the one that left"));
        },
    );
}

#[test]
fn an_endpoint_that_does_not_answer_in_time_is_told_of() {
    let short = |config: &mut skiff_ingress::IngressConfiguration| {
        config.limits.response_timeout_seconds = 1;
        config.limits.response_body_timeout_seconds = 1;
    };
    in_world(short, async |world| {
        world.handle(1, |_: Request<Incoming>| {
            std::future::pending::<Response<Full<bytes::Bytes>>>()
        });
        world.accept(2, |mut stream| async move {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
                .await
                .unwrap();
            stream.read_to_end(&mut Vec::new()).await.ok();
        });
        world.service("silent", None, &[1]);
        world.service("stuck", None, &[2]);
        world.service("none", None, &[]);
        let rules = [
            ("silent.test", "/", "silent"),
            ("stuck.test", "/", "stuck"),
            ("none.test", "/", "none"),
        ];
        world.ingress("web", &rules, json!({}));
        world.until(&get("none.test", "/"), |answer| code(answer) == 503).await;
        assert_eq!(code(&ask(&get("silent.test", "/")).await), 504);
        let cut = ask(&get("stuck.test", "/")).await;
        assert!(
            code(&cut) == 200 && cut.ends_with("half"),
            "the connection is closed in the middle: {cut}"
        );
    });
}

#[test]
fn at_shutdown_open_requests_end_and_new_ones_are_refused() {
    in_world(
        |_| {},
        async |world| {
            let (arrived, go) = hold(world, "at last");
            world.service("a", None, &[1]);
            world.service("none", None, &[]);
            world.ingress("web", &[("one.test", "/", "a"), ("none.test", "/", "none")], json!({}));
            world.until(&get("none.test", "/"), |answer| code(answer) == 503).await;
            let idle = connect().await;
            let open = tokio::spawn(async { ask("GET / HTTP/1.1\r\nHost: one.test\r\n\r\n").await });
            arrived.acquire().await.unwrap().forget();
            world.shutdown.cancel();
            while TcpStream::connect(HTTP).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // An idle connection is closed, one with a request is not.
            idle.readable().await.unwrap();
            go.notify_one();
            let answer = open.await.unwrap();
            assert!(answer.ends_with("at last"), "{answer}");
            world.stop().await;
            world.close_listeners().await;
        },
    );
}
