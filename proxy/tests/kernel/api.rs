//! An API that lists what it is given, and then tells of what the test changes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use futures::StreamExt;
use http::{Request, Response};
use http_body_util::StreamBody;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;

/// Objects by plural and name.
#[derive(Clone)]
pub(crate) struct Api {
    objects: Arc<Mutex<BTreeMap<(String, String), Value>>>,
    events: broadcast::Sender<(String, Value)>,
    written: Arc<Mutex<Vec<Value>>>,
}

impl Api {
    pub(crate) fn new() -> Self {
        Self {
            objects: Arc::default(),
            events: broadcast::channel(65_536).0,
            written: Arc::default(),
        }
    }

    pub(crate) fn put(&self, plural: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let mut objects = self.objects.lock();
        let new = objects.insert((plural.to_owned(), name), object.clone()).is_none();
        let kind = if new { "ADDED" } else { "MODIFIED" };
        self.events
            .send((plural.to_owned(), json!({"type": kind, "object": object})))
            .ok();
    }

    pub(crate) fn delete(&self, plural: &str, name: &str) {
        let mut objects = self.objects.lock();
        let object = objects.remove(&(plural.to_owned(), name.to_owned())).unwrap();
        self.events
            .send((plural.to_owned(), json!({"type": "DELETED", "object": object})))
            .ok();
    }

    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                if request.method() == http::Method::POST {
                    let body = request.into_body().collect_bytes().await.unwrap();
                    let object: Value = serde_json::from_slice(&body).unwrap();
                    api.written.lock().push(object.clone());
                    return Ok::<_, Infallible>(respond(futures::stream::once(async move { object }).boxed()));
                }
                Ok(api.answer(request.uri()))
            }
        });
        kube::Client::new(service, "default")
    }

    pub(crate) fn answer(&self, uri: &http::Uri) -> Answer {
        let plural = uri.path().rsplit('/').next().unwrap().to_owned();
        let watch = uri.query().unwrap_or_default().contains("watch=true");
        let lines = if watch {
            let receiver = self.events.subscribe();
            futures::stream::unfold((receiver, plural), |(mut receiver, plural)| async move {
                loop {
                    let (kind, event) = receiver.recv().await.ok()?;
                    if kind == plural {
                        return Some((event, (receiver, plural)));
                    }
                }
            })
            .boxed()
        } else {
            let objects = self.objects.lock();
            let items: Vec<_> = objects
                .iter()
                .filter(|((kind, _), _)| *kind == plural)
                .map(|(_, object)| object.clone())
                .collect();
            let list =
                json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items});
            futures::stream::once(async move { list }).boxed()
        };
        respond(lines)
    }

    /// What was written to the server: events.
    pub(crate) fn events(&self) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let written = self.written.lock();
        written
            .iter()
            .map(|event| (text(&event["reason"]), text(&event["note"])))
            .collect()
    }
}

type Answer = Response<StreamBody<futures::stream::BoxStream<'static, Frame>>>;

fn respond(lines: futures::stream::BoxStream<'static, Value>) -> Answer {
    let frames = lines.map(|line| Ok(http_body::Frame::data(format!("{line}\n").into())));
    Response::new(StreamBody::new(frames.boxed()))
}

type Frame = Result<http_body::Frame<bytes::Bytes>, Infallible>;

pub(crate) fn service(name: &str, ip: &str, spec: Value) -> Value {
    let mut object = json!({
        "metadata": {"namespace": "test", "name": name, "resourceVersion": "2"},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80, "protocol": "TCP"}]},
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

/// A slice of a Service's endpoints, all ready; local where the address is of this node's range.
pub(crate) fn slice(service: &str, protocol: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}, "nodeName": if ip.starts_with("10.244.0.") { "here" } else { "there" }}))
        .collect();
    json!({
        "metadata": {"namespace": "test", "name": format!("{service}-1"), "resourceVersion": "2",
                     "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "", "protocol": protocol, "port": 8080}], "endpoints": endpoints,
    })
}

/// This node, in a zone and with a range of pods.
pub(crate) fn node(zone: &str, range: &str) -> Value {
    json!({
        "metadata": {"name": "here", "resourceVersion": "2", "labels": {"topology.kubernetes.io/zone": zone}},
        "spec": {"podCIDR": range},
        "status": {"addresses": [{"type": "InternalIP", "address": "172.30.0.1"}]},
    })
}
