//! What the collector does while answers of the server and news of the watches cross.

use std::io;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::events::Broadcaster;
use crate::metrics::WorkqueueMetrics;
use crate::queue::Retriable as _;

/// `METHOD /path` of a request, and its body.
type Asked = (String, Value);

fn answer(status: u16, body: &Value) -> Response<Body> {
    let body = Body::from(body.to_string().into_bytes());
    Response::builder().status(status).body(body).unwrap()
}

fn failure(status: u16) -> Response<Body> {
    answer(status, &json!({"kind": "Status", "status": "Failure", "code": status}))
}

/// A client that this function answers.
fn scripted(serve: impl Fn(Asked) -> BoxFuture<'static, Response<Body>> + Clone + Send + 'static) -> Client {
    let service = tower::service_fn(move |request: Request<Body>| {
        let serve = serve.clone();
        async move {
            let asked = format!("{} {}", request.method(), request.uri());
            let asked = asked.trim_end_matches('?').to_owned();
            let body = request.into_body().collect_bytes().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>(serve((asked, serde_json::from_slice(&body).unwrap_or_default())).await)
        }
    });
    Client::new(service, "default")
}

fn controller(client: Client) -> Arc<Controller> {
    Arc::new(Controller {
        writer: Writer::new(client),
        recorder: Broadcaster::new().recorder("test"),
        graph: Mutex::default(),
        queue: Queue::new(WorkqueueMetrics::default().queue("test")),
        kinds: Mutex::default(),
        kinds_changed: Notify::new(),
        all_listed: AtomicBool::new(false),
    })
}

fn config_maps() -> Arc<Kind> {
    Arc::new(Kind {
        group: String::new(),
        version: "v1".into(),
        kind: "ConfigMap".into(),
        plural: "configmaps".into(),
        namespaced: true,
        verbs: vec![],
    })
}

/// An object of `ns` whose uid is its name, with at most one owner (API version, kind, name).
fn object(name: &str, version: &str, owner: Option<(&str, &str, &str)>) -> Value {
    let owner = owner.map(|(api_version, kind, name)| {
        json!({"apiVersion": api_version, "kind": kind, "name": name, "uid": name, "blockOwnerDeletion": true})
    });
    json!({
        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
        "metadata": {
            "name": name, "namespace": "ns", "uid": name, "resourceVersion": version,
            "ownerReferences": owner.into_iter().collect::<Vec<_>>(),
        },
    })
}

fn meta(object: &Value) -> ObjectMeta {
    serde_json::from_value(object["metadata"].clone()).unwrap()
}

const OWNED: Option<(&str, &str, &str)> = Some(("v1", "ConfigMap", "owner"));

/// A controller that knows of `dependent` of `owner`; each request waits for an answer of the test.
#[expect(clippy::type_complexity, reason = "one place")]
fn with_dependent() -> (
    Arc<Controller>,
    mpsc::UnboundedReceiver<(Asked, oneshot::Sender<Response<Body>>)>,
) {
    let (sender, requests) = mpsc::unbounded_channel();
    let client = scripted(move |asked| {
        let (reply, replied) = oneshot::channel();
        sender.send((asked, reply)).ok();
        async { replied.await.unwrap() }.boxed()
    });
    let controller = controller(client);
    controller.know(&config_maps());
    controller.observe(&config_maps(), &meta(&object("dependent", "5", OWNED)));
    (controller, requests)
}

#[tokio::test]
async fn what_ended_while_it_was_asked_for_stays_ended() {
    let (controller, mut requests) = with_dependent();
    controller.graph.lock().remember_gone("owner".into());
    let script = async {
        let (asked, reply) = requests.recv().await.unwrap();
        assert_eq!(asked.0, "GET /api/v1/namespaces/ns/configmaps/dependent");
        // The answer is on its way; the watch is faster and tells what happened after it.
        controller.observe_end("dependent");
        reply.send(answer(200, &object("dependent", "5", OWNED))).unwrap();
        let (asked, reply) = requests.recv().await.unwrap();
        assert!(asked.0.starts_with("DELETE "), "{}", asked.0);
        reply.send(failure(404)).unwrap();
    };
    let (done, ()) = tokio::join!(controller.process("dependent".into()), script);
    done.unwrap();
    assert!(controller.graph.lock().node("dependent").is_none());
}

/// Where a kind cannot be listed, garbage is collected all the same; but nobody goes before dependents that may be there.
#[tokio::test(start_paused = true)]
async fn an_owner_waits_until_every_kind_is_listed() {
    let (controller, mut requests) = with_dependent();
    let mut going = object("owner", "11", None);
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    going["metadata"]["finalizers"] = json!([ORPHAN]);
    controller.observe(&config_maps(), &meta(&going));
    controller.process("owner".into()).await.unwrap();
    assert!(requests.try_recv().is_err(), "it is set free before all is known");
    controller.all_listed.store(true, Ordering::Relaxed);
    let asked = async { requests.recv().await.unwrap().0.0 };
    tokio::select! {
        _ = controller.process("owner".into()) => panic!("it asks nobody"),
        asked = asked => assert_eq!(asked, "GET /api/v1/namespaces/ns/configmaps/dependent"),
    }
}

#[tokio::test]
async fn who_names_an_owner_is_looked_at_after_each_list() {
    let (controller, _requests) = with_dependent();
    while let Some(uid) = controller.queue.next().now_or_never() {
        controller.queue.done(uid, false);
    }
    controller.replace(&config_maps(), vec![meta(&object("dependent", "5", OWNED))]);
    assert_eq!(controller.queue.next().now_or_never().as_deref(), Some("dependent"));
}

