//! Hosts and paths, what the endpoint is told, what the API and the log are told.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::world::{ask, code, get, in_world};

#[test]
fn hosts_and_paths_lead_to_their_services() {
    in_world(
        |_| {},
        async |world| {
            world.echo(1);
            world.echo(2);
            world.service("a", None, &[1]);
            world.service("b", None, &[2]);
            let rules = [
                ("one.test", "/", "a"),
                ("one.test", "/b", "b"),
                ("*.wild.test", "/", "b"),
            ];
            world.ingress("web", &rules, json!({}));
            let from = |number: u8| move |answer: &str| answer.contains(&format!("endpoint {number}\n"));
            world.until(&get("one.test", "/"), from(1)).await;
            for (host, path, wanted) in [
                ("one.test", "/x", 1),
                ("ONE.test:8080", "/b", 2),
                ("one.test", "/b/x?q=/../", 2),
                ("one.test", "/bc", 1),
                ("x.wild.test", "/", 2),
            ] {
                let answer = ask(&get(host, path)).await;
                assert!(from(wanted)(&answer), "{host}{path}: {answer}");
            }
            for (host, path, wanted) in [
                ("other.test", "/", 404),
                ("wild.test", "/", 404),
                ("y.x.wild.test", "/", 404),
                ("one.test", "/a/../b", 400),
            ] {
                let answer = ask(&get(host, path)).await;
                assert_eq!(code(&answer), wanted, "{host}{path}: {answer}");
            }
            assert!(
                ask(&get("other.test", "/"))
                    .await
                    .ends_with("404 Not Found: default backend\n")
            );

            // A change of the Ingress, and its end.
            world.ingress("web", &[("one.test", "/", "b")], json!({}));
            world.until(&get("one.test", "/"), from(2)).await;
            let metrics = world.metrics.encode();
            let line = r#"skiff_ingress_requests_total{namespace="n",ingress="web",host="one.test",code="2xx"}"#;
            assert!(metrics.contains(line), "{metrics}");
            world.api.delete("ingresses", "web");
            world.until(&get("one.test", "/"), |answer| code(answer) == 404).await;
            let metrics = world.metrics.encode();
            assert!(
                !metrics.contains(r#"ingress="web""#),
                "what is gone is not shown any more: {metrics}"
            );
        },
    );
}

#[test]
fn exact_paths_and_default_backends_have_what_is_theirs() {
    in_world(
        |_| {},
        async |world| {
            for (name, host) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
                world.echo(host);
                world.service(name, None, &[host]);
            }
            let backend = |name: &str| json!({"service": {"name": name, "port": {"number": 80}}});
            let rules = [("one.test", "/x", "a"), ("one.test", "/x", "b")];
            world.ingress("web", &rules, json!({"defaultBackend": backend("c")}));
            let mut object = world.api.all("ingresses").remove(0);
            object["spec"]["rules"][1]["http"]["paths"][0]["pathType"] = json!("Exact");
            world.api.put("ingresses", object);
            let from = |number: u8| move |answer: &str| answer.contains(&format!("endpoint {number}\n"));
            world.until(&get("one.test", "/x"), from(2)).await;
            for (host, path, wanted) in [
                ("one.test", "/x?y=z", 2),
                ("one.test", "/x/", 1),
                ("one.test", "/x/y", 1),
                // What matches none of its rules.
                ("one.test", "/xy", 3),
                ("one.test", "/", 3),
                ("other.test", "/x", 3),
            ] {
                let answer = ask(&get(host, path)).await;
                assert!(from(wanted)(&answer), "{host}{path}: {answer}");
            }
            // One without rules is for all hosts that nobody names.
            world.ingress("rest", &[], json!({"defaultBackend": backend("d")}));
            world.until(&get("other.test", "/"), from(4)).await;
            assert!(from(3)(&ask(&get("one.test", "/")).await));
        },
    );
}

