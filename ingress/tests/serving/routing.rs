//! Hosts and paths, what the endpoint is told, what the API is told.

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