#[tokio::test]
async fn an_owner_is_not_taken_back_to_what_it_was() {
    let (controller, mut requests) = with_dependent();
    let script = async {
        let (_, reply) = requests.recv().await.unwrap();
        reply.send(answer(200, &object("dependent", "5", OWNED))).unwrap();
        let (asked, reply) = requests.recv().await.unwrap();
        assert_eq!(asked.0, "GET /api/v1/namespaces/ns/configmaps/owner");
        let mut going = object("owner", "11", None);
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        going["metadata"]["finalizers"] = json!([FOREGROUND]);
        controller.observe(&config_maps(), &meta(&going));
        reply.send(answer(200, &object("owner", "10", None))).unwrap();
    };
    let (done, ()) = tokio::join!(controller.process("dependent".into()), script);
    done.unwrap();
    let graph = controller.graph.lock();
    assert_eq!(graph.node("owner").unwrap().going, Going::Foreground);
}

#[tokio::test]
async fn what_changed_since_it_was_decided_on_is_looked_at_again() {
    let (controller, mut requests) = with_dependent();
    controller.graph.lock().remember_gone("owner".into());
    let script = async {
        let (_, reply) = requests.recv().await.unwrap();
        reply.send(answer(200, &object("dependent", "7", OWNED))).unwrap();
        let (asked, reply) = requests.recv().await.unwrap();
        let expected = json!({"uid": "dependent", "resourceVersion": "7"});
        assert_eq!(asked.1["preconditions"], expected, "{}", asked.0);
        reply.send(failure(409)).unwrap();
    };
    let (done, ()) = tokio::join!(controller.process("dependent".into()), script);
    assert!(done.is_err_and(|error| error.is_expected()));
}

// === with the monitors ===

fn resource(plural: &str, kind: &str) -> Value {
    let verbs = ["delete", "get", "list", "watch"];
    json!({"resource": plural, "responseKind": {"kind": kind}, "scope": "Namespaced", "verbs": verbs})
}

fn group(name: &str, freshness: &str, resources: &[Value]) -> Value {
    let version = json!({"version": "v1", "freshness": freshness, "resources": resources});
    json!({"metadata": {"name": name}, "versions": [version]})
}

fn groups(groups: &[Value]) -> Response<Body> {
    let list = json!({"apiVersion": "apidiscovery.k8s.io/v2", "kind": "APIGroupDiscoveryList", "items": groups});
    answer(200, &list)
}

fn list(items: &[Value]) -> Response<Body> {
    let list = json!({
        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
        "metadata": {"resourceVersion": "9"}, "items": items,
    });
    answer(200, &list)
}

/// Runs the collector on this script until it deletes the dependent.
async fn until_deleted(serve: impl Fn(&str) -> Option<Response<Body>> + Clone + Send + 'static) {
    let (sender, mut deleted) = mpsc::unbounded_channel();
    let client = scripted(move |(asked, _)| {
        let served = serve(&asked);
        if asked == "DELETE /api/v1/namespaces/ns/configmaps/dependent" {
            sender.send(()).ok();
        }
        async move {
            match served {
                Some(served) => served,
                None => std::future::pending().await,
            }
        }
        .boxed()
    });
    let shutdown = Shutdown::default();
    let running = tokio::spawn(run(
        controller(client),
        HashSet::new(),
        std::future::ready(()),
        shutdown.clone(),
    ));
    let waited = tokio::time::timeout(Duration::from_secs(300), deleted.recv()).await;
    waited.expect("the dependent is deleted");
    shutdown.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_cannot_be_listed_holds_up_no_other() {
    until_deleted(|asked| {
        let (method, path) = asked.split_once(' ')?;
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        match path {
            _ if query.contains("watch=true") => None,
            "/api" => Some(groups(&[group(
                "",
                "Current",
                &[resource("configmaps", "ConfigMap"), resource("secrets", "Secret")],
            )])),
            "/apis" => Some(groups(&[])),
            "/api/v1/configmaps" => Some(list(&[object("dependent", "5", OWNED)])),
            "/api/v1/secrets" => Some(failure(500)),
            "/api/v1/namespaces/ns/configmaps/dependent" if method == "GET" => {
                Some(answer(200, &object("dependent", "5", OWNED)))
            }
            "/api/v1/namespaces/ns/configmaps/dependent" => Some(answer(200, &json!({}))),
            _ => Some(failure(404)),
        }
    })
    .await;
}

/// Nothing tells of it: the group is asked again, and then those whose owners nobody could be asked about are looked at.
#[tokio::test(start_paused = true)]
async fn a_kind_that_is_known_late_has_its_absent_owners_dependents_collected() {
    let asked_for_groups = Arc::new(Mutex::new(0));
    until_deleted(move |asked| {
        let (method, path) = asked.split_once(' ')?;
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let dependent = object("dependent", "5", Some(("example.com/v1", "Widget", "owner")));
        match path {
            _ if query.contains("watch=true") => None,
            "/api" => Some(groups(&[group("", "Current", &[resource("configmaps", "ConfigMap")])])),
            "/apis" => {
                let mut times = asked_for_groups.lock();
                *times += 1;
                Some(groups(&[if *times == 1 {
                    group("example.com", "Stale", &[])
                } else {
                    group("example.com", "Current", &[resource("widgets", "Widget")])
                }]))
            }
            "/api/v1/configmaps" => Some(list(&[dependent])),
            "/apis/example.com/v1/widgets" => Some(list(&[])),
            "/api/v1/namespaces/ns/configmaps/dependent" if method == "GET" => Some(answer(200, &dependent)),
            "/api/v1/namespaces/ns/configmaps/dependent" => Some(answer(200, &json!({}))),
            _ => Some(failure(404)),
        }
    })
    .await;
}