#[test]
fn each_request_has_its_line_in_the_log() {
    in_world(
        |_| {},
        async |world| {
            world.one_site().await;
            let file = tempfile::NamedTempFile::new().unwrap();
            let lines = Arc::new(file.reopen().unwrap());
            // All tasks of the test are on this thread.
            let log = tracing_subscriber::fmt().json().with_writer(lines).finish();
            let _guard = tracing::subscriber::set_default(log);
            assert_eq!(code(&ask(&get("one.test", "/x?token=secret")).await), 200);
            assert_eq!(code(&ask(&get("other.test", "/")).await), 404);
            // A line is written when its answer is on the way.
            let text = loop {
                let text = std::fs::read_to_string(file.path()).unwrap();
                if text
                    .lines()
                    .filter(|line| line.contains("skiff_ingress::access"))
                    .count()
                    == 2
                {
                    break text;
                }
                tokio::task::yield_now().await;
            };
            let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            let told: Vec<Value> = lines
                .filter(|line| line["target"] == "skiff_ingress::access")
                .map(|line| line["fields"].clone())
                .collect();
            for (name, wanted) in [
                ("method", json!("GET")),
                ("scheme", json!("http")),
                ("host", json!("one.test")),
                ("path", json!("/x")),
                ("status", json!(200)),
                ("ingress", json!("n/web")),
                ("endpoint", json!("10.0.0.1:80")),
                ("attempts", json!(1)),
            ] {
                assert_eq!(told[0][name], wanted, "{name} in {}", told[0]);
            }
            assert!(told[0]["bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{}", told[0]);
            assert!(
                told[0]["client"]
                    .as_str()
                    .is_some_and(|client| client.starts_with("10.0.0.100:"))
            );
            assert_eq!(
                (&told[1]["host"], &told[1]["status"]),
                (&json!("other.test"), &json!(404))
            );
            assert!(!text.contains("secret"), "queries stay out of it");
        },
    );
}

#[test]
fn an_endpoint_is_told_of_the_client() {
    in_world(
        |_| {},
        async |world| {
            world.one_site().await;
            let answer = ask(
            "POST /p?q=1 HTTP/1.1\r\nHost: one.test:8080\r\nConnection: close, x-mine\r\nX-Mine: 1\r\nX-Forwarded-For: 6.6.6.6\r\n\
             Keep-Alive: 5\r\nTransfer-Encoding: chunked\r\nX-Kept: yes\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        )
        .await;
            let body = answer.split_once("\r\n\r\n").unwrap().1;
            assert_eq!(
                body,
                "endpoint 1\nPOST /p?q=1 HTTP/1.1\nhost: one.test:8080\ntransfer-encoding: chunked\nx-forwarded-for: 10.0.0.100\n\
             x-forwarded-host: one.test:8080\nx-forwarded-port: 8080\nx-forwarded-proto: http\nx-kept: yes\nx-real-ip: 10.0.0.100\nabcde"
            );
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            // HTTP/1.0 clients are answered, too, and HEAD has no body but its length.
            let answer = ask("GET / HTTP/1.0\r\nHost: one.test\r\n\r\n").await;
            assert!(code(&answer) == 200 && answer.contains("endpoint 1"), "{answer}");
            let answer = ask("HEAD / HTTP/1.1\r\nHost: one.test\r\nConnection: close\r\n\r\n").await;
            assert!(
                answer.ends_with("\r\n\r\n") && answer.contains("content-length: "),
                "{answer}"
            );
        },
    );
}

#[test]
fn the_api_is_told_of_the_class_the_addresses_and_the_problems() {
    in_world(
        |_| {},
        async |world| {
            let class = world.written("ingressclasses", |_| true).await;
            assert_eq!(class["spec"]["controller"], "skiff/ingress");
            assert_eq!(
                class["metadata"]["annotations"]["ingressclass.kubernetes.io/is-default-class"],
                "true"
            );

            // Whoever gives ports away is told of ours; somebody who takes that away is corrected.
            let listens = |class: &Value| class["metadata"]["annotations"]["listens.ingress.skiff/10.0.0.100"].clone();
            let places = "10.0.0.100:8080,10.0.0.100:8443";
            assert_eq!(listens(&class), places);
            let mut bare = class.clone();
            bare["metadata"]["annotations"] = json!({});
            world.api.put("ingressclasses", bare);
            world.written("ingressclasses", |class| listens(class) == places).await;

            world.ingress("web", &[("one.test", "/", "absent")], json!({}));
            let published = json!([{"ip": "10.0.0.100"}]);
            world
                .written("ingresses", |object| {
                    object["status"]["loadBalancer"]["ingress"] == published
                })
                .await;
            let event = world.written("events", |_| true).await;
            assert_eq!(event["reason"], "ServiceNotFound");
            assert_eq!(event["message"], "Service n/absent is not there");
            assert_eq!(event["involvedObject"]["name"], "web");
            assert_eq!(code(&ask(&get("one.test", "/")).await), 503);
            assert_eq!(world.api.all("events").len(), 1, "a problem is told once");

            // An Ingress that goes over to somebody else takes its addresses away.
            let mut object = world.api.all("ingresses").remove(0);
            object["spec"]["ingressClassName"] = json!("other");
            world.api.put("ingresses", object);
            world
                .written("ingresses", |object| {
                    object["status"]["loadBalancer"]["ingress"].is_null()
                })
                .await;
            assert_eq!(code(&ask(&get("one.test", "/")).await), 404);
            // A class that somebody deletes comes back.
            world.api.delete("ingressclasses", "skiff");
            world.written("ingressclasses", |_| true).await;
        },
    );
}

#[test]
fn plain_requests_to_hosts_with_tls_are_redirected() {
    in_world(
        |_| {},
        async |world| {
            world.echo(1);
            world.service("a", None, &[1]);
            let tls = json!({"tls": [{"hosts": ["one.test"], "secretName": "absent"}]});
            world.ingress("web", &[("one.test", "/", "a"), ("plain.test", "/", "a")], tls);
            world.until(&get("plain.test", "/"), |answer| code(answer) == 200).await;
            let answer = ask(&get("one.test:8080", "/x?y=z")).await;
            assert_eq!(code(&answer), 308, "{answer}");
            assert!(
                answer.contains("\r\nlocation: https://one.test:8443/x?y=z\r\n"),
                "{answer}"
            );
            let mut object = world.api.all("ingresses").remove(0);
            object["metadata"]["annotations"] = json!({"ingress.skiff/ssl-redirect": "false"});
            world.api.put("ingresses", object);
            world.until(&get("one.test", "/"), |answer| code(answer) == 200).await;
        },
    );
}
