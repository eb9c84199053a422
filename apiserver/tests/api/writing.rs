//! Writes: conflicts, preconditions, finalizers, graceful deletion, dry runs.

use futures::{AsyncBufReadExt as _, StreamExt as _};
use http::Request;
use kube::Client;
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// Sends a request; returns the code and the body.
async fn send(client: &Client, method: &str, path: &str, media: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() {
        Vec::new()
    } else {
        serde_json::to_vec(&body).unwrap()
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", media)
        .body(kube::client::Body::from(body))
        .unwrap();
    let response = client.send(request).await.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect_bytes().await.unwrap();
    (code, serde_json::from_slice(&bytes).unwrap())
}

const JSON: &str = "application/json";
const JSON_PATCH: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_do_not_overwrite_each_other() {
    let cluster = Cluster::start().await;
    let client = cluster.server.client("admin", &["system:masters"]);
    let (code, first) = send(&client, "POST", MAPS, JSON, map("a")).await;
    assert_eq!(code, 201);
    let (code, status) = send(&client, "POST", MAPS, JSON, map("a")).await;
    assert_eq!((code, &status["reason"]), (409, &json!("AlreadyExists")));

    let path = format!("{MAPS}/a");
    let mut mine = first.clone();
    mine["data"]["k"] = "mine".into();
    let (code, second) = send(&client, "PUT", &path, JSON, mine).await;
    assert_eq!(code, 200);
    let mut stale = first.clone();
    stale["data"]["k"] = "stale".into();
    let (code, status) = send(&client, "PUT", &path, JSON, stale).await;
    assert_eq!(code, 409);
    assert_eq!(
        status["message"],
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    // What changes nothing is not written.
    let (_, same) = send(&client, "PUT", &path, JSON, second.clone()).await;
    assert_eq!(
        same["metadata"]["resourceVersion"],
        second["metadata"]["resourceVersion"]
    );

    let patches = (0..20).map(|number| {
        let (client, path) = (client.clone(), path.clone());
        async move {
            let patch = json!({"data": {format!("k{number}"): "v"}});
            send(&client, "PATCH", &path, MERGE, patch).await.0
        }
    });
    let codes = futures::future::join_all(patches).await;
    assert!(codes.iter().all(|code| *code == 200), "{codes:?}");
    let (_, object) = send(&client, "GET", &path, JSON, Value::Null).await;
    assert_eq!(object["data"].as_object().unwrap().len(), 21);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_checked() {
    let cluster = Cluster::start().await;
    let client = cluster.server.client("admin", &["system:masters"]);
    let mut elsewhere = map("a");
    elsewhere["metadata"]["namespace"] = "other".into();
    let cases = [
        (
            elsewhere,
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}}),
            422,
            "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required",
        ),
        (
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": 5}),
            400,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data of type map[string]string",
        ),
    ];
    for (body, code, message) in cases {
        let (actual, status) = send(&client, "POST", MAPS, JSON, body).await;
        assert_eq!((actual, &status["message"]), (code, &json!(message)));
    }
    let (code, status) = send(&client, "POST", MAPS, "text/csv", map("a")).await;
    assert_eq!((code, &status["reason"]), (415, &json!("UnsupportedMediaType")));
    let (code, _) = send(&client, "POST", "/api/v1/namespaces/absent/configmaps", JSON, map("a")).await;
    assert_eq!(code, 404);
    let (code, dry) = send(&client, "POST", &format!("{MAPS}?dryRun=All"), JSON, map("dry")).await;
    assert_eq!((code, &dry["metadata"]["name"]), (201, &json!("dry")));
    let (code, _) = send(&client, "GET", &format!("{MAPS}/dry"), JSON, Value::Null).await;
    assert_eq!(code, 404);
    let mut generated = map("");
    generated["metadata"] = json!({"generateName": "g-"});
    let (code, object) = send(&client, "POST", MAPS, JSON, generated).await;
    assert_eq!(code, 201);
    assert_eq!(object["metadata"]["name"].as_str().unwrap().len(), 7);
    let (code, status) = send(&client, "POST", MAPS, JSON, Value::String("x".repeat(3 << 20))).await;
    assert_eq!((code, &status["reason"]), (413, &json!("RequestEntityTooLarge")));
    // Neither at once nor by and by.
    const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles";
    let path = format!("{ROLES}/big");
    let big = |letter: &str| json!({"apiGroups": [""], "resources": [letter.repeat(1 << 20)], "verbs": ["get"]});
    let role = |rules: Value| json!({"metadata": {"name": "big"}, "rules": rules});
    let operation = |op: &str, path: &str, value| json!([{"op": op, "path": path, "value": value}]);
    for (method, path, kind, body, wanted) in [
        ("POST", ROLES, JSON, role(json!([big("a"), big("b")])), 413),
        ("POST", ROLES, JSON, role(json!([big("a")])), 201),
        ("PATCH", &path, JSON_PATCH, operation("add", "/rules/-", big("b")), 413),
        (
            "PATCH",
            &path,
            JSON_PATCH,
            operation("replace", "/rules/0", big("b")),
            200,
        ),
    ] {
        let (code, status) = send(&client, method, path, kind, body).await;
        assert_eq!(code, wanted, "{method}: {}", status["message"]);
        assert!(
            code < 300 || status["reason"] == "RequestEntityTooLarge",
            "{}",
            status["reason"]
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finalizers_and_preconditions_hold_deletions_back() {
    let cluster = Cluster::start().await;
    let client = cluster.server.client("admin", &["system:masters"]);
    let mut object = map("a");
    object["metadata"]["finalizers"] = json!(["example.com/f"]);
    let (_, object) = send(&client, "POST", MAPS, JSON, object).await;
    let path = format!("{MAPS}/a");
    let wrong = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": "wrong"}});
    let (code, status) = send(&client, "DELETE", &path, JSON, wrong).await;
    let message = format!(
        "Operation cannot be fulfilled on configmaps \"a\": Precondition failed: UID in precondition: wrong, UID in object meta: {}",
        object["metadata"]["uid"].as_str().unwrap()
    );
    assert_eq!((code, &status["message"]), (409, &json!(message)));
    let (code, marked) = send(&client, "DELETE", &path, JSON, Value::Null).await;
    assert_eq!(code, 200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let (code, _) = send(
        &client,
        "PATCH",
        &path,
        MERGE,
        json!({"metadata": {"finalizers": null}}),
    )
    .await;
    assert_eq!(code, 200);
    let (code, _) = send(&client, "GET", &path, JSON, Value::Null).await;
    assert_eq!(code, 404);
    for name in ["b", "c"] {
        send(&client, "POST", MAPS, JSON, map(name)).await;
    }
    let (code, list) = send(&client, "DELETE", MAPS, JSON, Value::Null).await;
    assert_eq!((code, list["items"].as_array().unwrap().len()), (200, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_bound_once_and_end_gracefully() {
    let cluster = Cluster::start().await;
    let client = cluster.server.client("admin", &["system:masters"]);
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    send(
        &client,
        "POST",
        "/api/v1/namespaces/default/serviceaccounts",
        JSON,
        account,
    )
    .await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    let (code, pod) = send(&client, "POST", PODS, JSON, pod).await;
    assert_eq!(code, 201, "{pod}");
    assert_eq!(pod["status"]["phase"], "Pending");
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let path = format!("{PODS}/p");
    let (code, status) = send(&client, "POST", &format!("{path}/binding"), JSON, binding.clone()).await;
    assert_eq!((code, &status["status"]), (201, &json!("Success")));
    let (code, status) = send(&client, "POST", &format!("{path}/binding"), JSON, binding).await;
    assert_eq!(
        (code, &status["message"]),
        (
            409,
            &json!("Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n\"")
        )
    );
    let (_, pod) = send(&client, "GET", &path, JSON, Value::Null).await;
    assert_eq!(pod["spec"]["nodeName"], "n");
    assert_eq!(pod["status"]["conditions"][0]["type"], "PodScheduled");
    let (code, marked) = send(&client, "DELETE", &path, JSON, Value::Null).await;
    assert_eq!(
        (code, &marked["metadata"]["deletionGracePeriodSeconds"]),
        (200, &json!(30))
    );
    let now = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
    let (code, _) = send(&client, "DELETE", &path, JSON, now).await;
    assert_eq!(code, 200);
    let (code, _) = send(&client, "GET", &path, JSON, Value::Null).await;
    assert_eq!(code, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_get_addresses_that_nobody_else_has() {
    let cluster = Cluster::start().await;
    let client = cluster.server.client("admin", &["system:masters"]);
    let path = "/api/v1/namespaces/default/services";
    let service = |name: &str, ip: Value| {
        let mut service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"type": "NodePort", "ports": [{"port": 80}]},
        });
        if ip.is_string() {
            service["spec"]["clusterIP"] = ip;
        }
        service
    };
    let creations = (0..50).map(|number| {
        let (client, service) = (client.clone(), service(&format!("s{number}"), Value::Null));
        async move { send(&client, "POST", path, JSON, service).await }
    });
    let created = futures::future::join_all(creations).await;
    let unique = |pointer: &str| {
        let values: std::collections::BTreeSet<String> = created
            .iter()
            .map(|(_, service)| service.pointer(pointer).unwrap().to_string())
            .collect();
        values.len()
    };
    assert_eq!((unique("/spec/clusterIP"), unique("/spec/ports/0/nodePort")), (50, 50));
    let (code, status) = send(&client, "POST", path, JSON, service("x", json!("10.96.0.1"))).await;
    assert_eq!(
        (code, &status["message"]),
        (
            422,
            &json!(
                "Service \"x\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.0.1\"]: failed to allocate IP 10.96.0.1: provided IP is already allocated"
            )
        )
    );
    // An address that is given back can be had again.
    let ip = created[0].1["spec"]["clusterIP"].clone();
    send(&client, "DELETE", &format!("{path}/s0"), JSON, Value::Null).await;
    let (code, _) = send(&client, "POST", path, JSON, service("again", ip)).await;
    assert_eq!(code, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_survives_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let first = Cluster::start_in(directory.path()).await;
    let client = first.server.client("admin", &["system:masters"]);
    let (_, object) = send(&client, "POST", MAPS, JSON, map("a")).await;
    drop((client, first));
    let second = Cluster::start_in(directory.path()).await;
    let client = second.server.client("admin", &["system:masters"]);
    let (code, again) = send(&client, "GET", &format!("{MAPS}/a"), JSON, Value::Null).await;
    assert_eq!((code, again), (200, object));
    // What happened before the start is in no window: the client is told to list anew.
    let request = Request::get(format!("{MAPS}?watch=true&resourceVersion=1"))
        .body(Vec::new())
        .unwrap();
    let line = client
        .request_stream(request)
        .await
        .unwrap()
        .lines()
        .next()
        .await
        .unwrap()
        .unwrap();
    let event: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["code"], &event["object"]["reason"]),
        (&json!("ERROR"), &json!(410), &json!("Expired"))
    );
}
